/**
 * One question and its answer: runs the question, shows every state of it, and offers what can be done with it.
 *
 * The record (transcript.js) is the truth, and `#draw` shows it; nothing is read back from the page. Asking itself
 * is in api.js, Markdown in render.js, the sources panel in sources.js, the box one types into in chat.js.
 */

import { ask, Problem, readiness } from "./api.js";
import { numberSources, placeMarkers, withMarkers } from "./citations.js";
import { announce, el, icon } from "./dom.js";
import { count, duration } from "./format.js";
import { AnswerView } from "./render.js";
import { citedSource, passageEntry, sourcesPanel } from "./sources.js";
import { openSource } from "./viewer.js";

const READY_EVERY = 2_000; // ms between two looks at /ready; loading the models takes seconds
const CLOSEST = 3; // passages that a refusal shows

/** Shows the turn `record` and, by `run()`, answers it. `room` is what the page offers: {save, edit, askEverywhere}. */
export class Turn {
  #record;
  #room;
  #abort = null;
  #waiting = ""; // why the question has not been asked yet, if so
  #place = 0; // in the queue, the next being 1
  #frame = 0;
  #othersOpen = false;
  #answer;
  #parts;

  constructor(record, room) {
    this.#record = record;
    this.#room = room;
    this.#parts = {
      status: el("p", { class: "status", hidden: true }),
      answer: el("div", { class: "answer prose", dir: "auto" }),
      notes: el("div", { class: "notes" }),
      foot: el("footer", { class: "turn-foot" }),
      sources: el("aside", { class: "sources", "aria-label": `Sources for: ${record.question.slice(0, 80)}` }),
    };
    this.#answer = new AnswerView(this.#parts.answer, (number) => this.#open(number));
    const long = record.question.length > 280;
    this.element = el("article", { class: "turn" },
      el("header", { class: "turn-head" },
        el("h2", { class: long ? "question long" : "question", dir: "auto", tabindex: long ? "0" : null }, record.question),
        record.domain && el("p", { class: "scope" }, `Asked in ${record.domainTitle || record.domain}`)),
      el("div", { class: "turn-body" },
        el("div", { class: "turn-answer" }, this.#parts.status, this.#parts.answer, this.#parts.notes, this.#parts.foot),
        this.#parts.sources));
    for (const type of ["pointerover", "pointerout", "focusin", "focusout"]) {
      this.element.addEventListener(type, (event) => this.#highlight(event));
    }
    this.#draw();
  }

  get record() {
    return this.#record;
  }

  /** Asks (again), until the answer is there, fails, or is stopped; which of these is then in the record. */
  async run() {
    const record = this.#record;
    Object.assign(record, { state: "asking", text: "", passages: null, searchedFor: "", leftOut: [], citations: [], done: null, problem: null });
    this.#abort = new AbortController();
    this.#waiting = "";
    this.#draw();
    announce("Searching");
    try {
      await this.#askWhenReady(this.#abort.signal);
      record.state = "done";
    } catch (error) {
      if (error.name === "AbortError") {
        record.state = "stopped";
      } else if (error instanceof Problem) {
        record.state = "failed";
        record.problem = { code: error.code, title: error.title, message: error.message, remedy: error.remedy, limit: error.limit };
      } else {
        record.state = "failed";
        record.problem = { code: "page", title: "This page failed", message: String(error), remedy: "Reload the page and ask again." };
        console.error(error);
      }
    }
    this.#abort = null;
    this.#room.save();
    this.#draw();
    this.#announceEnd();
  }

  stop() {
    this.#abort?.abort();
  }

  /** While the models load, waits for /ready and asks again by itself. */
  async #askWhenReady(signal) {
    for (;;) {
      try {
        return await this.#askOnce(signal);
      } catch (error) {
        if (!(error instanceof Problem) || error.code !== "not_ready") throw error;
        await this.#untilReady(error.message, signal);
      }
    }
  }

  async #untilReady(message, signal) {
    this.#waiting = message;
    this.#draw();
    announce("The server is still starting. The question will be asked as soon as it is ready.");
    for (;;) {
      await pause(READY_EVERY, signal);
      const { ready, message: reason } = await readiness(signal);
      if (ready) break;
      this.#waiting = reason || message;
      this.#draw();
    }
    this.#waiting = "";
    this.#draw();
  }

  async #askOnce(signal) {
    const record = this.#record;
    for await (const { event, data } of ask(record.question, record.domain, signal)) {
      if (event === "passages") {
        Object.assign(record, { passages: data.passages, searchedFor: data.searched_for, leftOut: data.left_out ?? [] });
        announce(`Reading ${count(data.passages.length, "passage")}`);
      } else if (event === "queued") {
        this.#place = data.position;
        if (data.position === 1) announce("This question is the next.");
      } else if (event === "token") {
        record.text += data.text;
      } else if (event === "citation") {
        record.citations.push(data);
      } else if (event === "done") {
        const { answer, refused, citations, usage, timings, model, finish_reason } = data;
        Object.assign(record, { text: answer, citations, done: { refused, usage, timings, model, finish_reason } });
      }
      this.#drawSoon();
    }
  }

  /** At most one drawing a frame, however fast the tokens come. */
  #drawSoon() {
    this.#frame ||= requestAnimationFrame(() => this.#draw());
  }

  #draw() {
    cancelAnimationFrame(this.#frame);
    this.#frame = 0;
    const record = this.#record;
    const refused = record.done?.refused ?? false;
    this.element.dataset.state = refused ? "refused" : record.state;
    this.element.setAttribute("aria-busy", String(record.state === "asking"));
    this.#drawStatus();
    this.#answer.update(refused ? "" : record.text, refused ? [] : record.citations);
    this.#parts.answer.hidden = refused || !record.text;
    this.#parts.notes.replaceChildren(...this.#notes(refused));
    this.#drawFoot(refused);
    this.#drawSources(refused);
  }

  #drawStatus() {
    const { status } = this.#parts;
    const { state, text, passages, leftOut } = this.#record;
    status.hidden = state !== "asking" || Boolean(text);
    if (status.hidden) return;
    if (this.#waiting) status.textContent = `${this.#waiting} The question will be asked as soon as it is ready.`;
    else if (this.#place === 1) status.textContent = "Waiting for another answer to end: this question is the next…";
    else if (this.#place) status.textContent = `Waiting: ${count(this.#place - 1, "question")} before this one…`;
    else if (passages) status.textContent = `Reading ${count(passages.length - leftOut.length, "passage")}…`;
    else status.textContent = "Searching…";
  }

  #notes(refused) {
    const { state, problem, done, citations } = this.#record;
    if (state === "failed") return [this.#problemCard(problem)];
    if (refused) return [this.#refusalCard()];
    const note = (text) => el("p", { class: "note" }, text);
    const notes = [];
    if (state === "stopped") notes.push(note("Stopped before the end."));
    if (done?.finish_reason === "length") notes.push(note("The answer reached its length limit and ends here."));
    if (state === "done" && !citations.length) {
      notes.push(note("No sentence of this answer could be matched to your documents. Treat it with care."));
    }
    return notes;
  }

  #problemCard({ title, message, remedy }) {
    return el("div", { class: "problem" },
      el("p", { class: "problem-title" }, title.replace(/\.$/, "")),
      message.replace(/\.$/, "") !== title.replace(/\.$/, "") && el("p", {}, message),
      remedy && el("p", {}, remedy));
  }

  #refusalCard() {
    const { domain, domainTitle, searchedFor, passages, question } = this.#record;
    const where = domain ? domainTitle || domain : "all documents";
    const closest = (passages ?? []).slice(0, CLOSEST);
    return el("div", { class: "refusal" },
      el("h3", {}, "Not in your documents"),
      el("p", {}, "I searched ", el("strong", {}, where), " for ", el("q", { dir: "auto" }, searchedFor || question),
        closest.length ? " and found nothing that answers it." : " and found nothing near it."),
      closest.length ? el("h4", {}, "Closest I found") : null,
      closest.length ? el("ul", { class: "source-list" }, closest.map((passage) => passageEntry(passage))) : null,
      el("h4", {}, "How to go on"),
      el("ul", { class: "ways" },
        el("li", {}, "Ask with the words that your documents would use."),
        domain && el("li", {}, el("button", { type: "button", class: "link", onclick: () => this.#room.askEverywhere(question) }, "Ask all documents"), "."),
        el("li", {}, "Add the document that holds the answer in the ", el("a", { href: "/library" }, "library"), ".")));
  }

  #drawFoot(refused) {
    const { state, text } = this.#record;
    const action = (name, label, onclick) => el("button", { type: "button", class: "button quiet", onclick }, icon(name), label);
    const actions = [];
    if (state !== "asking") {
      if (text && !refused) actions.push(action("copy", "Copy", (event) => this.#copy(event.currentTarget)));
      actions.push(action("retry", state === "done" ? "Ask again" : "Try again", () => this.#room.rerun(this)));
      actions.push(action("edit", "Edit", () => this.#room.edit(this.#record.question)));
    }
    this.#parts.foot.replaceChildren(el("div", { class: "actions" }, actions), this.#timings() ?? "");
  }

  #timings() {
    const { done } = this.#record;
    if (!done?.timings) return null;
    const { ttft_ms, total_ms } = done.timings;
    const tokens = done.usage?.completion_tokens;
    const parts = [
      ttft_ms !== null && ttft_ms !== undefined && `first word ${duration(ttft_ms)}`,
      total_ms && `${duration(total_ms)} in all`,
      tokens ? count(tokens, "token") : null,
      done.model,
    ].filter(Boolean);
    return el("p", { class: "timings" }, parts.join(" · "));
  }

  #drawSources(refused) {
    const { sources } = this.#parts;
    const { citations, passages, leftOut, state, done } = this.#record;
    // Before the first word and in a refusal the passages are no sources of anything yet.
    const show = passages && !refused && (this.#record.text || state !== "asking");
    const key = show ? JSON.stringify([citations, leftOut, passages.length, Boolean(done)]) : "";
    if (sources.dataset.key === key) return;
    sources.dataset.key = key;
    const panel = show ? sourcesPanel(numberSources(citations), passages, leftOut, this.#othersOpen, (open) => { this.#othersOpen = open; }) : null;
    sources.replaceChildren(...(panel ?? []));
    sources.hidden = !panel;
  }

  #open(number) {
    const source = numberSources(this.#record.citations).find((one) => one.number === number);
    if (source) openSource(citedSource(source, this.#record.passages ?? []));
  }

  /** A marker under the pointer or in focus shows which source is meant, and the other way round. */
  #highlight(event) {
    const number = event.target.closest("[data-source]")?.dataset.source;
    if (!number) return;
    const on = event.type === "pointerover" || event.type === "focusin";
    for (const one of this.element.querySelectorAll(`[data-source="${number}"]`)) one.classList.toggle("lit", on);
  }

  async #copy(button) {
    const { text, citations, passages } = this.#record;
    const answer = withMarkers(text, placeMarkers(text, citations), (number) => ` [${number}]`);
    const sources = numberSources(citations).map((source) => {
      const page = source.page ? `, page ${source.page}` : "";
      return `[${source.number}] ${citedSource(source, passages ?? []).title} (${source.path}${page}): “${source.quote.replace(/\s+/g, " ").trim()}”`;
    });
    const copied = await toClipboard(sources.length ? `${answer}\n\nSources:\n${sources.join("\n")}\n` : answer);
    button.replaceChildren(icon(copied ? "check" : "alert"), copied ? "Copied" : "Copying is not allowed here");
    announce(copied ? "Copied" : "Copying is not allowed here");
    setTimeout(() => button.replaceChildren(icon("copy"), "Copy"), 1600);
  }

  /** The whole answer at once, when it is complete: reading every token aloud would be noise. */
  #announceEnd() {
    const { state, done, problem, citations } = this.#record;
    if (state === "stopped") announce("Stopped.");
    else if (state === "failed") announce(`${problem.message} ${problem.remedy}`);
    else if (done.refused) announce("Not in your documents.");
    else announce(`Answer: ${this.#spoken()} ${count(numberSources(citations).length, "source")}.`);
  }

  #spoken() {
    const copy = this.#parts.answer.cloneNode(true);
    for (const marker of copy.querySelectorAll("sup")) marker.remove();
    return copy.textContent.replace(/\s+/g, " ").trim();
  }
}

function pause(ms, signal) {
  return new Promise((resolve, reject) => {
    const aborted = () => {
      clearTimeout(timer);
      reject(new DOMException("Stopped", "AbortError"));
    };
    const timer = setTimeout(() => {
      signal.removeEventListener("abort", aborted);
      resolve();
    }, ms);
    if (signal.aborted) aborted();
    else signal.addEventListener("abort", aborted, { once: true });
  });
}

async function toClipboard(text) {
  try {
    await navigator.clipboard.writeText(text); // only on https and on this machine
    return true;
  } catch {
    return false;
  }
}
