/**
 * One conversation: its turns, in their order, and the one that is being answered. One question is asked at a time in a conversation,
 * because a person reads one at a time; in another one of the same page an answer goes on meanwhile.
 */

import { el } from "./dom.js";
import { keptTurn, newTurn } from "./transcript.js";
import { Turn } from "./turn.js";

/**
 * `page` is what the page offers: {kept(), adapter(), placed(conversation, isNew), changed(conversation),
 * ended(conversation, turn), askEverywhere(question)}.
 */
export class Conversation {
  #page;
  #running = null;

  constructor(page, { id = null, title = "", created_at = 0, updated_at = 0, turns = [] } = {}, titleOf = (name) => name) {
    this.#page = page;
    Object.assign(this, { title, created_at, updated_at });
    this.saved = id;
    this.element = el("div", { class: "transcript", role: "region", "aria-label": "Questions and answers" });
    this.turns = turns.map((turn) => new Turn(keptTurn(turn, titleOf), this));
    this.element.append(...this.turns.map(({ element }) => element));
  }

  // What a turn is offered.

  get id() {
    return this.saved ?? "new";
  }

  get kept() {
    return this.#page.kept();
  }

  get adapter() {
    return this.#page.adapter();
  }

  get free() {
    return !this.#running;
  }

  placed(turn, { conversation_id, turn: number }) {
    const isNew = this.saved === null;
    for (const { record } of this.turns) if (record.number === number) record.number = null; // it broke off, and nothing of it was kept
    turn.record.number = number;
    this.saved = conversation_id;
    this.updated_at = Date.now() / 1000;
    this.title ||= turn.record.question.replace(/\s+/g, " ").slice(0, 80);
    this.#page.placed(this, isNew);
  }

  askEverywhere(question) {
    this.#page.askEverywhere(question);
  }

  async rerun(turn) {
    if (this.#running) return;
    this.#running = turn;
    this.#page.changed(this);
    await turn.run();
    this.#running = null;
    this.#page.ended(this, turn);
  }

  // What the page asks.

  /** Asks a new question; false while another one is being answered. */
  ask(question, { domain, domainTitle }) {
    if (this.#running) return false;
    const turn = new Turn(newTurn(question, domain, domainTitle), this);
    this.turns.push(turn);
    this.element.append(turn.element);
    this.rerun(turn);
    return true;
  }

  /** The server has none of it: what is asked next begins it anew. */
  forget() {
    this.saved = null;
    for (const { record } of this.turns) record.number = null;
  }

  /** Takes a turn that was never answered out again. */
  drop(turn) {
    this.turns = this.turns.filter((one) => one !== turn);
    turn.element.remove();
  }

  stop() {
    this.#running?.stop();
  }
}
