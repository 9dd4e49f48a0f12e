// Small parts that both views show: a state, how far a study has come.

import { h } from "./dom.js";
import { SIGNS, TRIAL_STATES } from "./format.js";

export function stateSign(state, reason = null) {
  return h("span", { class: `state ${state}`, title: reason }, h("span", { "aria-hidden": "true" }, SIGNS[state] ?? "?"), " ", state);
}

/** A bar of what has become of the trials, and the same in words. */
export function progress(counts, limit) {
  const total = TRIAL_STATES.reduce((sum, state) => sum + counts[state], 0);
  const whole = Math.max(limit ?? 0, total, 1);
  const bar = h("div", { class: "progress", "aria-hidden": "true" });
  for (const state of TRIAL_STATES) {
    if (!counts[state]) continue;
    const part = h("span", { class: `part ${state}` });
    part.style.width = `${(counts[state] / whole) * 100}%`;
    bar.append(part);
  }
  return bar;
}

export function progressWords(counts, limit) {
  const done = counts.COMPLETE + counts.PRUNED + counts.FAIL;
  const parts = [limit ? `${done} of ${limit}` : `${done} done`];
  if (counts.RUNNING) parts.push(`${counts.RUNNING} running`);
  if (counts.WAITING) parts.push(`${counts.WAITING} waiting`);
  if (counts.FAIL) parts.push(`${counts.FAIL} failed`);
  return parts.join(" · ");
}
