/**
 * Every call to the server, and every way that one can fail, as one error class with a sentence and a remedy.
 *
 * It knows the routes of the contract (shared/DESIGN.md) and the shapes of their errors (RFC 9457). It draws
 * nothing: a page decides how a Problem looks. Uploads are in upload.js, because only XMLHttpRequest tells progress.
 */

import { answerEvents } from "./answer.js";

/** What went wrong, for people: `message`, `remedy`; for programs: `code`, `status`; `limit` where there is one. */
export class Problem extends Error {
  constructor({ code = "internal", status = 0, title = "Something went wrong", detail, remedy = "", limit, retry_after }) {
    super(detail || title);
    this.code = code;
    this.status = status;
    this.title = title;
    this.remedy = remedy;
    this.limit = Number.isFinite(limit) ? limit : null;
    this.retryAfter = Number.isFinite(retry_after) ? retry_after : null;
  }

  /** From a problem document, whatever it lacks. */
  static from(body, status) {
    const fields = body && typeof body === "object" ? body : {};
    return new Problem({ title: `The server answered ${status}`, ...fields, status });
  }

  /** The server cannot be reached at all. */
  static unreachable() {
    return new Problem({
      code: "unreachable",
      title: "The server is not answering",
      detail: "The server is not answering.",
      remedy: "Check that it still runs (make serve), then try again.",
    });
  }

  /** The server went away in the middle of an answer. */
  static brokenOff() {
    return new Problem({
      code: "broken_off",
      title: "The answer broke off",
      detail: "The server stopped in the middle of this answer.",
      remedy: "Check that it still runs (make serve), then ask again.",
    });
  }
}

async function call(path, options = {}) {
  let response;
  try {
    response = await fetch(path, options);
  } catch (error) {
    if (error.name === "AbortError") throw error;
    dispatchEvent(new Event("readingroom:lost")); // connection.js, where a page has it
    throw Problem.unreachable();
  }
  if (!response.ok) {
    const body = await response.json().catch(() => null);
    const wait = Number.parseInt(response.headers.get("Retry-After") ?? "", 10); // seconds, the only form that the server sends
    throw Problem.from({ retry_after: wait, ...body }, response.status);
  }
  return response;
}

async function json(path, options = {}) {
  const response = await call(path, { ...options, headers: { Accept: "application/json", ...options.headers } });
  try {
    return await response.json();
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Problem({ code: "bad_response", status: response.status, detail: "The server's answer is not JSON.", remedy: "Look at the server's log." });
  }
}

function query(fields) {
  const given = Object.entries(fields).filter(([, value]) => value !== "" && value !== null && value !== undefined);
  return given.length ? `?${new URLSearchParams(given)}` : "";
}

/** The domains: [{name, title, description, documents: {status: count}, chunks, adapter, status}]. */
export async function listDomains() {
  return (await json("/rag/domains")).items;
}

const THROUGH = new Set(["indexed", "failed"]);

/** How many documents are still to be read, in a domain or, without one, in all. */
export async function countComing(domain) {
  const asked = (await listDomains()).filter(({ name }) => !domain || name === domain);
  return asked.flatMap(({ documents }) => Object.entries(documents)).reduce((sum, [status, number]) => sum + (THROUGH.has(status) ? 0 : number), 0);
}

/** One page of documents: {items, next_cursor}. */
export function listDocuments(filters, signal) {
  return json(`/rag/documents${query(filters)}`, { signal });
}

/** The text of a document, the one that offsets refer to. */
export async function documentText(id, signal) {
  return (await json(`/rag/documents/${encodeURIComponent(id)}/text`, { signal })).text;
}

/** Where the original file is; with a page, browsers open a PDF there (RFC 8118). */
export function fileAddress(id, page = null) {
  return `/rag/documents/${encodeURIComponent(id)}/file${page ? `#page=${page}` : ""}`;
}

/** Lets a failed document be read again; {files}: how many files wait. */
export function retryDocument(id) {
  return json(`/rag/documents/${encodeURIComponent(id)}/retry`, { method: "POST" });
}

/** As `retryDocument`, for all that failed in a domain; with an empty name in all of them. */
export function retryFailed(domain) {
  return post("/rag/documents/retry", { domain: domain || null });
}

/** The folders directly below these paths: [{path, documents, failed, bytes, deeper}]; of an empty path the domains. */
export async function listFolders(below, signal) {
  return (await json(`/rag/folders?${new URLSearchParams(below.map((path) => ["below", path]))}`, { signal })).items;
}

/** What lies in the folder and is no document: {items, counts, failed}. */
export function listIgnored(domain) {
  return json(`/rag/ignored${query({ domain })}`);
}

/** What files and index take up: {files_bytes, index_bytes, free_bytes, domains}. */
export function readStorage() {
  return json("/rag/storage");
}

/** The settings of a domain: {name, title, description, prompt, adapter, languages, ignore, error}. */
export function readDomain(name) {
  return json(`/rag/domains/${encodeURIComponent(name)}`);
}

/** Changes them; what is left out stays. */
export function changeDomain(name, settings) {
  return post(`/rag/domains/${encodeURIComponent(name)}`, settings);
}

/** Makes a domain: its `name` and settings. */
export function makeDomain(settings) {
  return post("/rag/domains", settings);
}

/** Deletes a document; its receipt: {document_id, path, vectors, text, cache_entries, remaining}. */
export function deleteDocument(id) {
  return json(`/rag/documents/${encodeURIComponent(id)}`, { method: "DELETE" });
}

/**
 * Asks; yields {event, data} as they come: passages, token, citation, done. An `error` event is thrown as a Problem.
 *
 * `question`: {question, domain, adapter, conversation_id, turn}, as the contract has them; what is empty is left out. In a conversation
 * `place` comes first: {conversation_id, turn}, where the turn is kept.
 */
export async function* ask(question, signal) {
  const given = Object.entries(question).filter(([, value]) => value !== "" && value !== null && value !== undefined);
  const response = await call("/rag/ask", {
    method: "POST",
    signal,
    headers: { "Content-Type": "application/json", Accept: "text/event-stream" },
    body: JSON.stringify(Object.fromEntries(given)),
  });
  yield* answerEvents(response, signal, { refused: (problem) => Problem.from(problem, problem.status ?? 500), broken: () => Problem.brokenOff() });
}

/** The adapters that a question can be answered with: [{name, description, licence, base}]. */
export async function listAdapters() {
  return (await json("/rag/adapters")).items;
}

const conversation = (id) => `/rag/conversations/${encodeURIComponent(id)}`;

function post(path, body) {
  return json(path, { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body) });
}

/** A page of conversations, newest first: {items: [{id, title, created_at, updated_at, turns}], next_cursor, kept}. */
export function listConversations(filters, signal) {
  return json(`/rag/conversations${query(filters)}`, { signal });
}

/** A conversation with its turns: {id, title, created_at, updated_at, kept, turns}. */
export function readConversation(id, signal) {
  return json(conversation(id), { signal });
}

/** Gives a conversation another title; answers with its record. */
export function renameConversation(id, title) {
  return post(conversation(id), { title });
}

/** Deletes a conversation, or all of them where `id` is null; the receipt: {conversations, turns, remaining}. */
export function deleteConversation(id) {
  return json(id === null ? "/rag/conversations" : conversation(id), { method: "DELETE" });
}

/** Where a conversation can be downloaded: `format` is markdown or json; with `id` null all of them: json or golden. */
export function exportAddress(id, format) {
  return `${id === null ? "/rag/conversations" : conversation(id)}/export${query({ format })}`;
}

/** Puts a thumb ("up", "down", or null for none) with a reason on an answer; the turn. */
export function judge(id, turn, thumb, reason) {
  return post(`${conversation(id)}/turns/${turn}/feedback`, { thumb, reason });
}

/** Whether the server is ready, and if not what it waits for: a sentence from the parts that /ready names. */
export async function readiness(signal) {
  let response;
  try {
    response = await fetch("/ready", { signal });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    return { ready: false, reached: false, message: Problem.unreachable().message };
  }
  const { parts = {} } = await response.json().catch(() => ({}));
  const waiting = Object.entries(parts).filter(([, part]) => part.state !== "ok").map(([name, { state, detail, remedy }]) =>
    `${name} (${[detail || state, remedy].filter(Boolean).join(" ")})`);
  return { ready: response.ok, reached: true, message: waiting.length ? `Not ready yet: ${waiting.join(", ")}.` : "" };
}
