// The table of trials: sorted by any column, filtered by state, by params, and by what is brushed elsewhere.

import { arrange, h, put, renew, say } from "./dom.js";
import { TRIAL_STATES, clock, duration, measured, moment, number, param } from "./format.js";
import { stateSign } from "./signs.js";

const AT_ONCE = 100; // rows; more on demand

const HINT = "Words, or conditions such as learning_rate<1e-3 optimizer=adam value>0.9";

export class TrialsTable {
  constructor(study, open, exportAs) {
    this.study = study;
    this.open = open;
    this.shown = AT_ONCE;
    this.order = { key: null, down: true }; // null: what runs, then the newest
    this.brushed = null;
    this.rows = new Map();
    this.metrics = [];
    this.state = h("select", { "aria-label": "Filter by state", onchange: () => this.anew() }, h("option", { value: "" }, "Every state"), TRIAL_STATES.map((word) => h("option", {}, word)));
    this.words = h("input", { type: "search", "aria-label": "Filter trials", placeholder: "words, or value>0.9", title: HINT, oninput: () => this.anew() });
    this.said = h("span", { class: "quiet-text", role: "status" });
    this.head = h("tr");
    this.body = h("tbody");
    this.more = h("button", { type: "button", hidden: true, onclick: () => { this.shown += AT_ONCE * 3; this.render(); } }, "Show more");
    const files = ["csv", "jsonl"].map((format) => h("button", { type: "button", class: "quiet", onclick: () => exportAs(format) }, format.toUpperCase()));
    this.element = h(
      "div", {},
      h("div", { class: "row" }, this.state, this.words, this.said, h("span", { class: "spacer" }), h("span", { class: "quiet-text" }, "All trials as"), files),
      h("div", { class: "scroll tall", role: "region", "aria-label": "Trials", tabindex: "0" }, h("table", { class: "trials" }, h("caption", { class: "hidden" }, "Trials"), h("thead", {}, this.head), this.body)),
      this.more,
    );
  }

  anew() {
    this.shown = AT_ONCE;
    this.render();
  }

  show(store, study) {
    this.store = store;
    this.study = study;
    this.render();
  }

  columns() {
    const { study } = this;
    const values = study.directions.map((_, index) => ({ key: `value ${index}`, title: study.directions.length > 1 ? `Value ${index}` : "Value", of: (row) => measured(row.values?.[index]), text: number, numeric: true }));
    const params = Object.keys(study.search_space).map((name) => ({ key: `param ${name}`, title: name, of: (row) => row.params[name] ?? null, text: (value) => (value === null ? "" : param(value)), numeric: study.search_space[name].type !== "categorical" }));
    const metrics = this.metrics.map((name) => ({ key: `metric ${name}`, title: name, group: "metric", of: (row) => row.metrics[name] ?? null, text: (value) => (value === null ? "" : param(value)), numeric: true }));
    const narrowed = study.rounds.length > 1 ? [{ key: "round", title: "Round", of: (row) => row.round, text: (value) => (value === null ? "" : String(value)), numeric: true }] : [];
    const lastOf = (row) => (row.state === "RUNNING" ? row.last : null);
    this.reports ||= this.someGive(lastOf);
    const isOver = ["STOPPED", "COMPLETED", "CANCELLED"].includes(study.state);
    const reported = this.reports && !isOver ? [{ key: "last", title: "Last report", of: (row) => measured(lastOf(row)?.value), text: (value, row) => (lastOf(row) ? `${number(row.last.value)} (step ${row.last.step})` : ""), numeric: true }] : [];
    const replicated = this.someGive((row) => row.replicate_of) ? [{ key: "replicate_of", title: "Replicate of", of: (row) => row.replicate_of ?? null, text: (value) => (value === null ? "" : String(value)), numeric: true }] : [];
    return [
      { key: "number", title: "Trial", of: (row) => row.number },
      { key: "state", title: "State", of: (row) => row.state },
      ...values,
      ...reported,
      ...params,
      ...metrics,
      ...narrowed,
      { key: "sampler", title: "Drawn by", of: (row) => row.sampler, text: String },
      ...replicated,
      { key: "attempt", title: "Attempt", of: (row) => row.attempt, text: String, numeric: true },
      { key: "worker_id", title: "Worker", of: (row) => row.worker_id, text: (value) => value ?? "" },
      { key: "started_at", title: "Started", of: (row) => row.started_at, text: clock, full: moment },
      { key: "took", title: "Took", of: (row) => (row.started_at && row.finished_at ? (Date.parse(row.finished_at) - Date.parse(row.started_at)) / 1000 : null), text: (value) => (value === null ? "" : duration(value)), numeric: true },
      { key: "reason", title: "Reason", of: (row) => row.reason, text: (value) => value ?? "" },
    ];
  }

  someGive(what) {
    for (const row of this.store.rows.values()) if ((what(row) ?? null) !== null) return true;
    return false;
  }

  render() {
    if (!this.store) return;
    this.findMetrics();
    const columns = this.columns();
    this.fillHead(columns);
    const found = this.sorted(this.filtered(), columns);
    arrange(this.body, found.slice(0, this.shown).map((row) => this.rowElement(row, columns)));
    if (this.rows.size > 3000) for (const [known, kept] of this.rows) if (!kept.element.isConnected) this.rows.delete(known);
    this.more.hidden = found.length <= this.shown;
    const all = this.store.rows.size;
    const thinned = this.store.isThinned ? `, a choice of ${this.store.total.toLocaleString("en")}` : "";
    say(this.said, found.length === all ? `${all.toLocaleString("en")} trials${thinned}` : `${found.length.toLocaleString("en")} of ${all.toLocaleString("en")} trials${thinned}`);
  }

  findMetrics() {
    const names = new Set(this.metrics);
    for (const row of this.store.rows.values()) {
      for (const name in row.metrics) if (names.size < 20) names.add(name);
    }
    this.metrics = [...names];
  }

  fillHead(columns) {
    const { key, down } = this.order;
    const text = columns.map((column) => column.key).join("\n") + key + down;
    if (text === this.headText) return;
    this.headText = text;
    this.rows.clear();
    renew(this.head, columns.map((column) => {
      const sorted = key === column.key ? (down ? "descending" : "ascending") : null;
      const sign = sorted ? (down ? " ↓" : " ↑") : "";
      return h("th", { scope: "col", class: column.numeric ? "number" : null, "aria-sort": sorted }, h("button", { type: "button", class: "sort", onclick: () => this.sortBy(column.key) }, column.title, sign));
    }));
    put(this.body);
  }

  sortBy(key) {
    this.order = { key, down: this.order.key === key ? !this.order.down : true };
    this.anew();
  }

  filtered() {
    const tests = conditions(this.words.value);
    const state = this.state.value;
    const rows = [...this.store.rows.values()];
    return rows.filter((row) => (!state || row.state === state) && (!this.brushed || this.brushed.has(row.number)) && tests.every((test) => test(row)));
  }

  sorted(rows, columns) {
    const column = columns.find((each) => each.key === this.order.key);
    if (!column) {
      const first = (row) => (row.state === "RUNNING" ? 1 : 0);
      return rows.sort((a, b) => first(b) - first(a) || b.number - a.number);
    }
    const sign = this.order.down ? -1 : 1;
    const missing = (value) => value === null || value === undefined || Number.isNaN(value);
    return rows.sort((a, b) => {
      const [left, right] = [column.of(a), column.of(b)];
      if (missing(left) || missing(right)) return missing(left) - missing(right) || b.number - a.number;
      return sign * (left < right ? -1 : left > right ? 1 : 0) || b.number - a.number;
    });
  }

  rowElement(row, columns) {
    const known = this.rows.get(row.number);
    if (known?.row === row) return known.element;
    const element = known?.element ?? h("tr", {}, columns.map((column) => h(column.key === "number" ? "th" : "td", { class: column.numeric ? "number" : null, scope: column.key === "number" ? "row" : null })));
    columns.forEach((column, index) => {
      const cell = element.children[index];
      if (column.key === "number") {
        if (!cell.firstChild) cell.append(h("button", { type: "button", class: "link", onclick: () => this.open(row.number) }, String(row.number)));
      } else if (column.key === "state") {
        if (cell.textContent.trim() !== row.state) renew(cell, stateSign(row.state, row.reason));
      } else {
        const value = column.of(row);
        const text = column.text(value ?? null, row);
        say(cell, text);
        if (text.length > 40 || column.full) cell.title = column.full ? column.full(value) : text;
      }
    });
    element.className = row.state === "RUNNING" ? "running" : "";
    this.rows.set(row.number, { row, element });
    return element;
  }
}

/** From "learning_rate<1e-3 adam" to tests of a row. */
export function conditions(text) {
  return text.split(/\s+/).filter(Boolean).map((part) => {
    const found = /^([^<>=]+)(<=|>=|<|>|=)(.+)$/.exec(part);
    if (!found) {
      const word = part.toLowerCase();
      return (row) => [row.number, row.worker_id, row.reason, ...Object.values(row.params)].some((value) => String(value ?? "").toLowerCase().includes(word));
    }
    const [, name, sign, wanted] = found;
    const limit = Number(wanted);
    return (row) => {
      const value = name === "value" ? row.value : name in row.params ? row.params[name] : row.metrics[name] ?? row[name] ?? null;
      if (value === null || value === undefined) return false;
      if (sign === "=") return String(value) === wanted || (!Number.isNaN(limit) && typeof value === "number" && value === limit);
      if (typeof value !== "number" || Number.isNaN(limit)) return false;
      return { "<": value < limit, ">": value > limit, "<=": value <= limit, ">=": value >= limit }[sign];
    };
  });
}
