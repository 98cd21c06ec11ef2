/**
 * What the tag of the widget says: `data-domain`, `data-key`, the look and the words. One place for names and defaults;
 * the table for people is corpora/guide/widget.md.
 */

import { wordsFor } from "./words.js";

const THEMES = new Set(["auto", "light", "dark"]);
const SCHEMES = new Set(["http:", "https:", "mailto:", "tel:"]);

/** The options of a script element. `fallback` is the address of the script, for a tag that has been copied without one. */
export function readOptions(tag, fallback) {
  const { dataset } = tag;
  const words = wordsFor(dataset.lang, document.documentElement.lang, navigator.language);
  const left = dataset.position === "bottom-left" || (!dataset.position && words.dir === "rtl");
  return {
    // The folder that the script was served from, so that a server behind a path prefix is found too.
    server: new URL(".", tag.src || fallback).href,
    domain: dataset.domain || "",
    key: dataset.key || "",
    title: dataset.title || words.say("title"),
    greeting: dataset.greeting || words.say("greeting"),
    suggestions: (dataset.suggestions || "").split("|").map((one) => one.trim()).filter(Boolean),
    color: dataset.color && CSS.supports("color", dataset.color) ? dataset.color : "",
    side: left ? "left" : "right",
    theme: THEMES.has(dataset.theme) ? dataset.theme : "auto",
    // A site key is good for asking alone; whether another one may read documents is asked of the server.
    documents: !(dataset.key || "").startsWith("rrs_"),
    contact: contactOf(dataset.contact),
    words,
  };
}

function contactOf(address) {
  if (!address || !URL.canParse(address, document.baseURI)) return "";
  const { protocol, href } = new URL(address, document.baseURI);
  return SCHEMES.has(protocol) ? href : "";
}
