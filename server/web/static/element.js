/**
 * Builds elements, on the pages and in the widget. Text only ever goes in as text, so nothing here can turn a string into markup: neither
 * a document nor the model can, and it runs where a page demands Trusted Types.
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
