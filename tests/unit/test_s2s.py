"""The S2S application's database is imported, once."""

from __future__ import annotations

import sqlite3
import zlib
from contextlib import closing
from pathlib import Path

import pytest

from voxloop.errors import UsageError
from voxloop.records import Recording, Transcript, Utterance
from voxloop.speech.audio import decode, pcm_id, to_pcm16
from voxloop.steps import review
from voxloop.steps.review import Filters
from voxloop.steps.s2s import import_s2s
from voxloop.stores import tables
from voxloop.workspace import Workspace

SCHEMA = """CREATE TABLE s2s_training_data (id INTEGER PRIMARY KEY AUTOINCREMENT, transcript TEXT, audio_blob BLOB,
    is_reviewed INTEGER DEFAULT 0, is_trained INTEGER DEFAULT 0, timestamp DATETIME DEFAULT CURRENT_TIMESTAMP)"""


def add(file: Path, *rows: tuple[object, ...]) -> None:
    with closing(sqlite3.connect(file)) as database, database:
        database.execute(SCHEMA.replace("CREATE TABLE", "CREATE TABLE IF NOT EXISTS"))
        columns = "transcript, audio_blob, is_reviewed, is_trained, timestamp"
        database.executemany(f"INSERT INTO s2s_training_data ({columns}) VALUES (?, ?, ?, ?, ?)", rows)


def test_rows_are_imported_once_and_bad_ones_named(workspace: Workspace, demo_speech: Path, tmp_path: Path) -> None:
    first, second, third = (to_pcm16(decode(clip)) for clip in sorted(demo_speech.glob("*.ogg"))[:3])
    file = tmp_path / "data base#1?.db"
    when = "2025-10-04 14:23:15"
    add(
        file,
        ("what was said", zlib.compress(first), 1, 1, when),
        ("what was herd", zlib.compress(second), 0, 0, when),
        ("no audio", None, 0, 0, when),
        ("odd", zlib.compress(first + b"x"), 0, 0, when),
        ("no zlib", b"no zlib", 0, 0, when),
        ("cut off", zlib.compress(first)[:-20], 0, 0, when),
        ("a bomb", zlib.compress(bytes(1 << 24)), 0, 0, when),
    )
    small = type(workspace)(**{**vars(workspace), "settings": type(workspace.settings)(max_recording_hours=300 / 3600)})
    told: list[float] = []
    done = import_s2s(small, file, speaker="ann", progress=lambda n, of: told.append(n))
    assert (done.taken, done.known, len(done.refused)) == (2, 0, 5)
    assert told[-1] == 7
    assert [refusal.path.rpartition("#")[2] for refusal in done.refused] == ["3", "4", "5", "6", "7"]
    assert "longer than max_recording_hours" in done.refused[-1].message
    with workspace.read() as reader:
        found = {one.id: one for one in reader.all(Recording)}
        texts = {(one.text, one.kind, one.by) for one in reader.all(Transcript)}
        splits = {one.recording: (one.split, one.status) for one in reader.all(Utterance)}
    assert set(found) == {pcm_id(first), pcm_id(second)}
    assert {one.created for one in found.values()} == {1759587795.0}
    assert texts == {("what was said", "reference", "s2s"), ("what was herd", "hypothesis", "s2s")}
    assert splits == {pcm_id(first): ("train", "reviewed"), pcm_id(second): (None, "transcribed")}
    assert trained(workspace) == {pcm_id(first): True, pcm_id(second): False}
    add(file, ("new", zlib.compress(third), 0, 0, "no time"))
    with closing(sqlite3.connect(file)) as database, database:
        database.execute("UPDATE s2s_training_data SET is_trained = 1 WHERE id = 2")
    again = import_s2s(small, file, speaker="ann")
    assert (again.taken, again.known, len(again.refused)) == (1, 2, 5)
    with workspace.read() as reader:
        assert (reader.count(Recording), reader.count(Transcript)) == (3, 3)
        assert len(reader.connection.execute(tables.refusal.select()).all()) == 5
    assert trained(workspace) == {pcm_id(first): True, pcm_id(second): True, pcm_id(third): False}


def trained(ws: Workspace) -> dict[str, bool]:
    """Which recordings are shown as trained on; the filter has to agree."""
    found = {one.item.utterance.recording: one.trained for one in review.entries(ws).entries}
    for wanted in (True, False):
        listed = review.entries(ws, where=Filters(trained=wanted)).entries
        assert {one.item.utterance.recording for one in listed} == {
            id for id, is_so in found.items() if is_so == wanted
        }
    return found


def test_other_files_are_refused(workspace: Workspace, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no such file"):
        import_s2s(workspace, tmp_path / "none.db")
    (tmp_path / "text.db").write_text("no database" * 100)
    with pytest.raises(UsageError, match="no SQLite database"):
        import_s2s(workspace, tmp_path / "text.db")
    with closing(sqlite3.connect(tmp_path / "other.db")) as other, other:
        other.execute("CREATE TABLE s2s_training_data (id INTEGER, transcript TEXT)")
    with pytest.raises(UsageError, match="lacks audio_blob, is_reviewed"):
        import_s2s(workspace, tmp_path / "other.db")
