"""Search recordings by file name, speaker, language and status."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from voxloop.records import Encoding, Recording, UtteranceStatus, seconds
from voxloop.speech.languages import language_code
from voxloop.steps.recordings.describing import find, odd_texts
from voxloop.stores import tables
from voxloop.stores.catalog import chunks, to_record

if TYPE_CHECKING:
    from voxloop.stores.catalog import Reader
    from voxloop.workspace import Workspace


@dataclass(frozen=True, kw_only=True, slots=True)
class ListedRecording:
    """A recording with its processing status."""

    recording: Recording
    utterances: dict[UtteranceStatus, int]  # by status; empty before segmentation, and if no speech was found
    segmented: bool
    notes: tuple[str, ...]  # problems of its audio or text

    @property
    def status(self) -> str:
        """Its status in a few words, or the number of utterances by status."""
        if not self.utterances:
            return "no speech found" if self.segmented else "waiting"
        return ", ".join(f"{count} {status}" for status, count in self.utterances.items())

    def as_dict(self) -> dict[str, Any]:
        """Return the recording's fields, its length in seconds, and its status."""
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
    newest: bool = False,
    after: str | None = None,
) -> list[ListedRecording]:
    """List recordings, oldest first or `newest` first.

    `name` is part of a file name, `status` matches any of its utterances, and `after` is the id of the last recording
    of the previous page. Raises UnknownRecord if that was removed since.
    """
    table, utterance = tables.recording, tables.utterance
    conditions: list[sa.ColumnElement[bool]] = []
    if name:
        conditions.append(table.c.name.icontains(name, autoescape=True))
    for column, value in (("speaker", speaker), ("language", language_code(language))):
        if value is not None:
            # With segments, an utterance can have another speaker or language than its recording.
            of_part = sa.exists().where(utterance.c.recording == table.c.id, utterance.c[column] == value)
            conditions.append(sa.or_(table.c[column] == value, of_part))
    if status is not None:
        conditions.append(sa.exists().where(utterance.c.recording == table.c.id, utterance.c.status == status))
    key = (table.c.created, table.c.name, table.c.id)
    order = [column.desc() for column in key] if newest else key
    statement = sa.select(table).where(*conditions).order_by(*order).limit(limit)
    with ws.read() as reader:
        if after is not None:
            last = reader.get(Recording, after)
            place = sa.tuple_(*map(sa.literal, (last.created, last.name, last.id)))
            statement = statement.where(sa.tuple_(*key) < place if newest else sa.tuple_(*key) > place)
        found = [to_record(Recording, row) for row in reader.connection.execute(statement)]
        return _listed(reader, found)


@dataclass(frozen=True, kw_only=True, slots=True)
class Speaker:
    """A speaker that recordings name."""

    name: str
    recordings: int
    utterances: int
    hours: float
    reviewed: int  # utterances


def speakers(ws: Workspace) -> list[Speaker]:
    """Every named speaker, those with the most speech first."""
    u = tables.utterance.c
    reviewed = sa.func.sum(sa.case((u.status == "reviewed", 1), else_=0))
    counts = (sa.func.count(u.recording.distinct()), sa.func.count(), sa.func.sum(u.end - u.start), reviewed)
    statement = sa.select(u.speaker, *counts).where(u.speaker.is_not(None), u.status != "deleted").group_by(u.speaker)
    with ws.read() as reader:
        found = [
            Speaker(
                name=row[0], recordings=row[1], utterances=row[2], hours=seconds(int(row[3])) / 3600, reviewed=row[4]
            )
            for row in reader.connection.execute(statement)
        ]
    return sorted(found, key=lambda one: (-one.hours, one.name))


def show(ws: Workspace, recording: str) -> ListedRecording:
    """Return one recording, by its id or file name. Raises UnknownRecord or UsageError."""
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
    """Count clips by the encoding of their source files, such as `mp3, 44100 Hz, stereo`, most frequent first.

    `clips` has the number of clips by recording. If the encoding was not stored, or the recording was removed, it is
    `unknown`.
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
    """Describe a file's codec, sample rate and channels."""
    channels = {1: "mono", 2: "stereo"}.get(encoding.channels, f"{encoding.channels} channels")
    return f"{encoding.codec}, {encoding.rate} Hz, {channels}"


def notes_of(recording: Recording) -> list[str]:
    """Return the problems of a recording's audio and text, a sentence each."""
    notes = []
    if recording.quality and recording.quality.soundless:
        notes.append("the audio is silent, so datasets exclude its text")
    return notes + odd_texts(recording)
