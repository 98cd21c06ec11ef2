/**
 * The turns of this tab, kept in sessionStorage so that a reload keeps them and closing the tab forgets them.
 *
 * A turn is a plain record; how it comes about and looks is turn.js's business. Nothing is kept on the server here.
 */

const KEY = "readingroom.turns";

/** A turn as it is when its question has just been asked. */
export function newTurn(question, domain, domainTitle) {
  return {
    question, domain, domainTitle,
    state: "asking", // asking | done | stopped | failed
    text: "", passages: null, searchedFor: "", leftOut: [], citations: [],
    done: null, // of the done event: refused, usage, timings, model, finish_reason
    problem: null, // of a failure: code, title, message, remedy
  };
}

/** The turns of before the reload. One that was being answered then is stopped: its stream went with the page. */
export function loadTurns() {
  try {
    const turns = JSON.parse(sessionStorage.getItem(KEY)) ?? [];
    return turns.map((turn) => (turn.state === "asking" ? { ...turn, state: "stopped" } : turn));
  } catch {
    return []; // unreadable, or storage is forbidden
  }
}

/** Keeps the turns; if they are too many for the browser's limit (some 5 MB), the newest that fit. */
export function saveTurns(turns) {
  for (let kept = turns; ; kept = kept.slice(Math.ceil(kept.length / 2))) {
    try {
      sessionStorage.setItem(KEY, JSON.stringify(kept));
      return;
    } catch {
      if (kept.length <= 1) return; // nothing can be kept; the page still shows it
    }
  }
}
