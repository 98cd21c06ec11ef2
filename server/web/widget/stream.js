/**
 * Asks the server, reads its answer as it comes, and sorts all that can go wrong into kinds, of which words.js says what a
 * visitor can do. `POST /rag/ask` and its events: corpora/guide/http.md.
 */

/** Why there is no answer. `kind` is a key of words.js; `seconds` until it may be tried again; `limit` in characters. */
export class Failure extends Error {
  constructor(kind, { seconds = null, limit = null, detail = "" } = {}) {
    super(detail || kind);
    this.kind = kind;
    this.seconds = seconds;
    this.limit = limit;
  }
}

/** From a problem document (RFC 9457), whatever it lacks. */
function failureOf(problem, status, retryAfter) {
  const { code = "", detail = "", remedy = "", limit = null, retry_after = null } = problem && typeof problem === "object" ? problem : {};
  const given = { seconds: Number(retryAfter) || Number(retry_after) || null, limit: Number(limit) || null, detail: `${status} ${code}: ${detail} ${remedy}` };
  let kind = "server";
  if (code === "not_ready") kind = "starting";
  else if (code === "unknown_conversation") kind = "forgotten";
  else if (status === 429) kind = "quota";
  else if (status === 503) kind = "busy";
  else if (status === 401 || status === 403 || status === 404) kind = "setup";
  else if (code === "invalid_question") kind = given.limit ? "long" : "invalid";
  else if (status === 422 || status === 400 || status === 413) kind = "invalid";
  return new Failure(kind, given);
}

/** How a call says who it is: a key goes in a header and never with cookies; without one only the own origin is meant. */
export function callOptions(key) {
  return key ? { credentials: "omit", headers: { Authorization: `Bearer ${key}` } } : { credentials: "same-origin", headers: {} };
}

/**
 * Why a call got no answer at all. A browser does not tell a server that is gone from one that does not allow this page; the script
 * itself, which every page may load, does.
 */
async function withoutAnswer(server, detail) {
  const up = await fetch(new URL("widget.js", server), { cache: "no-store", credentials: "omit" }).then((response) => response.ok, () => false);
  if (!up) return new Failure("unreachable", { detail });
  return new Failure("setup", { detail: `the server does not allow pages of ${origin}; is that an origin of the key?` });
}

/** Asks; yields {event, data} as they come, `done` last. Raises `Failure`, or what the signal makes of an abort. */
export async function* ask({ server, key }, body, signal) {
  const { credentials, headers } = callOptions(key);
  let response;
  try {
    response = await fetch(new URL("rag/ask", server), {
      method: "POST",
      credentials,
      signal,
      headers: { ...headers, "Content-Type": "application/json", Accept: "text/event-stream" },
      body: JSON.stringify(body),
    });
  } catch (error) {
    if (signal.aborted) throw error;
    throw await withoutAnswer(server, String(error));
  }
  if (!response.ok) throw failureOf(await response.json().catch(() => null), response.status, response.headers.get("Retry-After"));
  let complete = false;
  try {
    for await (const { event, data } of serverSentEvents(response.body)) {
      const value = JSON.parse(data);
      if (event === "error") throw failureOf(value, value?.status ?? 500, null);
      yield { event, data: value };
      complete ||= event === "done";
    }
  } catch (error) {
    // A stream that fails while it is read is a network error without a word; what is ours or an abort goes on as it is.
    if (error instanceof Failure || signal.aborted) throw error;
    throw new Failure("broken", { detail: String(error) });
  }
  if (!complete) throw new Failure("broken");
}

/**
 * Reads the event stream format (WHATWG HTML, 9.2.6) from a body; EventSource itself cannot POST.
 * Comments (lines that begin with ":") keep a quiet connection open, and are skipped.
 */
async function* serverSentEvents(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let buffer = "";
  let event = "";
  let data = [];
  try {
    for (;;) {
      const { value, done } = await reader.read();
      if (done) return; // an event without its blank line is incomplete, and dropped
      buffer += value;
      // A CR at the very end may be the first half of a CRLF: keep it for the next piece.
      const lines = buffer.split(/\r\n|\n|\r(?!$)/);
      buffer = lines.pop();
      for (const line of lines) {
        if (line === "") {
          if (data.length) yield { event: event || "message", data: data.join("\n") };
          event = "";
          data = [];
          continue;
        }
        const colon = line.indexOf(":");
        const field = colon < 0 ? line : line.slice(0, colon);
        const content = colon < 0 ? "" : line.slice(colon + 1).replace(/^ /, "");
        if (field === "event") event = content;
        else if (field === "data") data.push(content);
      }
    }
  } finally {
    // Leaving the loop early must close the connection, so that the server stops its work.
    await reader.cancel().catch(() => {});
  }
}

/** Waits; an abort of the signal ends it with the signal's reason. */
export function pause(seconds, signal) {
  return new Promise((resolve, reject) => {
    const timer = setTimeout(resolve, seconds * 1000);
    signal.addEventListener("abort", () => {
      clearTimeout(timer);
      reject(signal.reason);
    }, { once: true });
  });
}
