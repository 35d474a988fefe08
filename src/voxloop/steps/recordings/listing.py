"""Recordings as people look for them: by file name, speaker, language and how far they have come."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from voxloop.records import Encoding, Recording, UtteranceStatus
from voxloop.speech.languages import language_code
from voxloop.steps.recordings.describing import find, odd_texts
from voxloop.stores import tables
from voxloop.stores.catalog import chunks, to_record

if TYPE_CHECKING:
    from voxloop.stores.catalog import Reader
    from voxloop.workspace import Workspace


@dataclass(frozen=True, kw_only=True, slots=True)
class ListedRecording:
    """A recording with how far it has come."""

    recording: Recording
    utterances: dict[UtteranceStatus, int]  # by status; empty before it is cut, and where no speech was found
    segmented: bool
    notes: tuple[str, ...]  # what is to be known of its sound or its text

    @property
    def status(self) -> str:
        """In a word, or the number of its utterances by status."""
        if not self.utterances:
            return "no speech found" if self.segmented else "waiting"
        return ", ".join(f"{count} {status}" for status, count in self.utterances.items())

    def as_dict(self) -> dict[str, Any]:
        """The recording's fields, its length in seconds, and how far it has come."""
        record = {one.name: getattr(self.recording, one.name) for one in fields(self.recording)}
        return record | {
            "seconds": self.recording.duration,
            "status": self.status,
            "utterances": self.utterances,
            "notes": self.notes,
        }


def recordings(
    ws: Workspace,
    *,
    name: str | None = None,
    speaker: str | None = None,
    language: str | None = None,
    status: UtteranceStatus | None = None,
    limit: int | None = None,
) -> list[ListedRecording]:
    """Recordings in the order in which they came; `name` is part of a file name, `status` that of any utterance."""
    table, utterance = tables.recording, tables.utterance
    conditions: list[sa.ColumnElement[bool]] = []
    if name:
        conditions.append(table.c.name.icontains(name, autoescape=True))
    for column, value in (("speaker", speaker), ("language", language_code(language))):
        if value is not None:
            # An utterance may have another speaker or language than its recording: the segments say so.
            of_part = sa.exists().where(utterance.c.recording == table.c.id, utterance.c[column] == value)
            conditions.append(sa.or_(table.c[column] == value, of_part))
    if status is not None:
        conditions.append(sa.exists().where(utterance.c.recording == table.c.id, utterance.c.status == status))
    statement = sa.select(table).where(*conditions).order_by(table.c.created, table.c.name, table.c.id).limit(limit)
    with ws.read() as reader:
        found = [to_record(Recording, row) for row in reader.connection.execute(statement)]
        return _listed(reader, found)


def show(ws: Workspace, recording: str) -> ListedRecording:
    """One recording, by its id or file name. Raises UnknownRecord or UsageError."""
    with ws.read() as reader:
        return _listed(reader, [find(reader, recording)])[0]


def _listed(reader: Reader, found: Sequence[Recording]) -> list[ListedRecording]:
    table, event = tables.utterance, tables.event
    counted: dict[str, dict[UtteranceStatus, int]] = {one.id: {} for one in found}
    cut: set[str] = set()
    for part in chunks([one.id for one in found]):
        query = (
            sa.select(table.c.recording, table.c.status, sa.func.count())
            .where(table.c.recording.in_(part))
            .group_by(table.c.recording, table.c.status)
            .order_by(table.c.recording, table.c.status)
        )
        for id, status, count in reader.connection.execute(query):
            counted[id][status] = count
        told = [f"recording.segmented:{id}" for id in part]
        cut.update(reader.connection.execute(sa.select(event.c.subject).where(event.c.id.in_(told))).scalars())
    return [
        ListedRecording(recording=one, utterances=counted[one.id], segmented=one.id in cut, notes=tuple(notes_of(one)))
        for one in found
    ]


def encodings(reader: Reader, clips: Mapping[str, int]) -> dict[str, int]:
    """How the files of clips held their sound, such as `mp3, 44100 Hz, stereo`: clips by it, the most first.

    `clips` are numbers of clips by recording. A recording that nobody noted it of, or that is gone, is `unknown`.
    """
    table = tables.recording
    counted = Counter({"unknown": sum(clips.values())})
    for part in chunks(list(clips)):
        query = sa.select(table.c.id, table.c.encoding).where(table.c.id.in_(part), table.c.encoding.is_not(None))
        for id, encoding in reader.connection.execute(query):
            counted[encoding_name(Encoding(**encoding))] += clips[id]
            counted["unknown"] -= clips[id]
    return {name: count for name, count in counted.most_common() if count}


def encoding_name(encoding: Encoding) -> str:
    """Codec, rate and channels of a file, in words."""
    channels = {1: "mono", 2: "stereo"}.get(encoding.channels, f"{encoding.channels} channels")
    return f"{encoding.codec}, {encoding.rate} Hz, {channels}"


def notes_of(recording: Recording) -> list[str]:
    """What is to be known of a recording's sound and text, a sentence each."""
    notes = []
    if recording.quality and recording.quality.soundless:
        notes.append("nothing to hear: its text stays out of datasets")
    return notes + odd_texts(recording)
