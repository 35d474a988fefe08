"""Serving: `voxloop serve` against faster-whisper one request after the other, over HTTP, with real Whisper and speech.

    python -m benchmarks serving                              all parts
    python -m benchmarks serving --part load --seconds 60     one of them; the others stay as they were measured

`load`: audio heard in a second and how long requests take, for 1, 8 and 32 clients that ask without pause, clips of 2
to 10 s. `beside`: a clip of 3 s, again and again, alone and while a file of ten minutes is heard. `memory`: ten times
as many clients as are answered in time, and what the server holds meanwhile.
"""

from __future__ import annotations

import argparse
import asyncio
import io
import json
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import httpx2 as httpx
import numpy as np
import psutil
import soundfile

from benchmarks import checkpoints, results
from benchmarks.peers import RATE, THREADS
from benchmarks.side_by_side import machine
from voxloop.pipeline import open_loop
from voxloop.speech import text
from voxloop.speech.audio import decode

ROOT = Path(__file__).parents[1]
DATA = ROOT.parent / "shared" / "data"
SETS = ("prompts_en", "kathleen_en")
PARTS = ("load", "beside", "memory")
CLIENTS = (1, 8, 32)
SHORTEST_S, LONGEST_S, CLIPS = 2.0, 10.0, 64
LONG_S, BESIDE_S = 600.0, 3.0
MANY = 10  # times as many clients as the most above
SIDES = ("voxloop", "faster-whisper, one after another")

NOTES = """Each server has two threads and shares two cores with the clients that load it; sides are measured in turn,
round by round, and medians are shown. Both hear the same clips with the same weights in int8, greedily, behind a voice
detector. p50 and p95 are from sending a request to having its whole answer. Where the server says 429, a client comes
back when it was told to: that counts as refused, and not as latency."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Clip:
    """A file to send, and what is said in it."""

    content: bytes
    seconds: float
    said: str = ""


@dataclass(kw_only=True, slots=True)
class Measured:
    """What clients of one server saw in one stretch of time."""

    part: str
    side: str
    clients: int
    lasted_s: float = 0.0
    heard_s: float = 0.0
    latencies_s: list[float] = field(default_factory=list)
    refused: int = 0
    failed: int = 0
    pairs: list[tuple[str, str]] = field(default_factory=list)  # said, heard
    memory_mb: list[float] = field(default_factory=list)

    @property
    def rate(self) -> float:
        return self.heard_s / self.lasted_s

    def quantile(self, share: float) -> float:
        return float(np.quantile(self.latencies_s, share)) if self.latencies_s else float("nan")

    @property
    def wer(self) -> float:
        said, heard = ([text.normalise(one, "en") for one in texts] for texts in zip(*self.pairs, strict=True))
        return text.total(text.word_errors_each(said, heard)).rate


def main(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks serving", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--part", action="append", choices=PARTS, help="only this one; may be given more than once")
    parser.add_argument("--rounds", type=int, default=3, help="interleaved rounds")
    parser.add_argument("--seconds", type=float, default=30.0, help="of each measurement")
    parser.add_argument("--model", default="base", choices=sorted(checkpoints.CHECKPOINTS))
    parser.add_argument("--context", default="full", help="audio context of our side: full, adaptive")
    parser.add_argument("--out", type=Path, default=Path("build/bench"))
    given = parser.parse_args(arguments)
    kept = given.out / "serving"
    kept.mkdir(parents=True, exist_ok=True)
    source = checkpoints.fetch(given.model)
    clips = speech()
    with (
        tempfile.TemporaryDirectory(prefix="voxloop-serving-") as temporary,
        ours(source, Path(temporary), given.context) as one,
        peer(source) as other,
    ):
        servers = dict(zip(SIDES, (one, other), strict=True))
        for part in given.part or PARTS:
            found = asyncio.run(MEASURE[part](servers, clips, given.rounds, given.seconds))
            told = {"machine": machine(), "model": given.model, "context": given.context}
            lines = [asdict(each) for each in found]
            (kept / f"{part}.json").write_text(json.dumps(told | {"measured": lines}, indent=2) + "\n")
            print(table(part, found))
    sections = []
    for part in PARTS:
        if (kept / f"{part}.json").exists():
            told = json.loads((kept / f"{part}.json").read_text())
            found = [Measured(**one) for one in told["measured"]]
            about = f"{part}, Whisper {told['model']} int8, context {told['context']}: {told['machine']}"
            sections += [about, table(part, found)]
    results.put(results.PATH, "serving", "\n\n".join([*sections, NOTES]))


# What is sent --------------------------------------------------------------------------------------------------------


def speech() -> list[Clip]:
    """Clips of 2 to 10 s with their texts: real speech where it lies beside the checkout, else the demo's."""
    found = []
    for folder in [DATA / name for name in SETS if (DATA / name).is_dir()] or [ROOT / "demo" / "speech"]:
        for line in (folder / "metadata.jsonl").read_text(encoding="utf-8").splitlines():
            row = json.loads(line)
            sound = decode(folder / row["file"])
            if SHORTEST_S <= len(sound) / RATE <= LONGEST_S:
                found.append(_clip(sound, row["text"]))
    chosen = np.random.default_rng(0).permutation(len(found))[:CLIPS]
    return [found[index] for index in chosen]


def _clip(sound: np.ndarray[Any, np.dtype[np.float32]], said: str = "") -> Clip:
    file = io.BytesIO()
    soundfile.write(file, sound, RATE, format="WAV", subtype="PCM_16")
    return Clip(content=file.getvalue(), seconds=len(sound) / RATE, said=said)


def long_file(clips: Sequence[Clip], seconds: float) -> Clip:
    """Clips with pauses between them, so many seconds in all."""
    pause = np.zeros(RATE // 2, dtype=np.float32)
    parts: list[np.ndarray[Any, np.dtype[np.float32]]] = []
    while sum(map(len, parts)) < seconds * RATE:
        clip = clips[len(parts) // 2 % len(clips)]
        parts += [soundfile.read(io.BytesIO(clip.content), dtype="float32")[0], pause]
    return _clip(np.concatenate(parts)[: int(seconds * RATE)])


# The servers ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True, slots=True)
class Server:
    url: str
    process: psutil.Process

    @property
    def memory_mb(self) -> float:
        """Of the server and its children."""
        every = [self.process, *self.process.children(recursive=True)]
        return sum(one.memory_full_info().uss for one in every) / 1e6


@contextmanager
def ours(source: Path, folder: Path, context: str) -> Iterator[Server]:
    with open_loop(folder / "workspace", create=True) as ws:
        settings = ws.folder / "voxloop.toml"
    chosen = {"base_model": str(source), "engine": "ctranslate2", "device": "cpu", "language": "en"}
    lines = [f"{name} = {json.dumps(value)}" for name, value in (chosen | {"audio_context": context}).items()]
    settings.write_text("\n".join([*lines, f"threads = {THREADS}"]) + "\n")
    command = ["-c", "from voxloop.cli import main; main()", "-C", str(settings.parent), "serve"]
    with _started([sys.executable, *command, "--port", "0", "--no-auth"]) as server:
        yield server


@contextmanager
def peer(source: Path) -> Iterator[Server]:
    with _started([sys.executable, "-m", "benchmarks.serving_peer", str(source)]) as server:
        yield server


@contextmanager
def _started(command: Sequence[str]) -> Iterator[Server]:
    with tempfile.TemporaryFile("w+") as log, subprocess.Popen(command, stderr=log) as process:
        try:
            while not (found := re.search(r"(http://[\d.:]+)/v1", _said(log))):
                assert process.poll() is None, _said(log)
                time.sleep(0.1)
            while not _answers(found[1]):
                assert process.poll() is None, _said(log)
                time.sleep(0.1)
            yield Server(url=found[1], process=psutil.Process(process.pid))
        finally:
            process.terminate()


def _answers(url: str) -> bool:
    try:
        httpx.get(f"{url}/health", trust_env=False, timeout=60)  # whatever the status is
    except httpx.TransportError:
        return False
    return True


def _said(log: Any) -> str:
    log.seek(0)
    return str(log.read())


# The clients ---------------------------------------------------------------------------------------------------------


async def ask(http: httpx.AsyncClient, clip: Clip, seen: Measured) -> None:
    """One request, until it is answered."""
    while True:
        began = time.perf_counter()
        said = await http.post("/v1/audio/transcriptions", files={"file": ("a.wav", clip.content)}, data={"model": ""})
        if said.status_code == 429:
            seen.refused += 1
            await asyncio.sleep(float(said.headers["retry-after"]))
            continue
        if said.status_code != 200:
            seen.failed += 1
            return
        seen.latencies_s.append(time.perf_counter() - began)
        seen.heard_s += clip.seconds
        seen.pairs.append((clip.said, said.json()["text"]))
        return


def client(server: Server) -> httpx.AsyncClient:
    return httpx.AsyncClient(base_url=server.url, trust_env=False, timeout=None)


async def settle(server: Server, clip: Clip) -> None:
    """Wait until a server has nothing left to do: the peer goes on with requests whose clients are gone."""
    async with client(server) as http:
        await ask(http, clip, Measured(part="", side="", clients=1))


@asynccontextmanager
async def asking(server: Server, clips: Sequence[Clip], seen: Measured, count: int) -> AsyncIterator[None]:
    """So many clients that ask without pause while the block lasts."""

    async def without_pause(number: int) -> None:
        async with client(server) as http:
            for place in range(number, 1 << 30):
                await ask(http, clips[place % len(clips)], seen)

    await settle(server, clips[0])
    tasks = [asyncio.create_task(without_pause(7 * number)) for number in range(count)]
    began = time.perf_counter()
    try:
        yield
    finally:
        seen.lasted_s += time.perf_counter() - began
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def load(servers: dict[str, Server], clips: list[Clip], rounds: int, seconds: float) -> list[Measured]:
    found = []
    for count in CLIENTS:
        for _ in range(rounds):
            for side, server in servers.items():
                seen = Measured(part="load", side=side, clients=count)
                async with asking(server, clips, seen, count):
                    await asyncio.sleep(seconds)
                found.append(seen)
    return found


async def beside(servers: dict[str, Server], clips: list[Clip], rounds: int, seconds: float) -> list[Measured]:
    found = []
    short, long = long_file(clips, BESIDE_S), long_file(clips, LONG_S)
    for _ in range(rounds):
        for side, server in servers.items():
            for part in ("alone", "beside ten minutes"):
                seen = Measured(part=part, side=side, clients=1)
                other = Measured(part=part, side=side, clients=1)
                await settle(server, short)
                async with client(server) as http, client(server) as its_own:
                    heard = asyncio.create_task(ask(its_own, long, other)) if part != "alone" else None
                    await asyncio.sleep(2.0 if heard else 0.0)  # by then it is decoded and cut
                    end = time.perf_counter() + seconds
                    while time.perf_counter() < end and not (heard and heard.done()):
                        began = time.perf_counter()
                        await ask(http, short, seen)
                        seen.lasted_s += time.perf_counter() - began
                    if heard:
                        heard.cancel()
                        await asyncio.gather(heard, return_exceptions=True)
                found.append(seen)
    return found


async def memory(servers: dict[str, Server], clips: list[Clip], rounds: int, seconds: float) -> list[Measured]:
    side, server = next(iter(servers.items()))
    found = []
    for count in (max(CLIENTS), MANY * max(CLIENTS)):
        seen = Measured(part="memory", side=side, clients=count)
        async with asking(server, clips, seen, count):
            for _ in range(10):
                await asyncio.sleep(seconds / 10)
                seen.memory_mb.append(server.memory_mb)
        found.append(seen)
    return found


MEASURE = {"load": load, "beside": beside, "memory": memory}


# What is told --------------------------------------------------------------------------------------------------------


def table(part: str, found: Sequence[Measured]) -> str:
    """A Markdown table: the medians of the rounds."""
    if part == "memory":
        head = ["| clients | audio s/s | p95 s | refused | failed | memory MB, first | highest | last |"]
        rows = [
            f"| {one.clients} | {one.rate:.1f} | {one.quantile(0.95):.1f} | {one.refused} | {one.failed} | "
            f"{one.memory_mb[0]:.0f} | {max(one.memory_mb):.0f} | {one.memory_mb[-1]:.0f} |"
            for one in found
        ]
        return "\n".join([*head, "|---|---|---|---|---|---|---|---|", *rows])
    groups: dict[tuple[str, int, str], list[Measured]] = {}
    for one in found:
        groups.setdefault((one.part, one.clients, one.side), []).append(one)
    lines = ["| | clients | server | audio s/s | p50 s | p95 s | refused | failed | WER |", "|---" * 9 + "|"]
    for (name, clients, side), mine in groups.items():
        p50, p95 = (statistics.median(one.quantile(share) for one in mine) for share in (0.5, 0.95))
        spoken = [one.wer for one in mine if one.pairs and one.pairs[0][0]]
        wer = f"{100 * statistics.median(spoken):.1f} %" if spoken else ""
        lines.append(
            f"| {name} | {clients} | {side} | {statistics.median(one.rate for one in mine):.1f} | {p50:.2f} | "
            f"{p95:.2f} | {sum(one.refused for one in mine)} | {sum(one.failed for one in mine)} | {wer} |"
        )
    return "\n".join(lines)
