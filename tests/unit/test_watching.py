"""The hot folder: files are taken once they have arrived, end where they belong, and are neither lost nor doubled."""

from __future__ import annotations

import json
import os
import shutil
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from voxloop.automation import inbox as _inbox
from voxloop.automation.inbox import HotFolder
from voxloop.automation.watching import Troubles, Watched, take_in, watch
from voxloop.automation.worker import work
from voxloop.pipeline import open_loop
from voxloop.records import Recording, Utterance
from voxloop.steps import review
from voxloop.workspace import Workspace


class Box:
    """An inbox with a clock of its own, and what its watcher said."""

    def __init__(self, ws: Workspace, **settings: Any) -> None:
        self.ws = replace(ws, settings=replace(ws.settings, **settings))
        self.now = 1000.0
        self.said: list[str] = []
        self.troubles = Troubles(told=self.said.append)
        self.folder = HotFolder(self.ws, troubles=self.troubles, clock=lambda: self.now)
        self.done = Watched()

    @property
    def inbox(self) -> Path:
        return self.folder.inbox

    def put(self, source: Path, name: str) -> Path:
        target = self.inbox / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(source, target)
        return target

    def look(self, seconds: float = 3.0) -> int:
        self.now += seconds
        return take_in(self.ws, self.folder, self.done, self.troubles, processes=1)

    def settle(self) -> int:
        """Two looks, as far apart as a file takes to settle; then what came late."""
        self.look()
        return self.look()

    def left(self) -> list[str]:
        return files(self.inbox)

    def recordings(self) -> dict[str, Recording]:
        with self.ws.read() as reader:
            return {one.name: one for one in reader.all(Recording)}


def files(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


@pytest.fixture
def clips(demo_speech: Path) -> list[Path]:
    return sorted(demo_speech.glob("*.ogg"))[:6]


@pytest.fixture
def box(workspace: Workspace) -> Box:
    return Box(workspace)


def test_a_file_moves_when_it_is_ingested(box: Box, clips: list[Path]) -> None:
    box.put(clips[0], "a.ogg")
    box.put(clips[1], "deep/er/b.ogg")
    box.put(clips[1], "deep/notes.pdf")
    assert box.look() == 0  # it might still be written
    assert box.look() == 2
    assert box.left() == ["deep/notes.pdf"]
    assert files(box.folder.processed) == ["a.ogg", "deep/er/b.ogg"]
    found = box.recordings()
    assert found.keys() == {"a.ogg", "b.ogg"}
    assert found["b.ogg"].source == str(box.folder.processed / "deep/er/b.ogg")
    assert box.look() == 0
    assert box.said == []


def test_a_file_that_is_being_written_waits(box: Box, clips: list[Path]) -> None:
    path = box.put(clips[0], "a.ogg")
    for _ in range(3):  # it grows between the looks
        box.look()
        with path.open("ab") as file:
            file.write(b"\0")
    assert box.recordings() == {}
    box.look()
    with path.open("ab"):  # it has not changed, but somebody writes to it
        assert box.look() == 0
    shutil.copy(clips[0], path)
    assert box.settle() == 1


def test_an_empty_file_is_given_more_time(box: Box, clips: list[Path]) -> None:
    path = box.inbox / "a.ogg"
    path.touch()
    assert box.settle() == 0
    shutil.copy(clips[0], path)
    assert box.settle() == 1
    path.touch()
    box.look()
    assert box.look(31.0) == 1  # it stays empty
    assert files(box.folder.failed) == ["a.ogg", "a.ogg.reason.txt"]


def test_a_broken_file_goes_to_failed_with_the_reason(box: Box, clips: list[Path]) -> None:
    (box.inbox / "x").mkdir()
    (box.inbox / "x" / "bad.wav").write_bytes(b"RIFF no audio here")
    (box.inbox / "x" / "bad.txt").write_text("what it says")
    box.put(clips[0], "x/good.ogg")
    assert box.settle() == 2
    assert box.left() == []
    assert files(box.folder.failed) == ["x/bad.txt", "x/bad.wav", "x/bad.wav.reason.txt"]
    reason = (box.folder.failed / "x/bad.wav.reason.txt").read_text()
    assert reason.startswith(("broken: ", "not-audio: "))
    assert "bad.wav" in reason
    (box.inbox / "x" / "bad.wav").write_bytes(b"RIFF another one that is broken")
    assert box.settle() == 1
    assert "x/bad (2).wav" in files(box.folder.failed)
    assert "x/bad (2).wav.reason.txt" in files(box.folder.failed)


def test_folders_and_texts_say_who_speaks_and_what(workspace: Workspace, clips: list[Path]) -> None:
    box = Box(workspace, inbox_levels=("language", "speaker"))
    box.put(clips[0], "en/ann/a.ogg")
    (box.inbox / "en/ann/a.txt").write_text("what ann says")
    box.put(clips[1], "en/bob/b.ogg")
    (box.inbox / "en/bob/b.ogg.json").write_text(json.dumps({"speaker": "carl", "text": "what carl says"}))
    box.put(clips[2], "xx/bob/c.ogg")
    assert box.settle() == 3
    found = box.recordings()
    assert [(one.speaker, one.language, one.text) for one in (found["a.ogg"], found["b.ogg"])] == [
        ("ann", "en", "what ann says"),
        ("carl", "en", "what carl says"),
    ]
    assert files(box.folder.processed) == ["en/ann/a.ogg", "en/ann/a.txt", "en/bob/b.ogg", "en/bob/b.ogg.json"]
    assert "bad-metadata" in (box.folder.failed / "xx/bob/c.ogg.reason.txt").read_text()


def test_a_manifest_counts_and_leaves_when_all_that_it_names_has_come(box: Box, clips: list[Path]) -> None:
    lines = [{"file": f"{name}.ogg", "text": f"text of {name}", "speaker": "ann"} for name in ("a", "b")]
    (box.inbox / "set").mkdir()
    (box.inbox / "set" / "metadata.jsonl").write_text("\n".join(map(json.dumps, lines)))
    box.put(clips[0], "set/a.ogg")
    box.settle()
    assert box.recordings()["a.ogg"].text == "text of a"
    assert box.left() == ["set/metadata.jsonl"]  # b is still to come
    box.put(clips[1], "set/b.ogg")
    box.settle()
    box.look()
    assert box.recordings()["b.ogg"].text == "text of b"
    assert box.left() == []
    assert files(box.folder.processed) == ["set/a.ogg", "set/b.ogg", "set/metadata.jsonl"]


def test_texts_that_come_after_their_audio_are_not_lost(box: Box, clips: list[Path]) -> None:
    box.put(clips[0], "a.ogg")
    box.put(clips[1], "set/b.ogg")
    box.settle()
    (box.inbox / "a.txt").write_text("the text of a")
    (box.inbox / "set" / "metadata.jsonl").write_text(json.dumps({"file": "b.ogg", "text": "the text of b"}))
    (box.inbox / "readme.txt").write_text("of no audio")
    box.settle()
    found = box.recordings()
    assert {name: one.text for name, one in found.items()} == {"a.ogg": "the text of a", "b.ogg": "the text of b"}
    assert box.left() == ["readme.txt"]
    work(box.ws, ["segment"], until_idle=True)
    with box.ws.read() as reader:
        assert {one.status for one in reader.all(Utterance)} == {"reviewed"}
    assert review.stats(box.ws).reviewed == 2


def test_what_is_there_is_never_overwritten(box: Box, clips: list[Path]) -> None:
    box.put(clips[0], "a.ogg")
    box.settle()
    box.put(clips[1], "a.ogg")
    box.settle()
    box.put(clips[1], "a.ogg")  # the same once more
    box.settle()
    assert files(box.folder.processed) == ["a (2).ogg", "a.ogg"]
    assert (box.folder.processed / "a.ogg").read_bytes() == clips[0].read_bytes()
    assert (box.folder.processed / "a (2).ogg").read_bytes() == clips[1].read_bytes()


@pytest.mark.parametrize("moment", ["linked", "copied", "ingested"])
def test_a_kill_in_the_middle_of_a_move_repeats_harmlessly(
    box: Box, clips: list[Path], moment: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = box.put(clips[0], "x/a.ogg")
    (box.inbox / "x/a.txt").write_text("the text")

    class Killed(BaseException):
        pass

    def killed(*_: object, **__: object) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        if moment == "linked":  # at its target, and still at its source
            patch.setattr(Path, "unlink", killed)
        elif moment == "copied":
            patch.setattr(os, "link", lambda *_: (_ for _ in ()).throw(OSError(18, "another disk")))
            patch.setattr(Path, "replace", killed)
        else:
            patch.setattr(_inbox, "_move", killed)
        with pytest.raises(Killed):
            box.settle()
    assert path.exists()
    assert len(box.recordings()) == 1
    again = Box(box.ws)
    again.settle()
    again.look()
    assert again.left() == []
    assert [name for name in files(box.folder.processed) if not name.endswith(".partial")] == ["x/a.ogg", "x/a.txt"]
    (found,) = box.recordings().values()
    assert (found.text, found.source) == ("the text", str(box.folder.processed / "x/a.ogg"))


def test_an_inbox_that_is_taken_away_and_comes_back(workspace: Workspace, tmp_path: Path, clips: list[Path]) -> None:
    inbox, stop = tmp_path / "mounted" / "inbox", threading.Event()
    box = Box(workspace, inbox=str(inbox), inbox_scan_s=0.1, inbox_settle_s=0.05, poll_s=0.05)
    folder = HotFolder(box.ws, troubles=box.troubles)
    assert not inbox.exists()  # a disk that is not there is waited for, not made
    thread = threading.Thread(
        target=watch, args=(box.ws, folder), kwargs={"stop": stop, "processes": 1, "troubles": box.troubles}
    )
    thread.start()
    try:
        assert eventually(lambda: len(box.said) == 1)
        assert f"inbox {inbox}" in box.said[0]
        inbox.mkdir(parents=True)
        box.put(clips[0], "a.ogg")
        assert eventually(lambda: files(folder.processed) == ["a.ogg"])
        shutil.rmtree(inbox)
        assert eventually(lambda: len(box.said) == 3)
        inbox.mkdir()
        box.put(clips[1], "b.ogg")
        assert eventually(lambda: files(folder.processed) == ["a.ogg", "b.ogg"])
        assert box.said[1] == box.said[3] == f"inbox {inbox}: works again"
    finally:
        stop.set()
        thread.join(20)
    assert not thread.is_alive()


def eventually(true: Callable[[], bool], seconds: float = 20.0) -> bool:
    waited = threading.Event()
    for _ in range(int(seconds / 0.05)):
        if true():
            return True
        waited.wait(0.05)
    return False


def test_what_may_not_be_read_is_told_once_and_tried_again(
    box: Box, clips: list[Path], ordinary_user: Iterator[None]
) -> None:
    path = box.put(clips[0], "a.ogg")
    path.chmod(0)
    for _ in range(6):
        box.look(31.0)
    assert len(box.said) == 1
    assert "is tried again" in box.said[0]
    path.chmod(0o600)
    box.look(31.0)
    box.look(31.0)
    assert files(box.folder.processed) == ["a.ogg"]
    assert len(box.said) == 2


def test_a_full_disk_loses_nothing(box: Box, clips: list[Path], small_disk: Path, demo_speech: Path) -> None:
    """`processed` is on another disk, which is full."""
    (small_disk / "filler").write_bytes(b"\0" * shutil.disk_usage(small_disk).free)
    box = Box(box.ws, processed=str(small_disk / "processed"))
    box.put(clips[0], "a.ogg")
    for _ in range(4):
        box.look(31.0)
    assert box.left() == ["a.ogg"]
    assert len(box.said) == 1
    assert "cannot be moved" in box.said[0]
    (small_disk / "filler").unlink()
    box.look(31.0)
    box.look(31.0)
    assert box.left() == []
    assert files(small_disk / "processed") == ["a.ogg"]
    assert (small_disk / "processed" / "a.ogg").read_bytes() == clips[0].read_bytes()


def test_a_disk_without_hard_links(box: Box, clips: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", refused)
    box.put(clips[0], "a.ogg")
    assert box.settle() == 1
    assert files(box.folder.processed) == ["a.ogg"]
    assert box.left() == []


def test_the_inbox_may_lie_above_what_is_done(workspace: Workspace, tmp_path: Path, clips: list[Path]) -> None:
    inside = tmp_path / "in"
    inside.mkdir()
    box = Box(workspace, inbox=str(inside), processed=str(inside / "done"), failed=str(inside / "bad"))
    box.put(clips[0], "a.ogg")
    (inside / "b.wav").write_bytes(b"no audio")
    assert box.settle() == 2
    assert box.settle() == 0
    assert files(inside) == ["bad/b.wav", "bad/b.wav.reason.txt", "done/a.ogg"]


def test_the_watcher_writes_while_others_do(tmp_path: Path, clips: list[Path]) -> None:
    """Two watchers of one inbox: each file is taken once, whoever is first."""
    stop = threading.Event()
    settings = {"inbox_scan_s": 0.1, "inbox_settle_s": 0.05}
    with open_loop(tmp_path / "w", create=True, **settings) as ws:
        said: list[str] = []
        threads = []
        for _ in range(2):
            troubles = Troubles(told=said.append)
            folder = HotFolder(ws, troubles=troubles)
            given = {"stop": stop, "processes": 1, "troubles": troubles}
            threads.append(threading.Thread(target=watch, args=(ws, folder), kwargs=given))
        for thread in threads:
            thread.start()
        for number, clip in enumerate(clips):
            shutil.copy(clip, folder.inbox / f"{number}.ogg")
        done = eventually(lambda: len(files(folder.processed)) == len(clips) and not files(folder.inbox))
        stop.set()
        for thread in threads:
            thread.join(20)
        assert done, said
        with ws.read() as reader:
            assert reader.count(Recording) == len(clips)
