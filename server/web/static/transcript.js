/**
 * The record of a turn: of one that is being asked, and of one that the server has kept. No DOM here.
 *
 * A turn is a plain record; how it comes about and looks is turn.js's business, and where it is kept the server's.
 */

/** What a turn has of its answer before there is one. */
export function unanswered() {
  return {
    state: "asking", // asking | done | stopped | removed | failed
    text: "", passages: null, searchedFor: "", leftOut: [], citations: [], unsupported: [],
    coming: 0, // documents that were still to be read when the answer was a refusal
    done: null, // of the done event: refused, usage, timings, model, adapter, finish_reason
    problem: null, // of a failure: code, status, title, message, remedy, limit, until
    thumb: null, reason: "", gone: 0, changed: false, kept: true,
  };
}

/** A turn as it is when its question has just been asked. `number` is where its conversation keeps it, if it does. */
export function newTurn(question, domain, domainTitle) {
  return { question, domain, domainTitle, number: null, ...unanswered() };
}

const STATES = { stopped: "stopped", removed: "removed" };

/** A turn as the server gives it. `titleOf(name)` is a domain's title. */
export function keptTurn(turn, titleOf) {
  const { number, question, domain, answer, citations, finish_reason } = turn;
  return {
    ...unanswered(),
    question, domain, domainTitle: domain ? titleOf(domain) : null, number,
    state: STATES[finish_reason] ?? "done",
    text: answer,
    passages: turn.passages, searchedFor: turn.searched_for, leftOut: turn.left_out, citations, unsupported: turn.unsupported ?? [],
    done: STATES[finish_reason] ? null : turn,
    thumb: turn.thumb, reason: turn.reason, gone: turn.gone, changed: Boolean(turn.changed),
  };
}
