/**
 * One question and its answer: asked, queued, streamed, cited, refused, failed, stopped, and drawn in each of these states.
 *
 * A turn draws itself from its record alone, so one that was remembered looks like one that was just written.
 */

import { take } from "../static/answer.js";
import { numberSources, placeAll, withMarkers } from "../static/citations.js";
import { el } from "../static/element.js";
import { pause } from "../static/pause.js";
import { icon } from "./icons.js";
import { addresses, blocks, clean, CLOSES, marker, OPENS } from "./markdown.js";
import { asSource, described, sourceList } from "./source.js";
import { ask, Failure } from "./stream.js";
import { inTime } from "./words.js";

// Passages that a refusal shows.
const CLOSEST = 3;

// Seconds until the next try while the server loads its models, and with a spent quota, if it does not say.
const STARTING = 3;
const A_WHILE = 60;

/** A new record: all that is remembered of a turn. `number` is where the server keeps it in its conversation, if it does. */
export function newRecord(question, number = null) {
  const answer = { text: "", citations: [], unsupported: [], passages: [], links: [], refused: false, withheld: false, cut: false };
  return { question, number, state: "asking", ...answer, failure: null };
}

export class Turn {
  #chat;
  #abort = null;
  #frame = 0;
  #status = "";
  #live = new Set();
  #blocks = [];
  #parts;

  /** `chat`: options, conversation, placed, forget, announce, openSource, retry, changed. See chat.js. */
  constructor(chat, record) {
    this.#chat = chat;
    this.record = record;
    const { say } = chat.options.words;
    this.#parts = {
      status: el("p", { class: "status" }, el("span", { class: "dots", "aria-hidden": "true" }), el("span")),
      answer: el("div", { class: "text" }),
      notes: el("div", { class: "notes" }),
      sources: el("div", { class: "cited" }),
    };
    this.element = el("article", { class: "turn" },
      el("div", { class: "question", dir: "auto" }, el("span", { class: "unseen" }, `${say("you")}: `), record.question),
      el("div", { class: "answer" }, el("span", { class: "unseen" }, `${say("answer")}: `),
        this.#parts.status, this.#parts.answer, this.#parts.notes, this.#parts.sources));
    this.#draw();
  }

  /** Asks, until the answer is there, fails or is stopped; which of these is then in the record. */
  async run() {
    const { question, number } = this.record;
    const record = Object.assign(this.record, newRecord(question, number));
    const { say } = this.#chat.options.words;
    this.#abort = new AbortController();
    this.#live = new Set();
    this.#say(say("searching"));
    try {
      await this.#askWhenReady(this.#abort.signal);
      record.state = "done";
    } catch (error) {
      if (this.#abort.signal.aborted) record.state = "stopped";
      else this.#fail(error);
    }
    // Of an answer that failed nothing is kept; of one that broke off, something may be.
    if (record.failure && record.failure.kind !== "broken") record.number = number;
    this.#keepLittle();
    this.#status = "";
    this.#draw();
    this.#announceEnd();
  }

  stop() {
    this.#abort?.abort();
  }

  #fail(error) {
    const failure = error instanceof Failure ? error : new Failure("server", { detail: String(error?.stack ?? error) });
    // For the owner of the page; a visitor reads words.js.
    console.warn(`Reading Room: ${failure.message}`);
    this.record.state = "failed";
    this.record.failure = { kind: failure.kind, limit: failure.limit, until: failure.seconds && Date.now() + failure.seconds * 1000 };
  }

  /** While the models load, asks again by itself; and once more without a conversation that the server has forgotten. */
  async #askWhenReady(signal) {
    for (;;) {
      try {
        return await this.#askOnce(signal);
      } catch (error) {
        if (!(error instanceof Failure)) throw error;
        if (error.kind === "forgotten" && this.#chat.conversation) this.#chat.forget(); // it has expired
        else if (error.kind === "starting") {
          this.#say(this.#chat.options.words.say("starting"));
          await pause((error.seconds ?? STARTING) * 1000, signal);
        } else throw error;
      }
    }
  }

  async #askOnce(signal) {
    const { options } = this.#chat;
    const { say } = options.words;
    const record = this.record;
    const body = { question: record.question, conversation_id: this.#chat.conversation ?? "new" };
    if (options.domain) body.domain = options.domain;
    if (record.number) body.turn = record.number;
    for await (const { event, data } of ask(options, body, signal)) {
      if (event === "place") {
        this.#chat.placed(this, data);
      } else if (event === "passages") {
        record.passages = data.passages;
        this.#live = new Set(data.passages.flatMap((passage) => addresses(passage.text)));
        this.#say(say("reading"));
      } else if (event === "queued") {
        this.#say(data.position > 1 ? say("queued", { n: data.position }) : say("next"));
      } else if (event === "done") {
        const { answer, citations, unsupported = [], refused, withheld = false, finish_reason, conversation_id } = data;
        Object.assign(record, { text: answer, citations, unsupported, refused, withheld, cut: finish_reason === "length" });
        if (conversation_id) this.#chat.conversation = conversation_id;
        else this.#chat.forget(); // it could not be kept
      } else take(record, event, data);
      this.#drawSoon();
    }
  }

  /** Of the passages, those that are shown again; of their addresses, those that the answer links to. */
  #keepLittle() {
    const { record } = this;
    const cited = (passage) => record.citations.some((one) => one.document_id === passage.document_id && passage.start <= one.start && one.end <= passage.end);
    record.passages = record.refused ? record.passages.slice(0, CLOSEST) : record.passages.filter(cited);
    record.links = addresses(record.text).filter((address) => this.#live.has(address));
  }

  #say(status) {
    if (this.#status !== status) this.#chat.announce(status);
    this.#status = status;
    this.#draw();
  }

  /** At most one drawing a frame, however fast the tokens come. */
  #drawSoon() {
    this.#frame ||= requestAnimationFrame(() => this.#draw());
  }

  #draw() {
    cancelAnimationFrame(this.#frame);
    this.#frame = 0;
    const { record } = this;
    const { status, answer, notes, sources } = this.#parts;
    this.element.dataset.state = record.refused ? "refused" : record.state;
    this.element.setAttribute("aria-busy", String(record.state === "asking"));
    status.hidden = record.state !== "asking" || Boolean(record.text);
    status.lastChild.textContent = this.#status;
    answer.hidden = record.refused || !record.text;
    this.#drawAnswer(answer.hidden ? "" : record.text);
    notes.replaceChildren(...this.#notes());
    const cited = record.refused ? [] : this.#cited();
    const key = JSON.stringify(cited.map(({ number, document_id, before }) => [number, document_id, before.length]));
    if (sources.dataset.key !== key) {
      sources.dataset.key = key;
      sources.replaceChildren(...(cited.length ? this.#sourcesOf("sources", cited) : []));
    }
    this.#chat.changed();
  }

  /** Blocks that did not change keep their elements, and with them a selection and the focus. */
  #drawAnswer(text) {
    const { citations, unsupported, links } = this.record;
    const shown = clean(text);
    const markers = placeAll(shown, citations, unsupported, OPENS, CLOSES);
    const tools = {
      unsupported: this.#chat.options.words.say("unsupported"),
      cite: (number) => this.#marker(number),
      live: (address) => this.#live.has(address) || links.includes(address),
    };
    const found = blocks(withMarkers(shown, markers, marker), tools);
    found.forEach(({ raw, draw }, index) => {
      if (this.#blocks[index]?.raw === raw) return;
      const node = draw();
      if (this.#blocks[index]) this.#blocks[index].node.replaceWith(node);
      else this.#parts.answer.append(node);
      this.#blocks[index] = { raw, node };
    });
    for (const { node } of this.#blocks.splice(found.length)) node.remove();
  }

  #cited() {
    return numberSources(this.record.citations).map((source) => described(source, this.record.passages));
  }

  #marker(number) {
    const label = this.#chat.options.words.say("source", { n: number });
    return el("button", { type: "button", class: "cite", "aria-label": label, title: label, onclick: (event) => {
      const source = this.#cited().find((one) => one.number === number);
      if (source) this.#chat.openSource(source, event.currentTarget);
    } }, String(number));
  }

  #sourcesOf(heading, sources) {
    const { say } = this.#chat.options.words;
    return [el("p", { class: "label" }, say(heading)), sourceList(sources, say, (source, opener) => this.#chat.openSource(source, opener))];
  }

  #notes() {
    const { state, refused, cut, citations, text } = this.record;
    const { say } = this.#chat.options.words;
    const note = (key) => el("p", { class: "note" }, say(key));
    if (state === "failed") return [this.#failureCard()];
    if (refused) return [this.#refusalCard()];
    const notes = [];
    if (state === "stopped") notes.push(note("stopped"), this.#retry());
    if (cut) notes.push(note("cut"));
    if (state === "done" && text && !citations.length) notes.push(note("unmatched"));
    return notes;
  }

  #retry() {
    const { say } = this.#chat.options.words;
    return el("button", { type: "button", class: "button retry", onclick: () => this.#chat.retry(this) }, say("retry"));
  }

  #contact() {
    const { contact, words } = this.#chat.options;
    return contact && el("a", { class: "button", href: contact, target: /^https?:/.test(contact) ? "_blank" : null, rel: "noopener" }, words.say("contact"));
  }

  #failureCard() {
    const { kind, limit, until } = this.record.failure;
    const { say, tag } = this.#chat.options.words;
    const seconds = until ? (until - Date.now()) / 1000 : kind === "quota" ? A_WHILE : STARTING;
    const text = say(kind, { n: limit, when: inTime(seconds, tag) });
    const again = kind !== "setup" && kind !== "long" && kind !== "invalid";
    return el("div", { class: "card failure" }, icon("alert"), el("p", {}, text), el("p", { class: "ways" }, again && this.#retry(), this.#contact()));
  }

  #refusalCard() {
    const { say } = this.#chat.options.words;
    const closest = this.record.passages.slice(0, CLOSEST).map(asSource);
    return el("div", { class: "card refusal" }, icon("search"), el("p", { class: "heading" }, say("refused")), el("p", {}, say(this.record.withheld ? "withheld" : "refusedText")),
      closest.length > 0 && this.#sourcesOf("closest", closest), el("p", { class: "ways" }, this.#contact()));
  }

  /** The whole answer at once, when it is complete: reading every token aloud would be noise. */
  #announceEnd() {
    const { say } = this.#chat.options.words;
    const { notes, answer } = this.#parts;
    const copy = answer.cloneNode(true);
    for (const cite of copy.querySelectorAll(".cite")) cite.remove();
    const said = [answer.hidden ? "" : `${say("answer")}: ${copy.textContent}`, ...[...notes.querySelectorAll("p:not(.label):not(.ways)")].map((note) => note.textContent)];
    const cited = this.record.refused ? 0 : numberSources(this.record.citations).length;
    if (cited) said.push(`${say("sources")}: ${cited}`);
    this.#chat.announce(said.filter(Boolean).join(" "));
  }
}
