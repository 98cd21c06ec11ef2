/** Thumbs up and down below an answer, each with a reason. Kept by the server; what becomes of them: `readingroom eval`. */

import { judge, Problem } from "./api.js";
import { announce, el, icon } from "./dom.js";

const REASONS = {
  up: ["Right", "Complete", "Well sourced"],
  down: ["Wrong", "Not what the source says", "Incomplete", "Should have answered", "Should have said that it is not there"],
};

/** The two buttons and, once one is pressed, the reason. `record` is the turn's; `conversation()` gives the conversation's id. */
export class Feedback {
  #record;
  #conversation;
  #up;
  #down;
  #panel;

  constructor(record, conversation) {
    this.#record = record;
    this.#conversation = conversation;
    const thumb = (value, label) => el("button", { type: "button", class: "button quiet square", "aria-label": label, title: label,
      onclick: () => this.#press(value) }, icon(`thumb-${value}`));
    this.#up = thumb("up", "Good answer");
    this.#down = thumb("down", "Bad answer");
    this.#panel = el("form", { class: "feedback", hidden: true });
    this.#panel.addEventListener("submit", (event) => {
      event.preventDefault();
      this.#send(this.#panel.elements.reason.value);
    });
    this.buttons = el("div", { class: "thumbs", role: "group", "aria-label": "Judge this answer" }, this.#up, this.#down);
    this.panel = this.#panel;
    this.show();
  }

  /** Draws what the record says. */
  show() {
    const { thumb } = this.#record;
    this.#up.setAttribute("aria-pressed", String(thumb === "up"));
    this.#down.setAttribute("aria-pressed", String(thumb === "down"));
  }

  async #press(value) {
    const record = this.#record;
    const thumb = record.thumb === value ? null : value;
    const before = [record.thumb, record.reason];
    record.thumb = thumb;
    record.reason = "";
    this.show(); // at once; taken back if it could not be kept
    if (!(await this.#keep())) {
      [record.thumb, record.reason] = before;
      this.show();
      return;
    }
    announce(thumb ? "Thank you. You may say why." : "Taken back.");
    if (thumb) this.#askWhy(thumb);
    else this.#panel.hidden = true;
  }

  #askWhy(thumb) {
    const input = el("input", { type: "text", name: "reason", maxlength: "2000", autocomplete: "off", "aria-label": "Why", placeholder: "Why? (optional)" });
    this.#panel.replaceChildren(
      el("div", { class: "reasons" }, REASONS[thumb].map((reason) =>
        el("button", { type: "button", class: "chip", onclick: () => this.#send(reason) }, reason))),
      el("div", { class: "feedback-line" }, input,
        el("button", { type: "submit", class: "button" }, "Send"),
        el("button", { type: "button", class: "button quiet square", "aria-label": "Without a reason", onclick: () => this.#close() }, icon("close"))));
    this.#panel.hidden = false;
  }

  async #send(reason) {
    this.#record.reason = reason.trim();
    if (await this.#keep()) {
      this.#panel.replaceChildren(el("p", { class: "note" }, "Thank you. It is kept on this server only."));
      announce("Thank you.");
      this.#pressed().focus();
    }
  }

  #close() {
    this.#panel.hidden = true;
    this.#pressed().focus();
  }

  #pressed() {
    return this.#record.thumb === "down" ? this.#down : this.#up;
  }

  async #keep() {
    const { number, thumb, reason } = this.#record;
    try {
      await judge(this.#conversation(), number, thumb, reason);
      return true;
    } catch (error) {
      if (!(error instanceof Problem)) throw error;
      this.#panel.hidden = false;
      this.#panel.replaceChildren(el("p", { class: "note", role: "alert" }, `It could not be kept: ${error.message} ${error.remedy}`));
      return false;
    }
  }
}
