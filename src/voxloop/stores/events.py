"""Read the catalog's events in order: the audit trail so far, or followed as it grows."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import NamedTuple

import sqlalchemy as sa

from voxloop.records import Event
from voxloop.stores.catalog import Catalog, Reader, to_event
from voxloop.stores.tables import event

AT_ONCE = 500  # events per statement
GAPS = 100  # gaps to watch; with more, newer events are not read until some are closed


def trail(catalog: Catalog, *, since: int = 0) -> Iterator[Event]:
    """Events after number `since`, from one consistent snapshot."""
    with catalog.read() as reader:
        while found := _read(reader, event.c.seq > since):
            yield from found
            since = found[-1].seq


def follow(catalog: Catalog, *, since: int = 0, wait: Callable[[], None]) -> Iterator[Event]:
    """Events after number `since`, each exactly once, without end; calls `wait` when there are no new ones.

    They come in the order of their numbers, except when a transaction commits after a later one:
    PostgreSQL assigns an event's number before its transaction commits. A late event with a
    number below `since` is not reported, so a reader that resumes should start from a lower
    number and skip events whose ids it knows.
    """
    follower = Follower(catalog, since=since)
    while True:
        found = follower.read()
        yield from found
        if not found:
            wait()


class Span(NamedTuple):
    """Event numbers from `first` to `last`, inclusive, that a transaction may hold."""

    first: int
    last: int


@dataclass(frozen=True, slots=True)
class Gap:
    """Event numbers that were missing when a later one had appeared."""

    span: Span
    writers: frozenset[str] | None = None  # transactions that may still commit one of them; None: not queried yet


class Follower:
    """Reads events as they are committed.

    A missing number belongs to a transaction that is still running or was rolled back. A
    transaction holds the table's write lock from before it takes a number until it ends. So a
    gap is watched until all transactions that held the lock when it was noticed have ended,
    and is then read once more.
    """

    def __init__(self, catalog: Catalog, *, since: int = 0) -> None:
        self._catalog = catalog
        self._newest = since
        self._gaps: list[Gap] = []

    def read(self) -> list[Event]:
        """The next events, at most `AT_ONCE`; empty if there are no new ones."""
        if self._gaps:  # in a separate snapshot, so that the following one includes what these writers committed
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
        """Close gaps and open new ones between the numbers found. Unless `whole`, nothing after the last was read."""
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
    """The spans between `first` and `last` that are missing from the numbers found, which are ascending."""
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
    """The running transactions that may have written events. SQLite has only one writer, so its events are in order."""
    if reader.connection.dialect.name != "postgresql":
        return frozenset()
    return frozenset(
        reader.connection.exec_driver_sql(
            "SELECT virtualtransaction FROM pg_locks JOIN pg_database ON pg_database.oid = database"
            " WHERE datname = current_database() AND relation = 'event'::regclass AND mode = 'RowExclusiveLock'"
        ).scalars()
    )
