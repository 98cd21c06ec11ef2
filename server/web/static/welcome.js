/** What an empty conversation shows: how many documents are ready, questions to try, or how to begin. */

import { el } from "./dom.js";
import { count } from "./format.js";

// The user's guide ships as a domain; these are questions it answers, whatever else there is.
const GUIDE_EXAMPLES = ["How do I add a domain?", "Which file formats can it read?", "Does anything leave my machine?", "How do I delete a document?"];

function documentsIn(domain) {
  return Object.values(domain.documents).reduce((sum, number) => sum + number, 0);
}

/** The elements. `chosen` is the domain that is asked, if it is one; `ask(question)` asks an example. */
export function welcomeParts(domains, chosen, ask) {
  if (!domains.reduce((sum, domain) => sum + documentsIn(domain), 0)) return [firstSteps()];
  const guide = domains.some(({ name }) => name === "guide") && (!chosen || chosen.name === "guide");
  const indexed = (chosen ? [chosen] : domains).reduce((sum, domain) => sum + (domain.documents.indexed ?? 0), 0);
  const from = chosen ? `in ${chosen.title || chosen.name}` : `in ${count(domains.length, "domain")}`;
  const ready = el("p", { class: "ready-line" }, `${count(indexed, "document")} ready ${from}.`, chosen?.description ? ` ${chosen.description}` : "");
  if (!guide) return [ready];
  return [
    ready,
    el("h3", { class: "examples-head" }, "Try a question about Reading Room itself"),
    el("ul", { class: "examples" }, GUIDE_EXAMPLES.map((question) =>
      el("li", {}, el("button", { type: "button", class: "example", onclick: () => ask(question) }, question)))),
  ];
}

function firstSteps() {
  return el("div", { class: "steps" },
    el("h3", {}, "There are no documents yet"),
    el("ol", {},
      el("li", {}, "Make a folder for a subject in ", el("code", {}, "corpora/"), ", for example ", el("code", {}, "corpora/handbook/"), "."),
      el("li", {}, "Put documents into it: PDF, Word, Markdown, HTML, text or CSV. They are read as soon as they are saved."),
      el("li", {}, "Or add them from here, in the ", el("a", { href: "/library#add" }, "library"), ".")));
}
