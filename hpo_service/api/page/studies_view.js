// The list of studies: newest activity first, looked at again every few seconds while somebody looks.

import { Refused, all, send } from "./calls.js";
import { ask, field } from "./dialogs.js";
import { arrange, h, notice, put, say } from "./dom.js";
import { ago, count, duration, moment, number } from "./format.js";
import { progress, progressWords, stateSign } from "./signs.js";
import { sparkline } from "./sparkline.js";

const AGAIN = 2000; // milliseconds, and longer where the answer takes long
const NUMBERS = new Set(["Best value", "Workers", "Time left"]);
const STATES = ["ACTIVE", "PAUSED", "STOPPING", "STOPPED", "COMPLETED", "CANCELLED"];
const EXAMPLE = `name = "my-study"
directions = ["maximize"]

[search_space]
learning_rate = { type = "float", low = 1e-5, high = 1e-1, log = true }
layers = { type = "int", low = 1, high = 6 }

[limits]
trials = 50
`;

export function showStudies(main, onLocked) {
  const rows = new Map();
  let studies = [];
  const name = h("input", { type: "search", placeholder: "Name", "aria-label": "Filter by name", oninput: render });
  const state = h("select", { "aria-label": "Filter by state", onchange: render }, h("option", { value: "" }, "Every state"), STATES.map((word) => h("option", {}, word)));
  const total = h("p", { class: "quiet-text", role: "status" });
  const body = h("tbody");
  const columns = ["Study", "State", "Progress", "Best value", "So far", "Workers", "Time left", "Last activity", "Created"];
  const table = h("table", { class: "studies" }, h("caption", { class: "hidden" }, "Studies, newest activity first"), h("thead", {}, h("tr", {}, columns.map((title) => h("th", { scope: "col", class: NUMBERS.has(title) ? "number" : null }, title)))), body);
  const nothing = h("div", { class: "empty", hidden: true });
  put(
    main,
    h("div", { class: "title-row" }, h("h1", {}, "Studies"), total, h("span", { class: "spacer" }), name, state, h("button", { type: "button", class: "primary", onclick: create }, "New study")),
    h("div", { class: "scroll", role: "region", "aria-label": "Studies", tabindex: "0" }, table),
    nothing,
  );

  async function look() {
    const began = performance.now();
    try {
      studies = await all("/v1/studies:overview");
      studies.sort((a, b) => Date.parse(b.active_at) - Date.parse(a.active_at));
      render();
      main.classList.remove("cut");
    } catch (error) {
      if (error instanceof Refused && error.status === 401) {
        onLocked(error);
        return;
      }
      main.classList.add("cut");
      say(total, `${error.message}; trying again`);
    }
    const took = performance.now() - began;
    setTimeout(whenSeen, Math.max(AGAIN, took * 5));
  }

  function whenSeen() {
    if (!document.hidden) look();
    else document.addEventListener("visibilitychange", whenSeen, { once: true });
  }

  function render() {
    const wanted = name.value.trim().toLowerCase();
    const found = studies.filter((study) => study.name.includes(wanted) && (!state.value || study.state === state.value));
    arrange(body, found.map(row));
    for (const known of [...rows.keys()]) if (!studies.some((study) => study.name === known)) rows.delete(known);
    say(total, found.length === studies.length ? count(studies.length, "study", "studies") : `${found.length} of ${count(studies.length, "study", "studies")}`);
    nothing.hidden = found.length > 0;
    table.hidden = found.length === 0;
    if (!found.length) put(nothing, studies.length ? h("p", {}, "No study matches.") : emptyWords());
  }

  function emptyWords() {
    return [h("p", {}, "There is no study yet."), h("p", {}, "Make one here with ", h("b", {}, "New study"), ", or with ", h("code", {}, "hpo study create FILE"), ".")];
  }

  function row(study) {
    const text = JSON.stringify(study);
    const known = rows.get(study.name);
    if (known?.text === text) {
      say(known.active, ago(study.active_at));
      return known.element;
    }
    const done = Object.values(study.counts).reduce((sum, n) => sum + n, 0);
    const active = h("td", { title: moment(study.active_at), "data-label": "Last activity" }, ago(study.active_at));
    const cells = [
      h("th", { scope: "row" }, h("a", { href: `/studies/${study.name}` }, study.name)),
      h("td", { "data-label": "State" }, stateSign(study.state, study.state_reason)),
      h("td", { class: "progress-cell", "data-label": "Progress" }, progress(study.counts, study.limits.trials), h("span", { class: "quiet-text" }, progressWords(study.counts, study.limits.trials))),
      h("td", { class: "number", "data-label": "Best value" }, study.directions.length > 1 ? count(study.directions.length, "direction") : study.best ? number(study.best.value) : "–"),
      h("td", { "data-label": "So far" }, sparkline(study.best_so_far, done)),
      h("td", { class: "number", "data-label": "Workers" }, String(study.workers)),
      h("td", { class: "number", "data-label": "Time left" }, duration(study.seconds_left)),
      active,
      h("td", { title: moment(study.created_at), "data-label": "Created" }, ago(study.created_at)),
    ];
    const element = h("tr", {}, cells);
    rows.set(study.name, { text, element, active });
    return element;
  }

  look();
}

function create() {
  const text = h("textarea", { rows: "16", spellcheck: "false", class: "code", placeholder: EXAMPLE, required: true, autofocus: true });
  const file = h("input", { type: "file", accept: ".toml,.json", onchange: async () => { text.value = await file.files[0].text(); } });
  ask({
    title: "New study",
    text: ["Paste a study file, TOML or JSON, or choose one."],
    body: [field("Study file", text), field("From a file", file)],
    action: "Create",
    wide: true,
    run: async () => {
      const kind = text.value.trimStart().startsWith("{") ? "application/json" : "application/toml";
      const study = await send("POST", "/v1/studies", text.value, kind);
      notice(`${study.name} was created.`);
      location.assign(`/studies/${study.name}`);
    },
  });
}
