"""Requests for review: the few utterances whose references an automatic run needs for its verdict."""

from __future__ import annotations

from typing import TYPE_CHECKING

import sqlalchemy as sa

from voxloop.records import Utterance
from voxloop.stores import tables
from voxloop.stores.catalog import insert_new

if TYPE_CHECKING:
    from collections.abc import Sequence

    from voxloop.stores.catalog import Reader
    from voxloop.workspace import Transaction

FIRST = 3.0  # their priority in the queue, above every other

table = tables.review_request


def request(tx: Transaction, utterances: Sequence[str], *, cycle: str) -> int:
    """Put utterances at the front of the review queue. Return the number of new requests."""
    now = tx.now()
    new = insert_new(tx.connection, table, [{"utterance": id, "created": now, "cycle": cycle} for id in utterances])
    tx.change(Utterance, utterances, priority=FIRST)
    return new


def withdraw(tx: Transaction, cycle: str) -> None:
    """Drop the requests of an automatic run that has ended. The next reordering of the queue places them anew."""
    tx.connection.execute(sa.delete(table).where(table.c.cycle == cycle))


def requested() -> sa.Select[tuple[str]]:
    """The ids of the requested utterances, decided or not."""
    return sa.select(table.c.utterance)


def outstanding(reader: Reader) -> int:
    """The number of requested utterances that still wait for review."""
    u = tables.utterance.c
    waiting = sa.select(sa.func.count()).where(u.status == "transcribed", u.id.in_(requested()))
    return int(reader.connection.execute(waiting).scalar_one())
