"""`voxloop up`: audio is dropped into a folder and texts are corrected; a better model is promoted and served.

Workers and the whole group are killed on the way.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx2 as httpx
import pytest

from voxloop.pipeline import open_loop
from voxloop.records import Event, Recording
from voxloop.stores import events as _events

pytestmark = pytest.mark.timeout(1200)

ROOT = Path(__file__).parents[2]
SETTINGS = {
    "INBOX_SETTLE_S": "0.5",
    "INBOX_SCAN_S": "5",
    "INBOX_LEVELS": "speaker",
    "LANGUAGE": "en",
    "LEASE_S": "3",
    "POLL_S": "0.1",
    "MIN_SNR_DB": "-99",
    "MIN_CLIP_S": "0.1",
    "RATIOS": "0.5/0.1/0.4",
    "USABLE_MACHINE_SHARE": "0",
    "TRAIN_CRON": "",
    "TRAIN_HOURS": "0.03",
    "TRAIN_RECIPE": "quick",
    "TRAIN_SET": "max_steps=60,eval_seconds=20",
    "THREADS": "1",
}


class Up:
    """A running `voxloop up`, its address and what it said."""

    def __init__(self, workspace: Path) -> None:
        environment = os.environ | {f"VOXLOOP_{name}": value for name, value in SETTINGS.items()}
        command = "from voxloop.cli import main; main()"
        self.said: list[str] = []
        self.process = subprocess.Popen(
            [sys.executable, "-c", command, "-C", str(workspace), "up", "--port", "0", "--no-auth"],
            cwd=ROOT,
            env=environment | {"OMP_NUM_THREADS": "1"},
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        threading.Thread(target=self._read, daemon=True).start()
        url = self.wait(lambda: self.find(r"web +serves (http://\S+)"))
        self.client = httpx.Client(base_url=url, trust_env=False, timeout=30)
        self.wait(self.healthy)

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.said.append(line.rstrip())

    def find(self, pattern: str) -> str | None:
        found = [match[1] for line in list(self.said) if (match := re.search(pattern, line))]
        return found[-1] if found else None

    def wait(self, found: Callable[[], Any], seconds: float = 240.0) -> Any:
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            if value := found():
                return value
            assert self.process.poll() is None, "\n".join(self.said)
            time.sleep(0.2)
        raise AssertionError("\n".join(self.said[-40:]))

    def healthy(self) -> bool:
        try:
            return bool(self.client.get("/health").status_code == 200)
        except httpx.TransportError:
            return False

    def status(self) -> dict[str, Any]:
        found: dict[str, Any] = self.client.get("/v1/train/status").raise_for_status().json()
        return found

    def entries(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = []
        after = None
        while True:
            asked = {"limit": 200} | ({"after": after} if after else {})
            page = self.client.get("/api/entries", params=asked).raise_for_status().json()
            found += page["entries"]
            after = page["next"]
            if after is None:
                return found

    def child(self, name: str) -> int:
        return int(self.wait(lambda: self.find(rf"{name} +process (\d+):")))

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def end(self) -> None:
        """As a service manager ends it."""
        self.process.terminate()
        assert self.process.wait(90) in (0, -signal.SIGTERM), "\n".join(self.said[-40:])


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def trail(workspace: Path) -> list[Event]:
    with open_loop(workspace) as ws:
        return list(_events.trail(ws.catalog))


def test_drop_audio_correct_texts_and_a_better_model_serves(tmp_path: Path, demo_speech: Path) -> None:
    workspace = tmp_path / "workspace"
    lines = [json.loads(line) for line in (demo_speech / "metadata.jsonl").read_text().splitlines()][::2]
    truth = {line["file"]: line["text"] for line in lines}
    up = Up(workspace)
    try:
        inbox = workspace / "inbox"
        for line in lines:
            (inbox / line["speaker"]).mkdir(exist_ok=True)
            shutil.copy(demo_speech / line["file"], inbox / line["speaker"])
        (inbox / "broken.wav").write_bytes(b"RIFF no audio here")
        (inbox / "notes.txt").write_text("not audio")

        # A worker is killed while it transcribes; another takes its place.
        up.wait(lambda: sum(one["status"] == "transcribed" for one in up.entries()) > 10)
        killed = up.child("worker 1")
        os.kill(killed, signal.SIGKILL)
        up.wait(lambda: up.child("worker 1") != killed)
        up.wait(lambda: not any(path.is_file() for path in inbox.rglob("*.ogg")))
        up.wait(lambda: len(up.entries()) >= len(lines) and all(one["status"] != "new" for one in up.entries()))
        with open_loop(workspace) as ws, ws.read() as reader:
            recordings = reader.all(Recording)
        assert len(recordings) == len(lines)
        assert {one.speaker for one in recordings} == {line["speaker"] for line in lines}
        assert (workspace / "failed" / "broken.wav.reason.txt").is_file()
        assert (inbox / "notes.txt").is_file()
        assert up.status()["cycle"] is None  # nobody has corrected anything yet

        files = [one["file"] for one in up.entries()]
        for one in up.entries():
            if files.count(one["file"]) == 1:
                up.client.put(f"/api/entries/{one['id']}", json={"transcript": truth[one["file"]]}).raise_for_status()

        # The whole group is killed while it trains. What is left of it ends by itself.
        up.wait(lambda: (up.status()["run"] or {}).get("progress", {}).get("step", 0) >= 5)
        left = [up.child("worker 1"), up.child("trainer")]
        up.kill()
        until = time.monotonic() + 60
        while any(map(alive, left)) and time.monotonic() < until:
            time.sleep(0.2)
        assert not any(map(alive, left))
        up = Up(workspace)

        cycle = up.wait(lambda: (found := up.status()["cycle"])["state"] in ("done", "failed") and found)
        assert (cycle["state"], cycle["verdict"]) == ("done", "promote"), cycle["message"]
        up.wait(lambda: up.client.get("/health").json()["model"] == cycle["model"])
        clip = next(iter(sorted(demo_speech.glob("*.ogg"))))
        heard = up.client.post(
            "/v1/audio/transcriptions", files={"file": (clip.name, clip.read_bytes())}, data={"model": "champion"}
        )
        assert heard.headers["x-voxloop-model"] == cycle["model"]
        up.wait(lambda: any(one.type == "serving.changed" for one in trail(workspace)))
        up.end()
    finally:
        if up.process.poll() is None:
            up.kill()

    found = trail(workspace)
    numbers = {one.type: one.seq for one in reversed(found)}
    order = [
        *("recording.ingested", "recording.segmented", "transcription.completed", "nlp.postprocessed"),
        *("utterance.reviewed", "dataset.new_sample", "training.asked", "dataset.frozen", "training.queued"),
        *("dataset.ready", "training.started", "training.completed", "evaluation.asked", "model.evaluated"),
        *("promotion.asked", "model.promoted", "training.concluded"),
    ]
    assert sorted(order, key=lambda type: numbers[type]) == order
    assert numbers["serving.changed"] > numbers["model.promoted"]
    counts = {type: sum(one.type == type for one in found) for type in ("recording.ingested", "model.promoted")}
    assert counts == {"recording.ingested": len(lines), "model.promoted": 1}
    samples = [one.subject for one in found if one.type == "dataset.new_sample"]
    assert len(samples) == len(set(samples)) >= len(lines) - 10
