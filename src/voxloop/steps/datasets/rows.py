"""What a dataset holds, as it was frozen: its rows, what was left out of it, and where both lie among the blobs."""

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

PART = 1 << 20  # bytes of a list that are read at once


@dataclass(frozen=True, kw_only=True, slots=True)
class DatasetRow:
    """One utterance of a dataset as it was frozen."""

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
    styled: bool = False  # case and punctuation of the text are a recogniser's; the reference has none

    @property
    def duration(self) -> float:
        """Seconds."""
        return seconds(self.end - self.start)


@dataclass(frozen=True, kw_only=True, slots=True)
class Exclusion:
    """An utterance that was left out, and why."""

    utterance: str
    reason: str  # the same for all that fell to the same bound, so that it can be counted
    detail: str = ""  # what was measured on this one
    reviewed: bool = False  # a person had written or accepted its text


def line(values: dict[str, Any]) -> bytes:
    """One line of a manifest."""
    return (json.dumps(values, ensure_ascii=False, sort_keys=True) + "\n").encode()


def row_line(row: DatasetRow) -> bytes:
    """A row as it stands in the manifest, whose hash is the dataset's id."""
    values = {name: getattr(row, name) for name in _ROW}
    if not row.styled:
        del values["styled"]  # so that what was frozen before there was such a mark has the id that it had
    return line(values)


def exclusion_line(exclusion: Exclusion) -> bytes:
    """What was left out, as it stands in its list."""
    return line({name: getattr(exclusion, name) for name in _EXCLUSION})


_ROW = tuple(field.name for field in fields(DatasetRow))
_EXCLUSION = tuple(field.name for field in fields(Exclusion))


def find(ws: Workspace, name: str | None = None) -> Dataset:
    """The dataset of this id or the newest of this name; None means the newest of all. Raises UnknownRecord."""
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
    raise UnknownRecord("there is no dataset yet: `voxloop dataset build` freezes one")


def manifest_key(ws: Workspace, dataset: str) -> str:
    """Where a dataset's manifest lies among the blobs: under its id or, where something was forgotten, elsewhere."""
    with ws.read() as reader:
        found = reader.find(Dataset, dataset)
    return (found and found.manifest) or f"datasets/{dataset}.jsonl"


def excluded_key(manifest: str) -> str:
    """Where the list of what was left out lies, beside the manifest."""
    return manifest.removesuffix(".jsonl") + ".excluded.jsonl"


def rows(ws: Workspace, dataset: str, split: Split | None = None) -> list[DatasetRow]:
    """The frozen rows of a dataset, of one split or of all, in the order of the manifest."""
    return [row for row in _rows(ws, dataset) if split is None or row.split == split]


def _rows(ws: Workspace, dataset: str) -> Iterator[DatasetRow]:
    for text in _lines(ws, manifest_key(ws, dataset)):
        yield DatasetRow(**json.loads(text))


def all_datasets(ws: Workspace) -> list[Dataset]:
    """All datasets, oldest first."""
    with ws.read() as reader:
        return reader.all(Dataset)


def exclusions(ws: Workspace, dataset: str, *, reason: str | None = None, reviewed: bool = False) -> list[Exclusion]:
    """What was left out of a dataset, and why.

    `reason` is a part of the reasons that are wanted; with `reviewed`, only utterances whose text a person had written
    or accepted.
    """
    listed = (Exclusion(**json.loads(text)) for text in _lines(ws, excluded_key(manifest_key(ws, dataset))))
    return [
        one
        for one in listed
        if (one.reviewed or not reviewed) and (reason is None or reason.casefold() in one.reason.casefold())
    ]


@dataclass(frozen=True, kw_only=True, slots=True)
class Origin:
    """Where people find an utterance."""

    number: int  # takes the place of its id in every command
    file: str  # the original file's name
    start_s: float  # in that file


def origins(ws: Workspace, utterances: Sequence[str]) -> dict[str, Origin]:
    """Where these utterances come from; those that were forgotten are not among them."""
    u, r = tables.utterance.c, tables.recording.c
    statement = sa.select(u.id, u.number, u.start, r.name).join(tables.recording, r.id == u.recording)
    found = {}
    with ws.read() as reader:
        for part in chunks(utterances):
            for row in reader.connection.execute(statement.where(u.id.in_(part))):
                found[row.id] = Origin(number=row.number, file=row.name, start_s=seconds(row.start))
    return found


def _lines(ws: Workspace, key: str) -> Iterator[bytes]:
    """The lines of a blob, some of it in memory at a time."""
    rest = b""
    for part in ws.blobs.parts(key, PART):
        *lines, rest = (rest + part).split(b"\n")
        yield from lines
    if rest:
        yield rest
