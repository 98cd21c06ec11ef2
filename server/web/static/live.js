/**
 * What happens to documents, as `/rag/events` tells it. What is missed while there is no connection is not repeated, so after every gap
 * `gap` says that all is to be fetched anew. Changes gather for a moment: a bulk ingest sends thousands a second.
 */

const GATHER = 100; // ms
const RECONNECT_AFTER = 2_000; // ms, when the browser itself has given up

/** `heard`: {state(fields), changes(records), ingest(bulk), gap()}; a record that is gone has `removed`. */
export class Live {
  #heard;
  #stream = null;
  #lost = false;
  #changes = new Map(); // id -> record, the last word on each

  constructor(heard) {
    this.#heard = heard;
    document.addEventListener("visibilitychange", () => this.#followVisibility());
    this.#connect();
  }

  /** The server is there again. */
  again() {
    if (document.visibilityState !== "hidden") this.#connect();
  }

  #connect() {
    this.#stream?.close();
    const stream = (this.#stream = new EventSource("/rag/events"));
    const on = (name, act) => stream.addEventListener(name, (event) => act(event.data && JSON.parse(event.data)));
    on("open", () => {
      if (this.#lost) this.#heard.gap();
      this.#lost = false;
    });
    on("document", (record) => this.#change(record));
    on("removed", (record) => this.#change({ ...record, removed: true }));
    on("state", (fields) => this.#heard.state(fields));
    on("ingest", (bulk) => this.#heard.ingest(bulk));
    on("resync", () => this.#heard.gap()); // the server let events go, because this page did not keep up
    stream.addEventListener("error", () => {
      this.#lost = true;
      dispatchEvent(new Event("readingroom:lost")); // connection.js waits, and says so
      // The browser reconnects by itself, but not after an answer that was no stream (a proxy, a 503).
      if (stream.readyState === EventSource.CLOSED) setTimeout(() => stream === this.#stream && this.#connect(), RECONNECT_AFTER);
    });
  }

  /** A page nobody sees keeps no connection: browsers allow six to a server, and tabs share them. */
  #followVisibility() {
    if (document.visibilityState === "hidden") {
      this.#stream?.close();
      this.#stream = null;
    } else if (!this.#stream) {
      this.#connect();
      this.#heard.gap();
    }
  }

  #change(record) {
    if (!this.#changes.size) {
      setTimeout(() => {
        const records = [...this.#changes.values()];
        this.#changes.clear();
        this.#heard.changes(records);
      }, GATHER);
    }
    this.#changes.set(record.id, record);
  }
}
