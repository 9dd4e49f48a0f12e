// From values to places on an axis, and the marks at which an axis is labelled.

import { measured, param, tick } from "./format.js";

/** fraction(value): 0 at the low end, 1 at the high end; null for what has no place. */
export function scaleOf(parameter) {
  if (parameter.type === "categorical") return choices(parameter.choices);
  return parameter.log ? logarithmic(parameter.low, parameter.high) : linear(parameter.low, parameter.high);
}

export function linear(low, high) {
  if (!(high > low)) [low, high] = [low - Math.abs(low || 1) * 0.05, low + Math.abs(low || 1) * 0.05];
  return {
    fraction: (value) => (value === null || !Number.isFinite(value) ? null : (value - low) / (high - low)),
    ticks: (most) => linearTicks(low, high, most).map((value) => ({ value, label: tick(value) })),
  };
}

export function logarithmic(low, high) {
  if (!(high > low)) [low, high] = [low / 1.5, high * 1.5];
  const from = Math.log10(low);
  const to = Math.log10(high);
  return {
    fraction: (value) => (value === null || !(value > 0) ? null : (Math.log10(value) - from) / (to - from)),
    ticks: (most) => logTicks(from, to, most).map((value) => ({ value, label: tick(value) })),
  };
}

function choices(all) {
  const places = new Map(all.map((choice, index) => [JSON.stringify(choice), index]));
  const at = (index) => (index + 0.5) / all.length;
  return {
    fraction: (value) => (places.has(JSON.stringify(value)) ? at(places.get(JSON.stringify(value))) : null),
    ticks: (most) => {
      const every = Math.ceil(all.length / Math.max(most * 2, 1));
      return all.map((choice) => ({ value: choice, label: shortened(param(choice)) })).filter((_, index) => index % every === 0);
    },
  };
}

export function shortened(text, most = 14) {
  const characters = [...text];
  return characters.length > most ? `${characters.slice(0, most - 1).join("")}…` : text;
}

function linearTicks(low, high, most) {
  const rough = (high - low) / Math.max(most, 1);
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((factor) => factor * power).find((size) => size >= rough);
  const found = [];
  for (let index = Math.ceil(low / step - 1e-9); index * step <= high + step * 1e-9; index++) found.push(index * step);
  return found;
}

function logTicks(from, to, most) {
  const first = Math.ceil(from - 1e-9);
  const last = Math.floor(to + 1e-9);
  if (last - first < 1) return linearTicks(10 ** from, 10 ** to, most).filter((value) => value > 0);
  const every = Math.max(1, Math.ceil((last - first + 1) / Math.max(most, 1)));
  const found = [];
  for (let power = first; power <= last; power += every) found.push(10 ** power);
  return found;
}

/**
 * The range of an axis for these values: all of them, or, where a few lie far off on the worse side, without those.
 * Returns {low, high}.
 */
export function rangeOf(values, maximizes) {
  const sorted = values.map(measured).filter(Number.isFinite).sort((a, b) => a - b);
  if (!sorted.length) return { low: 0, high: 1 };
  let low = sorted[0];
  let high = sorted.at(-1);
  const at = (share) => sorted[Math.min(sorted.length - 1, Math.floor(share * sorted.length))];
  if (sorted.length >= 20) {
    const [near, far] = maximizes ? [high, at(0.1)] : [low, at(0.9)];
    const reach = Math.abs(near - far) * 3;
    if (reach > 0 && maximizes) low = Math.max(low, near - reach);
    if (reach > 0 && !maximizes) high = Math.min(high, near + reach);
  }
  const margin = (high - low || Math.abs(high) || 1) * 0.05;
  return { low: low - margin, high: high + margin };
}
