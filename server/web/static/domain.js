/** The settings of a domain in a dialog, to make one or to change one. They are written into its `domain.toml` by the server. */

import { changeDomain, listAdapters, makeDomain, Problem, readDomain } from "./api.js";
import { el } from "./dom.js";
import { checkFolderName } from "./upload.js";

const dialog = el("dialog", { class: "box wide", id: "domain-dialog", "aria-labelledby": "domain-head" });
document.body.append(dialog);

/** Asks for a new domain; `made(settings)` when it is there. */
export function newDomain(made) {
  open("New domain", { name: "", title: "", description: "", prompt: "", adapter: "", languages: [], ignore: [] }, async (settings, name) => made(await makeDomain({ name, ...settings })));
}

/** Shows the settings of one; `changed(settings)` when they were saved. Throws a `Problem` if they cannot be read. */
export async function domainSettings(name, changed) {
  const present = await readDomain(name);
  open(`Settings of ${present.title || name}`, present, async (settings) => changed(await changeDomain(name, settings)));
}

function open(head, present, save) {
  const isNew = !present.name;
  const fields = build(present);
  const failure = el("p", { class: "form-problem", role: "alert", hidden: true });
  const send = el("button", { type: "submit", class: "button primary" }, isNew ? "Make domain" : "Save");
  const form = el("form", { method: "dialog" },
    el("h2", { id: "domain-head" }, head),
    present.error ? el("p", { class: "form-problem" }, `${present.error} Correct it in the file; until then nothing can be saved here.`) : null,
    isNew ? field("Name", fields.name, "It becomes a folder in the watched folder.") : null,
    field("Title", fields.title, "What people see. The name, if empty."),
    field("Description", fields.description, "One sentence about what is in it."),
    field("Rules for answers", fields.prompt, "What the language model is told for this domain, in place of the usual rules. Most domains need none."),
    field("Adapter", fields.adapter, "A LoRA adapter that answers its questions."),
    el("details", {}, el("summary", {}, "More"),
      field("Languages of the documents", fields.languages, "Two letters each, the most frequent first: de, en. English, if empty."),
      field("Files to leave out", fields.ignore, "A pattern a line, such as drafts or *.bak.md.")),
    failure,
    el("div", { class: "dialog-actions" },
      el("button", { type: "button", class: "button", onclick: () => dialog.close() }, "Cancel"), send));
  form.addEventListener("submit", async (event) => {
    event.preventDefault(); // the dialog stays until the server has taken it
    send.disabled = true;
    failure.hidden = true;
    try {
      await save(given(fields, present), fields.name.value.trim());
      dialog.close();
    } catch (error) {
      if (!(error instanceof Problem)) throw error;
      failure.textContent = [error.message, error.remedy].filter(Boolean).join(" ");
      failure.hidden = false;
    } finally {
      send.disabled = false;
    }
  });
  dialog.replaceChildren(form);
  dialog.showModal();
  listAdapters().then((adapters) => offer(fields.adapter, adapters, present.adapter), () => {}); // without the list, what is set can stay
}

function build(present) {
  const text = (id, value, options = {}) => el("input", { type: "text", id, value, autocomplete: "off", maxlength: "500", ...options });
  const name = text("domain-name", "", { required: true, maxlength: "80", spellcheck: "false", placeholder: "handbook" });
  name.addEventListener("input", () => checkFolderName(name));
  const prompt = el("textarea", { id: "domain-prompt", rows: "3", maxlength: "4000", dir: "auto" });
  prompt.value = present.prompt;
  const ignore = el("textarea", { id: "domain-ignore", rows: "3", spellcheck: "false" });
  ignore.value = present.ignore.join("\n");
  const adapter = el("select", { id: "domain-adapter" });
  offer(adapter, [], present.adapter);
  return {
    name, prompt, ignore, adapter,
    title: text("domain-title", present.title, { dir: "auto" }),
    description: text("domain-description", present.description, { dir: "auto" }),
    languages: text("domain-languages", present.languages.join(", "), { spellcheck: "false", pattern: "\\s*([a-z]{2,3}(\\s*[,\\s]\\s*[a-z]{2,3})*)?\\s*", title: "Two letters each, with commas between them" }),
  };
}

/** Only what is another than before: a person may have changed the rest of the file meanwhile. */
function given(fields, present) {
  const now = {
    title: fields.title.value.trim(),
    description: fields.description.value.trim(),
    prompt: fields.prompt.value.trim(),
    adapter: fields.adapter.value,
    languages: fields.languages.value.split(/[,\s]+/).filter(Boolean),
    ignore: fields.ignore.value.split("\n").map((line) => line.trim()).filter(Boolean),
  };
  return Object.fromEntries(Object.entries(now).filter(([key, value]) => JSON.stringify(value) !== JSON.stringify(present[key])));
}

function offer(select, adapters, present) {
  const chosen = select.value || present;
  const known = adapters.map(({ name, description }) => [name, description ? `${name}: ${description}` : name]);
  const options = [["", "The usual one"], ["none", "None"], ...known];
  if (chosen && !options.some(([value]) => value === chosen)) options.push([chosen, chosen]);
  select.replaceChildren(...options.map(([value, label]) => el("option", { value }, label)));
  select.value = chosen;
}

function field(label, input, hint) {
  const id = `${input.id}-hint`;
  input.setAttribute("aria-describedby", id);
  return el("div", { class: "field" }, el("label", { for: input.id }, label), input, el("span", { class: "field-hint", id }, hint));
}
