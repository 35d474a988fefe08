"""Who stands behind a dataset: its utterances, and the people who wrote or accepted their texts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import sqlalchemy as sa

from voxloop.records import Dataset, Split, TranscriptKind, seconds
from voxloop.stores import tables

if TYPE_CHECKING:
    from voxloop.workspace import Workspace


@dataclass(frozen=True, kw_only=True, slots=True)
class Contributor:
    """Somebody, or a model, who wrote texts of a dataset."""

    by: str
    kind: TranscriptKind
    clips: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Member:
    """An utterance of a dataset, with its text as frozen."""

    number: int  # accepted in place of its id everywhere
    split: Split
    text: str
    by: str  # who wrote or accepted the text
    kind: TranscriptKind
    speaker: str | None
    language: str | None
    seconds: float
    file: str
    recording: str


def contributors(ws: Workspace, dataset: str) -> list[Contributor]:
    """The authors of a dataset's texts, those of the most clips first. Raises UnknownRecord."""
    d, t = tables.dataset_utterance.c, tables.transcript.c
    with ws.read() as reader:
        id = reader.get(Dataset, dataset).id
        counted = (
            sa.select(t.by, t.kind, sa.func.count())
            .join(tables.dataset_utterance, d.transcript == t.id)
            .where(d.dataset == id)
            .group_by(t.by, t.kind)
        )
        found = [Contributor(by=row[0], kind=row[1], clips=row[2]) for row in reader.connection.execute(counted)]
    return sorted(found, key=lambda one: (-one.clips, one.by))


def members(
    ws: Workspace, dataset: str, *, split: Split | None = None, by: str | None = None, limit: int = 50, after: int = 0
) -> list[Member]:
    """A dataset's utterances in the order of their numbers, behind number `after`. Raises UnknownRecord.

    Utterances that were forgotten since are not among them.
    """
    d, t, u, r = (
        tables.dataset_utterance.c,
        tables.transcript.c,
        tables.utterance.c,
        tables.recording.c,
    )
    with ws.read() as reader:
        id = reader.get(Dataset, dataset).id
        wanted = (
            sa.select(
                *(u.number, d.split, t.text, t.by, t.kind, u.speaker, u.language, u.start, u.end, u.recording),
                r.name,
            )
            .select_from(tables.dataset_utterance)
            .join(tables.transcript, t.id == d.transcript)
            .join(tables.utterance, u.id == d.utterance)
            .join(tables.recording, r.id == u.recording)
            .where(d.dataset == id, u.number > after, u.status != "deleted")
            .order_by(u.number)
            .limit(limit)
        )
        if split is not None:
            wanted = wanted.where(d.split == split)
        if by is not None:
            wanted = wanted.where(t.by == by)
        return [
            Member(
                number=row.number,
                split=row.split,
                text=row.text,
                by=row.by,
                kind=row.kind,
                speaker=row.speaker,
                language=row.language,
                seconds=seconds(row.end - row.start),
                file=row.name,
                recording=row.recording,
            )
            for row in reader.connection.execute(wanted)
        ]
