// A run as it goes: progress, metrics, what it uses, its curves and its log; pause, resume, stop and retry.

import { html, percent, useEffect, useRef, useState, when } from "./view.js";
import { address, query } from "./api.js";
import { LineChart } from "./charts.js";
import { bytes, Confirm, counted, Facts, lasting, number, runName, short } from "./parts.js";

const MOST_LINES = 500; // of the log that are shown

export const STATUS = {
  queued: "waiting", running: "training", completed: "completed", failed: "failed", stopped: "stopped", paused: "paused", interrupted: "interrupted",
};

export function Run({ store }) {
  const [dialog, setDialog] = useState(null);
  const [busy, setBusy] = useState("");
  const { run, state } = store;
  const usage = state.usage?.run;
  const act = (verb, body) => async () => { setBusy(verb); await store.act(verb, body); setBusy(""); };
  const buttons = {
    pause: html`<button disabled=${busy} onClick=${act("pause")}>${busy === "pause" || run.wanted === "pause" ? "Pausing…" : "Pause"}</button>`,
    resume: html`<button class="primary" disabled=${busy} onClick=${act("resume")}>${run.status === "queued" ? "Start now" : "Resume"}</button>`,
    retry: html`<button disabled=${busy} onClick=${act("retry", {})}>Train again</button>`,
    stop: html`<button disabled=${busy} onClick=${() => setDialog("stop")}>${run.wanted === "stop" || run.wanted === "discard" ? "Stopping…" : "Stop…"}</button>`,
  };
  const p = run.progress;
  return html`<section class="card" aria-labelledby="run-title">
    <div class="heading"><h2 id="run-title">Run ${runName(run.id)}</h2><span class=${`badge run-${run.status}`} data-status=${run.status}>${STATUS[run.status]}</span>
      <span class="grow"></span>${store.id && html`<button class="quiet" onClick=${() => { location.hash = ""; }}>Back to the current run</button>`}</div>
    <p class="faint">${run.method === "lora" ? "LoRA adapters" : "All weights"} on ${short(run.base)}, recipe ${run.recipe.name}, started ${when(run.created)}${run.retry_of ? `, a repetition of ${runName(run.retry_of)}` : ""}</p>
    <${Waiting} store=${store} />
    ${run.status === "running" || run.share != null ? html`<div class="run-progress"><progress max="1" value=${run.share ?? 0} aria-label="Training progress"></progress>
      <span>${run.share == null ? "Loading the base model and measuring it" : html`${percent(run.share)} <span class="faint">step ${(p.step ?? 0).toLocaleString()}, epoch ${number(p.epoch ?? 0)}${run.status === "running" && p.eta_s != null ? `, ${lasting(p.eta_s)} left` : ""}, ${lasting(p.elapsed_s)}${run.status === "running" ? " so far" : " in all"}</span>`}</span></div>` : null}
    ${run.error && html`<p class="bad" role="alert">${run.error}</p>`}
    ${(p.notes || []).map((note) => html`<p key=${note} class="note">${note}</p>`)}
    <${Facts} rows=${[
      ["Training loss", p.loss == null ? null : number(p.loss)],
      ["Validation loss", p.val_loss == null ? null : number(p.val_loss)],
      ["Validation WER", p.val_wer == null ? null : percent(p.val_wer, 1)],
      ["Best so far", p.best_val_wer == null ? null : percent(p.best_val_wer, 1)],
      ["Base", p.base?.wer == null ? null : percent(p.base.wer, 1)],
      ["Learning rate", p.learning_rate == null ? null : p.learning_rate.toExponential(1)],
      ["Speed", p.samples_per_second == null ? null : `${number(p.samples_per_second)} clips/s`],
      ["Processor", usage ? `${usage.cpu.toFixed(1)} of ${usage.cores} cores` : null],
      ["Memory", usage ? bytes(usage.memory_bytes) : p.peak_memory_mb ? `${bytes(p.peak_memory_mb * 2 ** 20)} at most` : null],
    ]} />
    ${store.admin && html`<div class="row">${run.can.map((verb) => buttons[verb])}</div>`}
    <${Curves} lines=${store.lines} />
    <${Log} run=${run} />
    ${dialog === "stop" && html`<${StopDialog} store=${store} close=${() => setDialog(null)} />`}
  </section>`;
}

/** What a queued run waits for. */
function Waiting({ store }) {
  const { run, state } = store;
  if (run.status !== "queued") return null;
  if (state.worker.error) return html`<p class="bad" role="alert">${state.worker.error}</p>`;
  if (run.ahead) return html`<p role="status">Waits for ${counted(run.ahead, "run")} before it.</p>`;
  return html`<p role="status">${run.attended ? "Is about to start." : "Waits for a worker; where none takes it, this server starts one."}</p>`;
}

function StopDialog({ store, close }) {
  const [discard, setDiscard] = useState(false);
  return html`<${Confirm} title="Stop this run?" label=${discard ? "Stop and discard" : "Stop and keep the best"} close=${close}
    act=${() => store.ask(`train/runs/${store.run.id}/stop`, { method: "POST", body: { discard } })}>
    <p>It ends for good. To go on later, pause it instead.</p>
    <label class="inline"><input type="checkbox" checked=${discard} onChange=${(event) => setDiscard(event.target.checked)} /> Discard what it has learnt</label><//>`;
}

export function Curves({ lines }) {
  const of = (name) => lines.filter((line) => line[name] != null).map((line) => ({ x: line.step, y: line[name] }));
  if (!lines.length) return null;
  return html`<div class="charts">
    <${LineChart} title="Loss" xName="step" y=${(value) => number(value)} series=${[{ name: "training", points: of("loss") }, { name: "validation", points: of("val_loss"), dots: true, color: 1 }]} />
    <${LineChart} title="Word error rate on validation" xName="step" y=${(value) => percent(value, 1)} tick=${percent} series=${[{ name: "WER", points: of("val_wer"), dots: true, color: 1 }]} />
    <${LineChart} title="Learning rate" xName="step" y=${(value) => (value ? value.toExponential(0) : "0")} series=${[{ name: "rate", points: of("learning_rate"), color: 2 }]} />
  </div>`;
}

function Log({ run }) {
  const [open, setOpen] = useState(false);
  const [lines, setLines] = useState([]);
  const box = useRef(null);
  useEffect(() => {
    setLines([]);
    if (!open) return undefined;
    const stream = new EventSource(address(`train/logs?${query({ run: run.id, follow: true, tail: MOST_LINES })}`));
    let waiting = [];
    const draw = () => { const found = waiting; waiting = []; setLines((before) => [...before, ...found].slice(-MOST_LINES)); };
    stream.addEventListener("line", (event) => { if (!waiting.length) requestAnimationFrame(draw); waiting.push({ id: event.lastEventId, text: event.data }); });
    stream.addEventListener("end", () => stream.close());
    return () => stream.close();
  }, [open, run.id]);
  useEffect(() => { if (box.current) box.current.scrollTop = box.current.scrollHeight; }, [lines]);
  return html`<details class="log" onToggle=${(event) => setOpen(event.target.open)}><summary>Log</summary>
    ${open && html`<pre ref=${box} tabindex="0" aria-label="Log">${lines.length ? lines.map((line) => `${line.text}\n`) : "Nothing yet."}</pre>
      <a class="button quiet" href=${address(`train/logs?${query({ run: run.id })}`)} download=${`${runName(run.id)}.log`}>Download the whole log</a>`}</details>`;
}

/** All runs, newest first. */
export function Runs({ store }) {
  const runs = store.state.runs;
  if (!runs.length) return null;
  return html`<section class="card" aria-labelledby="runs-title"><h2 id="runs-title">Runs</h2>
    <ul class="runs">${runs.map((one) => html`<li key=${one.id} class=${store.run?.id === one.id ? "current" : ""}>
      <a href=${`#run=${one.id}`} aria-current=${store.run?.id === one.id ? "true" : null}><strong>${runName(one.id)}</strong>
        <span class=${`badge run-${one.status}`}>${STATUS[one.status]}</span>
        <span class="faint">${when(one.created)}${one.after != null ? `, WER ${one.before != null ? `${percent(one.before, 1)} → ` : ""}${percent(one.after, 1)}` : ""}${one.no_better ? ", no better" : ""}</span></a></li>`)}</ul></section>`;
}
