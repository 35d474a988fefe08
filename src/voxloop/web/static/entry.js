// One entry: its sound, its text beside what the machine heard, and what there is to know about it.

import { clock, html, percent, useEffect, useLayoutEffect, useRef, useState, when } from "./view.js";
import { Player } from "./player.js";
import { Editor } from "./editor.js";
import { counts, difference } from "./text.js";
import { hint, shown } from "./keys.js";

const RATES = [0.5, 0.6, 0.75, 0.9, 1, 1.1, 1.25, 1.5, 1.75, 2];

/** The next rate up or down. */
export function nextRate(rate, by) {
  const at = RATES.reduce((best, one, n) => (Math.abs(one - rate) < Math.abs(RATES[best] - rate) ? n : best), 0);
  return RATES[Math.min(Math.max(at + by, 0), RATES.length - 1)];
}

export function Work({ store, keys, act, ready }) {
  const entry = store.entry;
  const [player, setPlayer] = useState(null);
  const box = useRef(null);
  useEffect(() => {
    const made = new Player(box.current);
    made.audio.volume = store.preferences.volume;
    made.rate = store.preferences.rate;
    setPlayer(made);
    ready(made);
    const show = async (event) => {
      const detail = store.details.get(store.id);
      box.current.closest("main").removeAttribute("data-ready");
      if (!detail) { made.clear(); return; }
      const id = store.id;
      await made.load(detail.url, detail.peaks, detail.entry.duration);
      if (store.id !== id) return;
      store.drawn = id;
      store.changed();
      box.current.closest("main").dataset.ready = id;
      if (event?.detail?.play) made.play();
    };
    store.addEventListener("shown", show);
    if (store.id !== null) show();
    return () => store.removeEventListener("shown", show);
  }, []);

  return html`<main class=${entry ? "" : "empty"}>
    ${!entry && html`<p class="blank">${store.loading ? "Loading…" : store.entries.length ? "Choose an entry." : "Nothing to review with these filters."}</p>`}
    <section class="sound" aria-label="Sound" hidden=${!entry}>
      ${entry && html`<${Heading} store=${store} entry=${entry} act=${act} />`}
      <${Wave} store=${store} player=${player} box=${box} entry=${entry} />
      ${player && entry && html`<${Controls} store=${store} player=${player} keys=${keys} act=${act} />`}
    </section>
    ${entry && html`
      ${store.holder && html`<p class="banner" role="status">${store.holder} is reviewing this entry now. Whoever saves second is shown both texts.</p>`}
      ${store.conflicts.has(entry.id) ? html`<${Conflict} key=${entry.id} store=${store} />` : html`
      <section class="text" aria-label="Text">
        <${Editor} store=${store} player=${player} keys=${keys} act=${act} />
        <${Below} store=${store} keys=${keys} act=${act} />
      </section>
      <${Actions} store=${store} keys=${keys} act=${act} />`}
      <aside class="details" aria-label="Details">
        <${Warnings} entry=${entry} />
        <${Quality} entry=${entry} />
        <${Facts} key=${entry.id} store=${store} entry=${entry} />
        <${Suggestions} store=${store} entry=${entry} act=${act} />
        <${History} store=${store} entry=${entry} />
      </aside>`}
  </main>`;
}

const STATES = { reviewed: "Reviewed", rejected: "Rejected", transcribed: "To review", new: "Not transcribed" };

function Heading({ store, entry, act }) {
  return html`<header class="heading">
    <h2>Entry ${entry.id}</h2>
    <span class=${`badge ${entry.status}`}>${STATES[entry.status]}${entry.reviewed_by && entry.is_reviewed ? ` by ${entry.reviewed_by}` : ""}</span>
    ${entry.is_trained && html`<span class="badge">Trained on</span>`}
    ${store.dirty && html`<span class="badge unsaved">Not saved</span>`}
    <span class="grow"></span>
    <span class="faint cut">${entry.file}</span>
    <a class="faint" href=${`api/entries/${entry.id}/audio?download=1`} download>Download</a>
    <time class="faint">${entry.timestamp} UTC</time>
    <button class="quiet" onClick=${() => act("previous")} aria-label="Previous entry" title="Previous (←)"><span aria-hidden="true">←</span></button>
    <button class="quiet" onClick=${() => act("next")} aria-label="Next entry" title="Next (→)"><span aria-hidden="true">→</span></button>
  </header>`;
}

/** The waveform; to assistive technology it is a slider. */
function Wave({ store, player, box, entry }) {
  const [time, setTime] = useState(0);
  useEffect(() => {
    if (!player) return;
    const tell = () => setTime(Math.round(player.time * 10) / 10);
    for (const name of ["time", "state", "ready"]) player.addEventListener(name, tell);
    return () => { for (const name of ["time", "state", "ready"]) player.removeEventListener(name, tell); };
  }, [player]);
  const onKeyDown = (event) => {
    const by = { ArrowLeft: -0.5, ArrowRight: 0.5, ArrowDown: -0.5, ArrowUp: 0.5, PageDown: -2, PageUp: 2 }[event.key];
    const to = event.key === "Home" ? 0 : event.key === "End" ? player.duration : by ? player.time + by : null;
    if (to === null || event.ctrlKey || event.altKey || event.metaKey) return;
    event.preventDefault();
    event.stopPropagation();
    player.seek(to);
  };
  return html`<div class="wave" ref=${box} role="slider" tabindex="0" aria-label="Position" aria-valuemin="0"
    aria-valuemax=${entry ? entry.duration.toFixed(1) : 0} aria-valuenow=${time}
    aria-valuetext=${`${time.toFixed(1)} of ${entry ? entry.duration.toFixed(1) : 0} seconds`} onKeyDown=${onKeyDown}></div>`;
}

function Controls({ store, player, keys, act }) {
  const [, again] = useState(0);
  useEffect(() => {
    const tell = () => again((n) => n + 1);
    player.addEventListener("state", tell);
    let last = -1;
    const time = () => { const tenth = Math.floor(player.time * 10); if (tenth !== last) { last = tenth; tell(); } };
    player.addEventListener("time", time);
    player.addEventListener("ready", tell);
    return () => { player.removeEventListener("state", tell); player.removeEventListener("time", time); player.removeEventListener("ready", tell); };
  }, [player]);
  const title = (name, label) => `${label} (${keys.of(name).map(shown).join(", ")})`;
  return html`<div class="controls" role="group" aria-label="Playing">
    <button class="play" aria-label=${player.playing ? "Pause" : "Play"} title=${title("play", "Play or pause")} onClick=${() => act("play")}>${player.playing ? "❚❚" : "▶"}</button>
    <span class="clock">${clock(player.time)} <span class="faint">/ ${clock(player.duration)}</span></span>
    <button class="quiet" title=${title("back", "Back 1 second")} onClick=${() => act("back")}>Back 1 s</button>
    <button class="quiet toggle" aria-pressed=${player.looping} title=${title("loop", "Loop")} onClick=${() => act("loop")}>Loop</button>
    <label class="inline" title=${`${title("slower", "Slower")}, ${title("faster", "faster")}`}>
      <select aria-label="Speed" value=${player.rate} onChange=${(event) => { player.rate = Number(event.target.value); store.setPreference("rate", player.rate); }}>${RATES.map((one) => html`<option value=${one}>${one}×</option>`)}</select></label>
    <label class="inline">Volume <input type="range" min="0" max="1" step="0.05" value=${player.audio.volume}
      onInput=${(event) => { player.audio.volume = Number(event.target.value); store.setPreference("volume", player.audio.volume); }} /></label>
    <label class="inline"><input type="checkbox" checked=${store.preferences.autoplay} onChange=${(event) => store.setPreference("autoplay", event.target.checked)} /> Autoplay</label>
  </div>`;
}

export function Pieces({ from, to, language }) {
  return html`<span dir="auto" lang=${language || null}>${difference(from, to, language).map(({ kind, text }) => kind === "gone" ? html`<del>${text}</del>` : kind === "new" ? html`<ins>${text}</ins>` : text)}</span>`;
}

/** What the machine heard against what stands now, counts, and what is wrong with the text. */
function Below({ store, keys, act }) {
  const entry = store.entry, text = store.text;
  const { characters, words } = counts(text.trim(), entry.language);
  const changed = text.trim() !== entry.original;
  return html`<div class="below">
    <div class="row counts">
      <span>${characters} characters · ${words} words</span>
      ${store.fault && text.trim() === "" ? html`<span class="bad" role="alert">${store.fault}</span>` : store.caution ? html`<span class="caution">${store.caution}</span>` : null}
      <span class="grow"></span>
      <span class="legend" aria-hidden="true"><span class="low">doubtful</span> <span class="mid">fairly sure</span></span>
      <button class="quiet" disabled=${!store.draft?.undo.length} title=${`Undo typing (${keys.of("undo").map(shown)[0]})`} onClick=${() => act("undo")}>Undo</button>
      <button class="quiet" disabled=${!store.draft?.redo.length} title=${`Redo typing (${keys.of("redo").map(shown)[0]})`} onClick=${() => act("redo")}>Redo</button>
      <button class="quiet" disabled=${!changed || !entry.original} title=${`Back to the machine's text (${keys.of("restore").map(shown)[0]})`} onClick=${() => act("restore")}>Original</button>
    </div>
    ${changed && entry.original ? html`<p class="original"><span class="tag">Changes</span><${Pieces} from=${entry.original} to=${text.trim()} language=${entry.language} /></p>`
      : html`<p class="original"><span class="tag">Original</span><span class="faint">${entry.original ? "unchanged" : "no machine has transcribed this"}</span></p>`}
  </div>`;
}

function Actions({ store, keys, act }) {
  const key = (name) => html`<kbd aria-hidden="true">${name === "saveNext" ? shown(keys.of(name)[0] || "") : hint(keys.of(name))}</kbd>`;
  return html`<div class="actions" role="toolbar" aria-label="Decide">
    <button class="primary" onClick=${() => act("saveNext")}>${store.dirty ? "Save & next" : "Accept & next"} ${key("saveNext")}</button>
    <button onClick=${() => act("save")}>Save ${key("save")}</button>
    <button onClick=${() => act("mark")}>Mark reviewed ${key("mark")}</button>
    <button class="minor" onClick=${() => act("skip")}>Skip ${key("skip")}</button>
    <span class="grow"></span>
    <button class="danger minor" onClick=${() => act("reject")}>Reject ${key("reject")}</button>
    <button class="danger minor" onClick=${() => act("remove")}>Delete ${key("remove")}</button>
  </div>`;
}

function Conflict({ store }) {
  const { theirs, mine, base, both } = store.conflicts.get(store.id);
  const [text, setText] = useState(both ?? mine);
  return html`<section class="conflict" aria-label="Conflict">
    <h3>${theirs.reviewed_by || "Somebody"} changed this while you worked on it</h3>
    <dl>
      <dt>Theirs</dt><dd><${Pieces} from=${base} to=${theirs.transcript} language=${theirs.language} /></dd>
      <dt>Yours</dt><dd><${Pieces} from=${base} to=${mine} language=${theirs.language} /></dd>
    </dl>
    <label>${both === null ? "Both change the same words: write what is right" : "Both changes together"}
      <textarea class="merge" dir="auto" lang=${theirs.language || null} value=${text} onInput=${(event) => setText(event.target.value)}></textarea></label>
    <div class="row">
      <button class="primary" disabled=${!text.trim()} onClick=${() => store.resolve(text)}>Save this</button>
      <button onClick=${() => setText(mine)}>Yours</button>
      <button onClick=${() => store.resolve(null)}>Keep theirs</button>
    </div>
  </section>`;
}

function Warnings({ entry }) {
  if (!entry.warnings.length) return null;
  return html`<section><h3>Warnings</h3><ul class="warnings">${entry.warnings.map((one) => html`<li><strong>${one.kind}</strong> <span class="faint">${one.detail}</span><br />${one.advice}</li>`)}</ul></section>`;
}

function Quality({ entry }) {
  const q = entry.quality || {};
  const chip = (label, value, bad, unit) => html`<div class=${`chip ${bad ? "warn" : ""}`}><dt>${label}</dt><dd>${value == null ? "–" : value}${value == null ? "" : unit}</dd></div>`;
  return html`<section><h3>Quality</h3><dl class="chips">
    ${chip("Length", entry.duration.toFixed(1), false, " s")}
    ${chip("Confidence", entry.confidence == null ? null : Math.round(100 * entry.confidence), entry.confidence != null && entry.confidence < 0.6, " %")}
    ${chip("Level", q.level_dbfs == null ? null : q.level_dbfs.toFixed(0), q.level_dbfs < -45, " dBFS")}
    ${chip("SNR", q.snr_db == null ? null : q.snr_db.toFixed(0), q.snr_db != null && q.snr_db < 10, " dB")}
    ${chip("Clipping", q.clipping == null ? null : (100 * q.clipping).toFixed(1), q.clipping > 0.001, " %")}
    ${chip("Silence", q.silence == null ? null : Math.round(100 * q.silence), false, " %")}
  </dl></section>`;
}

/** A value that is typed first and taken when the field is left or Enter is pressed. */
function Field({ label, value, take, ...rest }) {
  const [typed, setTyped] = useState(value);
  useEffect(() => setTyped(value), [value]);
  return html`<label>${label}<input value=${typed} onInput=${(event) => setTyped(event.target.value)} onChange=${() => typed.trim() !== value && take(typed.trim())} ...${rest} /></label>`;
}

function Facts({ store, entry }) {
  return html`<section><h3>Speaker and language</h3><div class="facts">
    <${Field} label="Speaker" list="speakers" value=${entry.speaker || ""} placeholder="not named" maxlength="200" take=${(speaker) => store.describe({ speaker })} />
    <${Field} label="Language" list="languages" value=${entry.language || ""} placeholder="any" maxlength="12" take=${(language) => store.describe({ language })} />
    <datalist id="speakers">${store.options.speakers.map((one) => html`<option value=${one} />`)}</datalist>
    <datalist id="languages">${store.options.languages.map((one) => html`<option value=${one} />`)}</datalist>
  </div></section>`;
}

/** The other texts that machines wrote, where they differ from what stands in the field. */
export function suggestions(entry, text) {
  const seen = new Set([text.trim(), entry.original, ""]);
  return [...(entry.versions || [])].reverse().filter((one) => (one.kind === "hypothesis" || one.kind === "clean") && !seen.has(one.text) && seen.add(one.text));
}

const short = (name) => (name.startsWith("sha256-") ? `model ${name.slice(7, 15)}` : name);

function Suggestions({ store, entry, act }) {
  const found = suggestions(entry, store.text);
  if (!found.length) return null;
  return html`<section><h3>Other machine texts</h3><ul class="texts">${found.map((one) => html`<li>
    <p><${Pieces} from=${store.text.trim()} to=${one.text} language=${entry.language} /></p>
    <div class="row"><span class="faint cut">${short(one.by)} · ${when(one.created)}</span><span class="grow"></span><button class="quiet" onClick=${() => store.type(one.text, { whole: true })}>Use</button></div></li>`)}</ul></section>`;
}

const DID = { save: "saved", accept: "accepted", "bulk accept": "accepted in bulk", reject: "rejected", skip: "skipped", replace: "replaced words", delete: "deleted", import: "imported", undo: "undid a decision" };

function History({ store, entry }) {
  const texts = new Map((entry.versions || []).map((one) => [one.id, one]));
  const made = (entry.history || []).map((one) => ({ at: one.created, who: one.by, did: DID[one.kind] || one.kind, reason: one.reason, seconds: one.seconds, text: texts.get(one.transcript) }));
  const raw = new Set((entry.versions || []).filter((one) => one.kind === "hypothesis").map((one) => one.text));
  const heard = (entry.versions || []).filter((one) => !(one.kind === "clean" && raw.has(one.text)) && one.kind !== "reference" && one.kind !== "withdrawn" && !(entry.history || []).some((d) => d.transcript === one.id));
  const all = [...made, ...heard.map((one) => ({ at: one.created, who: short(one.by), did: one.kind === "clean" ? "cleaned" : "transcribed", text: one }))].sort((a, b) => b.at - a.at);
  if (!all.length) return null;
  return html`<section><h3>History</h3><ol class="texts">${all.map((one) => html`<li>
    <div class="row"><span class="grow"><strong>${one.who}</strong> ${one.did}${one.reason ? `: ${one.reason}` : ""}</span><time class="faint">${when(one.at)}${one.seconds ? ` · ${Math.round(one.seconds)} s` : ""}</time></div>
    ${one.text ? html`<div class="row"><span class="past grow" dir="auto" lang=${entry.language || null}>${one.text.text}</span>${one.text.text !== store.text.trim() ? html`<button class="quiet" onClick=${() => store.type(one.text.text, { whole: true })}>Use</button>` : null}</div>` : null}
  </li>`)}</ol></section>`;
}
