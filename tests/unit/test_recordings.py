"""Ingest on real workspaces: what is taken, known and refused, and what a kill leaves behind."""

from __future__ import annotations

import json
import os
import shutil
import signal
import struct
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import sqlalchemy as sa

from voxloop.errors import BlobError, UsageError
from voxloop.records import Recording
from voxloop.speech import audio
from voxloop.steps.recordings import IngestProgress, Refusal, audio_key, conversion, ingest, read_audio
from voxloop.steps.recordings.sources import Item
from voxloop.stores import tables
from voxloop.workspace import Workspace

RATE = 16_000


def make(path: Path, seconds: float = 0.5, *, seed: int = 0, rate: int = RATE) -> Path:
    """A file of noise that differs by its seed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, np.random.default_rng(seed).normal(0, 0.05, round(seconds * rate)), rate)
    return path


def write_metadata(folder: Path, rows: Sequence[Any]) -> None:
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    (folder / "metadata.jsonl").write_text("\n".join(lines) + "\n")


def recordings(ws: Workspace) -> dict[str, Recording]:
    """By name."""
    with ws.read() as reader:
        return {recording.name: recording for recording in reader.all(Recording)}


def events(ws: Workspace, type: str) -> list[sa.Row[Any]]:
    with ws.read() as reader:
        return list(reader.connection.execute(sa.select(tables.event).where(tables.event.c.type == type)))


def refusals(ws: Workspace) -> dict[str, str]:
    with ws.read() as reader:
        return {row.path: row.reason for row in reader.connection.execute(sa.select(tables.refusal))}


def test_a_folder_with_metadata_is_taken_with_what_is_said_of_it(workspace: Workspace, tmp_path: Path) -> None:
    folder = tmp_path / "audio"
    keys = ("file", "file_name", "audio_path", "audio_filepath")
    rows = []
    for number, key in enumerate(keys):
        make(folder / f"{number}.wav", seed=number)
        rows.append({key: f"{number}.wav", "text": f" number  {number} ", "speaker": "ann", "language": "EN-gb"})
    write_metadata(folder, rows)
    report = ingest(workspace, folder, consent="research", session="s1")
    assert (len(report.taken), len(report.known), len(report.refused)) == (4, 0, 0)
    assert report.seconds_of_audio == pytest.approx(2.0)
    found = recordings(workspace)
    assert [found[f"{n}.wav"].text for n in range(4)] == [f"number {n}" for n in range(4)]
    one = found["0.wav"]
    assert (one.speaker, one.language, one.consent, one.session) == ("ann", "en", "research", "s1")
    assert one.samples == RATE // 2
    assert one.quality is not None
    assert one.source == str(folder / "0.wav")
    assert {event.subject for event in events(workspace, "recording.ingested")} == set(report.taken)


def test_what_is_stored_is_the_hash_of_its_samples(workspace: Workspace, tmp_path: Path) -> None:
    report = ingest(workspace, make(tmp_path / "a.flac", rate=44_100))
    stored = workspace.blobs.get(audio_key(report.taken[0]))
    assert audio.pcm_id(stored[audio.WAV_HEADER_BYTES :]) == report.taken[0]
    assert soundfile.info(workspace.blobs.path(audio_key(report.taken[0]))).samplerate == RATE


def test_a_second_run_takes_nothing(workspace: Workspace, tmp_path: Path) -> None:
    folder = tmp_path / "audio"
    for number in range(3):
        make(folder / f"{number}.wav", seed=number)
    (folder / "bad.wav").write_bytes(b"no")
    first = ingest(workspace, folder)
    second = ingest(workspace, folder)
    assert (len(first.taken), len(first.refused)) == (3, 1)
    assert (len(second.taken), len(second.known), len(second.refused)) == (0, 3, 1)
    assert set(second.known) == set(first.taken)
    assert len(events(workspace, "recording.ingested")) == 3
    assert len(events(workspace, "recording.rejected")) == 1


def test_the_same_audio_in_another_format_is_one_recording(workspace: Workspace, tmp_path: Path) -> None:
    make(tmp_path / "in" / "a.wav")
    samples, rate = soundfile.read(tmp_path / "in" / "a.wav", dtype="int16")
    soundfile.write(tmp_path / "in" / "b.flac", samples, rate)
    report = ingest(workspace, tmp_path / "in")
    assert (len(report.taken), len(report.known)) == (1, 1)


def test_a_known_recording_is_filled_in_and_corrected(workspace: Workspace, tmp_path: Path) -> None:
    path = make(tmp_path / "a.wav")
    ingest(workspace, path, speaker="ann")
    path.with_suffix(".txt").write_text("good morning\n")
    report = ingest(workspace, path, speaker="bob", language="en")
    kept = recordings(workspace)["a.wav"]
    assert (kept.text, kept.speaker, kept.language) == ("good morning", "bob", "en")
    assert any("ann" in note and "bob" in note for note in report.notes)


def test_sidecar_texts_and_files_that_metadata_leaves_out(workspace: Workspace, tmp_path: Path) -> None:
    folder = tmp_path / "audio"
    for number, name in enumerate(["a.wav", "b.wav", "deep/c.wav", "d.wav"]):
        make(folder / name, seed=number)
    write_metadata(folder, [{"file": "a.wav", "text": "named"}])
    (folder / "b.txt").write_text("﻿beside", encoding="utf-8")
    (folder / "d.txt").write_bytes(b"\xff\xfe\xfa")
    (folder / "notes.pdf").write_bytes(b"left alone")
    report = ingest(workspace, folder)
    assert {name: r.text for name, r in recordings(workspace).items()} == {
        "a.wav": "named",
        "b.wav": "beside",
        "c.wav": None,
    }
    assert report.reasons == {"bad-text": 1}


def test_metadata_as_csv(workspace: Workspace, tmp_path: Path) -> None:
    folder = tmp_path / "audio"
    make(folder / "a.wav")
    make(folder / "b.wav", seed=1)
    table = '\ufefffile_name,transcription,speaker\na.wav,"yes, please",ann\nb.wav,no,\n,lost,\n'
    (folder / "metadata.csv").write_text(table, encoding="utf-8")
    report = ingest(workspace, folder, speaker="bob")
    found = recordings(workspace)
    assert (found["a.wav"].text, found["a.wav"].speaker) == ("yes, please", "ann")
    assert (found["b.wav"].text, found["b.wav"].speaker) == ("no", "bob")
    assert report.reasons == {"bad-metadata": 1}


def test_metadata_beside_the_audio_folder(workspace: Workspace, tmp_path: Path) -> None:
    for number in range(2):
        make(tmp_path / "audio" / f"{number}.wav", seed=number)
    listing = tmp_path / "elsewhere.jsonl"
    listing.write_text(json.dumps({"audio_filepath": "1.wav", "text": "one"}) + "\n")
    report = ingest(workspace, tmp_path / "audio", metadata=listing)
    assert len(report.taken) == 1  # what is listed, no more
    assert recordings(workspace)["1.wav"].text == "one"


def test_one_speaker_of_a_folder(workspace: Workspace, tmp_path: Path) -> None:
    folder = tmp_path / "audio"
    for number in range(4):
        make(folder / f"{number}.wav", seed=number)
    write_metadata(folder, [{"file": f"{n}.wav", "speaker": "ann" if n % 2 else "bob"} for n in range(3)])
    report = ingest(workspace, folder, speakers=["bob"])
    assert len(report.taken) == 2
    assert {r.speaker for r in recordings(workspace).values()} == {"bob"}


def test_an_unknown_speaker_is_nobody(workspace: Workspace, tmp_path: Path) -> None:
    make(tmp_path / "audio" / "a.wav")
    write_metadata(tmp_path / "audio", [{"file": "a.wav", "speaker": "unknown", "text": ""}])
    ingest(workspace, tmp_path / "audio")
    found = recordings(workspace)["a.wav"]
    assert (found.speaker, found.text) == (None, None)


def test_a_limit_takes_the_first(workspace: Workspace, tmp_path: Path) -> None:
    for number in range(5):
        make(tmp_path / "audio" / f"{number}.wav", seed=number)
    assert len(ingest(workspace, tmp_path / "audio", limit=2).taken) == 2


def test_broken_lines_of_metadata_are_refused_and_the_rest_is_taken(workspace: Workspace, tmp_path: Path) -> None:
    folder = tmp_path / "audio"
    make(folder / "a.wav")
    write_metadata(folder, ["{oops", {"text": "no file"}, [1], {"file": "gone.wav"}, {"file": "a.wav"}, {"file": 7}])
    report = ingest(workspace, folder)
    assert len(report.taken) == 1
    assert report.reasons == {"bad-metadata": 4, "missing": 1}
    assert any(refusal.path.endswith("metadata.jsonl:1") for refusal in report.refused)


def test_what_does_not_exist_is_a_usage_error(workspace: Workspace, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="nothing at"):
        ingest(workspace, tmp_path / "gone")
    with pytest.raises(UsageError, match="metadata"):
        ingest(workspace, tmp_path, metadata=tmp_path / "gone.jsonl")


def bomb() -> bytes:
    form = struct.pack("<HHIIHH", 1, 65_535, 4_000_000_000, 0, 0, 16)
    return b"RIFF" + b"\xff" * 4 + b"WAVEfmt " + struct.pack("<I", 16) + form + b"data" + b"\xff" * 4 + b"\0" * 64


@pytest.mark.parametrize("processes", [1, 2])
def test_a_batch_survives_every_kind_of_bad_file(workspace: Workspace, tmp_path: Path, processes: int) -> None:
    folder = tmp_path / "audio"
    for number in range(20):
        make(folder / f"good{number:02}.wav", seed=number)
    whole = make(folder / "cut.wav", seed=99).read_bytes()
    (folder / "cut.wav").write_bytes(whole[: len(whole) // 2])
    (folder / "empty.wav").touch()
    (folder / "text.wav").write_text("a letter to a friend")
    (folder / "bomb.wav").write_bytes(bomb())
    (folder / "dangling.wav").symlink_to(folder / "nowhere.wav")
    report = ingest(workspace, folder, processes=processes)
    assert len(report.taken) == 20
    assert {Path(r.path).name: r.reason for r in report.refused} == {
        "cut.wav": "broken",
        "empty.wav": "empty",
        "text.wav": "not-audio",
        "bomb.wav": "bad-rate",
        "dangling.wav": "missing",
    }
    assert refusals(workspace) == {r.path: r.reason for r in report.refused}
    assert not list((workspace.folder / "spool").iterdir())


def test_a_mended_file_is_no_longer_listed_as_refused(workspace: Workspace, tmp_path: Path) -> None:
    path = tmp_path / "a.wav"
    path.write_bytes(b"")
    assert ingest(workspace, path).reasons == {"empty": 1}
    make(path)
    assert len(ingest(workspace, path).taken) == 1
    assert refusals(workspace) == {}


def test_an_explicitly_named_file_that_is_not_audio_is_refused(workspace: Workspace, tmp_path: Path) -> None:
    path = tmp_path / "letter.pdf"
    path.write_bytes(b"%PDF-1.4 and so on")
    assert ingest(workspace, path).reasons == {"not-audio": 1}


def test_several_processes_take_the_same_as_one(workspace: Workspace, tmp_path: Path) -> None:
    for number in range(30):
        make(tmp_path / "audio" / f"{number:02}.wav", seed=number)
    alone = ingest(workspace, tmp_path / "audio", processes=1)
    for path in (tmp_path / "audio").iterdir():
        os.utime(path, (1, 1))  # or it would not be read again
    together = ingest(workspace, tmp_path / "audio", processes=2)
    assert together.known == alone.taken


@pytest.mark.parametrize("processes", [1, 2])
def test_files_are_let_go_of_as_they_are_read(tmp_path: Path, processes: int) -> None:
    items = [Item(path=tmp_path / f"{number:03}.wav") for number in range(100)]
    waiting = deque((item, None) for item in items)
    bounds = conversion.Bounds(max_seconds=1.0, max_bytes=1)
    found = conversion.convert_all(waiting, tmp_path, bounds, processes)
    first = next(found)
    assert 0 < 100 - len(waiting) <= conversion.CHUNK * (3 * processes + 1)
    assert [item for item, _, _ in [first, *found]] == items
    assert not waiting


def test_a_file_that_kills_its_decoder_is_refused_alone(tmp_path: Path) -> None:
    items = [Item(path=tmp_path / f"{number:02}.wav") for number in range(20)]
    chunks = ([(item, None) for item in items[start : start + 4]] for start in range(0, 20, 4))
    results = [result for _, chunk in conversion.in_processes(die_on_seven, chunks, 2) for result in chunk]
    assert [r.reason for r in results if isinstance(r, Refusal)] == ["fine"] * 7 + ["crashed"] + ["fine"] * 12
    assert [r.path for r in results if isinstance(r, Refusal)] == [str(item.path) for item in items]


def die_on_seven(paths: list[Path]) -> list[conversion.Converted | Refusal]:
    if any(path.name == "07.wav" for path in paths):
        os.kill(os.getpid(), signal.SIGKILL)
    return [Refusal(path=str(path), reason="fine", message="") for path in paths]


def test_long_audio_is_spooled_to_the_same_recording(
    workspace: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = make(tmp_path / "long.wav", seconds=45.0)
    monkeypatch.setattr(conversion, "SPOOL_SAMPLES", 5 * RATE)
    (id,) = ingest(workspace, path).taken
    stored = workspace.blobs.get(audio_key(id))
    assert audio.pcm_id(stored[audio.WAV_HEADER_BYTES :]) == id
    assert stored[: audio.WAV_HEADER_BYTES] == audio.wav_header(len(stored) - audio.WAV_HEADER_BYTES)
    assert np.array_equal(audio.from_pcm16(stored[audio.WAV_HEADER_BYTES :]), audio.decode(path))


def test_audio_is_read_by_span(workspace: Workspace, tmp_path: Path) -> None:
    path = make(tmp_path / "a.wav", seconds=1.0)
    (id,) = ingest(workspace, path).taken
    whole = audio.decode(path)
    assert np.array_equal(read_audio(workspace, id), whole)
    assert np.array_equal(read_audio(workspace, id, 100, 900), whole[100:900])
    assert np.array_equal(read_audio(workspace, id, start=15_000), whole[15_000:])
    assert np.array_equal(read_audio(workspace, id, end=10), whole[:10])
    assert len(read_audio(workspace, id, 5, 5)) == 0
    with pytest.raises(UsageError):
        read_audio(workspace, id, 10, 5)
    with pytest.raises(BlobError):
        read_audio(workspace, "sha256-0")


def test_progress_counts_every_file(workspace: Workspace, tmp_path: Path) -> None:
    for number in range(3):
        make(tmp_path / "audio" / f"{number}.wav", seed=number)
    (tmp_path / "audio" / "x.wav").touch()
    told: list[IngestProgress] = []
    ingest(workspace, tmp_path / "audio", progress=told.append)
    assert (told[-1].done, told[-1].total, told[-1].taken, told[-1].refused) == (4, 4, 3, 1)


def test_an_interrupted_batch_leaves_no_row_without_audio(workspace: Workspace, tmp_path: Path) -> None:
    for number in range(150):
        make(tmp_path / "audio" / f"{number:03}.wav", seconds=0.05, seed=number)

    def interrupt(progress: IngestProgress) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        ingest(workspace, tmp_path / "audio", progress=interrupt)
    found = recordings(workspace)
    assert 0 < len(found) < 150
    assert all(workspace.blobs.exists(audio_key(recording.id)) for recording in found.values())
    report = ingest(workspace, tmp_path / "audio")
    assert len(report.taken) + len(found) == 150


def test_a_store_that_cannot_be_written_refuses_the_file(workspace: Workspace, tmp_path: Path) -> None:
    path = make(tmp_path / "a.wav")
    blobs = workspace.folder / "blobs"
    shutil.rmtree(blobs, ignore_errors=True)
    blobs.write_bytes(b"a file where the folder was")
    report = ingest(workspace, path)
    assert report.reasons == {"not-stored": 1}
    assert recordings(workspace) == {}


@pytest.mark.usefixtures("ordinary_user")
def test_what_may_not_be_read_is_refused_and_the_rest_is_taken(workspace: Workspace, tmp_path: Path) -> None:
    folder = tmp_path / "audio"
    for number, name in enumerate(["a.wav", "shut.wav", "closed/b.wav", "unlisted/c.wav", "beside.wav", "z.wav"]):
        make(folder / name, seed=number)
    (folder / "beside.txt").write_text("a text that may not be read")
    write_metadata(folder / "unlisted", [{"file": "c.wav", "text": "c"}])
    modes = {"shut.wav": 0, "closed": 0, "beside.txt": 0, "unlisted": 0o300}  # it may be entered, and not listed
    for name, mode in modes.items():
        (folder / name).chmod(mode)
    try:
        report = ingest(workspace, folder, processes=1)
    finally:
        for name in modes:
            (folder / name).chmod(0o755)
    assert len(report.taken) == 2
    assert {Path(refusal.path).name: refusal.reason for refusal in report.refused} == {
        "shut.wav": "unreadable",
        "beside.wav": "bad-text",
        "closed": "unreadable",
        "unlisted": "unreadable",
    }
    assert all("ermission denied" in refusal.message for refusal in report.refused)
    assert len(ingest(workspace, folder, processes=1).taken) == 4


@pytest.mark.usefixtures("ordinary_user")
def test_metadata_that_may_not_be_read_says_so(workspace: Workspace, tmp_path: Path) -> None:
    make(tmp_path / "audio" / "a.wav")
    write_metadata(tmp_path / "audio", [{"file": "a.wav", "text": "a"}])
    (tmp_path / "audio" / "metadata.jsonl").chmod(0)
    report = ingest(workspace, tmp_path / "audio", processes=1)
    (refusal,) = report.refused
    assert (Path(refusal.path).name.partition(":")[0], refusal.reason) == ("metadata.jsonl", "bad-metadata")
    assert "ermission denied" in refusal.message


@pytest.mark.parametrize("processes", [1, 2])
def test_a_file_that_vanishes_meanwhile_is_refused(workspace: Workspace, tmp_path: Path, processes: int) -> None:
    """One goes after it was listed and before its turn, with its text; one turns into a folder."""
    for number in range(130):
        make(tmp_path / "audio" / f"{number:03}.wav", seconds=0.05, seed=number)

    def meanwhile(progress: IngestProgress) -> None:
        gone = tmp_path / "audio" / "129.wav"
        if gone.is_file():
            gone.unlink()
            (tmp_path / "audio" / "128.wav").unlink()
            (tmp_path / "audio" / "128.wav").mkdir()

    report = ingest(workspace, tmp_path / "audio", processes=processes, progress=meanwhile)
    if processes == 1:  # several are ahead of what is committed
        assert {Path(one.path).name: one.reason for one in report.refused} == {
            "128.wav": "not-audio",
            "129.wav": "missing",
        }
    assert len(report.taken) + len(report.refused) == 130


def test_every_awkward_file_is_taken_or_refused_with_its_reason(workspace: Workspace, real_speech: Path) -> None:
    report = ingest(workspace, real_speech / "awkward")
    rows = (real_speech / "awkward" / "metadata.jsonl").read_text().splitlines()
    assert len(report.taken) + len(report.known) + len(report.refused) == len(rows)
    assert {Path(r.path).name: r.reason for r in report.refused} == {
        "aeneas_mono.empty.wav": "empty",
        "aeneas_mono.invalid.wav": "broken",
        "ps_awful.wav": "bad-rate",
        "ps_bad.wav": "broken",
        "ps_null.wav": "empty",
    }
    durations = {row["file"]: row["duration"] for row in map(json.loads, rows)}
    for name, recording in recordings(workspace).items():
        assert recording.duration == pytest.approx(durations[name], abs=0.1)
