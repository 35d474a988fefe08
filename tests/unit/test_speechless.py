"""A file in which no speech is found is never passed over in silence: every summary names it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile
import sqlalchemy as sa
from alembic import command
from alembic.config import Config
from typer.testing import CliRunner

from voxloop.cli import app
from voxloop.pipeline import open_loop
from voxloop.status import status
from voxloop.steps.recordings import ingest
from voxloop.steps.transcripts import transcribe_file
from voxloop.steps.utterances import segment, speechless
from voxloop.stores import tables
from voxloop.stores.catalog import MIGRATIONS
from voxloop.workspace import Workspace

RATE = 16_000


@pytest.fixture
def hum(tmp_path: Path) -> Path:
    """Two seconds in which something is to be heard, and nobody speaks."""
    file = tmp_path / "in" / "hum.wav"
    file.parent.mkdir()
    soundfile.write(file, 0.1 * np.sin(2 * np.pi * 100 * np.arange(2 * RATE) / RATE), RATE)
    return file


def test_it_is_known_once_it_was_cut(workspace: Workspace, hum: Path, demo_speech: Path) -> None:
    spoken = demo_speech / json.loads((demo_speech / "metadata.jsonl").read_text().splitlines()[0])["file"]
    ids = ingest(workspace, [hum, spoken]).taken
    assert speechless(workspace) == []  # nobody has listened yet
    with workspace.read() as reader:
        before = reader.now()
    segment(workspace, ids)
    (found,) = speechless(workspace)
    assert (found.name, found.recording in ids) == ("hum.wav", True)
    assert [one.name for one in speechless(workspace, ids)] == ["hum.wav"]
    assert speechless(workspace, []) == []
    assert [one.name for one in speechless(workspace, since=before)] == ["hum.wav"]
    assert speechless(workspace, since=before + 3600) == []
    assert status(workspace).speechless == ("hum.wav",)


def test_a_text_given_later_makes_it_an_utterance(workspace: Workspace, hum: Path) -> None:
    segment(workspace, ingest(workspace, hum).taken)
    (hum.parent / "metadata.jsonl").write_text(json.dumps({"file": "hum.wav", "text": "mm"}) + "\n")
    (id,) = set(ingest(workspace, hum.parent).known)
    segment(workspace, id)
    assert speechless(workspace) == []
    assert status(workspace).speechless == ()


def test_every_summary_names_it(tmp_path: Path, hum: Path) -> None:
    def said(*arguments: str) -> str:
        result = CliRunner().invoke(app, ["-C", str(tmp_path / "w"), *arguments])
        assert result.exit_code == 0, result.output
        return result.output

    assert "no speech found" not in said("ingest", str(hum))
    worked = said("worker", "segment", "--until-idle")
    for told in (worked, said("status"), said("ingest", str(hum))):
        assert "no speech found in 1 file:" in told
        assert "hum.wav" in told
        assert "--metadata" in told  # what to do
    assert json.loads(said("status", "--json"))["speechless"] == ["hum.wav"]
    assert json.loads(said("ingest", str(hum), "--json"))["speechless"] == ["hum.wav"]
    assert "no speech found" not in said("worker", "segment", "--until-idle")  # told of once


def test_transcribe_says_so_on_stderr_and_writes_an_empty_text(tmp_path: Path, hum: Path) -> None:
    with open_loop(tmp_path / "w", create=True) as ws:
        found = transcribe_file(ws, hum)
        assert (found.speechless, found.text) == (True, "")
    result = CliRunner().invoke(app, ["-C", str(tmp_path / "w"), "transcribe", str(hum), "-o", str(tmp_path / "out")])
    assert (result.exit_code, result.stdout) == (0, "")
    assert "no speech found in 1 file:" in result.stderr
    assert str(hum) in result.stderr
    assert (tmp_path / "out" / "hum.txt").read_text() == "\n"


def test_recordings_cut_before_there_was_the_event_are_counted(sqlite_workspace: Workspace, hum: Path) -> None:
    ws = sqlite_workspace
    segment(ws, ingest(ws, hum).taken)
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS))
    with ws.catalog.engine.begin() as connection:  # as a catalog of schema 0020 is
        connection.execute(sa.delete(tables.event).where(tables.event.c.type == "recording.speechless"))
        config.attributes["connection"] = connection
        command.downgrade(config, "0020")
    folder = ws.folder
    ws.close()
    with open_loop(folder) as again:
        assert [one.name for one in speechless(again)] == ["hum.wav"]
