// What can be done with a study: each verb a button of its name, which asks before what cannot be undone.

import { post, send } from "./calls.js";
import { ask, field, perform, takeHome } from "./dialogs.js";
import { h } from "./dom.js";
import { param } from "./format.js";
import { bodyOf, fitsToml, fixedTo, suggested, toml } from "./study_files.js";

// What versions of the service have added to the body of a study.
const LATER_FIELDS = ["requires", "define_by_run"];

/** current(): the study as it now reads; changed(study): it was changed by a call. */
export function verbs(current, changed) {
  const path = (verb) => `/v1/studies/${current().name}:${verb}`;

  async function act(verb, body) {
    const study = await post(path(verb), body);
    if (study.name) changed(study);
    return study;
  }

  const plain = (title, verb, said) => () => perform({ title: `${title} ${current().name}`, action: title, run: async () => { await act(verb); return said; } });
  const final = (title, verb, text, said) => () => ask({ title: `${title} ${current().name}?`, text, action: title, danger: true, run: async () => { await act(verb); return said; } });

  const actions = {
    Pause: plain("Pause", "pause", "Paused: running trials go on, no new ones are given out."),
    Resume: plain("Resume", "resume", "Resumed."),
    Narrow: narrow,
    Confirm: () => confirm({ top: 5, seeds: 5 }),
    Test: test,
    Enqueue: () => enqueue({}),
    Edit: edit,
    "Study file": home,
    Stop: final("Stop", "stop", ["Running trials finish, and nothing more is given out; what waits fails. This cannot be undone."], "Told to stop."),
    Cancel: final("Cancel", "cancel", ["Running trials are told to stop now, and what waits fails. This cannot be undone."], "Cancelled."),
  };
  const dangers = new Set(["Stop", "Cancel"]);
  const buttons = Object.fromEntries(Object.entries(actions).map(([name, act]) => [name, h("button", { type: "button", class: dangers.has(name) ? "danger-quiet" : null, onclick: act }, name)]));
  const element = h("div", { class: "verbs", role: "group", "aria-label": "What to do with this study" }, Object.values(buttons));

  /** Those that have a use in this state stand out; the others stay, and the service says why not. */
  function show() {
    const study = current();
    const done = study.state === "COMPLETED" || study.state === "STOPPED";
    const useful = {
      Pause: study.state === "ACTIVE",
      Resume: study.state === "PAUSED",
      Narrow: !study.test && study.directions.length === 1 && !["STOPPED", "CANCELLED"].includes(study.state),
      Confirm: done && study.directions.length === 1 && !study.test && study.counts.COMPLETE > 0,
      Test: done && study.objective?.kind === "neural_network" && study.counts.COMPLETE > 0,
      Stop: ["ACTIVE", "PAUSED"].includes(study.state),
      Cancel: !study.test && study.state !== "CANCELLED",
    };
    for (const [name, isUseful] of Object.entries(useful)) buttons[name].classList.toggle("aside", !isUseful);
  }

  function narrow() {
    const keep = h("input", { type: "number", min: "0.001", max: "1", step: "any", value: String(current().narrowing?.keep ?? 0.2), required: true });
    ask({
      title: "Narrow the ranges?",
      text: ["A new round begins now; its ranges are what the best trials so far span. The rounds before stay as they are, and this one cannot be taken back."],
      body: [field("Share of the best trials to keep", keep)],
      action: "Narrow",
      run: async () => { const round = await post(path("narrow"), { keep: Number(keep.value) }); changed(null); return `Round ${round.round} begins.`; },
    });
  }

  /** wanted: what the form begins with. */
  function confirm(wanted) {
    const top = h("input", { type: "number", min: "1", max: "50", value: String(wanted.top), required: true });
    const seeds = h("input", { type: "number", min: "2", max: "50", value: String(wanted.seeds), required: true });
    ask({
      title: "Confirm the best?",
      text: ["The best trials are trained again with fresh seeds, the same for each, so that luck can be told from merit. It is done once."],
      body: [field("How many of the best", top), field("Seeds for each", seeds)],
      action: "Confirm",
      run: async () => { await act("confirm", { top: Number(top.value), seeds: Number(seeds.value) }); return "The best are given out again."; },
    });
  }

  function test() {
    const ensemble = h("input", { type: "number", min: "1", max: "100", value: "1", required: true });
    ask({
      title: "Open the sealed test set?",
      text: ["The best configuration is trained again on training and validation data together, and judged once on the test set. The study is sealed from then on: nothing can be added to it. This cannot be undone."],
      body: [field("Networks whose probabilities are averaged", ensemble)],
      action: "Test",
      danger: true,
      run: async () => { await act("test", { ensemble: Number(ensemble.value) }); return "Sealed; a worker gets the test."; },
    });
  }

  /** params: what the form begins with. */
  function enqueue(params) {
    const study = current();
    const inputs = Object.entries(study.search_space).map(([name, parameter]) => [name, parameter, inputFor(name, parameter, params[name])]);
    const fields = inputs.map(([name, parameter, input]) => field(name, input, described(parameter)));
    ask({
      title: "Enqueue a trial",
      text: ["It is given out before sampled ones. What stays empty is sampled."],
      body: fields.length ? fields : [h("p", {}, "The search space is empty as yet.")],
      action: "Enqueue",
      wide: fields.length > 6,
      run: async () => {
        const given = Object.fromEntries(inputs.filter(([, , input]) => input.value !== "").map(([name, parameter, input]) => [name, valueOf(parameter, input)]));
        const { trials } = await post(`/v1/studies/${study.name}/trials:enqueue`, { trials: [{ params: given }] });
        return `Trial ${trials[0].number} waits.`;
      },
    });
  }

  function edit() {
    const study = current();
    const limits = Object.entries(study.limits).map(([name, value]) => [name, h("input", { inputmode: "decimal", value: value ?? "", placeholder: "none" })]);
    const metadata = h("textarea", { rows: "8", spellcheck: "false", class: "code" });
    metadata.value = JSON.stringify(study.metadata, null, 2);
    ask({
      title: `Edit ${study.name}`,
      text: ["An empty limit is none. A raised limit makes a COMPLETED study ACTIVE again."],
      body: [h("fieldset", {}, h("legend", {}, "Limits"), h("div", { class: "grid-fields" }, limits.map(([name, input]) => field(name, input)))), field("Metadata, as JSON", metadata)],
      action: "Save",
      wide: true,
      run: async () => {
        const body = {};
        const moved = limits.filter(([name, input]) => input.value.trim() !== String(study.limits[name] ?? "")).map(([name, input]) => [name, limitOf(name, input.value.trim())]);
        if (moved.length) body.limits = Object.fromEntries(moved);
        const told = parsed(metadata.value, "metadata");
        if (JSON.stringify(told) !== JSON.stringify(study.metadata)) body.metadata = told;
        if (Object.keys(body).length) changed(await send("PATCH", `/v1/studies/${study.name}`, body));
        return "Saved.";
      },
    });
  }

  function home() {
    const study = current();
    const best = study.best ?? study.confirmation?.ranking?.[0];
    const params = study.best?.params;
    const versions = {};
    if (params) versions[`The best configuration (trial ${best.number})`] = () => fileText(fixedTo(study, params, LATER_FIELDS));
    for (const trial of (study.front ?? []).slice(0, 10)) versions[`Trial ${trial.number} of the front`] = () => fileText(fixedTo(study, trial.params, LATER_FIELDS));
    versions["The whole study as it was made"] = () => fileText(bodyOf(study, LATER_FIELDS));
    const last = study.rounds.at(-1);
    if (study.rounds.length > 1) versions["The study with the ranges of its last round"] = () => fileText(bodyOf({ ...study, narrowing: null, search_space: last.search_space }, LATER_FIELDS));
    const text = Object.values(versions)[0]();
    takeHome({ title: "Study file", text, versions, file: () => `${study.name}.${text.startsWith("{") ? "json" : "toml"}` });
  }

  function takeAdvice(advice) {
    if (advice.suggestion.confirm) {
      confirm(advice.suggestion.confirm);
      return;
    }
    const text = fileText(suggested(current(), advice.suggestion, LATER_FIELDS));
    takeHome({ title: "Study file that follows from it", text, file: () => `${current().name}-next.${text.startsWith("{") ? "json" : "toml"}` });
  }

  function drain(worker) {
    ask({
      title: `Drain ${worker}?`,
      text: ["It gets no more trials, of any study, and goes home when it has finished what it holds. This cannot be undone."],
      action: "Drain",
      danger: true,
      run: async () => { await post(`/v1/workers/${encodeURIComponent(worker)}:drain`); changed(null); return `${worker} gets no more trials.`; },
    });
  }

  return { element, show, enqueue, takeAdvice, drain };
}

/** TOML, or JSON where a null stands among the choices, which TOML does not know. */
function fileText(body) {
  return fitsToml(body.search_space) && fitsToml(body.objective ?? {}) && fitsToml(body.metadata ?? {}) ? toml(body) : `${JSON.stringify(body, null, 2)}\n`;
}

function inputFor(name, parameter, value) {
  if (parameter.type === "categorical") {
    const options = parameter.choices.map((choice) => h("option", { value: JSON.stringify(choice), selected: JSON.stringify(choice) === JSON.stringify(value) }, param(choice)));
    return h("select", {}, h("option", { value: "" }, "sampled"), options);
  }
  return h("input", { inputmode: "decimal", autocomplete: "off", value: value ?? "", placeholder: "sampled" });
}

function described(parameter) {
  const parts = [parameter.type];
  if (parameter.type !== "categorical") parts.push(`from ${param(parameter.low)} to ${param(parameter.high)}`);
  if (parameter.log) parts.push("logarithmic");
  if (parameter.step) parts.push(`in steps of ${param(parameter.step)}`);
  if (parameter.when) parts.push(`when ${Object.entries(parameter.when).map(([name, choices]) => `${name} is ${choices.map(param).join(" or ")}`).join(" and ")}`);
  return parts.join(", ");
}

function valueOf(parameter, input) {
  if (parameter.type === "categorical") return JSON.parse(input.value);
  const value = Number(input.value.trim().replace(",", "."));
  return Number.isNaN(value) ? input.value : value; // the service says what is wrong with it
}

function limitOf(name, text) {
  if (text === "" || text === "none") return null;
  const value = Number(text);
  if (Number.isNaN(value)) throw new Error(`${name}: ${text} is no number`);
  return value;
}

function parsed(text, what) {
  try {
    return JSON.parse(text.trim() || "{}");
  } catch (error) {
    throw new Error(`${what} is not JSON: ${error.message}`);
  }
}
