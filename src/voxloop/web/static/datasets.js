// Datasets: statistics, who wrote their texts, what was left out and why, and every utterance with its sound.

import { html, percent, useEffect, useState, when } from "./view.js";
import { address, query } from "./api.js";
import { Confirm, counted, NameDialog, short, Sound, speech } from "./parts.js";

const SPLITS = ["train", "val", "test"];

export function Datasets({ store }) {
  const { datasets } = store.lineage;
  const chosen = datasets.find((one) => one.id === store.selected) || datasets.at(-1);
  if (!datasets.length) return html`<section class="card"><p>No datasets yet. A training makes one of all that is reviewed.</p></section>`;
  return html`<div class="with-list"><section class="card" aria-labelledby="datasets-title"><h2 id="datasets-title">Datasets</h2>
      <ul class="runs">${datasets.slice().reverse().map((one) => html`<li key=${one.id} class=${one.id === chosen.id ? "current" : ""}><a href=${`#datasets=${one.id}`} aria-current=${one.id === chosen.id ? "true" : null}><strong class="cut">${one.name}</strong>
        <span class="faint">${short(one.id).slice(0, 8)}, ${when(one.created)}, ${speech(Object.values(one.hours).reduce((a, b) => a + b, 0))}</span></a></li>`)}</ul></section>
    <${Details} store=${store} id=${chosen.id} key=${chosen.id} /></div>`;
}

function Details({ store, id }) {
  const [found, setFound] = useState(null);
  const [error, setError] = useState("");
  const [dialog, setDialog] = useState("");
  useEffect(() => { store.ask(`datasets/${id}`).then(setFound, (failure) => setError(failure.message)); }, [id]);
  if (error) return html`<section class="card"><p class="bad" role="alert">${error}</p></section>`;
  if (!found) return html`<section class="card"><p class="faint">One moment…</p></section>`;
  const { summary, advice } = found;
  const used = store.lineage.runs.filter((run) => run.dataset === id);
  return html`<section class="card" aria-labelledby="dataset-title"><div class="heading"><h2 id="dataset-title">${found.name}</h2><span class="faint">${short(id)}</span></div>
    <p class="faint">Frozen ${when(found.created)}${found.parent ? html`, after <a href=${`#datasets=${found.parent}`}>${short(found.parent).slice(0, 8)}</a>` : ""}. ${used.length ? html`Trained on by ${used.map((run, n) => html`${n ? ", " : ""}<a key=${run.id} href=${`training#run=${run.id}`}>run ${run.id.slice(-8)}</a>`)}.` : "No run has trained on it."}${found.forgotten ? ` ${counted(found.forgotten, "clip")} forgotten since.` : ""}</p>
    ${store.admin && html`<div class="row"><button onClick=${() => setDialog("rename")}>Rename…</button><button class="danger" onClick=${() => setDialog("delete")}>Delete…</button></div>`}
    <div class="scroll" tabindex="0" role="region" aria-label="Statistics by split"><table class="plain"><thead><tr>${["split", "clips", "speech", "speakers", "recordings", "words", "different words", "words not in train", "sentences of train"].map((one) => html`<th scope="col" key=${one}>${one}</th>`)}</tr></thead>
      <tbody>${SPLITS.map((split) => { const s = summary.splits[split]; return html`<tr key=${split}><th scope="row">${split}</th><td>${s.clips.toLocaleString()}</td><td>${speech(s.hours)}</td><td>${s.speakers}</td><td>${s.recordings}</td><td>${s.words.toLocaleString()}</td><td>${s.vocabulary.toLocaleString()}</td><td>${split === "train" ? "" : percent(s.words ? s.unseen / s.words : null)}</td><td>${split === "train" ? "" : s.heard}</td></tr>`; })}</tbody></table></div>
    ${advice.warnings.length ? html`<ul class="warnings">${advice.warnings.map((one) => html`<li key=${one.kind}>${one.message}${one.remedy ? html` <span class="faint">What to do: ${one.remedy}.</span>` : ""}</li>`)}</ul>` : null}
    <div class="charts">
      <${Hours} title="Speech by speaker" rows=${summary.speakers} /><${Hours} title="Speech by language" rows=${summary.languages} />
      <${Lengths} summary=${summary} />
      <div><h3>Texts written or accepted by</h3><ul class="amounts">${found.contributors.map((one) => html`<li key=${`${one.by} ${one.kind}`}><span class="cut">${one.kind === "reference" ? one.by : `${short(one.by)} (a model)`}</span><span>${counted(one.clips, "clip")}</span></li>`)}</ul></div>
    </div>
    <${Exclusions} store=${store} dataset=${found} />
    <${Entries} store=${store} id=${id} contributors=${found.contributors} />
    ${dialog === "rename" && html`<${NameDialog} title="Rename the dataset" value=${found.name} close=${() => setDialog("")} act=${async (name) => { await store.ask(`datasets/${id}`, { method: "PUT", body: { name } }); setFound({ ...found, name }); await store.reload(); }} />`}
    ${dialog === "delete" && html`<${Confirm} title="Delete this dataset?" label="Delete for good" close=${() => setDialog("")} act=${async () => { await store.ask(`datasets/${id}`, { method: "DELETE" }); location.hash = "#datasets"; await store.reload(); }}>
      <p>The dataset and the evaluations on it are deleted. Its recordings and texts stay, and keep their splits.</p><//>`}
  </section>`;
}

function Hours({ title, rows }) {
  const listed = Object.entries(rows).map(([name, by]) => [name, Object.values(by).reduce((a, b) => a + b, 0)]);
  const shown = listed.slice(0, 8), rest = listed.slice(8).reduce((sum, [, hours]) => sum + hours, 0);
  return html`<div><h3>${title}</h3><ul class="amounts">${shown.map(([name, hours]) => html`<li key=${name}><span class="cut">${name}</span><span>${speech(hours)}</span></li>`)}${rest ? html`<li><span class="faint">${listed.length - 8} more</span><span>${speech(rest)}</span></li>` : null}</ul></div>`;
}

function Lengths({ summary }) {
  const edges = summary.lengths_s;
  const counts = edges.map((_, n) => SPLITS.reduce((sum, split) => sum + summary.splits[split].lengths[n], 0));
  const most = Math.max(...counts, 1);
  return html`<div><h3>Clips by length</h3><ul class="amounts meters">${edges.map((from, n) => counts[n] ? html`<li key=${from}><span>${n + 1 < edges.length ? `${from} to ${edges[n + 1]} s` : `${from} s and more`}</span><meter min="0" max=${most} value=${counts[n]} aria-label=${`Clips of ${from} s and more`}></meter><span>${counts[n].toLocaleString()}</span></li>` : null)}</ul></div>`;
}

function Exclusions({ store, dataset }) {
  const [reason, setReason] = useState(null);
  const [found, setFound] = useState(null);
  const reasons = Object.entries(dataset.excluded).filter(([, count]) => count).sort((a, b) => b[1] - a[1]);
  if (!reasons.length) return null;
  const show = async (one) => { setReason(one); setFound(null); setFound(await store.attempt(() => store.ask(`datasets/${dataset.id}/exclusions?${query({ reason: one })}`))); };
  return html`<h3>Left out, and why</h3><ul class="amounts buttons">${reasons.map(([one, count]) => html`<li key=${one}><button class="quiet" aria-expanded=${reason === one} onClick=${() => (reason === one ? setReason(null) : show(one))}>${one}</button><span>${counted(count, "clip")}</span></li>`)}</ul>
    ${reason && found && html`<ul class="entries">${found.exclusions.map((one) => html`<li key=${one.utterance}>${one.origin ? html`<a href=${`review#id=${one.origin.number}`}>Entry ${one.origin.number}</a> <span class="faint">${one.origin.file}, ${one.origin.start_s.toFixed(1)} s</span>` : html`<span class="faint">${short(one.utterance)}</span>`} ${one.detail}${one.reviewed ? html` <span class="badge">reviewed</span>` : ""}</li>`)}</ul>
      ${found.count > found.exclusions.length && html`<p class="faint">The first ${found.exclusions.length} of ${found.count.toLocaleString()}; <code>voxloop dataset exclusions</code> lists all.</p>`}`}`;
}

function Entries({ store, id, contributors }) {
  const [where, setWhere] = useState({ split: "", by: "" });
  const [page, setPage] = useState(null);
  const [open, setOpen] = useState(false);
  const load = async (after, filters) => {
    const found = await store.attempt(() => store.ask(`datasets/${id}/entries?${query({ ...filters, after })}`));
    if (found) setPage((before) => ({ entries: after ? [...before.entries, ...found.entries] : found.entries, next: found.next }));
  };
  const filter = (values) => { const next = { ...where, ...values }; setWhere(next); load(0, next); };
  return html`<details onToggle=${(event) => { if (event.target.open && !open) { setOpen(true); load(0, where); } }}><summary>Utterances and who reviewed them</summary>
    <div class="row wrap"><label class="inline">Split <select value=${where.split} onChange=${(event) => filter({ split: event.target.value })}><option value="">all</option>${SPLITS.map((one) => html`<option key=${one} value=${one}>${one}</option>`)}</select></label>
      <label class="inline">By <select value=${where.by} onChange=${(event) => filter({ by: event.target.value })}><option value="">everybody</option>${contributors.map((one) => html`<option key=${one.by} value=${one.by}>${short(one.by)}</option>`)}</select></label></div>
    ${page && html`<ul class="entries">${page.entries.map((one) => html`<li key=${one.number}><div class="row wrap"><a href=${`review#id=${one.number}`}>Entry ${one.number}</a><span class="badge">${one.split}</span><span class="faint">${one.speaker || "unknown speaker"}, ${one.seconds.toFixed(1)} s, ${one.kind === "reference" ? `text by ${one.by}` : "machine text"}</span></div>
        <p dir="auto">${one.text}</p><${Sound} src=${address(`entries/${one.number}/audio`)} label=${`Play entry ${one.number}`} /></li>`)}</ul>
      ${page.entries.length ? null : html`<p class="faint">None.</p>`}
      ${page.next && html`<button onClick=${() => load(page.next, where)}>More</button>`}`}</details>`;
}
