/**
 * Sources: the list below an answer, and the sheet that shows a quote in its passage, with document, heading and page.
 *
 * The passage came with the answer, so opening one asks nothing of the server. The document itself is offered only if the
 * server says that this key may read it. Offsets from the server count code points; a JavaScript string counts UTF-16 units.
 */

import { el } from "../static/element.js";
import { icon } from "./icons.js";
import { callOptions } from "./stream.js";

const nameOf = (path) => path.slice(path.lastIndexOf("/") + 1);

/** A cited span with what its passage knows of the document: {number, title, page, heading, before, quote, after, ...}. */
export function described(source, passages) {
  const passage = passages.find((one) => one.document_id === source.document_id && one.start <= source.start && source.end <= one.end)
    ?? passages.find((one) => one.document_id === source.document_id);
  const around = { before: "", quote: source.quote, after: "" };
  if (passage && passage.start <= source.start) {
    const points = Array.from(passage.text);
    const [from, to] = [source.start - passage.start, source.end - passage.start];
    if (points.slice(from, to).join("") === source.quote) {
      around.before = points.slice(0, from).join("");
      around.after = points.slice(to).join("");
    }
  }
  const { number, document_id, path, page } = source;
  return { number, document_id, path, page, title: passage?.title || nameOf(path), heading: passage?.heading ?? [], ...around };
}

/** A passage as a source without a quote: what a refusal shows. */
export function asSource({ document_id, path, page, title, heading, text }) {
  return { number: null, document_id, path, page, title: title || nameOf(path), heading, before: text, quote: "", after: "" };
}

/** "Opening hours, page 3": what a source is called in a list. */
function called({ title, page }, say) {
  return page ? `${title}, ${say("page", { n: page })}` : title;
}

/** A list of sources; `open(source, button)` when one is pressed. */
export function sourceList(sources, say, open) {
  return el("ol", { class: "sources" }, sources.map((source) => el("li", {},
    el("button", { type: "button", class: "source", onclick: (event) => open(source, event.currentTarget) },
      source.number && el("span", { class: "number" }, String(source.number)), el("span", { class: "name", dir: "auto" }, called(source, say))))));
}

/** The sheet over the conversation that shows one source. */
export class SourceSheet {
  #options;
  #parts;
  #opener = null;
  #readable = new Map(); // document id -> promise of whether this key may read the document

  /** `covered`: what is out of reach while the sheet is open. */
  constructor(options, covered) {
    const { say } = options.words;
    this.#options = options;
    this.covered = covered;
    this.#parts = {
      title: el("h3", { tabindex: "-1", dir: "auto" }),
      where: el("p", { class: "where", dir: "auto" }),
      text: el("blockquote", { class: "passage", tabindex: "0", dir: "auto" }),
      foot: el("div", { class: "sheet-foot" }),
    };
    this.element = el("section", { class: "sheet", hidden: true, "aria-label": say("quote") },
      el("div", { class: "sheet-head" },
        el("button", { type: "button", class: "tool back", "aria-label": say("back"), title: say("back"), onclick: () => this.close() }, icon("back")),
        this.#parts.title),
      this.#parts.where, this.#parts.text, this.#parts.foot);
  }

  get isOpen() {
    return !this.element.hidden;
  }

  /** Shows a source; focus goes to its title, and back to `opener` when it is closed. */
  open(source, opener) {
    const { title, where, text, foot } = this.#parts;
    this.#opener = opener;
    title.textContent = called(source, this.#options.words.say);
    where.textContent = [source.path, ...source.heading].join(" › ");
    const quote = source.quote && el("mark", {}, source.quote);
    text.replaceChildren(...[source.before, quote, source.after].filter(Boolean));
    foot.replaceChildren();
    this.#toggle(true);
    title.focus();
    text.scrollTop = quote ? Math.max(0, quote.offsetTop - text.offsetTop - text.clientHeight / 3) : 0;
    this.#offer(source);
  }

  /** Back to the conversation. */
  close() {
    this.#toggle(false);
    this.#opener?.focus();
    this.#opener = null;
  }

  #toggle(open) {
    this.element.hidden = !open;
    for (const one of this.covered) one.inert = open;
  }

  async #offer({ document_id, path }) {
    const { say } = this.#options.words;
    const readable = await this.#mayRead(document_id);
    if (!readable || !this.isOpen) return;
    const button = el("button", { type: "button", class: "button", onclick: () => this.#download(document_id, nameOf(path)) }, icon("open"), say("open"));
    this.#parts.foot.replaceChildren(button);
  }

  #mayRead(id) {
    if (!this.#options.documents) return false;
    if (!this.#readable.has(id)) {
      this.#readable.set(id, fetch(this.#address(id), callOptions(this.#options.key)).then((response) => response.ok, () => false));
    }
    return this.#readable.get(id);
  }

  #address(id, rest = "") {
    return new URL(`rag/documents/${encodeURIComponent(id)}${rest}`, this.#options.server);
  }

  /** As a download and never shown in place: a page made from its bytes would run with the rights of the page around the widget. */
  async #download(id, name) {
    const response = await fetch(this.#address(id, "/file"), callOptions(this.#options.key)).catch(() => null);
    if (!response?.ok) {
      this.#parts.foot.replaceChildren(el("p", { class: "note" }, this.#options.words.say("unreachable")));
      return;
    }
    const address = URL.createObjectURL(await response.blob());
    el("a", { href: address, download: name }).click();
    setTimeout(() => URL.revokeObjectURL(address), 60_000);
  }
}
