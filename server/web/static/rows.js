/**
 * The rows of the list of documents: how one looks in each state, and what can be done with it. A row changes in place, so that the focus
 * and what a screen reader is at stay where they are. Which documents are listed is library.js's business.
 */

import { fileAddress } from "./api.js";
import { el, icon, withCode } from "./dom.js";
import { bytes, count, exactly, since } from "./format.js";

/** `acts`: {open(record), retry(record), replace(record), remove(record)}; `may.upload` whether files may be changed. */
export class Rows {
  #list;
  #acts;
  #may;
  #rows = new Map(); // id -> <li>

  constructor(list, acts, may) {
    this.#list = list;
    this.#acts = acts;
    this.#may = may;
  }

  /** Shows these documents, in this order. */
  draw(documents) {
    for (const [id, row] of this.#rows) {
      if (documents.has(id)) continue;
      row.remove();
      this.#rows.delete(id);
    }
    let previous = null;
    for (const record of documents.values()) {
      const row = this.#rowOf(record);
      const place = previous ? previous.nextSibling : this.#list.firstChild;
      if (row !== place) this.#list.insertBefore(row, place);
      previous = row;
    }
  }

  /** The row of a document, if it is listed. */
  get(id) {
    return this.#rows.get(id);
  }

  #rowOf(record) {
    let row = this.#rows.get(record.id);
    if (!row) {
      row = el("li", { class: "document" });
      this.#rows.set(record.id, row);
    }
    if (row.record === record && row.editable === this.#may.upload) return row;
    row.record = record;
    row.editable = this.#may.upload;
    // Only the share of a stage has moved: the row stays as it is, and with it the focus and what a screen reader is at.
    const key = JSON.stringify({ ...record, progress: null, editable: row.editable });
    if (row.key !== key) {
      row.key = key;
      const focused = row.contains(document.activeElement) ? document.activeElement.dataset.action : null;
      row.replaceChildren(...this.#cells(record));
      row.dataset.status = record.status;
      row.classList.remove("going");
      row.classList.toggle("member", Boolean(record.container));
      // The element in focus has been replaced; a keyboard must not fall back to the top of the page for that.
      if (focused) (row.querySelector(`[data-action="${focused}"]`) ?? row.querySelector("[data-action]"))?.focus();
    }
    showStage(row, record);
    return row;
  }

  #cells(record) {
    const name = nameOf(record);
    const size = [bytes(record.bytes), record.status === "indexed" ? count(record.chunks, "passage") : null].filter(Boolean).join(" · ");
    const busy = ["parsing", "embedding"].includes(record.status);
    const within = record.container && record.container.split("/").at(-1);
    const when = record.indexed_at ?? record.modified_at;
    const times = [`Modified ${exactly(record.modified_at)}`, record.indexed_at ? `indexed ${exactly(record.indexed_at)}` : null].filter(Boolean).join(", ");
    const titled = record.status === "indexed"
      ? el("button", { type: "button", class: "document-title", dir: "auto", "data-action": "open", onclick: () => this.#acts.open(record) }, name)
      : el("span", { class: "document-title", dir: "auto" }, name);
    const own = this.#may.upload && !within; // what lies in another file is changed and deleted with it
    return [
      el("span", { class: "chip", "data-status": record.status }, record.status),
      el("div", { class: "document-name" }, titled, el("p", { class: "path" }, record.path),
        within && el("p", { class: "within" }, "in ", el("bdi", {}, within), ", and changed or deleted with it")),
      el("div", { class: "document-size" }, el("p", {}, size),
        busy && el("p", { class: "stage", hidden: true }, el("progress", { max: "1", value: "0", "aria-label": name }), el("span", { class: "percent", "aria-hidden": "true" }))),
      el("p", { class: "document-time", title: times }, el("span", { class: "verb" }, record.indexed_at ? "indexed " : "modified "),
        el("time", { datetime: new Date(when * 1000).toISOString(), "data-seconds": when }, since(when))),
      el("div", { class: "document-actions" },
        el("a", { class: "button quiet square", href: fileAddress(record.id), target: "_blank", rel: "noopener", "data-action": "file", title: "Original file", "aria-label": `Original file of ${name}, opens in a new tab` }, icon("external")),
        own && act("replace", "swap", "Replace", `Replace ${name} by another file`, () => this.#acts.replace(record)),
        own && act("delete", "trash", "Delete", `Delete ${name}`, () => this.#acts.remove(record))),
      record.error ? this.#error(record, name) : "",
    ];
  }

  #error(record, name) {
    const { message, remedy } = record.error;
    return el("div", { class: "document-error" },
      el("div", { class: "reason" }, el("p", {}, withCode(message)), remedy && el("p", { class: "remedy" }, withCode(remedy))),
      this.#may.upload && el("button", { type: "button", class: "button", "data-action": "retry", "aria-label": `Try again: ${name}`, onclick: () => this.#acts.retry(record) },
        icon("retry"), "Try again"));
  }
}

/** What a document is called. */
export function nameOf(record) {
  return record.title || record.path.split("/").at(-1);
}

function act(action, picture, title, label, onclick) {
  return el("button", { type: "button", class: "button quiet square", "data-action": action, title, "aria-label": label, onclick }, icon(picture));
}

/** The bar of a document that is being read or indexed, once the server knows how far it is. */
function showStage(row, { status, progress }) {
  const stage = row.querySelector(".stage");
  if (!stage) return;
  stage.hidden = progress === null || progress === undefined;
  if (stage.hidden) return;
  const percent = Math.floor(progress * 100);
  const bar = stage.querySelector("progress");
  bar.value = progress;
  bar.setAttribute("aria-valuetext", `${status}, ${percent} %`);
  stage.querySelector(".percent").textContent = `${percent} %`;
}
