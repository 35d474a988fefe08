"""Verify finds each kind of damage and mends what can be mended; a backup made while work goes on is whole."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import soundfile
import sqlalchemy as sa
from typer.testing import CliRunner

from tests.postgresql import PASSWORD
from tests.unit import kept
from tests.unit.kept import OTHER, WHO, WORDS
from voxloop.cli import app
from voxloop.errors import UsageError, WorkspaceError
from voxloop.maintenance import integrity, removal
from voxloop.maintenance.backups import backup, restore
from voxloop.maintenance.integrity import verify
from voxloop.pipeline import open_loop
from voxloop.records import Recording, Utterance
from voxloop.speech import audio
from voxloop.steps import datasets
from voxloop.steps.recordings import audio_key, ingest
from voxloop.stores import tables
from voxloop.workspace import Workspace

t = tables


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return kept.template(tmp_path_factory.mktemp("template"))


@pytest.fixture
def filled(template: Path, tmp_path: Path) -> Iterator[Workspace]:
    shutil.copytree(template, tmp_path / "workspace")
    with open_loop(tmp_path / "workspace") as ws:
        yield ws


def kinds(found: integrity.Verification) -> list[str]:
    return [finding.kind for finding in found.findings]


def execute(ws: Workspace, *statements: sa.Executable) -> None:
    """Change rows without regard to the keys of others."""
    if ws.catalog.engine.dialect.name == "postgresql":
        with ws.catalog.write() as tx:
            tx.connection.exec_driver_sql("SET LOCAL session_replication_role = replica")
            for statement in statements:
                tx.connection.execute(statement)
        return
    with ws.catalog.engine.connect() as connection:
        connection.exec_driver_sql("rollback")
        connection.exec_driver_sql("pragma foreign_keys=off")
        connection.exec_driver_sql("begin immediate")
        for statement in statements:
            connection.execute(statement)
        connection.exec_driver_sql("commit")
        connection.exec_driver_sql("pragma foreign_keys=on")
        connection.exec_driver_sql("begin")


def first_key(ws: Workspace) -> str:
    with ws.read() as reader:
        return audio_key(reader.all(Recording, order=t.recording.c.id, limit=1)[0].id)


def damage_audio(ws: Workspace) -> None:
    path = ws.blobs.path(first_key(ws))
    data = bytearray(path.read_bytes())
    data[audio.WAV_HEADER_BYTES + 99] ^= 1
    path.write_bytes(data)


def cut_audio(ws: Workspace) -> None:
    path = ws.blobs.path(first_key(ws))
    path.write_bytes(path.read_bytes()[:-10])


def lose_audio(ws: Workspace) -> None:
    ws.blobs.delete(first_key(ws))


def lose_row(ws: Workspace) -> None:
    """An ingest killed between blob and row."""
    wav = audio.wav_bytes(b"\1\0" * 16_000)
    ws.blobs.put("audio/sha256-2b1f.wav", b"cut off")
    from voxloop.stores.blobs import sha256_bytes

    ws.blobs.put(audio_key(sha256_bytes(wav[audio.WAV_HEADER_BYTES :])), wav)


def wrong_span(ws: Workspace) -> None:
    with ws.read() as reader:
        some = reader.all(Utterance, limit=1)[0]
    execute(ws, sa.update(t.utterance).where(t.utterance.c.id == some.id).values(end=99_999_999))


def two_splits(ws: Workspace) -> None:
    with ws.read() as reader:
        test = next(u for u in reader.all(Utterance) if u.split == "test")
        train = next(u for u in reader.all(Utterance) if u.split == "train")
    execute(ws, sa.update(t.utterance).where(t.utterance.c.id == train.id).values(recording=test.recording))


def moved_split(ws: Workspace) -> None:
    execute(ws, sa.update(t.utterance).where(t.utterance.c.split == "test").values(split="train"))


def changed_manifest(ws: Workspace) -> None:
    path = ws.blobs.path(f"datasets/{datasets.find(ws, 'frozen').id}.jsonl")
    path.write_text(path.read_text().replace("plain", "plane", 1))


def lost_manifest(ws: Workspace) -> None:
    ws.blobs.delete(f"datasets/{datasets.find(ws, 'frozen').id}.jsonl")


def dataset_rows(ws: Workspace) -> None:
    table = t.dataset_utterance
    some = sa.select(table.c.utterance).limit(1).scalar_subquery()
    execute(ws, sa.delete(table).where(table.c.utterance == some))


def lost_utterance(ws: Workspace) -> None:
    with ws.read() as reader:
        some = reader.all(Utterance, t.utterance.c.speaker == OTHER, limit=1)[0].id
    for table in (t.dataset_utterance, t.transcript):
        execute(ws, sa.delete(table).where(table.c.utterance == some))
    execute(
        ws, sa.delete(t.vector).where(t.vector.c.id == some), sa.delete(t.utterance).where(t.utterance.c.id == some)
    )


def model_file(ws: Workspace) -> None:
    ws.blobs.path("models/asr/run1/model.safetensors").write_bytes(b"other weights")


def lost_model_file(ws: Workspace) -> None:
    ws.blobs.delete(next(ws.blobs.list("models/asr/run2")))


def heard_lost(ws: Workspace) -> None:
    ws.blobs.delete("evaluations/sha256-e1.jsonl")


def heard_cut(ws: Workspace) -> None:
    path = ws.blobs.path("evaluations/sha256-e1.jsonl")
    path.write_bytes(path.read_bytes()[:-30])


def alias_astray(ws: Workspace) -> None:
    execute(ws, sa.update(t.alias).values(model="sha256-none"))


def job_missing(ws: Workspace) -> None:
    some = sa.select(t.job.c.id).where(t.job.c.step == "segment").limit(1).scalar_subquery()
    execute(ws, sa.delete(t.job).where(t.job.c.id == some))


def job_lone(ws: Workspace) -> None:
    some = sa.select(t.job.c.id).where(t.job.c.step == "segment").limit(1).scalar_subquery()
    execute(ws, sa.update(t.job).where(t.job.c.id == some).values(event="none", id="segment:none"))


def vector_lone(ws: Workspace) -> None:
    some = sa.select(t.vector.c.id).limit(1).scalar_subquery()
    execute(ws, sa.update(t.vector).where(t.vector.c.id == some).values(id="sha256-none:0-1"))


def blob_lone(ws: Workspace) -> None:
    ws.blobs.put("datasets/sha256-none.jsonl", b"")


def run_dead(ws: Workspace) -> None:
    execute(ws, sa.update(t.run).where(t.run.c.id == "run1").values(status="running"))


def run_data(ws: Workspace) -> None:
    manifest = ws.runs / "run1" / "data" / "train.jsonl"
    row = {"id": "sha256-none:0-1", "audio_path": "audio/none-0-1.wav", "text": "gone"}
    manifest.write_text(manifest.read_text() + json.dumps(row) + "\n")


def leftovers(ws: Workspace) -> None:
    (ws.folder / "spool" / "ingest-x").mkdir(parents=True)
    (ws.runs / "run1" / "best.partial").mkdir()
    (ws.folder / "blobs" / "audio" / "sha256-x.wav#1").write_bytes(b"")
    (ws.folder / "cache" / "audio").mkdir(parents=True)
    (ws.folder / "cache" / "audio" / "sha256-x.wav.01234567.partial").write_bytes(b"")


MENDED: list[tuple[Callable[[Workspace], None], set[str]]] = [
    (damage_audio, {"audio-damaged"}),
    (cut_audio, {"audio-damaged"}),
    (lose_audio, {"audio-missing"}),
    (lose_row, {"audio-orphan"}),
    (dataset_rows, {"dataset-rows"}),
    (lost_utterance, {"dataset-utterance-missing"}),
    (model_file, {"model-file"}),
    (heard_lost, {"hypotheses-missing"}),
    (heard_cut, {"hypotheses-damaged"}),
    (job_missing, {"job-missing"}),
    (job_lone, {"job-without-event", "job-missing"}),
    (vector_lone, {"vector-orphan"}),
    (blob_lone, {"blob-orphan"}),
    (run_dead, {"run-dead"}),
    (run_data, {"run-data-forgotten"}),
    (leftovers, {"leftover"}),
]
LISTED: list[tuple[Callable[[Workspace], None], set[str]]] = [
    (wrong_span, {"utterance-span"}),
    (two_splits, {"split-leak", "utterance-span"}),
    (moved_split, {"split-moved"}),
    (changed_manifest, {"manifest-damaged"}),
    (lost_manifest, {"manifest-missing"}),
    (lost_model_file, {"model-file"}),
    (alias_astray, {"alias"}),
]


def test_vectors_that_were_made_are_made_again(filled: Workspace) -> None:
    """Whether the job that made them is still there or was pruned."""
    with filled.read() as reader:
        lost, kept, failed = reader.all(Recording, limit=3)
    for recording in (lost, kept, failed):
        with filled.transaction() as tx:
            tx.emit("nlp.postprocessed", recording.id)
    claims = {claim.subjects[0]: claim for _ in range(3) if (claim := filled.jobs.claim(["index"]))}
    for id, claim in claims.items():
        if id == failed.id:
            filled.jobs.fail(claim, ValueError("no vectors"))
        else:
            with filled.under(claim).completion():
                pass
    execute(filled, sa.delete(t.vector).where(t.vector.c.id.startswith(lost.id)))
    execute(filled, sa.delete(t.vector).where(t.vector.c.id.startswith(failed.id)))
    for pruned in (False, True):
        if pruned:
            assert filled.jobs.prune(0.0, 100) > 0
        found = verify(filled, min_age_s=0)
        assert [(finding.kind, finding.subject) for finding in found.findings] == [("vector-missing", lost.id)]
        assert verify(filled, repair=True, min_age_s=0).sound
        again = filled.jobs.claim(["index"], subject=lost.id)
        assert again is not None
        assert again.subjects == (lost.id,)
        with filled.under(again).completion():
            pass


def test_a_sound_workspace_is_found_sound(filled: Workspace) -> None:
    found = verify(filled, min_age_s=0)
    assert (found.findings, found.sound) == ((), True)
    assert found.checked["recordings"] == found.checked["utterances"] == 16
    assert (found.checked["datasets"], found.checked["models"], found.checked["evaluations"]) == (2, 2, 1)


@pytest.mark.parametrize(("harm", "expected"), MENDED, ids=lambda value: getattr(value, "__name__", ""))
def test_what_can_be_mended_is(filled: Workspace, harm: Callable[[Workspace], None], expected: set[str]) -> None:
    harm(filled)
    found = verify(filled, min_age_s=0)
    assert set(kinds(found)) == expected
    assert not found.sound
    assert all("--repair" in finding.remedy for finding in found.findings)
    assert set(kinds(verify(filled, min_age_s=0))) == expected  # looking changes nothing
    assert verify(filled, repair=True, min_age_s=0).sound
    assert verify(filled, min_age_s=0).findings == ()


@pytest.mark.parametrize(("harm", "expected"), LISTED, ids=lambda value: getattr(value, "__name__", ""))
def test_what_cannot_be_mended_is_listed(
    filled: Workspace, harm: Callable[[Workspace], None], expected: set[str]
) -> None:
    harm(filled)
    found = verify(filled, repair=True, min_age_s=0)
    assert not found.sound
    assert {finding.kind for finding in found.findings if not finding.repaired} >= expected
    assert all(finding.remedy for finding in found.findings)


def test_lost_audio_of_a_channel_comes_back_from_wherever_the_command_runs(
    workspace: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    both = np.random.default_rng(3).normal(0, 0.05, (8_000, 2))
    soundfile.write(tmp_path / "call.wav", both, 16_000)
    monkeypatch.chdir(tmp_path)
    taken = ingest(workspace, "call.wav", channels="split").taken
    monkeypatch.chdir("/")
    for id in taken:
        workspace.blobs.delete(audio_key(id))
    found = verify(workspace, repair=True)
    assert [(one.kind, one.repaired) for one in found.findings] == [("audio-missing", True)] * 2
    assert str(tmp_path / "call.wav") in verify_again_without(workspace, taken[1], tmp_path / "call.wav")


def verify_again_without(ws: Workspace, id: str, file: Path) -> str:
    """What is told of lost audio whose file is gone too."""
    ws.blobs.delete(audio_key(id))
    file.unlink()
    (finding,) = verify(ws, repair=True).findings
    assert not finding.repaired
    return finding.remedy


def test_lost_audio_whose_file_changed_stays_lost(workspace: Workspace, tmp_path: Path) -> None:
    kept.take(workspace, tmp_path / "speech", clips=2)
    lose_audio(workspace)
    for file in (tmp_path / "speech").glob("*.wav"):
        file.write_bytes(audio.wav_bytes(b"\0\0" * 16_000))
    found = verify(workspace, repair=True, min_age_s=0)
    assert kinds(found) == ["audio-missing"]
    assert "forget --recording" in found.findings[0].remedy


def test_what_is_young_may_be_about_to_be_named(filled: Workspace) -> None:
    lose_row(filled)
    blob_lone(filled)
    leftovers(filled)
    assert verify(filled, repair=True).findings == ()
    assert filled.blobs.exists("datasets/sha256-none.jsonl")


def test_audio_taken_back_wakes_the_loop(filled: Workspace) -> None:
    lose_row(filled)
    verify(filled, repair=True, min_age_s=0)
    with filled.read() as reader:
        (back,) = reader.all(Recording, t.recording.c.speaker.is_(None))
        jobs = reader.connection.execute(sa.select(t.job.c.step).where(t.job.c.subject == back.id)).scalars().all()
    assert (back.samples, jobs) == (16_000, ["segment"])


def test_the_command_says_1_where_something_is_wrong(filled: Workspace) -> None:
    command = ["-C", str(filled.folder), "verify"]
    sound = CliRunner().invoke(app, command)
    assert (sound.exit_code, "no problems found" in sound.output) == (0, True)
    damage_audio(filled)
    wrong = CliRunner().invoke(app, [*command, "--json"])
    assert wrong.exit_code == 1
    assert [f["kind"] for f in json.loads(wrong.stdout)["findings"]] == ["audio-damaged"]
    assert CliRunner().invoke(app, [*command, "--repair"]).exit_code == 0
    assert CliRunner().invoke(app, command).exit_code == 0


# Backup and restore --------------------------------------------------------------------------------------------------


def rows(ws: Workspace) -> dict[str, list[tuple[object, ...]]]:
    with ws.read() as reader:
        return {
            table.name: sorted(map(repr, reader.connection.execute(sa.select(table))))  # type: ignore[misc]
            for table in tables.metadata.sorted_tables
        }


def test_restored_it_is_what_it_was(filled: Workspace, tmp_path: Path) -> None:
    done = backup(filled, tmp_path / "backup")
    assert done.copied == done.files
    restored = restore(tmp_path / "backup", tmp_path / "restored")
    assert restored.files == done.files
    with open_loop(tmp_path / "restored") as again:
        assert rows(again) == rows(filled)
        assert sorted(again.blobs.list("")) == sorted(filled.blobs.list(""))
        assert verify(again, min_age_s=0).findings == ()
    assert (tmp_path / "restored" / "runs" / "run1" / "metrics.jsonl").exists()
    assert (tmp_path / "restored" / "voxloop.toml").read_text() == (filled.folder / "voxloop.toml").read_text()


def test_a_second_backup_takes_only_what_is_new_and_drops_what_was_forgotten(filled: Workspace, tmp_path: Path) -> None:
    first = backup(filled, tmp_path / "backup")
    second = backup(filled, tmp_path / "backup")
    assert second.files == first.files
    assert second.copied <= 2  # settings, and the catalog where its pages moved
    removal.forget(filled, speaker=WHO)
    third = backup(filled, tmp_path / "backup")
    assert third.removed >= 8
    assert kept.traces(tmp_path / "backup", [WHO, *WORDS]) == []
    restore(tmp_path / "backup", tmp_path / "restored")
    with open_loop(tmp_path / "restored") as again:
        assert verify(again, min_age_s=0).findings == ()


def test_damage_in_a_backup_is_found_and_nothing_is_restored(filled: Workspace, tmp_path: Path) -> None:
    backup(filled, tmp_path / "backup")
    (tmp_path / "backup" / "blobs" / "evaluations" / "sha256-e1.jsonl").write_text("changed")
    with pytest.raises(WorkspaceError, match=r"sha256-e1\.jsonl is damaged"):
        restore(tmp_path / "backup", tmp_path / "restored")
    assert not (tmp_path / "restored").exists()


def test_a_backup_with_lost_blobs_says_which(filled: Workspace, tmp_path: Path) -> None:
    lose_audio(filled)
    done = backup(filled, tmp_path / "backup")
    assert list(done.missing) == [first_key(filled)]
    assert restore(tmp_path / "backup", tmp_path / "restored").missing == done.missing


def test_wrong_places_are_refused(filled: Workspace, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="inside the workspace"):
        backup(filled, filled.folder / "backup")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "letter.txt").write_text("mine")
    with pytest.raises(UsageError, match="no backup"):
        backup(filled, tmp_path / "full")
    with pytest.raises(UsageError, match="no complete backup"):
        restore(tmp_path / "full", tmp_path / "restored")
    backup(filled, tmp_path / "backup")
    with pytest.raises(UsageError, match="not empty"):
        restore(tmp_path / "backup", filled.folder)
    manifest = json.loads((tmp_path / "backup" / "backup.json").read_text())
    manifest["files"]["../../outside"] = {"size": 1, "sha256": "x"}
    (tmp_path / "backup" / "backup.json").write_text(json.dumps(manifest))
    with pytest.raises(WorkspaceError, match="outside the backup"):
        restore(tmp_path / "backup", tmp_path / "restored")


def _ingesting(folder: Path, speech: Path) -> subprocess.Popen[bytes]:
    """A process that takes copies of one file in, each made different, until it is stopped."""
    code = (
        "import sys\nfrom pathlib import Path\nimport numpy as np\n"
        "from voxloop.speech.audio import to_pcm16, wav_bytes\nfrom voxloop.pipeline import open_loop\n"
        "from voxloop.steps.recordings import ingest\nfrom voxloop.steps.utterances import segment\n"
        "folder, speech = Path(sys.argv[1]), Path(sys.argv[2])\nrng = np.random.default_rng()\n"
        "with open_loop(folder) as ws:\n"
        "    while True:\n"
        "        noise = rng.standard_normal(16_000).astype('float32')\n"
        "        (speech / 'more.wav').write_bytes(wav_bytes(to_pcm16(0.1 * noise)))\n"
        "        (speech / 'more.txt').write_text('more')\n"
        "        segment(ws, ingest(ws, speech / 'more.wav', processes=1).taken)\n"
    )
    return subprocess.Popen([sys.executable, "-c", code, str(folder), str(speech)], env=os.environ)


def test_a_backup_made_while_work_goes_on_is_whole(filled: Workspace, tmp_path: Path) -> None:
    speech = tmp_path / "more"
    speech.mkdir()
    process = _ingesting(filled.folder, speech)
    counts = []
    try:
        deadline = time.monotonic() + 120
        for _ in range(3):
            with filled.read() as reader:
                seen = reader.count(Recording)
            while True:  # until some more have come in since the last backup
                with filled.read() as reader:
                    if reader.count(Recording) > seen + 3:
                        break
                assert time.monotonic() < deadline
                assert process.poll() is None
                time.sleep(0.02)
            backup(filled, tmp_path / "backup")
            restore(tmp_path / "backup", tmp_path / "restored")
            with open_loop(tmp_path / "restored") as again:
                found = verify(again, min_age_s=0)
                assert found.findings == ()
                counts.append(found.checked["recordings"])
            shutil.rmtree(tmp_path / "restored")
    finally:
        process.kill()
        process.wait()
    assert 16 < counts[0] < counts[1] < counts[2]


def test_the_commands_back_up_and_restore(filled: Workspace, tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["-C", str(filled.folder), "backup", str(tmp_path / "b")])
    assert done.exit_code == 0, done.output
    back = CliRunner().invoke(app, ["-C", str(tmp_path / "r"), "restore", str(tmp_path / "b")])
    assert back.exit_code == 0, back.output
    assert CliRunner().invoke(app, ["-C", str(tmp_path / "r"), "verify"]).exit_code == 0
    assert CliRunner().invoke(app, ["-C", str(tmp_path / "r"), "restore", str(tmp_path / "b")]).exit_code == 2


# On PostgreSQL -------------------------------------------------------------------------------------------------------


def test_on_postgresql_what_can_be_mended_is(postgresql_workspace: Workspace, tmp_path: Path) -> None:
    ws = postgresql_workspace
    kept.fill(ws, tmp_path / "speech")
    assert verify(ws, min_age_s=0).findings == ()
    for harm, expected in MENDED:
        if harm is heard_lost:  # mended by forgetting the one evaluation, which the next one cuts
            continue
        harm(ws)
        assert set(kinds(verify(ws, min_age_s=0))) == expected, harm.__name__
        assert verify(ws, repair=True, min_age_s=0).sound, harm.__name__
        assert verify(ws, min_age_s=0).findings == (), harm.__name__


def test_on_postgresql_a_backup_is_refused_and_pg_dump_named(postgresql_workspace: Workspace, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="pg_dump") as refused:
        backup(postgresql_workspace, tmp_path / "backup")
    assert PASSWORD not in str(refused.value)
    with pytest.raises(WorkspaceError, match="pg_dump"):
        postgresql_workspace.catalog.copy(tmp_path / "copy.db")
