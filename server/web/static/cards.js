/** The cards that stand in place of an answer: a problem, a refusal, an answer that is gone. Which one is shown is turn.js's business. */

import { el } from "./dom.js";
import { count, remaining } from "./format.js";
import { passageEntry } from "./sources.js";

const CLOSEST = 3; // passages that a refusal shows

/** What went wrong and what to do. Where one may try again at a certain time, it counts down to it. */
export function problemCard({ title, message, remedy, until }) {
  const short = title.replace(/\.$/, "");
  return el("div", { class: "problem" },
    el("p", { class: "problem-title" }, short),
    message.replace(/\.$/, "") !== short && el("p", {}, message),
    remedy && el("p", {}, remedy),
    until > Date.now() && countdown(until));
}

function countdown(until) {
  const line = el("p", { class: "countdown" });
  const tick = () => {
    const left = Math.ceil((until - Date.now()) / 1000);
    line.textContent = left > 0 ? `You can try again in ${left < 55 ? `${left} s` : remaining(left)}.` : "You can try again now.";
    if (left <= 0 || (!line.isConnected && shown)) clearInterval(timer);
    shown ||= line.isConnected;
  };
  let shown = false; // it is not in the page yet when it first ticks
  const timer = setInterval(tick, 1000);
  tick();
  return line;
}

/** Why a refusal may not be the last word; empty if no document is still to come. */
export function stillComing(number) {
  return number ? `${count(number, "document")} ${number === 1 ? "is" : "are"} still being read: ask again in a while.` : "";
}

/** A refusal: what was looked for and where, what is nearest, and how to go on. `askEverywhere(question)` asks all documents. */
export function refusalCard({ domain, domainTitle, searchedFor, passages, question, done, coming }, askEverywhere) {
  const where = domain ? domainTitle || domain : "all documents";
  const closest = (passages ?? []).slice(0, CLOSEST);
  return el("div", { class: "refusal" },
    el("h3", {}, "Not in your documents"),
    el("p", {}, "I searched ", el("strong", {}, where), " for ", el("q", { dir: "auto" }, searchedFor || question),
      closest.length ? " and found nothing that answers it." : " and found nothing near it."),
    done?.withheld && el("p", {}, "An answer was written, but the documents do not say what it said, so it is not shown."),
    coming > 0 && el("p", {}, el("strong", {}, stillComing(coming))),
    closest.length ? el("h4", {}, "Closest I found") : null,
    closest.length ? el("ul", { class: "source-list" }, closest.map((passage) => passageEntry(passage))) : null,
    el("h4", {}, "How to go on"),
    el("ul", { class: "ways" },
      el("li", {}, "Ask with the words that your documents would use."),
      domain && el("li", {}, el("button", { type: "button", class: "link", onclick: () => askEverywhere(question) }, "Ask all documents"), "."),
      el("li", {}, "Add the document that holds the answer in the ", el("a", { href: "/library" }, "library"), ".")));
}

/** An answer that went with its document. */
export function goneCard() {
  return el("div", { class: "refusal" },
    el("h3", {}, "This answer is gone"),
    el("p", {}, "It was made from a document that has been deleted since, and what the document said goes with it. "
      + "Ask again to have it answered from what is there now."));
}
