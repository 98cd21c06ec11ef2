/** Asks before something is deleted for good: one dialog for all pages, made when it is first needed. */

import { el, icon } from "./dom.js";

let dialog = null;
let settle = null;

function build() {
  const made = el("dialog", { class: "box", id: "delete-dialog", "aria-labelledby": "delete-title", "aria-describedby": "delete-text" },
    el("form", { method: "dialog" },
      el("h2", { id: "delete-title" }),
      el("p", { id: "delete-text" }),
      el("div", { class: "dialog-actions" },
        el("button", { type: "submit", class: "button", value: "cancel" }, "Cancel"),
        el("button", { type: "submit", class: "button danger", value: "delete" }, icon("trash"), "Delete"))));
  document.body.append(made);
  made.addEventListener("close", () => settle?.(made.returnValue === "delete"));
  return made;
}

/** Whether the person wants that; `text` are what `append` takes. Escape and Cancel are a no. */
export function confirmDelete(title, ...text) {
  dialog ??= build();
  document.getElementById("delete-title").textContent = title;
  document.getElementById("delete-text").replaceChildren(...text);
  dialog.returnValue = "cancel"; // what Escape means
  dialog.showModal();
  return new Promise((resolve) => {
    settle = resolve;
  });
}
