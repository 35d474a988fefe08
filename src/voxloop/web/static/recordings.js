// Recordings and speakers: listen, search, delete for good, forget a speaker with everything made from their speech.

import { html, useEffect, useRef, useState, when } from "./view.js";
import { address, query } from "./api.js";
import { Confirm, counted, lasting, short, Sound, speech } from "./parts.js";

export function Recordings({ store }) {
  const [where, setWhere] = useState({ q: "", speaker: store.selected, status: "" });
  const [page, setPage] = useState(null);
  const [options, setOptions] = useState({ speakers: [] });
  const [removing, setRemoving] = useState(null);
  const timer = useRef(0), asked = useRef(0);
  const load = async (filters, after = "") => {
    const turn = ++asked.current;
    const found = await store.attempt(() => store.ask(`recordings?${query({ ...filters, after })}`));
    if (found && turn === asked.current) setPage((before) => ({ recordings: after ? [...before.recordings, ...found.recordings] : found.recordings, next: found.next }));
  };
  useEffect(() => { load(where); store.ask("options").then(setOptions, () => {}); }, []);
  const filter = (values, wait = 0) => {
    const next = { ...where, ...values };
    setWhere(next);
    clearTimeout(timer.current);
    timer.current = setTimeout(() => load(next), wait);
  };
  return html`<section class="card" aria-labelledby="recordings-title"><h2 id="recordings-title">Recordings</h2>
    <div class="row wrap"><input type="search" class="grow" aria-label="Search file names" placeholder="Search file names" value=${where.q} onInput=${(event) => filter({ q: event.target.value }, 250)} />
      <label class="inline">Speaker <select value=${where.speaker} onChange=${(event) => filter({ speaker: event.target.value })}><option value="">any</option>${options.speakers.map((one) => html`<option key=${one} value=${one}>${one}</option>`)}</select></label>
      <label class="inline">Status <select value=${where.status} onChange=${(event) => filter({ status: event.target.value })}><option value="">any</option>${["new", "transcribed", "reviewed", "rejected"].map((one) => html`<option key=${one} value=${one}>${one}</option>`)}</select></label></div>
    ${page && html`<p class="faint" role="status">${page.recordings.length ? `${counted(page.recordings.length, "recording")}${page.next ? ", and more" : ""}` : "None."}</p>
      <ul class="entries">${page.recordings.map((one) => html`<li key=${one.id}><div class="row wrap"><strong class="cut">${one.name}</strong><span class="grow"></span>
          ${store.admin && html`<button class="danger" aria-label=${`Delete ${one.name}`} onClick=${() => setRemoving(one)}>Delete…</button>`}</div>
        <p class="faint">${one.speaker || "unknown speaker"}, ${one.language || "unknown language"}, ${lasting(one.seconds)}, ${one.status}, ${when(one.created)}${one.quality?.snr_db != null ? `, SNR ${one.quality.snr_db.toFixed(0)} dB` : ""}</p>
        ${one.notes.map((note) => html`<p key=${note} class="caution">${note}</p>`)}
        <${Sound} src=${address(`recordings/${one.id}/audio`)} label=${`Play ${one.name}`} /></li>`)}</ul>
      ${page.next && html`<button onClick=${() => load(where, page.next)}>More</button>`}`}
    ${removing && html`<${Removing} store=${store} title=${`Delete ${removing.name}?`} plan=${() => store.ask(`recordings/${removing.id}?dry_run=true`, { method: "DELETE" })}
      act=${async () => { await store.ask(`recordings/${removing.id}`, { method: "DELETE" }); store.say("The recording was deleted."); load(where); store.reload(); }} close=${() => setRemoving(null)} />`}
  </section>`;
}

/** What would be removed, before it is. */
function Removing({ store, title, plan, act, close, children }) {
  const [found, setFound] = useState(null);
  const [error, setError] = useState("");
  useEffect(() => { plan().then(setFound, (failure) => setError(failure.message)); }, []);
  const named = Object.fromEntries(store.lineage.models.map((one) => [one.model.id, one.model.name]));
  return html`<${Confirm} title=${title} label="Delete for good" close=${close} act=${act}>
    ${children}
    ${error && html`<p class="bad" role="alert">${error}</p>`}
    ${!found && !error && html`<p class="faint">Counting…</p>`}
    ${found && html`<p>This removes ${counted(found.recordings, "recording")} (${lasting(found.seconds_of_audio)}) with ${counted(found.utterances, "utterance")}, ${counted(found.transcripts, "text")} and everything made from them. It cannot be undone.</p>
      ${found.datasets.length ? html`<p>Datasets that lose utterances: ${found.datasets.map((one) => `${one.name} (${one.utterances})`).join(", ")}.</p>` : null}
      ${found.models.length ? html`<p class="caution">A model cannot unlearn. These learnt from it and are marked: ${found.models.map((one) => named[one.id] || short(one.id)).join(", ")}.</p>` : null}
      ${found.notes.length ? html`<ul class="reasons-list faint">${found.notes.map((one) => html`<li key=${one}>${one}</li>`)}</ul>` : null}`}<//>`;
}

export function Speakers({ store }) {
  const [found, setFound] = useState(null);
  const [forgetting, setForgetting] = useState(null);
  const load = () => store.attempt(() => store.ask("speakers")).then((said) => said && setFound(said.speakers));
  useEffect(() => { load(); }, []);
  return html`<section class="card" aria-labelledby="speakers-title"><h2 id="speakers-title">Speakers</h2>
    ${found && !found.length && html`<p>No recording names a speaker yet.</p>`}
    ${found && html`<ul class="entries">${found.map((one) => html`<li key=${one.name}><div class="row wrap"><strong class="cut">${one.name}</strong><a href=${`#recordings=${encodeURIComponent(one.name)}`}>${counted(one.recordings, "recording")}</a><span class="faint">${speech(one.hours)}, ${one.reviewed.toLocaleString()} of ${counted(one.utterances, "clip")} reviewed</span><span class="grow"></span>
        ${store.admin && html`<button class="danger" aria-label=${`Forget ${one.name}`} onClick=${() => setForgetting(one)}>Forget…</button>`}</div>
      <${Consent} consent=${one.consent} /></li>`)}</ul>`}
    ${forgetting && html`<${Removing} store=${store} title=${`Forget ${forgetting.name}?`} plan=${() => store.ask("speakers/forget", { method: "POST", body: { speaker: forgetting.name, dry_run: true } })}
      act=${async () => { await store.ask("speakers/forget", { method: "POST", body: { speaker: forgetting.name } }); store.say("The speaker was forgotten."); load(); store.reload(); }} close=${() => setForgetting(null)}>
      <${Consent} consent=${forgetting.consent} /><//>`}
  </section>`;
}

function Consent({ consent }) {
  if (!consent?.history.length) return html`<p class="faint">No consent noted: only training is permitted.</p>`;
  const last = consent.history.at(-1);
  return html`<p>Permits: ${consent.permits.length ? consent.permits.join(", ") : "nothing"}. <span class="faint">${last.given ? "Given" : "Withdrawn"} ${when(last.created)}${last.version ? `, text ${last.version}` : ""}, noted by ${last.by}.</span></p>`;
}
