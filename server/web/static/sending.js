/**
 * The uploads of this page: sends files one after the other, waits where the server asks for it or is away, and knows how far each one is.
 *
 * It ends where the server has taken a file (202); from there on the document's own status tells, which library.js passes in through
 * `documentChanged`. XMLHttpRequest, because fetch does not tell the progress of an upload. How it looks: tray.js.
 */

import { Problem, readiness } from "./api.js";

const AT_ONCE = 2; // uploads in flight: keeps the line busy and leaves the browser's connections to the page
const PATIENCE_S = 60; // a wait that the server asks for is waited up to this long, and said beyond it
const TRIES = 10;

/** Every upload since the page was opened or the tray dismissed: {file, name, domain, folder, create, state, sent, document, problem}. */
export const jobs = [];

const taken = new Map(); // document id -> the last job that made it
const heard = new Map(); // document id -> {record, at}: what the events said, maybe before the upload's own answer came
let largest = Infinity; // bytes the server takes
let running = 0;
let held = false; // the server is away
let pausedUntil = 0;
let tell = () => {};

/** `listener(job)` is called when a job has changed, `listener(null)` when others have come or gone. */
export function followJobs(listener) {
  tell = listener;
}

/** The server's limit, so that a file that is too large is not sent in vain. */
export function limitUploads(mebibytes) {
  largest = mebibytes * 2 ** 20;
}

/** Whether uploads wait for a server that is away. */
export const isHeld = () => held;

/** Sends files: [{file, name, folder}] into a domain, which is made if `create`. */
export function enqueue(files, domain, create) {
  jobs.push(...files.map(({ file, name, folder }) => ({ file, name, folder, domain, create, state: "waiting", sent: 0, tries: 0, document: null, problem: null })));
  tell(null);
  next();
}

/** Stops an upload that waits or is being sent. */
export function halt(job) {
  const stopped = new Problem({ code: "stopped", detail: "Stopped.", remedy: "" });
  if (job.request) job.request.abort();
  else if (job.state === "waiting") change(job, { state: "failed", problem: stopped });
}

/** Stops all of them; what is there already stays. */
export function haltAll() {
  for (const job of jobs) if (job.state === "waiting") halt(job); // first these, so that none of them begins
  for (const job of jobs) halt(job);
}

/** Sends it again. */
export function again(job) {
  change(job, { state: "waiting", sent: 0, tries: 0, problem: null, document: null });
  next();
}

/** Forgets them all. */
export function clearJobs() {
  jobs.length = 0;
  taken.clear();
  tell(null);
}

/** The server is away: what is not sent waits. */
export function hold() {
  held = true;
  for (const job of jobs) if (job.state === "waiting") tell(job);
}

/** It is back. */
export function resume() {
  held = false;
  next();
}

/** A document of the library has a new state; if it was uploaded here, its job follows. */
export function documentChanged(record) {
  if (running) heard.set(record.id, { record, at: performance.now() });
  else heard.clear();
  const job = taken.get(record.id);
  if (job) change(job, { document: record });
}

function change(job, fields) {
  Object.assign(job, fields);
  tell(job);
}

function next() {
  if (held) return;
  const wait = pausedUntil - performance.now();
  if (wait > 0) {
    setTimeout(next, wait + 1);
    return;
  }
  while (running < AT_ONCE) {
    const job = jobs.find(({ state }) => state === "waiting");
    if (!job) return;
    running += 1;
    send(job).finally(() => {
      running -= 1;
      next();
    });
  }
}

async function send(job) {
  if (job.file.size > largest) {
    change(job, { state: "failed", problem: tooLarge() });
    return;
  }
  change(job, { state: "sending", sent: 0, tries: job.tries + 1 });
  const begun = performance.now();
  const { status, body, retryAfter, broken } = await post(job);
  if (broken === "abort") {
    change(job, { state: "failed", problem: new Problem({ code: "stopped", detail: "Stopped.", remedy: "" }) });
  } else if (broken) {
    await lost(job);
  } else if (status >= 200 && status < 300 && body?.id) {
    const news = heard.get(body.id);
    taken.set(body.id, job);
    change(job, { state: "taken", document: news?.at > begun ? news.record : body });
  } else if ((status === 503 || status === 429) && retryAfter <= PATIENCE_S && job.tries < TRIES) {
    pausedUntil = performance.now() + retryAfter * 1000; // a full queue, a limit a minute, models that still load
    change(job, { state: "waiting", sent: 0 });
  } else {
    change(job, { state: "failed", problem: Problem.from(body, status) });
  }
}

/** The connection broke. A server that refuses a large body early closes it, which looks the same as one that is gone. */
async function lost(job) {
  const { reached } = await readiness();
  if (reached && job.tries >= TRIES) {
    change(job, { state: "failed", problem: new Problem({ code: "broken_off", detail: "The upload broke off.", remedy: "The file may be larger than the server takes. Put it into the folder directly." }) });
    return;
  }
  if (reached) {
    job.tries += 3; // soon it is said; meanwhile it may have been the network
    pausedUntil = performance.now() + 1000;
  } else {
    held = true;
    dispatchEvent(new Event("readingroom:lost")); // connection.js waits, and says so
  }
  change(job, { state: "waiting", sent: 0 });
}

/** Sends the file: {status, body, retryAfter}, or {broken} for a connection that was none or was ended. */
function post(job) {
  return new Promise((resolve) => {
    const request = new XMLHttpRequest();
    const finish = (result) => {
      job.request = null;
      resolve(result);
    };
    job.request = request;
    request.upload.addEventListener("progress", (event) => {
      change(job, { sent: event.lengthComputable ? event.loaded / event.total : 0 });
    });
    request.addEventListener("load", () => {
      const wait = Number.parseInt(request.getResponseHeader("Retry-After") ?? "", 10);
      finish({ status: request.status, body: parsed(request.responseText), retryAfter: Number.isFinite(wait) ? wait : Infinity });
    });
    request.addEventListener("error", () => finish({ broken: "error" }));
    request.addEventListener("abort", () => finish({ broken: "abort" }));
    const form = new FormData();
    form.append("domain", job.domain); // before the file, so that the server knows where it goes when it comes
    if (job.folder) form.append("folder", job.folder);
    if (job.create) form.append("create", "true");
    form.append("file", job.file, job.name);
    request.open("POST", "/rag/documents");
    request.setRequestHeader("Accept", "application/json");
    request.send(form);
  });
}

function parsed(text) {
  try {
    return JSON.parse(text);
  } catch {
    return null; // judged by its status
  }
}

function tooLarge() {
  return new Problem({
    code: "too_large",
    detail: `The file is larger than ${Math.round(largest / 2 ** 20)} MiB.`,
    remedy: "Put it into the folder directly, or raise server.max_upload_mb.",
  });
}
