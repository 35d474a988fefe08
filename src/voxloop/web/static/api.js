// Requests to the server that the page came from; every change waits in an outbox until the server has it.

import { alone } from "./locks.js";

const ROOT = new URL("api/", document.baseURI);

export class Refused extends Error {
  constructor(status, body, retryAfter) {
    super(body?.error?.message || `the server answered ${status}`);
    this.status = status;
    this.body = body;
    this.retryAfter = retryAfter;
  }
}

export class Unreachable extends Error {}

/** Ask the API. Throws Refused for an error that the server names, Unreachable where it does not answer. */
export async function ask(path, { method = "GET", body, etag, form, raw = false, signal } = {}) {
  const headers = {};
  if (etag) headers["if-match"] = `"${etag}"`;
  if (body !== undefined) headers["content-type"] = "application/json";
  let said;
  try {
    said = await fetch(new URL(path, ROOT), { method, headers, signal, body: form || (body === undefined ? undefined : JSON.stringify(body)) });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Unreachable("the server does not answer");
  }
  if (!said.ok) {
    let told = null;
    try { told = await said.json(); } catch { /* not from the application */ }
    if (said.status >= 502 && said.status <= 504) throw new Unreachable("the server does not answer");
    throw new Refused(said.status, told, Number(said.headers.get("retry-after")) || 0);
  }
  if (raw) return said.blob();
  return said.status === 204 ? null : said.json();
}

export const query = (values) => new URLSearchParams(Object.entries(values).filter(([, value]) => value !== "" && value != null)).toString();

export const address = (path) => new URL(path, ROOT).href;

/** Whether a request that failed is worth repeating as it is: the server is away, busy, or wants a sign-in first. */
export const passing = (failure) => failure instanceof Unreachable || failure.status === 429 || failure.status >= 500 || failure.status === 401;

/** Milliseconds to wait before the next attempt. */
export const pauseFor = (failure, attempts) => (failure.retryAfter || Math.min(2 ** (attempts - 1), 8)) * 1000;

/**
 * Changes on their way to the server, in order, kept in this browser's storage: neither a reload nor a server that is
 * gone loses one. All tabs share them: each change has a key of its own, and one tab at a time sends. `settle` is told
 * what became of each, in every tab: (change, answer | null, error | null, {sent: by this tab, own: made in this tab}).
 */
export class Outbox {
  constructor(name, settle, told) {
    this.name = name;
    this.settle = settle;
    this.told = told; // called when what waits, or whether the server answers, has changed
    this.tab = Math.random().toString(36).slice(2);
    this.made = 0;
    this.away = false;
    this.busy = false;
    this.sending = null; // key of the change that the server is being told of
    this.takeOver();
    this.read();
    window.addEventListener("online", () => this.send());
    window.addEventListener("storage", (event) => { if (event.key === null || event.key.startsWith(`${name}.`)) { this.read(); this.told(); } });
    this.tabs = new BroadcastChannel(name);
    this.tabs.onmessage = ({ data: { change, answer, error } }) => { this.read(); settle(change, answer, error, { sent: false, own: change.tab === this.tab }); };
  }

  /** Earlier releases kept one list. */
  takeOver() {
    let old = [];
    try { old = JSON.parse(localStorage.getItem(this.name)) || []; } catch { /* unreadable */ }
    localStorage.removeItem(this.name);
    for (const change of old) this.put(change);
  }

  read() {
    const keys = Object.keys(localStorage).filter((key) => key.startsWith(`${this.name}.`) && !key.endsWith(".lease")).sort();
    this.waiting = keys.map((key) => ({ ...JSON.parse(localStorage.getItem(key)), key }));
  }

  put(change) {
    // Sorted by time, whichever tab made them.
    const key = `${this.name}.${Date.now()}-${String(this.made++).padStart(6, "0")}-${this.tab}`;
    localStorage.setItem(key, JSON.stringify({ ...change, tab: this.tab }));
  }

  add(change) {
    this.put(change);
    this.read();
    this.told();
    this.send();
  }

  remove(key) {
    localStorage.removeItem(key);
    this.read();
    this.told();
  }

  /** Take out the changes of an entry that are not sent yet. */
  drop(id) {
    for (const one of this.waiting) if (one.id === id && one.key !== this.sending) localStorage.removeItem(one.key);
    this.read();
    this.told();
  }

  async send() {
    if (this.busy) return;
    this.busy = true;
    clearTimeout(this.timer);
    let pause = 0;
    const mine = await alone(this.name, async () => { pause = await this.sendAll(); });
    this.busy = false;
    this.told();
    // Where another tab was at it, it may have ended without seeing what was added last.
    if (this.waiting.length) this.timer = setTimeout(() => this.send(), pause || (mine ? 0 : 300));
  }

  /** Send what waits, as long as the server takes it. Resolves to the milliseconds to wait, 0 where all is sent. */
  async sendAll() {
    for (this.read(); this.waiting.length; this.read()) {
      const { key, ...change } = this.waiting[0];
      let answer = null, error = null;
      this.sending = key;
      try {
        answer = await ask(change.path, change);
        this.away = false;
      } catch (failure) {
        error = failure;
      }
      this.sending = null;
      if (error && passing(error)) {
        this.away = error instanceof Unreachable;
        this.attempts = (this.attempts || 0) + 1;
        if (error.status === 401) this.settle(change, null, error, { sent: true, own: true });
        return pauseFor(error, this.attempts);
      }
      this.attempts = 0;
      this.remove(key);
      // What was decided on the same entry meanwhile was decided on what this change made of it.
      for (const { key: other, ...one } of answer?.etag ? this.waiting : []) {
        if (one.id === change.id && one.etag === change.etag) localStorage.setItem(other, JSON.stringify({ ...one, etag: answer.etag }));
      }
      this.read();
      const told = error && { status: error.status, body: error.body, message: error.message };
      this.tabs.postMessage({ change, answer, error: told });
      this.settle(change, answer, told, { sent: true, own: change.tab === this.tab });
    }
    return 0;
  }
}
