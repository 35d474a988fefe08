"""The contract of following events: each that is committed comes once, whatever the order of the commits."""

from __future__ import annotations

import random
from itertools import islice

import pytest
import sqlalchemy as sa

from tests.conftest import statements
from voxloop.stores import events, tables
from voxloop.stores.catalog import Catalog
from voxloop.stores.events import Follower, follow, trail
from voxloop.stores.jobs import Jobs


def emit(jobs: Jobs, catalog: Catalog, *subjects: str) -> None:
    with catalog.write() as tx:
        for subject in subjects:
            jobs.emit(tx, "recording.ingested", subject)


def subjects(found: list[events.Event]) -> list[str]:
    return [one.subject for one in found]


def insert(connection: sa.Connection, subject: str) -> None:
    row = {"id": subject, "created": 1.0, "type": "t", "subject": subject, "payload": {}, "published": False}
    connection.execute(sa.insert(tables.event).values(row))


@pytest.fixture(params=[1, 3, 500])
def at_once(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr(events, "AT_ONCE", request.param)
    return int(request.param)


def test_the_trail_is_all_that_happened_after_a_number(jobs: Jobs, catalog: Catalog, at_once: int) -> None:
    names = [f"r{number:02}" for number in range(20)]
    emit(jobs, catalog, *names)
    found = list(trail(catalog))
    assert subjects(found) == names
    assert subjects(list(trail(catalog, since=found[4].seq))) == names[5:]


def test_following_goes_on_where_it_was(jobs: Jobs, catalog: Catalog, at_once: int) -> None:
    emit(jobs, catalog, "a", "b")
    waited = []

    def wait() -> None:
        waited.append(1)
        emit(jobs, catalog, f"later {len(waited)}")

    followed = follow(catalog, wait=wait)
    assert subjects(list(islice(followed, 5))) == ["a", "b", "later 1", "later 2", "later 3"]
    assert len(waited) == 3


def test_numbers_that_no_event_has_are_not_asked_for_again(jobs: Jobs, catalog: Catalog) -> None:
    """Those of undone transactions, of events told of twice, and of those that are deleted."""
    emit(jobs, catalog, "a", "b", "c")
    with pytest.raises(RuntimeError), catalog.write() as tx:
        jobs.emit(tx, "recording.ingested", "undone")
        raise RuntimeError
    emit(jobs, catalog, "a", "d")
    with catalog.write() as tx:
        tx.connection.execute(sa.delete(tables.event).where(tables.event.c.subject == "b"))
    follower = Follower(catalog)
    assert subjects(follower.read()) == ["a", "c", "d"]
    assert follower.read() == []
    with statements(catalog) as said:
        assert follower.read() == []
    assert len(said) == 1


# PostgreSQL alone: there a later transaction can be committed before an earlier one ---------------------------


@pytest.fixture
def on_server(postgresql: str) -> Catalog:
    return Catalog(postgresql)


def test_an_event_whose_transaction_ends_late_comes_late_and_once(on_server: Catalog) -> None:
    engine = on_server.engine
    follower = Follower(on_server)
    with engine.connect() as early, engine.connect() as undone, engine.connect() as idle:
        insert(early, "early")
        insert(undone, "undone")
        with engine.begin() as late:
            insert(late, "late")
        assert subjects(follower.read()) == ["late"]
        # Others that go on writing, or that only read, hold nothing up and lose nothing.
        idle.execute(sa.select(tables.event))
        undone.rollback()
        insert(undone, "after")
        for _ in range(3):
            assert follower.read() == []
        early.commit()
        assert subjects(follower.read()) == ["early"]
        undone.commit()
        assert subjects(follower.read()) == ["after"]
        assert follower.read() == []
        assert follower.read() == []
        assert follower._gaps == []
    on_server.close()


def test_a_crowd_of_late_transactions_loses_nothing(
    on_server: Catalog, at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Eight writers begin, write, commit and undo in any order; few gaps are remembered, and all events come once."""
    monkeypatch.setattr(events, "GAPS", 4)
    chance = random.Random(at_once)
    follower = Follower(on_server)
    connections = [on_server.engine.connect() for _ in range(8)]
    open_: dict[int, list[str]] = {}
    committed: list[str] = []
    seen: list[str] = []
    for step in range(600):
        who = chance.randrange(len(connections))
        connection = connections[who]
        match chance.choices(("insert", "commit", "undo", "read"), weights=(6, 2, 1, 2))[0]:
            case "insert":
                open_.setdefault(who, []).append(f"e{step}")
                insert(connection, f"e{step}")
            case "commit":
                connection.commit()
                committed += open_.pop(who, [])
            case "undo":
                connection.rollback()
                open_.pop(who, None)
            case "read":
                seen += subjects(follower.read())
                assert len(follower._gaps) <= 4 + at_once
                assert set(seen) <= set(committed)
    for who, connection in enumerate(connections):
        connection.commit()
        committed += open_.pop(who, [])
        connection.close()
    quiet = 0
    while quiet < 3:
        found = subjects(follower.read())
        seen += found
        quiet = 0 if found else quiet + 1
    assert len(committed) > 200
    assert sorted(seen) == sorted(committed)
    assert follower._gaps == []
    on_server.close()
