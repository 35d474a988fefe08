"""A worker takes the urgent first, leaves the catalog alone while it has nothing to do, and loses little by a kill."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import sqlalchemy as sa

from voxloop.automation.worker import work
from voxloop.maintenance import pruning, removal
from voxloop.models import STARTER, base_model
from voxloop.pipeline import LIVE
from voxloop.steps import similarity
from voxloop.steps.recordings import ingest
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
    assert pruning.prune_in_turn(workspace) == pruning.Pruned(jobs=0, events=0, conversions=0, run_folders=0)
    assert pruning.prune_in_turn(workspace) is None


def test_live_speech_overtakes_a_flood(workspace: Workspace, demo_speech: Path) -> None:
    """Through the whole chain, since what a job causes is as urgent as the job."""
    files = sorted(demo_speech.glob("*.ogg"))[:6]
    taken = [ingest(workspace, file, processes=1).taken[0] for file in files]
    live = taken[-1]
    with workspace.transaction() as tx:
        tx.emit("recording.described", live, priority=LIVE)
    done: list[tuple[str, int]] = []
    work(workspace, until_idle=True, progress=lambda batch: done.append((batch.step, batch.jobs)))
    assert [step for step, _ in done[:5]] == ["segment", "transcribe", "restore", "align", "index"]
    assert [jobs for _, jobs in done[:5]] == [1] * 5
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
