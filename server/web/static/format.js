/** Numbers, sizes and times as people read them, in the browser's language where that helps. No DOM here. */

const whole = new Intl.NumberFormat("en");
const ago = new Intl.RelativeTimeFormat("en", { numeric: "auto" });
const date = new Intl.DateTimeFormat("en", { dateStyle: "medium" });
const moment = new Intl.DateTimeFormat("en", { dateStyle: "medium", timeStyle: "short" });

/** `count(3, "passage")` is "3 passages". */
export function count(number, noun, plural = `${noun}s`) {
  return `${whole.format(number)} ${number === 1 ? noun : plural}`;
}

/** Bytes in decimal units, as file managers show them. */
export function bytes(number) {
  if (number === 1) return "1 byte";
  const units = ["bytes", "KB", "MB", "GB", "TB"];
  let unit = 0;
  while (number >= 1000 && unit < units.length - 1) {
    number /= 1000;
    unit += 1;
  }
  return `${number >= 10 || unit === 0 ? Math.round(number) : number.toFixed(1)} ${units[unit]}`;
}

/** Seconds since the epoch as "3 minutes ago", or as a date once it is more than a week old. */
export function since(seconds, now = Date.now() / 1000) {
  const elapsed = Math.max(0, now - seconds);
  if (elapsed < 45) return "just now";
  if (elapsed < 3600) return ago.format(-Math.max(1, Math.round(elapsed / 60)), "minute");
  if (elapsed < 86400) return ago.format(-Math.round(elapsed / 3600), "hour");
  if (elapsed < 7 * 86400) return ago.format(-Math.round(elapsed / 86400), "day");
  return date.format(seconds * 1000);
}

/** Seconds that something will still take: "40 seconds", "3 minutes", "1 h 20 min". */
export function remaining(seconds) {
  if (seconds < 55) return count(Math.max(1, Math.round(seconds / 5) * 5), "second"); // a steady number is read more easily
  const minutes = Math.max(1, Math.round(seconds / 60));
  return minutes < 60 ? count(minutes, "minute") : `${Math.floor(minutes / 60)} h ${minutes % 60} min`;
}

/** The exact moment, for a title attribute. */
export function exactly(seconds) {
  return moment.format(seconds * 1000);
}

/** Milliseconds as "0.84 s". */
export function duration(ms) {
  return ms < 10_000 ? `${(ms / 1000).toFixed(ms < 1000 ? 2 : 1)} s` : `${Math.round(ms / 1000)} s`;
}
