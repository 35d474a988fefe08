"""Messy archives: fifty of each bad kind among good ones, files cut off, channels, second runs, late texts."""

from __future__ import annotations

import json
import os
import resource
import shutil
import struct
from collections.abc import Callable
from pathlib import Path

import av
import numpy as np
import pytest
import soundfile
import sqlalchemy as sa

from tests.conftest import mount
from voxloop.errors import AudioError, SettingError, UsageError, WorkspaceError
from voxloop.maintenance import integrity
from voxloop.pipeline import open_loop
from voxloop.records import Recording, Transcript, Utterance
from voxloop.settings import Settings
from voxloop.speech import audio
from voxloop.steps.recordings import conversion, ingest, keeping, read_audio
from voxloop.steps.recordings.conversion import spool_folder
from voxloop.steps.utterances import segment
from voxloop.stores import tables
from voxloop.workspace import Workspace

RATE = 16_000


def noise(seconds: float, seed: int, channels: int = 1) -> np.ndarray:  # type: ignore[type-arg]
    return np.random.default_rng(seed).normal(0, 0.05, (round(seconds * RATE), channels)).astype(np.float32)


def make(path: Path, seconds: float = 0.5, *, seed: int = 0, channels: int = 1) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, noise(seconds, seed, channels), RATE)
    return path


def make_mp4(path: Path, seconds: float) -> Path:
    with av.open(str(path), "w", format="mp4", options={"movflags": "faststart"}) as out:
        stream = out.add_stream("aac", rate=RATE, layout="mono")
        frame = av.AudioFrame.from_ndarray(noise(seconds, 5).T.copy(), format="fltp", layout="mono")
        frame.sample_rate = RATE
        for packet in [*stream.encode(frame), *stream.encode(None)]:
            out.mux(packet)
    return path


def cut(path: Path, share: float) -> Path:
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    return path


def header(rate: int, channels: int) -> bytes:
    form = struct.pack("<HHIIHH", 1, channels, rate, 0, 0, 16)
    return b"RIFF" + b"\xff" * 4 + b"WAVEfmt " + struct.pack("<I", 16) + form + b"data" + b"\xff" * 4 + b"\0" * 64


KINDS: dict[str, tuple[str, Callable[[Path, int], object]]] = {
    "empty.wav": ("empty", lambda path, _: path.touch()),
    "letter.wav": ("not-audio", lambda path, n: path.write_text(f"Dear reader {n}, " * 20)),
    "rate.wav": ("bad-rate", lambda path, _: path.write_bytes(header(4_000_000_000, 1))),
    "channels.wav": ("too-many-channels", lambda path, _: path.write_bytes(header(16_000, 4_000))),
    "nosamples.wav": ("empty", lambda path, _: soundfile.write(path, np.zeros(0), RATE)),
    "cut.wav": ("broken", lambda path, n: cut(make(path, seed=n), 0.6)),
    "cut.flac": ("broken", lambda path, n: cut(make(path, seed=n), 0.6)),
    "cut.ogg": ("broken", lambda path, n: cut(make(path, 3.0, seed=n), 0.6)),
    "dangling.wav": ("missing", lambda path, _: path.symlink_to(path.parent / "nowhere" / path.name)),
    "long.wav": ("too-long", lambda path, n: make(path, 3.0, seed=n)),
    "shut.wav": ("unreadable", lambda path, n: make(path, seed=n).chmod(0)),
}


@pytest.mark.usefixtures("ordinary_user")
def test_fifty_of_each_awkward_kind_among_good_ones(workspace: Workspace, tmp_path: Path) -> None:
    folder = tmp_path / "archive"
    folder.mkdir()
    for name, (_, spoil) in KINDS.items():
        for number in range(50):
            spoil(folder / f"{number:02}-{name}", number)
    for number in range(50):
        make(folder / f"good{number:02}.wav", 0.2, seed=1_000 + number)
        shutil.copy(folder / f"good{number:02}.wav", folder / f"same{number:02}.wav")
        (folder / f"notes{number:02}.pdf").write_bytes(b"%PDF-1.4")
    settings = Settings(max_recording_hours=2.5 / 3600)
    ws = Workspace(
        **{name: getattr(workspace, name) for name in workspace.__dataclass_fields__} | {"settings": settings}
    )
    report = ingest(ws, folder, processes=1)
    expected: dict[str, int] = {}
    for reason, _ in KINDS.values():
        expected[reason] = expected.get(reason, 0) + 50
    assert (len(report.taken), len(report.known)) == (50, 50)
    assert report.reasons == expected
    again = ingest(ws, folder, processes=1)
    assert (len(again.taken), len(again.known), len(again.refused)) == (0, 100, len(report.refused))


@pytest.mark.parametrize("kind", ["wav", "flac", "ogg", "opus.ogg", "mp3", "m4a"])
@pytest.mark.parametrize("share", [0.3, 0.9])
def test_a_file_cut_off_is_told_from_a_whole_one(tmp_path: Path, kind: str, share: float) -> None:
    path = tmp_path / f"a.{kind}"
    if kind == "m4a":
        make_mp4(path, 20.0)
    else:
        form, subtype = {"opus.ogg": ("OGG", "OPUS"), "mp3": ("MP3", None)}.get(kind, (kind.upper(), None))
        soundfile.write(path, noise(20.0, 3), RATE, format=form, subtype=subtype)
    assert len(audio.decode(path)) == pytest.approx(20 * RATE, rel=0.01)
    cut(path, share)
    with pytest.raises(AudioError) as caught:
        audio.decode(path)
    assert caught.value.reason == "broken"


def test_whole_files_of_others_are_not_called_cut_off(real_speech: Path) -> None:
    taken = [path for path in (real_speech / "awkward").iterdir() if path.suffix in (".mp3", ".ogg", ".opus", ".m4a")]
    assert len(taken) > 3
    for path in taken:
        assert len(audio.decode(path))


def test_channels_are_mixed_or_split_as_set(workspace: Workspace, tmp_path: Path) -> None:
    both = noise(1.0, 1, channels=2)
    soundfile.write(tmp_path / "call.wav", both, RATE, subtype="FLOAT")
    make(tmp_path / "mono.wav", seed=2)
    (mixed,) = ingest(workspace, tmp_path / "call.wav").taken
    assert np.abs(read_audio(workspace, mixed) - both.mean(axis=1)).max() < 1e-4
    report = ingest(workspace, [tmp_path / "call.wav", tmp_path / "mono.wav"], channels="split", speaker="caller")
    assert len(report.taken) == 3
    with workspace.read() as reader:
        found = {one.name: one for one in reader.all(Recording)}
    for channel in range(2):
        one = found[f"call.wav#{channel}"]
        assert np.abs(read_audio(workspace, one.id) - both[:, channel]).max() < 1e-4
        assert (one.speaker, one.session) == (f"caller#{channel}", str(tmp_path / "call.wav"))
    assert found["mono.wav"].speaker == "caller"
    with pytest.raises(UsageError, match="mix or split"):
        ingest(workspace, tmp_path / "call.wav", channels="left")
    with pytest.raises(SettingError):
        Settings(channels="left")


def test_lines_that_name_channels_speak_for_theirs(workspace: Workspace, tmp_path: Path) -> None:
    make(tmp_path / "in" / "call.wav", 3.0, channels=2)
    rows = [
        {"file": "call.wav", "channel": channel, "start": start, "end": start + 1, "text": text, "speaker": who}
        for channel, start, text, who in [(0, 0, "hello", "ann"), (1, 0.5, "who is it", "bob"), (0, 1.5, "me", "ann")]
    ]
    (tmp_path / "in" / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    ingest(workspace, tmp_path / "in", channels="split")
    with workspace.read() as reader:
        found = {one.name: one for one in reader.all(Recording)}
    assert [(s.text, s.start) for s in found["call.wav#0"].segments] == [("hello", 0), ("me", 24_000)]
    assert [s.text for s in found["call.wav#1"].segments] == ["who is it"]
    assert (found["call.wav#0"].speaker, found["call.wav#1"].speaker) == ("ann", "bob")
    mixed = ingest(workspace, tmp_path / "in")
    assert any("--channels split" in note for note in mixed.notes)


def test_an_unchanged_file_is_not_read_again(
    workspace: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(5):
        make(tmp_path / "in" / f"{number}.wav", seed=number)
    first = ingest(workspace, tmp_path / "in")
    read: list[str] = []
    convert = conversion._convert

    def told(path: Path, spool: Path, bounds: conversion.Bounds) -> conversion.Outcome:
        read.append(path.name)
        return convert(path, spool, bounds)

    monkeypatch.setattr(conversion, "_convert", told)
    assert ingest(workspace, tmp_path / "in").known == first.taken
    assert read == []
    make(tmp_path / "in" / "2.wav", seed=77)  # the same size, another time
    os.utime(tmp_path / "in" / "3.wav", (1, 1))  # another time, the same content
    report = ingest(workspace, tmp_path / "in")
    assert sorted(read) == ["2.wav", "3.wav"]
    assert (len(report.taken), len(report.known)) == (1, 4)
    assert ingest(workspace, tmp_path / "in", channels="split").taken == ()
    assert len(read) == 7  # the other way of taking channels asks the file


def test_a_disk_that_is_full_is_told(workspace: Workspace, tmp_path: Path) -> None:
    """With files of at most 1 MB, as on a disk that has no more: 40 s go to the store, 70 s to the spool first."""
    make(tmp_path / "in" / "a.wav", 40.0)
    make(tmp_path / "in" / "b.wav", 70.0, seed=1)
    make(tmp_path / "in" / "c.wav", 1.0, seed=2)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, hard))
    try:
        report = ingest(workspace, tmp_path / "in", processes=1)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert {Path(r.path).name: r.reason for r in report.refused} == {"a.wav": "not-stored", "b.wav": "no-space"}
    assert len(report.taken) == 1
    assert len(ingest(workspace, tmp_path / "in", processes=1).taken) == 2


def test_a_disk_that_is_full_holds_nothing_half_and_with_room_the_same_command_goes_on(
    small_disk: Path, tmp_path: Path
) -> None:
    for number in range(80):
        make(tmp_path / "in" / f"{number:02}.wav", 2.0, seed=number)
    with open_loop(small_disk / "w", create=True) as ws:
        with pytest.raises(WorkspaceError, match=r"disk is full.*run the command again"):
            ingest(ws, tmp_path / "in", processes=1)
        assert all(len(ws.blobs.get(key)) == 2 * 2 * RATE + audio.WAV_HEADER_BYTES for key in ws.blobs.list("audio/"))
        assert not list((ws.folder / "spool").iterdir())
        assert mount("-o", "remount,size=16m", str(small_disk))
        assert integrity.verify(ws).findings == ()
        report = ingest(ws, tmp_path / "in", processes=1)
        assert (len(report.taken), report.refused) == (80, ())
        assert integrity.verify(ws, min_age_s=0).findings == ()


def test_a_store_that_is_full_refuses_what_it_cannot_hold(small_disk: Path, tmp_path: Path) -> None:
    for number in range(80):
        make(tmp_path / "in" / f"{number:02}.wav", 2.0, seed=number)
    with open_loop(tmp_path / "w", create=True, blobs=small_disk.as_uri()) as ws:
        report = ingest(ws, tmp_path / "in", processes=1)
        assert report.reasons == {"not-stored": 80 - len(report.taken)}
        assert "No space left on device" in report.refused[0].message
        assert integrity.verify(ws, min_age_s=0).findings == ()
        assert mount("-o", "remount,size=16m", str(small_disk))
        again = ingest(ws, tmp_path / "in", processes=1)
        assert (len(again.taken), len(again.known), again.refused) == (len(report.refused), len(report.taken), ())


def test_a_catalog_that_is_full_is_told(workspace: Workspace, tmp_path: Path) -> None:
    for number in range(200):
        make(tmp_path / "in" / f"{number:03}.wav", 0.05, seed=number)

    def full(connection: sa.Connection) -> None:
        pages = connection.exec_driver_sql("pragma page_count").scalar_one()
        connection.exec_driver_sql(f"pragma max_page_count={pages + 4}")

    sa.event.listen(workspace.catalog.engine, "begin", full)
    with pytest.raises(WorkspaceError, match="disk is full"):
        ingest(workspace, tmp_path / "in", processes=1)
    sa.event.remove(workspace.catalog.engine, "begin", full)


def test_a_forgotten_recording_is_read_again(workspace: Workspace, tmp_path: Path) -> None:
    path = make(tmp_path / "a.wav")
    (id,) = ingest(workspace, path).taken
    with workspace.transaction() as tx:
        tx.connection.execute(sa.delete(tables.recording).where(tables.recording.c.id == id))
    assert ingest(workspace, path).taken == (id,)


def described(ws: Workspace) -> int:
    with ws.read() as reader:
        query = sa.select(sa.func.count()).where(tables.event.c.type == "recording.described")
        return int(reader.connection.execute(query).scalar_one())


def test_a_text_that_comes_late_is_the_reference_of_the_one_utterance(workspace: Workspace, tmp_path: Path) -> None:
    path = make(tmp_path / "a.wav", 2.0)
    (id,) = ingest(workspace, path).taken
    with workspace.transaction() as tx:  # as the VAD would have cut it
        tx.add(Utterance(id=f"{id}:100-20000", recording=id, start=100, end=20_000, status="transcribed"))
    path.with_suffix(".txt").write_text("good morning")
    report = ingest(workspace, path)
    assert any("added a text to known audio" in note for note in report.notes)
    assert described(workspace) == 1
    (utterance,) = segment(workspace, id)
    assert utterance.status == "reviewed"
    segment(workspace, id)
    with workspace.read() as reader:
        assert [(one.kind, one.text) for one in reader.all(Transcript)] == [("reference", "good morning")]
    ingest(workspace, path)
    assert described(workspace) == 1


def test_segments_that_come_late_take_the_place_of_what_nobody_reviewed(workspace: Workspace, tmp_path: Path) -> None:
    make(tmp_path / "in" / "a.wav", 4.0)
    (id,) = ingest(workspace, tmp_path / "in").taken
    with workspace.transaction() as tx:
        tx.add(Utterance(id=f"{id}:0-16000", recording=id, start=0, end=16_000, status="transcribed"))
        tx.add(Utterance(id=f"{id}:32000-60000", recording=id, start=32_000, end=60_000, status="reviewed"))
        tx.add(Transcript(id="r", utterance=f"{id}:32000-60000", kind="reference", text="mine", by="ann"))
    rows = [{"file": "a.wav", "start": s, "end": e, "text": t} for s, e, t in [(0.5, 1.5, "yes"), (3, 4, "no")]]
    (tmp_path / "in" / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    ingest(workspace, tmp_path / "in")
    statuses = {one.id.partition(":")[2]: one.status for one in segment(workspace, id)}
    assert statuses == {"0-16000": "rejected", "8000-24000": "reviewed", "32000-60000": "reviewed"}
    assert {one.id.partition(":")[2]: one.status for one in segment(workspace, id)} == statuses


def test_what_a_killed_ingest_left_in_the_spool_is_removed(tmp_path: Path) -> None:
    stale = tmp_path / "spool" / "ingest-dead"
    stale.mkdir(parents=True)
    (stale / "lock").touch()
    (stale / "half.wav").write_bytes(b"x" * 100)
    fresh = tmp_path / "spool" / "ingest-starting"  # its process has not come to the lock yet
    fresh.mkdir()
    with spool_folder(tmp_path) as first:
        assert not stale.exists()
        assert fresh.exists()
        with spool_folder(tmp_path) as second:
            assert first.exists()
            assert second.exists()


def test_a_span_may_end_a_little_late_and_no_more() -> None:
    said = keeping.Said(where="m:1", start=0.5, end=2.4)
    item = keeping.Item(path=Path("a.wav"), said=(said,))
    found, refused = keeping._segments(item, None, 2 * RATE, split=False)
    assert [(one.start, one.end) for _, one in found] == [(RATE // 2, 2 * RATE)]
    assert refused == []
