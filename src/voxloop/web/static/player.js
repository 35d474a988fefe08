// The sound of one entry: a waveform with a region for each word, and playing of all of it, a word, or a loop.

import WaveSurfer from "./vendor/wavesurfer.js";
import Regions from "./vendor/regions.js";

const nonce = document.querySelector('meta[name="csp-nonce"]').content;
const color = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

/** How sure a recogniser was, in three steps. */
export const doubt = (probability) => (probability === null ? "typed" : probability < 0.5 ? "low" : probability < 0.8 ? "mid" : "high");

export class Player extends EventTarget {
  constructor(container) {
    super();
    this.audio = new Audio();
    this.audio.preload = "auto";
    this.audio.preservesPitch = true;
    this.regions = Regions.create();
    this.wave = WaveSurfer.create({
      container,
      media: this.audio,
      height: 88,
      barWidth: 2,
      barGap: 1,
      barRadius: 2,
      normalize: true,
      dragToSeek: true,
      cursorWidth: 2,
      cspNonce: nonce,
      plugins: [this.regions],
      ...this.colors(),
    });
    this.words = [];
    this.spans = [];
    this.stopAt = null;
    this.looping = false;
    this.duration = 0;
    this.regions.on("region-clicked", (region, event) => {
      event.stopPropagation();
      this.playSpan(region.start, region.end);
    });
    this.wave.on("interaction", () => (this.stopAt = null));
    this.wave.on("ready", () => this.say("ready"));
    for (const name of ["play", "pause", "seeked"]) this.audio.addEventListener(name, () => this.say("state"));
    this.audio.addEventListener("ended", () => this.ended());
    this.audio.addEventListener("play", () => this.watch());
    this.audio.addEventListener("seeked", () => this.tick());
    this.dark = matchMedia("(prefers-color-scheme: dark)");
    this.dark.addEventListener("change", () => { this.wave.setOptions(this.colors()); this.mark(this.words); });
  }

  say(name) {
    this.dispatchEvent(new CustomEvent(name));
  }

  colors() {
    return { waveColor: color("--wave"), progressColor: color("--wave-played"), cursorColor: color("--accent") };
  }

  /** Show another entry's sound. Resolves when it is drawn. */
  async load(url, peaks, duration) {
    this.audio.pause();
    this.stopAt = null;
    this.duration = duration;
    this.regions.clearRegions();
    this.words = [];
    const { volume, playbackRate } = this.audio;
    await this.wave.load(url, [peaks], duration);
    this.audio.volume = volume;
    this.audio.playbackRate = playbackRate;
  }

  clear() {
    this.audio.pause();
    this.regions.clearRegions();
    this.wave.empty();
    this.duration = 0;
  }

  /** Draw the words: {start, end, probability}. */
  mark(words) {
    this.words = words;
    this.regions.clearRegions();
    const fill = { low: color("--low-fill"), mid: color("--mid-fill"), high: "transparent", typed: "transparent" };
    for (const word of words) {
      if (word.end <= word.start) continue;
      const region = this.regions.addRegion({ start: word.start, end: word.end, drag: false, resize: false, color: fill[doubt(word.probability)] });
      if (region?.element) {
        region.element.style.borderInline = `1px ${doubt(word.probability) === "low" ? "solid" : "dotted"} ${color("--line")}`;
        region.element.style.cursor = "pointer";
      }
    }
  }

  get playing() {
    return !this.audio.paused;
  }

  get time() {
    return this.audio.currentTime;
  }

  /** Play on from where it stands; a second back after a pause in the middle, from the start after the end. */
  toggle() {
    if (this.playing) this.audio.pause();
    else {
      this.stopAt = null;
      if (this.time >= this.duration - 0.05) this.audio.currentTime = 0;
      this.play();
    }
  }

  play() {
    return this.audio.play().catch(() => this.say("state")); // refused without a key or a click before
  }

  playSpan(start, end) {
    this.audio.currentTime = Math.max(0, start - 0.05);
    this.stopAt = Math.min(end + 0.08, this.duration);
    this.loopFrom = Math.max(0, start - 0.05);
    this.play();
  }

  playAll() {
    this.stopAt = null;
    this.audio.currentTime = 0;
    this.play();
  }

  seek(time) {
    this.stopAt = null;
    this.audio.currentTime = Math.min(Math.max(0, time), this.duration);
  }

  ended() {
    if (!this.looping) return this.say("state");
    this.audio.currentTime = this.stopAt === null ? 0 : this.loopFrom;
    this.play();
  }

  /** While it plays: stop or loop at a word's end, and say where it is at every frame. */
  watch() {
    cancelAnimationFrame(this.frame);
    const step = () => {
      if (this.stopAt !== null && this.time >= this.stopAt) {
        if (this.looping) this.audio.currentTime = this.loopFrom;
        else { this.audio.pause(); this.stopAt = null; }
      }
      this.tick();
      if (this.playing) this.frame = requestAnimationFrame(step);
    };
    this.frame = requestAnimationFrame(step);
  }

  tick() {
    this.say("time");
  }

  set rate(value) {
    this.audio.playbackRate = value;
    this.say("state");
  }

  get rate() {
    return this.audio.playbackRate;
  }
}
