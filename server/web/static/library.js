/**
 * The library page: the list of documents with its filters, live states, and deleting.
 *
 * `documents` is the truth and the rows show it. What is live comes from `/rag/events`; after every gap in that
 * stream the list is fetched anew, because what happened meanwhile is not repeated. Uploading is in upload.js, the
 * text of a document in viewer.js.
 */

import { deleteDocument, fileAddress, listDocuments, listDomains, Problem } from "./api.js";
import { announce, el, icon } from "./dom.js";
import { bytes, count, exactly, remaining, since } from "./format.js";
import { documentChanged, limitUploads, openUpload, takeDrops } from "./upload.js";
import { forgetText, openSource } from "./viewer.js";

const STATUSES = ["indexed", "queued", "parsing", "embedding", "failed"];
const PAGE = 50;
const MOST = 500; // rows that grow by what comes in; then the list begins at its first page again
const SEARCH_AFTER = 200; // ms of quiet typing
const COUNTS_AFTER = 400; // ms; a bulk ingest sends many events a second
const DRAW_AFTER = 100; // ms in which events gather before they are drawn
const BULK = 5; // so many documents at once are a bulk that has a bar of its own
const BULK_STAYS = 4_000; // ms that a full bar can be seen
const RECONNECT_AFTER = 2_000; // ms, when the browser itself has given up
const TICK = 30_000; // ms between two updates of "3 minutes ago"

const $ = (id) => document.getElementById(id);
const filters = filtersFromAddress();
let domains = [];
let documents = new Map(); // id -> record, in the order of the list
const rows = new Map(); // id -> <li>
let cursor = null;
let fetching = null; // AbortController of the list being fetched

// --- the list ---

async function load({ more = false } = {}) {
  fetching?.abort();
  fetching = new AbortController();
  const { signal } = fetching;
  $("documents").setAttribute("aria-busy", "true");
  try {
    const page = await listDocuments({ ...filters, limit: PAGE, cursor: more ? cursor : null }, signal);
    if (!more) documents = new Map();
    for (const record of page.items) {
      documents.set(record.id, record);
      documentChanged(record); // an upload may have come further while the stream was interrupted
    }
    cursor = page.next_cursor ?? null;
    draw();
    $("documents").setAttribute("aria-busy", "false");
  } catch (error) {
    if (error.name === "AbortError") return;
    if (!(error instanceof Problem)) throw error;
    $("documents").setAttribute("aria-busy", "false");
    showProblem(error);
  }
}

function draw() {
  for (const [id, row] of rows) {
    if (documents.has(id)) continue;
    row.remove();
    rows.delete(id);
  }
  let previous = null;
  for (const record of documents.values()) {
    const row = rowOf(record);
    const place = previous ? previous.nextSibling : $("list").firstChild;
    if (row !== place) $("list").insertBefore(row, place);
    previous = row;
  }
  $("more").hidden = cursor === null;
  showEmpty();
}

function rowOf(record) {
  let row = rows.get(record.id);
  if (!row) {
    row = el("li", { class: "document" });
    rows.set(record.id, row);
  }
  if (row.record === record) return row;
  row.record = record;
  // Only the share of a stage has moved: the row stays as it is, and with it the focus and what a screen reader is at.
  const key = JSON.stringify({ ...record, progress: null });
  if (row.key !== key) {
    row.key = key;
    const focused = row.contains(document.activeElement) ? document.activeElement.dataset.action : null;
    row.replaceChildren(...cells(record));
    row.dataset.status = record.status;
    row.classList.toggle("member", Boolean(record.container));
    // The element in focus has been replaced; a keyboard must not fall back to the top of the page for that.
    if (focused) row.querySelector(`[data-action="${focused}"]`)?.focus();
  }
  showStage(row, record);
  return row;
}

/** The bar of a document that is being read or indexed, once the server knows how far it is. */
function showStage(row, { status, progress }) {
  const stage = row.querySelector(".stage");
  if (!stage) return;
  stage.hidden = progress === null || progress === undefined;
  if (stage.hidden) return;
  const percent = Math.floor(progress * 100);
  const bar = stage.querySelector("progress");
  bar.value = progress;
  bar.setAttribute("aria-valuetext", `${status}, ${percent} %`);
  stage.querySelector(".percent").textContent = `${percent} %`;
}

function cells(record) {
  const name = record.title || record.path.split("/").at(-1);
  const size = [bytes(record.bytes), record.status === "indexed" ? count(record.chunks, "passage") : null].filter(Boolean).join(" · ");
  const busy = ["parsing", "embedding"].includes(record.status);
  const within = record.container && record.container.split("/").at(-1);
  const when = record.indexed_at ?? record.modified_at;
  const times = [`Modified ${exactly(record.modified_at)}`, record.indexed_at ? `indexed ${exactly(record.indexed_at)}` : null].filter(Boolean).join(", ");
  const titled = record.status === "indexed"
    ? el("button", { type: "button", class: "document-title", dir: "auto", "data-action": "open", onclick: () => openSource({ document_id: record.id, path: record.path, title: name }) }, name)
    : el("span", { class: "document-title", dir: "auto" }, name);
  return [
    el("span", { class: "chip", "data-status": record.status }, record.status),
    el("div", { class: "document-name" }, titled, el("p", { class: "path" }, record.path),
      within && el("p", { class: "within" }, "in ", el("bdi", {}, within), ", and changed or deleted with it")),
    el("div", { class: "document-size" }, el("p", {}, size),
      busy && el("p", { class: "stage", hidden: true }, el("progress", { max: "1", value: "0", "aria-label": name }), el("span", { class: "percent", "aria-hidden": "true" }))),
    el("p", { class: "document-time", title: times }, el("span", { class: "verb" }, record.indexed_at ? "indexed " : "modified "),
      el("time", { datetime: new Date(when * 1000).toISOString(), "data-seconds": when }, since(when))),
    el("div", { class: "document-actions" },
      el("a", { class: "button quiet square", href: fileAddress(record.id), target: "_blank", rel: "noopener", "data-action": "file", title: "Original file", "aria-label": `Original file of ${name}, opens in a new tab` }, icon("external")),
      !within && el("button", { type: "button", class: "button quiet square", "data-action": "delete", title: "Delete", "aria-label": `Delete ${name}`, onclick: () => askToDelete(record) }, icon("trash"))),
    record.error ? el("div", { class: "document-error" }, el("p", {}, record.error.message), record.error.remedy && el("p", { class: "remedy" }, record.error.remedy)) : "",
  ];
}

function showEmpty() {
  const filtered = filters.q || filters.status || filters.domain;
  $("empty").hidden = documents.size > 0;
  if (documents.size) return;
  $("empty").replaceChildren(el("div", { class: "empty" }, ...(filtered
    ? [el("h2", {}, "Nothing matches"), el("button", { type: "button", class: "button", onclick: clearFilters }, "Show all documents")]
    : [
      el("h2", {}, "No documents yet"),
      el("p", {}, "Drop files anywhere on this page, or put them into a folder below ", el("code", {}, "corpora/"), "; each folder there is a domain."),
      el("button", { type: "button", class: "button primary", onclick: () => upload() }, icon("upload"), "Add documents"),
    ])));
}

function showProblem(error) {
  if (documents.size) {
    toast(`${error.message} ${error.remedy}`, "bad");
    return;
  }
  $("empty").hidden = false;
  $("empty").replaceChildren(el("div", { class: "problem", role: "alert" },
    el("p", { class: "problem-title" }, error.message),
    error.remedy && el("p", {}, error.remedy),
    el("button", { type: "button", class: "button", onclick: refresh }, icon("retry"), "Try again")));
}

// --- counts and filters ---

async function loadDomains() {
  try {
    domains = await listDomains();
  } catch (error) {
    if (!(error instanceof Problem)) throw error;
    return; // the list says what is wrong; the counts stay as they were
  }
  const select = $("domain");
  select.replaceChildren(el("option", { value: "" }, "All domains"), ...domains.map(({ name, title }) => el("option", { value: name }, title || name)));
  if (filters.domain && !domains.some(({ name }) => name === filters.domain)) select.append(el("option", { value: filters.domain }, filters.domain));
  select.value = filters.domain;
  showCounts();
}

function showCounts() {
  const chosen = domains.filter(({ name }) => !filters.domain || name === filters.domain);
  const counts = Object.fromEntries(STATUSES.map((status) => [status, chosen.reduce((sum, domain) => sum + (domain.documents[status] ?? 0), 0)]));
  const total = Object.values(counts).reduce((sum, number) => sum + number, 0);
  const passages = chosen.reduce((sum, domain) => sum + (domain.chunks ?? 0), 0);
  $("summary").textContent = total
    ? `${count(total, "document")}, ${count(passages, "passage")}${filters.domain ? "" : ` in ${count(domains.length, "domain")}`}.`
    : "The documents that answers come from.";
  for (const input of $("statuses").querySelectorAll("input")) {
    const number = input.value ? counts[input.value] : total;
    input.parentElement.querySelector(".number").textContent = number.toLocaleString("en");
    // States that pass are only offered while something is in them, or when they are the chosen filter.
    const passing = ["queued", "parsing", "embedding"].includes(input.value);
    input.parentElement.hidden = passing && number === 0 && filters.status !== input.value;
  }
  const broken = chosen.filter(({ error }) => error);
  $("domain-note").hidden = !broken.length;
  $("domain-note").textContent = broken.map(({ error }) => error).join(" ");
}

function buildStatuses() {
  for (const status of ["", ...STATUSES]) {
    $("statuses").append(el("label", { class: "status-filter", "data-status": status },
      el("input", { type: "radio", name: "status", value: status, checked: filters.status === status }),
      el("span", {}, status || "all", " ", el("span", { class: "number" }))));
  }
}

function filtersFromAddress() {
  const given = new URLSearchParams(location.search);
  return { q: given.get("q") ?? "", domain: given.get("domain") ?? "", status: given.get("status") ?? "" };
}

/** The filters are in the address, so that a reload and a link keep them. */
function filtersChanged() {
  const given = Object.entries(filters).filter(([, value]) => value);
  history.replaceState(null, "", given.length ? `?${new URLSearchParams(given)}` : location.pathname);
  showCounts();
  load();
}

function clearFilters() {
  Object.assign(filters, { q: "", domain: "", status: "" });
  $("q").value = "";
  $("domain").value = "";
  $("statuses").querySelector('input[value=""]').checked = true;
  filtersChanged();
}

function matches(record) {
  const wanted = filters.q.toLowerCase();
  return (!filters.domain || record.domain === filters.domain)
    && (!filters.status || record.status === filters.status)
    && (!wanted || record.title.toLowerCase().includes(wanted) || record.path.toLowerCase().includes(wanted));
}

// --- live ---

let stream = null;
let lost = false;
let countsTimer = 0;
const changes = new Map(); // id -> record or null; drawn together, once a frame

function connect() {
  stream?.close();
  stream = new EventSource("/rag/events");
  stream.addEventListener("open", () => {
    if (lost) refresh();
    lost = false;
    $("connection").hidden = true;
  });
  stream.addEventListener("document", (event) => change(JSON.parse(event.data)));
  stream.addEventListener("removed", (event) => change({ ...JSON.parse(event.data), removed: true }));
  stream.addEventListener("state", (event) => {
    const state = JSON.parse(event.data);
    limitUploads(state.max_upload_mb);
    showBulk(state.ingest);
    countsSoon();
  });
  stream.addEventListener("ingest", (event) => showBulk(JSON.parse(event.data)));
  stream.addEventListener("resync", refresh); // the server let events go, because this page did not keep up
  stream.addEventListener("error", () => {
    lost = true;
    $("connection").textContent = "Reconnecting to the server…";
    $("connection").hidden = false;
    // The browser reconnects by itself, but not after an answer that was no stream (a proxy, a 503).
    if (stream.readyState === EventSource.CLOSED) setTimeout(connect, RECONNECT_AFTER);
  });
}

/** A page nobody sees keeps no connection: browsers allow six to a server, and tabs share them. */
function followVisibility() {
  if (document.visibilityState === "hidden") {
    stream?.close();
    stream = null;
  } else if (!stream) {
    connect();
    refresh();
  }
}

function change(record) {
  if (!changes.size) setTimeout(applyChanges, DRAW_AFTER);
  changes.set(record.id, record);
  countsSoon();
}

function applyChanges() {
  const fresh = [];
  for (const record of changes.values()) {
    forgetText(record.id);
    if (record.removed || !matches(record)) documents.delete(record.id);
    else if (documents.has(record.id)) documents.set(record.id, record);
    // A list that goes on stays as long as it is: what is new is counted above, and found by filter or reload.
    else if (cursor === null) fresh.push(record);
    if (!record.removed) documentChanged(record);
  }
  changes.clear();
  if (fresh.length > PAGE || fresh.length + documents.size > MOST) listSoon(); // thousands of rows would stop the page
  else if (fresh.length) documents = withFresh(fresh);
  draw();
}

/** New documents come first; what lies in an archive or a mail comes after it. */
function withFresh(fresh) {
  const merged = new Map();
  const inside = new Map(); // path of a container -> new documents in it
  const add = (record) => {
    merged.set(record.id, record);
    const members = inside.get(record.path);
    inside.delete(record.path);
    members?.forEach(add);
  };
  fresh.sort((a, b) => (a.path < b.path ? -1 : 1));
  const known = new Set([...documents.values(), ...fresh].map(({ path }) => path));
  for (const record of fresh.filter(({ container }) => known.has(container))) {
    inside.set(record.container, [...(inside.get(record.container) ?? []), record]);
  }
  for (const record of fresh) if (!known.has(record.container)) add(record);
  for (const record of documents.values()) add(record);
  return merged;
}

let listTimer = 0;

/** The list is fetched anew, once for all that happens meanwhile. */
function listSoon() {
  listTimer ||= setTimeout(() => {
    listTimer = 0;
    load();
  }, COUNTS_AFTER);
}

let bulkTimer = 0;
let bulkShown = false;

/** The bar over the list, while many documents come in. Its text is no live region: only the end is announced. */
function showBulk({ done, of, failed, left_s }) {
  const running = done < of;
  if (running ? of < BULK : !bulkShown) return;
  clearTimeout(bulkTimer);
  const parts = [`${done.toLocaleString("en")} of ${count(of, "document")} read`];
  if (failed) parts.push(`${failed.toLocaleString("en")} failed`);
  if (running && left_s !== null) parts.push(`about ${remaining(left_s)} left`);
  $("bulk-text").textContent = parts.join(" · ");
  $("bulk-bar").value = of ? done / of : 1;
  $("bulk").hidden = false;
  if (running === bulkShown) return;
  bulkShown = running;
  announce(running ? `${count(of, "document")} are being read` : parts.join(", "));
  if (running) return;
  bulkTimer = setTimeout(() => { $("bulk").hidden = true; }, BULK_STAYS);
  if (cursor === null) listSoon(); // in the order of the paths again
}

function countsSoon() {
  countsTimer ||= setTimeout(() => {
    countsTimer = 0;
    loadDomains();
  }, COUNTS_AFTER);
}

function refresh() {
  loadDomains();
  load();
}

// --- deleting ---

let deleting = null;

function askToDelete(record) {
  deleting = record;
  $("delete-text").replaceChildren(
    el("strong", { dir: "auto" }, record.title || record.path), " will be removed from the watched folder (", el("code", {}, record.path),
    ") and from the index",
    [...documents.values()].some(({ container }) => container && `${container}/`.startsWith(`${record.path}/`)) ? ", with all the documents that lie in it" : "", ". This cannot be undone.");
  $("delete-dialog").returnValue = "cancel"; // what Escape means
  $("delete-dialog").showModal();
}

$("delete-dialog").addEventListener("close", async () => {
  const record = deleting;
  deleting = null;
  if ($("delete-dialog").returnValue !== "delete") return;
  const row = rows.get(record.id);
  row?.classList.add("going");
  // Where a keyboard goes on; found now, because the event may take the row away before the receipt comes.
  const neighbour = row?.nextElementSibling ?? row?.previousElementSibling;
  try {
    const receipt = await deleteDocument(record.id);
    documents.delete(record.id);
    forgetText(record.id);
    draw();
    countsSoon();
    (neighbour?.querySelector("[data-action]") ?? $("add")).focus();
    showReceipt(receipt);
  } catch (error) {
    if (!(error instanceof Problem)) throw error;
    row?.classList.remove("going");
    toast(`${error.message} ${error.remedy}`, "bad");
  }
});

/** The receipt says what is gone; `remaining` was asked of the index anew, and is 0 unless something is wrong. */
function showReceipt({ path, vectors, cache_entries, remaining }) {
  const removed = [count(vectors, "passage"), "its text", cache_entries ? count(cache_entries, "cache entry", "cache entries") : null].filter(Boolean).join(", ");
  if (remaining) toast(`${path} was deleted, but ${count(remaining, "passage")} of it can still be found. Delete it again, or run readingroom ingest.`, "bad");
  else toast(`Deleted ${path}: ${removed} removed. Nothing of it is left in the index.`);
}

function toast(text, look = "good") {
  const element = el("div", { class: "toast", "data-look": look, role: look === "bad" ? "alert" : null },
    el("p", {}, text),
    el("button", { type: "button", class: "button quiet square", "aria-label": "Dismiss", onclick: () => element.remove() }, icon("close")));
  $("toasts").append(element);
  if (look !== "bad") {
    announce(text);
    setTimeout(() => element.remove(), 10_000);
  }
}

// --- what a person does ---

function upload(files = []) {
  openUpload(domains, filters.domain, files);
}

let searchTimer = 0;
$("q").addEventListener("input", () => {
  clearTimeout(searchTimer);
  searchTimer = setTimeout(() => {
    filters.q = $("q").value.trim();
    filtersChanged();
  }, SEARCH_AFTER);
});
$("domain").addEventListener("change", () => {
  filters.domain = $("domain").value;
  filtersChanged();
});
$("statuses").addEventListener("change", (event) => {
  filters.status = event.target.value;
  filtersChanged();
});
$("filters").addEventListener("submit", (event) => event.preventDefault());
$("more").addEventListener("click", () => load({ more: true }));
$("add").addEventListener("click", () => upload());
document.addEventListener("visibilitychange", followVisibility);
setInterval(() => {
  for (const time of document.querySelectorAll("time[data-seconds]")) time.textContent = since(Number(time.dataset.seconds));
}, TICK);

$("q").value = filters.q;
buildStatuses();
takeDrops(upload);
connect();
load();
loadDomains().then(() => {
  if (location.hash === "#add") upload();
});
