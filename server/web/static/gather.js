/**
 * What was dropped or chosen, as a list of files with their folders: dropped folders are walked through, within bounds, and what systems
 * leave in folders is left out. Nothing is read here but names and sizes; sending is upload.js.
 */

const MOST = 2_000; // files of one drop: each is a request, and a folder with more is better copied into the watched one
const DEEPEST = 20; // folders within each other, as the server has it

/** Too much was dropped to be sent: `message` says what to do. */
export class TooMuch extends Error {}

/**
 * The files of a drop: [{file, folder, name}], `folder` the path that they lay in. Must be called within the drop event: its data is gone
 * afterwards. `tell(count)` is called as files are found. Throws `TooMuch`, and the signal's reason.
 */
export function filesOf(dataTransfer, tell, signal) {
  const entries = [...dataTransfer.items].filter((item) => item.kind === "file").map((item) => item.webkitGetAsEntry() ?? item.getAsFile()).filter(Boolean);
  return collect(entries, tell, signal);
}

/** The files of a file chooser, in the same form. */
export function chosenFiles(files) {
  const found = { kept: [], skipped: 0 };
  for (const file of files) add(found, file, file.webkitRelativePath || file.name);
  return found;
}

async function collect(entries, tell, signal) {
  const found = { kept: [], skipped: 0 };
  const walk = async (entry, depth) => {
    signal?.throwIfAborted();
    if (entry instanceof File) return add(found, entry, entry.name);
    const path = entry.fullPath.replace(/^\//, "");
    if (isNoise(path)) {
      found.skipped += 1; // a hidden folder counts once, and is not gone through
      return undefined;
    }
    if (entry.isFile) {
      add(found, await new Promise((resolve, reject) => entry.file(resolve, reject)), path);
      tell(found.kept.length);
      return undefined;
    }
    if (depth >= DEEPEST) throw new TooMuch(`The folders lie more than ${DEEPEST} deep in each other. Drop the inner ones by themselves.`);
    const reader = entry.createReader();
    for (;;) {
      // A reader hands out at most a hundred entries at a time, and none when it is through.
      const some = await new Promise((resolve, reject) => reader.readEntries(resolve, reject));
      if (!some.length) return undefined;
      for (const one of some) await walk(one, depth + 1);
    }
  };
  for (const entry of entries) await walk(entry, 0);
  return found;
}

function add(found, file, path) {
  if (isNoise(path)) {
    found.skipped += 1;
    return;
  }
  if (found.kept.length >= MOST) {
    throw new TooMuch(`These are more than ${MOST.toLocaleString("en")} files. Drop them in parts, or copy the folder into the watched folder directly.`);
  }
  const at = path.lastIndexOf("/");
  found.kept.push({ file, folder: at < 0 ? "" : path.slice(0, at), name: path.slice(at + 1) });
}

/** What systems and editors leave in folders (.DS_Store, Thumbs.db) is no document; the server would ignore it too. */
function isNoise(path) {
  return path.split("/").some((part) => /^(\.|~\$)|~$/.test(part)) || /(^|\/)(Thumbs\.db|desktop\.ini|__MACOSX)(\/|$)/.test(path);
}
