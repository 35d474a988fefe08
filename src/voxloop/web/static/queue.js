// The queue: filters, the listing, and what can be done with a selection.

import { html, percent, useEffect, useRef, useState } from "./view.js";
import { FILTERS } from "./store.js";
import { selectAll } from "./many.js";
import { doubt } from "./player.js";

const STATUS = { transcribed: "To review", reviewed: "Reviewed", rejected: "Rejected", new: "Not transcribed", deleted: "Deleted", all: "All" };
const MARK = { reviewed: "✓", rejected: "✕", new: "…", transcribed: "", deleted: "⌫" };
const ROW = 62; // pixels: every row has the same height, so that 10,000 can be scrolled

export function Queue({ store, act, close }) {
  const [open, setOpen] = useState(false);
  const set = (name) => (event) => store.setFilters({ [name]: event.target.value });
  const f = store.filters;
  const active = Object.keys(FILTERS).filter((name) => !["status", "q"].includes(name) && f[name] !== FILTERS[name]).length;
  const search = useRef(null);
  const [q, setQ] = useState(f.q); // what is typed; the filter follows
  const timer = useRef(0);
  useEffect(() => setQ(f.q), [f.q]);
  const searched = (value) => {
    setQ(value);
    clearTimeout(timer.current);
    timer.current = setTimeout(() => store.setFilters({ q: value }), 250);
  };
  return html`<nav class="queue" aria-label="Queue">
    <div class="filters">
      <div class="row">
        <select aria-label="Status" value=${f.status} onChange=${set("status")}>${Object.entries(STATUS).map(([value, label]) => html`<option value=${value}>${label}</option>`)}</select>
        <input id="search" ref=${search} type="search" placeholder="Search" aria-label="Search texts" value=${q}
          onInput=${(event) => searched(event.target.value)} />
        <button class="quiet" aria-expanded=${open} aria-controls="more-filters" onClick=${() => setOpen(!open)}>Filters${active ? ` (${active})` : ""}</button>
        <button class="quiet close-queue" aria-label="Close the queue" onClick=${close}>✕</button>
      </div>
      ${f.session && html`<div class="row of-session"><span class="cut">Captured in ${f.session}</span><button class="quiet" onClick=${() => store.setFilters({ ...FILTERS })}>Show all</button></div>`}
      ${open && html`<div id="more-filters" class="more">
        <label>Speaker<select value=${f.speaker} onChange=${set("speaker")}><option value="">any</option>${store.options.speakers.map((one) => html`<option value=${one}>${one}</option>`)}</select></label>
        <label>Language<select value=${f.language} onChange=${set("language")}><option value="">any</option>${store.options.languages.map((one) => html`<option value=${one}>${one}</option>`)}</select></label>
        <label>Warning<select value=${f.warning} onChange=${set("warning")}><option value="">–</option><option value="any">any</option><option value="none">none</option>${Object.keys(store.options.warnings).map((one) => html`<option value=${one}>${one}</option>`)}</select></label>
        <label>Confidence up to<select value=${f.max_confidence} onChange=${set("max_confidence")}><option value="">any</option>${[0.3, 0.5, 0.6, 0.7, 0.8, 0.9].map((one) => html`<option value=${one}>${percent(one)}</option>`)}</select></label>
        <label>From<input type="date" value=${f.since} onChange=${set("since")} /></label>
        <label>Until<input type="date" value=${f.until} onChange=${set("until")} /></label>
        <label>Trained on<select value=${f.is_trained} onChange=${set("is_trained")}><option value="">–</option><option value="true">yes</option><option value="false">no</option></select></label>
        <button class="quiet" onClick=${() => store.setFilters({ ...FILTERS })}>Clear filters</button>
      </div>`}
    </div>
    ${store.selected.size ? html`<${Selection} store=${store} act=${act} />` : null}
    <${Listing} store=${store} close=${close} />
    <div class="row tools">
      <button class="quiet" onClick=${() => act("replaceWords")}>Find & replace</button>
      <button class="quiet" onClick=${() => act("exchange")}>Export / import</button>
    </div>
  </nav>`;
}

function Selection({ store, act }) {
  const all = store.matching || (store.entries.length === store.selected.size && !store.after);
  const count = store.matching ? store.matching.count : store.selected.size;
  return html`<div class="row selection" role="group" aria-label="Selection">
    <span>${count.toLocaleString()} selected</span>
    <button onClick=${() => act("acceptMany")}>Accept</button>
    <button onClick=${() => act("rejectMany")}>Reject</button>
    <button onClick=${() => act("removeMany")}>Delete</button>
    <button class="quiet" onClick=${() => (all ? store.select([]) : selectAll(store))}>${all ? "None" : "All"}</button>
  </div>`;
}

/** The rows in sight, and room for the others. */
function Listing({ store, close }) {
  const box = useRef(null);
  const [top, setTop] = useState(0);
  const [height, setHeight] = useState(600);
  useEffect(() => {
    const watch = new ResizeObserver(() => setHeight(box.current?.clientHeight || 600));
    watch.observe(box.current);
    return () => watch.disconnect();
  }, []);
  const at = store.entries.findIndex((one) => one.id === store.id);
  useEffect(() => {
    const element = box.current;
    if (at < 0 || !element) return;
    if (at * ROW < element.scrollTop) element.scrollTop = at * ROW;
    else if ((at + 1) * ROW > element.scrollTop + element.clientHeight) element.scrollTop = (at + 1) * ROW - element.clientHeight;
  }, [at]);
  const scrolled = (event) => {
    setTop(event.target.scrollTop);
    if (event.target.scrollTop + event.target.clientHeight > event.target.scrollHeight - 600) store.more();
  };
  const first = Math.max(0, Math.floor(top / ROW) - 5), last = Math.min(store.entries.length, Math.ceil((top + height) / ROW) + 5);
  const choose = (one, event) => {
    const from = store.entries.findIndex((other) => other.id === store.picked), to = store.entries.indexOf(one);
    const range = event.shiftKey && from >= 0 ? store.entries.slice(Math.min(from, to), Math.max(from, to) + 1) : [one];
    const on = !store.selected.has(one.id);
    store.matching = null;
    for (const other of range) on ? store.selected.add(other.id) : store.selected.delete(other.id);
    store.picked = one.id;
    store.changed();
  };
  if (!store.entries.length) {
    const none = store.loading ? "Loading…" : store.filters.status === "transcribed" && !store.filters.q ? "Nothing is left to review here." : "No entry matches.";
    return html`<div class="list" ref=${box}><p class="blank">${none}</p></div>`;
  }
  return html`<div class="list" ref=${box} onScroll=${scrolled} tabindex="-1">
    <ul style=${{ height: `${store.entries.length * ROW}px` }} aria-label=${`${store.entries.length}${store.after ? "+" : ""} entries`}>
      ${store.entries.slice(first, last).map((one, n) => html`<li key=${one.id} class=${one.id === store.id ? "current" : ""} style=${{ top: `${(first + n) * ROW}px` }}>
        <input type="checkbox" aria-label=${`Select entry ${one.id}`} checked=${store.selected.has(one.id)} onClick=${(event) => choose(one, event)} />
        <button class="entry" aria-current=${one.id === store.id ? "true" : null} onClick=${() => { one.status === "deleted" ? store.restore(one.id) : store.show(one.id); close(); }}>
          <span class="words" dir="auto" lang=${one.language || null}>${one.transcript || "(no text)"}</span>
          <span class="meta"><span>${one.id}</span><span>${one.duration.toFixed(1)} s</span>${one.speaker && html`<span class="cut">${one.speaker}</span>`}
            ${one.confidence != null && html`<span class=${`sure ${doubt(one.confidence)}`}>${percent(one.confidence)}</span>`}
            ${one.warnings.length ? html`<span title=${one.warnings.map((w) => w.kind).join(", ")}>⚠ ${one.warnings.length}</span>` : null}
            ${one.held_by && one.held_by !== store.options.you ? html`<span class="cut">✎ ${one.held_by}</span>` : null}
            ${store.conflicts.has(one.id) ? html`<span class="bad">conflict</span>` : null}
            ${one.status === "deleted" ? html`<span>restore</span>` : null}
            <span class=${`state ${one.status}`} title=${STATUS[one.status]}>${one.skipped ? "↷" : MARK[one.status]}</span></span>
        </button>
      </li>`)}
    </ul>
  </div>`;
}
