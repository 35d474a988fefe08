// In the audio thread: samples are gathered to pieces of 40 ms, turned into 16-bit numbers, and handed to the page.

const SAMPLES = Math.round(sampleRate / 25);

class Pieces extends AudioWorkletProcessor {
  constructor() {
    super();
    this.piece = new Int16Array(SAMPLES);
    this.filled = 0;
    this.square = 0;
    this.peak = 0;
  }

  process([[samples]]) {
    for (const sample of samples || []) {
      const level = Math.abs(sample);
      if (level > this.peak) this.peak = level;
      this.square += sample * sample;
      this.piece[this.filled++] = Math.max(-1, Math.min(1, sample)) * 32767;
      if (this.filled < SAMPLES) continue;
      const { piece, peak, square } = this;
      this.port.postMessage({ piece, peak, level: Math.sqrt(square / SAMPLES) }, [piece.buffer]);
      this.piece = new Int16Array(SAMPLES);
      this.filled = this.square = this.peak = 0;
    }
    return true;
  }
}

registerProcessor("pieces", Pieces);
