// A live session over /v1/realtime: sound goes out, texts come in. A connection that breaks is made again, and what was
// not heard to its end is sent again: sound is let go only when its text is final.

import { ask } from "./api.js";

const ADDRESS = new URL("v1/realtime?intent=transcription", document.baseURI);
ADDRESS.protocol = ADDRESS.protocol.replace("http", "ws");
const MOST_HELD_S = 60; // of sound that waits for a connection
const PAUSE_HELD_S = 2; // of a pause, in which the next words may begin
const ENDING_MS = 10_000; // for the last words after the end
const NOTHING_LEFT = "input_audio_buffer_commit_empty";
const TRANSCRIPTION = "conversation.item.input_audio_transcription.";

export class Live extends EventTarget {
  /** `wanted`: {language, capture, speaker, session}. Emits "change", and "end" with detail: why, or null. */
  constructor(rate, wanted) {
    super();
    this.rate = rate; // samples a second
    this.wanted = wanted;
    this.items = new Map(); // id -> {start, end, text, tail, final, model}; times in seconds from the beginning
    this.held = []; // {at, piece}: sound whose text is not final, oldest first; `at` in samples from the beginning
    this.samples = 0;
    this.lost = 0; // samples that could not be held
    this.owed = 0; // answers on what is kept that are still to come
    this.kept = 0; // utterances that became recordings
    this.notice = "";
    this.attempts = 0;
    this.connect();
  }

  changed() {
    this.dispatchEvent(new Event("change"));
  }

  connect() {
    const socket = (this.socket = new WebSocket(ADDRESS));
    socket.onmessage = ({ data }) => { if (socket === this.socket) this.told(JSON.parse(data)); };
    socket.onclose = ({ code, reason }) => { if (socket === this.socket) this.closed(code, reason); };
  }

  get connected() {
    return this.ready === this.socket && this.socket?.readyState === WebSocket.OPEN;
  }

  update(wanted) {
    this.wanted = { ...this.wanted, ...wanted };
    if (this.connected) this.configure();
  }

  configure() {
    const { language, capture, speaker, session } = this.wanted;
    const input = { format: { type: "audio/pcm", rate: this.rate }, transcription: { language: language || null } };
    this.send({ type: "session.update", session: { type: "transcription", audio: { input }, include: ["voxloop.unstable"], capture, speaker, session } });
  }

  send(event) {
    this.socket.send(JSON.stringify(event));
  }

  /** The next samples of the microphone. */
  hear(piece) {
    this.held.push({ at: this.samples, piece });
    this.samples += piece.length;
    if (this.connected) this.socket.send(piece);
    while (this.held.length && this.samples - this.held[0].at > MOST_HELD_S * this.rate) this.lost += this.held.shift().piece.length;
  }

  told(event) {
    const item = this.items.get(event.item_id);
    switch (event.type) {
      case "session.created":
        this.attempts = 0;
        this.ready = this.socket;
        this.configure();
        this.base = this.held.length ? this.held[0].at : this.samples;
        for (const { piece } of this.held) this.socket.send(piece);
        if (this.ending) this.send({ type: "input_audio_buffer.commit" });
        break;
      case "input_audio_buffer.speech_started":
        this.items.set(event.item_id, { start: this.time(event.audio_start_ms), end: null, text: "", tail: "", final: false, model: null });
        break;
      case "input_audio_buffer.speech_stopped":
        if (item) item.end = this.time(event.audio_end_ms);
        break;
      case `${TRANSCRIPTION}delta`:
        if (item) { item.text += event.delta; item.tail = ""; }
        break;
      case "voxloop.input_audio_transcription.unstable":
        if (item) item.tail = event.text;
        break;
      case `${TRANSCRIPTION}completed`:
        if (event.transcript && this.wanted.capture) this.owed++;
        if (item) this.finish(event.item_id, item, event.transcript, event.model);
        break;
      case `${TRANSCRIPTION}failed`:
        this.notice = `A part was not heard: ${event.error.message}`;
        if (item) this.finish(event.item_id, item, item.text, null);
        break;
      case "voxloop.input_audio.captured":
        this.owed--;
        if (event.capture.recording) this.kept++;
        else this.notice = `Not kept: ${event.capture.reason}`;
        break;
      case "error":
        if (event.error.code !== NOTHING_LEFT) this.notice = event.error.message;
        break;
    }
    this.letGo();
    // The commit at the end is answered with a text, or with there being nothing left.
    if (this.ending && event.type === "input_audio_buffer.committed") this.answered = true;
    if (this.ending && event.error?.code === NOTHING_LEFT) this.answered = true;
    if (this.ending && this.answered && !this.open.length && this.owed <= 0 && !event.type.endsWith("committed")) this.close(null);
    this.changed();
  }

  finish(id, item, text, model) {
    if (text) Object.assign(item, { text, tail: "", final: true, model, end: item.end ?? this.samples / this.rate });
    else this.items.delete(id);
  }

  time(ms) {
    return this.base / this.rate + ms / 1000;
  }

  /** Utterances whose text is not final. */
  get open() {
    return [...this.items.values()].filter((one) => !one.final);
  }

  /** Let go of sound whose text is final. */
  letGo() {
    const [first] = this.open;
    const until = first ? first.start * this.rate : this.samples - PAUSE_HELD_S * this.rate;
    while (this.held.length && this.held[0].at + this.held[0].piece.length < until) this.held.shift();
  }

  async closed(code, reason) {
    if (this.over) return;
    this.ready = null;
    for (const [id, one] of this.items) if (!one.final) this.items.delete(id); // they are heard again
    if (this.ending) { this.close(null); return; }
    if (code === 1008) { this.close(this.notice || reason || "The server ended the session."); return; }
    this.notice = "";
    this.changed();
    this.attempts++;
    try {
      const about = await ask("microphone"); // a socket does not say why it is refused
      if (!about.may_listen) { this.close("This token may not use the microphone."); return; }
    } catch (error) {
      if (error.status === 401) { this.close("This browser is not signed in any more."); return; }
    }
    this.timer = setTimeout(() => this.connect(), Math.min(250 * 2 ** this.attempts, 8000));
  }

  /** No more sound comes: wait for the last words, then close. */
  end() {
    if (!this.connected) { this.close(this.held.length ? "The server did not answer, so the last words were not heard." : null); return; }
    this.ending = true;
    this.send({ type: "input_audio_buffer.commit" });
    this.timer = setTimeout(() => this.close(null), ENDING_MS);
    this.changed();
  }

  close(why) {
    if (this.over) return;
    this.over = true;
    clearTimeout(this.timer);
    this.socket?.close(1000);
    for (const one of this.items.values()) one.tail = "";
    this.changed();
    this.dispatchEvent(new CustomEvent("end", { detail: why }));
  }
}

// The text as a file ----------------------------------------------------------------------------------------------------

const CUE_CHARACTERS = 84; // two lines of 42, as subtitles have them

const stamp = (seconds) => {
  const ms = Math.round(seconds * 1000), pad = (value, width) => String(Math.floor(value)).padStart(width, "0");
  return `${pad(ms / 3_600_000, 2)}:${pad((ms / 60_000) % 60, 2)}:${pad((ms / 1000) % 60, 2)},${pad(ms % 1000, 3)}`;
};

/** Words in rows of at most so many characters. */
function rows(text, most) {
  const found = [];
  for (const word of text.split(/\s+/)) {
    const last = found.length - 1;
    if (found.length && found[last].length + 1 + word.length <= most) found[last] += ` ${word}`;
    else found.push(word);
  }
  return found;
}

/** Utterances {start, end, text} as SubRip. Long ones are parted by their characters: words have no times here. */
export function subrip(items) {
  const cues = [];
  for (const { start, end, text } of items) {
    const parts = rows(text, CUE_CHARACTERS), all = parts.reduce((sum, one) => sum + one.length, 0);
    let place = start;
    for (const part of parts) {
      const until = place + ((end - start) * part.length) / all;
      cues.push(`${cues.length + 1}\n${stamp(place)} --> ${stamp(until)}\n${rows(part, CUE_CHARACTERS / 2).join("\n")}\n`);
      place = until;
    }
  }
  return cues.join("\n");
}
