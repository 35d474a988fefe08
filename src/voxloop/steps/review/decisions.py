"""Reviewers' decisions. Texts and decisions are only ever added; undoing adds another decision.

Every function is one transaction with its events. It locks the utterance's row first, so that
if two people decide at once, the second sees the first one's decision.
"""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import sqlalchemy as sa
from ulid import ULID

from voxloop.errors import ConflictError, UnknownRecord, UsageError
from voxloop.records import Transcript, TranscriptKind, Utterance, UtteranceStatus
from voxloop.speech.languages import language_code
from voxloop.steps.review.items import BATCH, EVERYTHING, Filters, Item, item_of, walk
from voxloop.steps.review.queue import reviewer, skip_until
from voxloop.stores import tables
from voxloop.stores.tables import now_s

if TYPE_CHECKING:
    from voxloop.stores.catalog import Reader
    from voxloop.workspace import Transaction, Workspace

DecisionKind = Literal["save", "accept", "bulk accept", "reject", "skip", "replace", "delete", "import", "undo"]

METADATA = "metadata"  # author of texts that came with the recordings; replacing them loses nobody's work

decision = tables.review_decision
turn = tables.review_turn


@dataclass(frozen=True, kw_only=True, slots=True)
class Decision:
    """A reviewer's decision about an utterance. Never changed."""

    seq: int
    created: float
    utterance: str
    kind: DecisionKind
    by: str
    before: UtteranceStatus  # the utterance's previous status
    transcript: str | None = None  # id of the new reference
    replaced: str | None = None  # id of the reference withdrawn for it, if the new one has an earlier time
    reason: str | None = None
    seconds: float | None = None  # from taking the utterance to deciding
    undoes: int | None = None  # seq of the undone decision


@dataclass(frozen=True, kw_only=True, slots=True)
class ItemHistory:
    """An utterance with its texts and every decision on it."""

    item: Item
    decisions: tuple[Decision, ...]  # oldest first

    def as_dict(self) -> dict[str, Any]:
        """The item's fields and its decisions."""
        return self.item.as_dict() | {"decisions": self.decisions}


@dataclass(frozen=True, kw_only=True, slots=True)
class BulkAccepted:
    """The result of accepting everything above a confidence, or with `dry_run`, the expected result."""

    above: float
    dry_run: bool
    accepted: int
    duration: float  # seconds of audio
    warned: int  # above the confidence, but left because of warnings
    taken: int  # above the confidence, but reserved for a reviewer


def save(
    ws: Workspace, utterance: str, text: str, *, by: str, seen: str | None = None, seconds: float | None = None
) -> Transcript:
    """Save a person's text as the reference.

    `seen` is the id of the reference that the reviewer saw (empty: none), or the item's `state`.
    By default, it is the one they were shown when they took the utterance; if they did not take
    it, there must be no other person's text. If something else has been saved since, raises
    ConflictError and writes nothing. `seconds` is the time spent; by default, since taking it.
    """
    text = _text(text)
    with ws.completion() as tx:
        item = opened(tx, utterance)
        # Saving the same text twice, for instance by a double click, is neither a conflict nor a new version.
        same = item.reference and item.reference.text == text and item.reference.by == reviewer(by)
        if item.reference and same and item.utterance.status == "reviewed":
            return item.reference
        check_seen(tx, item, by=reviewer(by), seen=seen)
        return write_reference(tx, item, text, by=reviewer(by), kind="save", seconds=seconds)


def confirm(
    ws: Workspace, utterance: str, *, by: str, seen: str | None = None, seconds: float | None = None
) -> Transcript:
    """Accept the current text as it stands, a person's under this reviewer's name. `seen` as in `save`."""
    with ws.completion() as tx:
        item = opened(tx, utterance)
        check_seen(tx, item, by=reviewer(by), seen=seen)
        shown = item.reference or item.hypothesis
        if shown is None:
            raise UsageError(f"utterance {item.number} has no text to accept. Save a text instead.")
        if item.reference and item.reference.by == reviewer(by) and item.utterance.status == "reviewed":
            return item.reference
        kind: DecisionKind = "save" if item.reference else "accept"
        return write_reference(tx, item, _text(shown.text), by=reviewer(by), kind=kind, seconds=seconds)


def accept(
    ws: Workspace, utterance: str, *, by: str, seen: str | None = None, transcript: str | None = None
) -> Transcript:
    """Accept the machine's text as the reference, after listening to it.

    `transcript` is the id of the accepted text; by default, the one shown when the utterance
    was taken, or else the newest. `seen` as in `save`.
    """
    with ws.completion() as tx:
        item = opened(tx, utterance)
        check_seen(tx, item, by=reviewer(by), seen=seen)
        mine = _turn(tx, item.utterance.id, reviewer(by))
        wanted = transcript or (mine.shown if mine else None) or (item.hypothesis.id if item.hypothesis else None)
        heard = {version.id: version for version in item.versions if version.kind in ("clean", "hypothesis")}
        if wanted is None or wanted not in heard:
            found = f"no machine text {wanted!r}" if wanted else "no machine text to accept"
            raise UsageError(f"utterance {item.number} has {found}. Save a text instead.")
        return write_reference(tx, item, _text(heard[wanted].text), by=reviewer(by), kind="accept")


def reject(
    ws: Workspace, utterance: str, *, reason: str, by: str, seen: str | None = None, seconds: float | None = None
) -> Utterance:
    """Exclude an utterance from all future datasets; saving a text later reverses this. `seen` as in `save`."""
    if not reason.strip():
        raise UsageError("the reason is empty. Say why the utterance must not be used.")
    with ws.completion() as tx:
        item = opened(tx, utterance)
        check_seen(tx, item, by=reviewer(by), seen=seen)
        write_rejection(tx, item, reason=reason.strip(), by=reviewer(by), seconds=seconds)
        return tx.get(Utterance, item.utterance.id)


def delete(ws: Workspace, utterance: str, *, by: str, seen: str | None = None) -> Decision:
    """Take an utterance out of every list and every later dataset. `undo` brings it back within `review_undo_s`.

    After that, `maintenance.removal.erase_deleted` erases its audio and texts. `seen` as in `save`.
    """
    with ws.completion() as tx:
        item = opened(tx, utterance)
        check_seen(tx, item, by=reviewer(by), seen=seen)
        tx.change(Utterance, item.utterance.id, status="deleted")
        noted = note(tx, item, kind="delete", by=reviewer(by))
        _give_back(tx, item.utterance.id)
        payload = {"deleted": True, "by": noted.by}
        tx.emit("utterance.reviewed", item.utterance.id, key=f"{item.utterance.id}:{noted.seq}", payload=payload)
        return noted


def describe(
    ws: Workspace,
    utterance: str,
    *,
    by: str,
    speaker: str | None = None,
    language: str | None = None,
    seen: str | None = None,
) -> Utterance:
    """Correct an utterance's speaker or language; None keeps a field, an empty one clears it. `seen` as in `save`."""
    given: dict[str, str | None] = {}
    if speaker is not None:
        given["speaker"] = unicodedata.normalize("NFC", " ".join(speaker.split())) or None
    if language is not None:
        given["language"] = language_code(language) or None
    with ws.completion() as tx:
        item = opened(tx, utterance)
        if seen is not None:
            check_seen(tx, item, by=reviewer(by), seen=seen)
        before = {name: getattr(item.utterance, name) for name in given}
        if before != given:
            tx.change(Utterance, item.utterance.id, **given)
            payload = {"by": reviewer(by), "before": before, "after": given}
            tx.emit("utterance.described", item.utterance.id, key=str(ULID()), payload=payload)
        return tx.get(Utterance, item.utterance.id)


def skip(ws: Workspace, utterance: str, *, by: str, seconds: float | None = None) -> Decision:
    """Put an utterance off for `review_skip_s` seconds, or until nothing else is left to review."""
    with ws.completion() as tx:
        item = opened(tx, utterance)
        seconds = _seconds(tx, item.utterance.id, reviewer(by)) if seconds is None else seconds
        skip_until(tx, item.utterance.id, by=reviewer(by), seconds=ws.settings.review_skip_s)
        return note(tx, item, kind="skip", by=reviewer(by), seconds=seconds)


def undo(ws: Workspace, utterance: str, *, by: str, decision: int | None = None) -> Decision:
    """Undo the last decision on an utterance; called again, the one before it.

    The decision's text is kept as `withdrawn`, and the previous state is restored. `decision` is
    the seq of the decision to undo; by default, the last one, which must be the reviewer's own.
    Raises ConflictError if the last decision is a different one.
    """
    with ws.completion() as tx:
        item = item_of(tx, tx.get(Utterance, utterance))
        made = history_of(tx, item.utterance.id)
        undone = {one.undoes for one in made}
        last = next((one for one in reversed(made) if one.kind != "undo" and one.seq not in undone), None)
        if last is None:
            raise UsageError(f"utterance {item.number} has no decision to undo")
        if decision is not None and decision != last.seq:
            raise ConflictError(
                f"decision {decision} is not the last one. The last is {last.seq}: {last.kind} by {last.by!r}."
            )
        if decision is None and last.by != reviewer(by):
            raise ConflictError(
                f"the last decision on utterance {item.number} is not yours: {last.kind} by {last.by!r}. "
                f"To undo it anyway, pass --decision {last.seq}."
            )
        if last.transcript:
            _become(tx, last.transcript, "withdrawn")
        if last.replaced:
            _become(tx, last.replaced, "reference")
        status = "transcribed" if last.before == "new" and item.hypothesis else last.before
        if last.kind == "skip":
            tx.connection.execute(sa.update(turn).where(turn.c.utterance == item.utterance.id).values(skipped=0.0))
        else:
            tx.change(Utterance, item.utterance.id, status=status)
        noted = note(tx, item, kind="undo", by=reviewer(by), undoes=last.seq)
        payload = {"undone": last.kind, "transcript": last.transcript, "by": noted.by}
        tx.emit("utterance.reviewed", item.utterance.id, key=f"{item.utterance.id}:{noted.seq}", payload=payload)
        return noted


def bulk_accept(
    ws: Workspace,
    *,
    above: float,
    by: str,
    where: Filters = EVERYTHING,
    warned: bool = False,
    dry_run: bool = False,
    progress: Callable[[float, float | None], None] | None = None,
) -> BulkAccepted:
    """Accept the machine's text of every utterance with a confidence of `above` or more; with `dry_run`, only count.

    Utterances with warnings are left out unless `warned` is true; those reserved for a reviewer
    always are. Works in batches: if interrupted, accepted texts stay and the same call continues.
    """
    by = reviewer(by)
    if not 0 < above <= 1:
        raise UsageError(f"above is {above}. Give a confidence above 0 and at most 1.")
    where.check_waiting()
    accepted = left = held = 0
    duration = 0.0
    after: str | None = None
    while True:
        batch, after = _confident(ws, where, above, after)
        free = []
        for item, busy in batch:
            if busy and busy != by:
                held += 1
            elif (item.warnings and not warned) or not item.text.strip():
                left += 1
            else:
                free.append(item)
        if dry_run:
            accepted += len(free)
            duration += sum(item.utterance.duration for item in free)
        elif free:
            with ws.transaction() as tx:
                for item in free:
                    now = opened(tx, item.utterance.id)
                    if now.utterance.status == "transcribed" and now.hypothesis == item.hypothesis and now.hypothesis:
                        write_reference(tx, now, _text(now.hypothesis.text), by=by, kind="bulk accept")
                        accepted += 1
                        duration += now.utterance.duration
        if progress:
            progress(accepted, None)
        if after is None:
            return BulkAccepted(
                above=above, dry_run=dry_run, accepted=accepted, duration=duration, warned=left, taken=held
            )


def history(ws: Workspace, utterance: str) -> list[Decision]:
    """Every decision on an utterance, oldest first. Raises UnknownRecord."""
    with ws.read() as reader:
        return history_of(reader, reader.get(Utterance, utterance).id)


def item_history(ws: Workspace, utterance: str) -> ItemHistory:
    """One utterance with all its texts and every decision on it. Raises UnknownRecord."""
    with ws.read() as reader:
        item = item_of(reader, reader.get(Utterance, utterance))
        return ItemHistory(item=item, decisions=tuple(history_of(reader, item.utterance.id)))


# Shared by the decisions and the import ------------------------------------------------------------------------------


def write_reference(
    tx: Transaction,
    item: Item,
    text: str,
    *,
    by: str,
    kind: DecisionKind,
    id: str | None = None,
    created: float = 0.0,
    seconds: float | None = None,
) -> Transcript:
    """Add a text as the current reference, with its decision and events."""
    current = item.reference
    replaced = None
    if current and created and created <= current.created:
        # The newest reference is the current one. An imported text keeps its time, so a newer one must be withdrawn.
        _become(tx, current.id, "withdrawn")
        replaced = current.id
    elif current and not created:
        now = tx.now()
        # Keeps the order of two texts saved in the same clock tick.
        created = now if now > current.created else math.nextafter(current.created, math.inf)
    reference = Transcript(
        id=id or str(ULID()), utterance=item.utterance.id, kind="reference", text=text, by=by, created=created
    )
    tx.add(reference)
    tx.change(Utterance, item.utterance.id, status="reviewed")
    note(
        tx,
        item,
        kind=kind,
        by=by,
        transcript=reference.id,
        replaced=replaced,
        seconds=_seconds(tx, item.utterance.id, by) if seconds is None else seconds,
    )
    _give_back(tx, item.utterance.id)
    payload = {"transcript": reference.id, "by": by}
    tx.emit("utterance.reviewed", item.utterance.id, key=reference.id, payload=payload)
    return tx.get(Transcript, reference.id)


def write_rejection(tx: Transaction, item: Item, *, reason: str, by: str, seconds: float | None = None) -> Decision:
    """Mark an utterance as rejected, with its decision and event."""
    tx.change(Utterance, item.utterance.id, status="rejected")
    seconds = _seconds(tx, item.utterance.id, by) if seconds is None else seconds
    noted = note(tx, item, kind="reject", by=by, reason=reason, seconds=seconds)
    _give_back(tx, item.utterance.id)
    payload = {"rejected": True, "reason": reason, "by": by}
    tx.emit("utterance.reviewed", item.utterance.id, key=f"{item.utterance.id}:{noted.seq}", payload=payload)
    return noted


def locked(tx: Transaction, id: str) -> Item:
    """Get an utterance by its full id and lock its row, so that its texts cannot change. Raises UnknownRecord."""
    utterance = tx.find(Utterance, id)
    if utterance is None:
        raise UnknownRecord(f"no utterance {id!r} in this workspace. List utterances with `voxloop review list`.")
    return item_of(tx, utterance)


def opened(tx: Transaction, utterance: str) -> Item:
    """Get an utterance by its id, which may be short, and lock its row. Raises ConflictError if it was deleted."""
    item = item_of(tx, tx.get(Utterance, utterance))
    if item.utterance.status == "deleted":
        raise ConflictError(f"utterance {item.number} was deleted. Undo that first.")
    return item


def check_seen(tx: Transaction, item: Item, *, by: str, seen: str | None) -> None:
    """Make sure that the current reference is the one the reviewer saw. Raises ConflictError."""
    current = item.reference
    if seen is None:
        mine = _turn(tx, item.utterance.id, by)
        if mine is not None:
            seen = mine.seen or ""
        elif current is None or current.by in (by, METADATA):
            return
        else:
            raise ConflictError(
                f"utterance {item.number} has a text that you may not have seen: {current.by!r} saved "
                f"{current.text!r}. "
                f"To replace it, pass --seen {current.id}."
            )
    if seen not in (item.version, item.state):
        saved = f"{current.by!r} saved {current.text!r}" if current else "the text was withdrawn"
        raise ConflictError(
            f"utterance {item.number} changed while you were reviewing it: {saved}. Check it and save again."
        )


def _text(text: str) -> str:
    text = " ".join(text.split())
    if not text:
        raise UsageError("the text is empty. If nothing is said, reject the utterance.")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise UsageError(f"the text is not valid Unicode: {error}") from error
    return text


def _turn(tx: Reader, utterance: str, by: str) -> sa.Row[Any] | None:
    """This reviewer's reservation, even if it has expired, as long as nobody else has taken the utterance."""
    return tx.connection.execute(sa.select(turn).where(turn.c.utterance == utterance, turn.c.by == by)).first()


def _seconds(tx: Reader, utterance: str, by: str) -> float | None:
    mine = _turn(tx, utterance, by)
    return max(tx.now() - mine.taken, 0.0) if mine else None


def _become(tx: Transaction, transcript: str, kind: TranscriptKind) -> None:
    """Withdraw or reinstate a reference; its text, author and time stay."""
    table = tables.transcript
    tx.connection.execute(sa.update(table).where(table.c.id == transcript).values(kind=kind))


def _give_back(tx: Transaction, utterance: str) -> None:
    tx.connection.execute(sa.delete(turn).where(turn.c.utterance == utterance))


def note(tx: Transaction, item: Item, *, kind: DecisionKind, by: str, **values: Any) -> Decision:
    """Store a decision."""
    row: dict[str, Any] = {
        "created": tx.now(),
        "utterance": item.utterance.id,
        "kind": kind,
        "by": by,
        "before": item.utterance.status,
        **values,
    }
    (seq,) = tx.connection.execute(sa.insert(decision).values(row)).inserted_primary_key or (0,)
    return Decision(seq=int(seq), **row)


def history_of(reader: Reader, utterance: str) -> list[Decision]:
    """The decisions on an utterance, given by its full id, oldest first."""
    rows = reader.connection.execute(
        sa.select(decision).where(decision.c.utterance == utterance).order_by(decision.c.seq)
    )
    return [Decision(**row._mapping) for row in rows]


def _confident(
    ws: Workspace, where: Filters, above: float, after: str | None
) -> tuple[list[tuple[Item, str | None]], str | None]:
    """The next batch of waiting items above a confidence, each with its reviewer if reserved, and the next cursor."""
    floor = max(above, where.min_confidence or 0.0)
    wanted = replace(where, status="transcribed", min_confidence=floor)
    found: list[Item] = []
    with ws.read() as reader:
        for item in walk(reader, wanted, after=after):
            found.append(item)
            if len(found) == BATCH:
                break
        rows = reader.connection.execute(
            sa.select(turn.c.utterance, turn.c.by).where(
                turn.c.until > now_s(), turn.c.utterance.in_([item.utterance.id for item in found])
            )
        )
        hands = {row.utterance: row.by for row in rows}
    return [(item, hands.get(item.utterance.id)) for item in found], found[-1].cursor if len(found) == BATCH else None
