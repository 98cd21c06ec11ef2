/** What the pages draw with: elements (element.js), icons, and a word to screen readers. */

import { el } from "./element.js";

export { el };

const SVG = "http://www.w3.org/2000/svg";

/** An icon of icons.svg; decoration only, so its button needs a label of its own. */
export function icon(name) {
  const svg = document.createElementNS(SVG, "svg");
  svg.setAttribute("class", "icon");
  svg.setAttribute("aria-hidden", "true");
  const use = document.createElementNS(SVG, "use");
  use.setAttribute("href", kept ? `#icon-${name}` : `/static/icons.svg#${name}`);
  svg.append(use);
  return svg;
}

// The icons are kept in the page: a browser asks for their file again with each new use, and the server may be away then.
let kept = false;
const request = new XMLHttpRequest();
request.open("GET", "/static/icons.svg");
request.responseType = "document"; // not markup from a string, which Trusted Types forbid
request.addEventListener("load", () => {
  const symbols = [...(request.responseXML?.querySelectorAll("symbol") ?? [])];
  for (const symbol of symbols) symbol.id = `icon-${symbol.id}`;
  const svg = document.createElementNS(SVG, "svg");
  svg.setAttribute("class", "hidden");
  svg.setAttribute("aria-hidden", "true");
  svg.append(...symbols);
  document.body.append(svg);
  kept = symbols.length > 0;
});
request.send();

/** A text for people as `append` takes it: what stands between backticks is code. */
export function withCode(text) {
  const parts = text.split("`");
  return parts.length % 2 ? parts.map((part, i) => (i % 2 ? el("code", {}, part) : part)) : [text];
}

/** Says a sentence to screen readers, politely, through the page's `#announcer`. */
export function announce(text) {
  const announcer = document.getElementById("announcer");
  // The same sentence twice is no change, and would not be read again.
  announcer.textContent = announcer.textContent === text ? `${text}\u00a0` : text;
}
