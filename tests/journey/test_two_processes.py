"""Two processes on one workspace: `voxloop ingest` while `voxloop worker` runs."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import CATALOGS, name_catalog
from voxloop.pipeline import open_loop
from voxloop.stores.events import trail

CLIPS = 40
DEADLINE_S = 300


def voxloop(workspace: Path, *arguments: str) -> list[str]:
    return [sys.executable, "-c", "from voxloop.cli import main; main()", "-C", str(workspace), *arguments]


def output(workspace: Path, *arguments: str) -> Any:
    done = subprocess.run(voxloop(workspace, *arguments), capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("catalog", CATALOGS)
def test_audio_comes_in_while_a_worker_runs(
    catalog: str, tmp_path: Path, demo_speech: Path, request: pytest.FixtureRequest
) -> None:
    folders = []
    files = sorted(demo_speech.glob("*.ogg"))[:CLIPS]
    for part in range(4):
        folder = tmp_path / f"part{part}"
        folder.mkdir()
        for file in files[part::4]:
            shutil.copy(file, folder)
        folders.append(folder)
    workspace = tmp_path / "workspace"
    if catalog == "postgresql":
        name_catalog(workspace, request.getfixturevalue("postgresql"))
    subprocess.run(voxloop(workspace, "init"), check=True, timeout=120)
    with (tmp_path / "worker.log").open("w") as log:
        worker = subprocess.Popen(
            voxloop(workspace, "worker"), stdout=log, stderr=log, env=os.environ | {"VOXLOOP_POLL_S": "0.1"}
        )
    with (tmp_path / "events.jsonl").open("w") as told:
        follower = subprocess.Popen(voxloop(workspace, "events", "--follow", "--json"), stdout=told)
    try:
        taken = sum(output(workspace, "ingest", str(folder), "--json")["taken"] for folder in folders)
        assert taken == CLIPS
        again = output(workspace, "ingest", str(folders[0]), "--json")
        assert (again["taken"], again["known"]) == (0, CLIPS // 4)
        ended = time.monotonic() + DEADLINE_S
        while True:
            status = output(workspace, "status", "--json")
            if not status["jobs"] and not status["utterances"].get("new", 0):
                break
            assert time.monotonic() < ended, (tmp_path / "worker.log").read_text()
            assert worker.poll() is None, (tmp_path / "worker.log").read_text()
            time.sleep(0.5)
        with open_loop(workspace) as ws, ws.read() as reader:
            assert {step: set(states) for step, states in ws.jobs.counts(reader).items()} == {
                step: {"done"} for step in ("segment", "transcribe", "restore", "align", "index", "rank", "sample")
            }
            assert ws.jobs.counts(reader)["index"]["done"] == CLIPS
        with open_loop(workspace) as ws:
            happened = sorted(event.id for event in trail(ws.catalog))
        while len(lines := (tmp_path / "events.jsonl").read_text().splitlines()) < len(happened):
            assert time.monotonic() < ended, lines
            time.sleep(0.2)
        assert sorted(json.loads(line)["id"] for line in lines) == happened
        worker.send_signal(signal.SIGTERM)
        assert worker.wait(60) == 0
    finally:
        for process in (worker, follower):
            if process.poll() is None:
                process.kill()
                process.wait()
