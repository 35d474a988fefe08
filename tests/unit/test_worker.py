"""A worker takes the urgent first, leaves the catalog alone while it has nothing to do, and loses little by a kill."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import sqlalchemy as sa

from voxloop.automation.worker import WorkProgress, work
from voxloop.maintenance import pruning, removal
from voxloop.models import STARTER, base_model
from voxloop.pipeline import LIVE, STEPS, share_ahead
from voxloop.records import Recording
from voxloop.steps import similarity
from voxloop.steps.recordings import audio_key, ingest
from voxloop.steps.utterances import segment
from voxloop.stores import tables
from voxloop.stores.bus import LocalBus
from voxloop.stores.vectors import CatalogVectors, Matrix
from voxloop.workspace import Workspace


@contextmanager
def writes_of(ws: Workspace) -> Iterator[list[str]]:
    """What begins a write transaction meanwhile."""
    begun: list[str] = []

    def begin(connection: sa.Connection) -> None:
        if connection.get_execution_options().get("write", True):
            begun.append("write")

    sa.event.listen(ws.catalog.engine, "begin", begin)
    yield begun
    sa.event.remove(ws.catalog.engine, "begin", begin)


class Rounds(LocalBus):
    """Ends the worker after some waits."""

    def __init__(self, stop: threading.Event, rounds: int) -> None:
        super().__init__()
        self.stop, self.left = stop, rounds

    def wait(self, steps: object, timeout_s: float) -> None:
        self.left -= 1
        if self.left == 0:
            self.stop.set()


def test_an_idle_worker_writes_nothing(workspace: Workspace) -> None:
    stop = threading.Event()
    idle = replace(workspace, bus=Rounds(stop, 20))
    pruning.prune_in_turn(workspace)
    with writes_of(workspace) as begun:
        assert work(idle, stop=stop) == 0
    assert begun == []
    # What waits for later, or is held by another worker, is no reason to write either.
    with workspace.transaction() as tx:
        tx.emit("recording.ingested", "later")
        tx.emit("recording.segmented", "held")
        later = sa.update(tables.job).where(tables.job.c.subject == "later")
        tx.connection.execute(later.values(not_before=tx.now() + 60))
    assert workspace.jobs.claim(["transcribe"])
    assert workspace.jobs.claim(["sample"])
    stop.clear()
    idle = replace(workspace, bus=Rounds(stop, 20))
    with writes_of(workspace) as begun:
        assert work(idle, stop=stop) == 0
    assert begun == []


def test_pruning_takes_its_turn_once_an_hour(workspace: Workspace) -> None:
    work(workspace, until_idle=True)
    assert pruning.prune_in_turn(workspace) is None
    with workspace.transaction() as tx:
        tx.connection.execute(sa.update(tables.upkeep).values(done=tx.now() - pruning.EVERY_S - 1))
    assert pruning.prune_in_turn(workspace) == pruning.Pruned(
        jobs=0, events=0, conversions=0, run_folders=0, captures=0, erased=0
    )
    assert pruning.prune_in_turn(workspace) is None


def test_live_speech_overtakes_a_flood(workspace: Workspace, demo_speech: Path) -> None:
    """Through the whole chain, since what a job causes is as urgent as the job."""
    files = sorted(demo_speech.glob("*.ogg"))[:6]
    taken = [ingest(workspace, file, processes=1).taken[0] for file in files]
    live = taken[-1]
    with workspace.transaction() as tx:
        tx.emit("recording.described", live, priority=LIVE)
    done: dict[int, str] = {}
    work(workspace, until_idle=True, progress=lambda now: done.update({now.jobs: now.step} if now.jobs else {}))
    # Each of the first batches was one job, and the last word on it came when the next one began.
    assert list(done)[:5] == [1, 2, 3, 4, 5]
    assert [done[jobs] for jobs in range(1, 5)] == ["transcribe", "restore", "align", "index"]
    with workspace.read() as reader:
        job = tables.job.c
        rows = reader.connection.execute(sa.select(job.subject, job.priority).where(job.step == "index")).all()
        costs = reader.connection.execute(sa.select(job.step, job.cost_s).where(job.subject == live)).all()
    assert dict(rows) == dict.fromkeys(taken, 0) | {live: LIVE}
    assert all(0.2 < cost < 10 for step, cost in costs if step in ("transcribe", "restore", "index"))


def test_the_workspace_says_which_steps_got_jobs(workspace: Workspace) -> None:
    with pytest.raises(RuntimeError), workspace.transaction() as tx:
        tx.emit("recording.ingested", "r0")
        raise RuntimeError
    assert _woken(workspace) == set()
    with workspace.transaction() as tx:
        tx.emit("recording.ingested", "r1")
        tx.emit("transcription.completed", "r1")
        tx.emit("model.promoted", "m1")  # wakes nobody
    assert _woken(workspace) == {"segment", "restore", "align"}
    with workspace.completion() as tx:
        tx.emit("recording.ingested", "r1")  # known
    assert _woken(workspace) == set()


def _woken(ws: Workspace) -> set[str]:
    bus = ws.bus
    assert isinstance(bus, LocalBus)
    woken = set(bus._woken)
    bus.wait(sorted(woken), 0.0)
    return woken


def test_vectors_of_what_was_forgotten_meanwhile_do_not_stay(workspace: Workspace, demo_speech: Path) -> None:
    """Vectors are written apart from the catalog: the step looks again after it has written them."""
    gone, kept = (ingest(workspace, file, processes=1).taken[0] for file in sorted(demo_speech.glob("*.ogg"))[:2])
    utterances = {one.recording: one.id for one in segment(workspace, [gone, kept])}

    class Slow(CatalogVectors):
        def upsert(self, space: str, ids: Sequence[str], matrix: Matrix) -> None:
            assert removal.forget(workspace, recording=gone).utterances == 1
            super().upsert(space, ids, matrix)

    vectors = Slow(workspace.catalog)
    similarity.index(replace(workspace, vectors=vectors), [gone, kept])
    assert list(vectors.ids(base_model(workspace, STARTER).id)) == [utterances[kept]]


def test_vectors_go_with_what_is_forgotten(workspace: Workspace, demo_speech: Path) -> None:
    gone, kept = (ingest(workspace, file, processes=1).taken[0] for file in sorted(demo_speech.glob("*.ogg"))[:2])
    work(workspace, until_idle=True)
    assert removal.forget(workspace, recording=gone).vectors == 1
    assert {id.partition(":")[0] for id in workspace.vectors.ids(base_model(workspace, STARTER).id)} == {kept}
    assert removal.unfinished(workspace) == []


def test_a_number_is_not_given_twice(workspace: Workspace, demo_speech: Path) -> None:
    files = sorted(demo_speech.glob("*.ogg"))[:3]
    taken = [ingest(workspace, file, processes=1).taken[0] for file in files[:2]]
    made = [one for id in taken for one in segment(workspace, id)]
    with workspace.read() as reader:
        assert reader.numbers([one.id for one in made]) == {made[0].id: 1, made[1].id: 2}
    removal.forget(workspace, recording=taken[1])
    (more,) = segment(workspace, ingest(workspace, files[2], processes=1).taken[0])
    with workspace.read() as reader:
        assert reader.numbers([more.id]) == {more.id: 3}


def test_progress_is_one_line_over_all_steps(workspace: Workspace, demo_speech: Path) -> None:
    told: list[WorkProgress] = []
    taken = [ingest(workspace, file, processes=1).taken[0] for file in sorted(demo_speech.glob("*.ogg"))[:8]]
    with workspace.read() as reader:
        audio_s = sum(reader.get(Recording, id).duration for id in taken)
    done = work(workspace, until_idle=True, progress=told.append)
    assert {one.step for one in told} >= {"segment", "transcribe", "restore", "index"}
    heard = [one.audio_s for one in told]
    assert heard == sorted(heard)
    assert told[0].left_s == pytest.approx(audio_s, rel=0.01)
    assert 0.5 * audio_s < heard[-1] <= audio_s  # the detector leaves out what is no speech
    assert (told[-1].left_s, told[-1].waiting, told[-1].jobs) == (0.0, 0, done)
    assert all(one.error is None for one in told)


def test_a_failure_is_told_of_with_its_step(workspace: Workspace, demo_speech: Path) -> None:
    told: list[WorkProgress] = []
    lost, _ = (ingest(workspace, file, processes=1).taken[0] for file in sorted(demo_speech.glob("*.ogg"))[:2])
    workspace.blobs.delete(audio_key(lost))
    workspace.jobs.max_attempts = 1
    assert work(workspace, ["segment"], until_idle=True, progress=told.append) == 0  # they were one batch
    failed = [one for one in told if one.error]
    assert [(one.step, one.jobs) for one in failed] == [("segment", 0)]
    assert "Error" in (failed[0].error or "")
    assert failed[0].waiting == 0


def test_shares_of_the_steps_are_the_whole_loop() -> None:
    assert share_ahead("segment") == pytest.approx(sum(step.share for step in STEPS.values()))
