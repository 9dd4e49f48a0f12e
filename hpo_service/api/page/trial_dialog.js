// One trial: its params, curve, attempts, figures and files; it can be stopped, and tried again.

import { download, get, getIfThere, post } from "./calls.js";
import { ask, show } from "./dialogs.js";
import { h, notice, renew } from "./dom.js";
import { ago, clock, duration, measured, moment, number, param } from "./format.js";
import { CurvesChart } from "./line_charts.js";
import { stateSign } from "./signs.js";
import { curveOf } from "./trial_store.js";

/** onEvent(number, f): calls f when an event tells of the trial; returns how to stop that. again(params): enqueues. */
export function openTrial(study, n, onEvent, again) {
  const path = `/v1/studies/${study.name}/trials/${n}`;
  const facts = h("div", { class: "facts" });
  const chart = new CurvesChart(() => {});
  const tables = h("div", { class: "columns" });
  const buttons = h("p", { class: "row" });
  const dialog = show({ title: `Trial ${n}`, body: [facts, buttons, chart.element, tables] });
  let drawn = false;
  let trial = null;
  let artifacts = [];

  async function fill() {
    try {
      const [read, attempts] = await Promise.all([get(path), get(`${path}/attempts`)]);
      trial = read;
      paint(attempts.items);
      artifacts = (trial.artifacts?.length ? await getIfThere(`${path}/artifacts`) : null)?.items ?? [];
      if (artifacts.length && dialog.open) paint(attempts.items);
    } catch (error) {
      notice(error.message, "bad");
    }
  }

  function paint(attempts) {
    const values = trial.values ? trial.values.map(number).join(" · ") : "–";
    const last = trial.reports.at(-1);
    renew(
      facts,
      fact("State", stateSign(trial.state)),
      fact(trial.values?.length > 1 ? "Values" : "Value", values),
      last && trial.state === "RUNNING" ? fact("Last report", `${number(last.value)} at step ${last.step}`) : null,
      fact("Attempt", String(trial.attempt)),
      trial.worker_id ? fact("Worker", trial.worker_id) : null,
      trial.round !== null ? fact("Round", String(trial.round)) : null,
      trial.replicate_of != null ? fact("Replicate of", String(trial.replicate_of)) : null,
      fact("Drawn by", trial.sampler, trial.sampler_reason),
      fact("Seed", String(trial.seed)),
      trial.started_at ? fact("Started", clock(trial.started_at), moment(trial.started_at)) : null,
      trial.finished_at && trial.started_at ? fact("Took", duration((Date.parse(trial.finished_at) - Date.parse(trial.started_at)) / 1000)) : null,
    );
    const open = trial.state === "RUNNING" || trial.state === "WAITING";
    renew(
      buttons,
      open ? h("button", { type: "button", class: "danger", onclick: stop }, "Stop trial") : null,
      h("button", { type: "button", onclick: () => { dialog.close(); again(trial.params); } }, "Enqueue again"),
    );
    if (trial.reports.length) {
      chart.show([{ number: n, state: trial.state, ...curveOf(trial.reports) }], study.directions[0] === "maximize");
    } else if (!drawn) {
      chart.element.hidden = true;
    }
    drawn = true;
    renew(
      tables,
      trial.reason ? section("Reason", h("pre", { tabindex: "0" }, trial.reason)) : null,
      section("Params", pairs(trial.params, param)),
      trial.metrics && Object.keys(trial.metrics).length ? section("Metrics", pairs(trial.metrics, (value) => (typeof value === "number" ? number(value) : JSON.stringify(value)))) : null,
      attempts.length ? section("Attempts", attemptsTable(attempts)) : null,
      trial.reports.length ? section("Reports", reportsTable(trial.reports)) : null,
      artifacts.length ? section("Artifacts", filesTable(path, artifacts)) : null,
    );
  }

  function stop() {
    const text = trial.state === "RUNNING" ? "Its worker learns it with its next report. This cannot be undone." : "It will not be given out. This cannot be undone.";
    ask({ title: `Stop trial ${n}?`, text: [text], action: "Stop trial", danger: true, run: async () => { await post(`${path}:stop`); await fill(); return `Trial ${n} was told to stop.`; } });
  }

  const forget = onEvent(n, fill);
  dialog.addEventListener("close", forget);
  fill();
}

function fact(name, value, title = null) {
  return h("div", { class: "fact", title }, h("span", { class: "quiet-text" }, name), " ", h("span", { class: "strong" }, value));
}

function section(title, ...body) {
  return h("section", {}, h("h3", {}, title), body);
}

function pairs(object, text) {
  return h("table", { class: "pairs" }, h("tbody", {}, Object.entries(object).slice(0, 300).map(([name, value]) => h("tr", {}, h("th", { scope: "row" }, name), h("td", { class: "number" }, text(value))))));
}

function attemptsTable(attempts) {
  const row = (attempt) => h("tr", {}, h("th", { scope: "row" }, String(attempt.attempt)), h("td", {}, attempt.worker_id), h("td", { title: moment(attempt.started_at) }, ago(attempt.started_at)), h("td", {}, attempt.end ?? "held"));
  return h("table", {}, h("thead", {}, h("tr", {}, ["Attempt", "Worker", "Started", "End"].map((title) => h("th", { scope: "col" }, title)))), h("tbody", {}, attempts.map(row)));
}

function reportsTable(reports) {
  const rows = reports.slice(-200).reverse().map((report) => h("tr", {}, h("th", { scope: "row" }, String(report.step)), h("td", { class: "number" }, number(measured(report.value)))));
  return h("div", { class: "scroll short", tabindex: "0", role: "region", "aria-label": "Reports" }, h("table", {}, h("thead", {}, h("tr", {}, h("th", { scope: "col" }, "Step"), h("th", { scope: "col", class: "number" }, "Value"))), h("tbody", {}, rows)));
}

function filesTable(path, artifacts) {
  const get = (name) => download(`${path}/artifacts/${encodeURIComponent(name)}`, name).catch((error) => notice(error.message, "bad"));
  const row = (file) => h("tr", {}, h("th", { scope: "row" }, h("button", { type: "button", class: "link", onclick: () => get(file.name) }, file.name)), h("td", { class: "number" }, `${file.size.toLocaleString("en")} bytes`), h("td", {}, ago(file.at)));
  return h("table", {}, h("tbody", {}, artifacts.map(row)));
}
