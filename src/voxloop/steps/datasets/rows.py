"""Read a frozen dataset: its rows, its exclusions, and their blob keys."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from voxloop.errors import UnknownRecord
from voxloop.records import Dataset, Split, TranscriptKind, seconds
from voxloop.stores import tables
from voxloop.stores.catalog import chunks

if TYPE_CHECKING:
    from voxloop.workspace import Workspace

PART = 1 << 20  # bytes of a list read at a time


@dataclass(frozen=True, kw_only=True, slots=True)
class DatasetRow:
    """One utterance of a dataset, as frozen."""

    utterance: str
    recording: str
    start: int  # samples
    end: int  # samples, exclusive
    split: Split
    text: str
    kind: TranscriptKind
    transcript: str
    speaker: str | None
    language: str | None
    styled: bool = False  # case and punctuation come from a recogniser; the reference has none

    @property
    def duration(self) -> float:
        """Seconds."""
        return seconds(self.end - self.start)


@dataclass(frozen=True, kw_only=True, slots=True)
class Exclusion:
    """An excluded utterance, and why."""

    utterance: str
    reason: str  # identical for the same bound, so that it can be counted
    detail: str = ""  # the value measured on this utterance
    reviewed: bool = False  # a person wrote or accepted its text


def line(values: dict[str, Any]) -> bytes:
    """Return one line of a manifest."""
    return (json.dumps(values, ensure_ascii=False, sort_keys=True) + "\n").encode()


def row_line(row: DatasetRow) -> bytes:
    """Return a row's line in the manifest, whose hash is the dataset's id."""
    values = {name: getattr(row, name) for name in _ROW}
    if not row.styled:
        del values["styled"]  # so that datasets frozen before this field existed keep their ids
    return line(values)


def exclusion_line(exclusion: Exclusion) -> bytes:
    """Return an exclusion's line in its list."""
    return line({name: getattr(exclusion, name) for name in _EXCLUSION})


_ROW = tuple(field.name for field in fields(DatasetRow))
_EXCLUSION = tuple(field.name for field in fields(Exclusion))


def find(ws: Workspace, name: str | None = None) -> Dataset:
    """Return the dataset of this id, or the newest of this name (None: of all). Raises UnknownRecord."""
    with ws.read() as reader:
        named = reader.all(
            Dataset,
            *([tables.dataset.c.name == name] if name else []),
            order=(tables.dataset.c.created.desc(), tables.dataset.c.id),
            limit=1,
        )
        if named:
            return named[0]
        if name:
            return reader.get(Dataset, name)
    raise UnknownRecord("there are no datasets yet: build one with `voxloop dataset build`")


def manifest_key(ws: Workspace, dataset: str) -> str:
    """Return the blob key of a dataset's manifest: its id, or another key if something was forgotten."""
    with ws.read() as reader:
        found = reader.find(Dataset, dataset)
    return (found and found.manifest) or f"datasets/{dataset}.jsonl"


def excluded_key(manifest: str) -> str:
    """Return the blob key of the list of exclusions that belongs to a manifest."""
    return manifest.removesuffix(".jsonl") + ".excluded.jsonl"


def rows(ws: Workspace, dataset: str, split: Split | None = None) -> list[DatasetRow]:
    """Return a dataset's rows, of one split or of all, in the order of the manifest."""
    return [row for row in _rows(ws, dataset) if split is None or row.split == split]


def _rows(ws: Workspace, dataset: str) -> Iterator[DatasetRow]:
    for text in _lines(ws, manifest_key(ws, dataset)):
        yield DatasetRow(**json.loads(text))


def all_datasets(ws: Workspace) -> list[Dataset]:
    """Return all datasets, oldest first."""
    with ws.read() as reader:
        return reader.all(Dataset)


def exclusions(ws: Workspace, dataset: str, *, reason: str | None = None, reviewed: bool = False) -> list[Exclusion]:
    """Return the utterances excluded from a dataset, with the reasons.

    `reason` selects reasons that contain this text; `reviewed` selects utterances whose text a person wrote or
    accepted.
    """
    listed = (Exclusion(**json.loads(text)) for text in _lines(ws, excluded_key(manifest_key(ws, dataset))))
    return [
        one
        for one in listed
        if (one.reviewed or not reviewed) and (reason is None or reason.casefold() in one.reason.casefold())
    ]


@dataclass(frozen=True, kw_only=True, slots=True)
class Origin:
    """Where an utterance comes from."""

    number: int  # accepted in place of its id in every command
    file: str  # the original file's name
    start_s: float  # seconds in that file


def origins(ws: Workspace, utterances: Sequence[str]) -> dict[str, Origin]:
    """Return where these utterances come from, without forgotten ones."""
    u, r = tables.utterance.c, tables.recording.c
    statement = sa.select(u.id, u.number, u.start, r.name).join(tables.recording, r.id == u.recording)
    found = {}
    with ws.read() as reader:
        for part in chunks(utterances):
            for row in reader.connection.execute(statement.where(u.id.in_(part))):
                found[row.id] = Origin(number=row.number, file=row.name, start_s=seconds(row.start))
    return found


def _lines(ws: Workspace, key: str) -> Iterator[bytes]:
    """Yield the lines of a blob, with only a part of it in memory."""
    rest = b""
    for part in ws.blobs.parts(key, PART):
        *lines, rest = (rest + part).split(b"\n")
        yield from lines
    if rest:
        yield rest
