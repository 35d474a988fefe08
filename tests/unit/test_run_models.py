"""What a run leaves as a model: its files lie where those of no other writer lie, and are what its row says."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.unit import tiny_whisper
from voxloop import models
from voxloop.errors import LeaseLost
from voxloop.maintenance import backups, integrity
from voxloop.pipeline import open_loop
from voxloop.records import Model, Run
from voxloop.steps.training import runs
from voxloop.steps.training.submit import enqueue
from voxloop.stores import tables
from voxloop.workspace import Workspace

RUN = Run(
    id="r1", dataset="d", base="starter", family="whisper", method="full", recipe={}, status="running", progress={}
)


def machine(folder: Path, place: Path, seed: int) -> Workspace:
    """A machine of its own with the catalog and the blobs in `place`, on which the run left its best weights."""
    ws = open_loop(folder, create=True, catalog=f"sqlite:///{place / 'catalog.db'}", blobs=(place / "blobs").as_uri())
    tiny_whisper.make(ws.runs / RUN.id / "best", seed=seed)
    return ws


def test_a_worker_that_lost_its_lease_gets_in_nobody_s_way(tmp_path: Path) -> None:
    place = tmp_path / "shared"
    place.mkdir()
    with machine(tmp_path / "a", place, seed=1) as a, machine(tmp_path / "b", place, seed=2) as b:
        with a.transaction() as tx:
            tx.add(RUN)
            enqueue(tx, RUN.id)
        lost = a.jobs.claim([runs.STEP], subject=RUN.id)
        assert lost is not None
        with a.transaction() as tx:  # its lease runs out
            tx.connection.execute(tables.job.update().where(tables.job.c.token == lost.token).values(lease_until=1.0))
        held = b.jobs.claim([runs.STEP], subject=RUN.id)
        assert held is not None
        together = threading.Barrier(2)

        def register(ws: Workspace) -> Run | LeaseLost:
            together.wait(60)
            try:
                return runs._register(ws, RUN, {})
            except LeaseLost as error:
                return error

        with ThreadPoolExecutor(2) as pool:
            by_a, by_b = pool.map(register, (a.under(lost), b.under(held)))
        assert isinstance(by_a, LeaseLost)
        assert isinstance(by_b, Run)
        with b.read() as reader:
            (model,) = reader.all(Model)
        assert by_b.model == model.id
        assert model.where == f"models/asr/{RUN.id}/{model.id}"
        best = b.runs / RUN.id / "best"
        for ws in (a, b):
            folder = Path(models.model_folder(ws, model))
            assert all((folder / name).read_bytes() == (best / name).read_bytes() for name in model.files)
        keys = set(b.blobs.list("models"))
        assert len(keys) == 2 * len(model.files)  # what the other one put there first or last

        found = integrity.verify(b, repair=True, min_age_s=-1.0)
        assert {finding.kind for finding in found.findings} == {"blob-orphan"}
        assert set(b.blobs.list("models")) == {f"{model.where}/{name}" for name in model.files}


def test_a_backup_holds_the_files(workspace: Workspace, tmp_path: Path) -> None:
    tiny_whisper.make(workspace.runs / RUN.id / "best")
    with workspace.transaction() as tx:
        tx.add(RUN)
    run = runs._register(workspace, RUN, {})
    backups.backup(workspace, tmp_path / "kept")
    backups.restore(tmp_path / "kept", tmp_path / "again")
    with open_loop(tmp_path / "again") as ws:
        with ws.read() as reader:
            model = reader.get(Model, str(run.model))
        assert Path(models.model_folder(ws, model)).is_relative_to(tmp_path / "again")


@pytest.mark.parametrize("where", [f"models/asr/{RUN.id}", f"models/asr/{RUN.id}/sha256-x"])
def test_files_are_found_where_the_row_says(workspace: Workspace, tmp_path: Path, where: str) -> None:
    """Earlier versions put them under the run alone."""
    folder = tiny_whisper.make(tmp_path / "model")
    names = [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()]
    files = {name: models.sha256_file(folder / name) for name in names}
    for name in names:
        workspace.blobs.put(f"{where}/{name}", folder / name)
    model = Model(
        id=models.model_id(files), family="whisper", base="b", kind="full", where=where, run=RUN.id, files=files
    )
    with workspace.transaction() as tx:
        tx.add(RUN, model)
    assert models.base_model(workspace, model.id).where == where
    assert models.model_folder(workspace, model).endswith(where)
    assert not [one for one in integrity.verify(workspace, min_age_s=-1.0).findings if one.kind != "run-dead"]
