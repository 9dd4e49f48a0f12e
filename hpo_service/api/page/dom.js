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
    if (name.startsWith("on")) element[name] = value;
    else element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.flat().filter((child) => child !== null && child !== undefined && child !== false));
  return element;
}

export function put(parent, ...children) {
  parent.replaceChildren(...there(children));
}

/**
 * The same for what is painted anew while people are at it: what stands there is made to say what these say. So a click
 * that has begun goes on, the keyboard stays where it was, and what was open or scrolled stays so. What has a handler
 * stays only if it reads the same: nobody's click is to mean something else. The children that are given may be taken
 * for nothing but what they say.
 */
export function renew(parent, ...children) {
  let old = parent.firstChild;
  for (const child of there(children).map((each) => (each instanceof Node ? each : document.createTextNode(each)))) {
    while (old?.nextSibling && !isOf(old, child) && isOf(old.nextSibling, child)) old = without(old);
    if (!old) parent.append(child);
    else if (isOf(old, child)) renewOne(old, child);
    else {
      old.replaceWith(child);
      old = child;
    }
    old = old?.nextSibling;
  }
  while (old) old = without(old);
}

function there(children) {
  return children.flat().filter((child) => child !== null && child !== undefined && child !== false);
}

function without(node) {
  const next = node.nextSibling;
  node.remove();
  return next;
}

const HANDLERS = ["onclick", "onchange", "oninput", "onsubmit"];

/** Whether the one can be made to say what the other says. */
function isOf(old, child) {
  if (old.nodeName !== child.nodeName) return false;
  return HANDLERS.every((name) => !old[name] && !child[name]) || old.isEqualNode(child);
}

function renewOne(old, child) {
  if (old.nodeType === Node.TEXT_NODE) {
    say(old, child.data);
    return;
  }
  for (const name of HANDLERS) old[name] = child[name];
  for (const name of old.getAttributeNames()) if (!child.hasAttribute(name) && !(name === "open" && old.tagName === "DETAILS")) old.removeAttribute(name);
  for (const name of child.getAttributeNames()) if (name !== "style" && old.getAttribute(name) !== child.getAttribute(name)) old.setAttribute(name, child.getAttribute(name));
  if (old.style.cssText !== child.style.cssText) old.style.cssText = child.style.cssText;
  renew(old, ...child.childNodes);
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
