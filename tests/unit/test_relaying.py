"""The relay: every event of the catalog is in the bus's stream once, in order, whatever dies on the way."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa

from tests.conftest import CATALOGS, name_catalog
from tests.contracts.test_bus import stored
from tests.servers import NatsServer, free_ports, nats_started
from voxloop.automation import relaying
from voxloop.automation.relaying import relay, relay_once
from voxloop.pipeline import open_loop
from voxloop.stores import tables
from voxloop.stores.events import trail
from voxloop.workspace import Workspace


@pytest.fixture
def server(tmp_path: Path) -> Iterator[NatsServer]:
    folder = tmp_path / "nats"
    folder.mkdir()
    with nats_started(folder, free_ports(1)[0]) as started:
        yield started


@pytest.fixture(params=CATALOGS)
def ws(request: pytest.FixtureRequest, tmp_path: Path, server: NatsServer) -> Iterator[Workspace]:
    name_catalog(tmp_path / "w", request.getfixturevalue("postgresql") if request.param == "postgresql" else "")
    with open_loop(tmp_path / "w", bus=server.url) as opened:
        yield opened


def emit(ws: Workspace, first: int, count: int) -> None:
    for number in range(first, first + count):
        with ws.transaction() as tx:
            tx.emit("utterance.reviewed", f"u{number}", payload={"by": "ann"})


def left(ws: Workspace) -> int:
    with ws.read() as reader:
        waiting = sa.select(sa.func.count()).where(tables.event.c.published == sa.false())
        return int(reader.connection.execute(waiting).scalar_one())


def published(server: NatsServer) -> list[str]:
    return [event["id"] for _, event in asyncio.run(stored(f"{server.url}/voxloop"))]


def test_events_reach_the_stream_once_and_in_order_through_a_killed_server(
    ws: Workspace, server: NatsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(relaying, "FAILED_S", 0.2)
    monkeypatch.setattr(relaying, "LOOK_S", 0.02)
    ended = threading.Event()
    thread = threading.Thread(target=relay, args=(ws, ended))
    thread.start()
    for part in range(3):
        emit(ws, 40 * part, 20)
        server.kill()
        emit(ws, 40 * part + 20, 20)
        server.start()
    until = time.monotonic() + 60
    while left(ws) and time.monotonic() < until:
        time.sleep(0.1)
    ended.set()
    thread.join()
    assert published(server) == [event.id for event in trail(ws.catalog)]
    assert len(published(server)) == 120


def test_what_a_killed_relay_published_is_not_there_twice(
    ws: Workspace, server: NatsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    emit(ws, 0, 5)
    with ws.read() as reader:
        events = [one for one in trail(ws.catalog) if reader]
    ws.bus.publish(events[:3])  # and dies before it writes that down
    assert relay_once(ws) == 5
    assert relay_once(ws) == 0
    assert published(server) == [event.id for event in events]


def test_one_process_relays_at_a_time_and_another_takes_over(ws: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(relaying, "TURN_S", 1.0)
    first = relaying._take_turn(ws, 0.0)
    assert first
    assert relaying._take_turn(ws, 0.0) == 0.0
    assert relaying._take_turn(ws, first) == first  # it keeps its turn without writing
    time.sleep(0.6)
    kept = relaying._take_turn(ws, first)
    assert kept > first
    time.sleep(1.1)  # it died
    assert relaying._take_turn(ws, 0.0) > kept
    assert relaying._take_turn(ws, kept) == 0.0  # and if it did not, it finds out


def test_a_turn_is_given_back_at_the_end(ws: Workspace) -> None:
    with relaying.relaying(ws):
        emit(ws, 0, 3)
        until = time.monotonic() + 20
        while left(ws) and time.monotonic() < until:
            time.sleep(0.05)
    assert left(ws) == 0
    assert relaying._take_turn(ws, 0.0)


def test_without_a_server_nothing_is_relayed(workspace: Workspace) -> None:
    emit(workspace, 0, 2)
    with relaying.relaying(workspace):
        assert all(thread.name != "relay" for thread in threading.enumerate())
    assert left(workspace) == 2


def test_unpublished_events_are_found_by_their_index(ws: Workspace) -> None:
    emit(ws, 0, 3)
    waiting = sa.select(tables.event.c.seq).where(tables.event.c.published == sa.false()).order_by(tables.event.c.seq)
    with ws.read() as reader:
        if ws.catalog.engine.dialect.name == "postgresql":
            reader.connection.exec_driver_sql("SET LOCAL enable_seqscan = off")
            reader.connection.exec_driver_sql("SET LOCAL enable_sort = off")
            explain = "EXPLAIN "
        else:
            explain = "EXPLAIN QUERY PLAN "
        sql = str(waiting.compile(reader.connection, compile_kwargs={"literal_binds": True}))
        plan = " ".join(str(row) for row in reader.connection.exec_driver_sql(explain + sql))
    assert "ix_event_unpublished" in plan
