// Numbers, times and words as people write them.

/** What JSON says of a measured value, as a number. */
export function measured(value) {
  if (typeof value === "string") return { NaN: NaN, Infinity: Infinity, "-Infinity": -Infinity }[value] ?? null;
  return value ?? null;
}

/** A measured number with three to five significant digits: 0.97513, 7.00, 3.10e-5. */
export function number(value) {
  value = measured(value);
  if (value === null) return "–";
  if (Number.isNaN(value)) return "NaN";
  if (!Number.isFinite(value)) return value > 0 ? "∞" : "−∞";
  const size = Math.abs(value);
  if (size !== 0 && (size < 1e-3 || size >= 1e6)) return trimmed(value.toExponential(4), 2);
  const whole = size < 1 ? 0 : Math.floor(Math.log10(size)) + 1;
  const leading = size > 0 && size < 1 ? -Math.floor(Math.log10(size)) - 1 : 0;
  return trimmed(value.toFixed(Math.max(0, 5 - Math.max(whole, 0) + leading)), Math.max(0, 3 - Math.max(whole, 1) + (size < 1 && size > 0 ? leading + 1 : 0)));
}

/** Without zeros at the end of its fraction, but with so many places of it. */
function trimmed(text, places) {
  const [, head, fraction, tail] = /^([^.e]*)(?:\.([0-9]*))?(.*)$/.exec(text);
  let kept = fraction ?? "";
  while (kept.length > places && kept.endsWith("0")) kept = kept.slice(0, -1);
  return head + (kept ? `.${kept}` : "") + tail.replace("e+", "e");
}

/** A number for an axis: as short as it can be. */
export function tick(value) {
  const size = Math.abs(value);
  if (size !== 0 && (size < 1e-3 || size >= 1e5)) return String(Number(value.toExponential(2)).toExponential()).replace("e+", "e");
  return String(Number(value.toPrecision(5)));
}

/** A parameter's value: whole numbers and words as they are. */
export function param(value) {
  if (typeof value === "number") return Number.isInteger(value) && Math.abs(value) < 1e6 ? String(value) : number(value);
  return typeof value === "string" ? value : JSON.stringify(value);
}

export function percent(share, digits = 1) {
  return `${(share * 100).toFixed(digits)} %`;
}

export function count(value, word, words = `${word}s`) {
  return `${value.toLocaleString("en")} ${value === 1 ? word : words}`;
}

/** 3 s, 4 min, 2 h 5 min, 3 d 4 h. */
export function duration(seconds) {
  if (seconds === null || seconds === undefined || !Number.isFinite(seconds)) return "–";
  if (seconds < 1) return `${Math.max(0, Math.round(seconds * 1000))} ms`;
  if (seconds < 60) return `${seconds < 10 ? seconds.toFixed(1) : Math.round(seconds)} s`;
  const minutes = Math.round(seconds / 60);
  if (minutes < 60) return `${minutes} min`;
  const hours = Math.floor(minutes / 60);
  if (hours < 24) return minutes % 60 ? `${hours} h ${minutes % 60} min` : `${hours} h`;
  return hours % 24 ? `${Math.floor(hours / 24)} d ${hours % 24} h` : `${hours / 24} d`;
}

export function ago(time) {
  const seconds = (Date.now() - Date.parse(time)) / 1000;
  if (seconds < 5) return "just now";
  return `${duration(Math.max(0, Math.round(seconds)))} ago`;
}

export function moment(time) {
  if (!time) return "–";
  return new Date(time).toLocaleString(undefined, { dateStyle: "medium", timeStyle: "medium" });
}

export function clock(time) {
  if (!time) return "–";
  const date = new Date(time);
  const today = new Date().toDateString() === date.toDateString();
  return today
    ? date.toLocaleTimeString(undefined, { timeStyle: "medium" })
    : date.toLocaleString(undefined, { dateStyle: "short", timeStyle: "short" });
}

/** Each state has a sign beside its colour. */
export const SIGNS = {
  COMPLETE: "●", RUNNING: "▲", PRUNED: "◆", FAIL: "✕", WAITING: "○",
  ACTIVE: "▶", PAUSED: "❚❚", STOPPING: "◧", STOPPED: "■", COMPLETED: "✓", CANCELLED: "✕",
};
export const TRIAL_STATES = ["COMPLETE", "RUNNING", "PRUNED", "FAIL", "WAITING"];
