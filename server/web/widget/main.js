/**
 * Puts the widget on the page that has its tag: `<script src=".../widget.js" data-domain="..." data-key="..." defer></script>`.
 *
 * Run twice for the same server and domain, as pages do that replace their content without a load, it does nothing; for
 * another domain there is a second bubble above the first. The element stands beside <body>, so that it outlives a body
 * that is replaced; `document.querySelector("readingroom-widget")` has `open()` and `close()`, and `remove()` ends it.
 */

import { Chat, TAG } from "./chat.js";
import { readOptions } from "./options.js";

function mount(tag, source) {
  const options = readOptions(tag, source);
  const name = `${options.server}|${options.domain}`;
  const present = [...document.querySelectorAll(TAG)];
  if (present.some((one) => one.dataset.name === name)) return;
  const host = document.createElement(TAG);
  host.dataset.name = name;
  host.dataset.side = options.side;
  const chat = new Chat(options, host, present.filter((one) => one.dataset.side === options.side).length);
  host.open = () => chat.open();
  host.close = () => chat.close();
  document.documentElement.append(host);
  chat.mounted();
  const watch = new MutationObserver(() => {
    if (host.isConnected) return;
    watch.disconnect();
    chat.end();
  });
  watch.observe(document.documentElement, { childList: true });
}

// `currentScript` is null in a module: then the tag is looked for, by what it must have.
const script = document.currentScript ?? document.querySelector("script[src*='widget.js'][data-domain]");
if (script) mount(script, document.baseURI);
else console.warn("Reading Room: widget.js wants a script tag with data-domain.");
