"""A second run over the same files: told by size and time of change, and with the answers of reading them."""

from __future__ import annotations

import itertools
import os
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile
import sqlalchemy as sa

from voxloop.records import Recording
from voxloop.steps.recordings import conversion, describing, ingest, ingesting, keeping
from voxloop.steps.recordings.sources import Item
from voxloop.stores import catalog, tables
from voxloop.workspace import Workspace

FILES = 6


def make(path: Path, *, seed: int, seconds: float = 0.1) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, np.random.default_rng(seed).normal(0, 0.05, round(seconds * 16_000)), 16_000)
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for number in range(FILES):
        make(tmp_path / "in" / f"{number}.wav", seed=number)
    return tmp_path / "in"


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the files that were decoded."""
    names: list[str] = []
    convert = conversion._convert

    def told(path: Path, spool: Path, bounds: conversion.Bounds) -> conversion.Outcome:
        names.append(path.name)
        return convert(path, spool, bounds)

    monkeypatch.setattr(conversion, "_convert", told)
    return names


def test_only_what_changed_is_read(workspace: Workspace, folder: Path, read: list[str]) -> None:
    first = ingest(workspace, folder)
    read.clear()
    before = (folder / "3.wav").stat()
    make(folder / "1.wav", seed=77, seconds=0.2)  # another size
    os.utime(folder / "1.wav", ns=(before.st_atime_ns, (folder / "0.wav").stat().st_mtime_ns))
    os.utime(folder / "2.wav", (1, 1))  # another time, the same content
    make(folder / "3.wav", seed=78)  # other content of the same size, with the old time: nothing shows it
    os.utime(folder / "3.wav", ns=(before.st_atime_ns, before.st_mtime_ns))
    (folder / "4.wav").rename(folder / "moved.wav")  # another name: read, and known by its samples
    (folder / "5.wav").unlink()
    second = ingest(workspace, folder)
    assert sorted(read) == ["1.wav", "2.wav", "moved.wav"]
    assert len(second.taken) == 1
    assert sorted(second.known) == sorted(first.taken[number] for number in (0, 2, 3, 4))
    read.clear()
    third = ingest(workspace, folder)
    assert (read, third.taken, len(third.known)) == ([], (), 5)


def test_the_other_way_of_naming_a_folder_is_the_same_file(
    workspace: Workspace, folder: Path, read: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    first = ingest(workspace, folder)
    read.clear()
    monkeypatch.chdir(folder.parent)
    assert ingest(workspace, "in").known == first.taken
    assert read == []


def test_what_is_said_the_second_time_still_counts(workspace: Workspace, folder: Path, read: list[str]) -> None:
    ingest(workspace, folder, language="en")
    read.clear()
    (folder / "0.txt").write_text("zero")
    ingest(workspace, folder, speaker="ann", language="en")
    with workspace.read() as reader:
        found = {one.name: one for one in reader.all(Recording)}
    assert {one.speaker for one in found.values()} == {"ann"}
    assert [name for name, one in found.items() if one.text] == ["0.wav"]
    notes = ingest(workspace, folder, speaker="bob").notes
    assert len(notes) == FILES
    assert all("speaker 'ann' was corrected to 'bob'" in note for note in notes)
    assert read == []


def test_files_are_read_in_the_order_given(workspace: Workspace, folder: Path) -> None:
    """Also those that cannot be looked at, among others."""
    ingest(workspace, folder / "2.wav")
    given = [folder / name for name in ("1.wav", "gone.wav", "2.wav", "bad.wav", "also-gone.wav", "0.wav")]
    (folder / "bad.wav").write_bytes(b"no")
    report = ingest(workspace, given)
    assert [Path(refusal.path).name for refusal in report.refused] == ["gone.wav", "bad.wav", "also-gone.wav"]


def test_an_unchanged_file_that_was_refused_in_between_is_so_no_longer(workspace: Workspace, folder: Path) -> None:
    ingest(workspace, folder)
    (folder / "0.txt").write_bytes(b"\xff\xfe\xff")
    assert [refusal.reason for refusal in ingest(workspace, folder).refused] == ["bad-text"]
    (folder / "0.txt").unlink()
    assert len(ingest(workspace, folder).known) == FILES
    with workspace.read() as reader:
        assert reader.connection.execute(sa.select(tables.refusal)).all() == []


def test_more_files_than_are_looked_for_at_once(
    workspace: Workspace, folder: Path, read: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every block holds known and new files."""
    monkeypatch.setattr(ingesting, "LOOK", 4)
    monkeypatch.setattr(catalog, "MANY", 3)
    first = ingest(workspace, folder)
    for number in range(1, FILES, 2):
        shutil.copy(folder / f"{number}.wav", folder / f"{number}b.wav")
    read.clear()
    told: list[int] = []
    report = ingest(workspace, folder, progress=lambda progress: told.append(progress.done))
    assert sorted(read) == ["1b.wav", "3b.wav", "5b.wav"]
    assert sorted(report.known) == sorted([*first.taken, *first.taken[1::2]])
    assert told[-1] == FILES + 3


def test_the_quick_answer_is_that_of_filling_in() -> None:
    """For every way in which what is said and what is kept can stand to each other."""
    fields = ("text", "speaker", "language", "session", "consent")
    ways: tuple[tuple[str | None, str | None], ...] = ((None, None), (None, "a"), ("a", None), ("a", "a"), ("b", "a"))
    for said in itertools.product(ways, repeat=len(fields)):
        given = {name: new for name, (new, _) in zip(fields, said, strict=True)}
        kept = {name: old for name, (_, old) in zip(fields, said, strict=True)}
        item = Item(path=Path("/a.wav"), **given)
        row = SimpleNamespace(channel="mix", **kept)
        known = Recording(id="sha256-1", source="/a.wav", name="a.wav", samples=9, **kept)
        told = describing.described(known, keeping._recording(item, known.id, None, 9, [], None), decided=False)
        filled, notes = told.recording, told.notes
        assert keeping._says_nothing_new(item, [row]) == (filled == known and not notes), said  # type: ignore[list-item]
