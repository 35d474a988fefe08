// The microphone: pieces of 16-bit samples with their level, as a page asks for them; and what to do where there is none.

import { html, useEffect, useRef } from "./view.js";

const RATE = 16_000; // what models hear; browsers resample well
const CLIPS = 0.985; // of full scale
const QUIET_DB = -45; // of speech: below it, the noise of a microphone is heard

const decibels = (level) => 20 * Math.log10(Math.max(level, 1e-5));

/** Why this page cannot ask for a microphone: "insecure" or "unsupported"; null: it can. */
export function obstacle() {
  if (!window.isSecureContext) return "insecure";
  return navigator.mediaDevices?.getUserMedia && window.AudioWorkletNode ? null : "unsupported";
}

/** What went wrong when a microphone was asked for, in words. */
export function fault(error) {
  if (error.name === "NotAllowedError") return "This browser does not let the page use the microphone. Allow it beside the address, then try again.";
  if (error.name === "NotFoundError") return "No microphone was found. Plug one in, then try again.";
  if (error.name === "NotReadableError") return "The microphone is in use by another program, or cannot be read.";
  return `The microphone cannot be used: ${error.message}`;
}

export class Microphone extends EventTarget {
  /** Ask for the microphone. Emits "piece" events with detail {piece: Int16Array, peak, level}, both 0 to 1. */
  async open() {
    // What cleans speech for telephony also removes some of it.
    const audio = { channelCount: 1, echoCancellation: false, noiseSuppression: false, autoGainControl: false };
    this.stream = await navigator.mediaDevices.getUserMedia({ audio });
    try {
      this.context = new AudioContext({ sampleRate: RATE });
      this.source = this.context.createMediaStreamSource(this.stream);
    } catch {
      // Firefox connects a microphone only at its own rate; the server resamples then.
      await this.context?.close();
      this.context = new AudioContext();
      this.source = this.context.createMediaStreamSource(this.stream);
    }
    await this.context.audioWorklet.addModule(new URL("static/microphone-worklet.js", document.baseURI));
    this.node = new AudioWorkletNode(this.context, "pieces", { channelCount: 1, channelCountMode: "explicit" });
    this.node.port.onmessage = ({ data }) => this.dispatchEvent(new CustomEvent("piece", { detail: data }));
    this.source.connect(this.node);
    this.node.connect(this.context.destination); // silent: what leads nowhere is not run
    for (const track of this.stream.getTracks()) track.onended = () => { this.close(); this.dispatchEvent(new Event("lost")); };
    await this.context.resume();
  }

  /** Samples a second. */
  get rate() {
    return this.context.sampleRate;
  }

  get opened() {
    return !!this.stream;
  }

  close() {
    for (const track of this.stream?.getTracks() || []) { track.onended = null; track.stop(); }
    this.context?.close();
    this.stream = this.context = null;
  }
}

/** Samples as a WAV file. */
export function wav(pieces, rate) {
  const bytes = pieces.reduce((sum, one) => sum + one.byteLength, 0);
  const head = new DataView(new ArrayBuffer(44));
  const text = (at, letters) => [...letters].forEach((letter, n) => head.setUint8(at + n, letter.charCodeAt(0)));
  text(0, "RIFF"); head.setUint32(4, 36 + bytes, true); text(8, "WAVEfmt ");
  head.setUint32(16, 16, true); head.setUint16(20, 1, true); head.setUint16(22, 1, true);
  head.setUint32(24, rate, true); head.setUint32(28, 2 * rate, true); head.setUint16(32, 2, true); head.setUint16(34, 16, true);
  text(36, "data"); head.setUint32(40, bytes, true);
  return new Blob([head, ...pieces], { type: "audio/wav" });
}

const FLOOR_DB = -60; // the left end of the meter

/** How loud it is, drawn without drawing the page anew. */
export function Level({ microphone }) {
  const meter = useRef(null), said = useRef(null);
  useEffect(() => {
    let shown = FLOOR_DB, loudest = 0, until = 0;
    const heard = ({ detail: { peak, level } }) => {
      if (!meter.current) return; // just taken away
      shown = Math.max(decibels(level), shown - 1.5, FLOOR_DB); // falls slowly enough to be seen
      loudest = Math.max(peak, loudest * 0.98);
      const now = performance.now();
      if (loudest >= CLIPS) until = now + 1500;
      const words = now < until ? "Too loud" : decibels(loudest) < QUIET_DB ? "Quiet" : "";
      meter.current.setAttribute("aria-valuenow", Math.round(shown));
      meter.current.classList.toggle("odd", words !== "");
      meter.current.firstChild.style.width = `${100 * (1 - shown / FLOOR_DB)}%`;
      if (said.current.textContent !== words) said.current.textContent = words;
    };
    microphone.addEventListener("piece", heard);
    return () => microphone.removeEventListener("piece", heard);
  }, [microphone]);
  return html`<span class="level"><span class="meter" ref=${meter} role="meter" aria-label="Level of the microphone, in dB" aria-valuemin=${FLOOR_DB} aria-valuemax="0" aria-valuenow=${FLOOR_DB}><span></span></span>
    <span ref=${said} class="faint"></span></span>`;
}

export function Obstacle({ kind }) {
  const here = `http://127.0.0.1${location.port ? `:${location.port}` : ""}${location.pathname}`;
  return html`<section class="banner obstacle" role="alert">
    <h2>No microphone on this page</h2>
    ${kind === "insecure" ? html`<p>Browsers give the microphone only to pages that come over HTTPS, or from the machine they run on. This one came over plain HTTP from ${location.host}.</p>
      <ul><li>On the machine that runs the server, open <code>${here}</code>.</li>
      <li>From other machines, start the server with <code>voxloop serve --tls-cert cert.pem --tls-key key.pem</code>, and open the page with <code>https://</code>.</li></ul>`
      : html`<p>This browser has no AudioWorklet. A current Chrome, Edge, Firefox or Safari has one.</p>`}
  </section>`;
}
