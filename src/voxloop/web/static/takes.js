// Takes: what was read stays in this browser, sound and all, until the server has stored it or its speaker discards it.

import { ask, passing, pauseFor, Unreachable } from "./api.js";
import { alone } from "./locks.js";

const STORE = "takes";

const asked = (request) => new Promise((resolve, reject) => {
  request.onsuccess = () => resolve(request.result);
  request.onerror = () => reject(request.error);
});

/** A take as the server takes it. */
export function form({ sound, phrase, speaker, language }) {
  const made = new FormData();
  made.append("file", sound, "take.wav");
  for (const [name, value] of Object.entries({ phrase, speaker, language })) made.append(name, value);
  return made;
}

/**
 * The takes of one person, in this browser's database. A take is {id, sound: Blob, phrase, speaker, language, seconds,
 * kept: to be sent, refused: what the server said where it does not want it}. `told` is called when anything changed,
 * `stored` with each take that the server has now.
 */
export class Takes {
  constructor(you, { told, stored, signedOut }) {
    this.name = `voxloop.${you}.takes`;
    this.told = told;
    this.stored = stored;
    this.signedOut = signedOut;
    this.all = []; // oldest first
    this.away = false;
    window.addEventListener("online", () => this.send());
  }

  async open() {
    try {
      const opening = indexedDB.open(this.name, 1);
      opening.onupgradeneeded = () => opening.result.createObjectStore(STORE, { keyPath: "id" });
      this.database = await asked(opening);
    } catch {
      this.database = null; // some private windows have none: a reload loses what waits there
    }
    await this.read();
    this.send();
  }

  table(mode) {
    return this.database.transaction(STORE, mode).objectStore(STORE);
  }

  async read() {
    if (this.database) this.all = (await asked(this.table("readonly").getAll())).sort((a, b) => a.id.localeCompare(b.id));
    this.told();
  }

  async put(take) {
    if (this.database) await asked(this.table("readwrite").put(take));
    else this.all = [...this.all.filter((one) => one.id !== take.id), take];
    await this.read();
  }

  async drop(id) {
    if (this.database) await asked(this.table("readwrite").delete(id));
    else this.all = this.all.filter((one) => one.id !== id);
    await this.read();
  }

  /** Add a take that its speaker has not decided on yet. */
  async add(values) {
    const take = { ...values, id: `${Date.now()}-${Math.random().toString(36).slice(2)}`, kept: false, refused: null };
    await this.put(take);
    return take;
  }

  /** Have a take stored by the server, now or later. */
  async keep(take) {
    await this.put({ ...take, kept: true, refused: null });
    this.send();
  }

  get waiting() {
    return this.all.filter((one) => one.kept && !one.refused);
  }

  get refused() {
    return this.all.filter((one) => one.refused);
  }

  async send() {
    if (this.busy) return;
    this.busy = true;
    clearTimeout(this.timer);
    let pause = 0;
    const mine = await alone(this.name, async () => { pause = await this.sendAll(); });
    this.busy = false;
    await this.read();
    if (this.waiting.length) this.timer = setTimeout(() => this.send(), pause || (mine ? 0 : 500));
  }

  async sendAll() {
    for (await this.read(); this.waiting.length; await this.read()) {
      const [take] = this.waiting;
      try {
        await ask("takes", { method: "POST", form: form(take) });
        this.away = false;
        this.attempts = 0;
        await this.drop(take.id);
        this.stored(take);
      } catch (failure) {
        if (passing(failure)) {
          this.away = failure instanceof Unreachable;
          this.attempts = (this.attempts || 0) + 1;
          if (failure.status === 401) this.signedOut();
          return pauseFor(failure, this.attempts);
        }
        await this.put({ ...take, refused: failure.message });
      }
    }
    return 0;
  }
}
