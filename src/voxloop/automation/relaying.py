"""The relay: publishes the catalog's events on the bus, in order, by one process at a time.

An event is committed with the change it tells of and published afterwards, so none is lost: what a process that died
did not mark as published is published again. Consumers that must not see an event twice compare its id.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import sqlalchemy as sa

from voxloop.errors import WorkspaceError
from voxloop.stores import tables
from voxloop.stores.catalog import insert_new, to_event
from voxloop.workspace import Workspace

log = logging.getLogger(__name__)

TURN = "relay"  # in `upkeep`; `until` is the time until which the process that wrote it has the turn
TURN_S = 10.0  # after which another process takes over from one that died
LOOK_S = 0.2  # between two looks for new events
FAILED_S = 2.0  # between two attempts to reach the bus
AT_ONCE = 200  # events per look: less than TURN_S of work

event, upkeep = tables.event, tables.upkeep


@contextmanager
def relaying(ws: Workspace) -> Iterator[None]:
    """Relay events in a thread while the block runs, where the bus publishes any."""
    if not ws.bus.publishes:
        yield
        return
    ended = threading.Event()
    thread = threading.Thread(target=relay, args=(ws, ended), name="relay", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def relay(ws: Workspace, ended: threading.Event) -> None:
    """Publish events as they are committed, whenever it is this process's turn, until `ended` is set."""
    until = 0.0
    while not ended.is_set():
        try:
            until = _take_turn(ws, until)
            published = relay_once(ws) if until else 0
            pause_s = 0.0 if published == AT_ONCE else LOOK_S if until else TURN_S / 3
        except WorkspaceError as error:  # the bus or the catalog is away, which must not end the relay
            log.info("events are not published now: %s", error, extra={"action": "relay_failed"})
            pause_s = FAILED_S
        ended.wait(pause_s)
    if until:
        with suppress(WorkspaceError), ws.catalog.write() as tx:  # otherwise the turn ends by itself
            mine = sa.and_(upkeep.c.name == TURN, upkeep.c.until == until)
            tx.connection.execute(sa.update(upkeep).where(mine).values(until=0.0))


def relay_once(ws: Workspace) -> int:
    """Publish the oldest events that are not published yet. Return their number, at most `AT_ONCE`."""
    waiting = sa.select(event).where(event.c.published == sa.false()).order_by(event.c.seq).limit(AT_ONCE)
    with ws.read() as reader:
        found = [to_event(row) for row in reader.connection.execute(waiting)]
    if found:
        ws.bus.publish(found)
        with ws.catalog.write() as tx:
            published = event.c.seq.in_([one.seq for one in found])
            tx.connection.execute(sa.update(event).where(published).values(published=True))
    return len(found)


def _take_turn(ws: Workspace, mine: float) -> float:
    """Take or keep the turn. Return the time until which it is this process's, by the database's clock; 0: it is not.

    Written every few seconds alone, since an idle relay looks five times a second.
    """
    with ws.read() as reader:
        now = reader.now()
        until = reader.connection.execute(sa.select(upkeep.c.until).where(upkeep.c.name == TURN)).scalar() or 0.0
    if until > now and until != mine:
        return 0.0
    if until == mine and until - now > TURN_S / 2:
        return mine
    with ws.catalog.write() as tx:
        insert_new(tx.connection, upkeep, [{"name": TURN}])
        then = tx.now() + TURN_S
        free = sa.and_(upkeep.c.name == TURN, upkeep.c.until == until)
        return then if tx.connection.execute(sa.update(upkeep).where(free).values(until=then)).rowcount else 0.0
