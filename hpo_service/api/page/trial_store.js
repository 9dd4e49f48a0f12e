// The trials of a study as far as this tab keeps them: what the history gave, and what events have brought since.

import { measured } from "./format.js";

export const POINTS = 3000; // that are asked for
const MOST = 5000; // that are kept; then some are left out again
const MOST_STEPS = 400; // of one curve

export class TrialStore {
  constructor(study) {
    this.maximizes = study.directions[0] === "maximize";
    this.directions = study.directions.length;
    this.rows = new Map(); // by number
    this.curves = new Map(); // of trials that have reported since, by number: {steps, values}
    this.total = 0;
  }

  load(history) {
    this.rows.clear();
    this.curves.clear();
    this.total = history.trials;
    for (const item of history.items) this.rows.set(item.number, rowOf(item));
    this.revision = history.revision;
  }

  /** A trial as an event tells it. */
  take(trial) {
    const last = trial.reports.at(-1);
    const item = { ...trial, last_report: last ? { step: last.step, value: last.value } : null, metrics: figures(trial.metrics ?? last?.metrics) };
    this.rows.set(trial.number, rowOf(item));
    this.total = Math.max(this.total, trial.number + 1);
    if (trial.reports.length) this.curves.set(trial.number, curveOf(trial.reports));
    if (this.rows.size > MOST) this.thin();
    this.forgetCurves();
  }

  /** Curves of what runs, and of the last that ran. */
  forgetCurves() {
    for (const number of this.curves.keys()) {
      if (this.curves.size <= 60) return;
      if (this.rows.get(number)?.state !== "RUNNING") this.curves.delete(number);
    }
    for (const number of this.curves.keys()) {
      if (this.curves.size <= 200) return;
      this.curves.delete(number);
    }
  }

  /** Every other finished trial goes, but no step of the best. */
  thin() {
    const steps = new Set(this.steps());
    let odd = false;
    for (const [number, row] of this.rows) {
      if (this.rows.size <= POINTS) return;
      if (row.state === "RUNNING" || row.state === "WAITING" || steps.has(number)) continue;
      odd = !odd;
      if (odd) this.rows.delete(number);
    }
  }

  get isThinned() {
    return this.rows.size < this.total;
  }

  sorted() {
    return [...this.rows.values()].sort((a, b) => a.number - b.number);
  }

  /** The numbers of the COMPLETE trials that beat all before them. */
  steps() {
    const found = [];
    let best = null;
    if (this.directions > 1) return found;
    for (const row of this.sorted()) {
      if (row.state !== "COMPLETE" || row.replicate_of != null || Number.isNaN(row.value) || row.value === null) continue;
      if (best === null || (this.maximizes ? row.value > best : row.value < best)) {
        best = row.value;
        found.push(row.number);
      }
    }
    return found;
  }
}

function rowOf(item) {
  return { ...item, value: measured(item.values?.[0]), last: item.last_report, reports: undefined };
}

function figures(metrics) {
  const found = {};
  for (const [name, value] of Object.entries(metrics ?? {}).slice(0, 60)) {
    if (typeof value === "number" || typeof value === "boolean" || (typeof value === "string" && value.length <= 100)) found[name] = value;
  }
  return found;
}

export function curveOf(reports) {
  const every = Math.ceil(reports.length / MOST_STEPS);
  const kept = reports.filter((_, index) => index % every === 0 || index === reports.length - 1);
  return { steps: kept.map((report) => report.step), values: kept.map((report) => measured(report.value)) };
}
