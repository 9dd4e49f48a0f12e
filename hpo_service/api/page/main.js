// Where the page begins: which view it is, and what to do without a key.

import { keep, key } from "./calls.js";
import { ask } from "./dialogs.js";
import { h, put } from "./dom.js";
import { showStudies } from "./studies_view.js";
import { showStudy } from "./study_view.js";

const main = document.getElementById("main");
const forget = document.getElementById("key-button");
const view = document.documentElement.dataset.view;
const study = /^\/studies\/([^/]+)$/.exec(location.pathname)?.[1];

function open() {
  if (study) showStudy(main, decodeURIComponent(study), locked);
  else showStudies(main, locked);
}

/** Nobody may read this without a key: asks for one, and begins anew. */
function locked(error) {
  const said = document.getElementById("message")?.textContent || error?.message || "";
  const button = h("button", { type: "button", class: "primary", onclick: unlock }, "Enter key");
  put(main, h("div", { class: "empty" }, h("h1", {}, "A key is needed"), h("p", {}, said), h("p", {}, button)));
}

function unlock() {
  keep(null);
  const run = async () => {
    const answer = await fetch("/v1/studies?page_size=1", { headers: { Authorization: `Bearer ${key()}`, "X-HPO-Page": "1" } });
    if (answer.ok) open();
    else {
      const problem = await answer.json();
      keep(null);
      throw new Error(problem.detail);
    }
  };
  ask({ title: "Open with a key", action: "Open", run });
}

forget.addEventListener("click", () => {
  keep(null);
  location.reload();
});
const showKey = () => { forget.hidden = !key(); };
document.addEventListener("key", showKey);
showKey();

if (view === "nothing") put(main, h("div", { class: "empty" }, h("h1", {}, "Nothing here"), h("p", {}, document.getElementById("message").textContent), h("p", {}, h("a", { href: "/" }, "All studies"))));
else if (view === "locked" && !key()) locked();
else open();
