"""A workspace with transcribed utterances to review: real audio in the store, texts as a recogniser writes them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from voxloop.records import SAMPLE_RATE, Recording, Transcript, Utterance, Word, utterance_id
from voxloop.speech.audio import pcm_id, to_pcm16, wav_bytes
from voxloop.speech.quality import measure
from voxloop.steps.recordings import audio_key
from voxloop.workspace import Workspace

MODEL = "sha256-" + "1" * 64
TEXTS = (
    "please call stella about the kitchen lights",
    "six spoons of fresh snow peas",
    "five thick slabs of blue cheese",
    "maybe a snack for her brother bob",
    "we also need a small plastic snake",
    "and a big toy frog for the kids",
)


def voice(seconds: float, pitch: float) -> np.ndarray:
    """Something with syllables: (S,) float32 at 16 kHz."""
    t = np.arange(int(seconds * SAMPLE_RATE)) / SAMPLE_RATE
    swell = np.clip(np.sin(2 * np.pi * 2.2 * t), 0, None) ** 0.7
    tone = sum(np.sin(2 * np.pi * pitch * n * t) / n for n in range(1, 6))
    noise = np.random.default_rng(int(pitch)).normal(0, 0.002, len(t))
    return (0.16 * swell * tone + noise).astype(np.float32)


def recorded(ws: Workspace, waveform: np.ndarray, name: str, speaker: str | None, language: str | None) -> Recording:
    """A stored recording."""
    pcm = to_pcm16(waveform)
    recording = Recording(
        id=pcm_id(pcm),
        source=name,
        name=name,
        samples=len(waveform),
        speaker=speaker,
        language=language,
        quality=measure(waveform),
    )
    ws.blobs.put(audio_key(recording.id), wav_bytes(pcm))
    with ws.transaction() as tx:
        tx.add(recording)
    return recording


def heard(
    ws: Workspace,
    recording: Recording,
    start: int,
    end: int,
    text: str,
    *,
    confidence: float = 0.8,
    probabilities: Sequence[float] = (),
) -> Utterance:
    """A transcribed utterance of a recording; its words are spread evenly over it."""
    utterance = Utterance(
        id=utterance_id(recording.id, start, end),
        recording=recording.id,
        start=start,
        end=end,
        speaker=recording.speaker,
        language=recording.language,
        status="transcribed",
        quality=recording.quality,
        priority=1 - confidence,
    )
    said = text.split()
    width = (end - start) / SAMPLE_RATE / max(len(said), 1)
    words = tuple(
        Word(
            text=word,
            start=round(width * n, 3),
            end=round(width * (n + 0.9), 3),
            probability=probabilities[n] if n < len(probabilities) else (0.25, 0.97, 0.9, 0.62)[n % 4],
        )
        for n, word in enumerate(said)
    )
    hypothesis = Transcript(
        id=f"heard-{utterance.id}",
        utterance=utterance.id,
        kind="hypothesis",
        text=text,
        by=MODEL,
        confidence=confidence,
        words=words,
    )
    with ws.transaction() as tx:
        tx.add(utterance, hypothesis)
    return utterance


def fill(
    ws: Workspace,
    texts: Sequence[str] = TEXTS,
    *,
    seconds: float = 2.0,
    speaker: str | None = "ann",
    language: str | None = "en",
    folder: str = "",
) -> list[Utterance]:
    """One recording with one transcribed utterance for each text; the first is the one to review first."""
    found = []
    for n, text in enumerate(texts):
        waveform = voice(seconds, 110 + 0.5 * n)
        recording = recorded(ws, waveform, f"{folder}{Path(f'{n + 1:03}.wav')}", speaker, language)
        found.append(heard(ws, recording, 0, recording.samples, text, confidence=0.3 + 0.6 * n / max(len(texts), 2)))
    return found
