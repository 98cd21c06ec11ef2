/**
 * The library page: the place that is looked at, the list of documents in it with its filters and order, and what can be done with them.
 *
 * `documents` is the truth and the rows (rows.js) show it. What is live comes from live.js; after every gap the list is fetched anew. The
 * tree of places is tree.js, adding files upload.js, the text of a document viewer.js, a domain's settings domain.js.
 */

import { deleteDocument, listDocuments, listDomains, Problem, retryDocument, retryFailed } from "./api.js";
import { showBulk } from "./bulk.js";
import { confirmDelete } from "./confirm.js";
import { watchConnection } from "./connection.js";
import { announce, el, icon } from "./dom.js";
import { domainSettings, newDomain } from "./domain.js";
import { count, since } from "./format.js";
import { Live } from "./live.js";
import { leftOut, storage } from "./panels.js";
import { nameOf, Rows } from "./rows.js";
import { documentChanged, hold, limitUploads, resume } from "./sending.js";
import { showReceipt, toast } from "./toasts.js";
import { Tree } from "./tree.js";
import { offerDomains, openUpload, replaceDocument, takeDrops } from "./upload.js";
import { forgetText, openSource } from "./viewer.js";
import "./tray.js";

const STATUSES = ["indexed", "queued", "parsing", "embedding", "failed"];
const KINDS = {
  text: "Text", pdf: "PDF", document: "Documents", slides: "Slides", table: "Tables", web: "Web pages", mail: "Mail", image: "Images", data: "Data", code: "Source code", archive: "Archives", other: "Not read",
};
const SORTS = { path: "Path", name: "Name", date: "Date", size: "Size", status: "Status" };
const LARGEST_FIRST = new Set(["date", "size"]); // the way in which these are looked at mostly
const PAGE = 50;
const MOST = 500; // rows that grow by what comes in; then the list begins at its first page again
const SEARCH_AFTER = 200; // ms of quiet typing
const COUNTS_AFTER = 400; // ms; a bulk ingest sends many events a second
const TICK = 30_000; // ms between two updates of "3 minutes ago"

const $ = (id) => document.getElementById(id);
const narrow = matchMedia("(max-width: 60rem)");
const view = fromAddress(); // {q, place, status, kind, code, sort, order}
const may = { upload: true, admin: true }; // until the server has said
const tree = new Tree($("tree"), choose);
const rows = new Rows($("list"), { open, retry, replace: replaceDocument, remove }, may);
let domains = [];
let documents = new Map(); // id -> record, in the order of the list
let cursor = null;
let fetching = null; // AbortController of the list being fetched

const domainOf = (place) => place.split("/")[0];
const folderOf = (place) => (place.includes("/") ? place : "");

// --- the list ---

async function load({ more = false } = {}) {
  fetching?.abort();
  const { signal } = (fetching = new AbortController());
  const { q, place, status, kind, code, sort, order } = view;
  $("documents").setAttribute("aria-busy", "true");
  try {
    const wanted = { q, status, kind, code, sort, order, domain: domainOf(place), folder: folderOf(place), limit: PAGE, cursor: more ? cursor : null };
    const page = await listDocuments(wanted, signal);
    if (!more) documents = new Map();
    for (const record of page.items) {
      documents.set(record.id, record);
      documentChanged(record); // an upload may have come further while the stream was interrupted
    }
    cursor = page.next_cursor ?? null;
    draw();
  } catch (error) {
    if (error.name === "AbortError") return;
    if (!(error instanceof Problem)) throw error;
    showProblem(error);
  }
  $("documents").setAttribute("aria-busy", "false");
}

function draw() {
  rows.draw(documents);
  $("more").hidden = cursor === null;
  $("empty").hidden = documents.size > 0;
  if (!documents.size) showEmpty();
}

function showEmpty() {
  const filtered = view.q || view.status || view.kind || view.code;
  const add = may.upload && el("button", { type: "button", class: "button primary", onclick: () => upload() }, icon("upload"), "Add documents");
  $("empty").replaceChildren(el("div", { class: "empty" }, ...(filtered
    ? [el("h3", {}, "Nothing matches"), el("button", { type: "button", class: "button", onclick: () => go({ q: "", status: "", kind: "", code: "" }) }, "Show all documents")]
    : [
      el("h3", {}, view.place ? "No documents here yet" : "No documents yet"),
      el("p", {}, "Drop files or folders anywhere on this page, or put them into a folder below ", el("code", {}, "corpora/"), "; each folder there is a domain."),
      add,
    ].filter(Boolean))));
}

function showProblem(error) {
  if (documents.size) {
    if (error.code === "unreachable") return; // the strip says it, and the list is fetched when the server is back
    toast(`${error.message} ${error.remedy}`, "bad");
    return;
  }
  $("empty").hidden = false;
  $("empty").replaceChildren(el("div", { class: "problem", role: "alert" },
    el("p", { class: "problem-title" }, error.message),
    error.remedy && el("p", {}, error.remedy),
    el("button", { type: "button", class: "button", onclick: refresh }, icon("retry"), "Try again")));
}

// --- what is looked at: place, filters, order ---

function fromAddress() {
  const given = new URLSearchParams(location.search);
  const value = (name, known) => (known.includes(given.get(name)) ? given.get(name) : "");
  const sort = value("sort", Object.keys(SORTS)) || "path";
  return {
    q: given.get("q") ?? "", place: given.get("folder") ?? given.get("domain") ?? "", status: value("status", STATUSES), kind: value("kind", Object.keys(KINDS)),
    code: given.get("code") ?? "", sort, order: value("order", ["asc", "desc"]) || "asc",
  };
}

/** Looks at something else. It is all in the address, so that a reload and a link keep it, and a place can be gone back to. */
function go(changed) {
  const moved = "place" in changed && changed.place !== view.place;
  Object.assign(view, changed);
  const { place, q, status, kind, code, sort, order } = view;
  const given = { [folderOf(place) ? "folder" : "domain"]: place, q, status, kind, code, ...(sort === "path" && order === "asc" ? {} : { sort, order }) };
  const query = new URLSearchParams(Object.entries(given).filter(([, value]) => value));
  const address = query.size ? `?${query}` : location.pathname;
  if (moved) history.pushState(null, "", address);
  else history.replaceState(null, "", address);
  show();
  load();
}

/** A place of the tree was chosen. */
function choose(place) {
  if (narrow.matches) {
    $("places").open = false; // what was chosen lies below it
    $("places").querySelector("summary").focus();
  }
  go({ place });
}

function show() {
  if ($("q").value.trim() !== view.q) $("q").value = view.q; // not while somebody types a space
  $("kind").value = view.kind;
  $("sort").value = view.sort;
  const ascending = view.order === "asc";
  $("order").replaceChildren(icon(ascending ? "up" : "down"));
  $("order").setAttribute("aria-label", `Order: ${ascending ? "ascending" : "descending"}`);
  $("order").title = ascending ? "Ascending" : "Descending";
  const chosen = [...$("statuses").querySelectorAll("input")].find(({ value }) => value === view.status);
  if (chosen) chosen.checked = true;
  $("code").hidden = !view.code;
  $("code-name").textContent = view.code.replaceAll("_", " ");
  tree.select(view.place);
  showPlace();
  showCounts();
}

/** Where one is: the way to it, and what the domain says of itself. */
function showPlace() {
  const domain = domains.find(({ name }) => name === domainOf(view.place));
  const parts = view.place ? view.place.split("/") : [];
  const names = ["All documents", ...parts.map((part, i) => (i === 0 ? domain?.title || part : part))];
  $("crumbs").replaceChildren(...names.map((name, i) => {
    const path = parts.slice(0, i).join("/");
    return el("li", {}, i === names.length - 1
      ? el("h2", { id: "place", dir: "auto" }, name)
      : el("button", { type: "button", class: "link", dir: "auto", onclick: () => go({ place: path }) }, name));
  }));
  $("places-summary").textContent = names.slice(-2).join(" › ");
  $("place-note").textContent = domain && !folderOf(view.place) ? domain.description : "";
  $("place-note").hidden = !$("place-note").textContent;
  $("settings").hidden = !(domain && may.admin);
}

async function loadDomains() {
  try {
    domains = await listDomains();
  } catch (error) {
    if (!(error instanceof Problem)) throw error;
    return; // the list says what is wrong; the counts stay as they were
  }
  showPlace();
  showCounts();
  tree.load(domains);
  if ($("add-dialog").open) offerDomains(domains, domainOf(view.place), may.admin);
}

function showCounts() {
  const within = domainOf(view.place);
  const chosen = domains.filter(({ name }) => !within || name === within);
  const counts = Object.fromEntries(STATUSES.map((status) => [status, chosen.reduce((sum, domain) => sum + (domain.documents[status] ?? 0), 0)]));
  const total = Object.values(counts).reduce((sum, number) => sum + number, 0);
  const all = (number) => domains.reduce((sum, domain) => sum + number(domain), 0);
  const everything = all((domain) => Object.values(domain.documents).reduce((sum, number) => sum + number, 0));
  $("summary").textContent = everything
    ? `${count(everything, "document")}, ${count(all(({ chunks }) => chunks ?? 0), "passage")} in ${count(domains.length, "domain")}.`
    : "The documents that answers come from.";
  for (const input of $("statuses").querySelectorAll("input")) {
    const number = input.value ? counts[input.value] : total;
    // The counts are of domains; of a folder nobody has counted by state.
    input.parentElement.querySelector(".number").textContent = folderOf(view.place) ? "" : number.toLocaleString("en");
    // States that pass are only offered while something is in them, or when they are the chosen filter.
    const passing = ["queued", "parsing", "embedding"].includes(input.value);
    input.parentElement.hidden = passing && number === 0 && view.status !== input.value;
  }
  $("failed-note").hidden = !counts.failed || Boolean(folderOf(view.place));
  $("failed-text").textContent = `${count(counts.failed, "document")} could not be read.`;
  $("show-failed").hidden = view.status === "failed";
  const broken = chosen.filter(({ error }) => error);
  $("domain-note").hidden = !broken.length;
  $("domain-note").textContent = broken.map(({ error }) => error).join(" ");
}

function matches(record) {
  const wanted = view.q.toLowerCase();
  return (!view.place || record.domain === view.place || record.path.startsWith(`${view.place}/`))
    && (!view.status || record.status === view.status)
    && (!view.code || record.error?.code === view.code)
    && (!view.kind || documents.has(record.id)) // of which kind a new one is the server knows
    && (!wanted || record.title.toLowerCase().includes(wanted) || record.path.toLowerCase().includes(wanted));
}

// --- live ---

let countsTimer = 0;
let listTimer = 0;

function changed(records) {
  const fresh = [];
  for (const record of records) {
    forgetText(record.id);
    if (record.removed || !matches(record)) documents.delete(record.id);
    else if (documents.has(record.id)) documents.set(record.id, record);
    // A list that goes on stays as long as it is: what is new is counted above, and found by filter or reload.
    else if (cursor === null) fresh.push(record);
    if (!record.removed) documentChanged(record);
  }
  const unknown = view.kind && cursor === null && records.some(({ id, removed }) => !removed && !documents.has(id));
  const many = fresh.length > PAGE || (fresh.length > 0 && fresh.length + documents.size > MOST); // thousands of rows would stop the page
  if (many || unknown) listSoon();
  else if (fresh.length) documents = withFresh(fresh);
  draw();
  countsSoon();
}

/** By path each has its place. In another order new documents come first, and what lies in an archive or a mail comes after it. */
function withFresh(fresh) {
  if (view.sort === "path") {
    const way = view.order === "asc" ? 1 : -1;
    const all = [...documents.values(), ...fresh].sort((a, b) => (a.path < b.path ? -way : way));
    return new Map(all.map((record) => [record.id, record]));
  }
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

/** The list is fetched anew, once for all that happens meanwhile. */
function listSoon() {
  listTimer ||= setTimeout(() => {
    listTimer = 0;
    load();
  }, COUNTS_AFTER);
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

const inOrder = () => cursor === null && listSoon(); // what came in stands where it belongs

const live = new Live({
  changes: changed,
  ingest: (bulk) => showBulk(bulk, inOrder),
  gap: refresh,
  state({ max_upload_mb, ingest, may: allowed }) {
    limitUploads(max_upload_mb);
    Object.assign(may, allowed);
    for (const id of ["add", "failed-note", "left-out"]) $(id).classList.toggle("not-allowed", !may.upload);
    $("new-domain-open").classList.toggle("not-allowed", !may.admin);
    draw();
    showPlace();
    showBulk(ingest, inOrder);
    countsSoon();
  },
});

watchConnection(() => {
  live.again();
  refresh();
  resume();
});
addEventListener("readingroom:lost", hold);

// --- what a person does ---

function open(record) {
  openSource({ document_id: record.id, path: record.path, title: nameOf(record) });
}

function upload(place = view.place) {
  openUpload(domains, { domain: domainOf(place), folder: folderOf(place) }, may.admin);
}

async function retry(record) {
  await tried(async () => {
    const { files } = await retryDocument(record.id);
    announce(files ? `${nameOf(record)} is read again` : `${nameOf(record)} is no longer failed`);
  });
}

async function remove(record) {
  const members = [...documents.values()].some(({ container }) => container && `${container}/`.startsWith(`${record.path}/`));
  const meant = await confirmDelete("Delete this document?", el("strong", { dir: "auto" }, nameOf(record)), " will be removed from the watched folder (",
    el("code", {}, record.path), ") and from the index", members ? ", with all the documents that lie in it" : "", ". This cannot be undone.");
  if (!meant) return;
  const row = rows.get(record.id);
  row?.classList.add("going");
  // Where a keyboard goes on; found now, because the event may take the row away before the receipt comes.
  const neighbour = row?.nextElementSibling ?? row?.previousElementSibling;
  const done = await tried(async () => {
    const receipt = await deleteDocument(record.id);
    documents.delete(record.id);
    forgetText(record.id);
    draw();
    countsSoon();
    (neighbour?.querySelector("[data-action]") ?? $("add")).focus();
    showReceipt(receipt);
  });
  if (!done) row?.classList.remove("going");
}

/** Whether it went well; what is wrong is said. */
async function tried(act) {
  try {
    await act();
    return true;
  } catch (error) {
    if (!(error instanceof Problem)) throw error;
    toast(`${error.message} ${error.remedy}`, "bad");
    return false;
  }
}

function fillFilters() {
  for (const status of ["", ...STATUSES]) {
    $("statuses").append(el("label", { class: "status-filter", "data-status": status },
      el("input", { type: "radio", name: "status", value: status }),
      el("span", {}, status || "all", " ", el("span", { class: "number" }))));
  }
  $("kind").append(el("option", { value: "" }, "All kinds"), ...Object.entries(KINDS).map(([value, label]) => el("option", { value }, label)));
  $("sort").append(...Object.entries(SORTS).map(([value, label]) => el("option", { value }, `By ${label.toLowerCase()}`)));
}

let searchTimer = 0;
$("q").addEventListener("input", () => {
  clearTimeout(searchTimer);
  searchTimer = setTimeout(() => go({ q: $("q").value.trim() }), SEARCH_AFTER);
});
$("kind").addEventListener("change", () => go({ kind: $("kind").value }));
$("sort").addEventListener("change", () => go({ sort: $("sort").value, order: LARGEST_FIRST.has($("sort").value) ? "desc" : "asc" }));
$("order").addEventListener("click", () => go({ order: view.order === "asc" ? "desc" : "asc" }));
$("statuses").addEventListener("change", (event) => go({ status: event.target.value }));
$("code").addEventListener("click", () => go({ code: "" }));
$("filters").addEventListener("submit", (event) => event.preventDefault());
$("more").addEventListener("click", () => load({ more: true }));
$("add").addEventListener("click", () => upload());
$("show-failed").addEventListener("click", () => go({ status: "failed" }));
$("retry-all").addEventListener("click", () => tried(async () => {
  const { files } = await retryFailed(domainOf(view.place));
  toast(`${count(files, "file")} ${files === 1 ? "is" : "are"} read again.`);
}));
$("settings").addEventListener("click", () => tried(() => domainSettings(domainOf(view.place), () => {
  loadDomains();
  toast("Saved. The next question is answered with it.");
})));
$("new-domain-open").addEventListener("click", () => newDomain(async ({ name, title }) => {
  await loadDomains();
  go({ place: name });
  toast(`${title || name} is there. Add its documents now.`);
}));
$("storage").addEventListener("click", () => storage(new Map(domains.map(({ name, title }) => [name, title]))));
$("left-out").addEventListener("click", () => leftOut(domainOf(view.place), (code) => go({ status: "failed", code })));
takeDrops((path) => upload(path || view.place), () => may.upload);
addEventListener("popstate", () => {
  Object.assign(view, fromAddress());
  show();
  load();
});
setInterval(() => {
  for (const time of document.querySelectorAll("time[data-seconds]")) time.textContent = since(Number(time.dataset.seconds));
}, TICK);
const fold = () => { $("places").open = !narrow.matches; };
narrow.addEventListener("change", fold);
fold();
fillFilters();
show();
load();
loadDomains().then(() => {
  if (location.hash === "#add") upload();
});
