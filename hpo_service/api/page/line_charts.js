// The two charts that uPlot draws: the best value over trials, and curves over steps. Dragging zooms, a double click
// shows all again.
/* global uPlot */

import { drawSign, nearest, showTip } from "./canvas_plot.js";
import { colour, h } from "./dom.js";
import { number, param, tick } from "./format.js";
import { rangeOf } from "./scales.js";

const WHOLE = [1, 2, 5].flatMap((n) => Array.from({ length: 9 }, (_, power) => n * 10 ** power)).sort((a, b) => a - b);
const LINES = ["line-1", "line-2", "line-3", "line-4", "line-5", "line-6", "line-7", "line-8"];

class UplotChart {
  constructor(label, height, pick) {
    this.height = height;
    this.pick = pick;
    this.box = h("div", { class: "uplot-box", role: "img", "aria-label": label });
    this.tip = h("div", { class: "tip", hidden: true, "aria-hidden": "true" });
    this.element = h("div", { class: "plot" }, this.box, this.tip);
    this.points = [];
    this.chart = null;
    new ResizeObserver(() => this.resized()).observe(this.element);
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.redraw());
    this.element.addEventListener("pointermove", (event) => this.pointed(event));
    this.element.addEventListener("pointerleave", () => { this.tip.hidden = true; });
    this.element.addEventListener("pointerdown", (event) => { this.pressed = [event.clientX, event.clientY]; });
    this.element.addEventListener("click", (event) => this.clicked(event));
  }

  resized() {
    const width = this.element.clientWidth;
    if (!width || width === this.chart?.width) return;
    if (this.chart) this.chart.setSize({ width, height: this.height });
    else this.redraw();
  }

  /** x: more of that scale; hooks: beside those of the zoom. */
  make({ x = {}, series, hooks }, data) {
    const width = this.element.clientWidth;
    if (!width) return;
    this.chart?.destroy();
    this.chart = new uPlot({
      width, height: this.height, legend: { show: false },
      cursor: { y: false, points: { show: false }, drag: { x: true, y: true, uni: 30 } },
      scales: { x: { time: false, ...x }, y: { range: (_, low, high) => this.ofY(low, high) } },
      axes: [this.axis({ size: 26, space: 60, incrs: WHOLE }), this.axis({ size: 56, space: 30 })],
      series: [{}, ...series],
      hooks: {
        setSelect: [(chart) => { if (chart.select.width > 0) this.zoomed = true; }],
        ready: [(chart) => chart.over.addEventListener("dblclick", () => { this.zoomed = false; this.chart.setData(this.chart.data); })],
        ...hooks,
      },
    }, data, this.box);
  }

  ofY(low, high) {
    return this.zoomed && low !== null && high > low ? [low, high] : [this.range.low, this.range.high];
  }

  axis(more = {}) {
    return {
      stroke: () => colour("soft"), font: "11px system-ui, sans-serif",
      grid: { stroke: () => colour("grid"), width: 1 }, ticks: { show: false },
      values: (_, values) => values.map((value) => (value === null ? "" : tick(value))), ...more,
    };
  }

  /** A click picks the trial under it; the end of a drag does not. */
  clicked(event) {
    const [x, y] = this.pressed ?? [event.clientX, event.clientY];
    const found = nearest(this.points, this.element, event);
    if (found && Math.hypot(event.clientX - x, event.clientY - y) < 4) this.pick(found.number);
  }

  pointed(event) {
    const found = nearest(this.points, this.element, event);
    this.element.classList.toggle("pickable", Boolean(found));
    showTip(this.tip, found, this.element.clientWidth);
  }
}

/** Each trial a sign, the best so far a line, rounds as bands. */
export class HistoryChart extends UplotChart {
  constructor(pick) {
    super("Value of each trial and the best so far; the table of trials has the same", 220, pick);
    this.direction = 0;
  }

  show(store, study) {
    this.store = store;
    this.study = study;
    const rows = store.sorted();
    const value = (row) => (this.direction === 0 ? row.value : row.values?.[this.direction] ?? null);
    const maximizes = study.directions[this.direction] === "maximize";
    this.rows = rows;
    this.valueOf = (row) => (row.state === "RUNNING" ? (this.direction === 0 && row.last ? Number(row.last.value) : null) : value(row));
    const steps = new Set(store.steps());
    let best = null;
    const line = rows.map((row) => {
      if (steps.has(row.number)) best = row.value;
      return best;
    });
    this.range = rangeOf(rows.filter((row) => row.state !== "FAIL").map(this.valueOf), maximizes);
    const data = [rows.map((row) => row.number), line];
    if (!this.chart) this.redraw(data);
    else if (this.zoomed) this.chart.setData(data, false), this.chart.redraw();
    else this.chart.setData(data);
  }

  redraw(data = this.chart?.data) {
    if (!data) return this.store && this.show(this.store, this.study);
    this.make({
      x: { range: (_, low, high) => this.ofX(low, high) },
      series: [{ stroke: () => colour("best"), width: 2, paths: uPlot.paths.stepped({ align: 1 }), points: { show: false } }],
      hooks: { drawClear: [(chart) => this.bands(chart)], draw: [(chart) => this.signs(chart)] },
    }, data);
    return undefined;
  }

  ofX(low, high) {
    if (this.zoomed && low !== null) return [low, high];
    const last = Math.max(this.store.total - 1, 1);
    return [-0.02 * last - 0.5, last * 1.02 + 0.5];
  }

  bands(chart) {
    const rounds = this.study.rounds.filter((round) => round.first_trial !== null);
    if (rounds.length < 2) return;
    const { left, top, width, height } = chart.bbox;
    const context = chart.ctx;
    const ratio = devicePixelRatio;
    context.save();
    context.font = `${11 * ratio}px system-ui, sans-serif`;
    rounds.forEach((round, index) => {
      const end = rounds[index + 1]?.first_trial ?? Math.max(this.store.total, round.first_trial + round.trials);
      const from = Math.max(left, chart.valToPos(round.first_trial - 0.5, "x", true));
      const to = Math.min(left + width, chart.valToPos(end - 0.5, "x", true));
      if (to <= from) return;
      context.fillStyle = colour(index % 2 ? "band-odd" : "band-even");
      context.fillRect(from, top, to - from, height);
      context.fillStyle = colour("soft");
      const above = this.study.directions[0] === "minimize"; // where there are fewer trials
      context.textBaseline = above ? "top" : "bottom";
      if (to - from > 60 * ratio) context.fillText(`Round ${round.round}`, from + 6 * ratio, above ? top + 5 * ratio : top + height - 5 * ratio);
    });
    context.restore();
  }

  signs(chart) {
    const { left, top, width, height } = chart.bbox;
    const context = chart.ctx;
    const ratio = devicePixelRatio;
    const size = (this.rows.length > 1500 ? 2 : this.rows.length > 300 ? 2.8 : 3.6) * ratio;
    const steps = new Set(this.store.steps());
    const front = new Set((this.study.front ?? []).map((trial) => trial.number));
    const floor = top + height - 5 * ratio;
    const ceiling = top + 5 * ratio;
    this.points = [];
    context.save();
    context.beginPath();
    context.rect(left, top, width, height);
    context.clip();
    for (const row of this.rows) {
      const value = this.valueOf(row);
      if (row.state === "WAITING" || (value === null && row.state !== "FAIL")) continue;
      const x = chart.valToPos(row.number, "x", true);
      const at = value === null || Number.isNaN(value) ? floor : chart.valToPos(value, "y", true);
      const y = Math.min(Math.max(at, ceiling), floor);
      const stands = steps.has(row.number) || front.has(row.number);
      context.fillStyle = context.strokeStyle = colour(`of-${row.state}`);
      context.globalAlpha = stands || row.state === "RUNNING" ? 1 : 0.6;
      drawSign(context, row.state, x, y, stands ? size * 1.35 : size);
      if (x >= left && x <= left + width) this.points.push({ x: x / ratio, y: y / ratio, number: row.number, lines: () => linesOf(row, this.study) });
    }
    context.restore();
  }
}

/** What a tip says of a trial. */
export function linesOf(row, study) {
  const value = row.state === "RUNNING" && row.last ? `${number(row.last.value)} at step ${row.last.step}` : (row.values ?? []).map(number).join(" · ");
  const names = Object.keys(study.search_space).filter((name) => name in row.params).slice(0, 6);
  return [`Trial ${row.number} · ${row.state}`, value || row.reason || "", ...names.map((name) => `${name}: ${param(row.params[name])}`)].filter(Boolean);
}

/** curves: [{number, state, steps, values}], the best first. */
export class CurvesChart extends UplotChart {
  constructor(pick) {
    super("Reported values over steps; the table under it has the same", 220, pick);
    this.dash = [6, 4];
  }

  show(curves, maximizes) {
    this.curves = curves.filter((curve) => curve.steps.length);
    this.element.hidden = !this.curves.length;
    if (!this.curves.length) return;
    this.data = uPlot.join(this.curves.map((curve) => [curve.steps, curve.values.map((value) => (Number.isFinite(value) ? value : null))]));
    this.range = rangeOf(this.curves.flatMap((curve) => curve.values), maximizes);
    const shape = this.curves.map((curve) => `${curve.number}${curve.state}`).join();
    if (this.chart && shape === this.shape) {
      this.chart.setData(this.data, !this.zoomed);
      if (this.zoomed) this.chart.redraw();
    } else {
      this.redraw();
    }
    this.shape = shape;
  }

  redraw() {
    if (!this.data) return;
    const running = this.curves.some((curve) => curve.state === "RUNNING");
    let nth = 0;
    const series = this.curves.map((curve) => {
      const name = LINES[nth++ % LINES.length];
      const live = curve.state === "RUNNING";
      return {
        stroke: () => colour(live ? "of-RUNNING" : name), width: live ? 2 : 1.5, dash: live ? this.dash : undefined, spanGaps: true,
        alpha: running && !live ? 0.75 : 1, points: { show: curve.steps.length < 2, size: 6, fill: () => colour(live ? "of-RUNNING" : name) },
      };
    });
    this.make({ series, hooks: { draw: [(chart) => this.places(chart)] } }, this.data);
  }

  places(chart) {
    this.points = [];
    for (const curve of this.curves) {
      curve.steps.forEach((step, index) => {
        const value = curve.values[index];
        if (!Number.isFinite(value)) return;
        const x = chart.valToPos(step, "x", true) / devicePixelRatio;
        const y = chart.valToPos(value, "y", true) / devicePixelRatio;
        this.points.push({ x, y, number: curve.number, lines: () => [`Trial ${curve.number} · ${curve.state}`, `${number(value)} at step ${step}`] });
      });
    }
  }
}
