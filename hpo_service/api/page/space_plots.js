// What the search space looks like from its trials: slices, ranges round by round, the front, parallel coordinates.

import { CanvasPlot, drawSign } from "./canvas_plot.js";
import { colour, h, renew, throttled } from "./dom.js";
import { number, param } from "./format.js";
import { linesOf } from "./line_charts.js";
import { linear, rangeOf, scaleOf, shortened } from "./scales.js";

const SHOWN = ["COMPLETE", "PRUNED"];

/** Between two colours of the theme by how good a value is: 0 is the worst shown, 1 the best. */
function shade(goodness) {
  const part = Math.round(Math.min(1, Math.max(0, goodness)) ** 2 * 16);
  const [from, to] = [colour("worse"), colour("better")];
  const known = `${from} ${to} ${part}`;
  if (!shades.has(known)) {
    const ends = [from, to].map((text) => text.split(" ").map(Number));
    shades.set(known, `rgb(${ends[0].map((low, index) => Math.round(low + ((ends[1][index] - low) * part) / 16)).join(" ")})`);
  }
  return shades.get(known);
}

const shades = new Map();

function goodnessOf(rows, maximizes) {
  const { low, high } = rangeOf(rows.map((row) => row.value), maximizes);
  return (row) => (maximizes ? row.value - low : high - row.value) / (high - low || 1);
}

/** The range that all rounds of a study have drawn this parameter from. */
function wholeParameter(study, name) {
  const found = study.rounds.map((round) => round.search_space[name]).concat(study.search_space[name]).filter(Boolean);
  if (found[0].type === "categorical") return study.search_space[name];
  return { ...found[0], low: Math.min(...found.map((each) => each.low)), high: Math.max(...found.map((each) => each.high)) };
}

/** Each parameter against the value. */
export function slices(pick) {
  const element = h("div", { class: "small-multiples" });
  const plots = new Map();
  let store, study, rows, goodness;

  function show(newStore, newStudy) {
    [store, study] = [newStore, newStudy];
    rows = [...store.rows.values()].filter((row) => SHOWN.includes(row.state) && Number.isFinite(row.value) && row.replicate_of === null);
    goodness = goodnessOf(rows, store.maximizes);
    for (const name of Object.keys(study.search_space)) {
      if (!plots.has(name)) add(name);
      plots.get(name).draw();
    }
  }

  function add(name) {
    const plot = new CanvasPlot({ label: "Each trial's value over this parameter; the table of trials has the same", height: 170, pick: (point) => pick(point.number), paint: (plot) => paint(plot, name) });
    plots.set(name, plot);
    element.append(h("figure", {}, h("figcaption", {}, name), plot.element));
  }

  function paint(plot, name) {
    const { low, high } = rangeOf(rows.map((row) => row.value), store.maximizes);
    plot.axes(scaleOf(wholeParameter(study, name)), linear(low, high));
    const wide = study.search_space[name].type === "categorical" ? 16 : 0;
    for (const row of rows) {
      if (!(name in row.params)) continue;
      const x = plot.x(row.params[name]);
      if (x === null) continue;
      const at = x + (wide ? ((row.number * 0.618) % 1 - 0.5) * wide : 0);
      const y = Math.min(Math.max(plot.y(row.value), plot.margins.top), plot.height - plot.margins.bottom);
      plot.context.fillStyle = row.state === "PRUNED" ? colour("of-PRUNED") : shade(goodness(row));
      plot.context.globalAlpha = 0.75;
      drawSign(plot.context, row.state, at, y, rows.length > 1000 ? 2 : 2.8);
      plot.points.push({ x: at, y, number: row.number, lines: () => linesOf(row, study) });
    }
    plot.context.globalAlpha = 1;
  }

  return { element, show };
}

/** The ranges of each numeric parameter, round by round, with the trials that were drawn from them. */
export function rounds(pick) {
  const figures = h("div", { class: "small-multiples" });
  const table = h("tbody");
  const behind = h("details", {}, h("summary", {}, "The ranges as a table"), h("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": "Ranges of rounds" }, h("table", {}, h("thead", {}, h("tr", {}, ["Round", "Parameter", "From", "To", "Trials", "What moved"].map((title) => h("th", { scope: "col" }, title)))), table)));
  const element = h("div", {}, figures, behind);
  const plots = new Map();
  let store, study, goodness;

  function show(newStore, newStudy) {
    [store, study] = [newStore, newStudy];
    const rows = [...store.rows.values()].filter((row) => Number.isFinite(row.value));
    goodness = goodnessOf(rows, store.maximizes);
    for (const [name, parameter] of Object.entries(study.search_space)) {
      if (parameter.type === "categorical") continue;
      if (!plots.has(name)) add(name);
      plots.get(name).draw();
    }
    fillTable();
  }

  function add(name) {
    const plot = new CanvasPlot({ label: "Range of this parameter in each round; the table under it has the same", height: 190, pick: (point) => pick(point.number), paint: (plot) => paint(plot, name) });
    plots.set(name, plot);
    figures.append(h("figure", {}, h("figcaption", {}, name, " ", h("span", { class: "quiet-text" }, "by round")), plot.element));
  }

  function paint(plot, name) {
    const context = plot.context;
    plot.axes(linear(-0.5, study.rounds.length - 0.5), scaleOf(wholeParameter(study, name)), { xTicks: Math.min(study.rounds.length, 12) });
    const width = plot.x(1) - plot.x(0);
    for (const round of study.rounds) {
      const parameter = round.search_space[name];
      if (!parameter) continue;
      const [top, bottom] = [plot.y(parameter.high), plot.y(parameter.low)];
      context.fillStyle = colour("band-strong");
      context.fillRect(plot.x(round.round) - width * 0.42, top, width * 0.84, Math.max(2, bottom - top));
    }
    for (const row of store.rows.values()) {
      if (!(name in row.params) || row.round === null || row.replicate_of !== null || !SHOWN.includes(row.state)) continue;
      const y = plot.y(row.params[name]);
      if (y === null) continue;
      const x = plot.x(row.round) + ((row.number * 0.618) % 1 - 0.5) * width * 0.7;
      context.fillStyle = row.state === "PRUNED" ? colour("of-PRUNED") : shade(goodness(row));
      context.globalAlpha = 0.8;
      drawSign(context, row.state, x, y, 2.6);
      plot.points.push({ x, y, number: row.number, lines: () => linesOf(row, study) });
    }
    context.globalAlpha = 1;
  }

  function fillTable() {
    const lines = study.rounds.flatMap((round) => Object.entries(round.search_space).map(([name, parameter]) => {
      const moved = round.changes.filter((change) => change.parameter === name).map((change) => change.kind).join(", ");
      const range = parameter.type === "categorical" ? [parameter.choices.map(param).join(", "), ""] : [number(parameter.low), number(parameter.high)];
      return h("tr", {}, [round.round, name, ...range, round.trials, moved].map((text) => h("td", {}, String(text))));
    }));
    renew(table, lines);
  }

  return { element, show };
}

/** Several directions: the first two values against each other, with the front. */
export function frontPlot(pick) {
  let store, study;
  const plot = new CanvasPlot({ label: "Values against each other with the front; the table of trials has the same", height: 220, margins: { left: 62, bottom: 26 }, pick: (point) => pick(point.number), paint });
  const rows = h("tbody");
  const head = h("tr");
  const element = h("div", {}, plot.element, h("details", {}, h("summary", {}, "The front as a table"), h("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": "The front" }, h("table", {}, h("thead", {}, head), rows))));

  function show(newStore, newStudy) {
    [store, study] = [newStore, newStudy];
    plot.draw();
    renew(head, ["Trial", ...study.directions.map((direction, index) => `Value ${index} (${direction})`)].map((title) => h("th", { scope: "col" }, title)));
    renew(rows, study.front.slice(0, 200).map((trial) => h("tr", {}, h("th", { scope: "row" }, h("button", { type: "button", class: "link", onclick: () => pick(trial.number) }, String(trial.number))), trial.values.map((value) => h("td", { class: "number" }, number(value))))));
  }

  function paint(plot) {
    if (!study) return;
    const told = [...store.rows.values()].filter((row) => row.state === "COMPLETE" && row.values);
    const values = (index) => told.map((row) => row.values[index]);
    const ofX = rangeOf(values(0), study.directions[0] === "maximize");
    const ofY = rangeOf(values(1), study.directions[1] === "maximize");
    plot.axes(linear(ofX.low, ofX.high), linear(ofY.low, ofY.high));
    const context = plot.context;
    const front = study.front.filter((trial) => trial.values.every(Number.isFinite)).sort((a, b) => a.values[0] - b.values[0]);
    if (study.directions.length === 2) {
      context.strokeStyle = colour("best");
      context.lineWidth = 1.5;
      context.beginPath();
      front.forEach((trial, index) => context[index ? "lineTo" : "moveTo"](plot.x(trial.values[0]), plot.y(trial.values[1])));
      context.stroke();
    }
    const onFront = new Set(front.map((trial) => trial.number));
    for (const row of told) {
      const [x, y] = [plot.x(Number(row.values[0])), plot.y(Number(row.values[1]))];
      if (x === null || y === null) continue;
      context.fillStyle = colour(onFront.has(row.number) ? "best" : "of-COMPLETE");
      context.globalAlpha = onFront.has(row.number) ? 1 : 0.45;
      drawSign(context, row.state, x, y, onFront.has(row.number) ? 4.2 : 3);
      plot.points.push({ x, y, number: row.number, lines: () => linesOf(row, study) });
    }
    context.globalAlpha = 1;
  }

  return { element, show };
}

/** One line a trial through its params to its value; a drag along an axis keeps the trials that pass there. */
export function parallel(brushed) {
  const brushes = new Map(); // by axis: [from, to] as fractions
  let store, study, axes = [], rows = [], goodness, drag = null;
  const plot = new CanvasPlot({ label: "Parallel coordinates of params and value; the table of trials has the same, with its filter", height: 230, margins: { left: 40, right: 44, top: 26, bottom: 20 }, paint });
  const clear = h("button", { type: "button", hidden: true, onclick: () => { brushes.clear(); changed(); } }, "Show all again");
  const said = h("span", { class: "quiet-text", role: "status" });
  const element = h("div", {}, plot.element, h("p", { class: "row" }, clear, said));
  const tell = throttled(() => brushed(brushes.size ? new Set(rows.filter(passes).map((row) => row.number)) : null), 120);
  plot.canvas.addEventListener("pointerdown", begin);
  plot.canvas.addEventListener("pointermove", move);
  plot.canvas.addEventListener("pointerup", end);
  plot.canvas.style.touchAction = "pan-y";

  function show(newStore, newStudy) {
    [store, study] = [newStore, newStudy];
    rows = [...store.rows.values()].filter((row) => row.state === "COMPLETE" && Number.isFinite(row.value) && row.replicate_of === null).sort((a, b) => (store.maximizes ? a.value - b.value : b.value - a.value));
    goodness = goodnessOf(rows, store.maximizes);
    const { low, high } = rangeOf(rows.map((row) => row.value), store.maximizes);
    axes = Object.keys(study.search_space).slice(0, 20).map((name) => ({ name, scale: scaleOf(wholeParameter(study, name)), of: (row) => (name in row.params ? row.params[name] : null) }));
    axes.push({ name: "value", scale: linear(low, high), of: (row) => Math.min(Math.max(row.value, low), high) });
    plot.draw();
  }

  function place(index) {
    const { left, right } = plot.margins;
    return left + (index * (plot.width - left - right)) / Math.max(axes.length - 1, 1);
  }

  function height(fraction) {
    const { top, bottom } = plot.margins;
    return plot.height - bottom - fraction * (plot.height - top - bottom);
  }

  function passes(row) {
    for (const [axis, [from, to]] of brushes) {
      const fraction = axes[axis].scale.fraction(axes[axis].of(row));
      if (fraction === null || fraction < from || fraction > to) return false;
    }
    return true;
  }

  function paint(plot) {
    if (!axes.length) return;
    const context = plot.context;
    const kept = brushes.size ? rows.filter(passes) : rows;
    if (brushes.size) lines(rows, () => colour("grid"), 0.5);
    lines(kept, (row) => shade(goodness(row)), kept.length > 1000 ? 0.25 : 0.6);
    context.globalAlpha = 1;
    axes.forEach((axis, index) => {
      const x = Math.round(place(index)) + 0.5;
      context.strokeStyle = colour("soft");
      context.lineWidth = 1;
      plot.line(x, height(0), x, height(1));
      context.fillStyle = colour("ink");
      context.textAlign = index === 0 ? "left" : index === axes.length - 1 ? "right" : "center";
      context.textBaseline = "alphabetic";
      context.fillText(shortened(axis.name, Math.max(6, Math.floor((plot.width / axes.length) / 7))), index === 0 ? 4 : index === axes.length - 1 ? plot.width - 2 : x, 14);
      context.textAlign = index === axes.length - 1 ? "left" : "right";
      context.textBaseline = "middle";
      context.fillStyle = colour("soft");
      context.strokeStyle = colour("card");
      context.lineWidth = 3;
      for (const { value, label } of axis.scale.ticks(5)) {
        const at = [label, index === axes.length - 1 ? x + 5 : x - 5, height(axis.scale.fraction(value))];
        context.strokeText(...at); // so that lines do not run through it
        context.fillText(...at);
      }
      const brush = brushes.get(index);
      if (brush) {
        context.fillStyle = colour("brush");
        context.fillRect(x - 7, height(brush[1]), 14, height(brush[0]) - height(brush[1]));
      }
    });
    clear.hidden = !brushes.size;
    said.textContent = brushes.size ? `${kept.length} of ${rows.length} trials` : rows.length ? "Drag along an axis to keep the trials that pass there." : "";
  }

  function lines(some, ofRow, alpha) {
    const context = plot.context;
    context.lineWidth = 1;
    context.globalAlpha = alpha;
    for (const row of some) {
      context.strokeStyle = ofRow(row);
      context.beginPath();
      let drawing = false;
      axes.forEach((axis, index) => {
        const fraction = axis.scale.fraction(axis.of(row));
        if (fraction === null) { drawing = false; return; }
        context[drawing ? "lineTo" : "moveTo"](place(index), height(fraction));
        drawing = true;
      });
      context.stroke();
    }
  }

  function at(event) {
    const box = plot.canvas.getBoundingClientRect();
    const [x, y] = [event.clientX - box.left, event.clientY - box.top];
    const index = axes.reduce((near, _, each) => (Math.abs(place(each) - x) < Math.abs(place(near) - x) ? each : near), 0);
    const { top, bottom } = plot.margins;
    return { index, distance: Math.abs(place(index) - x), fraction: Math.min(1, Math.max(0, (plot.height - bottom - y) / (plot.height - top - bottom))) };
  }

  function begin(event) {
    const { index, distance, fraction } = at(event);
    if (distance > 22 || !axes.length) return;
    drag = { index, from: fraction, moved: false };
    plot.canvas.setPointerCapture(event.pointerId);
  }

  function move(event) {
    if (!drag) {
      plot.canvas.classList.toggle("brushable", axes.length > 0 && at(event).distance <= 22);
      return;
    }
    const { fraction } = at(event);
    drag.moved ||= Math.abs(fraction - drag.from) > 0.01;
    if (drag.moved) {
      brushes.set(drag.index, [Math.min(drag.from, fraction), Math.max(drag.from, fraction)]);
      changed();
    }
  }

  function end() {
    if (drag && !drag.moved && brushes.delete(drag.index)) changed();
    drag = null;
  }

  function changed() {
    requestAnimationFrame(() => plot.draw());
    tell();
  }

  return { element, show };
}
