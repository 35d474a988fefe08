// The state of the review: what is listed, what is shown, what was typed, what is on its way to the server.

import { ask, address, Outbox, query, Refused } from "./api.js";
import { undoMany } from "./many.js";
import { merged } from "./text.js";

const AHEAD = 3; // entries whose sound is fetched before it is asked for
const SETTLING_MS = 150; // after an entry is shown, before the server is asked about it and the next ones
const KEPT = 10; // entries kept in memory
const IDLE_S = 60; // without a key, a click or sound, nobody is reviewing
const UNDO_STEPS = 200;

export const FILTERS = {
  status: "transcribed", speaker: "", language: "", max_confidence: "", since: "", until: "", warning: "", is_trained: "", session: "", q: "",
};

const read = (key, otherwise) => {
  try { return JSON.parse(localStorage.getItem(key)) ?? otherwise; } catch { return otherwise; }
};

export class Store extends EventTarget {
  constructor() {
    super();
    this.entries = []; // the listing, as far as it was read
    this.after = null;
    this.loading = false;
    this.id = null; // of the entry that is shown
    this.arriving = null; // of the entry that is fetched to be shown
    this.details = new Map(); // id -> {entry, url, peaks}: fetched, newest last
    this.fetching = new Map();
    this.conflicts = new Map(); // id -> {theirs, mine}
    this.selected = new Set();
    this.matching = null; // {count, until}: all that match are selected, also those that are not read yet
    this.made = []; // decisions of this session, for undo
    this.done = 0;
    this.stats = null;
    this.options = null;
    this.signedOut = false;
    this.notice = null;
    this.holder = null; // another reviewer who works on the entry that is shown
    this.filters = { ...FILTERS, ...read("voxloop.filters", {}) };
    this.preferences = { autoplay: true, rate: 1, volume: 1, ...read("voxloop.preferences", {}) };
    this.began = performance.now();
    this.active = 0;
    this.touched = performance.now();
    for (const name of ["keydown", "pointerdown", "pointermove", "wheel"]) window.addEventListener(name, () => this.touch(), { passive: true, capture: true });
  }

  changed() {
    if (this.queued) return;
    this.queued = true;
    queueMicrotask(() => {
      this.queued = false;
      this.dispatchEvent(new Event("change"));
    });
  }

  say(text, action = null) {
    this.notice = { text, action, key: Math.random() };
    clearTimeout(this.noticeTimer);
    this.noticeTimer = setTimeout(() => { this.notice = null; this.changed(); }, action ? 12_000 : 5000);
    this.changed();
  }

  async start() {
    try {
      this.options = await ask("options");
    } catch (error) {
      this.fail(error);
      if (!this.signedOut) setTimeout(() => this.start(), 2000);
      return;
    }
    this.signedOut = false;
    this.name = `voxloop.${this.options.you}`;
    this.outbox = new Outbox(`${this.name}.outbox`, (...told) => this.settle(...told), () => this.changed());
    this.readConflicts();
    this.outbox.send();
    this.refreshStats();
    setInterval(() => this.refreshStats(), 15_000);
    const asked = new URLSearchParams(location.hash.slice(1));
    const wanted = Number(asked.get("id"));
    // A link from another page shows what was captured there, whatever was filtered before.
    if (asked.get("session")) this.filters = { ...FILTERS, status: "all", session: asked.get("session") };
    await this.list();
    if (wanted) await this.show(wanted, { play: false });
    else if (this.entries.length) await this.show(this.entries[0].id, { play: false });
  }

  fail(error) {
    if (error instanceof Refused && error.status === 401) this.signedOut = true;
    else if (error.name !== "AbortError") this.say(error.message);
    this.changed();
  }

  setPreference(name, value) {
    this.preferences[name] = value;
    localStorage.setItem("voxloop.preferences", JSON.stringify(this.preferences));
    this.changed();
  }

  async refreshStats() {
    try { this.stats = await ask("stats"); this.changed(); } catch { /* the outbox says when the server is away */ }
  }

  // The listing ------------------------------------------------------------------------------------------------------

  where() {
    const { status, since, until, ...rest } = this.filters;
    const local = (day, end) => day && new Date(new Date(`${day}T00:00`).getTime() + (end ? 86_400_000 : 0)).toISOString();
    return { ...rest, status: status === "all" ? "" : status, since: local(since), until: local(until, true) };
  }

  async list() {
    const asked = (this.asked = (this.asked || 0) + 1);
    this.loading = true;
    this.changed();
    try {
      const page = await ask(`entries?${query({ ...this.where(), limit: 100 })}`);
      if (asked !== this.asked) return;
      this.entries = page.entries;
      this.after = page.next;
      this.select([]);
    } catch (error) {
      this.fail(error);
    }
    this.loading = false;
    this.changed();
  }

  async more() {
    if (!this.after || this.loading) return;
    this.loading = true;
    this.changed();
    const asked = this.asked;
    try {
      const page = await ask(`entries?${query({ ...this.where(), limit: 400, after: this.after })}`);
      if (asked === this.asked) {
        const there = new Set(this.entries.map((one) => one.id));
        this.entries = [...this.entries, ...page.entries.filter((one) => !there.has(one.id))];
        this.after = page.next;
      }
    } catch (error) {
      this.fail(error);
    }
    this.loading = false;
    this.changed();
  }

  /** Select these entries, and no others. */
  select(ids) {
    this.selected = new Set(ids);
    this.matching = null;
    this.changed();
  }

  setFilters(values) {
    this.filters = { ...this.filters, ...values };
    localStorage.setItem("voxloop.filters", JSON.stringify(this.filters));
    return this.list();
  }

  listed(id) {
    return this.entries.find((one) => one.id === id);
  }

  patch(id, values) {
    const one = this.listed(id);
    if (one) Object.assign(one, values);
    const detail = this.details.get(id);
    if (detail) Object.assign(detail.entry, values);
    this.changed();
  }

  // The entry that is shown --------------------------------------------------------------------------------------------

  get entry() {
    return this.details.get(this.id)?.entry || null;
  }

  /** Fetch an entry with its sound, once. */
  fetch(id) {
    const known = this.details.get(id);
    if (known) {
      this.details.delete(id);
      this.details.set(id, known);
      return Promise.resolve(known);
    }
    if (!this.fetching.has(id)) {
      const all = Promise.all([ask(`entries/${id}`), ask(`entries/${id}/audio`, { raw: true }), ask(`entries/${id}/peaks`)]).then(([entry, sound, drawn]) => {
        const peaks = Float32Array.from(drawn.peaks, (level) => level / 127);
        const detail = { entry, url: URL.createObjectURL(sound), peaks };
        this.details.set(id, detail);
        for (const [old, { url }] of this.details) {
          if (this.details.size <= KEPT) break;
          if (old === this.id) continue;
          URL.revokeObjectURL(url);
          this.details.delete(old);
        }
        return detail;
      });
      this.fetching.set(id, all);
      all.catch(() => {}).finally(() => this.fetching.delete(id));
    }
    return this.fetching.get(id);
  }

  /** Show an entry; its sound plays by itself where that is asked for. */
  async show(id, { play = true } = {}) {
    const going = (this.going = (this.going || 0) + 1);
    const left = this.id;
    const ready = this.details.has(id);
    if (ready) this.settleOn(id, play);
    else { this.arriving = id; this.changed(); }
    try {
      await this.fetch(id);
    } catch (error) {
      if (going === this.going) this.arriving = null;
      if (going === this.going) this.fail(error instanceof Refused && error.status === 404 ? new Error(`There is no entry ${id}.`) : error);
      return;
    }
    if (going !== this.going) return;
    if (!ready) this.settleOn(id, play);
    // First what a person waits for; then, unless they have gone on already, what the next entries need.
    clearTimeout(this.after_shown);
    this.after_shown = setTimeout(() => {
      this.ahead();
      if (left !== null && left !== id) this.leave(left);
      this.take(id);
      if (ready) this.revalidate(id);
    }, SETTLING_MS);
  }

  settleOn(id, play) {
    this.id = id;
    this.arriving = null;
    this.holder = null;
    this.draft = this.stored(id);
    this.active = 0;
    this.counted = performance.now();
    this.touch();
    history.replaceState(null, "", `#id=${id}`);
    this.dispatchEvent(new CustomEvent("shown", { detail: { play: play && this.preferences.autoplay } }));
    this.changed();
  }

  async take(id) {
    try {
      await ask(`entries/${id}/take`, { method: "POST" });
    } catch (error) {
      if (!(error instanceof Refused) || error.status !== 409) return;
      const { held_by } = await ask(`entries/${id}`).catch(() => ({}));
      if (this.id === id && held_by && held_by !== this.options.you) { this.holder = held_by; this.changed(); }
    }
  }

  leave(id) {
    ask(`entries/${id}/take`, { method: "DELETE" }).catch(() => {});
  }

  /** What was fetched ahead may have changed since. */
  async revalidate(id) {
    try { this.renew(await ask(`entries/${id}`)); } catch { /* it is shown as it was */ }
  }

  renew(entry) {
    const detail = this.details.get(entry.id);
    if (this.outbox.waiting.some((one) => one.id === entry.id)) return; // the server does not know our change yet
    if (detail) detail.entry = entry;
    if (this.id === entry.id && this.draft && entry.transcript !== this.draft.before) {
      const typed = this.text.split(/\s+/).join(" ").trim() !== this.draft.before;
      if (typed && !this.conflicts.has(entry.id)) this.clash(entry, this.text, this.draft.before);
      else if (!typed) this.draft = { ...this.stored(entry.id), undo: this.draft.undo };
    }
    const { words, versions, history: made, machine, ...summary } = entry;
    const one = this.listed(entry.id);
    if (one) Object.assign(one, summary);
    this.changed();
  }

  ahead() {
    const at = this.entries.findIndex((one) => one.id === this.id);
    for (const one of this.entries.slice(at + 1, at + 1 + AHEAD)) this.fetch(one.id).catch(() => {});
    if (at >= this.entries.length - 10) this.more();
  }

  step(by, { unreviewed = false } = {}) {
    const at = this.entries.findIndex((one) => one.id === (this.arriving ?? this.id));
    for (let n = at + by; n >= 0 && n < this.entries.length; n += by) {
      const one = this.entries[n];
      const held = one.held_by && one.held_by !== this.options.you;
      if (!unreviewed || (one.status === "transcribed" && !held && !one.skipped)) { this.show(one.id); return true; }
    }
    this.say(by < 0 ? "This is the first entry." : this.after ? "Loading more…" : "This is the last entry.");
    if (by > 0) this.more();
    return false;
  }

  // Typing -------------------------------------------------------------------------------------------------------------

  stored(id) {
    const entry = this.details.get(id)?.entry;
    const draft = read(`${this.name}.draft.${id}`, null);
    if (draft && entry && (draft.text !== entry.transcript || draft.undo.length)) {
      const typed = draft.text !== draft.before && draft.text !== entry.transcript;
      if (typed && draft.before !== entry.transcript && !this.conflicts.has(id)) this.clash(entry, draft.text, draft.before);
      if (typed || draft.before === entry.transcript) return draft;
    }
    return { text: entry?.transcript ?? "", before: entry?.transcript ?? "", undo: [], redo: [] };
  }

  get text() {
    return this.draft?.text ?? "";
  }

  get dirty() {
    return !!this.entry && this.text.split(/\s+/).join(" ").trim() !== this.entry.transcript;
  }

  /** Take what was typed; `whole`: a change that undo takes back as one. */
  type(text, { whole = false } = {}) {
    const draft = this.draft;
    if (!draft || text === draft.text) return;
    const now = performance.now();
    const begins = whole || !draft.undo.length || now - (this.typed || 0) > 700 || /\s$/.test(text) !== /\s$/.test(draft.text);
    if (begins) draft.undo = [...draft.undo.slice(-UNDO_STEPS), draft.text];
    this.typed = whole ? 0 : now;
    draft.redo = [];
    draft.text = text;
    this.keep();
  }

  undoTyping(from = "undo", to = "redo") {
    const draft = this.draft;
    if (!draft?.[from].length) return;
    draft[to] = [...draft[to], draft.text];
    draft.text = draft[from][draft[from].length - 1];
    draft[from] = draft[from].slice(0, -1);
    this.typed = 0;
    this.keep();
  }

  /** Nothing typed is lost by a reload, or where the server or the browser goes away. */
  keep() {
    localStorage.setItem(`${this.name}.draft.${this.id}`, JSON.stringify(this.draft));
    this.changed();
  }

  forget(id) {
    localStorage.removeItem(`${this.name}.draft.${id}`);
  }

  /** What is wrong with the text, in words; empty: nothing. */
  get fault() {
    if (!this.entry) return "";
    if (!this.text.trim()) return "The text is empty. If nothing is said, reject the entry.";
    if (this.text.length > 20_000) return "The text is longer than 20,000 characters.";
    return "";
  }

  get caution() {
    const words = this.text.trim().length, seconds = this.entry?.duration || 1;
    if (words / seconds > 25) return "That is a lot of text for so little sound.";
    return "";
  }

  // Deciding -----------------------------------------------------------------------------------------------------------

  touch() {
    const now = performance.now();
    if (this.counted !== undefined && !document.hidden) this.active += Math.min((now - this.touched) / 1000, IDLE_S);
    this.touched = now;
  }

  seconds() {
    this.touch();
    const spent = Math.round(this.active * 10) / 10;
    this.active = 0;
    return spent;
  }

  decide(kind, change, values, { count = true } = {}) {
    const id = this.id;
    if (count) { this.made.push({ id, kind }); this.done++; }
    this.patch(id, { ...values, held_by: null });
    this.outbox.add({ id, kind, etag: this.entry.etag, ...change });
  }

  /** Save the text; true where there was one to save. */
  save() {
    if (!this.entry) return false;
    if (this.conflicts.has(this.id)) { this.say("Resolve the conflict first."); return false; }
    if (this.fault) { this.say(this.fault); return false; }
    const text = this.text.split(/\s+/).join(" ").trim();
    const values = { transcript: text, status: "reviewed", is_reviewed: true, reviewed_by: this.options.you };
    const before = this.entry.transcript;
    this.decide("save", { path: `entries/${this.id}`, method: "PUT", body: { transcript: text, seconds: this.seconds() }, before }, values);
    this.draft = { ...this.draft, text };
    this.keep();
    return true;
  }

  /** Save what was typed, or accept the text as it stands. */
  mark() {
    if (!this.entry) return false;
    if (this.dirty) return this.save();
    if (this.conflicts.has(this.id)) { this.say("Resolve the conflict first."); return false; }
    if (this.fault) { this.say(this.fault); return false; }
    const values = { status: "reviewed", is_reviewed: true, reviewed_by: this.options.you };
    this.decide("accept", { path: `entries/${this.id}/review`, method: "POST", body: { decision: "accept", seconds: this.seconds() }, before: this.entry.transcript }, values);
    return true;
  }

  reject(reason) {
    const body = { decision: "reject", reason, seconds: this.seconds() };
    this.decide("reject", { path: `entries/${this.id}/review`, method: "POST", body }, { status: "rejected", is_reviewed: false });
    this.say(`Entry ${this.id} rejected: ${reason}`, { label: "Undo", run: () => this.undoDecision() });
    this.step(1);
  }

  skip() {
    if (!this.entry) return;
    this.decide("skip", { path: `entries/${this.id}/review`, method: "POST", body: { decision: "skip", seconds: this.seconds() } }, { skipped: true });
    this.step(1, { unreviewed: true });
  }

  remove() {
    if (!this.entry) return;
    const id = this.id;
    const at = this.entries.findIndex((one) => one.id === id);
    this.decide("delete", { path: `entries/${id}`, method: "DELETE" }, {});
    this.gone = { entry: this.entries[at], at };
    this.entries = this.entries.filter((one) => one.id !== id);
    this.selected.delete(id);
    const next = this.entries[Math.min(Math.max(at, 0), this.entries.length - 1)];
    this.details.delete(id);
    if (next) this.show(next.id);
    else { this.id = null; this.dispatchEvent(new CustomEvent("shown", { detail: {} })); }
    this.say(`Entry ${id} deleted.`, { label: "Undo", run: () => this.undoDecision() });
  }

  /** Undo the last decision of this session, wherever it was, and show its entry. */
  async undoDecision() {
    const last = this.made.pop();
    if (!last) { this.say("Nothing was decided in this session."); return; }
    this.done = Math.max(0, this.done - 1);
    await this.sent();
    try {
      if (last.many) await undoMany(this, last.many);
      else {
        const entry = await ask(`entries/${last.id}/review`, { method: "POST", body: { decision: "undo" } });
        this.forget(last.id);
        if (last.kind === "delete" && this.gone?.entry?.id === last.id) this.entries.splice(this.gone.at, 0, this.gone.entry);
        this.patch(last.id, { skipped: false });
        this.renew(entry);
        await this.show(last.id, { play: false });
        this.draft = this.stored(last.id);
      }
      if (last.many) await this.list();
      this.say("Undone.");
    } catch (error) {
      this.fail(error);
    }
    this.refreshStats();
  }

  /** Bring a deleted entry back. */
  async restore(id) {
    try {
      const { history } = await ask(`entries/${id}/review`, { method: "POST", body: { decision: "undo" } });
      this.say(`Entry ${id} is back.`);
      this.entries = this.entries.filter((one) => one.id !== id);
      this.refreshStats();
      if (history) await this.show(id, { play: false });
    } catch (error) {
      this.fail(error);
    }
  }

  /** Wait until the outbox is empty. */
  sent() {
    return new Promise((resolve) => {
      const look = () => (this.outbox.waiting.length ? setTimeout(look, 20) : resolve());
      look();
    });
  }

  async describe(values) {
    const id = this.id;
    if (!this.entry) return;
    this.decide("describe", { path: `entries/${id}`, method: "PUT", body: values }, values, { count: false });
    if (values.speaker && !this.options.speakers.includes(values.speaker)) this.options.speakers = [...this.options.speakers, values.speaker].sort();
  }

  /** What became of a change: `sent` by this tab, or by another one; `own`: made in this one. */
  settle(change, answer, error, { sent, own }) {
    const id = change.id;
    if (!sent && !own) {
      // Another tab's: the entry has changed, as if another reviewer had changed it.
      if (answer?.etag) this.renew(answer);
      if (error) this.readConflicts();
    } else if (!error) {
      if (answer?.etag) {
        // What was typed after this change was typed over what it made.
        const draft = this.id === id ? this.draft : read(`${this.name}.draft.${id}`, null);
        if (draft) draft.before = answer.transcript;
        if (draft && draft.text.trim() !== answer.transcript) localStorage.setItem(`${this.name}.draft.${id}`, JSON.stringify(draft));
        else if (draft && this.id !== id) this.forget(id);
        this.renew(answer);
      }
    } else if (error.status === 401) {
      this.signedOut = true;
    } else if (error.status === 412 || error.status === 409) {
      this.collide(change, error.body?.entry, error.message, own);
    } else {
      this.made = this.made.filter((one) => one.id !== id || one.kind !== change.kind);
      this.say(error.status === 404 ? `Entry ${id} was deleted by somebody else.` : error.message);
      this.revalidate(id);
    }
    if (!error) {
      clearTimeout(this.statsTimer);
      this.statsTimer = setTimeout(() => this.refreshStats(), 300);
    }
    this.changed();
  }

  clash(theirs, mine, base) {
    this.readConflicts();
    this.conflicts.set(theirs.id, { theirs, mine, base, both: merged(base, mine, theirs.transcript, theirs.language) });
    this.storeConflicts();
  }

  /** Somebody else changed the entry meanwhile: keep both texts until a person decides. */
  collide(change, theirs, message, own) {
    const id = change.id;
    this.outbox.drop(id);
    if (own) {
      this.made = this.made.filter((one) => one.id !== id);
      this.done = Math.max(0, this.done - 1);
    }
    if (!theirs) { this.say(message); this.list(); return; }
    const mine = change.body?.transcript;
    if (mine !== undefined && mine !== theirs.transcript) {
      this.clash(theirs, mine, change.before ?? theirs.original);
      this.say(`${theirs.reviewed_by || "Somebody"} changed entry ${id} while you worked on it.`, { label: "Compare", run: () => this.show(id, { play: false }) });
    } else {
      this.say(`Entry ${id} had changed, so your decision was not kept: look again.`, { label: "Show", run: () => this.show(id, { play: false }) });
    }
    this.renew(theirs);
  }

  readConflicts() {
    this.conflicts = new Map(read(`${this.name}.conflicts`, []));
  }

  storeConflicts() {
    localStorage.setItem(`${this.name}.conflicts`, JSON.stringify([...this.conflicts]));
    this.changed();
  }

  /** End a conflict: with a text, which is saved over theirs, or with theirs (null). */
  resolve(text) {
    const { theirs } = this.conflicts.get(this.id);
    this.readConflicts();
    this.conflicts.delete(this.id);
    this.storeConflicts();
    this.details.get(this.id).entry = theirs;
    this.forget(this.id);
    this.draft = this.stored(this.id);
    if (text !== null) { this.type(text, { whole: true }); this.save(); }
    this.changed();
  }

  exportAddress(format) {
    return address(`export?${query({ ...this.where(), format })}`);
  }
}
