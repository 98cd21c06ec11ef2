/**
 * Builds elements. Text only ever goes in as text, so nothing here can turn a string into markup; the one place
 * where markup comes from a string is render.js, which sanitises it.
 */

/**
 * `el("button", {class: "quiet", onclick: stop, "aria-label": "Stop"}, icon("stop"), "Stop")`.
 * Keys that begin with `on` are listeners; `true` makes an empty attribute; `null`, `undefined` and `false` none.
 */
export function el(tag, props = {}, ...children) {
  const element = document.createElement(tag);
  for (const [key, value] of Object.entries(props)) {
    if (value === null || value === undefined || value === false) continue;
    if (key.startsWith("on")) element.addEventListener(key.slice(2), value);
    else element.setAttribute(key, value === true ? "" : value);
  }
  element.append(...children.flat().filter((child) => child !== null && child !== undefined && child !== false));
  return element;
}

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
