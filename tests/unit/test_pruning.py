"""What nothing needs any more goes; what somebody may still ask for stays."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import sqlalchemy as sa

from voxloop.errors import SettingError
from voxloop.maintenance.integrity import verify
from voxloop.maintenance.pruning import prune
from voxloop.models import CONVERSIONS, conversions
from voxloop.pipeline import open_loop
from voxloop.records import Model, Run
from voxloop.settings import Settings
from voxloop.stores import tables
from voxloop.workspace import Workspace

DAY_S = 86_400.0


def done(ws: Workspace, *subjects: str, days_ago: float = 0.0) -> None:
    """Recordings whose segmentation was done some days ago."""
    with ws.transaction() as tx:
        for subject in subjects:
            tx.emit("recording.ingested", subject)
        then = tx.now() - days_ago * DAY_S
        these = tables.job.c.subject.in_(subjects)
        tx.connection.execute(sa.update(tables.job).where(these).values(state="done", finished=then))
        tx.connection.execute(
            sa.update(tables.event).where(tables.event.c.subject.in_(subjects)).values(created=then - 60)
        )


def jobs(ws: Workspace) -> set[str]:
    with ws.read() as reader:
        return set(reader.connection.execute(sa.select(tables.job.c.subject)).scalars())


def test_done_jobs_go_after_so_many_days_and_are_not_missed(tmp_path: Path) -> None:
    with open_loop(tmp_path / "w", create=True, keep_jobs_days=10.0) as ws:
        done(ws, "old", "older", days_ago=11)
        done(ws, "new", days_ago=9)
        with ws.transaction() as tx:
            tx.emit("recording.ingested", "waiting")
        assert prune(ws).jobs == 2
        assert jobs(ws) == {"new", "waiting"}
        assert prune(ws).jobs == 0
        with ws.transaction() as tx:
            assert not tx.emit("recording.ingested", "old")
        assert jobs(ws) == {"new", "waiting"}
        assert verify(ws, repair=True, min_age_s=0).findings == ()
        assert jobs(ws) == {"new", "waiting"}
        # One that is really missing is still found, and so are those of a step that is newer than the catalog.
        with ws.catalog.write() as tx:
            tx.connection.execute(sa.delete(tables.job).where(tables.job.c.subject == "new"))
        assert [found.kind for found in verify(ws, repair=True, min_age_s=0).findings] == ["job-missing"]
        assert jobs(ws) == {"new", "waiting"}
        ws.jobs.listeners = {**ws.jobs.listeners, "recording.ingested": ("segment", "measure")}
        assert verify(ws, repair=True, min_age_s=0).sound
        with ws.read() as reader:
            assert ws.jobs.counts(reader)["measure"] == {"ready": 4}


def test_only_the_newest_progress_of_an_ended_run_stays(workspace: Workspace) -> None:
    for id, status in (("ended", "completed"), ("failed", "failed"), ("alive", "running")):
        run = Run(id=id, dataset="d", base="b", family="whisper", method="full", recipe={}, status=status)  # type: ignore[arg-type]
        with workspace.transaction() as tx:
            tx.add(run)
            tx.emit("training.started", id)
            for step in range(4):
                tx.emit("training.progress", id, key=f"{id}:{step}", payload={"step": step})
    assert prune(workspace).events == 6
    with workspace.read() as reader:
        event = tables.event.c
        rows = reader.connection.execute(
            sa.select(event.subject, event.payload).where(event.type == "training.progress").order_by(event.seq)
        )
        left = [(row.subject, row.payload["step"]) for row in rows]
        assert left == [("ended", 3), ("failed", 3), *(("alive", step) for step in range(4))]
        started = sa.select(sa.func.count()).where(event.type == "training.started")
        assert reader.connection.execute(started).scalar() == 3
    assert prune(workspace).events == 0


def test_conversions_in_use_stay(workspace: Workspace) -> None:
    ids = [f"sha256-{number:064x}" for number in range(7)]
    with workspace.transaction() as tx:
        for number, id in enumerate(ids):
            tx.add(
                Model(id=id, family="whisper", base="b", kind="full", where="w", run="r", files={}, created=number + 1)
            )
        tx.connection.execute(tables.alias.insert().values(name="champion", model=ids[0], promotion="p"))
    newest = ids[6]
    order = [ids[0], newest, *ids[1:6]]  # used last: ids[5]
    for number, id in enumerate(order):
        folder = workspace.folder / CONVERSIONS / f"{id}-int8_float32"
        folder.mkdir(parents=True)
        (folder / "model.bin").write_bytes(b"w")
        os.utime(folder, (1e9 + number, 1e9 + number))
    partial = workspace.folder / CONVERSIONS / f"{ids[1]}-int8.0a1b.partial"
    partial.mkdir()
    assert prune(workspace).conversions == 2
    assert [form.model for form in conversions(workspace)] == [ids[5], ids[4], ids[3], newest, ids[0]]
    assert partial.exists()


@pytest.mark.parametrize(
    ("status", "ended_s", "goes"),
    [("completed", 7200, True), ("stopped", 7200, True), ("completed", 10, False), ("failed", 7200, False)],
)
def test_the_data_of_a_run_that_will_not_go_on_goes(
    workspace: Workspace, status: str, ended_s: float, goes: bool
) -> None:
    run = Run(
        id="run",
        dataset="d",
        base="b",
        family="whisper",
        method="full",
        recipe={},
        status=status,  # type: ignore[arg-type]
        finished=time.time() - ended_s,
    )
    with workspace.transaction() as tx:
        tx.add(run)
    audio = workspace.runs / "run" / "data" / "audio"
    audio.mkdir(parents=True)
    (audio / "a.wav").write_bytes(b"RIFF")
    best = workspace.runs / "run" / "best"
    best.mkdir()
    assert prune(workspace).run_folders == goes
    assert (audio.exists(), best.exists()) == (not goes, True)


def test_a_time_of_nothing_is_refused() -> None:
    make: Callable[..., Settings] = Settings
    with pytest.raises(SettingError, match="keep_jobs_days is 0"):
        make(keep_jobs_days=0)
