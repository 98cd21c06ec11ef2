/** What one may want to know of the folder, in a dialog: what is left out of the documents and why, and what it all takes up. */

import { listIgnored, Problem, readStorage } from "./api.js";
import { el, icon, withCode } from "./dom.js";
import { bytes, count } from "./format.js";

const NAMES = {
  hidden: "Hidden",
  temporary: "Temporary files",
  pattern: "Ignored by a domain's settings",
  link: "Links",
  special: "No plain files",
  unreadable: "Not readable",
  no_domain: "Outside every domain",
};
const FAILURES = {
  too_large: "too large",
  unsupported_format: "of a kind that is not read",
  binary_file: "no text",
  encrypted: "protected by a password",
  broken_file: "broken",
  no_text: "without any text",
  missing_program: "in need of a program",
};

const dialog = el("dialog", { class: "box wide", id: "panel", "aria-labelledby": "panel-head" });
document.body.append(dialog);
dialog.addEventListener("click", (event) => event.target === dialog && dialog.close());

/** What lies in the folder, or in one domain, and is no document. `showFailed(code)` shows the documents that failed for that reason. */
export function leftOut(domain, showFailed) {
  return open("What is left out", async () => {
    const { items, counts, failed } = await listIgnored(domain);
    const all = Object.values(counts).reduce((sum, number) => sum + number, 0);
    const groups = Object.keys(NAMES).filter((reason) => counts[reason]).map((reason) => group(reason, counts[reason], items.filter((item) => item.reason === reason)));
    const codes = Object.entries(failed);
    return [
      all ? null : el("p", { class: "lead" }, "Nothing: every file in the folder is a document."),
      ...groups,
      codes.length ? el("section", { class: "panel-group" },
        el("h3", {}, "Looked at, and not readable"),
        el("ul", { class: "panel-codes" }, codes.map(([code, number]) => el("li", {}, el("span", {}, `${count(number, "document")} ${FAILURES[code] ?? code.replaceAll("_", " ")}`),
          el("button", { type: "button", class: "button", "aria-label": `Show the documents: ${FAILURES[code] ?? code}`, onclick: () => {
            dialog.close();
            showFailed(code);
          } }, "Show"))))) : null,
    ];
  });
}

function group(reason, number, items) {
  const shown = items.map(({ path, folder, message, bytes: size }) => el("li", {},
    icon(folder ? "folder" : "file"), el("bdi", { class: "panel-path" }, path),
    size === null ? null : el("span", { class: "number" }, bytes(size)),
    reason === "pattern" || reason === "link" || reason === "temporary" ? el("span", { class: "note" }, message) : null));
  return el("section", { class: "panel-group" },
    el("h3", {}, NAMES[reason], " ", el("span", { class: "number" }, number.toLocaleString("en"))),
    el("p", { class: "note" }, withCode(items[0]?.remedy ?? "")),
    el("ul", { class: "panel-items" }, shown),
    number > items.length ? el("p", { class: "note" }, `and ${count(number - items.length, "more", "more")}`) : null);
}

/** What files and index take up, of each domain. `titles`: name -> title. */
export function storage(titles) {
  return open("Storage", async () => {
    const { files_bytes, index_bytes, free_bytes, domains } = await readStorage();
    const row = ({ name, files, files_bytes: size, passages, index_bytes: share }) => el("tr", {},
      el("th", { scope: "row" }, titles.get(name) || name), el("td", {}, files.toLocaleString("en")), el("td", {}, bytes(size)), el("td", {}, passages.toLocaleString("en")), el("td", {}, bytes(share)));
    const total = { files: 0, passages: 0 };
    for (const one of domains) for (const key of Object.keys(total)) total[key] += one[key];
    return [
      el("div", { class: "panel-scroll", tabindex: "0", role: "region", "aria-label": "Storage by domain" },
        el("table", { class: "panel-table" },
          el("thead", {}, el("tr", {}, ["Domain", "Files", "Their size", "Passages", "Index"].map((name) => el("th", { scope: "col" }, name)))),
          el("tbody", {}, domains.map(row)),
          el("tfoot", {}, el("tr", {}, el("th", { scope: "row" }, "All"), el("td", {}, total.files.toLocaleString("en")), el("td", {}, bytes(files_bytes)), el("td", {}, total.passages.toLocaleString("en")), el("td", {}, bytes(index_bytes)))))),
      el("p", { class: "note" }, `The index is one for all domains; what one takes of it is told by its passages.${free_bytes === null ? "" : ` ${bytes(free_bytes)} of the disk are free.`}`),
    ];
  });
}

async function open(head, fill) {
  const body = el("div", { class: "panel-body", "aria-live": "polite" }, el("p", { class: "pending" }, "Looking…"));
  dialog.replaceChildren(el("div", { class: "panel" },
    el("header", { class: "panel-head" }, el("h2", { id: "panel-head" }, head),
      el("button", { type: "button", class: "button quiet square", "aria-label": "Close", onclick: () => dialog.close() }, icon("close"))),
    body));
  if (!dialog.open) dialog.showModal();
  try {
    body.replaceChildren(...(await fill()).filter(Boolean));
  } catch (error) {
    if (!(error instanceof Problem)) throw error;
    body.replaceChildren(el("div", { class: "problem", role: "alert" }, el("p", { class: "problem-title" }, error.message), error.remedy && el("p", {}, error.remedy)));
  }
}
