"""Promotions under load, against `voxloop serve` in a process of its own: no request fails, each text is of the model
that its answer names, memory ends where it began, and a kill in the middle leaves a server that starts again.

A few swaps here; `SWAPS=20 pytest tests/web/test_swap_proof.py` is the whole proof.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import httpx2 as httpx
import openai
import psutil
import pytest
from websockets.exceptions import ConnectionClosed

from tests.web.live import COMPLETED, DELTA, PCM_16K, live, said
from tests.web.test_hot_swap import crowned, disturbed, told, wait_for
from voxloop import models
from voxloop.pipeline import open_loop
from voxloop.records import Model
from voxloop.steps.gate import promotion
from voxloop.steps.transcripts import transcribe_file
from voxloop.workspace import Workspace

SWAPS = int(os.environ.get("SWAPS", "8"))
CLIENTS = 16
MOST_GROWTH = 1.05  # of memory, from the fifth swap to the last one
SERVE = "from voxloop.cli import main; main()"


@dataclass
class Server:
    """A process that serves a workspace."""

    process: subprocess.Popen[str]
    url: str

    @property
    def model(self) -> str:
        return str(httpx.get(f"{self.url}/health", trust_env=False, timeout=60).json()["model"])

    @property
    def memory(self) -> int:
        return int(psutil.Process(self.process.pid).memory_info().rss)


@contextmanager
def serving(ws: Workspace) -> Iterator[Server]:
    command = [sys.executable, "-c", SERVE, "-C", str(ws.folder), "serve", "--port", "0", "--no-auth"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stderr is not None
        first = process.stderr.readline()
        found = re.match(r"(http://[\d.:]+)/v1", first)
        assert found, first
        drain = threading.Thread(target=process.stderr.read, daemon=True)  # its log, which nobody reads
        drain.start()
        server = Server(process, found[1])
        wait_for(lambda: _answers(server), 120)
        yield server
    finally:
        process.terminate()
        process.wait(60)


def _answers(server: Server) -> bool:
    try:
        return bool(server.model)
    except httpx.TransportError:
        return False


@dataclass
class Answer:
    """What a client was told."""

    begun: float
    clip: Path
    model: str
    text: str


@dataclass
class Load:
    """Clients that ask without pause, each on its own, until the block ends."""

    url: str
    clips: list[Path]
    answers: list[Answer] = field(default_factory=list)
    failures: list[BaseException] = field(default_factory=list)

    def _ask(self, number: int, ending: threading.Event) -> None:
        client = openai.OpenAI(base_url=f"{self.url}/v1", api_key="none", max_retries=0)
        clip = self.clips[number % len(self.clips)]
        while not ending.is_set():
            begun = time.monotonic()
            try:
                raw = client.audio.transcriptions.with_raw_response.create(model="whisper-1", file=clip)
                self.answers.append(Answer(begun, clip, raw.headers["x-voxloop-model"], raw.parse().text))
            except Exception as error:  # noqa: BLE001 - none may come
                self.failures.append(error)

    @contextmanager
    def running(self) -> Iterator[None]:
        ending = threading.Event()
        threads = [threading.Thread(target=self._ask, args=(number, ending)) for number in range(CLIENTS)]
        for thread in threads:
            thread.start()
        try:
            yield
        finally:
            ending.set()
            for thread in threads:
                thread.join(60)


@pytest.fixture(params=["torch", "ctranslate2"])
def ws(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Workspace]:
    with open_loop(tmp_path / "served", create=True, engine=request.param, threads=1) as opened:
        # The server is another process: what is set above has to be where it reads it.
        settings = opened.folder / "voxloop.toml"
        settings.write_text(f'{settings.read_text()}\nengine = "{request.param}"\nthreads = 1\n')
        yield opened


def test_swaps_under_load(ws: Workspace, demo_speech: Path, tmp_path: Path) -> None:
    clips = sorted(demo_speech.glob("*.ogg"))[:4]
    three = [disturbed(ws, tmp_path / f"model {seed}", seed=seed) for seed in (1, 2, 3)]
    broken = disturbed(ws, tmp_path / "broken", seed=4)
    first = models.base_model(ws, models.STARTER)
    known = {
        (model.id, clip): transcribe_file(ws, clip, model=model.id).text for model in (first, *three) for clip in clips
    }
    assert len({known[model.id, clips[0]] for model in three}) == 3
    weights = Path(broken.where) / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    periods: list[tuple[float, float, str]] = []  # of each swap: when it was seen, when the next began, the model
    memory: list[int] = []
    with serving(ws) as server:
        load = Load(server.url, clips)
        with load.running():
            for number in range(SWAPS):
                model = three[number % 3]
                promotion.promote(ws, model.id, force=True, by="test")
                promoted = time.monotonic()
                wait_for(lambda model=model: server.model == model.id, 60)
                since, seen = time.monotonic(), len(load.answers)
                assert since - promoted < 30
                if number == SWAPS // 2:
                    crowned(ws, broken)
                    wait_for(lambda: told(ws, "serving.refused") == [broken.id], 60)
                    crowned(ws, model)
                wait_for(lambda seen=seen: len(load.answers) >= seen + CLIENTS or load.failures, 60)
                periods.append((since, time.monotonic(), model.id))
                memory.append(server.memory)
        assert load.failures == []
    wrong = [one for one in load.answers if one.text != known[one.model, one.clip]]
    assert wrong == []
    for number, (since, until, id) in enumerate(periods):
        # What begins before the next promotion may be answered by the next model, but by none that went.
        those = {one.model for one in load.answers if since < one.begun < until}
        assert those <= {id, three[(number + 1) % 3].id}
    assert {one.model for one in load.answers} >= {model.id for model in three}
    shown = [f"{one >> 20} MB" for one in memory]
    # Requests are under way whenever memory is read, so that the smaller of two readings counts.
    assert min(memory[-2:]) <= MOST_GROWTH * memory[max(5, SWAPS // 4) - 1], shown
    print(f"{len(load.answers)} answers; after each swap: {', '.join(shown)}")


@pytest.mark.parametrize("ws", ["ctranslate2"], indirect=True)
def test_a_kill_while_a_model_is_loaded(ws: Workspace, demo_speech: Path, tmp_path: Path) -> None:
    clip = sorted(demo_speech.glob("*.ogg"))[0]
    good = disturbed(ws, tmp_path / "good", seed=1)
    promotion.promote(ws, models.base_model(ws, models.STARTER).id, force=True, by="test")
    with serving(ws) as server:
        crowned(ws, good)
        # The lock is taken before the model is converted, which takes longer than it takes to see that.
        wait_for(lambda: any((ws.folder / "locks").glob(f"{good.id}-*.lock")), 60)
        server.process.kill()
        server.process.wait(30)
        assert not models.conversions(ws) or models.conversions(ws)[0].model != good.id  # it was in the middle
    with serving(ws) as again:
        assert again.model == good.id
        client = openai.OpenAI(base_url=f"{again.url}/v1", api_key="none", max_retries=0)
        assert client.audio.transcriptions.create(model="whisper-1", file=clip).text == _text(ws, clip, good)


def _text(ws: Workspace, clip: Path, model: Model) -> str:
    return transcribe_file(ws, clip, model=model.id).text


def test_a_server_that_stops_hears_out_who_is_speaking(tmp_path: Path, real_speech: Path) -> None:
    with open_loop(tmp_path / "served", create=True) as ws, serving(ws) as server, live(server, headers={}) as session:
        session.update(**PCM_16K)
        session.speak(said(real_speech, 4))
        session.next("input_audio_buffer.speech_started")
        server.process.send_signal(signal.SIGTERM)
        assert session.next(COMPLETED)["transcript"]
        with pytest.raises(ConnectionClosed) as closed:
            session.next(DELTA)
        assert closed.value.rcvd is not None
        assert closed.value.rcvd.code == 1001
        assert server.process.wait(30) in (0, -signal.SIGTERM)  # uvicorn raises the signal again
