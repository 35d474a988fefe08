"""A small frozen test set, tiny models, and what they are to have heard."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np

from tests.unit import tiny_whisper
from voxloop.models import engine as engine_of
from voxloop.records import Dataset, Model, Recording
from voxloop.speech.audio import to_pcm16, wav_bytes
from voxloop.steps import datasets, evaluation, transcripts
from voxloop.steps.datasets import DatasetRow
from voxloop.steps.recordings import ingest
from voxloop.steps.utterances import segment
from voxloop.workspace import Workspace

RATE = 16_000
TEXTS = (
    "the quick brown fox jumps",
    "over one lazy dog today",
    "she sells sea shells here",
    "we are on our way",
)  # 5 words


def freeze(
    ws: Workspace,
    folder: Path,
    *,
    clips: int = 24,
    speakers: Sequence[str] = ("ann", "bob"),
    ratios: tuple[float, float, float] = (0.0, 0.0, 1.0),
) -> Dataset:
    """A dataset whose every clip is in the test split: a second of noise each, a recording of its own."""
    folder.mkdir()
    rng = np.random.default_rng(7)
    lines = []
    for number in range(clips):
        waveform = (0.1 * rng.standard_normal(RATE)).astype(np.float32)
        (folder / f"{number:03}.wav").write_bytes(wav_bytes(to_pcm16(waveform)))
        speaker = speakers[number % len(speakers)]
        text = TEXTS[number % len(TEXTS)]
        lines.append(json.dumps({"file_name": f"{number:03}.wav", "text": text, "speaker": speaker, "language": "en"}))
    (folder / "metadata.jsonl").write_text("\n".join(lines))
    ingest(ws, folder, processes=1)
    with ws.read() as reader:
        recordings = [recording.id for recording in reader.all(Recording)]
    segment(ws, recordings)
    return datasets.build(ws, name="frozen", ratios=ratios)


def twin(folder: Path, name: str) -> Path:
    """A model of the same weights under another id: one that makes the same errors."""
    copy = folder.with_name(name)
    shutil.copytree(folder, copy)
    (copy / "note.txt").write_text(name)
    return copy


def models(folder: Path) -> tuple[Path, Path]:
    """Two models whose weights are equal: a champion and a challenger."""
    champion = tiny_whisper.make(folder / "champion")
    return champion, twin(champion, "challenger")


def remember(
    ws: Workspace, model: Model, dataset: Dataset, heard: Callable[[int, DatasetRow], str], *, engine: str = ""
) -> None:
    """Keep what `model` heard in each row, as an evaluation does that died before its commit."""
    rows = datasets.rows(ws, dataset.id, "test")
    decoding = evaluation.as_heard(
        ws, rows, replace(transcripts.decoding(ws), engine=engine_of(ws, model, asked=engine))
    )
    changes = ws.settings.normaliser
    scored = evaluation.score(rows, [(heard(number, row), 0.5) for number, row in enumerate(rows)], "en", changes)
    normaliser = evaluation.normalisers(rows, decoding, changes)
    id = evaluation.evaluation_id(model.id, dataset.id, "test", decoding, normaliser)
    written = "".join(json.dumps(asdict(row)) + "\n" for row in scored)
    assert ws.blobs.put(f"evaluations/{id}.jsonl", written.encode())


def wrong_in(share: float) -> Callable[[int, DatasetRow], str]:
    """Hears every n-th row with its first word wrong, so that `share` of the rows has one error."""

    def heard(number: int, row: DatasetRow) -> str:
        first, _, rest = row.text.partition(" ")
        bad = int((number + 1) * share) > int(number * share)
        return f"{first}x {rest}" if bad else row.text

    return heard
