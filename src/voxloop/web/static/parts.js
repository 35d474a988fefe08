// Parts that several pages share: the header, what asks before it acts, notices, and numbers as people write them.

import { html, useEffect, useState } from "./view.js";
import { ask, Refused, Unreachable } from "./api.js";
import { Dialog } from "./dialog.js";
import { Nav } from "./nav.js";

/** What cannot be undone is asked about. `act` may be asynchronous; its error is shown. */
export function Confirm({ title, children, label, act, close, danger = true }) {
  const [error, setError] = useState("");
  const [busy, setBusy] = useState(false);
  const run = async () => {
    setBusy(true);
    setError("");
    try { await act(); close(); } catch (failure) { setError(failure.message); setBusy(false); }
  };
  return html`<${Dialog} title=${title} close=${close}><div>${children}</div>
    ${error && html`<p class="bad" role="alert">${error}</p>`}
    <div class="row"><button class=${danger ? "danger" : "primary"} disabled=${busy} onClick=${run}>${busy ? "One moment…" : label}</button>
      <button autofocus onClick=${close}>Cancel</button></div><//>`;
}

/** A name to type: `act(name)`. */
export function NameDialog({ title, value, close, act }) {
  const [name, setName] = useState(value || "");
  const [error, setError] = useState("");
  const save = async (event) => {
    event.preventDefault();
    try { await act(name.trim()); close(); } catch (failure) { setError(failure.message); }
  };
  return html`<${Dialog} title=${title} close=${close}><form class="row" onSubmit=${save}>
    <input autofocus class="grow" aria-label="Name" value=${name} maxlength="64" onInput=${(event) => setName(event.target.value)} />
    <button class="primary" disabled=${!name.trim()}>Save</button></form>
    ${error && html`<p class="bad" role="alert">${error}</p>`}<//>`;
}

/** What every page holds: whether somebody is signed in, and notices. Pages derive their own store from it. */
export class PageStore extends EventTarget {
  constructor() {
    super();
    this.signedOut = false;
    this.away = false;
    this.notice = null;
    this.you = null; // {name, admin}
  }

  changed() {
    if (this.queued) return;
    this.queued = true;
    queueMicrotask(() => { this.queued = false; this.dispatchEvent(new Event("change")); });
  }

  say(text) {
    this.notice = { text, key: Math.random() };
    clearTimeout(this.noticeTimer);
    this.noticeTimer = setTimeout(() => { this.notice = null; this.changed(); }, 8000);
    this.changed();
  }

  /** Ask the API; what goes wrong is noted and thrown on. */
  async ask(path, options) {
    try {
      const said = await ask(path, options);
      if (this.away) { this.away = false; this.changed(); }
      return said;
    } catch (error) {
      if (error instanceof Refused && error.status === 401) this.signedOut = true;
      if (error instanceof Unreachable) this.away = true;
      this.changed();
      throw error;
    }
  }

  /** Do something that may fail, and tell how it ended. */
  async attempt(work, done = "") {
    try {
      const said = await work();
      if (done) this.say(done);
      return said;
    } catch (error) {
      this.say(error.message);
      return null;
    }
  }
}

/** Draw again whenever the store changes. */
export function useStore(store) {
  const [, again] = useState(0);
  useEffect(() => {
    const changed = () => again((n) => n + 1);
    store.addEventListener("change", changed);
    changed();
    return () => store.removeEventListener("change", changed);
  }, [store]);
}

/** The frame of a page: header, what it shows once it is there, notices. */
export function Page({ store, name, title, ready, children, status }) {
  if (store.signedOut) {
    return html`<main class="page"><div class="blank"><h1>Voxloop</h1><p>This browser is not signed in.</p>
      <p>Open the link that <code>voxloop serve</code> printed, or ask for a new one with <code>voxloop token link</code>.</p></div></main>`;
  }
  return html`<header class="top"><h1>Voxloop<span class="hidden"> ${title}</span></h1><${Nav} current=${name} />
      <span class="grow"></span><span class=${`outbox ${store.away ? "bad" : ""}`} role="status">${store.away ? "Server away: trying again…" : ""}</span>
      ${store.you && html`<span class="you">${store.you.name}</span>`}</header>
    <main class="page" data-ready=${ready ? name : null}>${ready ? children : html`<p class="blank">Loading…</p>`}</main>
    <div class="hidden" role="status" aria-live="polite">${status || ""}</div>
    <div class="notice" role="status" aria-live="polite">${store.notice && html`<div key=${store.notice.key}><span>${store.notice.text}</span></div>`}</div>`;
}

// Numbers and names -----------------------------------------------------------------------------------------------------

export const short = (id) => (id || "").replace(/^sha256-/, "").slice(0, 12);
export const runName = (id) => (id || "").slice(-8);
export const number = (value, digits = 3) => (value == null ? "–" : Number(value.toPrecision(digits)).toLocaleString(undefined, { maximumFractionDigits: 10 }));
export const counted = (count, noun, plural = `${noun}s`) => `${count.toLocaleString()} ${count === 1 ? noun : plural}`;
export const bytes = (value) => (value == null ? "–" : value >= 1e9 ? `${(value / 1e9).toFixed(1)} GB` : `${(value / 1e6).toFixed(0)} MB`);

/** A length of time in words. */
export function lasting(seconds) {
  if (seconds == null) return "–";
  if (seconds < 90) return `${Math.round(seconds)} s`;
  if (seconds < 5400) return `${Math.round(seconds / 60)} min`;
  return seconds < 172_800 ? `${(seconds / 3600).toFixed(1)} h` : `${(seconds / 86_400).toFixed(1)} days`;
}

/** An amount of speech in words, from hours. */
export const speech = (hours) => (hours == null ? "–" : hours >= 1.5 ? `${hours.toFixed(1)} h` : hours * 60 >= 1.5 ? `${(hours * 60).toFixed(1)} min` : `${(hours * 3600).toFixed(0)} s`);

/** A list of terms with their values; null values are left out. */
export function Facts({ rows }) {
  return html`<dl class="pairs">${rows.filter(([, value]) => value != null && value !== "").map(([name, value]) => html`<div key=${name}><dt>${name}</dt><dd>${value}</dd></div>`)}</dl>`;
}

/** Sound that is fetched when it is played. */
export function Sound({ src, label }) {
  return html`<audio controls preload="none" src=${src} aria-label=${label}></audio>`;
}
