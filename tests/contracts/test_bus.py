"""The contract of the bus: a wait ends, and ends sooner when woken. On NATS, also from another process, and after a
kill of its server."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import nats as client
import pytest

from tests.servers import NatsServer, free_ports, nats_started
from voxloop import settings
from voxloop.errors import BusError
from voxloop.records import Event
from voxloop.stores.bus import Bus
from voxloop.stores.nats_bus import NatsBus


def test_a_wait_ends_by_itself(bus: Bus) -> None:
    began = time.monotonic()
    bus.wait(["segment"], 0.05)
    assert time.monotonic() - began >= 0.04


def test_waking_ends_a_wait(bus: Bus) -> None:
    ended = threading.Event()

    def wait() -> None:
        bus.wait(["segment"], 60.0)
        ended.set()

    thread = threading.Thread(target=wait, daemon=True)
    thread.start()
    bus.wake(["index", "segment"])
    assert ended.wait(10)


def test_a_wake_before_the_wait_is_not_lost(bus: Bus) -> None:
    bus.wake({"segment"})
    began = time.monotonic()
    bus.wait(["index", "segment"], 60.0)
    assert time.monotonic() - began < 10


def test_other_steps_do_not_end_a_wait(bus: Bus) -> None:
    bus.wake(["index"])
    began = time.monotonic()
    bus.wait(["segment"], 0.05)
    assert time.monotonic() - began >= 0.04
    bus.wait(["index"], 60.0)  # what it was told meanwhile is still known
    assert time.monotonic() - began < 10


# NATS alone -------------------------------------------------------------------------------------------------------


def event(number: int, type: str = "recording.ingested", **payload: Any) -> Event:
    return Event(id=f"{type}:r{number}", type=type, subject=f"r{number}", payload=payload, seq=number, created=1.5e9)


async def stored(url: str) -> list[tuple[str, dict[str, Any]]]:
    """Subject and CloudEvent of everything in a bus's stream, in its order, as any program reads it."""
    server, _, name = url.rpartition("/")
    connection = await client.connect(server)
    stream = connection.jetstream()
    count = (await stream.stream_info(f"{name}-events")).state.messages
    reading = await stream.subscribe(f"{name}.events.>", ordered_consumer=True)
    found = []
    for _ in range(count):
        message = await reading.next_msg(timeout=10)
        assert message.headers["Content-Type"] == "application/cloudevents+json"
        found.append((message.subject, json.loads(message.data)))
    await connection.close()
    return found


@pytest.fixture
def own_server(tmp_path: Path) -> Iterator[NatsServer]:
    """A server for a test that kills it."""
    with nats_started(tmp_path, free_ports(1)[0]) as server:
        yield server


@pytest.fixture
def pair(own_server: NatsServer) -> Iterator[tuple[NatsBus, NatsBus]]:
    """Two connections, as two processes have them."""
    buses = NatsBus(own_server.url, {}), NatsBus(own_server.url, {})
    yield buses
    for bus in buses:
        bus.close()


def woken(listener: NatsBus, within_s: float = 0.3) -> bool:
    began = time.monotonic()
    listener.wait(["index", "segment"], within_s)
    return time.monotonic() - began < 0.9 * within_s


def wakes(teller: NatsBus, listener: NatsBus) -> bool:
    """Whether a wake gets through within ten seconds."""
    began = time.monotonic()
    while time.monotonic() - began < 10:
        listener.listen(["index", "segment"])
        teller.wake(["segment"])
        if woken(listener, 0.5):
            return True
    return False


def test_another_process_is_woken(pair: tuple[NatsBus, NatsBus]) -> None:
    teller, listener = pair
    assert wakes(teller, listener)
    assert listener.listen(["index", "segment"])
    assert not listener.listen(["index", "segment"])  # it listens already
    teller.wake(["transcribe"])
    assert not woken(listener)


def test_one_of_several_idle_workers_is_woken(pair: tuple[NatsBus, NatsBus], own_server: NatsServer) -> None:
    teller, first = pair
    idle = [first, *(NatsBus(own_server.url, {}) for _ in range(2))]
    for bus in idle:
        assert wakes(teller, bus)
    for bus in idle:
        assert bus.listen(["segment"])
    with ThreadPoolExecutor(len(idle)) as pool:
        waiting = [pool.submit(woken, bus, 1.0) for bus in idle]
        time.sleep(0.2)
        teller.wake(["segment"])
        assert sum(one.result() for one in waiting) == 1
    for bus in idle[1:]:
        bus.close()


def test_a_busy_worker_passes_a_wake_on(pair: tuple[NatsBus, NatsBus], own_server: NatsServer) -> None:
    teller, busy = pair
    idle = NatsBus(own_server.url, {})
    assert wakes(teller, busy)
    assert wakes(teller, idle)
    assert busy.listen(["segment"])  # and then finds work when it looks once more
    for _ in range(40):  # the server chooses either by chance
        idle.listen(["segment"])
        teller.wake(["segment"])
        assert woken(idle, 2.0)
        if busy.listen(["segment"]):
            break
    else:
        pytest.fail("the busy worker was never chosen")
    assert woken(busy)  # it looks by itself when it is done
    idle.close()


def test_names_keep_workspaces_apart(own_server: NatsServer) -> None:
    one, other = NatsBus(f"{own_server.url}/one", {}), NatsBus(f"{own_server.url}/other", {})
    listener = NatsBus(f"{own_server.url}/one", {})
    assert wakes(one, listener)
    assert listener.listen(["segment"])
    other.wake(["segment"])
    other.check()
    assert not woken(listener)
    for bus in (one, other, listener):
        bus.close()


def test_a_killed_server_holds_nobody_up_and_wakes_again_when_it_is_back(
    pair: tuple[NatsBus, NatsBus], own_server: NatsServer
) -> None:
    teller, listener = pair
    assert wakes(teller, listener)
    teller.publish([event(1)])
    own_server.kill()
    began = time.monotonic()
    teller.wake(["segment"])
    listener.wait(["segment"], 0.2)
    assert time.monotonic() - began < 2
    with pytest.raises(BusError, match="cannot be used"):
        teller.publish([event(2)])
    own_server.start()
    assert wakes(teller, listener)
    teller.publish([event(2), event(3)])
    assert [found["id"] for _, found in asyncio.run(stored(f"{own_server.url}/voxloop"))] == [
        event(number).id for number in (1, 2, 3)
    ]


def test_events_are_kept_in_order_as_cloud_events(nats: str) -> None:
    bus = NatsBus(nats, {})
    name = nats.rpartition("/")[2]
    odd = Event(id="recording.rejected:/a b/ü\n.wav", type="recording.rejected", subject="/a b/ü\n.wav", seq=2)
    sent = [event(1, seconds=2.5), odd, *(event(number, "recording.segmented") for number in range(3, 60))]
    bus.publish(sent)
    bus.publish(sent[:3])  # as after a crash: these are there already
    found = asyncio.run(stored(nats))
    assert [subject for subject, _ in found] == [f"{name}.events.{one.type}" for one in sent]
    assert [one["id"] for _, one in found] == [one.id for one in sent]
    assert found[0][1] == {
        "specversion": "1.0",
        "id": "recording.ingested:r1",
        "source": f"/voxloop/{name}",
        "type": "recording.ingested",
        "subject": "r1",
        "time": "2017-07-14T02:40:00.000Z",
        "datacontenttype": "application/json",
        "dataschema": "urn:voxloop:event:1",
        "sequence": "1",
        "data": {"seconds": 2.5},
    }
    assert f"{len(sent)} events" in bus.check()
    bus.close()


def test_a_stream_is_brought_up_to_date_and_keeps_its_operators_limits(nats: str) -> None:
    server, _, name = nats.rpartition("/")

    async def earlier() -> None:
        connection = await client.connect(server)
        await connection.jetstream().add_stream(name=f"{name}-events", subjects=[f"{name}.old.>"], max_msgs=1000)
        await connection.close()

    async def config() -> Any:
        connection = await client.connect(server)
        found = (await connection.jetstream().stream_info(f"{name}-events")).config
        await connection.close()
        return found

    asyncio.run(earlier())
    bus = NatsBus(nats, {})
    bus.publish([event(1)])
    bus.close()
    found = asyncio.run(config())
    assert (found.subjects, found.max_msgs) == ([f"{name}.events.>"], 1000)


@pytest.mark.parametrize(
    ("environment", "said"),
    [({"NATS_USER": "me", "NATS_PASSWORD": "right"}, ""), ({"NATS_USER": "me", "NATS_PASSWORD": "wrong"}, "Auth")],
)
def test_credentials_come_from_the_environment(environment: dict[str, str], said: str, tmp_path: Path) -> None:
    with nats_started(tmp_path, free_ports(1)[0], "--user", "me", "--pass", "right") as server:
        bus = NatsBus(server.url, settings.nats_secrets(environment))
        if said:
            with pytest.raises(BusError, match=said):
                bus.check()
        else:
            assert "0 events" in bus.check()
        bus.close()


def test_a_server_without_jetstream_is_said(tmp_path: Path) -> None:
    with nats_started(tmp_path, free_ports(1)[0]) as server:
        server.kill()
        server.options = ()
        server.start()
        bus = NatsBus(server.url, {})
        with pytest.raises(BusError, match="no JetStream"):
            bus.check()
        bus.close()


@pytest.mark.parametrize("url", ["nats://me:hidden@127.0.0.1", "nats://127.0.0.1/a.b", "nats://"])
def test_a_url_that_cannot_be_used_is_refused(url: str) -> None:
    with pytest.raises(BusError) as caught:
        NatsBus(url, {})
    assert "hidden" not in str(caught.value)
