// What stands beside the charts: importances, workers, failures, advice, the confirmation, the sealed test.

import { h, renew } from "./dom.js";
import { ago, clock, count, moment, number, percent } from "./format.js";

export function importancesPanel() {
  const element = h("div", {}, h("p", { class: "quiet-text" }, "Being computed."));
  return {
    element,
    show(importances) {
      const shares = Object.entries(importances ?? {}).sort((a, b) => (b[1] ?? -1) - (a[1] ?? -1));
      if (!shares.length) {
        renew(element, h("p", { class: "quiet-text" }, "They need at least two complete trials."));
        return;
      }
      const row = ([name, share]) => {
        const bar = h("span", { class: "share", "aria-hidden": "true" });
        bar.style.width = `${(share ?? 0) * 100}%`;
        return h("tr", {}, h("th", { scope: "row" }, name), h("td", { class: "bar" }, bar), h("td", { class: "number" }, share === null ? "never varied" : percent(share)));
      };
      renew(element, h("table", { class: "importances" }, h("caption", { class: "hidden" }, "How much each parameter matters"), h("tbody", {}, shares.map(row))));
    },
  };
}

export function workersPanel(drain) {
  const element = h("div");
  const row = (worker) => {
    const { COMPLETE, PRUNED, FAIL } = worker.counts;
    const leases = worker.holds.slice(0, 8).map((held) => h("li", { title: moment(held.lease_expires_at) }, `Trial ${held.number}, attempt ${held.attempt}; lease until ${clock(held.lease_expires_at)}`));
    const more = worker.holds.length > 8 ? h("li", {}, `and ${worker.holds.length - 8} more`) : null;
    return h(
      "tr", {},
      h("th", { scope: "row" }, worker.worker_id),
      h("td", {}, leases.length ? h("ul", { class: "plain" }, leases, more) : h("span", { class: "quiet-text" }, "none")),
      h("td", { class: "number" }, String(COMPLETE + PRUNED)),
      h("td", { class: FAIL ? "number bad" : "number" }, String(FAIL)),
      h("td", { title: worker.last_seen_at ? moment(worker.last_seen_at) : null }, worker.last_seen_at ? ago(worker.last_seen_at) : "–"),
      h("td", {}, worker.draining ? "draining" : h("button", { type: "button", class: "quiet", "aria-label": `Drain ${worker.worker_id}`, onclick: () => drain(worker.worker_id) }, "Drain")),
    );
  };
  return {
    element,
    show({ items }) {
      if (!items.length) {
        renew(element, h("p", { class: "quiet-text" }, "No worker has asked for a trial yet."));
        return;
      }
      const titles = ["Worker", "Holds", "Done", "Failed", "Last heard of", "Drain"].map((title, index) => h("th", { scope: "col", class: index === 2 || index === 3 ? "number" : null }, title));
      renew(element, h("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": "Workers" }, h("table", {}, h("thead", {}, h("tr", {}, titles)), h("tbody", {}, items.slice(0, 200).map(row)))));
    },
  };
}

export function failuresPanel(open) {
  const element = h("div");
  const trial = (n) => h("button", { type: "button", class: "link", onclick: () => open(n) }, String(n));
  const row = (group) => h("tr", {}, h("td", { class: "number strong" }, String(group.count)), h("td", { class: "reason" }, group.reason ?? "no reason given"), h("td", {}, trial(group.first_trial), group.last_trial === group.first_trial ? "" : " … ", group.last_trial === group.first_trial ? "" : trial(group.last_trial)));
  return {
    element,
    show({ items }) {
      renew(element, items.length
        ? h("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": "Failures" }, h("table", {}, h("thead", {}, h("tr", {}, h("th", { scope: "col", class: "number" }, "How often"), h("th", { scope: "col" }, "Reason"), h("th", { scope: "col" }, "Trials"))), h("tbody", {}, items.map(row))))
        : h("p", { class: "quiet-text" }, "No trial has failed."));
    },
  };
}

export function advicePanel(take) {
  const element = h("div");
  const item = (advice) => h(
    "li", {},
    h("p", {}, h("span", { class: "tag" }, advice.code.replaceAll("_", " ")), " ", advice.detail),
    h("p", { class: "row" },
      h("details", {}, h("summary", {}, "Evidence"), h("pre", { tabindex: "0" }, JSON.stringify(advice.evidence, null, 2))),
      advice.suggestion ? h("button", { type: "button", class: "quiet", onclick: () => take(advice) }, advice.suggestion.confirm ? "Confirm them" : "Take as a study file") : null),
  );
  return {
    element,
    show({ items }) {
      renew(element, items.length ? h("ul", { class: "advice" }, items.map(item)) : h("p", { class: "quiet-text" }, "Nothing to say."));
    },
  };
}

export function confirmationPanel(open) {
  const element = h("div");
  return {
    element,
    show(confirmation) {
      const { state, top, seeds, ranking, tied } = confirmation;
      const rank = (entry, index) => h(
        "tr", {},
        h("td", { class: "number" }, String(index + 1)),
        h("th", { scope: "row" }, h("button", { type: "button", class: "link", onclick: () => open(entry.number) }, `Trial ${entry.number}`)),
        h("td", { class: "number strong" }, number(entry.mean)),
        h("td", { class: "number" }, `${number(entry.low)} to ${number(entry.high)}`),
        h("td", { class: "number" }, String(entry.values.length)),
        h("td", { class: entry.failed ? "number bad" : "number" }, String(entry.failed)),
        h("td", { class: "remark" }, index === 0 ? "first" : tied.includes(entry.number) ? "cannot be told from the first" : ""),
      );
      const titles = ["", "Trial", "Mean", "95 % interval", "Seeds", "Failed", ""];
      renew(
        element,
        h("p", {}, `${state === "RUNNING" ? "Under way: the" : "The"} best ${top} again with ${seeds} seeds each.`),
        ranking.length
          ? h("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": "Confirmation" }, h("table", {}, h("thead", {}, h("tr", {}, titles.map((title) => h(title ? "th" : "td", title ? { scope: "col", class: ["Mean", "95 % interval", "Seeds", "Failed"].includes(title) ? "number" : null } : {}, title)))), h("tbody", {}, ranking.map(rank))))
          : h("p", { class: "quiet-text" }, "Nothing is told yet."),
      );
    },
  };
}

export function testPanel() {
  const element = h("div");
  return {
    element,
    show(test) {
      if (test.state !== "COMPLETE") {
        const words = { WAITING: "It waits for a worker.", RUNNING: `Attempt ${test.attempt} is under way at ${test.worker_id}.`, FAIL: `It failed: ${test.reason ?? "no reason given"}` };
        renew(element, h("p", {}, words[test.state] ?? test.state));
        return;
      }
      renew(
        element,
        h("p", { class: "big" }, percent(test.test_accuracy), h("span", { class: "quiet-text" }, " on the test set")),
        h("p", {}, `Validation ${percent(test.validation_accuracy)}, gap ${percent(test.gap)}; ${count(test.ensemble, "network")}${test.number !== undefined ? `, trial ${test.number}` : ""}; ${moment(test.at)}.`),
        h("details", {}, h("summary", {}, "Configuration"), h("pre", { tabindex: "0" }, JSON.stringify(test.config, null, 2)), h("p", { class: "quiet-text" }, "Data ", h("code", {}, test.dataset_sha256 ?? "–"))),
      );
    },
  };
}
