/**
 * The source viewer: the text of a document in a dialog, opened at a quote, which is marked. Both pages use it.
 *
 * Texts may be many megabytes, so only a window around the quote is in the page; it grows by buttons. The text
 * goes in as text, never as markup. Offsets from the server count Unicode code points; see `codePointIndex`.
 */

import { documentText, fileAddress, Problem } from "./api.js";
import { announce, el, icon } from "./dom.js";
import { count } from "./format.js";

const AROUND = 4_000; // characters shown on each side of a quote at first: some two screens
const STEP = 20_000; // characters that "show more" adds
const KEEP = 4; // texts remembered, because several sources of an answer are often in one document

const texts = new Map(); // document id -> text, the last used ones

/**
 * The UTF-16 index of a code point index. Python counts code points, a JavaScript string counts code units, and
 * they part at the first emoji. `from` = [codePoints, units] of a known earlier position saves counting again.
 */
export function codePointIndex(text, codePoints, from = [0, 0]) {
  let [seen, unit] = from;
  while (seen < codePoints && unit < text.length) {
    const code = text.charCodeAt(unit);
    const pair = code >= 0xd800 && code < 0xdc00 && (text.charCodeAt(unit + 1) & 0xfc00) === 0xdc00;
    unit += pair ? 2 : 1;
    seen += 1;
  }
  return unit;
}

/**
 * Where the quote is: [start, end] in UTF-16, or null. If the text at the offsets is not the quote, the document
 * has changed since the answer; then its first occurrence counts, with `moved` true.
 */
export function locate(text, { start, end, quote }) {
  const from = codePointIndex(text, start);
  const to = codePointIndex(text, end, [start, from]);
  if (quote === undefined || text.slice(from, to) === quote) return { range: [from, to], moved: false };
  const elsewhere = text.indexOf(quote);
  return { range: elsewhere < 0 ? null : [elsewhere, elsewhere + quote.length], moved: true };
}

async function textOf(id, signal) {
  const known = texts.get(id);
  if (known !== undefined) return known;
  const text = await documentText(id, signal);
  texts.set(id, text);
  if (texts.size > KEEP) texts.delete(texts.keys().next().value);
  return text;
}

/** Forgets a text, because its document changed or went. */
export function forgetText(id) {
  texts.delete(id);
}

const dialog = el("dialog", { class: "viewer", "aria-labelledby": "viewer-title" });
document.body.append(dialog);
let opening = null; // AbortController of the text being fetched
dialog.addEventListener("close", () => {
  opening?.abort();
  dialog.replaceChildren();
});
// A press on the backdrop has the dialog itself as its target, because its content covers all of it.
dialog.addEventListener("click", (event) => event.target === dialog && dialog.close());

/**
 * Opens the viewer. `source`: document_id, path, title, page, and start, end, quote where a passage is meant.
 * Focus returns to where it was when the dialog closes (the browser's own work).
 */
export async function openSource(source) {
  const body = el("div", { class: "viewer-body", tabindex: "0", role: "region", "aria-label": "Text of the document" });
  const note = el("p", { class: "viewer-note", hidden: true });
  dialog.replaceChildren(el("div", { class: "viewer-sheet" }, head(source), note, body));
  body.append(el("p", { class: "pending" }, "Opening…"));
  if (!dialog.open) dialog.showModal();
  opening?.abort();
  opening = new AbortController();
  const { signal } = opening;
  try {
    const text = await textOf(source.document_id, signal);
    if (!signal.aborted) show(body, note, text, source);
  } catch (error) {
    if (error.name === "AbortError") return;
    if (!(error instanceof Problem)) throw error;
    body.replaceChildren(problem(error, () => openSource(source)));
  }
}

function head(source) {
  const where = [source.path, source.page ? `page ${source.page}` : null].filter(Boolean).join(" · ");
  return el("header", { class: "viewer-head" },
    el("div", { class: "viewer-name" },
      el("h2", { id: "viewer-title", dir: "auto" }, source.title || source.path),
      el("p", { class: "path" }, where)),
    el("a", { class: "button quiet", href: fileAddress(source.document_id, source.page), target: "_blank", rel: "noopener" },
      icon("external"), source.page ? `Page ${source.page}` : "Original", el("span", { class: "hidden" }, " of the file, opens in a new tab")),
    el("button", { type: "button", class: "button quiet square", "aria-label": "Close", onclick: () => dialog.close() }, icon("close")));
}

function problem(error, retry) {
  return el("div", { class: "problem", role: "alert" },
    el("p", { class: "problem-title" }, error.message),
    error.remedy && el("p", {}, error.remedy),
    el("button", { type: "button", class: "button", onclick: retry }, icon("retry"), "Try again"));
}

function show(body, note, text, source) {
  const located = source.start === undefined ? { range: [0, 0], moved: false } : locate(text, source);
  note.hidden = !located.moved;
  if (located.moved) {
    note.textContent = located.range
      ? "This document has changed since the answer was written; this is where the quote stands now."
      : "This document has changed since the answer was written, and the quote is no longer in it.";
  }
  const [start, end] = located.range ?? [0, 0];
  if (!text) {
    body.replaceChildren(el("p", { class: "pending" }, "This document holds no text."));
    return;
  }
  let from = lineStart(text, start - AROUND);
  let to = lineEnd(text, end + AROUND);
  const marked = end > start ? el("mark", { id: "quote" }, text.slice(start, end)) : null;
  const content = el("div", { class: "viewer-text", dir: "auto" },
    text.slice(from, start), marked, text.slice(end, to));
  const above = el("button", { type: "button", class: "button more", onclick: showAbove });
  const below = el("button", { type: "button", class: "button more", onclick: showBelow });
  label();
  body.replaceChildren(above, content, below);
  // Measured, not scrollIntoView(): that would also scroll the page behind the dialog.
  const place = marked ? marked.offsetTop - body.offsetTop - body.clientHeight / 3 : 0;
  body.scrollTop = Math.max(0, place);
  if (marked) announce(`Opened at the quote: ${text.slice(start, end)}`);

  function label() {
    above.hidden = from === 0;
    below.hidden = to === text.length;
    above.textContent = `Show more above (${count(from, "character")} left)`;
    below.textContent = `Show more below (${count(text.length - to, "character")} left)`;
  }

  function showAbove() {
    const next = lineStart(text, from - STEP);
    const height = body.scrollHeight;
    content.prepend(text.slice(next, from));
    from = next;
    label();
    body.scrollTop += body.scrollHeight - height; // what one was reading stays where it was
    if (above.hidden) body.focus({ preventScroll: true });
  }

  function showBelow() {
    const next = lineEnd(text, to + STEP);
    content.append(text.slice(to, next));
    to = next;
    label();
    if (below.hidden) body.focus({ preventScroll: true });
  }
}

const NEAR = 500; // how far a window's edge may move to end at a line's end, not within it

function lineStart(text, index) {
  if (index <= 0) return 0;
  const newline = text.lastIndexOf("\n", index);
  return newline >= index - NEAR && newline >= 0 ? newline + 1 : whole(text, index);
}

function lineEnd(text, index) {
  if (index >= text.length) return text.length;
  const newline = text.indexOf("\n", index);
  return newline >= 0 && newline <= index + NEAR ? newline + 1 : whole(text, index);
}

/** Never between the two halves of a surrogate pair. */
function whole(text, index) {
  return (text.charCodeAt(index) & 0xfc00) === 0xdc00 ? index - 1 : index;
}
