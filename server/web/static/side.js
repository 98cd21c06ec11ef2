/**
 * The list of conversations at the side: search, open, rename, export, delete. It draws what the server lists and what the page tells
 * it; the open conversation itself is conversation.js, which one is open chat.js's business.
 */

import { deleteConversation, exportAddress, listConversations, Problem, renameConversation } from "./api.js";
import { confirmDelete } from "./confirm.js";
import { announce, el, icon } from "./dom.js";
import { count, exactly } from "./format.js";

const SEARCH_AFTER = 150; // ms without a key pressed
const PAGE = 50;

const DAY = 86_400;

/** The heading that a conversation of that time stands below. */
function age(seconds) {
  const today = new Date().setHours(0, 0, 0, 0) / 1000;
  if (seconds >= today) return "Today";
  if (seconds >= today - DAY) return "Yesterday";
  if (seconds >= today - 7 * DAY) return "Last 7 days";
  return "Older";
}

/** `page`: {open(id), removed(id or null for all), renamed(id, title)}. */
export class Side {
  #page;
  #items = [];
  #cursor = null;
  #q = "";
  #current = null;
  #loading = null;
  #search = document.getElementById("find");
  #list = document.getElementById("conversations");
  #note = document.getElementById("side-note");
  #more = document.getElementById("side-more");
  #menu = document.getElementById("side-menu");

  constructor(page) {
    this.#page = page;
    let timer = 0;
    this.#search.addEventListener("input", () => {
      clearTimeout(timer);
      timer = setTimeout(() => this.#find(), SEARCH_AFTER);
    });
    this.#more.addEventListener("click", () => this.#fetch(this.#cursor));
    this.#menu.addEventListener("keydown", (event) => {
      const step = { ArrowDown: 1, ArrowUp: -1 }[event.key];
      if (!step) return;
      event.preventDefault();
      const items = [...this.#menu.children];
      items[(items.indexOf(document.activeElement) + step + items.length) % items.length].focus();
    });
    document.getElementById("delete-all").addEventListener("click", () => this.#confirm(null));
    document.getElementById("export-all").href = exportAddress(null, "json");
    document.getElementById("export-thumbs").href = exportAddress(null, "golden");
  }

  /** Fetches the list anew; whether conversations are kept at all. Null if the server did not say. */
  async load() {
    return this.#fetch(null);
  }

  /** Marks the conversation that is open; null for none. */
  select(id) {
    this.#current = id;
    for (const link of this.#list.querySelectorAll("a")) {
      if (link.dataset.id === id) link.setAttribute("aria-current", "page");
      else link.removeAttribute("aria-current");
    }
  }

  /** A conversation was just used: it goes to the top, before the server is asked. */
  touch({ saved: id, title, updated_at }) {
    if (this.#q && !this.#items.some((item) => item.id === id)) return;
    const known = this.#items.find((item) => item.id === id);
    this.#items = [{ ...known, id, title: known?.title || title, updated_at }, ...this.#items.filter((item) => item.id !== id)];
    this.#draw();
  }

  #find() {
    const q = this.#search.value.trim();
    if (q === this.#q) return;
    this.#q = q;
    this.#fetch(null).then(() => announce(q ? `${count(this.#items.length, "conversation")} found` : ""));
  }

  async #fetch(cursor) {
    this.#loading?.abort();
    const { signal } = (this.#loading = new AbortController());
    try {
      const { items, next_cursor, kept } = await listConversations({ q: this.#q, cursor, limit: PAGE }, signal);
      this.#items = cursor ? [...this.#items, ...items] : items;
      this.#cursor = next_cursor;
      this.#draw();
      return kept;
    } catch (error) {
      if (error.name === "AbortError") return null;
      if (!(error instanceof Problem)) throw error;
      this.#say(error.message);
      return null;
    }
  }

  #say(text) {
    this.#note.textContent = text;
    this.#note.hidden = !text;
  }

  #draw() {
    const focused = this.#list.contains(document.activeElement) ? document.activeElement.dataset.id : null;
    const groups = grouped(this.#items);
    this.#list.replaceChildren(...[...groups].map(([name, items]) => el("li", {},
      el("h3", { class: "side-age" }, name),
      el("ul", {}, items.map((item) => this.#row(item))))));
    this.select(this.#current);
    if (focused) this.#list.querySelector(`a[data-id="${CSS.escape(focused)}"]`)?.focus();
    this.#more.hidden = !this.#cursor;
    this.#say(this.#items.length ? "" : this.#q ? "Nothing found." : "Your conversations will be listed here.");
  }

  #row({ id, title, updated_at }) {
    const name = title || "Untitled";
    const more = el("button", { type: "button", class: "button quiet square side-actions", "aria-label": `Actions for: ${name}`, "aria-haspopup": "true",
      onclick: () => this.#openMenu(id, more) }, icon("more"));
    return el("li", { class: "side-row" },
      el("a", { class: "side-link", href: `#c=${id}`, "data-id": id, dir: "auto", title: `${name}\n${exactly(updated_at)}` }, name), more);
  }

  /** One menu for all rows: it stands beside the button that opened it, and closes by itself when one goes elsewhere. */
  #openMenu(id, button) {
    const item = this.#items.find((one) => one.id === id);
    const act = (run) => () => {
      this.#menu.hidePopover();
      run();
    };
    const download = (name, format, label) => el("a", { class: "menu-item", href: exportAddress(id, format), download: true, onclick: act(() => button.focus()) }, icon(name), label);
    this.#menu.replaceChildren(
      el("button", { type: "button", class: "menu-item", onclick: act(() => this.#rename(item, button)) }, icon("edit"), "Rename"),
      download("download", "markdown", "Export as Markdown"),
      download("download", "json", "Export as JSON"),
      el("button", { type: "button", class: "menu-item bad", onclick: act(() => this.#confirm(item)) }, icon("trash"), "Delete…"));
    this.#menu.showPopover();
    const at = button.getBoundingClientRect();
    const { width, height } = this.#menu.getBoundingClientRect();
    const below = at.bottom + height + 8 <= innerHeight;
    this.#menu.style.left = `${Math.max(8, Math.min(at.right - width, innerWidth - width - 8))}px`;
    this.#menu.style.top = `${Math.max(8, below ? at.bottom + 4 : at.top - height - 4)}px`;
    this.#menu.querySelector("button").focus();
  }

  #rename({ id, title }, button) {
    const row = button.closest(".side-row");
    const field = el("input", { type: "text", class: "side-rename", value: title, maxlength: "80", "aria-label": "Title of the conversation" });
    let over = false;
    const end = async (keep) => {
      if (over) return;
      over = true;
      const wanted = field.value.trim();
      if (keep && wanted && wanted !== title) await this.#renamed(id, wanted);
      this.#draw();
      this.#list.querySelector(`a[data-id="${CSS.escape(id)}"]`)?.focus();
    };
    field.addEventListener("keydown", (event) => {
      if (event.isComposing) return;
      if (event.key === "Enter") end(true);
      if (event.key === "Escape") {
        event.stopPropagation();
        end(false);
      }
    });
    field.addEventListener("blur", () => end(true));
    row.replaceChildren(field);
    field.select();
    field.focus();
  }

  async #renamed(id, title) {
    try {
      const record = await renameConversation(id, title);
      this.#items = this.#items.map((item) => (item.id === id ? { ...item, title: record.title } : item));
      this.#page.renamed(id, record.title);
      announce("Renamed.");
    } catch (error) {
      if (!(error instanceof Problem)) throw error;
      this.#say(`${error.message} ${error.remedy}`);
    }
  }

  /** Asks whether a conversation, or all of them, is meant to go: there is no way back. */
  async #confirm(item) {
    const meant = item === null
      ? await confirmDelete("Delete all conversations?", "Every question and answer goes, from the server's disk as well. Your documents stay.")
      : await confirmDelete("Delete this conversation?", `“${item.title || "Untitled"}” goes with its questions and answers, from the server's disk as well.`);
    if (meant) await this.#delete(item?.id ?? null);
  }

  async #delete(id) {
    try {
      const receipt = await deleteConversation(id);
      this.#items = id === null ? [] : this.#items.filter((item) => item.id !== id);
      this.#draw();
      this.#page.removed(id);
      announce(`Deleted: ${count(receipt.conversations, "conversation")} with ${count(receipt.turns, "question")}.`);
    } catch (error) {
      if (!(error instanceof Problem)) throw error;
      this.#say(`${error.message} ${error.remedy}`);
    }
  }
}

/** The items by their age, in their order. */
function grouped(items) {
  const groups = new Map();
  for (const item of items) {
    const name = age(item.updated_at);
    if (!groups.has(name)) groups.set(name, []);
    groups.get(name).push(item);
  }
  return groups;
}
