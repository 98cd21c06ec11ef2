/**
 * How the widget looks: one style sheet for its shadow tree. A page changes it by the variables `--readingroom-...` that
 * stand here, and by nothing else.
 *
 * The rules of `:host` are important, because an important rule of a shadow tree beats every rule of the page (CSS Cascading 5,
 * 6.1): `* { display: none !important }` there does not hide it. Sizes in em follow the text size that the person chose.
 * The colours are those of ../static/theme.css. Text has a contrast of at least 4.5 to 1 on its ground in both schemes.
 */

/** The rule for the colour of `data-color`; a variable of the page goes before it. */
export function colorRule(color) {
  return color && `.root { --accent: var(--readingroom-color, ${color}); }`;
}

export const BASE = `
:host {
  all: initial !important;
  display: block !important;
  position: fixed !important;
  inset: auto 0 0 auto !important;
  width: 0 !important;
  height: 0 !important;
  overflow: visible !important;
  z-index: 2147483647 !important;
}
@media print { :host { display: none !important; } }

.root {
  color-scheme: light dark;
  --accent: var(--readingroom-color, light-dark(#1c6249, #8ccfae));
  --on-accent: var(--readingroom-on-color, var(--computed-on-accent, #fff));
  --paper: var(--readingroom-background, light-dark(#fffdf7, #221f1b));
  --well: var(--readingroom-well, light-dark(#f3eee1, #2d2923));
  --ink: var(--readingroom-text, light-dark(#28241d, #ece6d9));
  --soft: var(--readingroom-text-soft, light-dark(#5f584b, #b5ac9b));
  --rule: var(--readingroom-rule, light-dark(#e2d9c6, #3f3a31));
  --edge: light-dark(#8b8271, #81796a);
  --mark: light-dark(#fbe4a0, #6a5416);
  --mark-ink: light-dark(#28241d, #fff6da);
  --bad: light-dark(#98301f, #f2a596);
  --radius: var(--readingroom-radius, 14px);
  --gap: var(--readingroom-gap, 20px);
  --shadow: 0 2px 6px light-dark(#2014002e, #0009), 0 10px 36px light-dark(#2014002e, #0009);
  font: 400 1em/1.5 var(--readingroom-font, system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", "Helvetica Neue", Arial, sans-serif);
  color: var(--ink);
  text-align: start;
}
.root[data-theme="light"] { color-scheme: light; }
.root[data-theme="dark"] { color-scheme: dark; }

*, *::before, *::after { box-sizing: border-box; }
[hidden] { display: none !important; }
button, textarea { font: inherit; color: inherit; letter-spacing: inherit; margin: 0; }
button { cursor: pointer; background: none; border: 0; padding: 0; text-align: start; }
button:disabled { cursor: default; }
p, h2, h3, ul, ol, blockquote, pre, table { margin: 0; padding: 0; font: inherit; }
ul, ol { list-style: none; }
:focus-visible { outline: 2px solid var(--accent); outline-offset: 2px; }
.icon { width: 1.5em; height: 1.5em; flex: none; fill: none; stroke: currentColor; stroke-width: 2; stroke-linecap: round; stroke-linejoin: round; display: block; }
.unseen { position: absolute; width: 1px; height: 1px; overflow: hidden; clip-path: inset(50%); white-space: nowrap; }

.bubble {
  position: fixed;
  bottom: calc(var(--gap) + var(--slot, 0) * 68px + env(safe-area-inset-bottom, 0px));
  display: grid;
  place-items: center;
  width: 56px;
  height: 56px;
  border-radius: 50%;
  background: var(--accent);
  color: var(--on-accent);
  box-shadow: var(--shadow);
}
[data-side="right"] .bubble { right: calc(var(--gap) + env(safe-area-inset-right, 0px)); }
[data-side="left"] .bubble { left: calc(var(--gap) + env(safe-area-inset-left, 0px)); }
.bubble:hover { filter: brightness(1.08); }
.bubble:focus-visible { outline: 3px solid var(--ink); outline-offset: 3px; }
.bubble .icon { width: 28px; height: 28px; }
.root:not([data-open]) .bubble .close, .root[data-open] .bubble .chat { display: none; }

.panel {
  position: fixed;
  bottom: calc(var(--gap) + 68px + env(safe-area-inset-bottom, 0px));
  width: min(400px, 100vw - 2 * var(--gap));
  height: min(640px, 100dvh - 2 * var(--gap) - 68px);
  display: flex;
  flex-direction: column;
  overflow: hidden;
  border: 1px solid var(--rule);
  border-radius: var(--radius);
  background: var(--paper);
  box-shadow: var(--shadow);
  overflow-wrap: anywhere;
  animation: rise .16s ease-out;
}
[data-side="right"] .panel { right: var(--gap); }
[data-side="left"] .panel { left: var(--gap); }
@keyframes rise { from { opacity: 0; transform: translateY(10px); } }

.head { display: flex; align-items: center; gap: 4px; padding: 10px 10px 10px 16px; background: var(--accent); color: var(--on-accent); }
[dir="rtl"] .head { padding: 10px 16px 10px 10px; }
.head h2 { flex: 1; min-width: 0; font-weight: 600; line-height: 1.3; display: -webkit-box; -webkit-box-orient: vertical; -webkit-line-clamp: 2; overflow: hidden; }
.tool { display: grid; place-items: center; width: 36px; height: 36px; border-radius: 10px; flex: none; }
.tool:hover { background: color-mix(in srgb, currentColor 16%, transparent); }
.tool:focus-visible { outline-color: currentColor; outline-offset: -2px; }

.log { flex: 1; overflow-y: auto; overscroll-behavior: contain; padding: 16px; scrollbar-width: thin; }
.log:focus-visible, .passage:focus-visible { outline-offset: -3px; }
.greeting { padding: 10px 14px; border-radius: var(--radius); background: var(--well); }
.suggestions { display: flex; flex-wrap: wrap; gap: 8px; margin-top: 14px; }
.suggestion { padding: 7px 13px; border: 1px solid var(--edge); border-radius: 18px; font-size: .9375em; line-height: 1.35; }
.suggestion:hover, .button:hover { background: var(--well); }

.turn { margin-top: 18px; }
.question { width: fit-content; max-width: 88%; margin-inline-start: auto; padding: 8px 14px; border-radius: var(--radius); background: var(--accent); color: var(--on-accent); white-space: pre-wrap; }
.answer { margin-top: 12px; overflow-x: clip; }
.status { display: flex; align-items: center; gap: 10px; color: var(--soft); font-size: .9375em; }
.dots { width: 8px; height: 8px; flex: none; border-radius: 50%; background: var(--accent); animation: beat 1.2s ease-in-out infinite; }
@keyframes beat { 50% { opacity: .25; transform: scale(.7); } }

.text > * + *, blockquote > * + *, .text li > p { margin-top: .65em; }
.text ul, .text ol { padding-inline-start: 1.5em; }
.text ul { list-style: disc; }
.text ol { list-style: decimal; }
.text li + li { margin-top: .25em; }
.text blockquote { padding-inline-start: 12px; border-inline-start: 3px solid var(--rule); }
.text hr { height: 1px; border: 0; background: var(--rule); }
.text a { color: inherit; }
.heading { font-weight: 650; }
strong { font-weight: 650; }
em { font-style: italic; }
code, pre { font-family: ui-monospace, "SF Mono", "Cascadia Mono", "DejaVu Sans Mono", Menlo, Consolas, monospace; font-size: .9em; }
code { background: var(--well); border-radius: 4px; padding: .1em .3em; }
pre { background: var(--well); border-radius: 8px; padding: 10px 12px; overflow-x: auto; white-space: pre; overflow-wrap: normal; }
pre code { background: none; padding: 0; font-size: 1em; }
.scroller { overflow-x: auto; overflow-wrap: normal; }
table { border-collapse: collapse; font-size: .9375em; }
th, td { border: 1px solid var(--rule); padding: 4px 8px; text-align: start; vertical-align: top; }
th { background: var(--well); font-weight: 600; }

.cite {
  display: inline-block;
  min-width: 1.5em;
  margin-inline: .2em;
  padding: 0 .35em;
  border-radius: .75em;
  border: 1px solid var(--edge);
  font-size: .75em;
  line-height: 1.55;
  text-align: center;
  vertical-align: .2em;
  color: var(--ink);
}
.cite:hover { background: var(--well); }
.label { margin-top: 12px; font-size: .8125em; font-weight: 600; color: var(--soft); }
.source { display: flex; gap: 8px; width: 100%; margin-top: 4px; padding: 6px 10px; border: 1px solid var(--rule); border-radius: 9px; font-size: .875em; line-height: 1.4; }
.source:hover { background: var(--well); }
.source .number { flex: none; min-width: 1.2em; font-weight: 600; color: var(--soft); }
.source .name { min-width: 0; display: -webkit-box; -webkit-box-orient: vertical; -webkit-line-clamp: 2; overflow: hidden; }
.unsupported { text-decoration: underline dotted var(--soft); text-underline-offset: .2em; }
.note { margin-top: 8px; font-size: .875em; color: var(--soft); }
.button { display: inline-flex; align-items: center; gap: 6px; padding: 6px 14px; border: 1px solid var(--edge); border-radius: 9px; font-size: .9375em; color: inherit; text-decoration: none; }
.retry { margin-top: 8px; }
.card { position: relative; padding: 12px 14px; padding-inline-start: 46px; border: 1px solid var(--rule); border-radius: var(--radius); background: var(--well); }
.card > .icon { position: absolute; inset-inline-start: 14px; top: 12px; color: var(--soft); }
.failure > .icon { color: var(--bad); }
.card .source { background: var(--paper); }
.ways { display: flex; flex-wrap: wrap; gap: 8px; margin-top: 10px; }
.ways:empty { display: none; }
.ways .retry { margin-top: 0; }

.ask { padding: 10px 12px 8px; border-top: 1px solid var(--rule); }
.box { display: flex; align-items: flex-end; gap: 6px; padding: 4px; padding-inline-start: 12px; border: 1px solid var(--edge); border-radius: 22px; }
.box:focus-within { border-color: var(--ink); outline: 1px solid var(--ink); }
textarea { flex: 1; min-width: 0; max-height: 8em; min-height: 36px; padding: 6px 0; border: 0; background: none; outline: none; resize: none; font-size: max(1em, 16px); line-height: 24px; overflow-y: auto; scrollbar-width: thin; }
textarea:focus-visible { outline: none; }
textarea:placeholder-shown { direction: inherit; unicode-bidi: isolate; }
textarea::placeholder { color: var(--soft); opacity: 1; }
.round { display: grid; place-items: center; flex: none; width: 36px; height: 36px; border-radius: 50%; background: var(--accent); color: var(--on-accent); }
.round:disabled { background: var(--well); color: var(--soft); }
.round:focus-visible { outline-color: var(--ink); }
.notice { margin-top: 6px; font-size: .75em; line-height: 1.4; text-align: center; color: var(--soft); }

.sheet { position: absolute; inset: 0; display: flex; flex-direction: column; background: var(--paper); }
.sheet-head { display: flex; align-items: center; gap: 6px; min-height: 56px; padding: 10px; border-bottom: 1px solid var(--rule); }
.sheet-head h3 { flex: 1; min-width: 0; font-weight: 600; line-height: 1.3; }
.sheet-head h3:focus { outline: none; }
[dir="rtl"] .back .icon { transform: scaleX(-1); }
.where { padding: 10px 16px 0; font-size: .8125em; color: var(--soft); }
.passage { flex: 1; overflow-y: auto; overscroll-behavior: contain; padding: 10px 16px 16px; white-space: pre-wrap; scrollbar-width: thin; }
mark { background: var(--mark); color: var(--mark-ink); border-radius: 2px; }
.sheet-foot:not(:empty) { padding: 10px 16px; border-top: 1px solid var(--rule); }

@media (max-width: 520px) {
  .panel { inset: auto; left: 0; right: 0; top: var(--top, 0px); bottom: auto; width: 100%; height: var(--height, 100dvh); border: 0; border-radius: 0;
    padding: env(safe-area-inset-top, 0px) 0 env(safe-area-inset-bottom, 0px); }
  [data-side] .panel { left: 0; right: 0; }
  .root[data-open] .bubble { display: none; }
  .tool { width: 44px; height: 44px; }
}
@media (max-height: 420px) and (min-width: 521px) {
  .panel { bottom: var(--gap); height: calc(100dvh - 2 * var(--gap)); }
  .root[data-open] .bubble { display: none; }
}
@media (prefers-reduced-motion: reduce) {
  *, *::before, *::after { animation: none !important; transition: none !important; scroll-behavior: auto !important; }
}
@media (forced-colors: active) {
  .bubble, .round, .question, .cite { border: 1px solid ButtonText; }
  mark { forced-color-adjust: none; }
}
`;
