/**
 * Adding documents: gathers dropped or chosen files, asks for the domain, sends them, shows how far each one is.
 *
 * It ends where the server has taken a file (202); from there on the document's own status tells, which library.js
 * passes in through `documentChanged`. XMLHttpRequest, because fetch does not tell the progress of an upload.
 */

import { Problem } from "./api.js";
import { announce, el, icon } from "./dom.js";
import { bytes, count } from "./format.js";

const AT_ONCE = 2; // uploads in flight: keeps the line busy and leaves the browser's connections to the page
const ROWS = 60; // of more files than this, only those that run or failed have a row

const $ = (id) => document.getElementById(id);
const dialog = $("add-dialog");
const domainSelect = $("add-domain");
const newDomain = $("new-domain");
const NEW = "\u0000new"; // no folder can be called this

let gathered = []; // [{file, name}] in the dialog
let flattened = false;
const jobs = []; // every upload since the page was opened or the tray dismissed
const taken = new Map(); // document id -> the last job that made it
let largest = Infinity; // bytes the server takes
const heard = new Map(); // document id -> {record, at}: what the events said, maybe before the upload's own answer came
let running = 0;

/** The server's limit, so that a file that is too large is not sent in vain. */
export function limitUploads(mebibytes) {
  largest = mebibytes * 2 ** 20;
}

const tooLarge = () => new Problem({
  code: "too_large",
  detail: `The file is larger than ${Math.round(largest / 2 ** 20)} MiB.`,
  remedy: "Put it into the folder directly, or raise server.max_upload_mb.",
});

// --- gathering ---

/** The files of a drop, folders walked through. Must be called within the drop event: its data is gone afterwards. */
function filesOf(dataTransfer) {
  const entries = [...dataTransfer.items].filter((item) => item.kind === "file").map((item) => item.webkitGetAsEntry() ?? item.getAsFile()).filter(Boolean);
  return Promise.all(entries.map(walk)).then((lists) => lists.flat());
}

async function walk(entry) {
  if (entry instanceof File) return [{ file: entry, path: entry.name }];
  const path = entry.fullPath.replace(/^\//, "");
  if (entry.isFile) return [{ file: await new Promise((resolve, reject) => entry.file(resolve, reject)), path }];
  const reader = entry.createReader();
  const found = [];
  for (;;) {
    // A reader hands out at most a hundred entries at a time, and none when it is through.
    const some = await new Promise((resolve, reject) => reader.readEntries(resolve, reject));
    if (!some.length) return found;
    for (const one of some) found.push(...(await walk(one)));
  }
}

/** What systems leave in folders (.DS_Store, Thumbs.db) is no document; the server would ignore it too. */
const isNoise = (path) => path.split("/").some((part) => part.startsWith(".") || part.startsWith("~$")) || /(^|\/)(Thumbs\.db|desktop\.ini)$/.test(path);

/** A domain takes files, not folders: files of one name get the names of their folders in front. */
function flatten(files) {
  const nameOf = (path) => path.split("/").at(-1);
  const times = new Map();
  for (const { path } of files) times.set(nameOf(path), (times.get(nameOf(path)) ?? 0) + 1);
  return files.map(({ file, path }) => ({ file, name: times.get(nameOf(path)) > 1 ? path.replaceAll("/", "-") : nameOf(path) }));
}

function gather(files) {
  const wanted = files.filter(({ path }) => !isNoise(path));
  gathered = flatten(wanted);
  flattened = wanted.some(({ path }) => path.includes("/"));
  const skipped = files.length - wanted.length;
  $("chosen").textContent = gathered.length
    ? `${count(gathered.length, "file")}, ${bytes(gathered.reduce((sum, { file }) => sum + file.size, 0))}${gathered.length <= 3 ? `: ${gathered.map(({ name }) => name).join(", ")}` : ""}`
    : files.length ? "There are only hidden or temporary files in there." : "Drop files or folders here, or";
  const notes = [];
  if (flattened) notes.push("Folders are not kept: all their files go directly into the domain.");
  if (gathered.length && skipped) notes.push(`${count(skipped, "hidden or temporary file")} left out.`);
  $("flatten-note").textContent = notes.join(" ");
  $("flatten-note").hidden = !notes.length;
  $("add-send").disabled = !gathered.length;
  $("add-send").textContent = gathered.length ? `Add ${count(gathered.length, "file")}` : "Add";
}

// --- the dialog ---

/** Opens the dialog; `domains` are those to choose from, `preferred` the one that is filtered for. */
export function openUpload(domains, preferred, files = []) {
  if (dialog.open) {
    gather(files); // dropped onto the open dialog: the domain chosen there holds
    return;
  }
  domainSelect.replaceChildren(
    ...(domains.length > 1 && !preferred ? [el("option", { value: "", disabled: true, selected: true }, "Choose one…")] : []),
    ...domains.map(({ name, title }) => el("option", { value: name }, title && title !== name ? `${title} (${name})` : name)),
    el("option", { value: NEW }, "New domain…"));
  if (preferred) domainSelect.value = preferred;
  showNewDomain();
  gather(files);
  dialog.showModal();
  if (files.length) domainSelect.focus();
}

function showNewDomain() {
  const isNew = domainSelect.value === NEW;
  $("new-domain-field").hidden = !isNew;
  newDomain.required = isNew;
}

domainSelect.addEventListener("change", () => {
  showNewDomain();
  if (domainSelect.value === NEW) newDomain.focus();
});
newDomain.addEventListener("input", () => {
  // The server has the last word; this catches what can never be the name of one folder.
  const bad = /[/\\]|^\.|^\s|\s$/.test(newDomain.value);
  newDomain.setCustomValidity(bad ? "The name of one folder: no slashes, not beginning with a dot, no spaces at its ends." : "");
});
$("choose-files").addEventListener("click", () => $("files").click());
$("choose-folder").addEventListener("click", () => $("folder").click());
for (const id of ["files", "folder"]) {
  $(id).addEventListener("change", ({ target }) => {
    gather([...target.files].map((file) => ({ file, path: file.webkitRelativePath || file.name })));
    target.value = ""; // so that choosing the same file again is a change
  });
}
$("add-cancel").addEventListener("click", () => dialog.close());
$("add-form").addEventListener("submit", () => {
  const create = domainSelect.value === NEW;
  const domain = create ? newDomain.value : domainSelect.value;
  const batch = gathered.map(({ file, name }) => ({ file, name, domain, create, state: "waiting", sent: 0, document: null, problem: null, row: null }));
  jobs.push(...batch);
  newDomain.value = "";
  announce(`Adding ${count(batch.length, "file")} to ${domain}`);
  draw();
  next();
});

/** Lets the whole page take drops. `open(files)` is called with what was dropped. */
export function takeDrops(open) {
  const overlay = $("overlay");
  const hasFiles = (event) => [...event.dataTransfer.types].includes("Files");
  let depth = 0; // enter and leave come for every element on the way
  document.addEventListener("dragenter", (event) => {
    if (!hasFiles(event)) return;
    depth += 1;
    overlay.hidden = false;
  });
  document.addEventListener("dragleave", (event) => {
    if (!hasFiles(event)) return;
    depth = Math.max(0, depth - 1);
    overlay.hidden = depth === 0;
  });
  document.addEventListener("dragover", (event) => {
    if (!hasFiles(event)) return;
    event.preventDefault();
    event.dataTransfer.dropEffect = "copy";
  });
  document.addEventListener("drop", async (event) => {
    if (!hasFiles(event)) return;
    event.preventDefault();
    depth = 0;
    overlay.hidden = true;
    open(await filesOf(event.dataTransfer));
  });
}

// --- sending ---

function next() {
  while (running < AT_ONCE) {
    const job = jobs.find(({ state }) => state === "waiting");
    if (!job) return;
    running += 1;
    send(job).finally(() => {
      running -= 1;
      draw();
      next();
    });
  }
}

function send(job) {
  if (job.file.size > largest) {
    Object.assign(job, { state: "failed", problem: tooLarge() });
    return Promise.resolve();
  }
  job.state = "sending";
  const begun = performance.now();
  draw();
  return new Promise((resolve) => {
    const request = new XMLHttpRequest();
    const finish = (state, problem = null) => {
      Object.assign(job, { state, problem, request: null });
      resolve();
    };
    job.request = request;
    request.upload.addEventListener("progress", (event) => {
      job.sent = event.lengthComputable ? event.loaded / event.total : 0;
      drawRow(job);
    });
    request.addEventListener("load", () => {
      let body = null;
      try {
        body = JSON.parse(request.responseText);
      } catch {
        // judged by its status below
      }
      if (request.status >= 200 && request.status < 300 && body?.id) {
        const news = heard.get(body.id);
        job.document = news?.at > begun ? news.record : body;
        taken.set(body.id, job);
        finish("taken");
      } else {
        finish("failed", Problem.from(body, request.status));
      }
    });
    request.addEventListener("error", () => {
      // A server that refuses a large body early closes the line, which looks the same as one that is gone.
      finish("failed", job.sent > 0 ? new Problem({ code: "broken_off", detail: "The upload broke off.", remedy: "The file may be larger than the server takes, or the server stopped. Try again, or put the file into the folder directly." }) : Problem.unreachable());
    });
    request.addEventListener("abort", () => finish("failed", new Problem({ code: "stopped", detail: "Stopped.", remedy: "" })));
    const form = new FormData();
    form.append("domain", job.domain); // before the file, so that the server knows where it goes when it comes
    if (job.create) form.append("create", "true");
    form.append("file", job.file, job.name);
    request.open("POST", "/rag/documents");
    request.setRequestHeader("Accept", "application/json");
    request.send(form);
  });
}

/** A document of the library has a new state; if it was uploaded here, its row follows. */
export function documentChanged(record) {
  if (running) heard.set(record.id, { record, at: performance.now() });
  else heard.clear();
  const job = taken.get(record.id);
  if (!job) return;
  job.document = record;
  drawRow(job);
  summaryTimer ||= setTimeout(summary, 0); // once for all the events that are drawn together
}

// --- the tray ---

const WORDS = { waiting: "waiting", queued: "waiting to be read", parsing: "being read", embedding: "being indexed", indexed: "ready to ask" };

function draw() {
  $("tray").hidden = !jobs.length;
  const few = jobs.length <= ROWS;
  for (const job of jobs) {
    const shown = few || job.state === "sending" || job.state === "failed" || job.document?.status === "failed";
    if (shown && !job.row) {
      job.row = el("li", { class: "upload" });
      $("tray-list").append(job.row);
    } else if (!shown && job.row) {
      job.row.remove();
      job.row = null;
    }
    drawRow(job);
  }
  summary();
}

let summaryTimer = 0;

function summary() {
  summaryTimer = 0;
  const of = (...states) => jobs.filter(({ state }) => states.includes(state)).length;
  const ready = jobs.filter(({ document }) => document?.status === "indexed").length;
  const failed = of("failed") + jobs.filter(({ document }) => document?.status === "failed").length;
  const open = of("waiting", "sending");
  const parts = [`${of("taken").toLocaleString("en")} of ${count(jobs.length, "file")} sent`, `${ready.toLocaleString("en")} ready to ask`];
  if (failed) parts.push(`${failed.toLocaleString("en")} failed`);
  $("tray-summary").textContent = parts.join(" · ");
  $("tray-clear").hidden = open > 0;
}

function drawRow(job) {
  if (!job.row) return;
  const { state, document: taken, problem, sent, row } = job;
  const failure = problem ?? taken?.error;
  const look = failure ? "failed" : taken ? taken.status : state;
  // Built anew only when its state changes, so that a button in focus stays while the percentage runs.
  const key = JSON.stringify([look, failure]);
  if (row.dataset.key !== key) {
    const stop = state === "sending" || state === "waiting";
    row.dataset.key = key;
    row.dataset.look = look;
    row.replaceChildren(
      el("span", { class: "upload-name", dir: "auto" }, job.name, el("span", { class: "path" }, ` ${job.domain} · ${bytes(job.file.size)}`)),
      state === "sending" ? el("progress", { max: "1", value: "0", "aria-label": `Upload of ${job.name}` }) : "",
      el("span", { class: "upload-state" }, look === "indexed" ? icon("check") : look === "failed" ? icon("alert") : "",
        el("span", { class: "words" }, failure ? "failed" : WORDS[look] ?? "")),
      stop ? el("button", { type: "button", class: "button quiet square", "aria-label": `Stop the upload of ${job.name}`, onclick: () => halt(job) }, icon("close")) : "",
      problem ? el("button", { type: "button", class: "button quiet", onclick: () => again(job) }, icon("retry"), "Try again") : "",
      failure ? el("p", { class: "upload-problem" }, [failure.message, failure.remedy].filter(Boolean).join(" ")) : "");
  }
  if (state === "sending") {
    row.querySelector("progress").value = sent;
    row.querySelector(".words").textContent = sent < 1 ? `${Math.round(sent * 100)} %` : "waiting for the server";
  } else if (!failure && taken && Number.isFinite(taken.progress)) {
    row.querySelector(".words").textContent = `${WORDS[look]}, ${Math.floor(taken.progress * 100)} %`;
  }
}

function halt(job) {
  if (job.request) job.request.abort();
  else Object.assign(job, { state: "failed", problem: new Problem({ code: "stopped", detail: "Stopped.", remedy: "" }) });
  draw();
}

function again(job) {
  Object.assign(job, { state: "waiting", sent: 0, problem: null, document: null });
  draw();
  next();
}

$("tray-clear").addEventListener("click", () => {
  jobs.length = 0;
  taken.clear();
  $("tray-list").replaceChildren();
  draw();
  $("add").focus();
});
