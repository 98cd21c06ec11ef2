/** What the pages draw with: elements (element.js), icons, and a word to screen readers. */

export { el } from "./element.js";

const SVG = "http://www.w3.org/2000/svg";

/** An icon of icons.svg; decoration only, so its button needs a label of its own. */
export function icon(name) {
  const svg = document.createElementNS(SVG, "svg");
  svg.setAttribute("class", "icon");
  svg.setAttribute("aria-hidden", "true");
  const use = document.createElementNS(SVG, "use");
  use.setAttribute("href", `/static/icons.svg#${name}`);
  svg.append(use);
  return svg;
}

/** Says a sentence to screen readers, politely, through the page's `#announcer`. */
export function announce(text) {
  const announcer = document.getElementById("announcer");
  // The same sentence twice is no change, and would not be read again.
  announcer.textContent = announcer.textContent === text ? `${text}\u00a0` : text;
}
