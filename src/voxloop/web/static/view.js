// The view library, as every page uses it.

import { h, render, Fragment } from "./vendor/preact.js";
import htm from "./vendor/htm.js";

export { h, render, Fragment };
export * from "./vendor/hooks.js";
export const html = htm.bind(h);

/** A moment as people write it. */
export const when = (seconds) => new Date(seconds * 1000).toLocaleString(undefined, { month: "short", day: "numeric", hour: "numeric", minute: "2-digit" });
export const percent = (share, digits = 0) => (share == null ? "–" : `${(100 * share).toFixed(digits)} %`);

/** Seconds as a clock shows them. */
export const clock = (seconds) => {
  const all = Math.max(0, seconds || 0);
  return `${Math.floor(all / 60)}:${(all % 60).toFixed(1).padStart(4, "0")}`;
};

const names = new Intl.DisplayNames(undefined, { type: "language" });

/** A language's name; its code where there is none. */
export const languageName = (code) => { try { return names.of(code); } catch { return code; } };

/** Hand a file to the person. */
export function download(name, blob) {
  const url = URL.createObjectURL(blob);
  const link = Object.assign(document.createElement("a"), { href: url, download: name });
  link.click();
  setTimeout(() => URL.revokeObjectURL(url), 10_000);
}
