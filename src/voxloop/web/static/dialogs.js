// What asks before it acts: a reason for rejecting, find and replace, export and import, the keys.

import { html, useRef, useState } from "./view.js";
import { ask, query } from "./api.js";
import { Dialog } from "./dialog.js";
import { ACTIONS, pressed, shown } from "./keys.js";
import { Pieces } from "./entry.js";
import { change, decideMatching } from "./many.js";

const REASONS = ["not speech", "too noisy", "several people at once", "cut off", "another language", "private"];

export function RejectDialog({ store, close, run }) {
  const [reason, setReason] = useState("");
  const done = (text) => { if (!text.trim()) return; close(); run(text.trim()); };
  const onKeyDown = (event) => {
    if (event.target.tagName === "INPUT" && event.target.value) return;
    const at = Number(event.key) - 1;
    if (REASONS[at]) { event.preventDefault(); done(REASONS[at]); }
  };
  return html`<${Dialog} title="Why is it rejected?" close=${close}><div onKeyDown=${onKeyDown}>
    <div class="reasons">${REASONS.map((one, n) => html`<button onClick=${() => done(one)}><kbd>${n + 1}</kbd> ${one}</button>`)}</div>
    <form class="row" onSubmit=${(event) => { event.preventDefault(); done(reason); }}>
      <input autofocus class="grow" aria-label="Another reason" placeholder="Another reason" value=${reason} onInput=${(event) => setReason(event.target.value)} maxlength="1000" />
      <button class="primary" disabled=${!reason.trim()}>Reject</button></form>
    <p class="faint">A rejected entry stays in the workspace and enters no dataset. To have its sound and texts erased, delete it.</p>
  </div><//>`;
}

const VERBS = { accept: "Accept", reject: "Reject", delete: "Delete" };

/** Shows how many entries a decision is about before it is made, and how far it is. */
export function MatchingDialog({ store, close, action, reason }) {
  const [{ count }] = useState(store.matching);
  const [done, setDone] = useState(null); // null: not begun
  const going = useRef(true);
  const leave = () => { going.current = false; close(); };
  const run = async () => {
    setDone(0);
    await decideMatching(store, action, reason, (number) => { setDone(number); return going.current; });
    close();
  };
  return html`<${Dialog} title=${`${VERBS[action]} ${count.toLocaleString()} entries?`} close=${leave}>
    <p>All that match the filter now, also those further down the list.${action === "accept" ? " Their texts count as reviewed without anybody having listened." : ""} Entries that somebody is reviewing at the moment are left as they are. It can be undone.</p>
    ${done !== null && html`<progress max=${count} value=${done} aria-label="Done"></progress>`}
    <div class="row"><button class="primary" disabled=${done !== null} onClick=${run}>${done === null ? `${VERBS[action]} ${count.toLocaleString()}` : `${done.toLocaleString()} done…`}</button>
      <button onClick=${leave}>${done === null ? "Cancel" : "Stop"}</button></div>
  <//>`;
}

export function ReplaceDialog({ store, close }) {
  const [asked, setAsked] = useState({ find: "", replace: "", ignore_case: false, whole_words: true });
  const [found, setFound] = useState(null);
  const [left, setLeft] = useState(new Set());
  const [error, setError] = useState("");
  const set = (name, value) => { setAsked({ ...asked, [name]: value }); setFound(null); };
  const look = async (event) => {
    event.preventDefault();
    setError("");
    try { setFound(await ask(`replace/preview?${query(store.where())}`, { method: "POST", body: asked })); setLeft(new Set()); } catch (failure) { setError(failure.message); }
  };
  const chosen = found ? found.entries.filter((one) => !left.has(one.id)) : [];
  const replace = () => {
    close();
    change(store, "replace", { ...asked, entries: chosen.map(({ id, etag }) => ({ id, etag })) }, chosen.length === 1 ? "text changed" : "texts changed");
  };
  const flip = (id) => { const next = new Set(left); next.has(id) ? next.delete(id) : next.add(id); setLeft(next); };
  return html`<${Dialog} title="Find and replace" close=${close} wide>
    <form class="replace" onSubmit=${look}>
      <label>Find<input autofocus value=${asked.find} onInput=${(event) => set("find", event.target.value)} maxlength="500" /></label>
      <label>Replace with<input value=${asked.replace} onInput=${(event) => set("replace", event.target.value)} maxlength="500" /></label>
      <label class="inline"><input type="checkbox" checked=${asked.whole_words} onChange=${(event) => set("whole_words", event.target.checked)} /> Whole words</label>
      <label class="inline"><input type="checkbox" checked=${asked.ignore_case} onChange=${(event) => set("ignore_case", event.target.checked)} /> Ignore case</label>
      <button disabled=${!asked.find.trim()}>Preview</button>
    </form>
    ${error && html`<p class="bad" role="alert">${error}</p>`}
    ${found && html`<p role="status">${found.entries.length ? `${found.places} places in ${found.entries.length} texts of the current filter:` : "Nothing found in the current filter."}</p>
      <ul class="preview">${found.entries.map((one) => html`<li key=${one.id}><label class="inline"><input type="checkbox" checked=${!left.has(one.id)} onChange=${() => flip(one.id)} /><span class="faint">${one.id}</span> <${Pieces} from=${one.before} to=${one.after} /></label></li>`)}</ul>
      ${found.entries.length ? html`<div class="row"><button class="primary" disabled=${!chosen.length} onClick=${replace}>Replace in ${chosen.length}</button><span class="faint">Texts that nobody has reviewed stay to be reviewed. It can be undone.</span></div>` : null}`}
  <//>`;
}

export function ExchangeDialog({ store, close }) {
  const [file, setFile] = useState(null);
  const [plan, setPlan] = useState(null);
  const [error, setError] = useState("");
  const send = async (dry) => {
    const form = new FormData();
    form.append("file", file);
    form.append("dry_run", dry);
    setError("");
    try { return await ask("import", { method: "POST", form }); } catch (failure) { setError(failure.message); return null; }
  };
  const look = async (event) => { event.preventDefault(); setPlan(await send(true)); };
  const take = async () => {
    const done = await send(false);
    if (!done) return;
    close();
    store.say(`${done.new} texts imported.`);
    store.details.clear();
    await store.list();
    store.refreshStats();
    if (store.id) store.show(store.id, { play: false });
  };
  return html`<${Dialog} title="Export and import" close=${close}>
    <h3>Export what the filter shows</h3>
    <div class="row">${[["jsonl", "JSONL"], ["csv", "CSV"], ["label-studio", "Label Studio"]].map(([format, label]) => html`<a class="button" href=${store.exportAddress(format)} download>${label}</a>`)}</div>
    <h3>Import texts</h3>
    <form class="row" onSubmit=${look}>
      <input type="file" accept=".jsonl,.csv,.json" aria-label="File" onChange=${(event) => { setFile(event.target.files[0] || null); setPlan(null); }} />
      <button disabled=${!file}>Check</button></form>
    ${error && html`<p class="bad" role="alert">${error}</p>`}
    ${plan && html`<p role="status">${plan.new} new, ${plan.same} already here, ${plan.conflicting} that somebody changed here meanwhile, ${plan.unknown} unknown, ${plan.refused} unreadable.</p>
      <ul class="notices">${plan.notices.slice(0, 20).map((one) => html`<li>${one.message}</li>`)}</ul>
      <button class="primary" disabled=${!plan.new} onClick=${take}>Import ${plan.new}</button>`}
  <//>`;
}

export function KeysDialog({ keys, close, changed }) {
  const [asking, setAsking] = useState(null);
  const take = (name) => (event) => {
    if (event.key === "Tab") return;
    event.preventDefault();
    event.stopPropagation();
    const key = pressed(event);
    if (!key) return;
    if (key !== "Escape") { keys.set(name, key); changed(); }
    setAsking(null);
  };
  return html`<${Dialog} title="Keys" close=${close} wide>
    <p class="faint">Keys without Ctrl or Alt work outside the text. In the text, Tab goes to the next doubtful word and plays it. Click a key to change it.</p>
    <label class="inline"><input type="checkbox" checked=${keys.single} onChange=${(event) => { keys.single = event.target.checked; keys.store(); changed(); }} /> Single keys</label>
    <dl class="keys">${Object.entries(ACTIONS).map(([name, action]) => html`<div key=${name}><dt id=${`key-${name}`}>${action.label}</dt>
      <dd>${asking === name ? html`<input autofocus readonly ref=${(element) => element?.focus()} value="press a key…" aria-label=${`New key for: ${action.label}`} onKeyDown=${take(name)} onBlur=${() => setAsking(null)} />`
        : html`<button class="quiet" id=${`change-${name}`} aria-labelledby=${`key-${name} change-${name}`} onClick=${() => setAsking(name)}>${keys.of(name).length ? keys.of(name).map((key) => html`<kbd>${shown(key)}</kbd> `) : "–"}</button>`}</dd></div>`)}</dl>
    <button onClick=${() => { keys.reset(); changed(); }}>Reset all</button>
  <//>`;
}
