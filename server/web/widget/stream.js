/**
 * Asks the server, reads its answer as it comes, and sorts all that can go wrong into kinds, of which words.js says what a
 * visitor can do. `POST /rag/ask` and its events: corpora/guide/http.md.
 */

import { answerEvents } from "../static/answer.js";

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
  yield* answerEvents(response, signal, {
    refused: (problem) => failureOf(problem, problem?.status ?? 500, null),
    broken: (error) => new Failure("broken", { detail: String(error ?? "") }),
  });
}
