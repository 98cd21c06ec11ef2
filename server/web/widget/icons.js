/** The icons, drawn in the script itself, because an image would be a request more. */

const SVG = "http://www.w3.org/2000/svg";

// Paths on a grid of 24, drawn with a line of 2.
const PATHS = {
  chat: "M4 5h16v11H10l-5 4v-4H4z M8 9.5h8 M8 12.5h5",
  close: "M6 6l12 12 M18 6L6 18",
  send: "M12 19V6 M6 11.5L12 5.5l6 6",
  stop: "M7.5 7.5h9v9h-9z",
  fresh: "M12 5v14 M5 12h14",
  back: "M14 6l-6 6 6 6",
  open: "M12 4v11 M7.5 11L12 15.5l4.5-4.5 M5 19.5h14",
  alert: "M12 4.5l8.5 15h-17z M12 10v4.5 M12 17v.2",
  search: "M10.5 5a5.5 5.5 0 1 0 0 11 5.5 5.5 0 0 0 0-11z M15 15l4.5 4.5",
};

/** An icon; decoration only, so its button needs a label of its own. */
export function icon(name) {
  const svg = document.createElementNS(SVG, "svg");
  const path = document.createElementNS(SVG, "path");
  svg.setAttribute("viewBox", "0 0 24 24");
  svg.setAttribute("class", `icon ${name}`);
  svg.setAttribute("aria-hidden", "true");
  svg.setAttribute("focusable", "false");
  path.setAttribute("d", PATHS[name]);
  svg.append(path);
  return svg;
}
