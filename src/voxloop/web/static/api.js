// Requests to the server that the page came from; every change waits in an outbox until the server has it.

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

/**
 * Changes on their way to the server, in order, kept in this browser's storage: neither a reload nor a server that is
 * gone loses one. `settle` is told what became of each: (change, answer | null, error | null).
 */
export class Outbox {
  constructor(name, settle, told) {
    this.name = name;
    this.settle = settle;
    this.told = told; // called when what waits, or whether the server answers, has changed
    this.away = false;
    this.busy = false;
    try { this.waiting = JSON.parse(localStorage.getItem(name) || "[]"); } catch { this.waiting = []; }
    window.addEventListener("online", () => this.send());
  }

  add(change) {
    this.waiting.push(change);
    this.store();
    this.send();
  }

  store() {
    localStorage.setItem(this.name, JSON.stringify(this.waiting));
    this.told();
  }

  /** Take out the changes of an entry that are not sent yet. */
  drop(id) {
    this.waiting = this.waiting.filter((one, n) => one.id !== id || (n === 0 && this.busy));
    this.store();
  }

  async send() {
    if (this.busy) return;
    this.busy = true;
    clearTimeout(this.timer);
    let pause = 0;
    while (this.waiting.length && !pause) {
      const change = this.waiting[0];
      let answer = null, error = null;
      try {
        answer = await ask(change.path, change);
        this.away = false;
      } catch (failure) {
        error = failure;
        const later = failure instanceof Unreachable || failure.status === 429 || failure.status >= 500 || failure.status === 401;
        if (later) {
          this.away = failure instanceof Unreachable;
          this.attempts = (this.attempts || 0) + 1;
          pause = (failure.retryAfter || Math.min(2 ** (this.attempts - 1), 8)) * 1000;
          if (failure.status === 401) this.settle(change, null, failure);
          continue;
        }
      }
      this.attempts = 0;
      this.waiting.shift();
      // What was decided on the same entry meanwhile was decided on what this change made of it.
      if (answer?.etag) for (const one of this.waiting) if (one.id === change.id && one.etag === change.etag) one.etag = answer.etag;
      this.store();
      this.settle(change, answer, error);
    }
    this.busy = false;
    this.told();
    if (pause) this.timer = setTimeout(() => this.send(), pause);
  }
}
