/** Messages at the foot of the page: what was done goes by itself, what failed and a receipt stay until they are dismissed. */

import { announce, el, icon } from "./dom.js";
import { count } from "./format.js";

const STAYS = 10_000; // ms

/** A sentence; `look` is "good" or "bad". */
export function toast(text, look = "good") {
  const element = show(look, el("p", {}, text));
  if (look === "bad") return;
  announce(text);
  setTimeout(() => element.remove(), STAYS);
}

/** What a delete removed. `remaining` was asked of the index anew, and is 0 unless something is wrong. */
export function showReceipt({ path, vectors, text, cache_entries, remaining }) {
  const rows = [["Vectors removed", vectors], ["Characters of text removed", text], ["Cached prompts removed", cache_entries], ["Left in the index, asked again", remaining]];
  show(remaining ? "bad" : "receipt",
    el("div", { class: "receipt" },
      el("p", {}, el("strong", {}, "Deleted "), el("bdi", {}, path)),
      el("dl", {}, rows.flatMap(([name, number]) => [el("dt", {}, name), el("dd", {}, number.toLocaleString("en"))])),
      remaining ? el("p", {}, "Delete it again, or run readingroom ingest.") : null));
  announce(`Deleted ${path}: ${count(vectors, "vector")} removed, ${remaining} left.`);
}

function show(look, content) {
  const element = el("div", { class: "toast", "data-look": look, role: look === "bad" ? "alert" : null },
    content,
    el("button", { type: "button", class: "button quiet square", "aria-label": "Dismiss", onclick: () => element.remove() }, icon("close")));
  document.getElementById("toasts").append(element);
  return element;
}
