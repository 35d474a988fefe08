"""Import of the older program's SQLite table."""

from __future__ import annotations

import json
import sqlite3
import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import sqlalchemy as sa
from typer.testing import CliRunner

from voxloop.cli import app
from voxloop.errors import UsageError
from voxloop.records import Recording, Transcript, Utterance
from voxloop.steps import datasets, review
from voxloop.steps.s2s import import_s2s
from voxloop.stores import tables
from voxloop.workspace import Workspace

SCHEMA = """CREATE TABLE s2s_training_data (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    transcript TEXT,
    audio_blob BLOB,
    is_reviewed INTEGER DEFAULT 0,
    is_trained INTEGER DEFAULT 0,
    timestamp DATETIME DEFAULT CURRENT_TIMESTAMP
)"""
TIME = "2025-10-04 14:23:15"


def noise(number: int, length_s: float = 1.0) -> bytes:
    return np.random.default_rng(number).uniform(-8000, 8000, int(16_000 * length_s)).astype("<i2").tobytes()


def database(path: Path, *rows: tuple[object, ...]) -> Path:
    with sqlite3.connect(path) as made:
        made.execute(SCHEMA)
        made.executemany(
            "INSERT INTO s2s_training_data (transcript, audio_blob, is_reviewed, is_trained, timestamp)"
            " VALUES (?, ?, ?, ?, ?)",
            rows,
        )
    made.close()
    return path


def test_rows_become_recordings_with_their_texts(each_workspace: Workspace, tmp_path: Path) -> None:
    ws = each_workspace
    pcm = noise(0)
    file = database(
        tmp_path / "database.db",
        ("Hello, how are you?", zlib.compress(pcm), 1, 1, TIME),
        ("hello how are", zlib.compress(noise(1)), 0, 0, "2025-10-05T10:00:00+02:00"),
        ("", zlib.compress(noise(2)), 0, 0, "yesterday"),
    )
    told: list[tuple[float, float | None]] = []
    done = import_s2s(ws, file, speaker="ann", language="English", progress=lambda *one: told.append(one))
    assert (done.new, done.known, done.reviewed, done.trained, done.broken) == (3, 0, 1, 1, ())
    assert done.seconds_of_audio == 3.0
    assert told[-1] == (3, 3)
    with ws.read() as reader:
        recordings = {one.name: one for one in reader.all(Recording)}
        texts = {one.text: one for one in reader.all(Transcript)}
        statuses = {one.id: one.status for one in reader.all(Utterance)}
        event = tables.event.c
        ingested = sa.select(event.payload).where(event.type == "recording.ingested").order_by(event.seq)
        payloads = list(reader.connection.execute(ingested).scalars())
    assert ws.blobs.get(f"audio/{recordings['database.db#1'].id}.wav")[44:] == pcm
    assert recordings["database.db#1"].created == 1759587795.0
    assert recordings["database.db#2"].created == 1759651200.0
    assert {one.speaker for one in recordings.values()} == {"ann"}
    assert {one.language for one in recordings.values()} == {"en"}
    reviewed, machine = texts["Hello, how are you?"], texts["hello how are"]
    assert (reviewed.kind, reviewed.by, statuses[reviewed.utterance]) == ("reference", "s2s", "reviewed")
    assert (machine.kind, statuses[machine.utterance]) == ("hypothesis", "transcribed")
    assert len(texts) == 2  # the third row is left to the worker
    assert [(one["row"], one["trained"]) for one in payloads] == [(1, True), (2, False), (3, False)]
    turn = review.next(ws, by="bob")
    assert turn is not None
    assert turn.item.utterance.id == machine.utterance
    assert sum(datasets.build(ws).clips.values()) == 1


def test_importing_again_changes_nothing_but_what_was_reviewed_since(workspace: Workspace, tmp_path: Path) -> None:
    file = database(
        tmp_path / "database.db",
        ("one", zlib.compress(noise(1)), 0, 0, TIME),
        ("two", zlib.compress(noise(2)), 0, 0, TIME),
    )
    import_s2s(workspace, file)

    def contents() -> list[object]:
        with workspace.read() as reader:
            return [reader.all(Recording), reader.all(Utterance), reader.all(Transcript)]

    before = contents()
    again = import_s2s(workspace, file)
    assert (again.new, again.known, again.corrected) == (0, 2, 0)
    assert contents() == before
    with sqlite3.connect(file) as changed:
        changed.execute("UPDATE s2s_training_data SET transcript = 'ONE', is_reviewed = 1 WHERE id = 1")
    changed.close()
    assert import_s2s(workspace, file).corrected == 1
    after = contents()
    assert import_s2s(workspace, file).corrected == 0
    assert contents() == after
    with workspace.read() as reader:
        assert [one.text for one in reader.all(Transcript) if one.kind == "reference"] == ["ONE"]


def test_broken_rows_are_named_and_the_others_imported(workspace: Workspace, tmp_path: Path) -> None:
    rows: list[tuple[object, ...]] = [
        ("no audio", None, 0, 0, TIME),
        ("text", "not a blob", 0, 0, TIME),
        ("not zlib", b"RIFFxxxx", 0, 0, TIME),
        ("cut off", zlib.compress(noise(4))[:-20], 0, 0, TIME),
        ("half a sample", zlib.compress(b"abc"), 0, 0, TIME),
        ("nothing", zlib.compress(b""), 0, 0, TIME),
        ("too long", zlib.compress(bytes(16_000 * 2 * 40)), 0, 0, TIME),
        (None, zlib.compress(noise(8)), 1, 0, TIME),
        ("long", zlib.compress(noise(9, 31.0)), 0, 0, TIME),
        ("fine", zlib.compress(noise(10)), 0, 0, TIME),
    ]
    file = database(tmp_path / "database.db", *rows)
    short = replace(workspace, settings=replace(workspace.settings, max_recording_hours=35 / 3600))
    done = import_s2s(short, file)
    assert done.new == 3
    reasons = {
        1: "no audio",
        2: "not a blob",
        3: "decompressed",
        4: "cut off",
        5: "int16",
        6: "no samples",
        7: "longer than",
        8: "no text",
        9: "longer than 30 s",
    }
    assert [one.row for one in done.broken] == list(reasons)
    for one in done.broken:
        assert reasons[one.row] in one.message


def test_what_is_no_such_database_is_refused(workspace: Workspace, tmp_path: Path) -> None:
    (tmp_path / "text.db").write_text("hello " * 1000)
    with sqlite3.connect(tmp_path / "other.db") as other:
        other.execute("CREATE TABLE s2s_training_data (id INTEGER)")
    other.close()
    with sqlite3.connect(tmp_path / "empty.db") as empty:
        empty.execute("CREATE TABLE other (id INTEGER)")
    empty.close()
    for name, reason in (
        ("missing.db", "there is no file"),
        ("text.db", "not a SQLite database"),
        ("other.db", "no column transcript"),
        ("empty.db", "no table"),
    ):
        with pytest.raises(UsageError, match=reason):
            import_s2s(workspace, tmp_path / name)
    assert not (tmp_path / "missing.db").exists()


def test_the_command(workspace: Workspace, tmp_path: Path) -> None:
    file = database(
        tmp_path / "a #?% database.db", ("yes", zlib.compress(noise(1)), 1, 0, TIME), ("no", b"junk", 0, 0, TIME)
    )
    before = file.read_bytes()
    command = ["-C", str(workspace.folder), "import", "s2s", str(file)]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 0, result.output
    assert "1 added (1.0 s of audio, 1 reviewed), 0 known" in result.output
    assert "row 2: its audio cannot be decompressed" in result.output
    again = json.loads(CliRunner().invoke(app, [*command, "--json"]).stdout)
    assert (again["new"], again["known"]) == (0, 1)
    assert file.read_bytes() == before
