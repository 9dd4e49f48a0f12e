// The best value so far as a small line; the list's table has the numbers.

import { svg } from "./dom.js";
import { measured } from "./format.js";

const WIDTH = 96;
const HEIGHT = 26;

/** steps: [number, value] of the trials that beat all before them; last: how many trials there are. */
export function sparkline(steps, last) {
  const points = steps.map(([number, value]) => [number, measured(value)]).filter(([, value]) => Number.isFinite(value));
  if (!points.length) return null;
  const values = points.map(([, value]) => value);
  const low = Math.min(...values);
  const span = Math.max(...values) - low || 1;
  const end = Math.max(last - 1, points.at(-1)[0], 1);
  const x = (number) => 2 + (number / end) * (WIDTH - 6);
  const y = (value) => HEIGHT - 4 - ((value - low) / span) * (HEIGHT - 8);
  let path = `M${x(points[0][0]).toFixed(1)} ${y(points[0][1]).toFixed(1)}`;
  for (const [number, value] of points.slice(1)) path += `H${x(number).toFixed(1)}V${y(value).toFixed(1)}`;
  path += `H${x(end).toFixed(1)}`;
  return svg(
    "svg",
    { class: "sparkline", width: WIDTH, height: HEIGHT, viewBox: `0 0 ${WIDTH} ${HEIGHT}`, "aria-hidden": "true" },
    svg("path", { d: path }),
    svg("circle", { cx: x(end), cy: y(values.at(-1)), r: 2.5 }),
  );
}
