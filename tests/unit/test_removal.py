"""Forgetting leaves no trace in any file of the workspace, marks what used it, and survives a kill."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import signal
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import sqlalchemy as sa
from typer.testing import CliRunner

from tests.unit import kept
from tests.unit.kept import OTHER, WHO, WORDS
from voxloop.cli import app
from voxloop.errors import ConflictError, UnknownRecord, UsageError
from voxloop.maintenance import integrity, removal
from voxloop.maintenance.removal import forgetting
from voxloop.pipeline import open_loop
from voxloop.records import Dataset, Evaluation, Model, Recording, Run, Transcript, Utterance
from voxloop.steps import datasets, training
from voxloop.steps.evaluation import scored_rows
from voxloop.steps.recordings import ingest
from voxloop.steps.training import locks
from voxloop.steps.training.files import TRAINING
from voxloop.steps.utterances import segment
from voxloop.stores import tables
from voxloop.stores.blobs import Blobs
from voxloop.stores.catalog import to_event
from voxloop.workspace import Workspace


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return kept.template(tmp_path_factory.mktemp("template"))


@pytest.fixture
def filled(template: Path, tmp_path: Path) -> Iterator[Workspace]:
    shutil.copytree(template, tmp_path / "workspace")
    with open_loop(tmp_path / "workspace") as ws:
        yield ws


def needles(ws: Workspace, *, speaker: str = WHO) -> list[str]:
    """Everything by which the speaker could be found again."""
    with ws.read() as reader:
        recordings = reader.all(Recording, tables.recording.c.speaker == speaker)
    assert recordings
    heads = [recording.id.removeprefix("sha256-")[:24] for recording in recordings]
    return [speaker, *WORDS, *heads]


def test_nothing_of_a_speaker_is_left_in_any_file(filled: Workspace) -> None:
    sought = needles(filled)
    assert {needle for needle, _ in kept.traces(filled.folder, sought)} == set(sought)

    done = removal.forget(filled, speaker=WHO, by="officer")

    assert done.finished
    assert (done.recordings, done.utterances, done.transcripts, done.vectors) == (8, 8, 16, 8)
    assert done.seconds_of_audio == pytest.approx(8.0)
    # While the workspace is open: the write-ahead log is beside the catalog.
    assert kept.traces(filled.folder, sought) == []


def test_what_others_said_stays_whole(filled: Workspace) -> None:
    frozen = datasets.find(filled, "frozen")
    before = [row for row in datasets.rows(filled, frozen.id) if row.speaker == OTHER]
    removal.forget(filled, speaker=WHO)
    assert datasets.rows(filled, frozen.id) == before
    with filled.read() as reader:
        assert {r.speaker for r in reader.all(Recording)} == {OTHER}
        assert reader.count(Transcript) == 16
        assert reader.connection.execute(sa.select(sa.func.count()).select_from(tables.refusal)).scalar() == 1
        evaluation = reader.get(Evaluation, "sha256-e1")
    assert {row.speaker for row in scored_rows(filled, evaluation)} == {OTHER}
    assert evaluation.scores["utterances"] == len(scored_rows(filled, evaluation))
    assert evaluation.scores["forgotten"] > 0
    assert integrity.verify(filled, min_age_s=0).findings == ()


def test_datasets_and_models_that_used_it_are_named_and_marked(filled: Workspace) -> None:
    frozen = datasets.find(filled, "frozen")
    learnt = sum(row.speaker == WHO and row.split != "test" for row in datasets.rows(filled, frozen.id))
    assert learnt
    done = removal.forget(filled, speaker=WHO)
    assert {(marked.id, marked.utterances) for marked in done.datasets} >= {(frozen.id, 8)}
    assert sorted((marked.name, marked.utterances) for marked in done.models) == [("run1", learnt), ("run2", 0)]
    with filled.read() as reader:
        marked = reader.get(Dataset, frozen.id)
        assert (marked.name, marked.forgotten, sum(marked.clips.values())) == ("frozen", 8, 8)
        other = next(d for d in reader.all(Dataset) if d.id != frozen.id)
        assert other.name == f"dataset-{other.id[7:19]}"
        assert (other.forgotten, other.clips) == (8, {"train": 0, "val": 0, "test": 0})
        assert other.filters["speakers"] == ["(forgotten)"]
        assert sorted(model.forgotten for model in reader.all(Model) if model.run) == sorted([learnt, 1])


def test_the_audit_entry_names_nobody(filled: Workspace) -> None:
    done = removal.forget(filled, speaker=WHO, by="officer")
    with filled.read() as reader:
        rows = reader.connection.execute(sa.select(tables.event).where(tables.event.c.type == "speaker.forgotten"))
        (event,) = [to_event(row) for row in rows]
        row = reader.connection.execute(sa.select(tables.removal)).one()
    assert event.subject == done.id == row.id
    assert event.payload["by"] == row.by == "officer"
    assert event.payload["recordings"] == 8
    assert row.pending is None
    assert row.finished >= row.created


def test_one_recording_goes_and_its_speaker_stays(filled: Workspace) -> None:
    with filled.read() as reader:
        gone = reader.all(Recording, tables.recording.c.speaker == WHO)[0]
    done = removal.forget(filled, recording=gone.id[:20])
    assert (done.kind, done.recordings, done.utterances) == ("recording", 1, 1)
    assert kept.traces(filled.folder, [gone.id.removeprefix("sha256-")[:24], gone.name]) == []
    with filled.read() as reader:
        assert reader.count(Recording, tables.recording.c.speaker == WHO) == 7


def test_forgetting_twice_marks_twice_and_leaves_nothing_between(filled: Workspace) -> None:
    frozen = datasets.find(filled, "frozen")
    with filled.read() as reader:
        first, second = reader.all(Recording, tables.recording.c.speaker == WHO)[:2]
    removal.forget(filled, recording=first.id)
    removal.forget(filled, recording=second.id)
    assert kept.traces(filled.folder, [first.id[7:31], second.id[7:31]]) == []
    with filled.read() as reader:
        assert reader.get(Dataset, frozen.id).forgotten == 2
    assert len(list(filled.blobs.list("datasets/"))) == 4
    assert integrity.verify(filled, min_age_s=0).findings == ()


def test_a_recording_of_several_speakers_goes_whole_and_this_is_said(workspace: Workspace, tmp_path: Path) -> None:
    kept.take(workspace, tmp_path / "speech", clips=4)
    with workspace.read() as reader:
        theirs = reader.all(Utterance, tables.utterance.c.speaker == OTHER)
    with workspace.transaction() as tx:
        tx.change(Utterance, theirs[0].id, speaker=WHO)
    done = removal.forget(workspace, speaker=WHO, dry_run=True)
    assert done.recordings == 3
    assert any("1 recording also contains other speakers" in note for note in done.notes)


def test_a_dry_run_changes_nothing(filled: Workspace) -> None:
    blobs = sorted(filled.blobs.list(""))
    dry = removal.forget(filled, speaker=WHO, dry_run=True)
    assert sorted(filled.blobs.list("")) == blobs
    assert (dry.id, dry.dry_run) == (None, True)
    done = removal.forget(filled, speaker=WHO)
    assert (dry.recordings, dry.transcripts, dry.blobs) == (done.recordings, done.transcripts, done.blobs)
    assert (dry.datasets, dry.models) == (done.datasets, done.models)


def test_taken_in_again_it_is_new(workspace: Workspace, tmp_path: Path) -> None:
    frozen = kept.fill(workspace, tmp_path / "speech")
    removal.forget(workspace, speaker=WHO)
    report = ingest(workspace, tmp_path / "speech", processes=1)
    assert (len(report.taken), len(report.known)) == (8, 8)
    segment(workspace, report.taken)
    again = datasets.build(workspace, name="frozen", ratios=(0.5, 0.2, 0.3))
    if again.id == frozen.id:  # the same splits: the same content is the same dataset, whole again
        assert (again.forgotten, again.manifest) == (0, None)
    assert len(datasets.rows(workspace, again.id)) == 16


def test_a_training_that_runs_is_not_robbed(filled: Workspace) -> None:
    lock = locks.take(filled.runs / "run1" / TRAINING)
    assert lock is not None
    with filled.transaction() as tx:
        tx.connection.execute(sa.update(tables.run).where(tables.run.c.id == "run1").values(status="running"))
    with lock, pytest.raises(ConflictError, match="run1 is training on this data"):
        removal.forget(filled, speaker=WHO)
    with filled.read() as reader:
        assert reader.count(Recording) == 16


def test_an_unfinished_run_begins_anew(filled: Workspace) -> None:
    checkpoint = filled.runs / "run1" / "checkpoint-5"
    checkpoint.mkdir()
    with filled.transaction() as tx:
        tx.change(Run, "run1", status="paused", progress={"step": 5})
    removal.forget(filled, speaker=WHO)
    left = {path.name for path in (filled.runs / "run1").iterdir()}
    assert not {"checkpoint-5", "best", "metrics.jsonl"} & left
    assert "data" in left
    assert training.find(filled, "run1").progress == {}


def test_who_is_not_known_is_said_with_who_is(workspace: Workspace, tmp_path: Path) -> None:
    kept.take(workspace, tmp_path / "speech", clips=2)
    with pytest.raises(UnknownRecord, match=f"did you mean {WHO}"):
        removal.forget(workspace, speaker="Zdenka")
    with pytest.raises(UnknownRecord, match="no recording 'nothing'"):
        removal.forget(workspace, recording="nothing")
    with pytest.raises(UsageError, match="either --speaker or --recording"):
        removal.forget(workspace)


# Kills ---------------------------------------------------------------------------------------------------------------


class _Fuse(Blobs):
    """Kills this process at the n-th deletion."""

    def __init__(self, blobs: Blobs, left: int, folder: Path) -> None:
        super().__init__(blobs.url, cache=folder / "cache")
        self._left = left

    def delete(self, key: str) -> None:
        if self._left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        self._left -= 1
        super().delete(key)


def _forget_and_die(folder: Path, after: int) -> None:
    with open_loop(folder) as ws:
        removal.forget(replace(ws, blobs=_Fuse(ws.blobs, after, folder)), speaker=WHO)


@pytest.mark.parametrize(("after", "how"), [(0, "resume"), (5, "verify")])
def test_killed_while_blobs_are_deleted_the_rest_is_done_later(filled: Workspace, after: int, how: str) -> None:
    sought = needles(filled)
    process = multiprocessing.get_context("spawn").Process(target=_forget_and_die, args=(filled.folder, after))
    process.start()
    process.join(120)
    assert process.exitcode == -signal.SIGKILL

    with filled.read() as reader:
        assert reader.count(Recording) == 8  # the catalog has forgotten
    assert kept.traces(filled.folder, sought)  # the files have not
    assert integrity.verify(filled, min_age_s=0).findings[0].kind == "removal-unfinished"

    if how == "resume":
        assert removal.resume(filled) == 1
    else:
        assert integrity.verify(filled, repair=True).sound
    assert removal.unfinished(filled) == []
    assert kept.traces(filled.folder, sought) == []
    assert removal.resume(filled) == 0


def test_what_was_taken_in_again_before_the_rest_was_done_stays(workspace: Workspace, tmp_path: Path) -> None:
    kept.take(workspace, tmp_path / "speech", clips=4)
    process = multiprocessing.get_context("spawn").Process(target=_forget_and_die, args=(workspace.folder, 0))
    process.start()
    process.join(120)
    assert len(ingest(workspace, tmp_path / "speech", processes=1).taken) == 2
    assert removal.resume(workspace) == 1
    found = integrity.verify(workspace, min_age_s=0)
    assert [f for f in found.findings if f.kind.startswith("audio")] == []
    assert found.checked["recordings"] == 4


def test_a_manifest_of_a_build_that_was_killed_goes_too(workspace: Workspace, tmp_path: Path) -> None:
    kept.take(workspace, tmp_path / "speech", clips=4)
    frozen = datasets.build(workspace, ratios=(0.5, 0.0, 0.5))
    with workspace.transaction() as tx:
        tx.connection.execute(sa.delete(tables.dataset_utterance))
        tx.connection.execute(sa.delete(tables.dataset))
    removal.forget(workspace, speaker=WHO)
    assert not workspace.blobs.exists(f"datasets/{frozen.id}.jsonl")


# The command ---------------------------------------------------------------------------------------------------------


def test_the_command_asks_and_tells(filled: Workspace) -> None:
    command = ["-C", str(filled.folder), "forget", "--speaker", WHO]
    asked = CliRunner().invoke(app, command)
    assert asked.exit_code == 2
    assert "--dry-run" in asked.output
    dry = CliRunner().invoke(app, [*command, "--dry-run"])
    assert dry.exit_code == 0
    assert "would be forgotten: 8 recordings" in dry.output
    assert "cannot unlearn" in dry.output
    done = CliRunner().invoke(app, [*command, "--yes"])
    assert done.exit_code == 0, done.output
    assert "forgotten: 8 recordings" in done.output
    assert "audit entry" in done.output
    again = CliRunner().invoke(app, [*command, "--yes"])
    assert again.exit_code == 1
    assert "no recording" in again.output
    resumed = CliRunner().invoke(app, ["-C", str(filled.folder), "forget", "--resume"])
    assert (resumed.exit_code, "0 unfinished" in resumed.output) == (0, True)


def test_a_model_that_heard_a_dataset_again_is_marked() -> None:
    run = Run(id="r", dataset="new", base="starter", family="whisper", method="full", recipe={"replay_from": ["old"]})
    model = Model(id="m", family="whisper", base="starter", kind="full", where="m", run="r")
    marked = forgetting._models_that_learnt([run], [model], {"old": 3})
    assert [(one.id, one.utterances) for one in marked] == [("m", 3)]
    assert forgetting._models_that_learnt([run], [model], {"other": 3}) == []


# On PostgreSQL -------------------------------------------------------------------------------------------------------


def test_on_postgresql_nothing_of_a_speaker_is_left_in_its_tables(
    postgresql_workspace: Workspace, tmp_path: Path
) -> None:
    ws = postgresql_workspace
    kept.fill(ws, tmp_path / "speech")
    sought = needles(ws)

    def in_tables() -> set[str]:
        """Needles in the files of the tables and of their indexes, as they lie on the server's disk."""
        found: set[str] = set()
        with ws.catalog.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            connection.exec_driver_sql("CHECKPOINT")
            files = connection.exec_driver_sql(
                "SELECT pg_read_binary_file(pg_relation_filepath(oid)) FROM pg_class"
                " WHERE relkind IN ('r', 't', 'i') AND relnamespace::regnamespace::text IN ('public', 'pg_toast')"
            ).scalars()
            for data in files:
                found |= {needle for needle in sought if needle.encode() in bytes(data or b"")}
        return found

    assert in_tables() == set(sought)
    done = removal.forget(ws, speaker=WHO, by="officer")
    assert done.finished
    assert (done.recordings, done.utterances, done.transcripts, done.vectors) == (8, 8, 16, 8)
    assert in_tables() == set()
    assert kept.traces(ws.folder, sought) == []
    assert integrity.verify(ws, min_age_s=0).findings == ()


def test_on_postgresql_a_reader_puts_off_the_end_of_a_removal(
    postgresql_workspace: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ws = postgresql_workspace
    kept.fill(ws, tmp_path / "speech")
    monkeypatch.setattr("voxloop.stores.catalog.REWRITE_WAIT_MS", 100)
    with ws.read() as reader:
        reader.count(Transcript)
        assert not removal.forget(ws, speaker=WHO).finished
    assert removal.resume(ws) == 1
    assert integrity.verify(ws, min_age_s=0).findings == ()
