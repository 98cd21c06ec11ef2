/**
 * The chat page: the question box, the domain picker, the welcome, and the stack of turns.
 *
 * A turn runs and draws itself (turn.js). One question is asked at a time, because a person reads one at a time;
 * the server would take more. Conversations that outlive the tab are not kept here.
 */

import { listDomains, Problem } from "./api.js";
import { announce, el } from "./dom.js";
import { count } from "./format.js";
import { loadTurns, newTurn, saveTurns } from "./transcript.js";
import { Turn } from "./turn.js";

const DOMAIN_KEY = "readingroom.domain";
// The user's guide ships as a domain; these are questions it answers, whatever else there is.
const GUIDE_EXAMPLES = ["How do I add a domain?", "Which file formats can it read?", "Does anything leave my machine?", "How do I delete a document?"];

const coarse = matchMedia("(pointer: coarse)"); // a finger, and so a keyboard that comes up on focus
const form = document.getElementById("ask");
const box = document.getElementById("question");
const send = document.getElementById("send");
const stop = document.getElementById("stop");
const hint = document.getElementById("hint");
const picker = document.getElementById("domain");
const clear = document.getElementById("clear");
const welcome = document.getElementById("welcome");
const transcript = document.getElementById("transcript");

let domains = null; // as the server lists them; null until it has
const room = { save, edit, askEverywhere, rerun: run };
let turns = loadTurns().map((record) => new Turn(record, room));
let running = null;

// --- asking ---

async function run(turn) {
  if (running) return;
  running = turn;
  controls();
  bringToTop(turn.element);
  await turn.run();
  running = null;
  controls();
  if (turn.record.problem?.code === "invalid_question") returnQuestion(turn);
}

function submit(question, domain = picker.value) {
  if (!question.trim() || running) return;
  const title = domains?.find(({ name }) => name === domain)?.title;
  const turn = new Turn(newTurn(question.trim(), domain, title), room);
  turns.push(turn);
  save();
  transcript.append(turn.element);
  box.value = "";
  say("");
  grow();
  if (coarse.matches) box.blur(); // the keyboard would cover the answer
  run(turn);
}

function askEverywhere(question) {
  picker.value = "";
  rememberDomain();
  submit(question, "");
}

/** A question that the server cannot take goes back into the box, with the reason below it. */
function returnQuestion(turn) {
  const { question, problem } = turn.record;
  turns = turns.filter((one) => one !== turn);
  turn.element.remove();
  save();
  controls();
  if (!box.value) box.value = question;
  grow();
  say([problem.message, problem.remedy].filter(Boolean).join(" "));
  limit = problem.limit;
  box.focus();
}

let limit = null; // characters, once the server has named it

function say(text) {
  hint.textContent = text;
  hint.hidden = !text;
  box.setAttribute("aria-invalid", String(Boolean(text)));
}

function edit(question) {
  box.value = question;
  grow();
  box.focus();
  box.setSelectionRange(question.length, question.length);
}

function save() {
  saveTurns(turns.map(({ record }) => record));
}

function bringToTop(element) {
  const calm = matchMedia("(prefers-reduced-motion: reduce)").matches;
  element.scrollIntoView({ block: "start", behavior: calm ? "auto" : "smooth" });
}

// --- what the page shows ---

function controls() {
  send.hidden = Boolean(running);
  stop.hidden = !running;
  send.disabled = !box.value.trim();
  clear.hidden = !turns.length || Boolean(running);
  welcome.hidden = turns.length > 0;
  transcript.hidden = !turns.length;
}

/** The box grows with its text, up to the limit that the style sheet sets. */
function grow() {
  box.style.height = "auto"; // through the CSSOM, which the content security policy allows
  box.style.height = `${box.scrollHeight + 2}px`;
  send.disabled = !box.value.trim();
}

function documentsIn(domain) {
  return Object.values(domain.documents).reduce((sum, number) => sum + number, 0);
}

function showDomains() {
  const remembered = recallDomain();
  picker.replaceChildren(el("option", { value: "" }, "All documents"),
    ...domains.map(({ name, title }) => el("option", { value: name }, title || name)));
  picker.value = domains.some(({ name }) => name === remembered) ? remembered : "";
  const total = domains.reduce((sum, domain) => sum + documentsIn(domain), 0);
  const badge = document.getElementById("library-count");
  badge.textContent = total.toLocaleString("en");
  badge.hidden = false;
  showWelcome(total);
}

function showWelcome(total) {
  const chosen = domains.find(({ name }) => name === picker.value);
  const guide = domains.some(({ name }) => name === "guide") && (!chosen || chosen.name === "guide");
  const parts = [];
  if (!total) {
    parts.push(el("div", { class: "steps" },
      el("h2", {}, "There are no documents yet"),
      el("ol", {},
        el("li", {}, "Make a folder for a subject in ", el("code", {}, "corpora/"), ", for example ", el("code", {}, "corpora/handbook/"), "."),
        el("li", {}, "Put documents into it: PDF, Word, Markdown, HTML, text or CSV. They are read as soon as they are saved."),
        el("li", {}, "Or add them from here, in the ", el("a", { href: "/library#add" }, "library"), "."))));
  } else {
    const indexed = (chosen ? [chosen] : domains).reduce((sum, domain) => sum + (domain.documents.indexed ?? 0), 0);
    const from = chosen ? `in ${chosen.title || chosen.name}` : `in ${count(domains.length, "domain")}`;
    parts.push(el("p", { class: "ready-line" }, `${count(indexed, "document")} ready ${from}.`, chosen?.description ? ` ${chosen.description}` : ""));
    if (guide) {
      parts.push(el("h2", { class: "examples-head" }, "Try a question about Reading Room itself"),
        el("ul", { class: "examples" }, GUIDE_EXAMPLES.map((question) =>
          el("li", {}, el("button", { type: "button", class: "example", onclick: () => submit(question) }, question)))));
    }
  }
  document.getElementById("welcome-more").replaceChildren(...parts);
}

async function loadDomains() {
  try {
    domains = await listDomains();
    showDomains();
  } catch (error) {
    if (!(error instanceof Problem)) throw error;
    document.getElementById("welcome-more").replaceChildren(el("div", { class: "problem", role: "alert" },
      el("p", { class: "problem-title" }, error.message),
      error.remedy && el("p", {}, error.remedy),
      el("button", { type: "button", class: "button", onclick: loadDomains }, "Try again")));
  }
}

function recallDomain() {
  try {
    return localStorage.getItem(DOMAIN_KEY) ?? "";
  } catch {
    return "";
  }
}

function rememberDomain() {
  try {
    localStorage.setItem(DOMAIN_KEY, picker.value);
  } catch {
    // then it holds until the page is left
  }
}

// --- what a person does ---

form.addEventListener("submit", (event) => {
  event.preventDefault();
  submit(box.value);
});
stop.addEventListener("click", () => {
  running?.stop();
  box.focus();
});
clear.addEventListener("click", () => {
  turns = [];
  transcript.replaceChildren();
  save();
  controls();
  announce("Cleared.");
  box.focus();
});
picker.addEventListener("change", () => {
  rememberDomain();
  const total = domains?.reduce((sum, domain) => sum + documentsIn(domain), 0);
  if (domains) showWelcome(total);
});
box.addEventListener("input", () => {
  grow();
  const length = [...box.value].length; // the server counts code points
  say(limit && length > limit ? `${length.toLocaleString("en")} of at most ${limit.toLocaleString("en")} characters.` : "");
});
box.addEventListener("keydown", (event) => {
  if (event.isComposing) return; // Enter then ends a word of an input method
  if (event.key === "Enter" && !event.shiftKey) {
    event.preventDefault();
    submit(box.value);
  } else if (event.key === "ArrowUp" && !box.value && turns.length) {
    event.preventDefault();
    edit(turns.at(-1).record.question);
  }
});
document.addEventListener("keydown", (event) => {
  if (document.querySelector("dialog[open]")) return;
  if (event.key === "Escape" && running) {
    running.stop();
    box.focus();
  } else if (event.key === "/" && !event.ctrlKey && !event.metaKey && !event.altKey && !event.target.closest("input, textarea, select")) {
    event.preventDefault();
    box.focus();
  }
});

transcript.append(...turns.map(({ element }) => element));
controls();
grow();
loadDomains();
// The count and the picker are stale when one comes back from the library.
document.addEventListener("visibilitychange", () => document.visibilityState === "visible" && loadDomains());
turns.at(-1)?.element.scrollIntoView({ block: "start" });
if (!coarse.matches) box.focus({ preventScroll: true });
