// Calls to the service, and the key that they show. The key is in this tab's sessionStorage and nowhere else.

const KEY = "hpo-key";
const OURS = { "X-HPO-Page": "1" }; // no page of another site can send it

export const keysAreNeeded = document.documentElement.dataset.keys === "needed";

export function key() {
  return sessionStorage.getItem(KEY);
}

export function keep(value) {
  if (value) sessionStorage.setItem(KEY, value);
  else sessionStorage.removeItem(KEY);
  document.dispatchEvent(new Event("key"));
}

/** A refusal in the service's words. */
export class Refused extends Error {
  constructor(status, problem) {
    super(problem.detail || `the service answered ${status}`);
    this.status = status;
    this.code = problem.code;
    this.faults = problem.errors ?? [];
  }
}

export function headers(more = {}) {
  const shown = key();
  return { ...OURS, ...(shown ? { Authorization: `Bearer ${shown}` } : {}), ...more };
}

/** What a call is answered; throws Refused for anything but a success. */
async function sent(path, how) {
  const answer = await fetch(path, how).catch((error) => {
    if (error.name === "AbortError") throw error;
    throw new Refused(0, { detail: "the server cannot be reached" });
  });
  if (!answer.ok) throw new Refused(answer.status, await answer.json().catch(() => ({})));
  return answer;
}

export async function get(path, signal) {
  const answer = await sent(path, { headers: headers({ Accept: "application/json" }), signal });
  return answer.json();
}

/** What GET answers, or null where there is no such thing here (yet). */
export async function getIfThere(path, signal) {
  try {
    return await get(path, signal);
  } catch (error) {
    if (error instanceof Refused && [404, 405, 409, 422].includes(error.status)) return null;
    throw error;
  }
}

export async function send(method, path, body, kind = "application/json") {
  const how = { method, headers: headers() };
  if (body !== undefined) {
    how.headers["Content-Type"] = kind;
    how.body = kind === "application/json" && typeof body !== "string" ? JSON.stringify(body) : body;
  }
  const answer = await sent(path, how);
  return answer.status === 204 ? null : answer.json();
}

export const post = (path, body) => send("POST", path, body);

/** All pages of a listing. */
export async function all(path, signal) {
  const items = [];
  let token = null;
  do {
    const page = await get(`${path}?page_size=1000${token ? `&page_token=${encodeURIComponent(token)}` : ""}`, signal);
    items.push(...page.items);
    token = page.next_page_token;
  } while (token);
  return items;
}

/** Saves what a GET answers as a file; a link alone would not carry the key. */
export async function download(path, name) {
  const answer = await sent(path, { headers: headers() });
  save(await answer.blob(), name);
}

export function save(blob, name) {
  const url = URL.createObjectURL(blob);
  const link = document.createElement("a");
  link.href = url;
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(url), 60_000);
}
