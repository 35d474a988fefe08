"""Who reviews what next: the order of the queue, and turns that no two reviewers share."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import islice
from operator import itemgetter
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite
from ulid import ULID

from voxloop.errors import UsageError
from voxloop.records import Utterance
from voxloop.steps import similarity
from voxloop.steps.review.items import EVERYTHING, Filters, Item, conditions_of, item_of, walk
from voxloop.stores import tables
from voxloop.stores.tables import now_s

if TYPE_CHECKING:
    from collections.abc import Sequence

    from voxloop.stores.catalog import Reader, Writer
    from voxloop.workspace import Workspace

turn = tables.review_turn

CANDIDATES = 8  # utterances looked at before asking again, as other reviewers take some of them meanwhile
PRIORITISED = "review.prioritised"
ANEW_AFTER = 5  # the order is found anew after so many more reviewed utterances, or so many new ones that wait,
ANEW_SHARE = 0.1  # or after this share of them, whichever is more: seldom where there are many


@dataclass(frozen=True, kw_only=True, slots=True)
class Turn:
    """An utterance handed to one reviewer, and kept from the others for a while."""

    item: Item
    by: str
    taken: float  # seconds since the epoch
    until: float

    def as_dict(self) -> dict[str, Any]:
        """The item as it is shown everywhere, and who has it until when."""
        return self.item.as_dict() | {"by": self.by, "taken": self.taken, "until": self.until}


@dataclass(frozen=True, kw_only=True, slots=True)
class Ranking:
    """What finding the order anew did."""

    waiting: int  # utterances put in order
    moved: int  # of them, those whose priority changed
    reviewed: int
    without_vector: int  # waiting, but not indexed yet: taken as unlike everything


def reviewer(by: str) -> str:
    """The name of a reviewer, checked. Raises UsageError."""
    if not by.strip():
        raise UsageError("no reviewer is named: give `by` (on the command line --by, or the variable USER)")
    return by.strip()


def next(ws: Workspace, *, by: str, where: Filters = EVERYTHING) -> Turn | None:
    """Take the first waiting utterance that nobody else has; None where there is none.

    It is kept from the others for the setting `review_lease_s`, by the database's
    clock, and given back by deciding, `release` or time. Skipped utterances are
    offered again after `review_skip_s`, or when nothing else is left. Two
    reviewers never hold the same one: the turn is taken by a compare-and-swap.
    Raises UsageError for a status that nothing waiting has.
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


def held(ws: Workspace, *, by: str | None = None) -> list[Turn]:
    """Turns that have not run out, the oldest first; of one reviewer or of all."""
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
    """Give a turn back undecided; False where this reviewer does not have it."""
    with ws.completion() as tx:
        mine = sa.and_(turn.c.utterance == utterance, turn.c.by == reviewer(by), turn.c.until > now_s())
        return bool(tx.connection.execute(sa.update(turn).where(mine).values(until=0.0, by=None)).rowcount)


def renew(ws: Workspace, utterance: str, *, by: str) -> bool:
    """Prolong a turn, as a screen does while somebody works on it; False where somebody else has it by now."""
    until = now_s() + ws.settings.review_lease_s
    with ws.completion() as tx:
        mine = sa.and_(turn.c.utterance == utterance, turn.c.by == reviewer(by))
        return bool(tx.connection.execute(sa.update(turn).where(mine).values(until=until)).rowcount)


def skip_until(tx: Writer, utterance: str, *, by: str, seconds: float) -> None:
    """Put an utterance back, not to be offered for a while; another reviewer's turn stays."""
    _upsert(tx, utterance, {"skipped": now_s() + seconds})
    tx.connection.execute(
        sa.update(turn).where(turn.c.utterance == utterance, turn.c.by == by).values(until=0.0, by=None)
    )


def _candidates(reader: Reader, where: Filters) -> list[str]:
    """The first waiting utterances that nobody has; skipped ones only where there are no others."""
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
    """Write a turn, over an earlier one only if a condition holds for that; True where it was written."""
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
    """Find the order of the waiting utterances anew: the least certain and the least like what is reviewed first.

    priority = (1 - confidence) x (1 + novelty) / 2, from 0 to 1; novelty is 1 minus
    the greatest cosine to a reviewed utterance (`similarity.novelty`), and 1 where
    nothing is reviewed or no vector is there yet, so that new utterances, which
    start with 1 - confidence, compare. What the model is sure of stays last however
    new it sounds; of equally uncertain utterances the newest sounding is twice as urgent.
    A given text that a dataset left out as doubtful has 1.
    """
    table = tables.utterance
    with ws.read() as reader:
        rows = reader.connection.execute(
            sa.select(table.c.id, table.c.priority, table.c.confidence, table.c.doubt).where(
                table.c.status == "transcribed"
            )
        ).all()
        reviewed = _reviewed(reader)
        known = list(reader.connection.execute(sa.select(table.c.id).where(table.c.status == "reviewed")).scalars())
    novelty = similarity.novelty(ws, [row[0] for row in rows], known)
    changes = []
    for id, before, confidence, doubt in rows:
        priority = 1.0 if doubt else (1.0 - (confidence or 0.0)) * (1.0 + novelty.get(id, 1.0)) / 2
        if abs(priority - before) > 1e-6:
            changes.append({"ranked": id, "found": priority})
    ranking = Ranking(waiting=len(rows), moved=len(changes), reviewed=reviewed, without_vector=len(rows) - len(novelty))
    changes.sort(key=itemgetter("ranked"))  # locked in the order in which others lock them
    with ws.completion() as tx:
        if changes:
            tx.connection.execute(
                sa.update(table).where(table.c.id == sa.bindparam("ranked")).values(priority=sa.bindparam("found")),
                changes,
            )
        tx.emit(PRIORITISED, "queue", key=str(ULID()), payload={"reviewed": reviewed, "waiting": len(rows)})
    return ranking


def rank(ws: Workspace, subjects: Sequence[str] = ()) -> Ranking | None:
    """The step `rank` of a worker: find the order anew where enough was reviewed or came in; None where not."""
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
    # With nothing reviewed all sounds new, and the order is that of confidence, which every utterance begins with.
    return reviewed > 0 and waiting - last["waiting"] >= max(ANEW_AFTER, ANEW_SHARE * last["waiting"])


def _reviewed(reader: Reader) -> int:
    return reader.count(Utterance, tables.utterance.c.status == "reviewed")
