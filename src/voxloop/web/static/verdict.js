// A model judged: the verdict in words, its numbers and guards, test scores, and what it hears differently.

import { html, percent, useEffect, useState, when } from "./view.js";
import { address, ask } from "./api.js";
import { Bar } from "./charts.js";
import { Confirm, counted, lasting, short, Sound } from "./parts.js";

export const VERDICTS = { promote: "Better", reject: "Not better", "insufficient evidence": "Not enough evidence" };
const GUARD = { passed: "✓", failed: "✕", unsure: "?", "not measured": "–" };
const CHANGES_SHOWN = 10;

export const points = (share) => `${share > 0 ? "+" : share < 0 ? "−" : "±"}${Math.abs(100 * share).toFixed(1)}`;
const state = (guard) => (!guard.measured ? "not measured" : guard.passed ? "passed" : guard.unsure ? "unsure" : "failed");

/** The background task, while it runs and when it has failed. `store`: with `task`, `startTask`, `attempt`, `ask`. */
export function TaskBar({ store }) {
  const task = store.task;
  if (!task || task.status === "done") return null;
  const what = { evaluate: "Measuring", promote: "Judging", forecast: "Forecasting" }[task.kind];
  if (task.status !== "running") {
    return task.status === "failed" ? html`<p class="bad" role="alert">${what} ended with an error: ${task.error}</p>` : html`<p class="faint" role="status">${what} was cancelled.</p>`;
  }
  const left = task.total > task.done && task.done > 0 ? ((Date.now() / 1000 - task.started) * (task.total - task.done)) / task.done : null;
  return html`<div class="task" role="group" aria-label="Background task"><progress max="1" value=${task.total ? task.done / task.total : null} aria-label=${what}></progress>
    <span>${what}${task.model ? ` ${short(task.model)}` : ""}${task.said ? `: ${task.said}` : task.total ? `, ${lasting(task.done)} of ${lasting(task.total)} of speech` : "…"}${left > 5 ? `, ${lasting(left)} left` : ""}</span>
    ${store.admin && html`<button class="quiet" onClick=${() => store.attempt(() => store.ask("tasks/cancel", { method: "POST" }))}>Cancel</button>`}</div>`;
}

/** The verdict on a model, and what can be done about it. `details`: of /api/models/{id}. */
export function Verdict({ store, details }) {
  const [dialog, setDialog] = useState(null);
  const { model, aliases, comparisons, evaluations, promotions } = details;
  const champion = aliases.includes("champion");
  const judged = comparisons.at(-1);
  const busy = store.task?.status === "running";
  const outcome = store.task?.kind === "promote" && store.task.model === model.id && store.task.status === "done" ? store.task.outcome : null;
  const last = promotions.filter((one) => one.alias === "champion").at(-1);
  const promote = () => store.startTask(`models/${model.id}/promote`, {});
  return html`<div class="verdict">
    <${TaskBar} store=${store} />
    ${champion && html`<p class="good-news"><strong>This model is the champion.</strong>${last ? ` Since ${when(last.created)}, by ${last.by}${last.verdict === "by hand" ? ", by hand" : ""}.` : ""} The server uses it for everything that is transcribed now.</p>`}
    ${outcome && !outcome.comparison && html`<p role="status">${outcome.message}.</p>${outcome.next_step && html`<p>${outcome.next_step}</p>`}`}
    ${judged ? html`<${Comparison} judged=${judged} next=${outcome?.next_step || judged.next_step} />` : !champion && !outcome ? html`<p>Not judged yet. Judging measures this model and the one in use on the same frozen test speech, and makes it the champion only if it is better beyond chance.</p>` : null}
    ${store.admin && html`<div class="row">
      ${!champion && html`<button class="primary" disabled=${busy} onClick=${promote}>${judged ? "Judge again" : "Judge and promote"}</button>`}
      ${!champion && html`<button disabled=${busy} onClick=${() => setDialog("force")}>Promote anyway…</button>`}
      ${champion && last?.previous && html`<button onClick=${() => setDialog("rollback")}>Roll back…</button>`}
      ${!evaluations.length && html`<button disabled=${busy} onClick=${() => store.startTask(`models/${model.id}/evaluate`, {})}>Only measure</button>`}</div>`}
    ${evaluations.length ? html`<${Scores} details=${details} />` : null}
    ${judged && html`<${Changes} model=${model.id} key=${judged.challenger_evaluation} />`}
    ${dialog === "force" && html`<${Confirm} title="Promote without a verdict?" label="Promote anyway" close=${() => setDialog(null)}
      act=${() => store.ask(`models/${model.id}/promote`, { method: "POST", body: { force: true } })}>
      <p>The model becomes the champion whatever the test says. The history will say that it was promoted by hand, and by whom. You can roll back.</p><//>`}
    ${dialog === "rollback" && html`<${Confirm} title="Roll back?" label="Roll back" close=${() => setDialog(null)}
      act=${async () => { await store.ask("models/rollback", { method: "POST" }); store.say("The previous champion is in use again."); store.reload?.(); store.loadModel?.(); }}>
      <p>The model that was champion before, ${short(last.previous)}, is used again at once. Rolling back a second time undoes it.</p><//>`}
  </div>`;
}

function Comparison({ judged, next }) {
  const top = Math.max(judged.wer_before, judged.wer_after, 0.01) * 1.05;
  return html`<p class=${`verdict-word ${judged.verdict === "promote" ? "good" : judged.verdict === "reject" ? "bad" : "caution"}`} role="status">${VERDICTS[judged.verdict]}</p>
    <div class="bars">
      <span>Before</span><${Bar} value=${judged.wer_before} top=${top} color=${3} label=${`Word error rate before: ${percent(judged.wer_before, 1)}`} /><strong>${percent(judged.wer_before, 1)}</strong>
      <span>This model</span><${Bar} value=${judged.wer_after} top=${top} color=${0} label=${`Word error rate of this model: ${percent(judged.wer_after, 1)}`} /><strong>${percent(judged.wer_after, 1)}</strong>
    </div>
    <ul class="reasons-list">${judged.reasons.map((one) => html`<li key=${one}>${one}</li>`)}</ul>
    ${next && judged.verdict !== "promote" && html`<p><strong>What to do:</strong> ${next}</p>`}
    <details><summary>What must not get worse: ${judged.guards.filter((one) => one.measured && one.passed).length} of ${counted(judged.guards.filter((one) => one.measured).length, "guard")} passed</summary>
      <ul class="guards">${judged.guards.map((one) => html`<li key=${one.name} class=${state(one).replace(" ", "-")}><span aria-hidden="true">${GUARD[state(one)]}</span> <strong>${one.name}</strong> <span class="faint">(${state(one)})</span>: ${one.finding}</li>`)}</ul></details>`;
}

/** Test scores with their intervals, the slices of the newest, and the report. */
export function Scores({ details }) {
  const measured = details.evaluations.filter((one) => one.split === "test");
  const newest = measured.at(-1);
  if (!newest) return null;
  const s = newest.scores;
  const slices = s.slices.filter((one) => one.utterances < s.utterances).slice(0, 12);
  const top = Math.max(...slices.map((one) => one.wer), s.wer_high, 0.01) * 1.1;
  return html`<details class="report"><summary>Test: word error rate ${percent(s.wer, 1)} (95 % interval ${(100 * s.wer_low).toFixed(1)} to ${(100 * s.wer_high).toFixed(1)}) on ${counted(s.utterances, "utterance")}</summary>
    <div class="scroll" tabindex="0" role="region" aria-label="Test scores"><table class="plain"><thead><tr><th scope="col">dataset</th><th scope="col">WER</th><th scope="col">95 % interval</th><th scope="col">as written</th><th scope="col">CER</th><th scope="col">wrong</th><th scope="col">missing</th><th scope="col">added</th><th scope="col">words</th></tr></thead>
      <tbody>${measured.map(({ id, dataset, scores }) => html`<tr key=${id}><th scope="row">${short(dataset)}</th><td>${percent(scores.wer, 1)}</td><td>${(100 * scores.wer_low).toFixed(1)} to ${(100 * scores.wer_high).toFixed(1)}</td><td>${percent(scores.orthographic_wer, 1)}</td><td>${percent(scores.cer, 1)}</td><td>${scores.substitutions}</td><td>${scores.deletions}</td><td>${scores.insertions}</td><td>${scores.words.toLocaleString()}</td></tr>`)}</tbody></table></div>
    ${slices.length ? html`<div class="bars slices">${slices.map((one) => html`<span key=${`${one.by} ${one.name}`}><span class="faint">${one.by}</span> ${one.name}</span><${Bar} value=${one.wer} low=${one.wer_low} high=${one.wer_high} top=${top} color=${1} label=${`${one.by} ${one.name}: word error rate ${percent(one.wer, 1)}`} /><strong>${percent(one.wer, 1)}</strong>`)}</div>` : null}
    ${["silence", "noise"].filter((name) => s[name]).map((name) => html`<p class="faint" key=${name}>Words written in ${name === "silence" ? "silence" : "noise and music"}, where there are none: ${s[name].words} in ${counted(s[name].inputs, "sound")}.</p>`)}
    <div class="row"><a class="button" href=${address(`models/${details.model.id}/report`)} target="_blank" rel="noopener">Full report</a>
      <a class="button quiet" href=${address(`models/${details.model.id}/report?download=true`)}>Download it</a></div></details>`;
}

/** Utterances that the new model hears otherwise, side by side, with their sound. */
function Changes({ model }) {
  const [open, setOpen] = useState(false);
  const [found, setFound] = useState(null);
  const [error, setError] = useState("");
  useEffect(() => {
    if (!open || found) return;
    ask(`models/${model}/changes`).then(setFound, (failure) => setError(failure.message));
  }, [open]);
  return html`<details class="changes" onToggle=${(event) => setOpen(event.target.open)}><summary>What it hears differently</summary>
    ${error && html`<p class="bad" role="alert">${error}</p>`}
    ${open && !found && !error && html`<p class="faint">One moment…</p>`}
    ${found && html`<p>${counted(found.better_count, "utterance")} better, ${found.worse_count.toLocaleString()} worse, ${found.same.toLocaleString()} with as many errors as before.</p>
      <${ChangeList} title="Better" rows=${found.better} /><${ChangeList} title="Worse" rows=${found.worse} />`}</details>`;
}

function ChangeList({ title, rows }) {
  const [all, setAll] = useState(false);
  if (!rows.length) return null;
  const shown = all ? rows : rows.slice(0, CHANGES_SHOWN);
  return html`<h3>${title}</h3><ol class="change-list">${shown.map((one, n) => html`<li key=${n}>
      <div class="row"><span class="faint">${one.entry == null ? "" : `Entry ${one.entry}`}${one.speaker ? `, ${one.speaker}` : ""}, ${one.seconds.toFixed(1)} s</span></div>
      ${one.entry != null && html`<${Sound} src=${address(`entries/${one.entry}/audio`)} label=${`Play: ${one.reference}`} />`}
      <dl class="heard"><dt>Said</dt><dd dir="auto">${one.reference}</dd>
        <dt>Before</dt><dd dir="auto"><${Words} heard=${one.before} /></dd><dt>Now</dt><dd dir="auto"><${Words} heard=${one.after} /></dd></dl></li>`)}</ol>
    ${rows.length > shown.length && html`<button class="quiet" onClick=${() => setAll(true)}>Show all ${rows.length}</button>`}`;
}

/** What was heard, with missing words struck out and wrong or added ones underlined. */
function Words({ heard }) {
  if (!heard.words.length) return html`<em class="faint">nothing</em>`;
  return html`${heard.words.map((one, n) => html`<span key=${n}>${one.operation === "equal" ? one.reference : html`${one.reference != null && html`<del><span class="hidden">missing: </span>${one.reference}</del>`}${one.reference != null && one.hypothesis != null ? " " : ""}${one.hypothesis != null && html`<ins class="wrong"><span class="hidden">heard: </span>${one.hypothesis}</ins>`}`} </span>`)} <span class="faint">(${counted(heard.errors, "error")})</span>`;
}
