/** The bar over the list, while many documents come in. Its text is no live region: only the begin and the end are announced. */

import { announce } from "./dom.js";
import { count, remaining } from "./format.js";

const MANY = 5; // so many documents at once are a bulk that has a bar of its own
const STAYS = 4_000; // ms that a full bar can be seen

const $ = (id) => document.getElementById(id);
let timer = 0;
let shown = false;

/** Shows how far it is; `over()` is called when the last one is through. */
export function showBulk({ done, of, failed, left_s }, over) {
  const running = done < of;
  if (running ? of < MANY : !shown) return;
  clearTimeout(timer);
  const parts = [`${done.toLocaleString("en")} of ${count(of, "document")} read`];
  if (failed) parts.push(`${failed.toLocaleString("en")} failed`);
  if (running && left_s !== null) parts.push(`about ${remaining(left_s)} left`);
  $("bulk-text").textContent = parts.join(" · ");
  $("bulk-bar").value = of ? done / of : 1;
  $("bulk").hidden = false;
  if (running === shown) return;
  shown = running;
  announce(running ? `${count(of, "document")} are being read` : parts.join(", "));
  if (running) return;
  timer = setTimeout(() => { $("bulk").hidden = true; }, STAYS);
  over();
}
