/**
 * The chat page: which conversation is open, the question box, the pickers, and the welcome.
 *
 * A turn runs and draws itself (turn.js), a conversation holds its turns (conversation.js), the list of them stands at the side
 * (side.js). The address says which one is open: `#c=ID`; without it a new one begins with the next question.
 */

import { listAdapters, listDomains, Problem, readConversation } from "./api.js";
import { watchConnection } from "./connection.js";
import { Conversation } from "./conversation.js";
import { announce, el } from "./dom.js";
import { Drawer } from "./drawer.js";
import { Side } from "./side.js";
import { welcomeParts } from "./welcome.js";

const DOMAIN_KEY = "readingroom.domain";
const ADAPTER_KEY = "readingroom.adapter";
const OPEN = 20; // conversations that this page remembers, so that going back to one is instant

const coarse = matchMedia("(pointer: coarse)"); // a finger, and so a keyboard that comes up on focus
const form = document.getElementById("ask");
const box = document.getElementById("question");
const send = document.getElementById("send");
const stop = document.getElementById("stop");
const hint = document.getElementById("hint");
const domainPicker = document.getElementById("domain");
const adapterPicker = document.getElementById("adapter");
const welcome = document.getElementById("welcome");
const stage = document.getElementById("turns");

let domains = null; // as the server lists them; null until it has
let kept = true; // whether the server keeps conversations
const page = { kept: () => kept, adapter: () => adapterPicker.value, placed, changed: controls, ended, askEverywhere };
const open = new Map(); // id -> Conversation, the last used ones
let current = new Conversation(page);
const side = new Side({ removed, renamed });
const drawer = new Drawer();

// --- asking ---

function submit(question, domain = domainPicker.value) {
  if (!question.trim()) return;
  const domainTitle = domains?.find(({ name }) => name === domain)?.title;
  if (!current.ask(question.trim(), { domain, domainTitle })) return;
  box.value = "";
  say("");
  grow();
  if (coarse.matches) box.blur(); // the keyboard would cover the answer
  bringToTop(current.turns.at(-1).element);
}

function askEverywhere(question) {
  domainPicker.value = "";
  remember(DOMAIN_KEY, "");
  submit(question, "");
}

/** The server has said where the answer of a turn will be kept. */
function placed(conversation, isNew) {
  if (!kept) return;
  open.set(conversation.saved, conversation);
  side.touch(conversation);
  if (conversation !== current) return;
  if (isNew) history.replaceState(null, "", `#c=${conversation.saved}`);
  side.select(conversation.saved);
  name(conversation.title);
}

function ended(conversation, turn) {
  if (turn.record.problem?.code === "invalid_question") returnQuestion(conversation, turn);
  const nothingKept = conversation.saved && conversation.turns.every(({ record }) => record.number === null);
  if (nothingKept || turn.record.problem?.code === "unknown_conversation") forget(conversation);
  if (conversation === current) controls();
}

/** A question that the server cannot take goes back into the box, with the reason below it. */
function returnQuestion(conversation, turn) {
  const { question, problem, number } = turn.record;
  if (number !== null) return; // it stands in an older turn's place, and is edited there
  conversation.drop(turn);
  if (conversation !== current) return;
  if (!box.value) box.value = question;
  grow();
  say([problem.message, problem.remedy].filter(Boolean).join(" "));
  limit = problem.limit;
  box.focus();
}

/** It was deleted elsewhere, or its only answer failed: what is asked next begins another one. */
function forget(conversation) {
  open.delete(conversation.saved);
  conversation.forget();
  if (conversation === current) history.replaceState(null, "", "/");
  side.load();
}

let limit = null; // characters, once the server has named it

function say(text) {
  hint.textContent = text;
  hint.hidden = !text;
  box.setAttribute("aria-invalid", String(Boolean(text)));
}

function bringToTop(element) {
  const calm = matchMedia("(prefers-reduced-motion: reduce)").matches;
  element.scrollIntoView({ block: "start", behavior: calm ? "auto" : "smooth" });
}

// --- which conversation is open ---

function wanted() {
  return /^#c=([\w-]+)$/.exec(location.hash)?.[1] ?? null;
}

/** Shows what the address names. */
async function follow() {
  const id = wanted();
  drawer.close();
  if (id === null) return show(current.saved === null ? current : new Conversation(page));
  if (id === current.saved) return;
  const known = open.get(id);
  if (known) return show(known);
  side.select(id);
  stage.replaceChildren(el("p", { class: "pending" }, "Opening…"));
  welcome.hidden = true;
  try {
    await (domains ? null : loading); // for the titles of domains
    const record = await readConversation(id);
    if (wanted() === id) show(new Conversation(page, record, titleOf));
  } catch (error) {
    if (!(error instanceof Problem)) throw error;
    if (wanted() === id) stage.replaceChildren(problemWith(error, () => follow()));
  }
}

function show(conversation) {
  current = conversation;
  if (conversation.saved) {
    open.delete(conversation.saved);
    open.set(conversation.saved, conversation);
    for (const [id, one] of open) if (open.size > OPEN && one.free && one !== current) open.delete(id);
  }
  stage.replaceChildren(conversation.element);
  side.select(conversation.saved);
  name(conversation.title);
  controls();
  const last = conversation.turns.at(-1)?.element;
  if (last) last.scrollIntoView({ block: "start" });
  else scrollTo(0, 0);
  if (!coarse.matches) box.focus({ preventScroll: true });
}

function begin() {
  if (location.hash) history.pushState(null, "", "/");
  drawer.close();
  show(current.turns.length ? new Conversation(page) : current);
  announce("New conversation.");
  box.focus();
}

function removed(id) {
  if (id === null) open.clear();
  else open.delete(id);
  if (id !== null && current.saved !== id) return;
  current.stop();
  current = new Conversation(page);
  history.replaceState(null, "", "/");
  show(current);
}

function renamed(id, title) {
  const conversation = open.get(id);
  if (conversation) conversation.title = title;
  if (current.saved === id) name(title);
}

function name(title) {
  document.title = title ? `${title} · Reading Room` : "Reading Room";
}

function titleOf(domain) {
  return domains?.find(({ name }) => name === domain)?.title || domain;
}

// --- what the page shows ---

function controls() {
  const running = !current.free;
  send.hidden = running;
  stop.hidden = !running;
  send.disabled = !box.value.trim();
  welcome.hidden = current.turns.length > 0;
  current.element.hidden = !current.turns.length;
}

/** The box grows with its text, up to the limit that the style sheet sets. */
function grow() {
  box.style.height = "auto"; // through the CSSOM, which the content security policy allows
  box.style.height = `${box.scrollHeight + 2}px`;
  send.disabled = !box.value.trim();
}

function problemWith(error, retry) {
  return el("div", { class: "problem", role: "alert" },
    el("p", { class: "problem-title" }, error.message),
    error.remedy && el("p", {}, error.remedy),
    el("button", { type: "button", class: "button", onclick: retry }, "Try again"));
}

function choices(picker, key, options) {
  const wanted = picker.value || recall(key); // where nothing can be remembered, what is chosen stays
  picker.replaceChildren(...options.map(([value, label]) => el("option", { value }, label)));
  picker.value = options.some(([value]) => value === wanted) ? wanted : options[0][0];
}

function showWelcome() {
  const chosen = domains.find(({ name }) => name === domainPicker.value);
  document.getElementById("welcome-more").replaceChildren(...welcomeParts(domains, chosen, submit));
}

async function loadDomains() {
  try {
    domains = await listDomains();
  } catch (error) {
    if (!(error instanceof Problem)) throw error;
    document.getElementById("welcome-more").replaceChildren(problemWith(error, loadDomains));
    return;
  }
  choices(domainPicker, DOMAIN_KEY, [["", "All documents"], ...domains.map(({ name, title }) => [name, title || name])]);
  const total = domains.flatMap(({ documents }) => Object.values(documents)).reduce((sum, number) => sum + number, 0);
  const badge = document.getElementById("library-count");
  badge.textContent = total.toLocaleString("en");
  badge.hidden = false;
  showWelcome();
}

async function loadAdapters() {
  try {
    const adapters = await listAdapters();
    choices(adapterPicker, ADAPTER_KEY, [["", "Usual adapter"], ["none", "No adapter"], ...adapters.map(({ name }) => [name, name])]);
    document.getElementById("adapter-label").hidden = !adapters.length;
  } catch (error) {
    if (!(error instanceof Problem)) throw error; // without the list, the usual one answers
  }
}

async function loadSide() {
  const answer = await side.load();
  if (answer === null) return;
  kept = answer;
  drawer.offer(kept);
}

function refresh() {
  return Promise.all([loadDomains(), loadAdapters(), loadSide()]);
}

function recall(key) {
  try {
    return localStorage.getItem(key) ?? "";
  } catch {
    return "";
  }
}

function remember(key, value) {
  try {
    localStorage.setItem(key, value);
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
  current.stop();
  box.focus();
});
document.getElementById("new").addEventListener("click", begin);
document.querySelector(".brand").addEventListener("click", (event) => {
  if (event.ctrlKey || event.metaKey || event.shiftKey) return;
  event.preventDefault();
  begin();
});
domainPicker.addEventListener("change", () => {
  remember(DOMAIN_KEY, domainPicker.value);
  if (domains) showWelcome();
});
adapterPicker.addEventListener("change", () => remember(ADAPTER_KEY, adapterPicker.value));
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
  } else if (event.key === "ArrowUp" && !box.value && current.turns.length && current.free) {
    event.preventDefault();
    current.turns.at(-1).edit();
  }
});
document.addEventListener("keydown", (event) => {
  if (event.defaultPrevented || document.querySelector("dialog[open], :popover-open")) return;
  if (event.key === "Escape" && !current.free) {
    current.stop();
    box.focus();
  } else if (event.key === "/" && !event.ctrlKey && !event.metaKey && !event.altKey && !event.target.closest("input, textarea, select")) {
    event.preventDefault();
    box.focus();
  }
});
addEventListener("hashchange", follow);
addEventListener("popstate", follow);

stage.append(current.element);
controls();
grow();
const loading = refresh();
follow();
watchConnection(refresh);
// The counts, the pickers and the list are stale when one comes back from the library or another tab.
document.addEventListener("visibilitychange", () => document.visibilityState === "visible" && refresh());
