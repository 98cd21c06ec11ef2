/**
 * Markdown of an answer to elements: paragraphs, headings, lists, quotes, code, tables, emphasis; nothing else.
 *
 * The text is hostile by assumption: a document may have told the model what to write. Elements are made one by one and
 * text goes in as text, so HTML stays the text that it is. There are no images: their description is shown. An address is
 * a link only if it is http or https and stands word for word in a passage of this answer (`live`), because a model that
 * was told to can put what it knows into an address; then the whole address is shown, whatever the text before it says.
 */

import { el } from "../static/element.js";

/**
 * What stands in the text for a citation's marker and for the edges of a sentence that nothing supports: private-use characters, of
 * which `clean` takes forged ones out first.
 */
export const OPENS = "\uE002";
export const CLOSES = "\uE003";
export const marker = (number) => (number === OPENS || number === CLOSES ? number : `\uE000${number}\uE001`);
export const clean = (text) => text.replace(/[\uE000-\uE003\u0000]/g, "");

// A model nests two or three deep; deeper is shown flat, so that no text can exhaust the stack.
const DEEPEST = 6;

const FENCE = /^ {0,3}(`{3,}|~{3,})/;
const HEADING = /^ {0,3}#{1,6}\s+(.*?)\s*#*\s*$/;
const RULE = /^ {0,3}([-*_])(?:\s*\1){2,}\s*$/;
const QUOTE = /^ {0,3}> ?/;
const ITEM = /^(\s*)(?:[-*+]|(\d{1,9})[.)])\s+/;
const DELIMITERS = /^\s*\|?\s*:?-+:?\s*(?:\|\s*:?-+:?\s*)*\|?\s*$/;
const isTable = (lines, at) => lines[at].includes("|") && at + 1 < lines.length && lines[at + 1].includes("|") && DELIMITERS.test(lines[at + 1]);
const startsBlock = (lines, at) => [FENCE, HEADING, RULE, QUOTE, ITEM].some((pattern) => pattern.test(lines[at])) || isTable(lines, at);
// A line of prose that happens to begin with a year is no list.
const interrupts = (lines, at) => startsBlock(lines, at) && (ITEM.exec(lines[at])?.[2] ?? "1") === "1";

const ADDRESS = /https?:\/\/[^\s<>"'`\\^{|}\uE000-\uE003]+/gi;
const INLINE = new RegExp([
  "(?<escaped>\\\\[!-/:-@[-`{-~])",
  "(?<ticks>`+)(?<code>[^`]+|[^`].{0,2000}?[^`])\\k<ticks>(?!`)",
  "(?<image>!?)\\[(?<label>[^\\[\\]]{0,1000})\\]\\(\\s*<?(?<href>[^\\s<>()\\uE000-\\uE003]*(?:\\([^\\s<>()]*\\)[^\\s<>()]*)*)>?(?:\\s+[\"'][^\"'\\n]*[\"'])?\\s*\\)",
  `(?<address>${ADDRESS.source})`,
  "(?<stars>\\*\\*|__)(?=\\S)(?<strong>.{0,2000}?\\S)\\k<stars>",
  "(?<star>\\*|(?<![\\p{L}\\p{N}_])_)(?=\\S)(?<em>.{0,2000}?[^\\s*_])\\k<star>(?![\\p{L}\\p{N}_*])",
  "~~(?=\\S)(?<struck>.{0,2000}?\\S)~~",
].join("|"), "gsu");

/** The addresses in a text as people mean them: without the stop or bracket that follows one in a sentence. */
export function addresses(text) {
  return [...text.matchAll(ADDRESS)].map(([found]) => trimmed(found));
}

function trimmed(address) {
  let kept = address.replace(/[.,;:!?*_~\]]+$/, "");
  while (kept.endsWith(")") && kept.split(")").length > kept.split("(").length) kept = kept.slice(0, -1).replace(/[.,;:!?*_~\]]+$/, "");
  return kept;
}

/**
 * The blocks of a text: [{raw, draw}]; `raw` tells whether a block changed since the last time. `tools`: `cite(n)` makes a marker's
 * element, `live(address)` says whether an address may be a link, `unsupported` is said of a sentence without support.
 */
export function blocks(text, tools) {
  return blocksOf(text.split("\n"), tools, 0).map(({ raw, draw }) => ({ raw, draw: () => marked(draw(), tools) }));
}

/** A block in which what stands between edges is marked, also across the elements that Markdown made of it. */
function marked(block, tools) {
  const walker = document.createTreeWalker(block, NodeFilter.SHOW_TEXT);
  const nodes = [];
  while (walker.nextNode()) nodes.push(walker.currentNode);
  let inside = false;
  for (const node of nodes) {
    if (!inside && !node.data.includes(OPENS)) continue;
    node.replaceWith(...node.data.split(/([\uE002\uE003])/).filter(Boolean).flatMap((part) => {
      if (part === OPENS) inside = true;
      else if (part !== CLOSES) return [inside && part.trim() ? el("span", { class: "unsupported", title: tools.unsupported }, part) : part];
      else if (inside) {
        inside = false;
        return [el("span", { class: "unseen" }, ` (${tools.unsupported})`)];
      }
      return [];
    }));
  }
  return block;
}

function blocksOf(lines, tools, depth) {
  const found = [];
  let at = 0;
  while (at < lines.length) {
    if (!lines[at].trim()) {
      at += 1;
      continue;
    }
    const [end, draw] = blockAt(lines, at, tools, depth);
    found.push({ raw: lines.slice(at, end).join("\n"), draw });
    at = end;
  }
  return found;
}

const drawn = (lines, tools, depth) => blocksOf(lines, tools, depth).map(({ draw }) => draw());

/** The block that begins at a line: where it ends, and what draws it. */
function blockAt(lines, at, tools, depth) {
  const line = lines[at];
  const fence = FENCE.exec(line)?.[1];
  if (fence) {
    let end = at + 1;
    while (end < lines.length && !lines[end].trim().startsWith(fence)) end += 1;
    const code = lines.slice(at + 1, end).join("\n");
    return [Math.min(end + 1, lines.length), () => el("pre", { tabindex: "0" }, el("code", {}, parts(code, tools)))];
  }
  if (RULE.test(line)) return [at + 1, () => el("hr")];
  if (HEADING.test(line)) return [at + 1, () => el("p", { class: "heading", dir: "auto" }, inline(HEADING.exec(line)[1], tools))];
  if (isTable(lines, at)) return tableAt(lines, at, tools);
  if (depth < DEEPEST && QUOTE.test(line)) {
    let end = at + 1;
    while (end < lines.length && lines[end].trim() && (QUOTE.test(lines[end]) || !startsBlock(lines, end))) end += 1;
    const inner = lines.slice(at, end).map((one) => one.replace(QUOTE, ""));
    return [end, () => el("blockquote", { dir: "auto" }, drawn(inner, tools, depth + 1))];
  }
  if (depth < DEEPEST && ITEM.test(line)) return listAt(lines, at, tools, depth);
  let end = at + 1;
  while (end < lines.length && lines[end].trim() && !interrupts(lines, end)) end += 1;
  return [end, () => el("p", { dir: "auto" }, withBreaks(lines.slice(at, end), tools))];
}

function listAt(lines, at, tools, depth) {
  const indent = ITEM.exec(lines[at])[1].length;
  const number = ITEM.exec(lines[at])[2];
  const items = [];
  let content = 0; // where the text of the last item begins, in characters
  let end = at;
  while (end < lines.length) {
    const item = ITEM.exec(lines[end]);
    const margin = /^\s*/.exec(lines[end])[0].length;
    if (item && item[1].length <= indent && Boolean(item[2]) === Boolean(number)) {
      content = item[0].length;
      items.push([lines[end].slice(content)]);
    } else if (item ? margin > indent : lines[end].trim() && (margin > indent || !startsBlock(lines, end))) items.at(-1).push(lines[end].slice(Math.min(margin, content)));
    else if (!lines[end].trim() && continues(lines, end + 1, indent, number)) items.at(-1).push("");
    else break;
    end += 1;
  }
  return [end, () => el(number ? "ol" : "ul", { dir: "auto", start: number && number !== "1" ? number : null }, items.map((item) => el("li", {}, itemNodes(item, tools, depth))))];
}

/** Whether a list goes on after an empty line: with an item of its kind, or with what is indented below one. */
function continues(lines, at, indent, number) {
  if (at >= lines.length) return false;
  const item = ITEM.exec(lines[at]);
  return item ? Boolean(item[2]) === Boolean(number) || item[1].length > indent : /^\s*/.exec(lines[at])[0].length > indent && Boolean(lines[at].trim());
}

/** An item of one paragraph is shown without one, so that a list stays tight. */
function itemNodes(item, tools, depth) {
  const found = blocksOf(item, tools, depth + 1).map(({ draw }) => draw());
  return found.flatMap((node, index) => (index === 0 && node.tagName === "P" && !node.className ? [...node.childNodes] : [node]));
}

function cells(line) {
  return line.trim().replace(/^\||\|$/g, "").split(/(?<!\\)\|/).map((cell) => cell.trim().replace(/\\\|/g, "|"));
}

function tableAt(lines, at, tools) {
  let end = at + 2;
  while (end < lines.length && lines[end].includes("|")) end += 1;
  const row = (line, tag) => el("tr", {}, cells(line).map((cell) => el(tag, { dir: "auto" }, inline(cell, tools))));
  return [end, () => el("div", { class: "scroller", tabindex: "0" },
    el("table", {}, el("thead", {}, row(lines[at], "th")), el("tbody", {}, lines.slice(at + 2, end).map((line) => row(line, "td")))))];
}

function withBreaks(lines, tools) {
  const hard = lines.map((line) => / {2,}$|\\$/.test(line));
  // Emphasis may run over a line's end, so the lines go through together; a hard break is a character that no text has here.
  const text = lines.map((line, index) => line.trim().replace(/\\$/, "") + (hard[index] && index < lines.length - 1 ? "\u0000" : "")).join("\n");
  return inline(text, tools);
}

function inline(text, tools, depth = 0) {
  const nodes = [];
  let from = 0;
  for (const match of text.matchAll(INLINE)) {
    nodes.push(...parts(text.slice(from, match.index), tools));
    from = match.index + match[0].length;
    const { escaped, code, image, label, href, address, strong, em, struck } = match.groups;
    const within = (tag, content) => el(tag, {}, depth < DEEPEST ? inline(content, tools, depth + 1) : parts(content, tools));
    if (escaped) nodes.push(escaped[1]);
    else if (code !== undefined) nodes.push(el("code", {}, parts(code.trim() || code, tools)));
    else if (image) nodes.push(...parts(label || href, tools));
    else if (href !== undefined) nodes.push(...linked(label, href, tools, depth));
    else if (address) {
      const kept = trimmed(address);
      from = match.index + kept.length;
      nodes.push(...linked("", kept, tools, depth));
    } else if (strong !== undefined) nodes.push(within("strong", strong));
    else if (em !== undefined) nodes.push(within("em", em));
    else nodes.push(within("del", struck));
  }
  return [...nodes, ...parts(text.slice(from), tools)];
}

/** What a link says, then its address: as a link if it is live, else as text; one that leads nowhere by itself is left out. */
function linked(label, href, tools, depth) {
  const said = label && label !== href && depth < DEEPEST ? inline(label, tools, depth + 1) : [];
  if (!/^[a-z][a-z\d+.-]*:/i.test(href)) return said.length ? said : [label || href];
  const url = /^https?:/i.test(href) && URL.canParse(href) ? new URL(href) : null;
  // As the browser will read it: other alphabets spelled out, no name and password in front that look like a host.
  const shown = url && !url.username && !url.password && tools.live(href)
    ? el("a", { href: url.href, target: "_blank", rel: "noopener noreferrer nofollow" }, url.href)
    : href;
  return said.length ? [...said, " (", shown, ")"] : [shown];
}

/** Text with its markers and hard breaks as elements. */
function parts(text, tools) {
  return text.split(/(\uE000\d+\uE001|\u0000)/).filter(Boolean).map((part) => {
    if (part === "\u0000") return el("br");
    return part[0] === "\uE000" ? tools.cite(Number(part.slice(1, -1))) : part;
  });
}
