/**
 * Adding documents: takes what is dropped or chosen, asks where it goes, and hands it to sending.js. Replacing one is the same with its
 * place known. How far everything is stands in tray.js.
 */

import { announce, el } from "./dom.js";
import { bytes, count } from "./format.js";
import { chosenFiles, filesOf, TooMuch } from "./gather.js";
import { enqueue } from "./sending.js";

const NEW = "\u0000new"; // no folder can be called this

const $ = (id) => document.getElementById(id);
const dialog = $("add-dialog");
const domainSelect = $("add-domain");
const newDomain = $("new-domain");
const folder = $("add-folder");

let gathered = []; // [{file, folder, name}] in the dialog
let picked = ""; // the domain that was dropped on, looked at, or chosen in the dialog by hand
let gathering = null; // AbortController of the drop that is gone through

function show({ kept, skipped }) {
  gathered = kept;
  const size = bytes(kept.reduce((sum, { file }) => sum + file.size, 0));
  const folders = new Set(kept.map((one) => one.folder).filter(Boolean)).size;
  say(kept.length
    ? `${count(kept.length, "file")}${folders ? ` in ${count(folders, "folder")}` : ""}, ${size}${kept.length <= 3 ? `: ${kept.map(({ name }) => name).join(", ")}` : ""}`
    : skipped ? "There are only hidden or temporary files in there." : "Drop files or folders here, or");
  note(kept.length && skipped ? `${count(skipped, "hidden or temporary file or folder", "hidden or temporary files or folders")} left out.` : "");
  $("add-send").disabled = !kept.length;
  $("add-send").textContent = kept.length ? `Add ${count(kept.length, "file")}` : "Add";
}

function say(text) {
  $("chosen").textContent = text;
}

function note(text) {
  $("add-note").textContent = text;
  $("add-note").hidden = !text;
}

/** Opens the dialog at a `place`: {domain, folder}. New domains are offered to an administrator only. */
export function openUpload(domains, place, mayMake) {
  if (dialog.open) return; // dropped onto the open dialog: what was chosen there holds
  picked = place.domain; // it stays when the domains are offered anew
  offerDomains(domains, place.domain, mayMake);
  folder.value = place.folder ? place.folder.slice(place.domain.length + 1) : "";
  show({ kept: [], skipped: 0 });
  dialog.showModal();
}

/** The domains to choose from; what is chosen stays. Where there are several and none is `preferred`, one must be. */
export function offerDomains(domains, preferred, mayMake) {
  const chosen = picked || preferred;
  domainSelect.replaceChildren(
    ...(domains.length > 1 && !chosen ? [el("option", { value: "", disabled: true, selected: true }, "Choose one…")] : []),
    ...domains.map(({ name, title }) => el("option", { value: name }, title && title !== name ? `${title} (${name})` : name)),
    ...(mayMake ? [el("option", { value: NEW }, "New domain…")] : []));
  if (chosen) domainSelect.value = chosen;
  showNewDomain();
}

/** What was dropped goes into the dialog, which is open; a large folder is gone through while one sees how far. */
async function take(dataTransfer) {
  gathering?.abort();
  const mine = (gathering = new AbortController());
  const files = filesOf(dataTransfer, (number) => say(`Looking through the folders: ${count(number, "file")} so far…`), mine.signal);
  try {
    show(await files);
    domainSelect.focus();
  } catch (error) {
    if (mine.signal.aborted) return;
    show({ kept: [], skipped: 0 });
    note(error instanceof TooMuch ? error.message : "What was dropped cannot be read. Drop it again, or choose it with the buttons.");
  } finally {
    if (gathering === mine) gathering = null;
  }
}

/** Asks for a file and puts it in a document's place. */
export function replaceDocument(record) {
  const parts = record.path.split("/");
  const name = parts.at(-1);
  const ending = name.includes(".") ? name.slice(name.lastIndexOf(".")) : "";
  const chooser = el("input", { type: "file", accept: ending || null, hidden: true, id: "replace-file" });
  document.getElementById("replace-file")?.remove();
  document.body.append(chooser);
  chooser.addEventListener("change", () => {
    const [file] = chooser.files;
    chooser.remove();
    if (!file) return;
    enqueue([{ file, name, folder: parts.slice(1, -1).join("/") }], record.domain, false);
    announce(`Replacing ${name}`);
  });
  chooser.click();
}

function showNewDomain() {
  const isNew = domainSelect.value === NEW;
  $("new-domain-field").hidden = !isNew;
  newDomain.required = isNew;
}

/** What can never be the name of folders is said here; the server has the last word. */
export function checkFolderName(field, deep = false) {
  const parts = deep && field.value ? field.value.split("/") : [field.value];
  const bad = parts.some((part) => /[/\\]|^\.|^\s|\s$/.test(part) || (deep && field.value && !part));
  field.setCustomValidity(!bad ? "" : deep
    ? "Names of folders with / between them, none beginning with a dot, without spaces at their ends."
    : "The name of one folder: no slashes, not beginning with a dot, no spaces at its ends.");
}

domainSelect.addEventListener("change", () => {
  picked = domainSelect.value;
  showNewDomain();
  folder.value = "";
  if (domainSelect.value === NEW) newDomain.focus();
});
newDomain.addEventListener("input", () => checkFolderName(newDomain));
folder.addEventListener("input", () => checkFolderName(folder, true));
$("choose-files").addEventListener("click", () => $("files").click());
$("choose-folder").addEventListener("click", () => $("folder").click());
for (const id of ["files", "folder"]) {
  $(id).addEventListener("change", ({ target }) => {
    try {
      show(chosenFiles(target.files));
    } catch (error) {
      if (!(error instanceof TooMuch)) throw error;
      show({ kept: [], skipped: 0 });
      note(error.message);
    }
    target.value = ""; // so that choosing the same file again is a change
  });
}
$("add-cancel").addEventListener("click", () => dialog.close());
dialog.addEventListener("close", () => gathering?.abort());
$("add-form").addEventListener("submit", () => {
  const create = domainSelect.value === NEW;
  const domain = create ? newDomain.value : domainSelect.value;
  const into = folder.value;
  const files = gathered.map((one) => ({ ...one, folder: [into, one.folder].filter(Boolean).join("/") }));
  announce(`Adding ${count(files.length, "file")} to ${[domain, into].filter(Boolean).join("/")}`);
  newDomain.value = "";
  enqueue(files, domain, create);
});

/** Lets the whole page take drops: `open(path)` opens the dialog, with the place in the tree that was dropped on, or null. */
export function takeDrops(open, mayDrop) {
  const overlay = $("overlay");
  const hasFiles = (event) => mayDrop() && [...event.dataTransfer.types].includes("Files");
  const placeOf = (event) => (event.target instanceof Element ? event.target.closest("[role=treeitem]") : null);
  let depth = 0; // enter and leave come for every element on the way
  let over = null;
  const aim = (place) => {
    over?.classList.remove("aimed");
    over = place;
    over?.classList.add("aimed");
    overlay.hidden = depth === 0 || Boolean(over);
  };
  document.addEventListener("dragenter", (event) => {
    if (!hasFiles(event)) return;
    depth += 1;
    aim(placeOf(event));
  });
  document.addEventListener("dragleave", (event) => {
    if (!hasFiles(event)) return;
    depth = Math.max(0, depth - 1);
    if (depth === 0) aim(null);
  });
  document.addEventListener("dragover", (event) => {
    if (!hasFiles(event)) return;
    event.preventDefault();
    event.dataTransfer.dropEffect = "copy";
  });
  document.addEventListener("drop", (event) => {
    if (!hasFiles(event)) return;
    event.preventDefault();
    depth = 0;
    const path = over?.dataset.path ?? null;
    aim(null);
    open(path);
    take(event.dataTransfer);
  });
}
