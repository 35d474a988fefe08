// The page that phrases are read on: consent, one phrase at a time, the check of each take.

import { clock, download, html, languageName, render, useEffect, useRef, useState } from "./view.js";
import { ask, query } from "./api.js";
import { Agreed, ConsentForm } from "./consent.js";
import { Dialog } from "./dialog.js";
import { Level, Obstacle } from "./microphone.js";
import { Nav } from "./nav.js";
import { Reading } from "./reading.js";

const reading = new Reading();
const LISTS = { chosen: "What teaches most", bundled: "The list that comes along", own: "Our own list" };

const KEYS = {
  " ": () => reading.toggle(),
  Enter: () => (reading.take ? reading.keep() : !reading.phrase && reading.next()),
  r: () => reading.repeat(),
  s: () => reading.skip(),
  p: () => reading.play(),
};

function App() {
  const [, again] = useState(0);
  const [editing, setEditing] = useState(false);
  const open = useRef(false);
  open.current = editing;
  useEffect(() => {
    const changed = () => again((n) => n + 1);
    reading.addEventListener("change", changed);
    reading.start();
    const onKeyDown = (event) => {
      if (open.current || event.ctrlKey || event.altKey || event.metaKey || event.repeat) return;
      if (event.target.matches?.("input, select, textarea")) return;
      // Space and Enter press the button that has the focus.
      if (event.target.matches?.("button, a, summary") && [" ", "Enter"].includes(event.key)) return;
      const act = KEYS[event.key.length === 1 ? event.key.toLowerCase() : event.key];
      if (!act || !reading.agreed) return;
      event.preventDefault();
      act();
    };
    // After a click, keys belong to the page again.
    const onClick = (event) => { if (event.detail) event.target.closest?.("main button")?.blur(); };
    window.addEventListener("keydown", onKeyDown);
    window.addEventListener("click", onClick);
    return () => reading.removeEventListener("change", changed);
  }, []);

  if (reading.signedOut) {
    return html`<div class="blank"><h1>Voxloop</h1><p>This browser is not signed in.</p>
      <p>Open the link that <code>voxloop serve</code> printed, or ask for a new one with <code>voxloop token link</code>. What you recorded is kept here.</p></div>`;
  }
  if (!reading.about) return html`<p class="blank">${reading.notice ? reading.notice.text : "Loading…"}</p>`;
  return html`
    <${Header} />
    <main class="speech">
      ${reading.obstacle && html`<${Obstacle} kind=${reading.obstacle} />`}
      ${!reading.about.may_listen && html`<p class="banner" role="alert">Your token may not use the microphone. It needs the scope <code>listen</code>: <code>voxloop token add NAME --scope listen --scope review</code>.</p>`}
      <${Setup} edit=${() => setEditing(true)} />
      ${reading.about.may_listen && !reading.obstacle && html`<${Work} edit=${() => setEditing(true)} />`}
      <${Refusals} />
    </main>
    ${editing && html`<${ListDialog} close=${() => setEditing(false)} />`}
    <div class="notice" role="status" aria-live="polite">${reading.notice && html`<div key=${reading.notice.key}><span>${reading.notice.text}</span></div>`}</div>`;
}

function Header() {
  const { progress, takes, about } = reading;
  const waiting = takes ? takes.waiting.length : 0;
  return html`<header class="top">
    <h1>Voxloop<span class="hidden"> Record</span></h1>
    <${Nav} current="record" />
    ${progress && html`<div class="progress">
      <progress max=${Math.max(progress.total, 1)} value=${progress.recorded} aria-label="Recorded"></progress>
      <span><strong>${progress.recorded.toLocaleString()}</strong> of ${progress.total.toLocaleString()} <span class="faint">· ${minutes(progress.seconds)}</span></span></div>`}
    <span class="grow"></span>
    <span class=${`outbox ${takes?.away ? "bad" : ""}`} role="status">${takes?.away ? `Server away: ${waiting} kept here` : waiting ? `Storing ${waiting}…` : ""}</span>
    <span class="you">${about.you}</span>
  </header>`;
}

const minutes = (seconds) => (seconds < 60 ? `${Math.round(seconds)} s` : `${(seconds / 60).toFixed(seconds < 600 ? 1 : 0)} min`);

function Setup({ edit }) {
  const { chosen, about } = reading;
  const busy = reading.recording || reading.finishing;
  const [speaker, setSpeaker] = useState(chosen.speaker);
  useEffect(() => setSpeaker(chosen.speaker), [chosen.speaker]);
  const known = [...new Set([...about.bundled, ...about.own, chosen.language].filter(Boolean))].sort();
  return html`<section class="setup" aria-label="Who reads what">
    <label>Speaker<input disabled=${busy} value=${speaker} placeholder="Your name" maxlength="200" autocomplete="off" onInput=${(event) => setSpeaker(event.target.value)}
      onChange=${() => speaker.trim() !== chosen.speaker && reading.choose({ speaker: speaker.trim() })} /></label>
    <label>Language<select disabled=${busy} value=${chosen.language} onChange=${(event) => reading.choose({ language: event.target.value })}>
      ${known.map((one) => html`<option value=${one}>${languageName(one)}</option>`)}</select></label>
    <label>Phrases<select disabled=${busy} value=${chosen.source} onChange=${(event) => reading.choose({ source: event.target.value })}>
      ${Object.entries(LISTS).map(([value, label]) => html`<option value=${value}>${label}</option>`)}</select></label>
    ${about.may_review && html`<button disabled=${busy} onClick=${edit}>Edit our list</button>`}
  </section>`;
}

function Work({ edit }) {
  const { chosen, about, standing, phrases, phrase } = reading;
  const fail = (error) => reading.fail(error);
  if (!chosen.speaker) return html`<p class="blank">Who is going to read? Enter a name above.</p>`;
  if (!standing) return html`<p class="blank">Loading…</p>`;
  if (!reading.agreed) return html`<${ConsentForm} key=${chosen.speaker} speaker=${chosen.speaker} text=${about.consent} standing=${standing} done=${(found) => reading.consented(found)} fail=${fail} />`;
  return html`
    <section class="panel reading" aria-label="Phrase" data-state=${reading.state}>
      ${phrase ? html`<${PhraseCard} />` : html`<${Between} edit=${edit} />`}
      ${phrases.length ? html`<ol class="dots" aria-label="These ten">${phrases.map((one, n) => html`<li class=${one.state || (n === reading.at ? "now" : "")} aria-current=${n === reading.at ? "step" : null}><span class="hidden">${n + 1}: ${one.state || (n === reading.at ? "now" : "open")}</span></li>`)}</ol>` : null}
    </section>
    <${Agreed} speaker=${chosen.speaker} standing=${standing} withdrawn=${(found) => reading.consented(found)} fail=${fail} />`;
}

function PhraseCard() {
  const { phrase, phrases, at, recording, finishing, opening, take, chosen, microphone } = reading;
  const label = opening ? "Opening the microphone…" : finishing ? "One moment…" : recording ? "Stop" : take ? "Record again" : "Record";
  return html`
    <p class="faint row"><span>${at + 1} of ${phrases.length}</span>${phrase.reason && html`<span>· ${phrase.reason}</span>`}</p>
    <p class="phrase" dir="auto" lang=${chosen.language}>${phrase.text}</p>
    <div class="row take">
      <button class=${`record ${recording ? "on" : take ? "" : "primary"}`} disabled=${opening || finishing} aria-pressed=${recording} onClick=${() => reading.toggle()}><span class="lamp" aria-hidden="true"></span>${label} <kbd aria-hidden="true">Space</kbd></button>
      <${Level} microphone=${microphone} />
      ${recording && html`<${Running} />`}
    </div>
    <div role="status" aria-live="polite">${take && !recording && html`<${Check} take=${take} />`}</div>
    <div class="row decisions" role="toolbar" aria-label="Decide">
      <button class=${take && !recording ? "primary" : ""} disabled=${!take || recording} onClick=${() => reading.keep()}>Keep & next <kbd aria-hidden="true">↵</kbd></button>
      <button disabled=${!take || recording} onClick=${() => reading.play()}>Play <kbd aria-hidden="true">P</kbd></button>
      <button disabled=${!take || recording} onClick=${() => reading.repeat()}>Repeat <kbd aria-hidden="true">R</kbd></button>
      <button disabled=${recording} onClick=${() => reading.skip()}>Skip <kbd aria-hidden="true">S</kbd></button>
      <span class="grow"></span>
      <label class="inline"><input type="checkbox" checked=${reading.keepsPassed} onChange=${(event) => { reading.keepsPassed = event.target.checked; reading.store(); }} /> Keep at once what passes the check</label>
    </div>`;
}

/** How long the recording is so far. */
function Running() {
  const [seconds, setSeconds] = useState(0);
  useEffect(() => {
    const began = performance.now();
    const timer = setInterval(() => setSeconds((performance.now() - began) / 1000), 100);
    return () => clearInterval(timer);
  }, []);
  return html`<span class="clock" aria-hidden="true">${clock(seconds)}</span>`;
}

function Check({ take }) {
  const { check, checking, unchecked } = take;
  if (checking) return html`<p class="faint">Checking…</p>`;
  if (!check) return html`<p class="caution">${unchecked}</p>`;
  return html`
    ${check.warnings.length ? html`<ul class="warnings">${check.warnings.map((one) => html`<li>${one}</li>`)}</ul>` : null}
    ${check.unheard ? (check.warnings.length ? null : html`<p class="caution">The model was not asked: ${check.unheard}</p>`)
      : check.wrong_words ? html`<p class="heard"><span class="tag">Heard</span><${Words} pieces=${check.pieces} /></p>
        <p class="faint">${reading.disagreed >= 3 ? "The model still mishears such phrases, so its words hold nothing up." : "If you read what is written, keep it: this is what the model has yet to learn. Otherwise repeat it."}</p>`
        : html`<p class="good">${check.warnings.length ? "Every word was heard." : "All is well: every word was heard."}</p>`}`;
}

/** The phrase against what was heard, word by word. */
function Words({ pieces }) {
  return html`<span dir="auto">${pieces.map(({ operation, reference, hypothesis }) => operation === "equal" ? html`${reference} `
    : html`${reference && html`<del>${reference}</del> `}${hypothesis && html`<ins>${hypothesis}</ins> `}`)}</span>`;
}

/** Between two sets of ten, and where there is nothing to read. */
function Between({ edit }) {
  const { phrases, chosen, about } = reading;
  const kept = phrases.filter((one) => one.state === "kept").length;
  if (!phrases.length) {
    const empty = chosen.source === "own" && !about.own.includes(chosen.language);
    return html`<h2>${empty ? "This list is empty" : "All phrases are recorded"}</h2>
      <p class="faint">${empty ? "Paste phrases into your own list, or choose another list above." : "Choose another list above, or add phrases to your own."}</p>
      ${about.may_review && html`<div class="row"><button onClick=${edit}>Edit our list</button></div>`}`;
  }
  return html`<h2>${kept} of ${phrases.length} kept</h2>
    <p class="faint">What was skipped comes again later.</p>
    <div class="row"><button class="primary" onClick=${() => reading.next()}>Next ten <kbd aria-hidden="true">↵</kbd></button></div>`;
}

/** What the server did not want, which only its speaker may throw away. */
function Refusals() {
  const refused = reading.takes?.refused || [];
  if (!refused.length) return null;
  return html`<section class="panel" aria-label="Not stored"><h2 class="bad">${refused.length === 1 ? "One take was" : `${refused.length} takes were`} not stored</h2>
    <ul class="texts">${refused.map((one) => html`<li key=${one.id}><p dir="auto">${one.phrase}</p><div class="row"><span class="faint grow">${one.refused}</span>
      <button class="quiet" onClick=${() => reading.takes.keep(one)}>Try again</button><button class="quiet" onClick=${() => download(`${one.phrase.slice(0, 40)}.wav`, one.sound)}>Download</button><button class="quiet danger" onClick=${() => reading.takes.drop(one.id)}>Discard</button></div></li>`)}</ul></section>`;
}

/** The workspace's own list: pasted, or from a text file, a phrase a line. */
function ListDialog({ close }) {
  const [language, setLanguage] = useState(reading.chosen.language);
  const [text, setText] = useState(null);
  const [error, setError] = useState("");
  useEffect(() => {
    let current = true;
    setText(null);
    setError("");
    ask(`phrases?${query({ language })}`).then((found) => current && setText(found.phrases.join("\n")), (failure) => current && setError(failure.message));
    return () => { current = false; };
  }, [language]);
  const lines = (text || "").split("\n").filter((one) => one.trim() && !one.trim().startsWith("#"));
  const read = async (event) => { const [file] = event.target.files; if (file) setText(`${text ? `${text}\n` : ""}${await file.text()}`); };
  const save = async (event) => {
    event.preventDefault();
    try {
      const kept = await ask("phrases", { method: "PUT", body: { language, phrases: lines } });
      close();
      reading.about = await ask("microphone");
      await reading.choose({ language: kept.language, source: kept.phrases.length ? "own" : "chosen" });
    } catch (failure) {
      setError(failure.message);
    }
  };
  return html`<${Dialog} title="Our own phrases" close=${close} wide>
    <form onSubmit=${save}>
      <label class="inline">Language <input value=${language} maxlength="40" size="6" onChange=${(event) => setLanguage(event.target.value.trim() || language)} /></label>
      <label class="inline">Add a text file <input type="file" accept=".txt,text/plain" onChange=${read} /></label>
      <label class="list-text">One phrase a line<textarea class="merge" rows="12" dir="auto" value=${text ?? ""} disabled=${text === null} onInput=${(event) => setText(event.target.value)}></textarea></label>
      ${error && html`<p class="bad" role="alert">${error}</p>`}
      <div class="row"><button class="primary" disabled=${text === null}>Save ${lines.length} phrases</button><span class="faint">For everybody who records in this workspace.</span></div>
    </form>
  <//>`;
}

render(html`<${App} />`, document.getElementById("app"));
