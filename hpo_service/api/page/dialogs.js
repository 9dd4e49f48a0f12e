// Questions to the person: forms in a dialog, and the key where a call needs one.

import { Refused, keep, key, keysAreNeeded, save } from "./calls.js";
import { h, notice, put } from "./dom.js";

let fields = 0;

/** A labelled field of a form; the hint is read out with it. */
export function field(label, input, hint = "") {
  const id = `field-${++fields}`;
  input.id = id;
  const described = hint ? h("p", { class: "hint", id: `${id}-hint` }, hint) : null;
  if (hint) input.setAttribute("aria-describedby", `${id}-hint`);
  return h("div", { class: "field" }, h("label", { for: id }, label), input, described);
}

function keyField() {
  const input = h("input", { type: "password", autocomplete: "off", spellcheck: "false", required: true });
  return [field("Key", input, "An admin key (hpo_…). It stays in this tab until you close it."), input];
}

/** What a refusal says, as nodes. */
export function refusalText(error) {
  if (!(error instanceof Refused)) return [h("p", {}, String(error))];
  if (!error.faults.length) return [h("p", {}, error.message)];
  const fault = ({ pointer, detail }) => h("li", {}, h("code", {}, pointer || "/"), " ", detail);
  return [h("p", {}, "The service refused this:"), h("ul", {}, error.faults.map(fault))];
}

/**
 * Asks, and does it: run() is called when the form is submitted, and the dialog closes when it succeeds.
 * A refusal is shown in the dialog; what it takes for a key is asked for again where the key was refused.
 */
export function ask({ title, text = [], body = [], action, danger = false, needsKey = true, wide = false, run, asked = null }) {
  const refusal = h("div", { role: "alert", class: "refusal" });
  const keyPlace = h("div");
  const submit = h("button", { type: "submit", class: danger ? "danger" : "primary" }, action);
  const back = h("button", { type: "button", onclick: () => dialog.close() }, "Back");
  const form = h("form", { onsubmit: submitted }, body, keyPlace, refusal, h("div", { class: "actions" }, back, submit));
  const heading = h("h2", { id: `dialog-${++fields}` }, title);
  const paragraphs = [text].flat().map((part) => (typeof part === "string" ? h("p", {}, part) : part));
  const dialog = h("dialog", { "aria-labelledby": heading.id, class: wide ? "wide" : null }, heading, paragraphs, form);
  let keyInput = null;

  function wantKey() {
    const [whole, input] = keyField();
    keyInput = input;
    put(keyPlace, whole);
  }

  async function submitted(event) {
    event.preventDefault();
    if (keyInput) keep(keyInput.value.trim());
    submit.disabled = true;
    put(refusal);
    try {
      const said = await run();
      dialog.close();
      if (typeof said === "string") notice(said);
    } catch (error) {
      put(refusal, refusalText(error));
      if (needsKey && (error.status === 401 || error.status === 403)) {
        keep(null);
        wantKey();
        keyInput.focus();
      }
    } finally {
      submit.disabled = false;
    }
  }

  if (needsKey && keysAreNeeded && !key()) wantKey();
  if (asked) {
    put(refusal, refusalText(asked));
    if (needsKey && !keyInput) wantKey();
  }
  dialog.addEventListener("close", () => dialog.remove());
  document.body.append(dialog);
  dialog.showModal();
  (form.querySelector("[autofocus], input, textarea, select") ?? submit).focus();
  return dialog;
}

/** Shows something; there is nothing to decide. */
export function show({ title, body, wide = true }) {
  const heading = h("h2", { id: `dialog-${++fields}` }, title);
  const close = h("button", { type: "button", class: "primary", onclick: () => dialog.close() }, "Close");
  const dialog = h("dialog", { "aria-labelledby": heading.id, class: wide ? "wide" : null }, heading, body, h("div", { class: "actions" }, close));
  dialog.addEventListener("close", () => dialog.remove());
  document.body.append(dialog);
  dialog.showModal();
  return dialog;
}

/** Does at once what can be undone; asks only for a key where there is none, and where the one shown was refused. */
export async function perform({ title, action, run }) {
  if (keysAreNeeded && !key()) {
    ask({ title, action, run });
    return;
  }
  try {
    const said = await run();
    if (typeof said === "string") notice(said);
  } catch (error) {
    if (error.status === 401 || error.status === 403) {
      keep(null);
      ask({ title, action, run, asked: error });
    } else {
      notice(error.message, "bad");
    }
  }
}

/** Text to take along: shown, copied, saved. */
export function takeHome({ title, text, file, versions }) {
  const area = h("textarea", { readonly: true, rows: "18", spellcheck: "false", class: "code" });
  const said = h("span", { role: "status", class: "quiet-text" });
  area.value = text;
  const copy = async () => {
    try {
      await navigator.clipboard.writeText(area.value);
    } catch {
      area.select();
      document.execCommand("copy");
    }
    said.textContent = "Copied.";
  };
  const saveFile = () => save(new Blob([area.value], { type: "application/toml" }), file());
  const choices = Object.entries(versions ?? {}).map(([label, make], index) => {
    const input = h("input", { type: "radio", name: "version", checked: index === 0, onchange: () => { area.value = make(); } });
    return h("label", { class: "choice" }, input, " ", label);
  });
  show({
    title,
    body: [
      choices.length ? h("fieldset", {}, h("legend", {}, "What to take"), choices) : null,
      field("Study file", area),
      h("p", { class: "row" }, h("button", { type: "button", onclick: copy }, "Copy"), h("button", { type: "button", onclick: saveFile }, "Download"), said),
    ],
  });
}
