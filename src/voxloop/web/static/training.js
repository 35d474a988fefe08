// The training page: what there is to train on, a new training, the run as it goes, the verdict, and a forecast.

import { html, percent, render, useEffect } from "./view.js";
import { LineChart } from "./charts.js";
import { counted, Facts, Page, short, speech, useStore } from "./parts.js";
import { Form } from "./training_form.js";
import { Run, Runs, STATUS } from "./training_run.js";
import { TrainingStore } from "./training_store.js";
import { TaskBar, Verdict } from "./verdict.js";

const store = new TrainingStore();

function App() {
  useStore(store);
  useEffect(() => { store.start(); }, []);
  const { run, options } = store;
  const ready = Boolean(store.state && options);
  const said = run ? `Run ${run.id.slice(-8)}: ${STATUS[run.status]}` : "";
  return html`<${Page} store=${store} name="training" title="Training" ready=${ready} status=${said}>
    ${ready && html`<div class="with-side"><div class="stack">
        ${run && html`<${Run} store=${store} key=${run.id} />`}
        ${run?.model && store.model?.model.id === run.model ? html`<section class="card" aria-labelledby="verdict-title"><h2 id="verdict-title">Verdict on model ${store.model.model.name || short(run.model)}</h2><${Verdict} store=${store} details=${store.model} /></section>`
          : store.task && store.task.kind !== "forecast" && store.task.status !== "done" ? html`<section class="card" aria-label="Task"><${TaskBar} store=${store} /></section>` : null}
        <details class="card new-training" open=${!run || !["running", "queued"].includes(run.status)}><summary><h2>New training</h2></summary><${Form} store=${store} /></details>
        <${Forecast} store=${store} />
      </div><div class="stack side">
        <${Data} data=${options.data} />
        <${Runs} store=${store} />
      </div></div>`}
  <//>`;
}

/** What there is to train on, and what is missing for a verdict. */
function Data({ data }) {
  return html`<section class="card" aria-labelledby="data-title"><h2 id="data-title">Speech</h2>
    <${Facts} rows=${[
      ["Reviewed", `${data.reviewed.toLocaleString()} of ${data.utterances.toLocaleString()} clips`],
      ["Reviewed speech", `${speech(data.reviewed_hours)} of ${speech(data.hours)}`],
      ["Speakers", data.speakers],
      ["Languages", Object.entries(data.languages).slice(0, 4).map(([name, hours]) => `${name} ${speech(hours)}`).join(", ")],
      ["Newest dataset", data.dataset && `${data.dataset.name} ${short(data.dataset.id).slice(0, 8)}`],
      ["Clips by split", data.dataset && Object.entries(data.dataset.clips).map(([split, count]) => `${count.toLocaleString()} ${split}`).join(", ")],
      ["Test clips", data.dataset && `${data.test_clips.toLocaleString()}; a verdict needs ${data.least_test_clips} or more`],
      ["In use", data.champion ? `champion ${short(data.champion)}` : "the base model; no champion yet"],
    ]} />
    ${data.missing.length ? html`<h3>What is missing</h3><ul class="warnings">${data.missing.map((one) => html`<li key=${one.message}>${one.message}${one.remedy ? html` <span class="faint">What to do: ${one.remedy}.</span>` : ""}</li>`)}</ul>`
      : html`<p>Everything is there for a training and a verdict.</p>`}
    ${data.waiting ? html`<p><a href="review">${counted(data.waiting, "clip")} to review</a></p>` : null}</section>`;
}

/** The gain to expect from more speech. */
function Forecast({ store }) {
  const found = store.forecast;
  const busy = store.task?.status === "running";
  const dots = (ats) => ats.map((at) => ({ x: at.clips, y: at.wer, low: at.low, high: at.high }));
  return html`<section class="card" aria-labelledby="forecast-title"><h2 id="forecast-title">What more speech would bring</h2>
    ${store.task?.kind === "forecast" && html`<${TaskBar} store=${store} />`}
    ${found ? html`<${LineChart} title="Word error rate" xName="training clips" y=${(value) => percent(value, 1)} tick=${percent} series=${[
        { name: "measured", points: dots(found.curve.measured), dots: true },
        ...(found.curve.usable ? [{ name: "forecast", points: dots([found.curve.measured.at(-1), ...found.curve.forecast]), dots: true, dashed: true }] : []),
      ]} /><ul class="reasons-list">${found.sentences.map((one) => html`<li key=${one}>${one}</li>`)}</ul>`
      : html`<p>Twelve short trainings on parts of the newest dataset show how the error falls with more speech. This takes from minutes to hours, and uses up no test speech.</p>`}
    ${store.admin && html`<div class="row"><button disabled=${busy} onClick=${() => store.startTask("forecast", {})}>${found ? "Forecast again" : "Forecast"}</button></div>`}</section>`;
}

render(html`<${App} />`, document.getElementById("app"));
