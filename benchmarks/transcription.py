"""Transcribing short clips at their own length, against transformers' generate on 30 s of padding."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from benchmarks.side_by_side import Row, compare
from voxloop import text
from voxloop.audio import decode
from voxloop.families.contract import Decoding, family
from voxloop.starter import STARTER_DIR

SPEECH = Path(__file__).parents[1] / "demo" / "speech"
CLIPS = 32
BATCH = 8


def measure(rounds: int) -> list[Row]:
    import torch
    from transformers import WhisperForConditionalGeneration, WhisperProcessor

    lines = [json.loads(line) for line in (SPEECH / "metadata.jsonl").read_text().splitlines()[:CLIPS]]
    waveforms = [decode(SPEECH / line["file"]) for line in lines]
    seconds = sum(len(waveform) for waveform in waveforms) / 16_000
    recogniser = family("whisper").load(STARTER_DIR)
    model: Any = WhisperForConditionalGeneration.from_pretrained(STARTER_DIR).eval()
    processor: Any = WhisperProcessor.from_pretrained(STARTER_DIR)
    heard: dict[str, list[str]] = {}

    def ours() -> float:
        heard["ours"] = [h.text for h in recogniser.transcribe(waveforms, Decoding())]
        return seconds

    def peer() -> float:
        texts: list[str] = []
        for first in range(0, len(waveforms), BATCH):
            batch = waveforms[first : first + BATCH]
            features = processor(batch, sampling_rate=16_000, return_tensors="pt").input_features
            with torch.no_grad():
                tokens = model.generate(features, max_new_tokens=60)
            texts += processor.batch_decode(tokens, skip_special_tokens=True)
        heard["peer"] = texts
        return seconds

    ours()
    peer()

    def wer(who: str) -> str:
        counted = text.word_errors_each([line["text"] for line in lines], [t.strip() for t in heard[who]])
        return f"WER {text.total(counted).rate:.1%}"

    return [
        compare(
            f"starter, {CLIPS} clips of {seconds / CLIPS:.1f} s, batch by length",
            ours=ours,
            peer=peer,
            unit="s of audio/s",
            rounds=rounds,
            quality_ours=wer("ours"),
            quality_peer=wer("peer"),
        )
    ]
