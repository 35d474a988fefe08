"""Write a dataset's clips as files for a training run, and as Lhotse cuts."""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from voxloop.records import SAMPLE_RATE, Split
from voxloop.steps import utterances
from voxloop.steps.datasets.rows import DatasetRow, line, rows
from voxloop.stores import tables

if TYPE_CHECKING:
    from voxloop.workspace import Workspace

log = logging.getLogger(__name__)


def clip_name(row: DatasetRow) -> str:
    """Return a name for a row's audio, unique over all spans of all recordings."""
    return f"{row.recording.removeprefix('sha256-')[:24]}-{row.start}-{row.end}"


def clip_wav(ws: Workspace, row: DatasetRow) -> bytes:
    """Return a row's audio as a WAV file with the stored samples: 16 kHz, mono, 16 bits."""
    from voxloop.speech.audio import to_pcm16, wav_bytes

    return wav_bytes(to_pcm16(utterances.read_span(ws, row.recording, row.start, row.end)))


def write_split(ws: Workspace, dataset: str, split: Split, folder: Path) -> Path:
    """Write `<split>.jsonl` and its audio in `folder/audio`. Return the manifest's path.

    A row holds audio_path (relative to the folder), text, duration (seconds),
    speaker, language and id. Training clips that moved to val or test after they were
    frozen (`build(fresh_test=True)`) are excluded.
    """
    chosen = rows(ws, dataset, split)
    if split == "train":
        held, u = tables.dataset_utterance.c, tables.utterance.c
        moved = (
            sa.select(u.id)
            .join(tables.dataset_utterance, held.utterance == u.id)
            .where(held.dataset == dataset, held.split == "train", u.split.in_(("val", "test")))
        )
        with ws.read() as reader:
            tested = set(reader.connection.execute(moved).scalars())
        if tested:
            log.warning(
                "%d training clips of dataset %s moved to val or test since; skipped them", len(tested), dataset
            )
        chosen = [row for row in chosen if row.utterance not in tested]
    return write_rows(ws, chosen, folder / f"{split}.jsonl")


def write_rows(
    ws: Workspace, chosen: Iterable[DatasetRow], manifest: Path, *, whole: Collection[str] = frozenset()
) -> Path:
    """Write rows of any datasets as `write_split` does, with their audio in `audio` next to the manifest.

    The utterances in `whole` are marked: they are recordings in which the detector has yet to find the speech.
    """
    folder = manifest.parent
    (folder / "audio").mkdir(parents=True, exist_ok=True)
    partial = manifest.with_suffix(".partial")
    with partial.open("wb") as file:
        for row in chosen:
            name = f"audio/{clip_name(row)}.wav"
            target = folder / name
            if not target.exists():
                unfinished = target.with_suffix(".partial")
                unfinished.write_bytes(clip_wav(ws, row))
                unfinished.replace(target)
            values = {"text": row.text, "duration": row.duration, "speaker": row.speaker, "language": row.language}
            marked = {"whole": True} if row.utterance in whole else {}
            file.write(line({"audio_path": name, **values, "id": row.utterance, **marked}))
    partial.replace(manifest)
    return manifest


def lhotse_cut(id: str, path: Path, *, duration: float, text: str, speaker: str | None, language: str | None) -> Any:
    """Return a clip as a Lhotse cut: one recording and one supervision of the same length."""
    from lhotse import MonoCut, Recording, SupervisionSegment
    from lhotse.audio import AudioSource

    audio = Recording(
        id=id,
        sources=[AudioSource(type="file", channels=[0], source=str(path))],
        sampling_rate=SAMPLE_RATE,
        num_samples=round(duration * SAMPLE_RATE),
        duration=duration,
    )
    said = SupervisionSegment(
        id=id, recording_id=id, start=0.0, duration=duration, text=text, speaker=speaker, language=language
    )
    return MonoCut(id=id, start=0.0, duration=duration, channel=0, recording=audio, supervisions=[said])
