"""What every format holds of a row: its line of the manifest, where its text came from, and its audio."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from voxloop.errors import UsageError
from voxloop.records import SPLITS, Split
from voxloop.speech.audio import from_pcm16, pcm_id, to_pcm16, wav_bytes
from voxloop.steps.datasets.clips import clip_name
from voxloop.steps.datasets.rows import DatasetRow
from voxloop.steps.review.decisions import METADATA
from voxloop.steps.utterances import read_span
from voxloop.stores import tables
from voxloop.stores.catalog import chunks

if TYPE_CHECKING:
    from voxloop.speech.audio import Waveform
    from voxloop.workspace import Workspace

REVIEWER = "reviewer"  # stands for whoever wrote a text: an export names no reviewers
WAV_HEADER = 44  # bytes, as `audio.wav_header` writes it

# Columns with their types as Arrow and Hugging Face name them. Times are in samples or seconds, as the name says.
COLUMNS: dict[str, str] = {
    "id": "string",  # of the utterance
    "text": "string",
    "duration": "float64",  # seconds
    "speaker": "string",
    "language": "string",
    "split": "string",
    "session": "string",
    "consent": "string",
    "kind": "string",  # of the text: reference, clean, hypothesis
    "by": "string",
    "confidence": "float64",
    "created": "float64",  # when the text was written, seconds since the epoch
    "transcript": "string",
    "recording": "string",
    "start_sample": "int64",  # of the recording
    "end_sample": "int64",  # exclusive
    "pcm": "string",  # sha256-<hex> of the clip's samples
    "original_file": "string",  # name of the file that the recording came from; null in an export without file names
    "styled": "bool",  # case and punctuation of the text are a recogniser's
}
LATER = ("original_file", "styled")  # columns that older exports lack


@dataclass(frozen=True, kw_only=True, slots=True)
class Part:
    """Rows of one split that are written together."""

    split: Split
    index: int
    of: int
    rows: Sequence[DatasetRow]


def parts(rows: Sequence[DatasetRow], items: int) -> list[Part]:
    """The rows of each split in order, `items` at a time; a split without rows has none."""
    found = []
    for split in SPLITS:
        mine = [row for row in rows if row.split == split]
        starts = range(0, len(mine), items)
        found += [
            Part(split=split, index=index, of=len(starts), rows=mine[start : start + items])
            for index, start in enumerate(starts)
        ]
    return found


@dataclass(frozen=True, kw_only=True, slots=True)
class Entry:
    """A row as a file holds it, with its audio."""

    values: dict[str, Any]  # as in COLUMNS
    pcm: bytes  # little-endian int16, 16 kHz, mono

    @property
    def name(self) -> str:
        """A name that no other clip of the dataset has."""
        return name_of(self.values)

    @property
    def wav(self) -> bytes:
        return wav_bytes(self.pcm)

    @property
    def waveform(self) -> Waveform:
        """(S,) float32."""
        return from_pcm16(self.pcm)


def name_of(values: dict[str, Any]) -> str:
    """The name of a row's audio, as `clips.clip_name` makes it."""
    return clip_name(row_of(values))


def row_of(values: dict[str, Any]) -> DatasetRow:
    """The row that these values are of. Raises UsageError where some are missing or wrong."""
    try:
        if values["split"] not in SPLITS or not isinstance(values["text"], str):
            raise ValueError(f"split {values['split']!r}, text {values['text']!r}")
        return DatasetRow(
            utterance=values["id"],
            recording=values["recording"],
            start=int(values["start_sample"]),
            end=int(values["end_sample"]),
            split=values["split"],
            text=values["text"],
            kind=values["kind"],
            transcript=values["transcript"],
            speaker=values["speaker"],
            language=values["language"],
            styled=bool(values.get("styled")),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise UsageError(f"a row of the export cannot be read ({error!r}): export it again") from error


def entries(ws: Workspace, rows: Sequence[DatasetRow], *, file_names: bool) -> Iterator[Entry]:
    """Rows with their audio, one at a time, and where they came from; with `file_names`, from which file."""
    said = _by_id(ws, tables.transcript, ("by", "confidence", "created"), [row.transcript for row in rows])
    heard = _by_id(ws, tables.recording, ("session", "consent", "name"), [row.recording for row in rows])
    for row in rows:
        pcm = to_pcm16(read_span(ws, row.recording, row.start, row.end))
        origin = dict(said.get(row.transcript, {"by": None, "confidence": None, "created": None}))
        if row.kind == "reference" and origin["by"] not in (METADATA, None):
            origin["by"] = REVIEWER
        origin |= heard.get(row.recording, {"session": None, "consent": None, "name": None})
        values = {
            "id": row.utterance,
            "text": row.text,
            "duration": row.duration,
            "speaker": row.speaker,
            "language": row.language,
            "split": row.split,
            "kind": row.kind,
            "transcript": row.transcript,
            "recording": row.recording,
            "start_sample": row.start,
            "end_sample": row.end,
            "pcm": pcm_id(pcm),
            "original_file": origin["name"] if file_names else None,
            "styled": row.styled,
            **origin,
        }
        yield Entry(values={name: values[name] for name in COLUMNS}, pcm=pcm)


def _by_id(ws: Workspace, table: sa.Table, columns: Sequence[str], ids: Sequence[str]) -> dict[str, dict[str, Any]]:
    found = {}
    statement = sa.select(table.c.id, *(table.c[name] for name in columns))
    with ws.read() as reader:
        for part in chunks(ids):
            for row in reader.connection.execute(statement.where(table.c.id.in_(part))):
                found[row.id] = {name: getattr(row, name) for name in columns}
    return found
