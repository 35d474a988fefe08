"""The review queue: its order, and reservations so that no two reviewers get the same utterance."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import islice
from operator import itemgetter
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite
from ulid import ULID

from voxloop.errors import ConflictError, UsageError
from voxloop.records import Utterance
from voxloop.steps import similarity
from voxloop.steps.review import requests
from voxloop.steps.review.items import EVERYTHING, Filters, Item, conditions_of, item_of, walk
from voxloop.stores import tables
from voxloop.stores.tables import now_s

if TYPE_CHECKING:
    from collections.abc import Sequence

    from voxloop.stores.catalog import Reader, Writer
    from voxloop.workspace import Workspace

turn = tables.review_turn

CANDIDATES = 8  # utterances to try before querying again, as other reviewers may take some meanwhile
PRIORITISED = "review.prioritised"
ANEW_AFTER = 5  # the queue is reordered after this many more reviewed or waiting utterances,
ANEW_SHARE = 0.1  # or this fraction of them, whichever is more


@dataclass(frozen=True, kw_only=True, slots=True)
class Turn:
    """An utterance reserved for one reviewer for a limited time."""

    item: Item
    by: str
    taken: float  # seconds since the epoch
    until: float

    def as_dict(self) -> dict[str, Any]:
        """The item's fields, the reviewer and the time of the reservation."""
        return self.item.as_dict() | {"by": self.by, "taken": self.taken, "until": self.until}


@dataclass(frozen=True, kw_only=True, slots=True)
class Ranking:
    """The result of reordering the queue."""

    waiting: int  # utterances in the queue
    moved: int  # utterances whose priority changed
    reviewed: int
    without_vector: int  # waiting but not indexed yet; treated as completely novel


def reviewer(by: str) -> str:
    """Check and return a reviewer's name. Raises UsageError."""
    if not by.strip():
        raise UsageError("the reviewer has no name. Pass --by (`by` in Python) or set the variable USER.")
    return by.strip()


def next(ws: Workspace, *, by: str, where: Filters = EVERYTHING) -> Turn | None:
    """Take the first waiting utterance that nobody has reserved; None if there is none.

    It is reserved for `review_lease_s` seconds by the database's clock; a decision, `release` or
    expiry ends the reservation. Skipped utterances come back after `review_skip_s` seconds, or
    when nothing else is left. A compare-and-swap ensures that two reviewers never hold the same
    utterance. Raises UsageError for a status that no waiting utterance can have.
    """
    by = reviewer(by)
    where.check_waiting()
    lease_s = ws.settings.review_lease_s
    while True:
        with ws.read() as reader:
            ids = _candidates(reader, where)
        if not ids:
            return None
        for id in ids:
            with ws.transaction() as tx:
                utterance = tx.find(Utterance, id)
                if utterance is None or utterance.status != "transcribed":
                    continue
                item = item_of(tx, utterance)
                values = {
                    "by": by,
                    "taken": now_s(),
                    "until": now_s() + lease_s,
                    "seen": item.version,
                    "shown": item.hypothesis.id if item.hypothesis else None,
                }
                if _upsert(tx, id, values, only_if=turn.c.until <= now_s()):
                    row = tx.connection.execute(sa.select(turn).where(turn.c.utterance == id)).one()
                    return Turn(item=item, by=by, taken=row.taken, until=row.until)


def take(ws: Workspace, utterance: str, *, by: str) -> Turn:
    """Reserve one utterance, or extend one's own reservation. Raises ConflictError if another reviewer holds it."""
    by = reviewer(by)
    with ws.transaction() as tx:
        item = item_of(tx, tx.get(Utterance, utterance))
        id = item.utterance.id
        if item.utterance.status == "deleted":
            raise ConflictError(f"utterance {item.number} was deleted. Undo that first.")
        values = {
            "by": by,
            "taken": now_s(),
            "until": now_s() + ws.settings.review_lease_s,
            "seen": item.version,
            "shown": item.hypothesis.id if item.hypothesis else None,
        }
        _upsert(tx, id, values, only_if=sa.or_(turn.c.until <= now_s(), turn.c.by == by))
        row = tx.connection.execute(sa.select(turn).where(turn.c.utterance == id)).one()
        if row.by != by:
            raise ConflictError(f"{row.by} is reviewing utterance {item.number} now")
        return Turn(item=item, by=by, taken=row.taken, until=row.until)


def held(ws: Workspace, *, by: str | None = None) -> list[Turn]:
    """The current reservations of one or all reviewers, oldest first."""
    mine = [turn.c.by == by] if by is not None else []
    with ws.read() as reader:
        rows = reader.connection.execute(
            sa.select(turn).where(turn.c.until > now_s(), *mine).order_by(turn.c.taken, turn.c.utterance)
        ).all()
        return [
            Turn(
                item=item_of(reader, reader.get(Utterance, row.utterance)), by=row.by, taken=row.taken, until=row.until
            )
            for row in rows
        ]


def release(ws: Workspace, utterance: str, *, by: str) -> bool:
    """Release a reservation without a decision. Return False if this reviewer does not hold it."""
    with ws.completion() as tx:
        mine = sa.and_(turn.c.utterance == utterance, turn.c.by == reviewer(by), turn.c.until > now_s())
        return bool(tx.connection.execute(sa.update(turn).where(mine).values(until=0.0, by=None)).rowcount)


def renew(ws: Workspace, utterance: str, *, by: str) -> bool:
    """Extend a reservation while somebody works on it. Return False if somebody else holds it by now."""
    until = now_s() + ws.settings.review_lease_s
    with ws.completion() as tx:
        mine = sa.and_(turn.c.utterance == utterance, turn.c.by == reviewer(by))
        return bool(tx.connection.execute(sa.update(turn).where(mine).values(until=until)).rowcount)


def skip_until(tx: Writer, utterance: str, *, by: str, seconds: float) -> None:
    """Hide an utterance for a while and release this reviewer's reservation; another reviewer's stays."""
    _upsert(tx, utterance, {"skipped": now_s() + seconds})
    tx.connection.execute(
        sa.update(turn).where(turn.c.utterance == utterance, turn.c.by == by).values(until=0.0, by=None)
    )


def _candidates(reader: Reader, where: Filters) -> list[str]:
    """The first waiting utterances that nobody has reserved; skipped ones only if there are no others."""
    table = tables.utterance
    taken = sa.select(turn.c.utterance).where(turn.c.until > now_s())
    skipped = sa.select(turn.c.utterance).where(turn.c.skipped > now_s())
    waiting = (table.c.status == "transcribed", table.c.id.not_in(taken))
    dated = where.since is not None or where.until is not None
    for also in ((*waiting, table.c.id.not_in(skipped)), (*waiting, table.c.id.in_(skipped))):
        if where.sifts or dated:
            found = [item.utterance.id for item in islice(walk(reader, where, also=also), CANDIDATES)]
        else:
            statement = sa.select(table.c.id).where(*conditions_of(where), *also)
            first = statement.order_by(table.c.priority.desc(), table.c.id).limit(CANDIDATES)
            found = list(reader.connection.execute(first).scalars())
        if found:
            return found
    return []


def _upsert(
    tx: Writer, utterance: str, values: dict[str, Any], *, only_if: sa.ColumnElement[bool] | None = None
) -> bool:
    """Write a reservation; replace an existing one only if it meets `only_if`. Return whether it was written."""
    insert = postgresql.insert if tx.connection.dialect.name == "postgresql" else sqlite.insert
    fresh = {"utterance": utterance, "taken": 0.0, "until": 0.0, "skipped": 0.0, **values}
    statement = (
        insert(turn)
        .values(fresh)
        .on_conflict_do_update(index_elements=["utterance"], set_=values, where=only_if)
        .returning(turn.c.utterance)
    )
    return tx.connection.execute(statement).first() is not None


# The order -----------------------------------------------------------------------------------------------------------


def prioritise(ws: Workspace) -> Ranking:
    """Reorder the waiting utterances: the least certain and the least similar to reviewed ones come first.

    priority = (1 - confidence) x (1 + novelty) / 2, from 0 to 1. Novelty is 1 minus the highest
    cosine similarity to a reviewed utterance (`similarity.novelty`). It is 1 if nothing is
    reviewed or the utterance has no vector yet, which makes the priority comparable with the
    initial 1 - confidence of new utterances. Utterances of which the model is certain stay last,
    however novel; of equally uncertain utterances, the most novel has twice the priority.
    Utterances whose given text a dataset left out as doubtful have priority 1; those that an
    automatic run asks for come before all others.
    """
    table = tables.utterance
    with ws.read() as reader:
        rows = reader.connection.execute(
            sa.select(table.c.id, table.c.priority, table.c.confidence, table.c.doubt).where(
                table.c.status == "transcribed"
            )
        ).all()
        reviewed = _reviewed(reader)
        asked = set(reader.connection.execute(requests.requested()).scalars())
        known = list(reader.connection.execute(sa.select(table.c.id).where(table.c.status == "reviewed")).scalars())
    novelty = similarity.novelty(ws, [row[0] for row in rows], known)
    changes = []
    for id, before, confidence, doubt in rows:
        priority = 1.0 if doubt else (1.0 - (confidence or 0.0)) * (1.0 + novelty.get(id, 1.0)) / 2
        if id in asked:
            priority = requests.FIRST
        if abs(priority - before) > 1e-6:
            changes.append({"ranked": id, "found": priority})
    ranking = Ranking(waiting=len(rows), moved=len(changes), reviewed=reviewed, without_vector=len(rows) - len(novelty))
    changes.sort(key=itemgetter("ranked"))  # locked in the same order as by other writers
    with ws.completion() as tx:
        if changes:
            tx.connection.execute(
                sa.update(table).where(table.c.id == sa.bindparam("ranked")).values(priority=sa.bindparam("found")),
                changes,
            )
        tx.emit(PRIORITISED, "queue", key=str(ULID()), payload={"reviewed": reviewed, "waiting": len(rows)})
    return ranking


def rank(ws: Workspace, subjects: Sequence[str] = ()) -> Ranking | None:
    """The worker's step `rank`: reorder the queue if enough was reviewed or added; otherwise return None."""
    if _is_due(ws):
        return prioritise(ws)
    with ws.completion():
        return None


def _is_due(ws: Workspace) -> bool:
    event = tables.event
    with ws.read() as reader:
        reviewed = _reviewed(reader)
        waiting = reader.count(Utterance, tables.utterance.c.status == "transcribed")
        last = reader.connection.execute(
            sa.select(event.c.payload).where(event.c.type == PRIORITISED).order_by(event.c.seq.desc()).limit(1)
        ).scalar() or {"reviewed": 0, "waiting": 0}
    if abs(reviewed - last["reviewed"]) >= max(ANEW_AFTER, ANEW_SHARE * last["reviewed"]):
        return True
    # With nothing reviewed, everything is novel and the order is by confidence, which is also the initial order.
    return reviewed > 0 and waiting - last["waiting"] >= max(ANEW_AFTER, ANEW_SHARE * last["waiting"])


def _reviewed(reader: Reader) -> int:
    return reader.count(Utterance, tables.utterance.c.status == "reviewed")
