/**
 * Which number a citation gets, where in the answer its marker stands, and which sentences have no source. Pure functions on strings
 * and records.
 *
 * A citation names its sentence verbatim; the same span of the same document always has the same number.
 * How a marker looks is render.js's business, how a source looks sources.js's.
 */

const span = (citation) => `${citation.document_id}:${citation.start}:${citation.end}`;

/** The cited spans in order of first use: [{number, sentence, quote, document_id, path, page, start, end, support}]. */
export function numberSources(citations) {
  const sources = new Map();
  for (const citation of citations) {
    if (!sources.has(span(citation))) sources.set(span(citation), { ...citation, number: sources.size + 1 });
  }
  return [...sources.values()];
}

/**
 * Where the markers go: [{at, number}] by position in `text` (UTF-16). A sentence that is not in the text gets none.
 * Citations come in the order of their sentences, so a sentence that occurs twice is looked for after the last one.
 */
export function placeMarkers(text, citations) {
  const numbers = new Map(numberSources(citations).map((source) => [span(source), source.number]));
  const markers = [];
  let searchFrom = 0;
  for (const citation of citations) {
    const sentence = citation.sentence.trim();
    if (!sentence) continue;
    let found = text.indexOf(sentence, searchFrom);
    if (found < 0) found = text.indexOf(sentence);
    if (found < 0) continue;
    searchFrom = found + sentence.length;
    const marker = { at: beforeClosers(text, found, searchFrom), number: numbers.get(span(citation)) };
    const same = markers.some((other) => other.at === marker.at && other.number === marker.number);
    if (!same) markers.push(marker);
  }
  return markers.sort((a, b) => a.at - b.at || a.number - b.number);
}

/**
 * Where the sentences stand that nothing supports: [{from, to}] by position in `text`, in order. What Markdown begins a line with (a list's
 * mark, a table's bar) stays outside, or it would no longer be one.
 */
function placeUnsupported(text, sentences) {
  const places = [];
  let searchFrom = 0;
  for (const sentence of sentences) {
    const found = text.indexOf(sentence, searchFrom);
    if (found < 0) continue;
    searchFrom = found + sentence.length;
    const lead = /^(?:\s*(?:[-+>|#]+|\*(?=\s)|\d+[.)](?=\s)))*\s*/.exec(sentence)[0].length;
    const to = beforeClosers(text, found, searchFrom);
    if (found + lead < to) places.push({ from: found + lead, to });
  }
  return places;
}

/** All that goes into a text, in order, for `withMarkers`: the numbers of its sources, and `opens` and `closes` around what has none. */
export function placeAll(text, citations, unsupported, opens, closes) {
  const edges = placeUnsupported(text, unsupported).flatMap(({ from, to }) => [{ at: from, number: opens }, { at: to, number: closes }]);
  return [...placeMarkers(text, citations), ...edges].sort((one, other) => one.at - other.at);
}

/** A marker behind the last bar of a table row would be a cell too many, which Markdown drops: it goes inside. */
function beforeClosers(text, start, end) {
  const lineStart = text.lastIndexOf("\n", end - 1) + 1;
  const line = text.slice(lineStart, end);
  return /^\s*\|.*\|$/.test(line) ? end - 1 : end;
}

/** `text` with `mark(number)` put in at each marker. */
export function withMarkers(text, markers, mark) {
  let out = "";
  let from = 0;
  for (const { at, number } of markers) {
    out += text.slice(from, at) + mark(number);
    from = at;
  }
  return out + text.slice(from);
}
