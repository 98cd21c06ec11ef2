/**
 * Markdown from a model to safe elements with citation markers, again and again while it streams.
 *
 * The text is hostile by assumption: a document may have told the model what to write. So raw HTML is shown as the
 * text it is, images are their alt text, links keep only http, https and mailto and show where they lead, and what
 * marked makes goes through DOMPurify with a short list of tags and attributes. Numbering and placing of citations
 * is in citations.js.
 */

import { Marked } from "./vendor/marked/marked.esm.js";
import "./vendor/dompurify/purify.min.js"; // a classic script: sets globalThis.DOMPurify
import { placeAll, withMarkers } from "./citations.js";
import { el, icon } from "./dom.js";

const TAGS = ["p", "br", "strong", "em", "del", "code", "pre", "ul", "ol", "li", "blockquote", "hr", "a",
  "h3", "table", "thead", "tbody", "tr", "th", "td"];
const PURIFY = {
  ALLOWED_TAGS: TAGS,
  ALLOWED_ATTR: ["href", "start", "align"],
  ALLOW_DATA_ATTR: false,
  ALLOW_ARIA_ATTR: false,
  ALLOWED_URI_REGEXP: /^(?:https?:\/\/|mailto:)/i,
  RETURN_DOM_FRAGMENT: true,
};

const escape = (text) => text.replace(/[&<>"']/g, (c) => `&#${c.codePointAt(0)};`);

const marked = new Marked({
  gfm: true,
  renderer: {
    html: ({ text, block }) => (block ? `<p>${escape(text)}</p>` : escape(text)),
    image: ({ text, href }) => escape(text || href),
    checkbox: ({ checked }) => (checked ? "☑ " : "☐ "),
    heading({ tokens }) {
      // Below the question, which is a second-level heading; a model's own levels have no order one could keep.
      return `<h3>${this.parser.parseInline(tokens)}</h3>`;
    },
  },
});

const purify = globalThis.DOMPurify(window);
purify.addHook("afterSanitizeAttributes", (node) => {
  if (node.nodeName !== "A" || !node.hasAttribute("href")) return;
  node.setAttribute("target", "_blank");
  node.setAttribute("rel", "noopener noreferrer nofollow");
});

// A marker travels through Markdown as a hair space (which ends a bare address and any emphasis before it) and a
// number between two private-use characters; those are taken out of the answer first, so it cannot forge one. Two more stand
// around a sentence without a source.
const FORGED = /[\uE000-\uE003]/g;
const [OPENS, CLOSES] = ["\uE002", "\u200A\uE003"];
const EDGE = /(\uE002|\u200A?\uE003)/;
const MARKER = /\u200A?\uE000(\d+)\uE001/;
const asMarker = (number) => `\u200A\uE000${number}\uE001`;

function mark(number, onCite) {
  const button = el("button", { type: "button", class: "cite", "data-source": number, "aria-label": `Source ${number}` }, String(number));
  button.addEventListener("click", () => onCite(number, button));
  return el("sup", {}, button);
}

/** Replaces the markers in the text below `root` by buttons. */
function putMarkers(root, onCite) {
  const walker = document.createTreeWalker(root, NodeFilter.SHOW_TEXT);
  const found = [];
  while (walker.nextNode()) if (MARKER.test(walker.currentNode.data)) found.push(walker.currentNode);
  for (const node of found) {
    const parts = node.data.split(MARKER); // text, number, text, number, ... text
    node.replaceWith(...parts.flatMap((part, index) => (index % 2 ? ["\u2060", mark(Number(part), onCite)] : [part])));
  }
}

/** Wraps what stands between the edges of an unsupported sentence, also across the elements that Markdown made of it. */
function markUnsupported(root) {
  const walker = document.createTreeWalker(root, NodeFilter.SHOW_TEXT);
  const nodes = [];
  while (walker.nextNode()) nodes.push(walker.currentNode);
  let inside = false;
  for (const node of nodes) {
    const parts = [];
    for (const part of node.data.split(EDGE)) {
      if (EDGE.test(part)) {
        if (inside && part !== OPENS) parts.push(el("span", { class: "hidden" }, " (not found in your documents)"));
        inside = part === OPENS;
      } else if (part) {
        parts.push(inside && part.trim() ? el("span", { class: "unsupported", title: "Not found in your documents" }, part) : part);
      }
    }
    node.replaceWith(...parts);
  }
}

function parseAddress(href) {
  return href && URL.canParse(href) ? new URL(href) : null;
}

/** A link says where it leads, because its text may say something else. */
function showDestinations(root) {
  for (const link of root.querySelectorAll("a")) {
    const address = parseAddress(link.getAttribute("href"));
    if (!address) {
      link.replaceWith(...link.childNodes); // no address, or one that the sanitiser or the browser refuses
      continue;
    }
    const where = address.host || address.pathname;
    link.title = address.href;
    if (!link.textContent.includes(where)) link.append(el("span", { class: "where" }, ` (${where})`));
    link.append(icon("external"), el("span", { class: "hidden" }, " (opens in a new tab)"));
  }
}

function renderBlock(tokens, onCite) {
  const fragment = purify.sanitize(marked.parser(tokens), PURIFY);
  showDestinations(fragment);
  markUnsupported(fragment);
  putMarkers(fragment, onCite);
  for (const table of fragment.querySelectorAll("table")) {
    // A wide table scrolls by itself, also by keyboard, instead of widening the page.
    const scroller = el("div", { class: "scroller", tabindex: "0", role: "region", "aria-label": "Table" });
    table.replaceWith(scroller);
    scroller.append(table);
  }
  return fragment;
}

/** The answer's elements below `root`. `onCite(number, button)` is called when a marker is pressed. */
export class AnswerView {
  #root;
  #onCite;
  #blocks = []; // [{raw, element}], one for each top-level block of the Markdown

  constructor(root, onCite) {
    this.#root = root;
    this.#onCite = onCite;
  }

  /** Shows `text` with its citations and the sentences without any; blocks that did not change keep their elements, selection and focus. */
  update(text, citations, unsupported = []) {
    const clean = text.replace(FORGED, "");
    const markers = placeAll(clean, citations, unsupported, OPENS, CLOSES);
    const source = withMarkers(clean, markers, (mark) => (typeof mark === "number" ? asMarker(mark) : mark));
    const tokens = marked.lexer(source).filter((token) => token.type !== "space" && token.type !== "def");
    tokens.forEach((token, index) => {
      const known = this.#blocks[index];
      if (known?.raw === token.raw) return;
      const element = known?.element ?? this.#root.appendChild(el("div", { class: "block" }));
      element.replaceChildren(renderBlock([token], this.#onCite));
      this.#blocks[index] = { raw: token.raw, element };
    });
    for (const { element } of this.#blocks.splice(tokens.length)) element.remove();
  }
}
