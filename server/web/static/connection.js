/**
 * The server gone and back: waits for it, and says so in a strip at the top of the page. Asking is in api.js, a turn's own waiting
 * in turn.js.
 */

import { readiness } from "./api.js";
import { announce, el } from "./dom.js";
import { pause } from "./pause.js";

const LOOK_EVERY = 2_000; // ms; loading the models takes seconds

/** Comes back when questions can be answered; `tell(reason)` says each time why not yet. */
export async function untilReady(tell, signal) {
  for (;;) {
    await pause(LOOK_EVERY, signal);
    const { ready, message } = await readiness(signal);
    if (ready) return;
    tell(message);
  }
}

/** Shows the strip while the server does not answer; `back()` is called when it does again. */
export function watchConnection(back) {
  const strip = el("p", { class: "strip", role: "status", hidden: true }, "The server is not answering. This page goes on by itself as soon as it does.");
  document.querySelector(".bar").after(strip);
  let waiting = false;
  addEventListener("readingroom:lost", async () => {
    if (waiting) return;
    waiting = true;
    strip.hidden = false;
    for (;;) {
      await pause(LOOK_EVERY);
      const { reached } = await readiness();
      if (reached) break;
    }
    waiting = false;
    strip.hidden = true;
    announce("The server is back.");
    back();
  });
}
