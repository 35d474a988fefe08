"""Killed again and again, the chain ends where an undisturbed one ends: nothing lost, nothing twice."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from tests.conftest import CATALOGS, name_catalog
from tests.seeds import seeds
from voxloop.pipeline import open_loop
from voxloop.stores import tables

ROOT = Path(__file__).parents[2]
KILLS = 24
CLIPS = 36


def state(workspace: Path) -> dict[str, Any]:
    """Everything that the chain made, without times, tokens and attempts."""
    with open_loop(workspace) as ws, ws.read() as reader:

        def rows(table: sa.Table, *leave_out: str) -> list[tuple[Any, ...]]:
            columns = [column for column in table.c if column.name not in leave_out]
            found = reader.connection.execute(sa.select(*columns))
            return sorted(tuple(json.dumps(v) if isinstance(v, dict | list) else v for v in row) for row in found)

        return {
            "recording": rows(tables.recording, "created", "source"),
            "utterance": rows(tables.utterance, "priority", "ingested", "confidence", "number"),
            "transcript": rows(tables.transcript, "created", "number", "confidence", "words"),
            # How often the order of review is found depends on how much has come in when a worker looks.
            "events": [row for row in rows(tables.event, "seq", "created") if "review.prioritised" not in row],
            "jobs": [
                row
                for row in rows(
                    tables.job,
                    *("created", "claimed", "token", "not_before", "lease_until", "attempts", "finished", "error"),
                )
                if "rank" not in row
            ],
            "vectors": rows(tables.vector, "values"),
            "blobs": sorted(ws.blobs.list("")),
        }


def chain(workspace: Path, speech: Path, kills: int, seed: int = 7) -> int:
    environment = os.environ | {
        "VOXLOOP_LEASE_S": "0.4",
        "VOXLOOP_POLL_S": "0.05",
        "VOXLOOP_MAX_ATTEMPTS": "1000",
        "OMP_NUM_THREADS": "1",
    }
    command = [sys.executable, "-m", "tests.journey.chain", str(workspace), str(speech), str(kills), str(seed)]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=500, check=False)
    assert done.returncode == 0, done.stderr
    return int(done.stdout.split()[-1])


@pytest.mark.parametrize("seed", seeds(7))
@pytest.mark.parametrize("catalog", CATALOGS)
def test_killed_again_and_again_the_chain_ends_the_same(
    catalog: str, tmp_path: Path, demo_speech: Path, request: pytest.FixtureRequest, seed: int
) -> None:
    """On PostgreSQL a child that is killed leaves its connection and its locks to the server."""
    speech = tmp_path / "speech"
    speech.mkdir()
    lines = (demo_speech / "metadata.jsonl").read_text().splitlines()[:CLIPS]
    for line in lines:
        shutil.copy(demo_speech / json.loads(line)["file"], speech)
    # Half with texts, half for the voice activity detector.
    (speech / "metadata.jsonl").write_text("\n".join(lines[: CLIPS // 2]) + "\n")
    (speech / "broken.wav").write_bytes(b"RIFF no audio here")

    if catalog == "postgresql":
        server, template = (request.getfixturevalue(f"postgresql_{name}") for name in ("server", "template"))
        for name in ("undisturbed", "killed"):
            name_catalog(tmp_path / name, server.create(template))

    assert chain(tmp_path / "undisturbed", speech, kills=0) == 0
    assert chain(tmp_path / "killed", speech, kills=KILLS, seed=seed) == KILLS

    expected, found = state(tmp_path / "undisturbed"), state(tmp_path / "killed")
    assert len(expected["recording"]) == CLIPS
    assert len(expected["transcript"]) >= 2 * CLIPS
    assert all("done" in row for row in expected["jobs"])
    for kind in expected:
        assert found[kind] == expected[kind], kind
