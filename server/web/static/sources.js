/**
 * The sources beside an answer: the cited spans, numbered, then the other passages that were read or found.
 *
 * Every entry opens the viewer at its span. What is cited and which number it has comes from citations.js.
 */

import { el } from "./dom.js";
import { count } from "./format.js";
import { openSource } from "./viewer.js";

function place(source) {
  return [source.path, source.page ? `page ${source.page}` : null].filter(Boolean).join(" · ");
}

function titleOf(source, passages) {
  return passages.find((passage) => passage.document_id === source.document_id)?.title || source.path.split("/").pop();
}

/** What the viewer needs of a cited span. */
export function citedSource(source, passages) {
  return { ...source, title: titleOf(source, passages) };
}

function passageSource(passage) {
  return { ...passage, quote: passage.text };
}

function citedEntry(source) {
  return el("li", { class: "source", "data-source": source.number },
    el("span", { class: "source-number", "aria-hidden": "true" }, String(source.number)),
    el("div", { class: "source-body" },
      el("button", { type: "button", class: "source-title", dir: "auto", onclick: () => openSource(source) },
        el("span", { class: "hidden" }, `Source ${source.number}: `), source.title),
      el("p", { class: "path" }, place(source)),
      el("blockquote", { dir: "auto" }, source.quote)));
}

/** A passage as a card: also the refusal's "closest I found". */
export function passageEntry(passage, leftOut = false) {
  const heading = passage.heading.join(" › ");
  return el("li", { class: "source" },
    el("div", { class: "source-body" },
      el("button", { type: "button", class: "source-title", dir: "auto", onclick: () => openSource(passageSource(passage)) },
        passage.title || passage.path),
      el("p", { class: "path" }, [place(passage), heading].filter(Boolean).join(" · ")),
      leftOut && el("p", { class: "tag" }, "Found, but did not fit into the model's context"),
      el("blockquote", { dir: "auto" }, passage.text)));
}

/** The panel of one turn, or null while there is nothing to show. `open`: whether the other passages are unfolded. */
export function sourcesPanel(sources, passages, leftOut, open, onToggle) {
  const cited = sources.map((source) => citedSource(source, passages));
  const others = passages.filter((passage) => !cited.some((source) =>
    source.document_id === passage.document_id && source.start < passage.end && passage.start < source.end));
  if (!cited.length && !others.length) return null;
  const label = cited.length ? `Also read: ${count(others.length, "passage")}` : `Read: ${count(others.length, "passage")}`;
  return [
    el("h3", { class: "sources-head" }, cited.length ? "Sources" : "No sources cited"),
    cited.length ? el("ol", { class: "source-list" }, cited.map(citedEntry)) : null,
    others.length ? el("details", { class: "others", open, ontoggle: (event) => onToggle(event.target.open) },
      el("summary", {}, label),
      el("ul", { class: "source-list" }, others.map((passage) => passageEntry(passage, leftOut.includes(passage.chunk_id))))) : null,
  ].filter(Boolean);
}
