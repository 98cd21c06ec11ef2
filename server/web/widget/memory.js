/**
 * Remembers the conversation of one widget in this browser: its turns, and the server's name for it.
 *
 * Kept under the page's origin, by server and domain, so that two widgets never share one. Where storage is forbidden or
 * full, the conversation lives as long as the page.
 */

const VERSION = 1;

// A conversation is for the visit, not an archive; 30 turns of some 10 KB stay far below the 5 MB of an origin.
const KEPT = 30;

const STATES = new Set(["asking", "done", "stopped", "failed"]);

const EMPTY = () => ({ conversation: null, turns: [] });

/** Whether a stored turn has the shape that turn.js draws; what an older version or somebody else wrote is dropped. */
function isTurn(turn) {
  const lists = turn && typeof turn === "object" ? [turn.citations, turn.unsupported, turn.passages, turn.links] : [];
  return lists.length === 4 && lists.every(Array.isArray) && typeof turn.question === "string" && typeof turn.text === "string"
    && STATES.has(turn.state) && (turn.state !== "failed" || typeof turn.failure?.kind === "string")
    && turn.citations.every((one) => typeof one?.sentence === "string" && typeof one.quote === "string" && typeof one.path === "string")
    && turn.passages.every((one) => typeof one?.text === "string" && typeof one.path === "string" && Array.isArray(one.heading));
}

export class Memory {
  #key;

  constructor(server, domain) {
    this.#key = `readingroom:${server}|${domain}`;
  }

  /** {conversation, turns}; empty where nothing is kept or it cannot be read. */
  load() {
    try {
      const found = JSON.parse(localStorage.getItem(this.#key));
      if (found?.version !== VERSION || !Array.isArray(found.turns)) return EMPTY();
      const conversation = typeof found.conversation === "string" ? found.conversation : null;
      return { conversation, turns: found.turns.filter(isTurn).slice(-KEPT) };
    } catch {
      return EMPTY();
    }
  }

  /** Keeps it, or removes what is kept if there is no turn. */
  save({ conversation, turns }) {
    try {
      if (turns.length) localStorage.setItem(this.#key, JSON.stringify({ version: VERSION, conversation, turns: turns.slice(-KEPT) }));
      else localStorage.removeItem(this.#key);
    } catch {
      // forbidden or full: not remembered, and still there on this page
    }
  }
}
