// What to train: data, base, method, and every setting of the recipe with its meaning and its limits.

import { html, useState } from "./view.js";
import { bytes, counted, lasting, number, short, speech } from "./parts.js";

const UNITS = { max_seconds: "Most minutes", max_epochs: "Most epochs", learning_rate: "Learning rate" };
const BASIC = new Set(["method", "learning_rate", "batch_seconds", "max_epochs", "max_seconds"]); // asked for above, in people's units
const ELSEWHERE = new Set(["noise_folder"]); // a folder of the server: on the command line alone

const named = (setting) => { const text = setting.replaceAll("_", " ").replace(/\blora\b/, "LoRA").replace(/\bsnr db\b/, "SNR, dB"); return text[0].toUpperCase() + text.slice(1); };
const written = (value) => (Array.isArray(value) ? value.join(", ") : value == null ? "" : String(value));

export function Form({ store }) {
  const [changed, setChanged] = useState({});
  const [error, setError] = useState("");
  const [busy, setBusy] = useState(false);
  const o = store.options;
  const settings = Object.fromEntries(o.recipe.settings.map((one) => [one.setting, one]));
  const set = (name) => (value) => setChanged(({ [name]: _, ...rest }) => (value === undefined ? rest : { ...rest, [name]: value }));
  const choose = (name) => (event) => store.choose({ [name]: event.target.value, ...(name === "base" || name === "method" ? { recipe: "" } : {}) });
  const submit = async (event) => {
    event.preventDefault();
    setBusy(true);
    setError("");
    const { batch_size, learning_rate, epochs, minutes, validation, ...rest } = changed;
    const body = Object.fromEntries(Object.entries(store.chosen).filter(([, value]) => value));
    const given = { batch_size, learning_rate, minutes };
    for (const [name, value] of Object.entries(given)) if (value !== undefined && value !== "") body[name] = Number(value);
    if (validation !== undefined && validation !== "" && !store.chosen.dataset) body.validation_split = Number(validation) / 100;
    const also = {};
    if (epochs !== undefined) also.max_epochs = epochs === "" ? null : Number(epochs);
    if (minutes === "") also.max_seconds = null;
    for (const [name, value] of Object.entries(rest)) also[name] = typed(settings[name], value);
    if (Object.keys(also).length) body.settings = also;
    try {
      const run = await store.train(body);
      setChanged({});
      store.say(`Run ${run.id.slice(-8)} is queued.`);
    } catch (failure) { setError(failure.message); }
    setBusy(false);
  };
  const minutes = settings.max_seconds.value == null ? "" : number(settings.max_seconds.value / 60);
  return html`<form class="train-form" onSubmit=${submit} aria-label="New training">
    <div class="fields">
      <label>Data<select value=${store.chosen.dataset} onChange=${choose("dataset")}>
        <option value="">New dataset: all that is reviewed (${counted(o.data.reviewed, "clip")})</option>
        ${o.datasets.map((one) => html`<option key=${one.id} value=${one.id}>${one.name} ${short(one.id).slice(0, 8)}, ${speech(one.hours.train)} to train on</option>`)}</select></label>
      <${BaseSelect} store=${store} choose=${choose("base")} />
      <label>Method<select value=${store.chosen.method || settings.method.value} onChange=${choose("method")}>
        <option value="full">All weights</option><option value="lora">LoRA adapters</option></select></label>
      <label>Recipe<select value=${store.chosen.recipe} onChange=${choose("recipe")}>
        <option value="">Chosen for you: ${o.recipe.name}</option>${o.recipes.map((one) => html`<option key=${one.name} value=${one.name}>${one.name}</option>`)}</select></label>
      <${Plain} label="Clips per batch" value=${changed.batch_size ?? o.batch_clips} set=${set("batch_size")} min="1" step="1" note=${`of ${number(o.clip_s, 2)} s on average`} />
      <${Plain} label=${UNITS.learning_rate} value=${changed.learning_rate ?? settings.learning_rate.value} set=${set("learning_rate")} min="0" note=${`above 0; ${o.recipe.name}: ${settings.learning_rate.value}`} />
      <${Plain} label=${UNITS.max_epochs} value=${changed.epochs ?? written(settings.max_epochs.value)} set=${set("epochs")} min="0" note="empty: no limit" />
      <${Plain} label=${UNITS.max_seconds} value=${changed.minutes ?? minutes} set=${set("minutes")} min="0" note="empty: no limit" />
      ${!store.chosen.dataset && html`<${Plain} label="For validation, %" value=${changed.validation ?? ""} set=${set("validation")} min="0" max="50" note="empty: by the number of clips" />`}
    </div>
    ${o.fixed && html`<p class="faint">${o.fixed}</p>`}
    <p class="faint">${o.recipe.why ? `Recipe ${o.recipe.name}: ${o.recipe.why}.` : `Recipe ${o.recipe.name}: ${o.recipe.suits}.`}</p>
    <${Estimate} estimate=${o.estimate} />
    <details class="advanced"><summary>Advanced</summary>
      ${Object.entries(o.sections).map(([title, names]) => {
        const shown = names.filter((name) => !BASIC.has(name) && !ELSEWHERE.has(name));
        return shown.length ? html`<fieldset key=${title}><legend>${title === "Basics" ? "Length" : title}</legend>
          ${shown.map((name) => html`<${Setting} key=${name} about=${settings[name]} value=${changed[name]} set=${set(name)} />`)}</fieldset>` : null;
      })}
    </details>
    ${(error || store.refused) && html`<p class="bad" role="alert">${error || store.refused}</p>`}
    <div class="row"><button class="primary" disabled=${busy || !store.admin}>${busy ? "Starting…" : "Start training"}</button>
      ${Object.keys(changed).length ? html`<button type="button" class="quiet" onClick=${() => setChanged({})}>Reset settings</button>` : null}
      ${!store.admin && html`<span class="faint">Only administrators start trainings.</span>`}</div>
  </form>`;
}

function BaseSelect({ store, choose }) {
  const o = store.options;
  const trained = o.models.map((one) => ({ id: one.model.id, name: `${one.model.name || short(one.model.id)}${one.aliases.length ? ` (${one.aliases.join(", ")})` : ""}` }));
  return html`<label>Base<select value=${store.chosen.base} onChange=${choose}>
    <option value="">${o.default_base === "champion" ? "The champion" : o.default_base}</option>
    <optgroup label="Bases">${o.bases.filter((one) => !one.refused).map((one) => html`<option key=${one.name} value=${one.name}>${one.name}: ${number(one.parameters / 1e6, 2)} M, ${one.multilingual ? "many languages" : "one language"}</option>`)}</optgroup>
    ${trained.length ? html`<optgroup label="Your models">${trained.map((one) => html`<option key=${one.id} value=${one.id}>${one.name}</option>`)}</optgroup>` : null}
  </select></label>`;
}

function Estimate({ estimate }) {
  const { memory_bytes: memory, room_bytes: room, seconds, seconds_per_epoch: epoch } = estimate;
  if (memory == null && seconds == null) return html`<p class="faint">How long this takes is known after the first minutes.</p>`;
  const parts = [epoch != null && `about ${lasting(epoch)} per epoch`, seconds != null && `${lasting(seconds)} at most`, memory != null && `${bytes(memory)} of memory (${bytes(room)} here)`].filter(Boolean);
  return html`<p class=${memory > room ? "caution" : ""}>Estimate: ${parts.join(", ")}.${memory > room ? " That does not fit: choose LoRA adapters, fewer clips per batch or a smaller base." : ""}</p>`;
}

function Plain({ label, value, set, note, min, max, step = "any" }) {
  return html`<label>${label}<input type="number" inputmode="decimal" value=${value} min=${min} max=${max} step=${step} onInput=${(event) => set(event.target.value)} />
    <small class="faint">${note}</small></label>`;
}

function Setting({ about, value, set }) {
  const id = `setting-${about.setting}`;
  const shown = value === undefined ? about.value : value;
  const changed = value !== undefined;
  let field;
  if (about.kind === "choice") {
    field = html`<select id=${id} aria-describedby=${`${id}-about`} value=${shown} onChange=${(event) => set(event.target.value)}>${about.choices.map((one) => html`<option key=${one} value=${one}>${one}</option>`)}</select>`;
  } else if (about.kind === "yes or no") {
    field = html`<input id=${id} aria-describedby=${`${id}-about`} type="checkbox" checked=${shown} onChange=${(event) => set(event.target.checked)} />`;
  } else if (about.kind === "number" || about.kind === "whole number") {
    field = html`<input id=${id} aria-describedby=${`${id}-about`} type="number" inputmode="decimal" step=${about.kind === "number" ? "any" : "1"} min=${about.bounds?.least} max=${about.bounds?.most}
      value=${written(shown)} placeholder=${about.optional ? "none" : ""} onInput=${(event) => set(event.target.value)} />`;
  } else {
    field = html`<input id=${id} aria-describedby=${`${id}-about`} value=${written(shown)} placeholder="none" onInput=${(event) => set(event.target.value)} />`;
  }
  return html`<div class=${`setting ${changed ? "changed" : ""}`}><label for=${id}>${named(about.setting)}</label>${field}
    <p id=${`${id}-about`} class="faint">${about.meaning}${about.allowed ? ` Allowed: ${about.allowed}.` : ""}${about.differs ? ` Usually ${written(about.default) || "none"}.` : ""}</p></div>`;
}

/** What was typed, in the type of the setting; empty: none. */
function typed(about, value) {
  if (typeof value === "boolean") return value;
  if (about.kind === "number" || about.kind === "whole number") return value === "" ? (about.optional ? null : about.value) : Number(value);
  if (about.kind === "list") return value.split(",").map((one) => one.trim()).filter(Boolean);
  return value === "" ? null : value;
}
