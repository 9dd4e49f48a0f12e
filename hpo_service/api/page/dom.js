// Elements made by code. What people named goes in as text only, so that nothing of it is ever read as HTML.

const SVG = "http://www.w3.org/2000/svg";

/** h("p", {class: "quiet", onclick: f, "aria-label": "…"}, "text", child, …); null and false children are left out. */
export function h(tag, attributes = {}, ...children) {
  return filled(document.createElement(tag), attributes, children);
}

export function svg(tag, attributes = {}, ...children) {
  return filled(document.createElementNS(SVG, tag), attributes, children);
}

function filled(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.flat().filter((child) => child !== null && child !== undefined && child !== false));
  return element;
}

/**
 * These children, instead of those that were there. What is the same stays, and a click on it that has begun; in what is
 * another, what was open stays open, what was scrolled stays there, and the keyboard stays at the button it was at.
 */
export function put(parent, ...children) {
  const wanted = children.flat().filter((child) => child !== null && child !== undefined && child !== false);
  wanted.forEach((child, index) => {
    const old = parent.childNodes[index];
    if (!old) parent.append(child);
    else if (old !== child) replace(old, typeof child === "string" ? document.createTextNode(child) : child);
  });
  while (parent.childNodes.length > wanted.length) parent.lastChild.remove();
}

function replace(old, child) {
  const opened = within(old, "details[open]").map((each) => each.querySelector("summary").textContent);
  for (const each of within(child, "details")) each.open ||= opened.includes(each.querySelector("summary").textContent);
  if (old.isEqualNode(child)) return;
  const scrolled = within(old, ".scroll").map((each) => [each.scrollLeft, each.scrollTop]);
  const focused = old.contains(document.activeElement) ? document.activeElement : null;
  old.replaceWith(child);
  within(child, ".scroll").forEach((each, index) => each.scrollTo(...(scrolled[index] ?? [0, 0])));
  if (focused) within(child, focused.tagName).find((each) => nameOf(each) === nameOf(focused))?.focus({ preventScroll: true });
}

function within(node, selector) {
  return node instanceof Element ? [node, ...node.querySelectorAll("*")].filter((each) => each.matches(selector)) : [];
}

function nameOf(element) {
  return element.getAttribute("aria-label") ?? element.textContent;
}

/** Sets the text where it is another one: what has not changed keeps its selection, and screen readers stay quiet. */
export function say(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

/** The children in this order, moving as few as possible. */
export function arrange(parent, children) {
  children.forEach((child, index) => {
    if (parent.children[index] !== child) parent.insertBefore(child, parent.children[index] ?? null);
  });
  while (parent.children.length > children.length) parent.lastElementChild.remove();
}

const REST = 10; // times as long as the last run took

/**
 * Calls f, which may be async, at most once in so many milliseconds, less often where it takes long, and once more after
 * the last call.
 */
export function throttled(f, milliseconds) {
  let wanted = false;
  let resting = false;
  async function run() {
    resting = true;
    while (wanted) {
      wanted = false;
      const began = performance.now();
      await f();
      const took = performance.now() - began;
      await new Promise((rested) => setTimeout(rested, Math.max(milliseconds - took, took * REST)));
    }
    resting = false;
  }
  return () => {
    wanted = true;
    if (!resting) run();
  };
}

const colours = new Map();
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => colours.clear());

/** A colour of the stylesheet, as it is in this light. */
export function colour(name) {
  if (!colours.has(name)) colours.set(name, getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim());
  return colours.get(name);
}

let announced = null;

/** Says something at the foot of the page, to screen readers too. */
export function notice(text, kind = "good") {
  const place = document.getElementById("notices");
  clearTimeout(announced);
  const close = h("button", { type: "button", class: "quiet", "aria-label": "Dismiss", onclick: () => put(place) }, "×");
  put(place, h("div", { class: `notice ${kind}` }, h("p", {}, text), close));
  if (kind === "good") announced = setTimeout(() => put(place), 6000);
}
