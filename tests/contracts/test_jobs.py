"""The contract of events and jobs: told once, done once, nothing lost."""

from __future__ import annotations

import threading
import time

import pytest
import sqlalchemy as sa

from voxloop.errors import LeaseLost, UnknownRecord
from voxloop.stores import tables
from voxloop.stores.catalog import Catalog
from voxloop.stores.jobs import Jobs


def emit(jobs: Jobs, catalog: Catalog, *subjects: str, type: str = "recording.ingested") -> None:
    with catalog.write() as tx:
        for subject in subjects:
            jobs.emit(tx, type, subject)


def states(catalog: Catalog) -> dict[str, int]:
    with catalog.read() as reader:
        rows = reader.connection.execute(sa.select(tables.job.c.state, sa.func.count()).group_by(tables.job.c.state))
        return {row[0]: row[1] for row in rows}


def test_an_event_makes_one_job_for_each_listener(jobs: Jobs, catalog: Catalog) -> None:
    emit(jobs, catalog, "r1", type="recording.segmented")
    with catalog.read() as reader:
        assert jobs.counts(reader) == {"transcribe": {"ready": 1}, "index": {"ready": 1}}


def test_emitting_twice_is_emitting_once(jobs: Jobs, catalog: Catalog) -> None:
    with catalog.write() as tx:
        assert jobs.emit(tx, "recording.ingested", "r1")
        assert not jobs.emit(tx, "recording.ingested", "r1")
        assert jobs.emit(tx, "recording.ingested", "r1", key="r1:again")
    with catalog.read() as reader:
        assert jobs.open(reader, ["segment"]) == 2


def test_an_undone_change_tells_nothing(jobs: Jobs, catalog: Catalog) -> None:
    with pytest.raises(RuntimeError), catalog.write() as tx:
        jobs.emit(tx, "recording.ingested", "r1")
        raise RuntimeError
    assert states(catalog) == {}


def test_a_claimed_job_is_nobody_elses(jobs: Jobs, catalog: Catalog) -> None:
    emit(jobs, catalog, "r1")
    claim = jobs.claim(["segment"])
    assert claim is not None
    assert claim.subjects == ("r1",)
    assert jobs.claim(["segment"]) is None
    assert jobs.claim(["transcribe"]) is None


def test_many_workers_share_without_overlap(jobs: Jobs, catalog: Catalog) -> None:
    emit(jobs, catalog, *(f"r{i:03}" for i in range(120)))
    done: list[str] = []
    lock = threading.Lock()

    def worker() -> None:
        while claim := jobs.claim(["segment"], limit=7):
            with catalog.write() as tx:
                jobs.finish(tx, claim)
            with lock:
                done.extend(claim.subjects)

    threads = [threading.Thread(target=worker) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(done) == [f"r{i:03}" for i in range(120)]
    assert states(catalog) == {"done": 120}


def test_a_lease_that_runs_out_goes_to_another_and_the_zombie_writes_nothing(jobs: Jobs, catalog: Catalog) -> None:
    emit(jobs, catalog, "r1")
    zombie = jobs.claim(["segment"])
    assert zombie
    time.sleep(0.35)
    heir = jobs.claim(["segment"])
    assert heir is not None
    assert heir.token != zombie.token
    with pytest.raises(LeaseLost), catalog.write() as tx:
        jobs.emit(tx, "recording.segmented", "r1")
        jobs.finish(tx, zombie)
    with catalog.read() as reader:
        assert jobs.open(reader, ["transcribe"]) == 0
    with catalog.write() as tx:
        jobs.finish(tx, heir)
    assert states(catalog) == {"done": 1}


def test_a_renewed_lease_lasts(jobs: Jobs, catalog: Catalog) -> None:
    emit(jobs, catalog, "r1")
    claim = jobs.claim(["segment"])
    assert claim
    for _ in range(4):
        time.sleep(0.15)
        assert jobs.renew(claim)
    assert jobs.claim(["segment"]) is None


def test_a_failed_batch_is_tried_again_one_by_one(jobs: Jobs, catalog: Catalog) -> None:
    emit(jobs, catalog, "r1", "r2", "r3")
    batch = jobs.claim(["segment"], limit=10)
    assert batch is not None
    assert len(batch.jobs) == 3
    assert not jobs.fail(batch, ValueError("one of them is bad"))
    again = jobs.claim(["segment"], limit=10)
    assert again is not None
    assert len(again.jobs) == 1


def test_the_last_attempt_buries_with_the_error_and_retry_wakes(jobs: Jobs, catalog: Catalog) -> None:
    emit(jobs, catalog, "r1")
    for attempt in range(3):
        with catalog.write() as tx:  # let the waiting time pass
            tx.connection.execute(sa.update(tables.job).values(run_at=0.0))
        claim = jobs.claim(["segment"])
        assert claim
        assert jobs.fail(claim, ValueError("no such thing")) == (attempt == 2)
    with catalog.read() as reader:
        (dead,) = jobs.dead(reader)
        assert dead.error == "ValueError: no such thing"
        assert jobs.open(reader, ["segment"]) == 0
    with pytest.raises(UnknownRecord):
        jobs.retry("segment:nothing")
    assert jobs.retry() == 1
    assert jobs.claim(["segment"]) is not None


def test_a_job_that_kills_its_workers_is_buried_in_the_end(jobs: Jobs, catalog: Catalog) -> None:
    emit(jobs, catalog, "r1")
    for _ in range(3):
        assert jobs.claim(["segment"])
        time.sleep(0.35)
    assert jobs.claim(["segment"]) is None
    with catalog.read() as reader:
        (dead,) = jobs.dead(reader)
    assert "died" in dead.error


def test_a_released_job_has_not_been_tried(jobs: Jobs, catalog: Catalog) -> None:
    emit(jobs, catalog, "r1", "r2")
    for _ in range(10):
        claim = jobs.claim(["segment"], limit=5)
        assert claim is not None
        assert len(claim.jobs) == 2
        jobs.release(claim)
