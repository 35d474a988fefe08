// The page of models and data: lineage, datasets, recordings, speakers, usage. The address says which of them is shown.

import { html, render, useEffect } from "./view.js";
import { Datasets } from "./datasets.js";
import { Lineage } from "./lineage.js";
import { Page, PageStore, useStore } from "./parts.js";
import { Recordings, Speakers } from "./recordings.js";
import { Usage } from "./usage.js";

const VIEWS = { models: ["Models", Lineage], datasets: ["Datasets", Datasets], recordings: ["Recordings", Recordings], speakers: ["Speakers", Speakers], usage: ["Usage and health", Usage] };
const POLL_MS = 2000; // while a task runs

class ModelsStore extends PageStore {
  constructor() {
    super();
    this.lineage = null;
    this.task = null;
    this.place();
    window.addEventListener("hashchange", () => { this.place(); this.changed(); });
  }

  get admin() { return Boolean(this.you?.admin); }

  /** Read the address: #datasets=ID, #models=ID, #recordings, … */
  place() {
    const [view, id] = location.hash.slice(1).split("=");
    this.view = VIEWS[view] ? view : "models";
    this.selected = id ? decodeURIComponent(id) : "";
  }

  async start() {
    try {
      await this.reload();
    } catch {
      if (!this.signedOut) setTimeout(() => this.start(), POLL_MS);
    }
  }

  async reload() {
    const [state, lineage] = await Promise.all([this.ask("train/status"), this.ask("lineage")]);
    this.you = state.you;
    this.lineage = lineage;
    this.look(state.task);
    this.changed();
  }

  look(task) {
    this.task = task;
    clearTimeout(this.timer);
    if (task?.status !== "running") return;
    this.timer = setTimeout(async () => {
      try {
        const now = (await this.ask("train/status")).task;
        if (now?.status === "running") { this.look(now); this.changed(); } else await this.reload();
      } catch { this.look(this.task); }
    }, POLL_MS);
  }

  async startTask(path, body) {
    const task = await this.attempt(() => this.ask(path, { method: "POST", body }));
    if (task) { this.look(task); this.changed(); }
  }
}

const store = new ModelsStore();

function App() {
  useStore(store);
  useEffect(() => { store.start(); }, []);
  const [title, View] = VIEWS[store.view];
  return html`<${Page} store=${store} name="models" title="Models and data" ready=${Boolean(store.lineage)} status=${title}>
    <nav class="tabs" aria-label="Models and data">${Object.entries(VIEWS).map(([name, [label]]) => html`<a key=${name} href=${`#${name}`} aria-current=${name === store.view ? "true" : null}>${label}</a>`)}</nav>
    ${store.lineage && html`<${View} store=${store} key=${store.view} />`}
  <//>`;
}

render(html`<${App} />`, document.getElementById("app"));
