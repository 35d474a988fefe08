// Where models come from, as a tree: base, run on a dataset, model, and what was trained from that again.

import { html, percent, useEffect, useRef, useState, when } from "./view.js";
import { Bar } from "./charts.js";
import { Confirm, counted, NameDialog, runName, short } from "./parts.js";
import { STATUS } from "./training_run.js";
import { Verdict } from "./verdict.js";

export function Lineage({ store }) {
  const { models, runs, datasets } = store.lineage;
  const named = Object.fromEntries(datasets.map((one) => [one.id, one]));
  const byId = new Map(models.map((one) => [one.model.id, one]));
  const made = new Set(runs.map((one) => one.model).filter(Boolean));
  const from = (id) => runs.filter((run) => run.base === id);
  const roots = models.filter((one) => !one.model.run || !made.has(one.model.id));
  const orphans = runs.filter((run) => !byId.has(run.base));
  const top = Math.max(...models.map((one) => one.evaluation?.scores.wer_high ?? 0), 0.01);
  const node = (one) => html`<li key=${one.model.id}><${ModelNode} store=${store} one=${one} top=${top} />${branch(from(one.model.id))}</li>`;
  const branch = (found) => found.length ? html`<ul>${found.map((run) => html`<li key=${run.id}><${RunNode} run=${run} dataset=${named[run.dataset]} />
    ${run.model && byId.has(run.model) ? html`<ul>${node(byId.get(run.model))}</ul>` : null}</li>`)}</ul>` : null;
  const chosen = byId.get(store.selected);
  return html`<div class=${chosen ? "with-side wide-side" : ""}><div class="stack">
    <section class="card" aria-labelledby="lineage-title"><h2 id="lineage-title">Lineage</h2>
      ${models.length ? html`<ul class="tree">${roots.map(node)}${orphans.length ? html`<li><span class="node faint">a base that was deleted</span>${branch(orphans)}</li>` : null}</ul>`
        : html`<p>No models yet. <a href="training">Train the first one.</a></p>`}
      ${datasets.length ? html`<p class="faint">Datasets: ${datasets.map((one, n) => html`${n ? ", " : ""}<a key=${one.id} href=${`#datasets=${one.id}`}>${one.name} ${short(one.id).slice(0, 8)}</a>`)}</p>` : null}
    </section></div>
    ${chosen && html`<div class="stack"><${ModelCard} store=${store} one=${chosen} key=${chosen.model.id} /></div>`}</div>`;
}

export const modelName = (one) => one.model.name || (one.model.run ? short(one.model.id) : one.model.base.split("/").at(-1) || short(one.model.id));

function ModelNode({ store, one, top }) {
  const scores = one.evaluation?.scores;
  return html`<a class=${`node model ${store.selected === one.model.id ? "chosen" : ""}`} href=${`#models=${one.model.id}`} aria-current=${store.selected === one.model.id ? "true" : null}>
    <span class="row"><strong class="cut">${modelName(one)}</strong>${one.aliases.map((alias) => html`<span key=${alias} class=${`badge ${alias}`}>${alias === "champion" ? "★ " : ""}${alias}</span>`)}
      <span class="faint">${one.model.run ? one.model.kind === "adapter" ? "LoRA" : "" : "base"}</span></span>
    ${scores ? html`<span class="score"><${Bar} value=${scores.wer} low=${scores.wer_low} high=${scores.wer_high} top=${top} label=${`Test word error rate ${percent(scores.wer, 1)}, 95 % interval ${percent(scores.wer_low, 1)} to ${percent(scores.wer_high, 1)}`} /><span>WER ${percent(scores.wer, 1)} <span class="faint">(${(100 * scores.wer_low).toFixed(1)} to ${(100 * scores.wer_high).toFixed(1)})</span></span></span>`
      : html`<span class="faint">not tested</span>`}</a>`;
}

function RunNode({ run, dataset }) {
  return html`<span class="node run"><a href=${`training#run=${run.id}`}>Run ${runName(run.id)}</a> <span class=${`badge run-${run.status}`}>${STATUS[run.status]}</span>
    <span class="faint">on</span> ${dataset ? html`<a href=${`#datasets=${dataset.id}`}>${dataset.name} <span class="faint">${counted(dataset.clips.train ?? 0, "clip")}</span></a>` : html`<span class="faint">a deleted dataset</span>`}
    ${run.no_better ? html`<span class="faint">no better than its base</span>` : null}</span>`;
}

/** One model: its verdict, scores and promotions; rename and delete. */
function ModelCard({ store, one }) {
  const [details, setDetails] = useState(null);
  const [error, setError] = useState("");
  const [dialog, setDialog] = useState("");
  const title = useRef(null);
  const id = one.model.id;
  const ended = `${store.task?.id} ${store.task?.status} ${one.aliases}`;
  useEffect(() => { title.current?.focus(); }, []);
  useEffect(() => { store.ask(`models/${id}`).then(setDetails, (failure) => setError(failure.message)); }, [id, ended]);
  return html`<section class="card" aria-labelledby="model-title">
    <div class="heading"><h2 id="model-title" ref=${title} tabindex="-1">${modelName(one)}</h2>${one.aliases.map((alias) => html`<span key=${alias} class=${`badge ${alias}`}>${alias}</span>`)}<span class="grow"></span><a class="button quiet" href="#models" aria-label="Close">✕</a></div>
    <dl class="pairs long"><div><dt>Id</dt><dd><code>${id}</code></dd></div><div><dt>Family</dt><dd>${one.model.family}, ${one.model.kind === "adapter" ? "LoRA adapter, merged" : "full weights"}</dd></div>
      <div><dt>Made</dt><dd>${when(one.model.created)}</dd></div>
      ${one.model.run && html`<div><dt>Run</dt><dd><a href=${`training#run=${one.model.run}`}>${runName(one.model.run)}</a>${one.dataset ? html` on <a href=${`#datasets=${one.dataset.id}`}>${one.dataset.name}</a>` : ""}</dd></div>`}
      ${one.model.forgotten ? html`<div><dt>Forgotten since</dt><dd>${counted(one.model.forgotten, "utterance")} that it was trained or chosen on</dd></div>` : null}</dl>
    ${error && html`<p class="bad" role="alert">${error}</p>`}
    ${store.admin && html`<div class="row"><button onClick=${() => setDialog("rename")}>Rename…</button><button class="danger" onClick=${() => setDialog("delete")}>Delete…</button></div>`}
    ${details && html`<${Verdict} store=${store} details=${details} />`}
    ${details?.promotions.length ? html`<details><summary>History</summary><ul class="reasons-list">${details.promotions.map((move) => html`<li key=${move.id}>${when(move.created)}: ${move.alias} from ${move.previous ? short(move.previous) : "none"} to ${short(move.model)}, ${move.verdict}, by ${move.by}</li>`)}</ul></details>` : null}
    ${dialog === "rename" && html`<${NameDialog} title="Rename the model" value=${one.model.name} close=${() => setDialog("")} act=${async (name) => { await store.ask(`models/${id}`, { method: "PUT", body: { name } }); await store.reload(); }} />`}
    ${dialog === "delete" && html`<${Confirm} title="Delete this model?" label="Delete for good" close=${() => setDialog("")} act=${async () => { await store.ask(`models/${id}`, { method: "DELETE" }); location.hash = "#models"; await store.reload(); store.say("The model was deleted."); }}>
      <p>Its files and evaluations are deleted. What stays on record is that it existed, who deleted it, and every promotion.</p><//>`}
  </section>`;
}
