// The state of recording: who reads which phrases, the take in hand, and what the check found in it.

import { ask, Refused, Unreachable } from "./api.js";
import { agreed, standingOf } from "./consent.js";
import { fault, Microphone, obstacle, wav } from "./microphone.js";
import { form, Takes } from "./takes.js";

const STORED = "voxloop.record";
const BEFORE_MS = 250; // of sound kept from before the key press, and after the one that ends it: nobody is that exact
const AFTER_MS = 250;
const PIECE_MS = 40;
const TEN = 10;
const DISAGREEMENTS = 3; // takes kept in spite of the model's words, after which its words no longer stop anybody

export class Reading extends EventTarget {
  constructor() {
    super();
    let chosen = {};
    try { chosen = JSON.parse(localStorage.getItem(STORED)) || {}; } catch { /* as by default */ }
    this.chosen = { speaker: "", language: "", source: "chosen", ...chosen };
    this.keepsPassed = chosen.keepsPassed !== false;
    this.about = null;
    this.standing = null;
    this.phrases = []; // of this set of ten: {text, reason, state: "" | "kept" | "skipped"}
    this.at = 0;
    this.progress = null; // {recorded, total, seconds}
    this.later = new Set(); // phrases that are put off
    this.take = null; // in hand: {id, sound, url, phrase, …, check, checking, unchecked}
    this.recording = false;
    this.microphone = new Microphone();
    this.recent = []; // the last pieces of sound
    this.disagreed = 0;
    this.obstacle = obstacle();
    document.addEventListener("visibilitychange", () => { if (document.hidden && !this.recording) this.microphone.close(); });
    this.microphone.addEventListener("piece", ({ detail }) => this.heard(detail.piece));
    this.microphone.addEventListener("lost", () => { this.finish(); this.say("The microphone is gone: plug it in again."); });
  }

  changed() {
    this.dispatchEvent(new Event("change"));
  }

  say(text) {
    this.notice = { text, key: Math.random() };
    clearTimeout(this.noticeTimer);
    this.noticeTimer = setTimeout(() => { this.notice = null; this.changed(); }, 6000);
    this.changed();
  }

  fail(error) {
    if (error instanceof Refused && error.status === 401) this.signedOut = true;
    else this.say(error.message);
    this.changed();
  }

  async start() {
    try {
      this.about = await ask("microphone");
    } catch (error) {
      this.fail(error);
      if (!this.signedOut) setTimeout(() => this.start(), 2000);
      return;
    }
    const { you, language, bundled } = this.about;
    this.chosen.speaker ||= you === "admin" ? "" : you;
    this.chosen.language ||= language || (bundled.includes("en") ? "en" : bundled[0] || "");
    this.takes = new Takes(you, {
      told: () => this.changed(),
      stored: (take) => this.counted(take),
      signedOut: () => { this.signedOut = true; this.changed(); },
    });
    await this.takes.open();
    this.changed();
    await this.look();
    // What was in hand when the page was left.
    const left = this.takes.all.find((one) => !one.kept && one.speaker === this.chosen.speaker && one.language === this.chosen.language);
    if (left && this.phrases.length) {
      this.phrases = [{ text: left.phrase, reason: "", state: "" }, ...this.phrases.filter((one) => one.text !== left.phrase)];
      this.hold(left);
    }
  }

  /** Choose the speaker, the language or the list. */
  async choose(values) {
    if (this.recording || this.finishing) return;
    this.discard();
    this.chosen = { ...this.chosen, ...values };
    this.store();
    this.later.clear();
    await this.look();
  }

  store() {
    localStorage.setItem(STORED, JSON.stringify({ ...this.chosen, keepsPassed: this.keepsPassed }));
    this.changed();
  }

  /** Ask what the speaker agreed to, and for the first phrases. */
  async look() {
    const { speaker, language } = this.chosen;
    this.standing = null;
    this.phrases = [];
    this.changed();
    if (!speaker || !language || !this.about.may_listen) return;
    try {
      this.standing = await standingOf(speaker);
      await this.next();
    } catch (error) {
      this.fail(error);
    }
  }

  /** The speaker agreed, or withdrew. */
  async consented(standing) {
    this.standing = standing;
    this.about = await ask("microphone");
    if (!this.agreed) { this.discard(); this.microphone.close(); }
    this.changed();
  }

  get agreed() {
    return agreed(this.standing, this.about.consent);
  }

  get phrase() {
    return this.phrases[this.at];
  }

  /** Fetch the next ten phrases. */
  async next() {
    const { speaker, language, source } = this.chosen;
    const waiting = this.takes.all.filter((one) => one.speaker === speaker).map((one) => one.phrase);
    const body = { speaker, language, source, count: TEN, without: [...this.later, ...waiting] };
    try {
      const { phrases, ...progress } = await ask("phrases/next", { method: "POST", body });
      if (!phrases.length && this.later.size) { this.later.clear(); return this.next(); } // what was put off comes again
      this.progress = progress;
      this.phrases = phrases.map((one) => ({ ...one, state: "" }));
      this.at = 0;
    } catch (error) {
      this.fail(error);
    }
    this.changed();
  }

  /** Where the phrase stands: "ready", "recording", "finishing", "checking" or "decide". */
  get state() {
    if (this.finishing) return "finishing";
    if (this.recording) return "recording";
    return !this.take ? "ready" : this.take.checking ? "checking" : "decide";
  }

  // Recording ----------------------------------------------------------------------------------------------------------

  async toggle() {
    if (this.recording) return this.finish();
    if (!this.phrase || !this.agreed || this.obstacle || this.opening || this.finishing) return;
    if (!this.microphone.opened) {
      this.opening = true;
      this.changed();
      try {
        await this.microphone.open();
        this.rate = this.microphone.rate;
      } catch (error) {
        this.microphone.close();
        this.say(fault(error));
        return;
      } finally {
        this.opening = false;
      }
    }
    this.discard();
    this.pieces = [...this.recent];
    this.recording = true;
    this.changed();
  }

  heard(piece) {
    if (this.recording) {
      this.pieces.push(piece);
      if (this.pieces.length * PIECE_MS >= this.about.longest_s * 1000 - 2 * AFTER_MS) this.finish();
    }
    this.recent = [...this.recent, piece].slice(-BEFORE_MS / PIECE_MS);
  }

  /** End the recording, a moment after the key press, and have the take checked. */
  async finish() {
    if (!this.recording || this.finishing) return;
    this.finishing = true;
    this.changed();
    if (this.microphone.opened) await new Promise((resolve) => setTimeout(resolve, AFTER_MS));
    this.recording = false;
    this.changed();
    const { rate } = this;
    const { speaker, language } = this.chosen;
    const seconds = this.pieces.reduce((sum, one) => sum + one.length, 0) / rate;
    try {
      this.hold(await this.takes.add({ sound: wav(this.pieces, rate), phrase: this.phrase.text, speaker, language, seconds }));
    } catch (error) {
      this.say(`This browser cannot keep the take: ${error.message}`); // no room on its disk, for one
    }
    this.finishing = false;
    this.changed();
  }

  hold(take) {
    this.take = { ...take, url: URL.createObjectURL(take.sound), checking: true };
    this.changed();
    this.check(this.take);
  }

  async check(take) {
    let check = null, unchecked = "";
    try {
      check = await ask("takes/check", { method: "POST", form: form(take) });
    } catch (error) {
      if (error.status === 401) this.fail(error);
      unchecked = error instanceof Unreachable
        ? "The server does not answer, so this take is not checked. Keep it if it sounds right: it stays in this browser until the server is back."
        : `Not checked: ${error.message}.`;
    }
    if (this.take?.id !== take.id) return;
    Object.assign(this.take, { check, unchecked, checking: false });
    this.changed();
    if (this.keepsPassed && check && this.passes(check)) this.keep();
  }

  /** Whether nothing speaks against a take. */
  passes(check) {
    return !check.warnings.length && !check.unheard && (!check.wrong_words || this.disagreed >= DISAGREEMENTS);
  }

  // Deciding -----------------------------------------------------------------------------------------------------------

  play() {
    if (!this.take || this.recording) return;
    this.audio ||= new Audio();
    if (!this.audio.paused) { this.audio.pause(); return; }
    this.audio.src = this.take.url;
    this.audio.play().catch(() => {});
  }

  async keep() {
    const take = this.take;
    if (!take || this.recording || this.finishing) return;
    this.audio?.pause();
    if (take.check?.wrong_words && !take.check.warnings.length) this.disagreed++;
    else if (take.check && !take.check.unheard) this.disagreed = 0;
    this.take = null;
    this.phrase.state = "kept";
    const { url, check, checking, unchecked, ...stored } = take;
    URL.revokeObjectURL(url);
    await this.takes.keep(stored);
    this.on();
  }

  skip() {
    if (!this.phrase || this.recording || this.finishing) return;
    this.discard();
    this.phrase.state = "skipped";
    this.later.add(this.phrase.text);
    this.on();
  }

  repeat() {
    if (this.take && !this.recording) this.toggle();
  }

  /** Let go of the take in hand. */
  discard() {
    this.audio?.pause();
    if (this.take) { URL.revokeObjectURL(this.take.url); this.takes.drop(this.take.id); }
    this.take = null;
    this.changed();
  }

  /** To the next phrase of this ten that is still open; after the last, there is none. */
  on() {
    const open = this.phrases.findIndex((one, n) => n > this.at && !one.state);
    this.at = open < 0 ? this.phrases.length : open;
    this.changed();
  }

  /** The server has a take. */
  counted(take) {
    if (this.progress && take.speaker === this.chosen.speaker && take.language === this.chosen.language) {
      this.progress = { ...this.progress, recorded: this.progress.recorded + 1, seconds: this.progress.seconds + take.seconds };
    }
    this.changed();
  }
}
