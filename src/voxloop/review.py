"""People's corrections: what to look at first, and every version kept."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ulid import ULID

from voxloop.errors import ConflictError, UsageError
from voxloop.records import Transcript, Utterance, UtteranceStatus
from voxloop.stores import catalog as tables
from voxloop.transcripts import latest

if TYPE_CHECKING:
    from voxloop.stores.catalog import Reader
    from voxloop.workspace import Workspace


@dataclass(frozen=True, kw_only=True, slots=True)
class Item:
    """An utterance with its texts, as a reviewer sees it."""

    utterance: Utterance
    reference: Transcript | None
    hypothesis: Transcript | None  # the clean text where there is one
    versions: tuple[Transcript, ...]  # every text, oldest first

    @property
    def text(self) -> str:
        """The text that counts now."""
        shown = self.reference or self.hypothesis
        return shown.text if shown else ""


def items(
    ws: Workspace, *, status: UtteranceStatus | None = None, speaker: str | None = None, limit: int = 50
) -> list[Item]:
    """Utterances to review, the least certain first."""
    where = []
    if status:
        where.append(tables.utterance.c.status == status)
    if speaker:
        where.append(tables.utterance.c.speaker == speaker)
    with ws.read() as reader:
        found = reader.all(
            Utterance, *where, order=(tables.utterance.c.priority.desc(), tables.utterance.c.id), limit=limit
        )
        return [_item(reader, utterance) for utterance in found]


def show(ws: Workspace, utterance: str) -> Item:
    """One utterance with all its texts. Raises UnknownRecord."""
    with ws.read() as reader:
        return _item(reader, reader.get(Utterance, utterance))


def save(ws: Workspace, utterance: str, text: str, *, by: str, seen: str | None = None) -> Transcript:
    """Keep a person's text as the reference.

    `seen` is the id of the reference that the reviewer had before them (empty: none);
    where another has been saved since, ConflictError is raised and nothing is written.
    """
    text = " ".join(text.split())
    if not text:
        raise UsageError("the text is empty: reject the utterance if nothing is said in it")
    with ws.completion() as tx:
        item = _item(tx, tx.get(Utterance, utterance))
        if seen is not None and seen != (item.reference.id if item.reference else ""):
            saved = f"{item.reference.by!r} saved {item.reference.text!r}" if item.reference else "the text was removed"
            raise ConflictError(f"{item.utterance.id} changed while you worked on it: {saved}; look again, then save")
        if item.reference and item.reference.text == text and item.reference.by == by:
            return item.reference
        reference = Transcript(id=str(ULID()), utterance=item.utterance.id, kind="reference", text=text, by=by)
        tx.add(reference)
        tx.change(Utterance, item.utterance.id, status="reviewed")
        tx.emit(
            "utterance.reviewed", item.utterance.id, key=reference.id, payload={"transcript": reference.id, "by": by}
        )
        tx.emit("dataset.new_sample", item.utterance.id, key=reference.id)
        return tx.get(Transcript, reference.id)


def accept(ws: Workspace, utterance: str, *, by: str) -> Transcript:
    """Take the machine's text as the reference, as a person who listened."""
    item = show(ws, utterance)
    if item.hypothesis is None:
        raise UsageError(f"{item.utterance.id} has no machine text to accept: save a text instead")
    return save(ws, item.utterance.id, item.hypothesis.text, by=by)


def reject(ws: Workspace, utterance: str, *, reason: str, by: str) -> Utterance:
    """Leave an utterance out of every dataset to come. A later save takes it back."""
    with ws.completion() as tx:
        found = tx.get(Utterance, utterance)
        tx.change(Utterance, found.id, status="rejected")
        tx.emit("utterance.reviewed", found.id, key=str(ULID()), payload={"rejected": True, "reason": reason, "by": by})
        return tx.get(Utterance, found.id)


def _item(reader: Reader, utterance: Utterance) -> Item:
    versions: Sequence[Transcript] = reader.all(Transcript, tables.transcript.c.utterance == utterance.id)
    return Item(
        utterance=utterance,
        reference=latest(versions, "reference"),
        hypothesis=latest(versions, "clean") or latest(versions, "hypothesis"),
        versions=tuple(versions),
    )
