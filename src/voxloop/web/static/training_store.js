// The state of the training page: what can be set, how the run goes (by server-sent events), and what was asked for.

import { address, query } from "./api.js";
import { PageStore } from "./parts.js";

const RETRY_MS = 3000; // until a stream that the server has refused is asked for again

export class TrainingStore extends PageStore {
  constructor() {
    super();
    this.options = null; // of /api/train/options for what is chosen
    this.state = null; // of /api/train/status
    this.lines = []; // metrics of the run that is shown
    this.linesOf = null;
    this.chosen = { dataset: "", base: "", method: "", recipe: "" };
    this.model = null; // details of the shown run's model
    this.forecast = null;
    this.id = new URLSearchParams(location.hash.slice(1)).get("run") || "";
    window.addEventListener("hashchange", () => this.show(new URLSearchParams(location.hash.slice(1)).get("run") || ""));
    // A tab that nobody sees asks for nothing: browsers open six connections to a server in all.
    document.addEventListener("visibilitychange", () => (document.hidden ? this.close() : this.follow()));
  }

  get run() { return this.state?.run || null; }
  get task() { return this.state?.task || null; }
  get admin() { return Boolean(this.you?.admin); }

  async start() {
    try {
      this.take(await this.ask(`train/status?${query({ run: this.id })}`));
    } catch (error) {
      if (this.signedOut) return;
      if (error.status === 404 && this.id) { this.id = ""; this.start(); return; }
      setTimeout(() => this.start(), RETRY_MS);
      return;
    }
    this.follow();
    await this.choose({});
    this.loadForecast();
  }

  /** Show one run; "": the one that trains, or the newest. */
  show(id) {
    if (id === this.id) return;
    this.id = id;
    this.lines = [];
    this.linesOf = null;
    this.follow();
    this.changed();
  }

  close() {
    this.stream?.close();
    this.stream = null;
  }

  follow() {
    this.close();
    clearTimeout(this.retry);
    const stream = new EventSource(address(`train/events?${query({ run: this.id })}`));
    this.stream = stream;
    stream.addEventListener("open", () => { this.away = false; this.changed(); });
    stream.addEventListener("status", (event) => this.take(JSON.parse(event.data)));
    stream.addEventListener("metrics", (event) => {
      const { run, anew, lines } = JSON.parse(event.data);
      if (anew || run !== this.linesOf) this.lines = [];
      this.linesOf = run;
      // A step that is lower than the one before repeats what a kill has undone.
      const kept = this.lines.slice();
      for (const line of lines) {
        while (kept.length && kept.at(-1).step > line.step) kept.pop();
        kept.push(line);
      }
      this.lines = kept;
      this.changed();
    });
    stream.addEventListener("error", () => {
      if (this.stream !== stream) return;
      this.away = true;
      this.changed();
      if (stream.readyState !== EventSource.CLOSED) return; // the browser tries again by itself
      this.retry = setTimeout(async () => {
        try { this.take(await this.ask(`train/status?${query({ run: this.id })}`)); } catch { if (this.signedOut) return; }
        this.follow();
      }, RETRY_MS);
    });
  }

  take(state) {
    const before = this.state;
    this.state = state;
    this.you = state.you;
    const told = (one) => one && `${one.id} ${one.status}`;
    if (told(before?.run) !== told(state.run) || told(before?.task) !== told(state.task)) {
      if (before?.task?.status === "running" && state.task?.status !== "running") this.taskEnded(state.task);
      if (before) this.choose({}); // data, models and the champion may be others now
      this.loadModel();
    } else if (state.run?.model && this.model?.model?.id !== state.run.model) {
      this.loadModel();
    }
    this.changed();
  }

  taskEnded(task) {
    if (task.kind === "forecast") this.loadForecast();
    if (task.status === "failed") this.say(task.error);
    else if (task.outcome?.message) this.say(task.outcome.message.split(": ")[0]);
  }

  async loadModel() {
    const id = this.run?.model;
    if (!id) { this.model = null; return; }
    try {
      const found = await this.ask(`models/${id}`);
      if (this.run?.model === id) this.model = found;
      this.changed();
    } catch { /* told by the page's frame, or deleted since */ }
  }

  async loadForecast() {
    try { this.forecast = (await this.ask("forecast")).forecast; this.changed(); } catch { /* none */ }
  }

  /** What the form offers, for another dataset, base, method or recipe. */
  async choose(values) {
    this.chosen = { ...this.chosen, ...values };
    const asked = (this.asked = (this.asked || 0) + 1);
    try {
      const found = await this.ask(`train/options?${query(this.chosen)}`);
      if (asked !== this.asked) return;
      this.options = found;
      this.refused = null;
    } catch (error) {
      if (asked !== this.asked || this.signedOut) return;
      this.refused = error.message;
      if (!this.options) setTimeout(() => this.choose({}), RETRY_MS);
    }
    this.changed();
  }

  async train(body) {
    const run = await this.ask("train", { method: "POST", body });
    if (location.hash) history.replaceState(null, "", location.pathname);
    this.id = "";
    this.lines = [];
    this.linesOf = null;
    this.follow();
    return run;
  }

  act(verb, body) {
    const id = this.run.id;
    return this.attempt(() => this.ask(`train/runs/${id}/${verb}`, { method: "POST", body }));
  }

  startTask(path, body) {
    return this.attempt(() => this.ask(path, { method: "POST", body }));
  }
}
