/**
 * One question and its answer: runs the question, shows every state of it, and offers what can be done with it.
 *
 * The record (transcript.js) is the truth, and `#draw` shows it; nothing is read back from the page. Asking itself is in api.js,
 * Markdown in render.js, the sources panel in sources.js, what stands in place of an answer in cards.js, thumbs in feedback.js, the
 * conversation that a turn is part of in conversation.js.
 */

import { take } from "./answer.js";
import { ask, countComing, Problem } from "./api.js";
import { goneCard, problemCard, refusalCard, stillComing } from "./cards.js";
import { numberSources, placeMarkers, withMarkers } from "./citations.js";
import { untilReady } from "./connection.js";
import { announce, el, icon } from "./dom.js";
import { Feedback } from "./feedback.js";
import { count, duration } from "./format.js";
import { AnswerView } from "./render.js";
import { citedSource, sourcesPanel } from "./sources.js";
import { unanswered } from "./transcript.js";
import { openSource } from "./viewer.js";

const WAITS_FOR = { not_ready: "The server is still starting.", unreachable: "The server is not answering." };

/**
 * Shows the turn `record` and, by `run()`, answers it. `room` is what its conversation offers: `id` ("new" before its first answer),
 * `kept`, `free`, `adapter`, `placed(turn, {conversation_id, turn})`, `rerun(turn)`, `askEverywhere(question)`.
 */
export class Turn {
  #record;
  #room;
  #abort = null;
  #waiting = ""; // why the question has not been asked yet, if so
  #place = 0; // in the queue, the next being 1
  #frame = 0;
  #othersOpen = false;
  #answer;
  #feedback;
  #parts;

  constructor(record, room) {
    this.#record = record;
    this.#room = room;
    this.#parts = {
      head: el("header", { class: "turn-head" }),
      scope: el("p", { class: "scope" }),
      status: el("p", { class: "status", hidden: true }),
      answer: el("div", { class: "answer prose", dir: "auto" }),
      notes: el("div", { class: "notes" }),
      actions: el("div", { class: "actions" }),
      timings: el("p", { class: "timings" }),
      sources: el("aside", { class: "sources" }),
    };
    this.#answer = new AnswerView(this.#parts.answer, (number) => this.#open(number));
    this.#feedback = new Feedback(record, () => room.id);
    const { head, status, answer, notes, actions, timings, sources } = this.#parts;
    const foot = el("footer", { class: "turn-foot" }, el("div", { class: "turn-tools" }, actions, this.#feedback.buttons), timings);
    this.element = el("article", { class: "turn" }, head,
      el("div", { class: "turn-body" },
        el("div", { class: "turn-answer" }, status, answer, notes, foot, this.#feedback.panel), sources));
    for (const type of ["pointerover", "pointerout", "focusin", "focusout"]) {
      this.element.addEventListener(type, (event) => this.#highlight(event));
    }
    this.#drawHead();
    this.#draw();
  }

  get record() {
    return this.#record;
  }

  /** Asks (again), until the answer is there, fails, or is stopped; which of these is then in the record. */
  async run() {
    const record = this.#record;
    const { number } = record;
    Object.assign(record, unanswered());
    this.#abort = new AbortController();
    this.#waiting = "";
    this.#place = 0;
    this.#feedback.panel.hidden = true;
    this.#draw();
    announce("Searching");
    try {
      await this.#askWhenReady(this.#abort.signal);
      if (record.done.refused) record.coming = await countComing(record.domain).catch(() => 0);
      record.state = "done";
    } catch (error) {
      if (error.name === "AbortError") record.state = "stopped";
      else this.#fail(error);
    }
    // Of an answer that failed nothing is kept; of one that broke off, something may be.
    if (!record.kept || (record.problem && record.problem.code !== "broken_off")) record.number = number;
    this.#abort = null;
    this.#draw();
    this.#announceEnd();
  }

  stop() {
    this.#abort?.abort();
  }

  #fail(error) {
    const record = this.#record;
    record.state = "failed";
    if (error instanceof Problem) {
      const { code, status, title, message, remedy, limit, retryAfter } = error;
      const until = retryAfter ? Date.now() + retryAfter * 1000 : 0;
      record.problem = { code, status, title, message, remedy, limit, until };
      if (code === "broken_off") this.#untilBack();
    } else {
      record.problem = { code: "page", title: "This page failed", message: String(error), remedy: "Reload the page and ask again." };
      console.error(error);
    }
  }

  /** What is left of an answer that broke off stays; when the server is back, it is said. */
  async #untilBack() {
    const { problem } = this.#record;
    await untilReady(() => {});
    if (this.#record.problem !== problem) return; // asked again meanwhile
    problem.remedy = "It is back now: ask again for the whole answer.";
    this.#draw();
    announce("The server is back. Ask again for the whole answer.");
  }

  /** While the server is away or loads its models, waits for it and asks by itself. */
  async #askWhenReady(signal) {
    for (;;) {
      try {
        return await this.#askOnce(signal);
      } catch (error) {
        if (!(error instanceof Problem) || !(error.code in WAITS_FOR)) throw error;
        await this.#wait(error, signal);
      }
    }
  }

  async #wait({ code, message }, signal) {
    const say = (reason) => {
      this.#waiting = reason;
      this.#draw();
    };
    say(message);
    announce(`${WAITS_FOR[code]} The question will be asked as soon as it is ready.`);
    await untilReady((reason) => say(reason || message), signal);
    say("");
  }

  async #askOnce(signal) {
    const record = this.#record;
    const { question, domain, number: turn } = record;
    const { id, adapter } = this.#room;
    for await (const { event, data } of ask({ question, domain, adapter, conversation_id: id, turn }, signal)) {
      if (event === "place") {
        this.#room.placed(this, data);
      } else if (event === "passages") {
        Object.assign(record, { passages: data.passages, searchedFor: data.searched_for, leftOut: data.left_out ?? [] });
        announce(`Reading ${count(data.passages.length, "passage")}`);
      } else if (event === "queued") {
        this.#place = data.position;
        if (data.position === 1) announce("This question is the next.");
      } else if (event === "done") {
        Object.assign(record, { text: data.answer, citations: data.citations, done: data, kept: data.conversation_id !== null });
      } else take(record, event, data);
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
    this.#drawScope();
    this.#drawStatus();
    this.#answer.update(refused ? "" : record.text, refused ? [] : record.citations, refused ? [] : record.unsupported);
    this.#parts.answer.hidden = refused || !record.text;
    this.#drawNotes(refused);
    this.#drawFoot(refused);
    this.#drawSources(refused);
  }

  #drawHead() {
    const { question } = this.#record;
    const long = question.length > 280;
    this.#parts.head.replaceChildren(
      el("h2", { class: long ? "question long" : "question", dir: "auto", tabindex: long ? "0" : null }, question), this.#parts.scope);
    this.#parts.sources.setAttribute("aria-label", `Sources for: ${question.slice(0, 80)}`);
  }

  /** Where was asked, and for what was searched if those are not the question's own words. */
  #drawScope() {
    const { question, domain, domainTitle, searchedFor } = this.#record;
    const parts = [];
    if (domain) parts.push(`Asked in ${domainTitle || domain}`);
    if (searchedFor && searchedFor !== question.trim()) parts.push(`Searched for: ${searchedFor}`);
    this.#parts.scope.textContent = parts.join(" · ");
    this.#parts.scope.hidden = !parts.length;
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

  /** Only when they change: a card has buttons that may have the focus, and a countdown that runs. */
  #drawNotes(refused) {
    const { state, problem, done, citations, gone, changed, kept, passages } = this.#record;
    const key = JSON.stringify([state, problem, refused, done?.finish_reason, citations.length, gone, changed, kept, passages?.length]);
    if (state === "asking" && !refused) {
      this.#parts.notes.replaceChildren();
      this.#parts.notes.dataset.key = "";
    } else if (this.#parts.notes.dataset.key !== key) {
      this.#parts.notes.dataset.key = key;
      this.#parts.notes.replaceChildren(...this.#notes(refused));
    }
  }

  #notes(refused) {
    const { state, problem, done, citations, gone, changed, kept, text } = this.#record;
    const note = (said) => el("p", { class: "note" }, said);
    const notes = [];
    if (state === "failed") notes.push(problemCard(problem));
    else if (state === "removed") notes.push(goneCard());
    else if (refused) notes.push(refusalCard(this.#record, (question) => this.#room.askEverywhere(question)));
    else {
      if (state === "stopped") notes.push(note(text ? "Stopped before the end." : "Stopped before the first word."));
      if (done?.finish_reason === "length") notes.push(note("The answer reached its length limit and ends here."));
      if (gone) notes.push(note(`${count(gone, "document")} among the sources ${gone === 1 ? "has" : "have"} been deleted since.`));
      if (changed) notes.push(note("A document has changed since this was written, and what it said then is no longer among the sources."));
      if (state === "done" && !citations.length && !changed) {
        notes.push(note("No sentence of this answer could be matched to your documents. Treat it with care."));
      }
    }
    if (!kept) notes.push(note("This answer could not be kept. It is gone when the page is left; the server's log says why."));
    return notes;
  }

  #drawFoot(refused) {
    const { state, text, number, problem } = this.#record;
    const { actions, timings } = this.#parts;
    const key = [state, Boolean(text), refused].join();
    if (actions.dataset.key !== key) {
      actions.dataset.key = key;
      const action = (name, label, onclick) => el("button", { type: "button", class: "button quiet", onclick }, icon(name), label);
      actions.replaceChildren(...(state === "asking" ? [] : [
        text && !refused && action("copy", "Copy", (event) => this.#copy(event.currentTarget)),
        action("retry", state === "done" || state === "removed" ? "Ask again" : "Try again", () => this.#room.rerun(this)),
        action("edit", "Edit", () => this.edit()),
      ].filter(Boolean)));
    }
    const judged = this.#room.kept && number !== null && this.#record.kept && (state === "done" || state === "stopped") && !problem;
    this.#feedback.buttons.hidden = !judged;
    this.#feedback.show();
    timings.textContent = this.#timings();
  }

  #timings() {
    const { done } = this.#record;
    if (!done?.timings) return "";
    const { ttft_ms, total_ms } = done.timings;
    const tokens = done.usage?.completion_tokens;
    return [
      ttft_ms !== null && ttft_ms !== undefined && `first word ${duration(ttft_ms)}`,
      total_ms && `${duration(total_ms)} in all`,
      tokens ? count(tokens, "token") : null,
      done.model,
      done.adapter,
    ].filter(Boolean).join(" · ");
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

  /** Turns the question into a field; what is sent from there is asked in this turn's place. */
  edit() {
    const field = el("textarea", { rows: "2", "aria-label": "Edit the question", dir: "auto" });
    field.value = this.#record.question;
    const leave = () => {
      this.#drawHead();
      this.#parts.actions.querySelector("button:last-child")?.focus();
    };
    const form = el("form", { class: "edit" }, field,
      el("div", { class: "dialog-actions" },
        el("button", { type: "button", class: "button", onclick: leave }, "Cancel"),
        el("button", { type: "submit", class: "button primary" }, "Ask")));
    form.addEventListener("submit", (event) => {
      event.preventDefault();
      const question = field.value.trim();
      if (!question || !this.#room.free) return;
      this.#record.question = question;
      this.#drawHead();
      this.#room.rerun(this);
    });
    field.addEventListener("keydown", (event) => {
      if (event.isComposing) return;
      if (event.key === "Enter" && !event.shiftKey) {
        event.preventDefault();
        form.requestSubmit();
      } else if (event.key === "Escape") {
        event.stopPropagation();
        leave();
      }
    });
    this.#parts.head.replaceChildren(form);
    field.style.height = `${Math.min(field.scrollHeight + 2, 320)}px`; // through the CSSOM, which the content security policy allows
    field.focus();
    field.setSelectionRange(field.value.length, field.value.length);
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
    const { state, done, problem, citations, coming } = this.#record;
    if (state === "stopped") announce("Stopped.");
    else if (state === "failed") announce(`${problem.message} ${problem.remedy}`);
    else if (done.refused) announce(`Not in your documents. ${stillComing(coming)}`.trim());
    else announce(`Answer: ${this.#spoken()} ${count(numberSources(citations).length, "source")}.`);
  }

  #spoken() {
    const copy = this.#parts.answer.cloneNode(true);
    for (const marker of copy.querySelectorAll("sup")) marker.remove();
    return copy.textContent.replace(/\s+/g, " ").trim();
  }
}

async function toClipboard(text) {
  try {
    await navigator.clipboard.writeText(text); // only on https and on this machine
    return true;
  } catch {
    return false;
  }
}
