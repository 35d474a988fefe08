// Usage and health: what the work takes, what succeeded, and what goes wrong most often.

import { html, percent, useEffect, useState } from "./view.js";
import { LineChart } from "./charts.js";
import { bytes, counted, Facts, lasting, number, runName, speech } from "./parts.js";

const EVERY_MS = 5000;

export function Usage({ store }) {
  const [found, setFound] = useState(null);
  useEffect(() => {
    let gone = false, timer = 0;
    const load = async () => {
      if (!document.hidden) { try { const said = await store.ask("usage"); if (!gone) setFound(said); } catch { /* the frame says so */ } }
      if (!gone) timer = setTimeout(load, EVERY_MS);
    };
    load();
    return () => { gone = true; clearTimeout(timer); };
  }, []);
  if (!found) return html`<section class="card"><p class="faint">One moment…</p></section>`;
  const { machine } = found;
  return html`<div class="charts cards">
    <section class="card" aria-labelledby="now-title"><h2 id="now-title">Now</h2><${Facts} rows=${[
      ["Processor", `${machine.cpu.toFixed(1)} of ${machine.cores} cores`],
      ["Memory", `${bytes(machine.memory_bytes)} of ${bytes(machine.total_bytes)}`],
      ["GPU memory", machine.gpu_total_bytes ? `${bytes(machine.gpu_bytes)} of ${bytes(machine.gpu_total_bytes)}` : "no GPU"],
      ["Jobs waiting", Object.values(found.jobs).reduce((sum, one) => sum + (one.ready || 0), 0).toLocaleString()],
      ["Jobs running", Object.values(found.jobs).reduce((sum, one) => sum + (one.leased || 0), 0).toLocaleString()],
      ["Jobs failed", Object.values(found.jobs).reduce((sum, one) => sum + (one.dead || 0), 0).toLocaleString()],
    ]} /></section>
    <section class="card" aria-labelledby="pace-title"><h2 id="pace-title">Work for an hour of audio</h2>
      ${found.pace.length ? html`<div class="scroll" tabindex="0" role="region" aria-label="Work by step"><table class="plain"><thead><tr><th scope="col">step</th><th scope="col">per hour of audio</th><th scope="col">jobs</th><th scope="col">audio</th></tr></thead><tbody>${found.pace.map((one) => html`<tr key=${one.step}><th scope="row">${one.step}</th><td>${one.per_hour_s == null ? "–" : lasting(one.per_hour_s)}</td><td>${one.jobs.toLocaleString()}</td><td>${one.audio_s ? speech(one.audio_s / 3600) : "–"}</td></tr>`)}</tbody></table></div>` : html`<p class="faint">No jobs were done yet.</p>`}</section>
    <section class="card" aria-labelledby="outcomes-title"><h2 id="outcomes-title">What succeeded</h2><${Facts} rows=${found.outcomes.map((one) => [
      { runs: "Trainings completed", promotions: "Promotions granted" }[one.what],
      one.share == null ? "none yet" : `${percent(one.share)} (${one.succeeded} of ${one.succeeded + one.failed})${one.open ? `, ${one.open} open or stopped` : ""}`,
    ])} /></section>
    <section class="card" aria-labelledby="languages-title"><h2 id="languages-title">Speech by language</h2><ul class="amounts">${Object.entries(found.languages).map(([name, hours]) => html`<li key=${name}><span>${name}</span><span>${speech(hours)}</span></li>`)}</ul></section>
    <section class="card" aria-labelledby="sizes-title"><h2 id="sizes-title">Datasets over time</h2>
      <${LineChart} title="Minutes of speech" xName="day" x=${(at) => new Date(at * 1000).toLocaleDateString(undefined, { month: "short", day: "numeric" })} y=${(value) => number(value)} series=${[{ name: "datasets", dots: true, points: found.sizes.map((one) => ({ x: one.created, y: 60 * one.hours })) }]} /></section>
    <section class="card" aria-labelledby="taken-title"><h2 id="taken-title">What trainings took</h2>
      ${found.runs.length ? html`<div class="scroll" tabindex="0" role="region" aria-label="Trainings"><table class="plain"><thead><tr><th scope="col">run</th><th scope="col">time</th><th scope="col">memory at most</th><th scope="col">clips/s</th></tr></thead><tbody>${found.runs.map((one) => html`<tr key=${one.run}><th scope="row"><a href=${`training#run=${one.run}`}>${runName(one.run)}</a></th><td>${lasting(one.elapsed_s)}</td><td>${bytes(one.peak_memory_bytes)}</td><td>${number(one.clips_per_s)}</td></tr>`)}</tbody></table></div>` : html`<p class="faint">None yet.</p>`}</section>
    <section class="card whole" aria-labelledby="troubles-title"><h2 id="troubles-title">Commonest errors</h2>
      ${found.troubles.length ? html`<ul class="entries">${found.troubles.map((one) => html`<li key=${`${one.kind} ${one.where} ${one.message}`}><div class="row wrap"><strong>${one.where}</strong><span class="badge">${counted(one.count, one.kind === "file" ? "file" : "time")}</span></div><p>${one.message}</p><p class="faint">What to do: ${one.remedy}</p></li>`)}</ul>
        ${store.admin && found.troubles.some((one) => one.kind === "job") && html`<button onClick=${() => store.attempt(() => store.ask("jobs/retry", { method: "POST" }), "The failed jobs are queued again.")}>Retry failed jobs</button>`}` : html`<p>Nothing went wrong.</p>`}</section>
  </div>`;
}
