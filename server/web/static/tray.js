/** The tray of uploads: a bar for all of them, a row for each that matters, and what can be done. The sending itself is sending.js. */

import { el, icon } from "./dom.js";
import { bytes, count } from "./format.js";
import { again, clearJobs, followJobs, halt, haltAll, isHeld, jobs } from "./sending.js";

const ROWS = 60; // of more files than this, only those that run or failed have a row
const WORDS = { waiting: "waiting", queued: "waiting to be read", parsing: "being read", embedding: "being indexed", indexed: "ready to ask" };

const $ = (id) => document.getElementById(id);
const rows = new Map(); // job -> <li>
let timer = 0;

const failureOf = ({ problem, document }) => problem ?? document?.error ?? null;
const lookOf = (job) => (failureOf(job) ? "failed" : job.document ? job.document.status : job.state);

/** Draws one job now, and soon what is said of all of them. */
function changed(job) {
  if (job === null) drawAll();
  else if (hasRow(job)) drawRow(job);
  else rows.get(job)?.remove();
  timer ||= setTimeout(() => {
    timer = 0;
    drawAll();
  }, 50);
}

function hasRow(job) {
  return jobs.length <= ROWS || job.state === "sending" || lookOf(job) === "failed";
}

function drawAll() {
  $("tray").hidden = !jobs.length;
  for (const [job, row] of rows) {
    if (jobs.includes(job) && hasRow(job)) continue;
    row.remove();
    rows.delete(job);
  }
  for (const job of jobs) if (hasRow(job)) drawRow(job);
  const sent = jobs.filter(({ state }) => state === "taken").length;
  const ready = jobs.filter(({ document }) => document?.status === "indexed").length;
  const failed = jobs.filter((job) => lookOf(job) === "failed").length;
  const open = jobs.filter(({ state }) => state === "waiting" || state === "sending");
  const parts = [`${sent.toLocaleString("en")} of ${count(jobs.length, "file")} sent`, `${ready.toLocaleString("en")} ready to ask`];
  if (failed) parts.push(`${failed.toLocaleString("en")} failed`);
  if (isHeld() && open.length) parts.push("waiting for the server");
  $("tray-summary").textContent = parts.join(" · ");
  const total = jobs.reduce((sum, { file }) => sum + file.size, 0);
  const done = jobs.reduce((sum, { file, state, sent: share }) => sum + (state === "sending" ? file.size * share : state === "waiting" ? 0 : file.size), 0);
  $("tray-bar").hidden = jobs.length < 2 || !open.length;
  $("tray-bar").value = total ? done / total : 1;
  $("tray-stop").hidden = open.length < 2;
  $("tray-again").hidden = jobs.filter(({ problem }) => problem).length < 2;
  $("tray-clear").hidden = open.length > 0;
}

function drawRow(job) {
  let row = rows.get(job);
  if (!row) {
    row = el("li", { class: "upload" });
    rows.set(job, row);
    $("tray-list").append(row);
  }
  if (!row.isConnected) $("tray-list").append(row);
  const { state, document: record, problem, sent } = job;
  const failure = failureOf(job);
  const look = lookOf(job);
  // Built anew only when its state changes, so that a button in focus stays while the percentage runs.
  const key = JSON.stringify([look, failure?.message, failure?.remedy]);
  if (row.dataset.key !== key) {
    row.dataset.key = key;
    row.dataset.look = look;
    const place = [job.domain, job.folder].filter(Boolean).join("/");
    row.replaceChildren(
      el("span", { class: "upload-name", dir: "auto" }, job.name, el("span", { class: "path" }, ` ${place} · ${bytes(job.file.size)}`)),
      state === "sending" ? el("progress", { max: "1", value: "0", "aria-label": `Upload of ${job.name}` }) : "",
      el("span", { class: "upload-state" }, look === "indexed" ? icon("check") : look === "failed" ? icon("alert") : "",
        el("span", { class: "words" }, failure ? "failed" : WORDS[look] ?? "")),
      state === "sending" || state === "waiting" ? el("button", { type: "button", class: "button quiet square", "aria-label": `Stop the upload of ${job.name}`, onclick: () => halt(job) }, icon("close")) : "",
      problem ? el("button", { type: "button", class: "button quiet", "aria-label": `Send ${job.name} again`, onclick: () => again(job) }, icon("retry"), "Send again") : "",
      failure ? el("p", { class: "upload-problem" }, [failure.message, failure.remedy].filter(Boolean).join(" ")) : "");
  }
  if (state === "sending") {
    row.querySelector("progress").value = sent;
    row.querySelector(".words").textContent = sent < 1 ? `${Math.round(sent * 100)} %` : "waiting for the server";
  } else if (!failure && record && Number.isFinite(record.progress)) {
    row.querySelector(".words").textContent = `${WORDS[look]}, ${Math.floor(record.progress * 100)} %`;
  }
}

followJobs(changed);
$("tray-stop").addEventListener("click", haltAll);
$("tray-again").addEventListener("click", () => jobs.filter(({ problem }) => problem).forEach(again));
$("tray-clear").addEventListener("click", () => {
  clearJobs();
  $("add").focus();
});
