"""Utterances as entries of a training set, as the review page and other programs show them.

An entry's `id` is the utterance's number, a small integer; `transcript`, `is_reviewed`, `is_trained` and `timestamp`
have the names and forms of the table `s2s_training_data`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import numpy as np
import sqlalchemy as sa

from voxloop.errors import UnknownRecord
from voxloop.records import SAMPLE_RATE, Utterance, seconds
from voxloop.speech.audio import to_pcm16, wav_bytes
from voxloop.steps.review.decisions import Decision, history_of
from voxloop.steps.review.items import EVERYTHING, Filters, Item, item_of, page, trained
from voxloop.steps.review.warnings import ADVICE
from voxloop.steps.utterances import utterance_audio
from voxloop.stores import tables
from voxloop.stores.tables import now_s

if TYPE_CHECKING:
    from voxloop.stores.catalog import Reader
    from voxloop.workspace import Workspace

PEAKS_PER_S = 100  # of a drawn waveform


@dataclass(frozen=True, kw_only=True, slots=True)
class Entry:
    """An utterance with what a listing shows of it."""

    item: Item
    ingested: float  # seconds since the epoch
    trained: bool  # a model was trained on it, here or before it was imported
    held_by: str | None  # the reviewer who works on it now
    decisions: tuple[Decision, ...] | None = None  # None: not read

    def as_dict(self) -> dict[str, Any]:
        """The entry's fields; with its decisions, also its words, texts and history."""
        item, found = self.item, self.item.utterance
        machine, reference = item.hypothesis, item.reference
        told: dict[str, Any] = {
            "id": item.number,
            "transcript": item.text,
            "is_reviewed": found.status == "reviewed",
            "is_trained": self.trained,
            "timestamp": datetime.fromtimestamp(self.ingested, UTC).strftime("%Y-%m-%d %H:%M:%S"),
            "status": found.status,
            "original": machine.text if machine else "",
            "confidence": machine.confidence if machine else None,
            "speaker": found.speaker,
            "language": found.language,
            "duration": found.duration,
            "start": seconds(found.start),
            "file": item.file,
            "utterance": found.id,
            "recording": found.recording,
            "reviewed_by": reference.by if reference else None,
            "reviewed_at": reference.created if reference else None,
            "quality": found.quality,
            "warnings": [{"kind": w.kind, "detail": w.detail, "advice": ADVICE[w.kind]} for w in item.warnings],
            "held_by": self.held_by,
            "etag": item.state,
            "cursor": item.cursor,
        }
        if self.decisions is not None:
            told |= {
                "words": machine.words if machine else (),
                "machine": {"id": machine.id, "by": machine.by, "kind": machine.kind} if machine else None,
                "versions": [
                    {"id": one.id, "kind": one.kind, "text": one.text, "by": one.by, "created": one.created}
                    for one in item.versions
                ],
                "history": self.decisions,
            }
        return told


@dataclass(frozen=True, kw_only=True, slots=True)
class EntryPage:
    """A page of entries."""

    entries: tuple[Entry, ...]
    next: str | None  # the cursor of the next page; None: this is the last one


def entries(ws: Workspace, *, where: Filters = EVERYTHING, limit: int = 50, after: str | None = None) -> EntryPage:
    """One page of entries, those that most need review first; `after` is the cursor of the previous page."""
    found = page(ws, where=where, limit=limit, after=after)
    with ws.read() as reader:
        return EntryPage(entries=tuple(_shown(reader, found.items)), next=found.after)


def entry(ws: Workspace, id: str) -> Entry:
    """One entry with its texts and history, by its number. Raises UnknownRecord, also if it was deleted."""
    with ws.read() as reader:
        item = item_of(reader, reader.get(Utterance, id))
        if item.utterance.status == "deleted":
            raise UnknownRecord(f"entry {item.number} was deleted")
        (shown,) = _shown(reader, [item])
        decisions = tuple(history_of(reader, item.utterance.id))
    return Entry(
        item=shown.item,
        ingested=shown.ingested,
        trained=shown.trained,
        held_by=shown.held_by,
        decisions=decisions,
    )


def entry_wav(ws: Workspace, id: str) -> bytes:
    """An entry's audio as a WAV file, 16 kHz mono PCM. Raises UnknownRecord."""
    return wav_bytes(to_pcm16(utterance_audio(ws, entry(ws, id).item.utterance)))


def peaks(ws: Workspace, id: str) -> list[int]:
    """The loudest sample of every 10 ms of an entry's audio, 0 to 127: what a drawn waveform needs."""
    waveform = utterance_audio(ws, entry(ws, id).item.utterance)  # (S,)
    width = SAMPLE_RATE // PEAKS_PER_S
    padded = np.zeros(-(-max(len(waveform), 1) // width) * width, np.float32)
    padded[: len(waveform)] = np.abs(waveform)
    return [int(level) for level in np.minimum(np.rint(127 * padded.reshape(-1, width).max(1)), 127)]


def speakers(ws: Workspace) -> list[str]:
    """Every speaker that an utterance names, in alphabetical order."""
    speaker = tables.utterance.c.speaker
    with ws.read() as reader:
        found = reader.connection.execute(sa.select(speaker).where(speaker.is_not(None)).distinct()).scalars()
        return sorted(found)


def languages(ws: Workspace) -> list[str]:
    """Every language that an utterance names, in alphabetical order."""
    language = tables.utterance.c.language
    with ws.read() as reader:
        found = reader.connection.execute(sa.select(language).where(language.is_not(None)).distinct()).scalars()
        return sorted(found)


def _shown(reader: Reader, items: Sequence[Item]) -> list[Entry]:
    u, turn = tables.utterance.c, tables.review_turn.c
    ids = [item.utterance.id for item in items]
    known = set(reader.connection.execute(trained(ids)).scalars())
    dated = reader.connection.execute(sa.select(u.id, u.ingested).where(u.id.in_(ids)))
    ingested = {row.id: row.ingested for row in dated}
    holding = sa.select(turn.utterance, turn.by).where(turn.until > now_s(), turn.utterance.in_(ids))
    held = {row.utterance: row.by for row in reader.connection.execute(holding)}
    return [
        Entry(
            item=item,
            ingested=ingested[item.utterance.id],
            trained=item.utterance.id in known,
            held_by=held.get(item.utterance.id),
        )
        for item in items
    ]
