/**
 * The tree of domains and folders: a flat list of tree items with levels, one in the tab order, keys as the ARIA practices have them
 * (https://www.w3.org/WAI/ARIA/apg/patterns/treeview/). Folders are fetched when their parent is opened.
 */

import { listFolders, Problem } from "./api.js";
import { el, icon } from "./dom.js";
import { count } from "./format.js";

const ALL = ""; // the path of the item for everything
const TYPED = 700; // ms in which letters belong together
const AT_ONCE = 100; // paths in one call, as the server has it
const LOOK_EVERY = 2_000; // ms between two counts of the folders while a bulk comes in: each goes through their documents

/** `choose(path)` is called for the item that is chosen: "" for all, else a domain or a folder. */
export class Tree {
  #root;
  #choose;
  #domains = [];
  #below = new Map(); // path -> its folders, as the server told
  #open = new Set();
  #chosen = ALL;
  #at = ALL; // the item in the tab order
  #typed = "";
  #typedAt = 0;
  #fetching = null;
  #lookedAt = -Infinity;
  #timer = 0;

  constructor(root, choose) {
    this.#root = root;
    this.#choose = choose;
    root.addEventListener("keydown", (event) => this.#key(event));
    root.addEventListener("click", (event) => {
      const item = event.target.closest("[role=treeitem]");
      if (!item) return;
      if (event.target.closest(".twisty") && item.hasAttribute("aria-expanded")) this.#toggle(item.dataset.path);
      else this.#pick(item.dataset.path);
    });
    root.addEventListener("focusin", (event) => this.#stand(event.target.dataset.path));
  }

  /** The domains, as the server lists them, and the folders of what is open. */
  load(domains) {
    this.#domains = domains;
    this.#draw();
    this.#timer ||= setTimeout(() => this.#fetch(), Math.max(0, this.#lookedAt + LOOK_EVERY - performance.now()));
  }

  /** Marks what is chosen, and opens the way to it. */
  select(path) {
    this.#chosen = path;
    this.#at = path;
    const parts = path.split("/");
    const closed = parts.slice(0, -1).map((_, i) => parts.slice(0, i + 1).join("/")).filter((above) => !this.#open.has(above));
    closed.forEach((above) => this.#open.add(above));
    this.#draw();
    if (closed.length) this.#fetch();
  }

  async #fetch() {
    clearTimeout(this.#timer);
    this.#timer = 0;
    this.#lookedAt = performance.now();
    this.#fetching?.abort();
    const { signal } = (this.#fetching = new AbortController());
    const wanted = [ALL, ...this.#open];
    try {
      const found = [];
      for (let at = 0; at < wanted.length; at += AT_ONCE) found.push(...await listFolders(wanted.slice(at, at + AT_ONCE), signal));
      for (const path of wanted) this.#below.set(path, found.filter((folder) => parentOf(folder.path) === path));
      this.#draw();
    } catch (error) {
      // The list says what is wrong; the tree stays as it was.
      if (error.name !== "AbortError" && !(error instanceof Problem)) throw error;
    }
  }

  /** What is to be seen, from the top: {path, name, level, documents, failed, open}; `open` is null for what has no folders. */
  #items() {
    const counted = new Map((this.#below.get(ALL) ?? []).map((folder) => [folder.path, folder]));
    const domains = this.#domains.map(({ name, title, documents, error }) => {
      const all = Object.values(documents).reduce((sum, number) => sum + number, 0);
      return { path: name, name: title || name, level: 1, documents: all, failed: documents.failed ?? 0, deeper: counted.get(name)?.deeper ?? false, error };
    });
    const total = domains.reduce((sum, { documents }) => sum + documents, 0);
    const items = [{ path: ALL, name: "All documents", level: 1, documents: total, failed: 0, open: null }];
    const add = (item) => {
      const open = item.deeper ? this.#open.has(item.path) : null;
      items.push({ ...item, open });
      if (!open) return;
      for (const folder of this.#below.get(item.path) ?? []) add({ ...folder, name: folder.path.split("/").at(-1), level: item.level + 1 });
    };
    domains.forEach(add);
    return items;
  }

  #draw() {
    const items = this.#items();
    if (!items.some(({ path }) => path === this.#at)) this.#at = items.some(({ path }) => path === this.#chosen) ? this.#chosen : ALL;
    const known = new Map([...this.#root.children].map((item) => [item.dataset.path, item]));
    const focused = this.#root.contains(document.activeElement);
    const drawn = items.map((item) => {
      const element = known.get(item.path) ?? el("div", { role: "treeitem", class: "place", "data-path": item.path });
      known.delete(item.path);
      const key = JSON.stringify([item.name, item.level, item.documents, item.failed, item.open, item.error]);
      if (element.dataset.key !== key) {
        element.dataset.key = key;
        this.#fill(element, item);
      }
      element.setAttribute("aria-selected", String(item.path === this.#chosen));
      element.tabIndex = item.path === this.#at ? 0 : -1;
      return element;
    });
    for (const element of known.values()) element.remove();
    // Only what is out of place moves: an element that is put in anew loses the focus.
    let previous = null;
    for (const element of drawn) {
      const place = previous ? previous.nextSibling : this.#root.firstChild;
      if (element !== place) this.#root.insertBefore(element, place);
      previous = element;
    }
    if (focused && !this.#root.contains(document.activeElement)) this.#element(this.#at)?.focus();
  }

  #fill(element, { path, name, level, documents, failed, open, error }) {
    element.setAttribute("aria-level", String(level));
    element.dataset.level = Math.min(level, 8);
    if (open === null) element.removeAttribute("aria-expanded");
    else element.setAttribute("aria-expanded", String(open));
    const label = [name, count(documents, "document"), failed ? `${failed} failed` : null, error ? "its settings have a mistake" : null].filter(Boolean).join(", ");
    element.setAttribute("aria-label", label);
    element.title = path || name;
    const bad = failed || error ? [el("span", { class: "place-bad" }, icon("alert"))] : [];
    element.replaceChildren(
      el("span", { class: "twisty", "aria-hidden": "true" }, open === null ? null : icon("chevron")),
      icon(path === ALL ? "books" : "folder"),
      el("span", { class: "place-name", dir: "auto" }, name),
      ...bad,
      el("span", { class: "number" }, documents.toLocaleString("en")));
  }

  #element(path) {
    return [...this.#root.children].find((item) => item.dataset.path === path);
  }

  #stand(path) {
    if (path === undefined || path === this.#at) return;
    this.#at = path;
    for (const item of this.#root.children) item.tabIndex = item.dataset.path === path ? 0 : -1;
  }

  #go(path) {
    this.#stand(path);
    this.#element(path)?.focus();
  }

  #pick(path) {
    this.#stand(path);
    if (path === this.#chosen) return;
    this.select(path);
    this.#choose(path);
  }

  #toggle(path, open = !this.#open.has(path)) {
    if (open) this.#open.add(path);
    else this.#open.delete(path);
    if (!open && this.#at.startsWith(`${path}/`)) this.#at = path; // it goes out of sight
    this.#draw();
    if (open) this.#fetch();
  }

  #key(event) {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const items = this.#items();
    const at = items.findIndex(({ path }) => path === this.#at);
    const here = items[at];
    if (!here) return;
    const keys = {
      ArrowDown: () => items[at + 1] && this.#go(items[at + 1].path),
      ArrowUp: () => items[at - 1] && this.#go(items[at - 1].path),
      Home: () => this.#go(items[0].path),
      End: () => this.#go(items.at(-1).path),
      ArrowRight: () => {
        if (here.open === false) this.#toggle(here.path, true);
        else if (here.open && items[at + 1]?.level > here.level) this.#go(items[at + 1].path);
      },
      ArrowLeft: () => {
        if (here.open) this.#toggle(here.path, false);
        else if (here.level > 1) this.#go(parentOf(here.path));
      },
      Enter: () => this.#pick(here.path),
      " ": () => this.#pick(here.path),
    };
    const typing = this.#typed && performance.now() - this.#typedAt < TYPED; // a space may be within a name
    const act = (typing && event.key === " " ? null : keys[event.key]) ?? (event.key.length === 1 ? () => this.#type(event.key, items, at) : null);
    if (!act) return;
    event.preventDefault();
    act();
  }

  /** Goes to the next item whose name begins with what was typed. */
  #type(letter, items, at) {
    const now = performance.now();
    this.#typed = now - this.#typedAt < TYPED ? this.#typed + letter : letter;
    this.#typedAt = now;
    const wanted = this.#typed.toLowerCase();
    const from = this.#typed.length > 1 ? at : at + 1; // of one letter the next one, of several the one it stands at, too
    const found = [...items.slice(from), ...items.slice(0, from)].find(({ name }) => name.toLowerCase().startsWith(wanted));
    if (found) this.#go(found.path);
  }
}

function parentOf(path) {
  return path.includes("/") ? path.slice(0, path.lastIndexOf("/")) : ALL;
}
