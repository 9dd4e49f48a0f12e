// A drawing with two axes on a canvas, which says what lies under the pointer.

import { colour, h, put } from "./dom.js";

const REACH = 14; // pixels from the pointer to what it means

/** Draws one sign of a trial's state: circle, triangle, diamond, cross, ring. */
export function drawSign(context, state, x, y, size) {
  context.beginPath();
  switch (state) {
    case "RUNNING":
      context.moveTo(x, y - size * 1.2);
      context.lineTo(x + size * 1.15, y + size * 0.9);
      context.lineTo(x - size * 1.15, y + size * 0.9);
      context.closePath();
      context.fill();
      break;
    case "PRUNED":
      context.moveTo(x, y - size * 1.2);
      context.lineTo(x + size * 1.2, y);
      context.lineTo(x, y + size * 1.2);
      context.lineTo(x - size * 1.2, y);
      context.closePath();
      context.fill();
      break;
    case "FAIL":
      context.lineWidth = 1.6;
      context.moveTo(x - size, y - size);
      context.lineTo(x + size, y + size);
      context.moveTo(x + size, y - size);
      context.lineTo(x - size, y + size);
      context.stroke();
      break;
    case "WAITING":
      context.lineWidth = 1.4;
      context.arc(x, y, size, 0, 7);
      context.stroke();
      break;
    default:
      context.arc(x, y, size, 0, 7);
      context.fill();
  }
}

export class CanvasPlot {
  /** label: what it shows, for who cannot see it. paint(plot): draws it all. pick(point): one was clicked. */
  constructor({ label, height, paint, pick = null, margins = {} }) {
    this.canvas = h("canvas", { role: "img", "aria-label": label });
    this.tip = h("div", { class: "tip", hidden: true, "aria-hidden": "true" });
    this.element = h("div", { class: "plot" }, this.canvas, this.tip);
    this.height = height;
    this.paint = paint;
    this.margins = { left: 52, right: 10, top: 8, bottom: 24, ...margins };
    this.points = []; // {x, y, lines, …} in pixels, of which the nearest one is told
    this.canvas.addEventListener("pointermove", (event) => this.pointed(event));
    this.canvas.addEventListener("pointerleave", () => { this.tip.hidden = true; });
    if (pick) this.canvas.addEventListener("click", (event) => { const found = nearest(this.points, this.canvas, event); if (found) pick(found); });
    new ResizeObserver(() => this.draw()).observe(this.element);
  }

  draw() {
    const width = this.element.clientWidth;
    if (!width) return;
    const ratio = window.devicePixelRatio || 1;
    if (this.canvas.width !== Math.round(width * ratio) || this.canvas.height !== Math.round(this.height * ratio)) {
      this.canvas.width = Math.round(width * ratio);
      this.canvas.height = Math.round(this.height * ratio);
      this.canvas.style.height = `${this.height}px`;
    }
    this.width = width;
    this.context = this.canvas.getContext("2d");
    this.context.setTransform(ratio, 0, 0, ratio, 0, 0);
    this.context.clearRect(0, 0, width, this.height);
    this.context.font = "11px system-ui, sans-serif";
    this.points = [];
    this.paint(this);
  }

  /** Axes for these scales; afterwards x() and y() give pixels, or null for what has no place. */
  axes(xScale, yScale, { xTicks = null, yTicks = null } = {}) {
    const { left, right, top, bottom } = this.margins;
    const [w, hgt] = [this.width - left - right, this.height - top - bottom];
    const place = (scale, from, size) => (value) => {
      const fraction = scale.fraction(value);
      return fraction === null ? null : from + fraction * size;
    };
    this.x = place(xScale, left, w);
    this.y = place(yScale, top + hgt, -hgt);
    const context = this.context;
    context.strokeStyle = colour("grid");
    context.fillStyle = colour("soft");
    context.lineWidth = 1;
    context.textBaseline = "middle";
    context.textAlign = "right";
    for (const { value, label } of yScale.ticks(yTicks ?? Math.max(2, Math.round(hgt / 34)))) {
      const y = Math.round(this.y(value)) + 0.5;
      this.line(left, y, left + w, y);
      context.fillText(label, left - 6, y);
    }
    context.textAlign = "center";
    context.textBaseline = "top";
    for (const { value, label } of xScale.ticks(xTicks ?? Math.max(2, Math.round(w / 62)))) {
      const x = Math.round(this.x(value)) + 0.5;
      this.line(x, top, x, top + hgt);
      const half = context.measureText(label).width / 2;
      context.fillText(label, Math.min(Math.max(x, half + 1), this.width - half - 1), top + hgt + 6);
    }
  }

  line(fromX, fromY, toX, toY) {
    this.context.beginPath();
    this.context.moveTo(fromX, fromY);
    this.context.lineTo(toX, toY);
    this.context.stroke();
  }

  pointed(event) {
    const found = nearest(this.points, this.canvas, event);
    this.canvas.classList.toggle("pickable", Boolean(found));
    showTip(this.tip, found, this.width);
  }
}

/** The point that lies nearest to the pointer, and within its reach; null where there is none. */
export function nearest(points, element, event) {
  const box = element.getBoundingClientRect();
  const [x, y] = [event.clientX - box.left, event.clientY - box.top];
  let [found, least] = [null, REACH * REACH];
  for (const point of points) {
    const distance = (point.x - x) ** 2 + (point.y - y) ** 2;
    if (distance < least) [found, least] = [point, distance];
  }
  return found;
}

/** found: {x, y, lines()} in pixels of the plot, or null. */
export function showTip(tip, found, width) {
  tip.hidden = !found;
  if (!found) return;
  put(tip, found.lines().map((line) => h("div", {}, line)));
  tip.style.left = `${Math.max(4, Math.min(found.x + 12, width - tip.offsetWidth - 4))}px`;
  tip.style.top = `${found.y + 14}px`;
}
