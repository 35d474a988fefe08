// The review page: puts the parts together, and turns keys into actions.

import { html, render, useEffect, useRef, useState } from "./view.js";
import { Store } from "./store.js";
import { Keys, shown } from "./keys.js";
import { decideSelected } from "./many.js";
import { Nav } from "./nav.js";
import { Queue } from "./queue.js";
import { nextRate, suggestions, Work } from "./entry.js";
import { ExchangeDialog, KeysDialog, MatchingDialog, RejectDialog, ReplaceDialog } from "./dialogs.js";

const keys = new Keys();
const store = new Store();
let player = null;
const DECISIONS = new Set(["save", "saveNext", "mark", "reject", "skip", "remove", "restore", "suggestion", "play", "restart"]);
const pressedAhead = [];

function App() {
  const [, again] = useState(0);
  const [dialog, setDialog] = useState(null);
  const [queue, setQueue] = useState(false);
  const jump = useRef(null);
  const current = useRef(null);
  useEffect(() => {
    const changed = () => again((n) => n + 1);
    const arrived = () => {
      while (pressedAhead.length && store.arriving === null) current.current.act(pressedAhead.shift());
    };
    store.addEventListener("change", changed);
    store.addEventListener("shown", arrived);
    store.start();
    return () => { store.removeEventListener("change", changed); store.removeEventListener("shown", arrived); };
  }, []);

  const typing = () => document.activeElement === store.field;
  const step = () => store.step(1, { unreviewed: store.filters.status === "transcribed" });
  // What was not read yet is decided on after a question; what is in sight, at once.
  const decideMany = (action, reason) => (store.matching ? setDialog({ kind: "matching", action, reason }) : decideSelected(store, action, reason));
  const acts = {
    play: () => player?.toggle(),
    back: () => player?.seek(player.time - 1),
    restart: () => player?.playAll(),
    loop: () => { player.looping = !player.looping; player.say("state"); },
    slower: () => { player.rate = nextRate(player.rate, -1); store.setPreference("rate", player.rate); },
    faster: () => { player.rate = nextRate(player.rate, 1); store.setPreference("rate", player.rate); },
    save: () => store.save() && store.say("Saved."),
    saveNext: () => store.mark() && step(),
    mark: () => store.mark() && store.say("Marked as reviewed."),
    reject: () => store.entry && setDialog({ kind: "reject", run: (reason) => store.reject(reason) }),
    acceptMany: () => decideMany("accept"),
    rejectMany: () => setDialog({ kind: "reject", run: (reason) => decideMany("reject", reason) }),
    removeMany: () => decideMany("delete"),
    skip: () => store.skip(),
    remove: () => store.remove(),
    undoDecision: () => store.undoDecision(),
    next: () => store.step(1),
    previous: () => store.step(-1),
    nextUnreviewed: () => store.step(1, { unreviewed: true }),
    undo: () => store.undoTyping(),
    redo: () => store.undoTyping("redo", "undo"),
    edit: () => { store.field?.focus(); },
    restore: () => store.entry?.original && store.type(store.entry.original, { whole: true }),
    suggestion: () => { const first = store.entry && suggestions(store.entry, store.text)[0]; if (first) store.type(first.text, { whole: true }); },
    jump: () => { jump.current?.focus(); jump.current?.select(); },
    find: () => {
      document.getElementById("search").focus(); // at once: the next key is meant for it
      setQueue(true);
      requestAnimationFrame(() => document.getElementById("search").focus()); // where the queue was a closed drawer
    },
    select: () => { if (store.id !== null) { store.selected.has(store.id) ? store.selected.delete(store.id) : store.selected.add(store.id); store.matching = null; store.changed(); } },
    help: () => setDialog({ kind: "keys" }),
    replaceWords: () => setDialog({ kind: "replace" }),
    exchange: () => setDialog({ kind: "exchange" }),
  };
  const act = (name) => {
    // What is pressed while the next entry is on its way means that entry.
    if (store.arriving !== null && DECISIONS.has(name)) pressedAhead.push(name);
    else acts[name]();
  };
  current.current = { act, dialog };

  useEffect(() => {
    const onKeyDown = (event) => {
      if (current.current.dialog || event.isComposing || event.defaultPrevented) return;
      const target = event.target;
      const written = target.matches?.("textarea, input:not([type=checkbox]):not([type=range]), [contenteditable]");
      const action = keys.action(event, written);
      if (!action) return;
      // What has the focus keeps the keys that it needs itself.
      if (target.matches?.("button, a, summary, input[type=checkbox]") && ["Enter", " "].includes(event.key) && !event.ctrlKey) return;
      if (target.matches?.("select, input[type=range]") && !event.ctrlKey && !event.altKey) return;
      if (written && target !== store.field && !event.ctrlKey && !event.altKey) return;
      if (written && target !== store.field && ["undo", "redo"].includes(action)) return;
      event.preventDefault();
      if (event.repeat && !["back", "next", "previous", "undo", "redo", "slower", "faster"].includes(action)) return;
      current.current.act(action);
    };
    // After a click, keys belong to the page again, not to the button.
    const onClick = (event) => { if (event.detail && event.target.closest?.("main button, main summary")) event.target.closest("button, summary").blur(); };
    window.addEventListener("keydown", onKeyDown);
    window.addEventListener("click", onClick);
    return () => { window.removeEventListener("keydown", onKeyDown); window.removeEventListener("click", onClick); };
  }, []);

  if (store.signedOut) {
    return html`<div class="blank"><h1>Voxloop</h1><p>This browser is not signed in.</p>
      <p>Open the link that <code>voxloop serve</code> printed, or ask for a new one with <code>voxloop token link</code>. What you typed is kept here.</p></div>`;
  }
  if (!store.options) return html`<p class="blank">${store.notice ? store.notice.text : "Loading…"}</p>`;
  const close = () => setDialog(null);
  return html`
    <${Header} store=${store} jump=${jump} act=${act} toggle=${() => setQueue(!queue)} />
    <div class=${`columns ${queue ? "with-queue" : ""}`}>
      <${Queue} store=${store} act=${act} close=${() => setQueue(false)} />
      <${Work} store=${store} keys=${keys} act=${act} ready=${(made) => { player = made; }} />
    </div>
    <div class="notice" role="status" aria-live="polite">${store.notice && html`<div key=${store.notice.key}><span>${store.notice.text}</span>
      ${store.notice.action && html`<button onClick=${() => { const { run } = store.notice.action; store.notice = null; run(); store.changed(); }}>${store.notice.action.label}</button>`}</div>`}</div>
    ${dialog?.kind === "reject" && html`<${RejectDialog} store=${store} close=${close} run=${dialog.run} />`}
    ${dialog?.kind === "matching" && html`<${MatchingDialog} store=${store} close=${close} ...${dialog} />`}
    ${dialog?.kind === "replace" && html`<${ReplaceDialog} store=${store} close=${close} />`}
    ${dialog?.kind === "exchange" && html`<${ExchangeDialog} store=${store} close=${close} />`}
    ${dialog?.kind === "keys" && html`<${KeysDialog} keys=${keys} close=${close} changed=${() => store.changed()} />`}`;
}

function Header({ store, jump, act, toggle }) {
  const stats = store.stats;
  const done = stats ? stats.reviewed + stats.rejected : 0;
  const mine = stats?.reviewers.find((one) => one.by === store.options.you);
  const waiting = store.outbox.waiting.length;
  return html`<header class="top">
    <button class="quiet open-queue" onClick=${toggle} aria-label="Queue">☰</button>
    <h1>Voxloop<span class="hidden"> Review</span></h1>
    <${Nav} current="review" />
    ${stats && html`<div class="progress">
      <progress max=${Math.max(stats.total, 1)} value=${done} aria-label="Reviewed"></progress>
      <span><strong>${done.toLocaleString()}</strong> of ${stats.total.toLocaleString()} <span class="faint">(${stats.percent.toFixed(0)} %)</span></span></div>`}
    <span class="session faint">${store.done} this session${mine?.seconds ? ` · ${mine.seconds.toFixed(0)} s each` : ""}${mine?.sessions > 1 ? ` · ${mine.entries_per_session.toFixed(0)} per session` : ""}</span>
    <span class="grow"></span>
    <span class=${`outbox ${store.outbox.away ? "bad" : ""}`} role="status">${store.outbox.away ? `Server away: ${waiting} kept here` : waiting ? "Saving…" : ""}</span>
    ${store.conflicts.size ? html`<button class="danger" onClick=${() => store.show([...store.conflicts.keys()][0], { play: false })}>${store.conflicts.size} conflict${store.conflicts.size > 1 ? "s" : ""}</button>` : null}
    <form class="jump" onSubmit=${(event) => { event.preventDefault(); const id = Number(jump.current.value); if (id) { store.show(id); jump.current.value = ""; jump.current.blur(); } }}>
      <input ref=${jump} inputmode="numeric" pattern="[0-9]*" placeholder="Go to id" aria-label="Go to an entry by its id" /></form>
    <button class="quiet" onClick=${() => act("undoDecision")} title=${`Undo the last decision (${keys.of("undoDecision").map(shown).join(", ")})`}>Undo</button>
    <button class="quiet" onClick=${() => act("help")} title="Keys (?)">Keys</button>
    <span class="you">${store.options.you}</span>
  </header>`;
}

render(html`<${App} />`, document.getElementById("app"));
