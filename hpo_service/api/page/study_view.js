// One study, live: what it has reached, how it got there, who works at it, and what can be done with it.

import { Refused, download, get, getIfThere } from "./calls.js";
import { h, notice, put, renew, say, throttled } from "./dom.js";
import { ago, count, duration, moment, number, param } from "./format.js";
import { CurvesChart, HistoryChart } from "./line_charts.js";
import { advicePanel, confirmationPanel, failuresPanel, importancesPanel, testPanel, workersPanel } from "./panels.js";
import { progress, progressWords, stateSign } from "./signs.js";
import { frontPlot, parallel, rounds, slices } from "./space_plots.js";
import { follow } from "./stream.js";
import { openTrial } from "./trial_dialog.js";
import { POINTS, TrialStore } from "./trial_store.js";
import { TrialsTable } from "./trials_table.js";
import { verbs } from "./verbs.js";

const LONG_HIDDEN = 20_000; // milliseconds; then all is read anew

export async function showStudy(main, name, onLocked) {
  document.title = `${name} · hpo-service`;
  try {
    await new StudyView(main, name).open();
  } catch (error) {
    if (error instanceof Refused && error.status === 401) onLocked(error);
    else put(main, h("div", { class: "empty" }, h("h1", {}, name), h("p", {}, error.message), h("p", {}, h("a", { href: "/" }, "All studies"))));
  }
}

class StudyView {
  constructor(main, name) {
    this.main = main;
    this.path = `/v1/studies/${name}`;
    this.watched = new Map(); // trial -> functions to call when an event tells of it
    this.best = [];
    this.bestShown = 5;
  }

  async open() {
    const [study, history] = await Promise.all([get(this.path), get(`${this.path}/history?points=${POINTS}`)]);
    this.study = study;
    this.store = new TrialStore(study);
    this.store.load(history);
    this.build();
    this.render();
    this.readRest();
    this.listen();
    this.watchWhetherSeen();
  }

  // -- the page ---------------------------------------------------------------------------------------------

  build() {
    const pick = (n) => this.openTrial(n);
    this.state = h("span");
    this.live = h("span", { class: "live", role: "status" }, "connecting");
    this.reason = h("p", { class: "state-reason", hidden: true });
    this.verbs = verbs(() => this.study, (study) => this.changed(study));
    this.facts = { best: h("div", { class: "fact-card wide-card" }), trials: h("div", { class: "fact-card wide-card" }), workers: h("div", { class: "fact-card" }), time: h("div", { class: "fact-card" }) };
    this.history = new HistoryChart(pick);
    this.curves = new CurvesChart(pick);
    this.curvesTable = h("tbody");
    this.parallel = parallel((numbers) => { this.table.brushed = numbers; this.table.anew(); });
    this.slices = slices(pick);
    this.rounds = rounds(pick);
    this.front = frontPlot(pick);
    this.importances = importancesPanel();
    this.workers = workersPanel((id) => this.verbs.drain(id));
    this.failures = failuresPanel(pick);
    this.advice = advicePanel((advice) => this.verbs.takeAdvice(advice));
    this.confirmation = confirmationPanel(pick);
    this.test = testPanel();
    this.table = new TrialsTable(this.study, pick, (format) => this.exportAs(format));
    const bestOf = h("select", { "aria-label": "Curves shown", onchange: () => { this.bestShown = Number(bestOf.value); this.readCurves(); } }, [3, 5, 10, 20, 50].map((k) => h("option", { value: String(k), selected: k === this.bestShown }, `best ${k}`)));
    const direction = this.study.directions.length > 1
      ? h("select", { "aria-label": "Which value", onchange: (event) => { this.history.direction = Number(event.target.value); this.history.zoomed = false; this.history.show(this.store, this.study); } }, this.study.directions.map((word, index) => h("option", { value: String(index) }, `value ${index} (${word})`)))
      : null;
    this.sections = {
      confirmation: section("Confirmation", this.confirmation.element),
      test: section("Sealed test", this.test.element),
      front: section("The front", this.front.element),
      history: section("Values", [direction, h("span", { class: "legend", "aria-hidden": "true" }, ["COMPLETE", "RUNNING", "PRUNED", "FAIL"].map((state) => stateSign(state)))], this.history.element, this.thinned = h("p", { class: "quiet-text" })),
      curves: section("Curves", [bestOf, h("span", { class: "quiet-text" }, "and what runs")], this.curves.element, h("details", {}, h("summary", {}, "The curves as a table"), h("div", { class: "scroll short", tabindex: "0", role: "region", "aria-label": "Curves" }, h("table", {}, h("thead", {}, h("tr", {}, ["Trial", "State", "Reports", "Last step", "Last value"].map((title) => h("th", { scope: "col" }, title)))), this.curvesTable)))),
      parallel: section("Params and value", this.parallel.element),
      importances: section("Importances", this.importances.element),
      advice: section("Advice", this.advice.element),
      rounds: section("Rounds", this.rounds.element),
      slices: section("Each parameter against the value", this.slices.element),
      trials: section("Trials", this.table.element),
      workers: section("Workers", this.workers.element),
      failures: section("Failures", this.failures.element),
      definition: section("Definition", this.definition = h("div")),
    };
    for (const [name, element] of Object.entries(this.sections)) element.classList.add(`of-${name}`);
    for (const name of ["advice", "confirmation", "test", "rounds", "front"]) this.sections[name].hidden = true;
    put(
      this.main,
      h("nav", { class: "crumbs", "aria-label": "Breadcrumbs" }, h("a", { href: "/" }, "Studies")),
      h("div", { class: "title-row" }, h("h1", {}, this.study.name), this.state, this.live, h("span", { class: "spacer" }), this.verbs.element),
      this.reason,
      h("div", { class: "cards" }, Object.values(this.facts)),
      h("div", { class: "grid" }, Object.values(this.sections)),
    );
    this.draw = throttled(() => this.render(), 250);
    this.drawSpace = throttled(() => this.renderSpace(), 1000);
    this.readStudy = throttled(() => this.quietly(async () => this.changed(await get(this.path))), 1000);
    this.readCurves = throttled(() => this.quietly(() => this.fetchCurves()), 2000);
    this.readSums = throttled(() => this.quietly(() => this.fetchSums()), 4000);
    this.readSlow = throttled(() => this.quietly(() => this.fetchSlow()), 20_000);
    setInterval(() => { if (!document.hidden) this.renderTimes(); }, 1000);
  }

  render() {
    const { study, store } = this;
    renew(this.state, stateSign(study.state));
    this.reason.hidden = !study.state_reason;
    say(this.reason, study.state_reason ?? "");
    this.verbs.show();
    this.renderFacts();
    this.history.show(store, study);
    say(this.thinned, store.isThinned ? `${store.rows.size.toLocaleString("en")} of ${store.total.toLocaleString("en")} trials are shown: every step of the best, what runs, and an even choice of the rest.` : "");
    this.renderCurves();
    this.table.show(store, study);
    this.drawSpace();
    this.sections.importances.hidden = study.counts.COMPLETE < 2;
    this.sections.failures.hidden = study.counts.FAIL === 0;
    this.sections.confirmation.hidden = !study.confirmation;
    if (study.confirmation) this.confirmation.show(study.confirmation);
    this.sections.test.hidden = !study.test;
    if (study.test) this.test.show(study.test);
    this.renderDefinition();
  }

  /** What takes longer to draw, after the rest is on the screen. */
  async renderSpace() {
    await new Promise((painted) => requestAnimationFrame(() => setTimeout(painted)));
    const { study, store } = this;
    const several = study.directions.length > 1;
    this.sections.front.hidden = !several || !study.front?.length;
    if (!this.sections.front.hidden) this.front.show(store, study);
    this.sections.rounds.hidden = study.rounds.length < 2;
    if (!this.sections.rounds.hidden) this.rounds.show(store, study);
    const complete = study.counts.COMPLETE > 0;
    this.sections.slices.hidden = this.sections.parallel.hidden = !complete;
    if (complete) { this.parallel.show(store, study); this.slices.show(store, study); }
  }

  renderFacts() {
    const { study } = this;
    const { best, trials, workers } = this.facts;
    if (study.directions.length > 1) {
      renew(best, title("Front"), h("p", { class: "big" }, count(study.front?.length ?? 0, "trial")), h("p", { class: "quiet-text" }, study.directions.join(" · ")));
    } else if (study.best) {
      const params = Object.entries(study.best.params).slice(0, 8).map(([name, value]) => h("span", {}, `${name} `, h("b", {}, param(value))));
      renew(best, title("Best value"), h("p", { class: "big" }, number(study.best.values[0]), " ", h("button", { type: "button", class: "link small", onclick: () => this.openTrial(study.best.number) }, `trial ${study.best.number}`)), h("p", { class: "params" }, params));
    } else {
      renew(best, title("Best value"), h("p", { class: "big" }, "–"), h("p", { class: "quiet-text" }, `No trial is complete yet; to ${study.directions[0]}.`));
    }
    renew(trials, title("Trials"), h("p", { class: "middle" }, progressWords(study.counts, study.limits.trials)), progress(study.counts, study.limits.trials), h("p", { class: "quiet-text" }, this.settings()));
    const holding = new Set([...this.store.rows.values()].filter((row) => row.state === "RUNNING").map((row) => row.worker_id));
    renew(workers, title("Workers"), h("p", { class: "big" }, String(holding.size)), h("p", { class: "quiet-text" }, holding.size === 1 ? "holds trials" : "hold trials"));
    this.renderTimes();
  }

  settings() {
    const { sampler, pruner, rounds } = this.study;
    const parts = [`sampler ${sampler.name}`];
    if (pruner.name !== "none") parts.push(`pruner ${pruner.name}`);
    if (rounds.length > 1) parts.push(`round ${rounds.at(-1).round + 1}${this.study.narrowing ? ` of ${this.study.narrowing.rounds}` : ""}`);
    return parts.join(" · ");
  }

  renderTimes() {
    const { study } = this;
    const left = this.secondsLeft();
    renew(this.facts.time, title(left === null ? "Age" : "Time left"), h("p", { class: "big", title: moment(study.created_at) }, left === null ? duration(Math.round((Date.now() - Date.parse(study.created_at)) / 1000)) : duration(Math.round(left))), h("p", { class: "quiet-text" }, `made ${ago(study.created_at)}`));
  }

  /** At the pace of the trials that finished last; null where nobody can say. */
  secondsLeft() {
    const { study, store } = this;
    if (study.state !== "ACTIVE") return null;
    const found = [];
    if (study.limits.seconds !== null) found.push(Date.parse(study.created_at) / 1000 + study.limits.seconds - Date.now() / 1000);
    const ends = [...store.rows.values()].map((row) => row.finished_at && Date.parse(row.finished_at)).filter(Boolean).sort((a, b) => b - a).slice(0, 20);
    if (study.limits.trials !== null && ends.length > 1 && study.counts.RUNNING) {
      const done = study.counts.COMPLETE + study.counts.PRUNED + study.counts.FAIL;
      found.push(((study.limits.trials - done) * (Date.now() - ends.at(-1))) / 1000 / ends.length);
    }
    return found.length ? Math.max(0, Math.min(...found)) : null;
  }

  renderCurves() {
    const running = [...this.store.rows.values()].filter((row) => row.state === "RUNNING").slice(-20);
    const fromEvents = running.map((row) => ({ number: row.number, state: "RUNNING", ...(this.store.curves.get(row.number) ?? this.running?.get(row.number) ?? { steps: [], values: [] }) }));
    const curves = [...this.best, ...fromEvents].filter((curve) => curve.steps.length);
    this.sections.curves.hidden = !curves.length;
    if (!curves.length) return;
    this.curves.show(curves, this.store.maximizes);
    renew(this.curvesTable, curves.map((curve) => h("tr", {}, h("th", { scope: "row" }, String(curve.number)), h("td", {}, curve.state), h("td", { class: "number" }, String(curve.reports ?? curve.steps.length)), h("td", { class: "number" }, String(curve.steps.at(-1))), h("td", { class: "number" }, number(curve.values.at(-1))))));
  }

  renderDefinition() {
    const { state, state_reason, counts, best, front, rounds, test, confirmation, created_at, ...made } = this.study;
    const text = JSON.stringify(made, null, 2);
    if (this.definitionText === text) return;
    this.definitionText = text;
    renew(this.definition, h("details", {}, h("summary", {}, "As JSON"), h("pre", { tabindex: "0" }, text)), h("p", { class: "quiet-text" }, `Made ${moment(this.study.created_at)}. `, h("a", { href: "/dashboard" }, "Optuna's dashboard"), " shows it too."));
  }

  // -- what is read -----------------------------------------------------------------------------------------

  /** study: as a call has answered; null: something else has changed. */
  changed(study) {
    if (study) this.study = study;
    else { this.readStudy(); this.readSums(); }
    this.draw();
  }

  readRest() {
    for (const read of [this.readCurves, this.readSums, this.readSlow]) read();
  }

  async fetchCurves() {
    const { items } = await get(`${this.path}/curves?best=${this.bestShown}&running=20`);
    const values = (curve) => ({ ...curve, values: curve.values.map(Number) });
    this.best = items.filter((curve) => curve.state !== "RUNNING").map(values);
    this.running = new Map(items.filter((curve) => curve.state === "RUNNING").map((curve) => [curve.number, values(curve)]));
    this.renderCurves();
  }

  async fetchSums() {
    const [workers, failures] = await Promise.all([get(`${this.path}/workers`), this.study.counts.FAIL ? get(`${this.path}/failures`) : { items: [] }]);
    this.workers.show(workers);
    this.failures.show(failures);
  }

  async fetchSlow() {
    if (this.study.counts.COMPLETE >= 2) this.importances.show((await getIfThere(`${this.path}/importances`))?.importances);
    const advice = await getIfThere(`${this.path}/advice`);
    this.sections.advice.hidden = !advice?.items.length;
    if (advice) this.advice.show(advice);
  }

  async quietly(read) {
    try {
      await read();
    } catch (error) {
      if (error instanceof Refused && error.status === 401) notice(error.message, "bad");
    }
  }

  // -- events -----------------------------------------------------------------------------------------------

  listen() {
    this.stream = follow(`${this.path}/events`, this.store.revision, (event) => this.told(event), (state, error) => this.connection(state, error));
  }

  told({ kind, data }) {
    if (kind === "trial") {
      const before = this.store.rows.get(data.number)?.state;
      this.store.take(data);
      if (before !== data.state) {
        this.readStudy();
        this.readSums();
        if (data.state === "COMPLETE") { this.readCurves(); this.readSlow(); }
      }
      for (const f of this.watched.get(data.number) ?? []) f();
    } else if (kind === "study") {
      this.study = data;
      this.readSums();
    } else {
      this.readStudy();
    }
    this.draw();
  }

  connection(state, error) {
    this.live.className = `live ${state}`;
    const words = { live: "live", cut: "connection lost, trying again", refused: error?.message ?? "refused" };
    say(this.live, words[state]);
    if (state === "cut") this.wasCut = true;
    if (state === "live" && this.wasCut) { this.wasCut = false; this.readStudy(); this.readRest(); }
  }

  /** Nothing is read for a page that nobody sees. */
  watchWhetherSeen() {
    let since = null;
    document.addEventListener("visibilitychange", async () => {
      if (document.hidden) {
        since = performance.now();
        this.store.revision = this.stream.stop();
        return;
      }
      if (performance.now() - since > LONG_HIDDEN) await this.quietly(async () => this.store.load(await get(`${this.path}/history?points=${POINTS}`)));
      this.readStudy();
      this.readRest();
      this.listen();
    });
    document.addEventListener("key", () => { if (this.live.classList.contains("refused")) this.listen(); });
  }

  // -- what is opened from here -----------------------------------------------------------------------------

  openTrial(n) {
    const onEvent = (number, f) => {
      const soon = throttled(f, 500);
      const known = this.watched.get(number) ?? new Set();
      this.watched.set(number, known.add(soon));
      return () => { known.delete(soon); if (!known.size) this.watched.delete(number); };
    };
    openTrial(this.study, n, onEvent, (params) => this.verbs.enqueue(params));
  }

  exportAs(format) {
    download(`${this.path}/trials:export?format=${format}`, `${this.study.name}.${format}`).catch((error) => notice(error.message, "bad"));
  }
}

function title(text) {
  return h("h2", { class: "card-title" }, text);
}

/** A part of the page under its title; tools: what stands beside the title. */
function section(name, ...parts) {
  const tools = Array.isArray(parts[0]) ? parts.shift() : [];
  return h("section", { class: "panel" }, h("div", { class: "panel-title" }, h("h2", {}, name), h("span", { class: "spacer" }), tools), parts);
}
