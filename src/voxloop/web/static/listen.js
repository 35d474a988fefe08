// The page that hears: text while it is spoken, and, where its speaker agreed, kept for review.

import { clock, download, html, render, useEffect, useReducer, useRef, useState } from "./view.js";
import { ask, Refused } from "./api.js";
import { agreed, Agreed, ConsentForm, standingOf } from "./consent.js";
import { Live, subrip } from "./live.js";
import { fault, Level, Microphone, Obstacle, obstacle } from "./microphone.js";
import { Nav } from "./nav.js";

const STORED = "voxloop.listen";

class Listening extends EventTarget {
  constructor() {
    super();
    let chosen = {};
    try { chosen = JSON.parse(localStorage.getItem(STORED)) || {}; } catch { /* as by default */ }
    this.chosen = { language: "", speaker: "", ...chosen };
    this.microphone = new Microphone();
    this.obstacle = obstacle();
    this.said = []; // utterances of sessions that have ended: {start, end, text, model}
    this.capturing = false; // never remembered: who keeps what is said asks for it each time
    this.kept = 0;
    this.session = `listen ${new Date().toISOString().slice(0, 16).replace("T", " ")} ${Math.random().toString(36).slice(2, 7)}`;
    this.microphone.addEventListener("piece", ({ detail }) => this.live?.hear(detail.piece));
    this.microphone.addEventListener("lost", () => { this.stop(); this.say("The microphone is gone: plug it in again."); });
  }

  changed() {
    this.dispatchEvent(new Event("change"));
  }

  say(text) {
    this.notice = text;
    this.changed();
  }

  fail(error) {
    if (error instanceof Refused && error.status === 401) this.signedOut = true;
    else this.notice = error.message;
    this.changed();
  }

  async open() {
    try {
      this.about = await ask("microphone");
      this.chosen.speaker ||= this.about.you === "admin" ? "" : this.about.you;
      this.notice = "";
    } catch (error) {
      this.fail(error);
      if (!this.signedOut) setTimeout(() => this.open(), 2000);
    }
    this.changed();
  }

  choose(values) {
    this.chosen = { ...this.chosen, ...values };
    localStorage.setItem(STORED, JSON.stringify(this.chosen));
    if ("language" in values) this.live?.update({ language: values.language });
    if ("speaker" in values) this.look();
    this.changed();
  }

  // Keeping what is said -------------------------------------------------------------------------------------------------

  setCapturing(on) {
    this.capturing = on;
    if (on) this.look();
    else this.tell();
    this.changed();
  }

  async look() {
    this.standing = null;
    this.tell();
    this.changed();
    const { speaker } = this.chosen;
    if (!this.capturing || !speaker) return;
    try { await this.consented(await standingOf(speaker)); } catch (error) { this.fail(error); }
  }

  async consented(standing) {
    if (standing.version !== this.standing?.version) this.about = await ask("microphone");
    this.standing = standing;
    this.tell();
    this.changed();
  }

  /** Whether what is said now is kept. */
  get keeps() {
    return this.capturing && agreed(this.standing, this.about.consent);
  }

  get wanted() {
    return { language: this.chosen.language, capture: this.keeps, speaker: this.chosen.speaker || "", session: this.session };
  }

  tell() {
    this.live?.update(this.wanted);
  }

  // Hearing --------------------------------------------------------------------------------------------------------------

  async toggle() {
    if (this.live) return this.stop();
    if (this.opening || this.obstacle || !this.about?.may_listen) return;
    this.opening = true;
    this.notice = "";
    this.changed();
    try {
      await this.microphone.open();
    } catch (error) {
      this.microphone.close();
      this.opening = false;
      this.say(fault(error));
      return;
    }
    this.opening = false;
    const live = (this.live = new Live(this.microphone.rate, this.wanted));
    live.addEventListener("change", () => this.changed());
    live.addEventListener("end", ({ detail }) => this.ended(live, detail));
    this.changed();
  }

  stop() {
    this.microphone.close();
    this.live?.end();
    this.changed();
  }

  ended(live, why) {
    this.said = [...this.said, ...shifted([...live.items.values()].filter((one) => one.text), this.passed)];
    this.passed = this.begin(live);
    this.kept += live.kept;
    if (live.lost) why = `${why || ""} ${Math.round(live.lost / live.rate)} s were lost while the server was away.`;
    if (this.live === live) this.live = null;
    this.microphone.close();
    this.say(why || live.notice);
  }

  /** Seconds heard until a session ends: the next one goes on from there. */
  begin(live) {
    return this.passed + live.samples / live.rate;
  }

  passed = 0;

  /** All that was said so far, with times from the first beginning. */
  get items() {
    return this.live ? [...this.said, ...shifted([...this.live.items.values()], this.passed)] : this.said;
  }

  clear() {
    this.said = [];
    this.passed = 0;
    this.changed();
  }
}

const shifted = (items, by) => items.map((one) => ({ ...one, start: one.start + by, end: one.end === null ? null : one.end + by }));

const listening = new Listening();

function App() {
  const [, again] = useReducer((n) => n + 1, 0);
  useEffect(() => {
    listening.addEventListener("change", again);
    listening.open();
    const onKeyDown = (event) => {
      if (event.key !== " " || event.ctrlKey || event.altKey || event.metaKey || event.repeat) return;
      if (event.target.matches?.("input, select, textarea, button, a, summary")) return;
      event.preventDefault();
      listening.toggle();
    };
    const onClick = (event) => { if (event.detail) event.target.closest?.("main button")?.blur(); };
    window.addEventListener("keydown", onKeyDown);
    window.addEventListener("click", onClick);
  }, []);
  if (listening.signedOut) {
    return html`<div class="blank"><h1>Voxloop</h1><p>This browser is not signed in.</p>
      <p>Open the link that <code>voxloop serve</code> printed, or ask for a new one with <code>voxloop token link</code>.</p></div>`;
  }
  const { about } = listening;
  if (!about) return html`<p class="blank">${listening.notice || "Loading…"}</p>`;
  const { live } = listening;
  const state = live ? (live.ending ? "The last words…" : live.connected ? "Listening" : live.attempts ? "Server away: what you say is sent when it is back" : "Connecting…") : "";
  return html`
    <header class="top">
      <h1>Voxloop<span class="hidden"> Listen</span></h1>
      <${Nav} current="listen" />
      <span class="grow"></span>
      <span class=${`outbox ${live && !live.connected && live.attempts ? "bad" : ""}`} role="status">${state}</span>
      <span class="you">${about.you}</span>
    </header>
    <main class="speech">
      ${listening.obstacle && html`<${Obstacle} kind=${listening.obstacle} />`}
      ${!about.may_listen && html`<p class="banner" role="alert">Your token may not use the microphone. It needs the scope <code>listen</code>: <code>voxloop token add NAME --scope listen</code>.</p>`}
      <${Controls} />
      ${listening.capturing && html`<${Capture} />`}
      ${(live?.notice || listening.notice) && html`<p class="banner" role="alert">${live?.notice || listening.notice}</p>`}
      <${Said} />
    </main>`;
}

function Controls() {
  const { live, opening, chosen, about, microphone, obstacle: missing } = listening;
  const model = listening.items.findLast((one) => one.model)?.model;
  const named = !model || model === about.model.id ? about.model.name : `model ${model.replace("sha256-", "").slice(0, 8)}`;
  return html`<section class="panel" aria-label="Microphone">
    <div class="row take">
      <button class=${`record ${live ? "on" : "primary"}`} aria-pressed=${!!live} disabled=${opening || live?.ending || missing || !about.may_listen} onClick=${() => listening.toggle()}><span class="lamp" aria-hidden="true"></span>${opening ? "Opening the microphone…" : live ? "Stop" : "Start"} <kbd aria-hidden="true">Space</kbd></button>
      <${Level} microphone=${microphone} />
      <span class="faint model">Heard by <strong>${named}</strong></span>
    </div>
    <div class="row options">
      <label class="inline">Language <input class="code" value=${chosen.language} placeholder="any" maxlength="20" list="languages" autocomplete="off" onChange=${(event) => listening.choose({ language: event.target.value.trim() })} /></label>
      <datalist id="languages">${[...new Set([...about.bundled, ...about.own])].map((one) => html`<option value=${one} />`)}</datalist>
      <label class="inline"><input type="checkbox" role="switch" checked=${listening.capturing} disabled=${about.capture === "off"} aria-describedby="capture-says" onChange=${(event) => listening.setCapturing(event.target.checked)} /> Keep what is said, to be reviewed</label>
      <span id="capture-says" class="faint">${about.capture === "off" ? html`Off on this server: <code>capture = "asked"</code> in voxloop.toml allows it.` : listening.keeps ? "Kept from now on." : "Nothing is kept."}</span>
    </div>
  </section>`;
}

function Capture() {
  const { chosen, standing, about } = listening;
  const [speaker, setSpeaker] = useState(chosen.speaker);
  const fail = (error) => listening.fail(error);
  const kept = listening.kept + (listening.live?.kept || 0);
  return html`
    <div class="row capture"><label class="inline">Speaker <input value=${speaker} placeholder="Whose speech it is" maxlength="200" autocomplete="off" onInput=${(event) => setSpeaker(event.target.value)}
      onChange=${() => speaker.trim() !== chosen.speaker && listening.choose({ speaker: speaker.trim() })} /></label>
      <span role="status">${kept ? `${kept} kept.` : ""} ${kept && about.may_review ? html`<a href=${`review#session=${encodeURIComponent(listening.session)}`}>Review ${kept === 1 ? "it" : "them"}</a>` : null}</span></div>
    ${chosen.speaker && standing && (listening.keeps ? html`<${Agreed} speaker=${chosen.speaker} standing=${standing} withdrawn=${(found) => listening.consented(found)} fail=${fail} />`
      : html`<${ConsentForm} key=${chosen.speaker} speaker=${chosen.speaker} text=${about.consent} standing=${standing} done=${(found) => listening.consented(found)} fail=${fail} />`)}`;
}

function Said() {
  const items = listening.items.filter((one) => one.text || one.tail);
  const box = useRef(null);
  useEffect(() => { if (listening.live) box.current?.lastElementChild?.scrollIntoView({ block: "nearest" }); });
  const final = items.filter((one) => one.text && one.end !== null);
  const name = () => listening.session.replace(/[^\w-]+/g, "-");
  const text = () => final.map((one) => one.text).join("\n") + "\n";
  return html`<section class="panel said" aria-label="What was said">
    <div ref=${box} class="lines" role="log" aria-label="Text" tabindex="0">
      ${items.length ? items.map((one, n) => html`<p key=${n} dir="auto"><span class="time" aria-hidden="true">${clock(one.start)}</span> ${one.text}${one.tail ? html`<span class="tail" aria-hidden="true"> ${one.tail}</span>` : null}</p>`) : html`<p class="faint">${listening.live ? "Speak." : "What you say appears here. Words in grey may still change."}</p>`}
    </div>
    <div class="row">
      <button disabled=${!final.length} onClick=${() => download(`${name()}.txt`, new Blob([text()], { type: "text/plain" }))}>Text (.txt)</button>
      <button disabled=${!final.length} onClick=${() => download(`${name()}.srt`, new Blob([subrip(final)], { type: "application/x-subrip" }))}>Subtitles (.srt)</button>
      <span class="grow"></span>
      <button class="quiet" disabled=${!!listening.live || !items.length} onClick=${() => listening.clear()}>Clear</button>
    </div>
  </section>`;
}

render(html`<${App} />`, document.getElementById("app"));
