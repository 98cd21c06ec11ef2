/**
 * An answer as it comes from `POST /rag/ask`: its events, and what they do to the record of a turn. On the chat page and in the widget;
 * who asks, and what a failure looks like, is api.js there and stream.js here.
 */

/**
 * Yields {event, data}: `place`, {conversation_id, turn}, if the turn is kept in a conversation, then what the server sends, `done` last.
 *
 * An `error` event is raised as `refused(data)`, a stream that ends or fails before its end as `broken(error)`, an abort as it is.
 */
export async function* answerEvents(response, signal, { refused, broken }) {
  const place = /\/conversations\/([^/]+)\/turns\/(\d+)$/.exec(response.headers.get("Content-Location") ?? "");
  if (place) yield { event: "place", data: { conversation_id: place[1], turn: Number(place[2]) } };
  let complete = false;
  let told = null;
  try {
    for await (const { event, data } of serverSentEvents(response.body)) {
      const value = JSON.parse(data);
      if (event === "error") throw (told = refused(value));
      yield { event, data: value };
      complete ||= event === "done";
    }
  } catch (error) {
    // A stream that fails while it is read is a network error without a word.
    throw error === told || signal?.aborted ? error : broken(error);
  }
  if (!complete) throw broken(null);
}

/** Puts what an event adds to the text and its sources into `record`: {text, citations, unsupported}. Other events leave it as it is. */
export function take(record, event, data) {
  if (event === "token") record.text += data.text;
  else if (event === "citation") record.citations.push(data);
  else if (event === "unsupported") record.unsupported.push(data.sentence);
  else if (event === "withdrawn") Object.assign(record, { text: "", citations: [], unsupported: [] }); // the refusal follows
}

/**
 * Reads the event stream format (WHATWG HTML, 9.2.6) from a body; EventSource itself cannot POST.
 * Comments (lines that begin with ":") are how the server keeps a quiet connection open, and are skipped.
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
