"""The trial of an export: every installed program opens what was written and reads a few clips as Voxloop reads them.

The clips are frozen test references: of the dataset that the model learnt from, else of the newest that has any. Where
there are none, each program is made to open the export and read a second of silence, and nothing is counted.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from voxloop import models
from voxloop.families.contract import ExportFormat, Heard, Reading, require
from voxloop.families.registry import family
from voxloop.records import SAMPLE_RATE, Dataset, Progress, Run
from voxloop.speech import text
from voxloop.steps import datasets, transcripts
from voxloop.steps.utterances import read_span
from voxloop.stores import tables

if TYPE_CHECKING:
    from voxloop.families.contract import Waveform
    from voxloop.records import Model
    from voxloop.steps.datasets import DatasetRow
    from voxloop.workspace import Workspace

CLIPS = 8
MAX_POINTS = 0.01  # of WER above Voxloop's own: more is told with a remedy
LATE_S = 1.0  # a segment that ends so much later than its clip has a wrong time


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """What one program read, beside what Voxloop read."""

    format: ExportFormat
    program: str
    version: str | None
    missing: str | None  # why it read nothing; None: it did
    wer: float | None = None
    different: int = 0  # clips whose normalised text is not Voxloop's
    late: int = 0  # clips whose last segment ends a second or more behind the clip
    examples: tuple[tuple[str, str], ...] = ()  # Voxloop's text and the other, of the first that differ


@dataclass(frozen=True, kw_only=True, slots=True)
class Trial:
    """What the installed programs made of an export."""

    clips: int
    seconds: float
    words: int
    wer: float | None  # Voxloop's own, as it is served; None: there was no speech with references
    context: str  # that Voxloop feeds the model: trimmed, or full (30 s) as the other programs do
    outcomes: tuple[Outcome, ...]

    @property
    def worse(self) -> tuple[Outcome, ...]:
        """Programs that make errors above Voxloop's by more than a point."""
        return tuple(
            one
            for one in self.outcomes
            if one.wer is not None and self.wer is not None and one.wer > self.wer + MAX_POINTS
        )

    @property
    def remedy(self) -> str | None:
        """What to do about `worse`; None where there is nothing to be done."""
        if not self.worse:
            return None
        if self.context == "trimmed":
            return (
                "other programs pad every clip to 30 s, and this model was trained on clips at their own length: "
                "run it with Voxloop, or train with `--set audio_context=full` and export that"
            )
        return (
            "try it on more clips (`--clips 50`): of so few a single word counts for much; "
            "where the difference stays, run it with Voxloop"
        )


def run(
    ws: Workspace,
    model: Model,
    places: Mapping[ExportFormat, Path],
    *,
    shape: Path,
    base: Path | None,
    clips: int = CLIPS,
    progress: Progress | None = None,
) -> Trial:
    """Have every program read the same test clips; `shape` is the model in transformers' form."""
    rows = _clips(ws, model, clips)
    kind = family(model.family)
    portable = require(kind, "other programs")
    multilingual = require(kind, "cost estimate").cost(shape).multilingual
    decoding = transcripts.decoding(ws, model=model)
    groups: dict[str | None, list[DatasetRow]] = {}
    for row in rows:
        groups.setdefault(row.language or decoding.language, []).append(row)
    sounds = {language: [_sound(ws, row) for row in group] for language, group in groups.items()}
    if not rows:
        sounds = {"en": [np.zeros(SAMPLE_RATE, dtype=np.float32)]}
    ours: list[str] = []
    with models.loaded(ws, model, decoding.engine) as recogniser:
        for language, waveforms in sounds.items():
            heard = recogniser.transcribe(waveforms, replace(decoding, language=language))
            ours += [one.text for one in heard]
    ordered = [row for group in groups.values() for row in group]
    found: dict[str, tuple[Reading, list[Heard] | None]] = {}
    for done, (format, place) in enumerate(places.items()):
        if progress:
            progress(done, len(places))
        for language, waveforms in sounds.items():
            told = language if multilingual else None
            for one in portable.read_elsewhere(format, place, waveforms, told, base):
                _, before = found.get(one.program, (one, []))
                joined = None if one.heard is None or before is None else [*before, *one.heard]
                found[one.program] = (one, joined)
    changes = ws.settings.normaliser
    return Trial(
        clips=len(rows),
        seconds=sum(row.duration for row in rows),
        words=sum(len(text.normalise(row.text, row.language, changes).split()) for row in rows),
        wer=_wer(ordered, ours, changes) if rows else None,
        context=_context(shape) if decoding.audio_context == "auto" else decoding.audio_context,
        outcomes=tuple(_outcome(one, heard, ordered, ours, changes) for one, heard in found.values()),
    )


def _clips(ws: Workspace, model: Model, count: int) -> list[DatasetRow]:
    """Test references of the dataset that the model learnt from, or of the newest; spread over its recordings."""
    with ws.read() as reader:
        run = reader.find(Run, model.run) if model.run else None
        frozen = reader.all(Dataset, order=tables.dataset.c.created.desc())
    frozen.sort(key=lambda one: not (run and one.id == run.dataset))
    for one in frozen:
        rows = [row for row in datasets.rows(ws, one.id, "test") if row.kind == "reference"]
        if rows:
            return rows[:: max(1, len(rows) // count)][:count]
    return []


def _sound(ws: Workspace, row: DatasetRow) -> Waveform:
    return read_span(ws, row.recording, row.start, row.end)


def _context(shape: Path) -> str:
    """What the model was tuned at, as its config says."""
    found: str = json.loads((shape / "config.json").read_text(encoding="utf-8")).get("voxloop_audio_context", "full")
    return found


def _wer(rows: Sequence[DatasetRow], heard: Sequence[str], changes: text.Changes) -> float:
    counts = text.word_errors_each(
        [text.normalise(row.text, row.language, changes) for row in rows],
        [text.normalise(one, row.language, changes) for row, one in zip(rows, heard, strict=True)],
    )
    return text.total(counts).rate


def _outcome(
    reading: Reading, heard: list[Heard] | None, rows: Sequence[DatasetRow], ours: Sequence[str], changes: text.Changes
) -> Outcome:
    told = Outcome(format=reading.format, program=reading.program, version=reading.version, missing=reading.missing)
    if heard is None or not rows:
        return told
    theirs = [one.text.strip() for one in heard]
    different = [
        (mine, other)
        for row, mine, other in zip(rows, ours, theirs, strict=True)
        if text.normalise(mine, row.language, changes) != text.normalise(other, row.language, changes)
    ]
    return replace(
        told,
        wer=_wer(rows, theirs, changes),
        different=len(different),
        late=sum(one.end is not None and one.end > row.duration + LATE_S for one, row in zip(heard, rows, strict=True)),
        examples=tuple(different[:3]),
    )
