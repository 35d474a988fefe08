"""The events of a catalog, in their order: the audit trail as it is now, or followed as it grows."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import NamedTuple

import sqlalchemy as sa

from voxloop.records import Event
from voxloop.stores.catalog import Catalog, Reader, to_event
from voxloop.stores.tables import event

AT_ONCE = 500  # events read in one statement
GAPS = 100  # watched: where there are more, nothing newer is read until some are closed


def trail(catalog: Catalog, *, since: int = 0) -> Iterator[Event]:
    """Events after the number `since`, all as of one moment."""
    with catalog.read() as reader:
        while found := _read(reader, event.c.seq > since):
            yield from found
            since = found[-1].seq


def follow(catalog: Catalog, *, since: int = 0, wait: Callable[[], None]) -> Iterator[Event]:
    """Events after the number `since`, each once and for ever; `wait` is called where there is none just now.

    They come in the order of their numbers, but for those of a transaction that ends
    after a later one has: PostgreSQL gives an event its number before its
    transaction is committed. One that comes late and has a lower number than `since` is
    not told of: whoever begins anew where they ended gives a lower one, and knows events by their ids.
    """
    follower = Follower(catalog, since=since)
    while True:
        found = follower.read()
        yield from found
        if not found:
            wait()


class Span(NamedTuple):
    """Numbers that a transaction may hold, from `first` to `last`, both included."""

    first: int
    last: int


@dataclass(frozen=True, slots=True)
class Gap:
    """Numbers that were not there when a later one was."""

    span: Span
    writers: frozenset[str] | None = None  # transactions that may still commit one of them; None: not asked yet


class Follower:
    """Reads events as they are committed.

    A number that is missing among those read is of a transaction that goes on, or of
    one that was undone. Whoever took it holds the table's lock for writing from
    before that until its end. So a gap is watched until everybody is gone who held that
    lock after the gap was seen, and read once more after that.
    """

    def __init__(self, catalog: Catalog, *, since: int = 0) -> None:
        self._catalog = catalog
        self._newest = since
        self._gaps: list[Gap] = []

    def read(self) -> list[Event]:
        """The next events, at most `AT_ONCE`; none where there are no more just now."""
        if self._gaps:  # in a view of its own, so that what they committed is in the one after it
            with self._catalog.read() as reader:
                writing = _writers(reader)
            self._gaps = [
                replace(gap, writers=writing if gap.writers is None else gap.writers & writing) for gap in self._gaps
            ]
        spans: list[sa.ColumnElement[bool]] = [sa.between(event.c.seq, *gap.span) for gap in self._gaps]
        if len(self._gaps) < GAPS:
            spans.append(event.c.seq > self._newest)
        with self._catalog.read() as reader:
            found = _read(reader, sa.or_(*spans))
        self._settle([one.seq for one in found], whole=len(found) < AT_ONCE)
        return found

    def _settle(self, found: list[int], *, whole: bool) -> None:
        """Close gaps, and open those between the numbers found. Not `whole`: beyond the last nothing was read."""
        read_to = self._newest if whole else found[-1]
        gaps: list[Gap] = []
        for gap in self._gaps:
            first, last = gap.span
            if first > read_to:
                gaps.append(gap)
                continue
            if gap.writers:
                gaps += (replace(gap, span=span) for span in _missing(first, last, found))
            elif last > read_to:
                gaps.append(replace(gap, span=Span(read_to + 1, last)))
        newest = max([self._newest, *found])
        gaps += (Gap(span) for span in _missing(self._newest + 1, newest, found))
        self._newest = newest
        self._gaps = gaps


def _missing(first: int, last: int, found: list[int]) -> Iterator[Span]:
    """The spans from `first` to `last` between the numbers found, which ascend."""
    for number in found:
        if first <= number <= last:
            if first < number:
                yield Span(first, number - 1)
            first = number + 1
    if first <= last:
        yield Span(first, last)


def _read(reader: Reader, where: sa.ColumnElement[bool]) -> list[Event]:
    statement = sa.select(event).where(where).order_by(event.c.seq).limit(AT_ONCE)
    return [to_event(row) for row in reader.connection.execute(statement)]


def _writers(reader: Reader) -> frozenset[str]:
    """The transactions that may have written events and have not ended. SQLite has one, whose events come in order."""
    if reader.connection.dialect.name != "postgresql":
        return frozenset()
    return frozenset(
        reader.connection.exec_driver_sql(
            "SELECT virtualtransaction FROM pg_locks JOIN pg_database ON pg_database.oid = database"
            " WHERE datname = current_database() AND relation = 'event'::regclass AND mode = 'RowExclusiveLock'"
        ).scalars()
    )
