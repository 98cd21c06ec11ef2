/**
 * The widget on a page: the bubble, and the dialog with the conversation that it opens. Keyboard, focus and layout are here;
 * one question and its answer are turn.js, the look is style.js.
 *
 * It lives in a shadow tree, so that the page's styles cannot reach it nor its own the page, and in the top layer, so that
 * no z-index, transform or overflow of the page hides it. Nothing is asked of the server before a question is.
 */

import { el } from "../static/element.js";
import { icon } from "./icons.js";
import { Memory } from "./memory.js";
import { SourceSheet } from "./source.js";
import { BASE, colorRule } from "./style.js";
import { newRecord, Turn } from "./turn.js";

export const TAG = "readingroom-widget";

// Narrower, and the dialog takes the whole screen. style.js has the same number.
const SHEET = "(max-width: 520px)";

// How near to its end, in pixels, a conversation must be to follow what is being written.
const NEAR = 60;

const FOCUSABLE = "button, textarea, a[href], [tabindex='0'], summary";

export class Chat {
  #memory;
  #turns = [];
  #asking = null; // the turn that is being answered
  #parts = {};
  #sheet;
  #root;
  #id;
  #narrow = matchMedia(SHEET);
  #leave = new AbortController(); // ends every listener outside the shadow tree

  constructor(options, host, slot) {
    this.options = options;
    this.host = host;
    this.#id = `readingroom-${slot}`;
    this.#memory = new Memory(options.server, options.domain);
    const { conversation, turns } = this.#memory.load();
    this.conversation = conversation;
    this.#build(slot);
    for (const record of turns) this.#add(Object.assign(record, record.state === "asking" ? { state: "stopped" } : {}));
    this.#drawComposer();
  }

  // --- what a turn asks of the chat ---------------------------------------------------------------------------

  /** Says a sentence to screen readers, politely. */
  announce(text) {
    const { announcer } = this.#parts;
    // The same sentence twice is no change, and would not be read again.
    announcer.textContent = announcer.textContent === text ? `${text}\u00a0` : text;
  }

  openSource(source, opener) {
    this.#sheet.open(source, opener);
  }

  retry(turn) {
    if (this.#asking) return;
    this.#run(turn);
    this.#parts.question.focus();
  }

  /** The server has said where the answer of a turn will be kept: asked again, also after a reload, it takes its own place. */
  placed(turn, { conversation_id, turn: number }) {
    this.conversation = conversation_id;
    for (const { record } of this.#turns) if (record.number === number) record.number = null; // it broke off, and nothing of it was kept
    turn.record.number = number;
    this.#save();
  }

  /** The server has none of it: what is asked next begins another conversation. */
  forget() {
    this.conversation = null;
    for (const { record } of this.#turns) record.number = null;
  }

  /** A turn has drawn itself: the conversation follows, unless somebody reads further up. */
  changed() {
    const { log } = this.#parts;
    if (this.#follows) log.scrollTop = log.scrollHeight;
  }

  #follows = true;

  // --- what a page can do -------------------------------------------------------------------------------------

  /** Opens the dialog. */
  open() {
    if (this.isOpen) return;
    const { panel, bubble, question, log } = this.#parts;
    panel.hidden = false;
    bubble.setAttribute("aria-expanded", "true");
    this.#root.dataset.open = "";
    this.#raise();
    this.#fit();
    this.#follows = true;
    log.scrollTop = log.scrollHeight;
    question.focus();
  }

  /** Closes it; an answer that is being written goes on. */
  close() {
    const { panel, bubble } = this.#parts;
    const held = panel.contains(this.host.shadowRoot.activeElement);
    panel.hidden = true;
    bubble.setAttribute("aria-expanded", "false");
    delete this.#root.dataset.open;
    if (held) bubble.focus();
  }

  get isOpen() {
    return !this.#parts.panel.hidden;
  }

  /** Ends what is running and listens no more: the widget was taken from the page. */
  end() {
    this.#leave.abort();
    this.#asking?.stop();
  }

  // --- building -----------------------------------------------------------------------------------------------

  #build(slot) {
    const { options } = this;
    const { say, dir, tag } = options.words;
    const parts = this.#parts;
    const id = this.#id;
    parts.announcer = el("div", { class: "unseen", role: "status", "aria-live": "polite" });
    parts.bubble = el("button", { type: "button", class: "bubble", "aria-label": options.title, title: options.title, "aria-haspopup": "dialog",
      "aria-expanded": "false", "aria-controls": id, onclick: () => (this.isOpen ? this.close() : this.open()) }, icon("chat"), icon("close"));
    parts.fresh = el("button", { type: "button", class: "tool", "aria-label": say("fresh"), title: say("fresh"), onclick: () => this.#begin() }, icon("fresh"));
    parts.turns = el("div", { class: "turns" });
    parts.suggestions = el("ul", { class: "suggestions", "aria-label": say("suggestions") }, options.suggestions.map((text) =>
      el("li", {}, el("button", { type: "button", class: "suggestion", dir: "auto", onclick: () => this.#send(text) }, text))));
    parts.log = el("div", { class: "log", tabindex: "0", role: "region", "aria-label": say("conversation"), onscroll: () => this.#scrolled() },
      el("p", { class: "greeting", dir: "auto" }, options.greeting), parts.turns, options.suggestions.length > 0 && parts.suggestions);
    parts.question = el("textarea", { rows: "1", placeholder: say("placeholder"), "aria-label": say("question"), dir: "auto", autocomplete: "off",
      enterkeyhint: "send", oninput: () => this.#drawComposer(), onkeydown: (event) => this.#typed(event) });
    parts.send = el("button", { type: "submit", class: "round send", "aria-label": say("send"), title: say("send") }, icon("send"));
    parts.stop = el("button", { type: "button", class: "round stop", "aria-label": say("stop"), title: say("stop"), onclick: () => this.#asking?.stop() }, icon("stop"));
    parts.form = el("form", { class: "ask", onsubmit: (event) => this.#submitted(event) }, el("div", { class: "box" }, parts.question, parts.send, parts.stop),
      el("p", { class: "notice" }, say("notice")));
    const head = el("div", { class: "head" }, el("h2", { id: `${id}-title`, dir: "auto" }, options.title), parts.fresh,
      el("button", { type: "button", class: "tool", "aria-label": say("close"), title: say("close"), onclick: () => this.close() }, icon("close")));
    this.#sheet = new SourceSheet(options, [parts.log, parts.form, head]);
    parts.panel = el("div", { class: "panel", id, role: "dialog", "aria-labelledby": `${id}-title`, hidden: true, onkeydown: (event) => this.#pressed(event) },
      head, parts.log, parts.form, this.#sheet.element);
    this.#root = el("div", { class: "root", dir, lang: tag, "data-side": options.side, "data-theme": options.theme }, parts.panel, parts.bubble, parts.announcer);
    this.#root.style.setProperty("--slot", slot);
    this.#dress();
    this.#listen();
  }

  /** The shadow tree and its style sheets. Constructed ones: a policy that forbids style elements and attributes lets them be. */
  #dress() {
    const shadow = this.host.attachShadow({ mode: "open" });
    shadow.adoptedStyleSheets = [BASE, colorRule(this.options.color)].filter(Boolean).map((text) => {
      const sheet = new CSSStyleSheet();
      sheet.replaceSync(text);
      return sheet;
    });
    shadow.append(this.#root);
  }

  #listen() {
    const { signal } = this.#leave;
    this.#narrow.addEventListener("change", () => this.#fit(), { signal });
    visualViewport?.addEventListener("resize", () => this.#fit(), { signal });
    visualViewport?.addEventListener("scroll", () => this.#fit(), { signal });
    // A click in the page is no click in the dialog; what the page does with its keys is not for what is typed here.
    for (const type of ["keydown", "keyup", "keypress"]) this.#root.addEventListener(type, (event) => event.stopPropagation());
  }

  /** Into the top layer, above what the page put there since. */
  #raise() {
    if (!this.host.showPopover) return; // an old browser: the highest z-index is what there is
    try {
      this.host.popover = "manual";
      if (this.host.matches(":popover-open")) this.host.hidePopover();
      this.host.showPopover();
    } catch {
      // not on the page at this moment; it is tried again with the next opening
    }
  }

  /** After the host is on the page: what has to be measured there. */
  mounted() {
    this.#raise();
    this.#contrast();
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.#contrast(), { signal: this.#leave.signal });
  }

  /** Black or white on the accent, whichever can be read: the owner gives one colour. W3C, WCAG 2.2, relative luminance. */
  #contrast() {
    const [r, g, b] = (/^rgba?\((\d+), (\d+), (\d+)/.exec(getComputedStyle(this.#parts.bubble).backgroundColor) ?? [0, 0, 0, 0]).slice(1)
      .map((value) => value / 255).map((value) => (value <= 0.04045 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4));
    const luminance = 0.2126 * r + 0.7152 * g + 0.0722 * b;
    this.#root.style.setProperty("--computed-on-accent", luminance > 0.179 ? "#000000" : "#ffffff");
  }

  /** On a phone the dialog is all that can be seen, and ends above the keyboard, of which only the visual viewport knows. */
  #fit() {
    const { panel } = this.#parts;
    const whole = this.#narrow.matches;
    panel.setAttribute("aria-modal", String(whole));
    const view = whole && visualViewport && visualViewport.scale === 1 ? visualViewport : null;
    panel.style.setProperty("--top", view ? `${view.offsetTop}px` : "0px");
    panel.style.setProperty("--height", view ? `${view.height}px` : "100dvh");
  }

  // --- asking -------------------------------------------------------------------------------------------------

  #add(record) {
    const turn = new Turn(this, record);
    this.#turns.push(turn);
    this.#parts.turns.append(turn.element);
    return turn;
  }

  #send(text) {
    const question = text.trim();
    if (!question || this.#asking) return;
    this.#parts.question.value = "";
    this.#follows = true;
    this.#run(this.#add(newRecord(question)));
    this.#parts.question.focus();
  }

  async #run(turn) {
    this.#asking = turn;
    this.#drawComposer();
    this.#save();
    await turn.run();
    this.#asking = null;
    this.#drawComposer();
    if (this.#turns.includes(turn)) this.#save();
  }

  /** A new conversation: the old one is forgotten here. */
  #begin() {
    this.#asking?.stop();
    this.#turns = [];
    this.conversation = null;
    this.#parts.turns.replaceChildren();
    this.#save();
    this.#drawComposer();
    this.#parts.question.focus();
  }

  #save() {
    this.#memory.save({ conversation: this.conversation, turns: this.#turns.map((turn) => turn.record) });
  }

  #drawComposer() {
    const { question, send, stop, fresh, suggestions } = this.#parts;
    const asking = Boolean(this.#asking);
    send.hidden = asking;
    stop.hidden = !asking;
    send.disabled = !question.value.trim();
    fresh.hidden = !this.#turns.length;
    suggestions.hidden = this.#turns.length > 0;
    question.style.height = "auto";
    if (question.scrollHeight) question.style.height = `${question.scrollHeight}px`;
  }

  // --- keys and focus -----------------------------------------------------------------------------------------

  #submitted(event) {
    event.preventDefault();
    this.#send(this.#parts.question.value);
  }

  /** Enter sends, Shift+Enter makes a line; an Enter that ends the choice of a character (Chinese, Japanese) does neither. */
  #typed(event) {
    if (event.key !== "Enter" || event.shiftKey || event.isComposing || event.keyCode === 229) return;
    event.preventDefault();
    this.#send(this.#parts.question.value);
  }

  #pressed(event) {
    if (event.key === "Escape") {
      event.preventDefault();
      if (this.#sheet.isOpen) this.#sheet.close();
      else this.close();
    } else if (event.key === "Tab") this.#turnRound(event);
  }

  /** Tab stays within the dialog: from its last control to its first, and back. */
  #turnRound(event) {
    const within = [...this.#parts.panel.querySelectorAll(FOCUSABLE)].filter((one) => !one.disabled && !one.closest("[inert]") && one.checkVisibility());
    const at = within.indexOf(this.host.shadowRoot.activeElement);
    const next = event.shiftKey ? (at <= 0 ? within.length - 1 : null) : (at === within.length - 1 ? 0 : null);
    if (next === null) return;
    event.preventDefault();
    within[next]?.focus();
  }

  #scrolled() {
    const { log } = this.#parts;
    this.#follows = log.scrollHeight - log.scrollTop - log.clientHeight < NEAR;
  }
}
