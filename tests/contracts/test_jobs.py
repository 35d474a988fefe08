"""The contract of events and jobs: told once, done once, nothing lost."""

from __future__ import annotations

import threading
import time

import pytest
import sqlalchemy as sa

from voxloop.errors import LeaseLost, UnknownRecord
from voxloop.stores import tables
from voxloop.stores.catalog import Catalog
from voxloop.stores.jobs import CLAIM_S, Claim, Jobs, News


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
            tx.connection.execute(sa.update(tables.job).values(not_before=0.0))
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


def claimed(jobs: Jobs, step: str = "segment", **values: int) -> Claim:
    claim = jobs.claim([step], **values)
    assert claim is not None
    return claim


def test_a_claim_is_bounded_by_its_audio(jobs: Jobs, catalog: Catalog) -> None:
    lengths = {"r1": 200.0, "r2": 300.0, "r3": 100.0, "r4": 1.0, "r5": 36_000.0, "r6": 5.0}
    with catalog.write() as tx:
        jobs.emit_all(tx, "recording.ingested", [News(id, seconds=length) for id, length in lengths.items()])
    claims = [claimed(jobs, limit=64).subjects for _ in range(4)]
    assert claims == [("r1", "r2", "r3"), ("r4",), ("r5",), ("r6",)]
    assert sum(lengths[id] for id in claims[0]) == CLAIM_S


def test_the_urgent_come_first_and_by_themselves(catalog: Catalog) -> None:
    jobs = Jobs(
        catalog,
        {"recording.ingested": ("segment",), "transcription.asked": ("transcribe",), "utterance.reviewed": ("rank",)},
        lease_s=30,
        max_attempts=3,
        priorities={"transcription.asked": -10, "utterance.reviewed": 10},
    )
    with catalog.write() as tx:
        jobs.emit_all(tx, "recording.ingested", [News(f"flood{n}") for n in range(5)])
        jobs.emit(tx, "recording.ingested", "live", priority=20)
        jobs.emit(tx, "transcription.asked", "again")
    steps = ["segment", "transcribe", "rank"]
    with catalog.read() as reader:
        assert jobs.ready(reader, steps) == ["segment", "transcribe"]
        assert jobs.ready(reader, ["transcribe", "segment"]) == ["segment", "transcribe"]
    emit(jobs, catalog, "u1", type="utterance.reviewed")
    with catalog.read() as reader:
        assert jobs.ready(reader, steps) == ["segment", "rank", "transcribe"]
    live = claimed(jobs, limit=64)
    assert (live.subjects, live.priority) == (("live",), 20)
    assert [jobs.claim(steps, limit=64).subjects for _ in range(3)] == [  # type: ignore[union-attr]
        ("u1",),
        tuple(f"flood{n}" for n in range(5)),
        ("again",),
    ]
    assert jobs.claim(steps) is None


def test_each_subject_of_a_claim_is_finished_by_itself(jobs: Jobs, catalog: Catalog) -> None:
    emit(jobs, catalog, "r1", "r2", "r3")
    claim = claimed(jobs, limit=3)
    with catalog.write() as tx:
        jobs.finish(tx, claim, ["r2"])
    assert states(catalog) == {"done": 1, "leased": 2}
    assert jobs.renew(claim)
    with catalog.write() as tx:
        jobs.fence(tx, claim)
    with pytest.raises(LeaseLost), catalog.write() as tx:
        jobs.finish(tx, claim, ["r2"])  # once
    time.sleep(0.35)
    heirs = [claimed(jobs, limit=3).subjects for _ in range(2)]
    assert heirs == [("r1",), ("r3",)]  # one by one, since one of them may have been the cause
    assert not jobs.renew(claim)
    for subjects in (["r1"], ["r1", "r3"], []):
        with pytest.raises(LeaseLost), catalog.write() as tx:
            jobs.finish(tx, claim, subjects)


def test_what_is_left_of_a_claim_is_finished_released_or_failed(jobs: Jobs, catalog: Catalog) -> None:
    emit(jobs, catalog, "r1", "r2")
    claim = claimed(jobs, limit=2)
    with catalog.write() as tx:
        jobs.finish(tx, claim, ["r1"])
    jobs.release(claim)
    assert states(catalog) == {"done": 1, "ready": 1}
    claim = claimed(jobs, limit=2)
    assert not jobs.fail(claim, ValueError("once"))
    emit(jobs, catalog, "r3", "r4")
    claim = claimed(jobs, limit=9)
    with catalog.write() as tx:
        jobs.finish(tx, claim, ["r3"])
    with catalog.write() as tx:
        jobs.finish(tx, claim)
    assert states(catalog) == {"done": 3, "ready": 1}


def test_a_sweep_gives_back_what_nobody_holds(jobs: Jobs, catalog: Catalog) -> None:
    emit(jobs, catalog, "r1", "r2", "r3")
    emit(jobs, catalog, "r1", type="recording.segmented")
    assert jobs.sweep() == {}
    held = claimed(jobs, limit=2)
    claimed(jobs, "index")
    assert jobs.sweep() == {}
    time.sleep(0.35)
    with catalog.read() as reader:
        assert jobs.ready(reader, ["transcribe", "index", "segment"]) == ["transcribe", "index", "segment"]
    assert jobs.sweep() == {"segment": 2, "index": 1}
    assert not jobs.renew(held)
    assert states(catalog) == {"ready": 5}


def test_steps_that_are_coalesced_have_one_waiting_job(catalog: Catalog) -> None:
    listeners = {"recording.ingested": ("segment", "rank"), "utterance.reviewed": ("rank",)}
    jobs = Jobs(
        catalog, listeners, lease_s=30, max_attempts=3, priorities={"utterance.reviewed": 10}, coalesced=("rank",)
    )
    with catalog.write() as tx:
        jobs.emit_all(tx, "recording.ingested", [News(f"r{n}") for n in range(1000)])
    emit(jobs, catalog, "more")
    with catalog.read() as reader:
        assert jobs.counts(reader) == {"segment": {"ready": 1001}, "rank": {"ready": 1}}
    emit(jobs, catalog, "u1", type="utterance.reviewed")
    claim = claimed(jobs, "rank", limit=9)
    assert (len(claim.jobs), claim.priority, claim.subjects) == (1, 10, ("rank",))
    # What comes while one is at work may not have been seen by it.
    emit(jobs, catalog, "u2", "u3", type="utterance.reviewed")
    with catalog.read() as reader:
        assert jobs.counts(reader)["rank"] == {"leased": 1, "ready": 1}


def test_a_step_is_done_once_more(jobs: Jobs, catalog: Catalog) -> None:
    emit(jobs, catalog, "r1", "r2")
    with catalog.write() as tx:
        jobs.emit(tx, "recording.ingested", "r1", key="r1:again")
    claim = claimed(jobs, limit=9)
    with catalog.write() as tx:
        jobs.finish(tx, claim)
    with catalog.write() as tx:
        assert jobs.redo(tx, "segment", ["r1", "nobody"]) == 1
    again = claimed(jobs, limit=9)
    assert again.jobs == ("segment:recording.ingested:r1:again",)


def test_old_jobs_are_pruned_and_emitting_again_makes_none(jobs: Jobs, catalog: Catalog) -> None:
    emit(jobs, catalog, "old", "new", "alone")
    claim = claimed(jobs, limit=9)
    with catalog.write() as tx:
        jobs.finish(tx, claim)
        job = tables.job
        tx.connection.execute(sa.update(job).where(job.c.subject != "new").values(finished=tx.now() - 100))
        tx.connection.execute(sa.delete(tables.event).where(tables.event.c.subject == "alone"))
    emit(jobs, catalog, "waiting")
    assert jobs.prune(1000, limit=9) == 0
    with catalog.read() as reader:
        assert jobs.pruned(reader).keys() == {"sample"}  # of the step's first day
    assert jobs.prune(50, limit=9) == 1
    assert jobs.prune(50, limit=9) == 0
    emit(jobs, catalog, "old")
    with catalog.read() as reader:
        subjects = set(reader.connection.execute(sa.select(tables.job.c.subject)).scalars())
        assert subjects == {"new", "alone", "waiting"}
        assert jobs.pruned(reader)["segment"] == pytest.approx(reader.now() - 50, abs=5)
    with catalog.write() as tx:  # what was pruned can be done once more
        assert jobs.redo(tx, "segment", ["old"]) == 1
    assert claimed(jobs, limit=9).subjects == ("waiting", "old")


def test_claims_are_found_by_small_indexes(jobs: Jobs, catalog: Catalog) -> None:
    """Neither done nor leased rows are gone through to find what to do."""
    if catalog.engine.dialect.name != "sqlite":
        pytest.skip("SQLite's plans; a planner that counts rows may scan a table as small as this one")
    asked: list[tuple[str, object]] = []

    @sa.event.listens_for(catalog.engine, "before_cursor_execute")
    def sent(_c: object, _d: object, statement: str, parameters: object, *_: object) -> None:
        asked.append((statement, parameters))

    emit(jobs, catalog, "r1")
    asked.clear()
    with catalog.read() as reader:
        jobs.ready(reader, ["segment", "transcribe"])
        jobs.counts(reader, done=False)
        jobs.open(reader, ["segment"])
        jobs.held(reader, "segment")
        jobs.dead(reader)
    with catalog.write() as tx:
        jobs.withdraw(tx, "segment", "r9")
    jobs.prune(0.0, 10)
    claimed(jobs, limit=5)
    plans = []
    with catalog.read() as reader:
        for statement, parameters in list(asked):
            if "job" in statement:
                rows = reader.connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {statement}", parameters)  # type: ignore[arg-type]
                plans += [row[3] for row in rows]
    touched = [line for line in plans if " job" in line]
    assert len(touched) >= 12
    assert all("INDEX ix_job_" in line or "sqlite_autoindex_job_1 (id=?)" in line for line in touched), touched
