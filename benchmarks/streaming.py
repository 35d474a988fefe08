"""Live transcription: how long after a word is spoken a client sees it, and what that costs in accuracy.

    python -m benchmarks streaming                              real Whisper base in int8, as it is: partials at pauses
    python -m benchmarks streaming --model FOLDER --name tuned  a model that was tuned on short audio: partials always
    python -m benchmarks streaming --streams 1,2,8 --clips 20

A server of its own process is sent sentences at the pace at which they were spoken, over loopback. The end of each
reference word is found by forced alignment with the same model; the last word of a pause ends where the next begins, so
that latencies are rather too short there. Each text shown (decided words and the tail that may still change) is aligned
with the reference words whose speech had begun, and a word counts from when it first stands there.

Each run is kept in build/bench/streaming/NAME.json, and the table is made of all that are there.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import re
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import IO, Any

import numpy as np
import soundfile
from websockets.asyncio.client import connect

from benchmarks import results
from benchmarks.checkpoints import fetch
from benchmarks.peers import RATE, Sound
from benchmarks.side_by_side import machine
from voxloop import models
from voxloop.pipeline import open_loop
from voxloop.speech.audio import decode, to_pcm16
from voxloop.speech.text import align, normalise, word_errors
from voxloop.steps.transcripts import transcribe_file
from voxloop.workspace import Workspace

DATA = Path(__file__).parents[1].parent / "shared" / "data"
TOKEN = "benchmark"
CHUNK = RATE // 25  # 40 ms
PAUSE_S = 1.0  # between sentences
TRANSCRIPTION = "conversation.item.input_audio_transcription"

NOTES = """Latency in seconds, median / 95th percentile: from the end of a word to when it is first shown, to when it is
decided, and from the end of speech as the server's voice detection tells it to the final text. Erased: words shown and
taken out of the tail again, for each word of the final text; decided words are never taken back. Contradicted: finals
that say otherwise than the words decided before. Offline: the same sound as one file. WER over all streams."""


@dataclass(frozen=True, slots=True)
class Spoken:
    """What one stream says."""

    sound: Sound
    words: tuple[str, ...]
    starts: tuple[float, ...]  # seconds
    ends: tuple[float, ...]


@dataclass(slots=True)
class Seen:
    """What one client saw."""

    shown: list[float] = field(default_factory=list)  # latencies in seconds
    decided: list[float] = field(default_factory=list)
    final: list[float] = field(default_factory=list)
    erased: int = 0
    contradicted: int = 0
    finals: int = 0
    text: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class Run:
    """One number of streams with one model."""

    name: str
    streams: int
    words: int
    shown_s: tuple[float, float] | None  # median and 95th percentile
    decided_s: tuple[float, float] | None
    final_s: tuple[float, float] | None
    erased: float
    contradicted: float
    wer: float
    wer_offline: float
    silence_ms: int
    measured: str


def main(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks streaming",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--model", type=Path, help="a model's folder; real Whisper base, where not given")
    parser.add_argument("--name", default="base", help="what its rows are called")
    parser.add_argument("--context", default="auto", help="audio_context: auto, adaptive, trimmed, full")
    parser.add_argument("--streams", default="1,2,8", help="how many clients at a time")
    parser.add_argument("--clips", type=int, default=12, help="sentences of each client")
    parser.add_argument("--silence-ms", type=int, default=300, help="pause that ends an utterance")
    parser.add_argument("--threads", type=int, default=2, help="of the server")
    parser.add_argument("--data", type=Path, default=DATA, help="folder with recorded speech")
    parser.add_argument("--out", type=Path, default=Path("build/bench"))
    given = parser.parse_args(arguments)
    kept = given.out / "streaming"
    kept.mkdir(parents=True, exist_ok=True)
    counts = [int(count) for count in given.streams.split(",")]
    with tempfile.TemporaryDirectory(prefix="voxloop-streaming-") as folder, _workspace(Path(folder), given) as ws:
        spoken = _streams(ws, given.data / "kathleen_en", max(counts), given.clips)
        offline = [_offline(ws, one, Path(folder) / f"{number}.wav") for number, one in enumerate(spoken)]
        models.free()
        for count in counts:
            with _server(ws.folder) as url:
                seen = asyncio.run(_all(url, spoken[:count], given.silence_ms))
            run = _run(given, count, spoken[:count], seen, offline[:count])
            (kept / f"{given.name}-{count}.json").write_text(json.dumps(asdict(run), indent=2) + "\n")
            print(_table([run]))
    found = [Run(**json.loads(path.read_text())) for path in sorted(kept.glob("*.json"))]
    body = "\n\n".join([*dict.fromkeys(f"{one.name}: {one.measured}" for one in found), _table(found), NOTES])
    results.put(results.PATH, "streaming", body)


@contextmanager
def _workspace(folder: Path, given: argparse.Namespace) -> Iterator[Workspace]:
    settings = {
        "base_model": str(given.model or fetch("base")),
        "engine": "ctranslate2",
        "device": "cpu",
        "threads": given.threads,
        "language": "en",
        "audio_context": given.context,
    }
    place = folder / "workspace"
    place.mkdir()
    lines = [f"{name} = {json.dumps(value)}" for name, value in settings.items()]
    (place / "voxloop.toml").write_text("\n".join(lines) + "\n")
    with open_loop(place) as ws:
        yield ws


# What is said --------------------------------------------------------------------------------------------------------


def _streams(ws: Workspace, folder: Path, count: int, clips: int) -> list[Spoken]:
    rows = [json.loads(line) for line in (folder / "metadata.jsonl").read_text().splitlines()]
    found = []
    with models.loaded(ws, models.base_model(ws)) as recogniser:
        for number in range(count):
            chosen = [rows[(number * clips + place) % len(rows)] for place in range(clips)]
            chance = np.random.default_rng(number)
            pieces, words, starts, ends, at = [], [], [], [], 0.0
            for row in chosen:
                clip = decode(folder / row["file"])
                # The recordings' own room, not digital silence, which no microphone gives.
                quiet = (2e-4 * chance.standard_normal(int(PAUSE_S * RATE))).astype(np.float32)
                said = [_bare(word) for word in row["text"].split() if _bare(word)]
                for word, (start, end) in zip(said, _word_times(recogniser, clip, row["text"]), strict=True):
                    words.append(word)
                    starts.append(at + start)
                    ends.append(at + end)
                pieces += [clip, quiet]
                at += (len(clip) + len(quiet)) / RATE
            found.append(Spoken(np.concatenate(pieces), tuple(words), tuple(starts), tuple(ends)))
    return found


def _word_times(recogniser: Any, clip: Sound, text: str) -> list[tuple[float, float]]:
    """Start and end of each word of a text that is known to be in a clip."""
    said = [word for word in text.split() if _bare(word)]
    tokens = [recogniser.tokenizer.encode(f" {word}", add_special_tokens=False) for word in said]
    states, mask = recogniser._encode([clip], "full")
    prompt = recogniser.vocabulary.prompt("en")
    flat = [token for word in tokens for token in word]
    (times,) = recogniser._token_times(states, mask, [0], [prompt], [flat], [len(clip)])
    places = np.cumsum([0, *map(len, tokens)])
    return [(times[first], times[last]) for first, last in pairwise(places)]


def _offline(ws: Workspace, spoken: Spoken, file: Path) -> str:
    soundfile.write(file, spoken.sound, RATE, subtype="PCM_16")
    return transcribe_file(ws, file, language="en").text


# The server and its clients ------------------------------------------------------------------------------------------


@contextmanager
def _server(workspace: Path) -> Iterator[str]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-c", "from voxloop.cli import main; main()"]
    command += ["-C", str(workspace), "serve", "--port", str(port)]
    with tempfile.TemporaryFile() as log, _started(command, log) as process:
        for _ in range(1200):
            try:
                # The socket listens before the model is loaded, and answers when it is.
                urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=60).close()
                break
            except OSError:
                if process.poll() is not None:
                    log.seek(0)
                    raise SystemExit(log.read().decode()) from None
                time.sleep(0.1)
        yield f"ws://127.0.0.1:{port}/v1/realtime?intent=transcription"


@contextmanager
def _started(command: Sequence[str], log: IO[bytes]) -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen(command, env=os.environ | {"VOXLOOP_TOKEN": TOKEN}, stderr=log)
    try:
        yield process
    finally:
        process.terminate()
        process.wait()


async def _all(url: str, spoken: Sequence[Spoken], silence_ms: int) -> list[Seen]:
    # Clients do not begin in the same moment, as nobody does.
    return await asyncio.gather(*(_client(url, one, silence_ms, 0.37 * number) for number, one in enumerate(spoken)))


async def _client(url: str, spoken: Spoken, silence_ms: int, wait_s: float) -> Seen:
    await asyncio.sleep(wait_s)
    seen = Seen()
    headers = {"authorization": f"Bearer {TOKEN}"}
    async with connect(url, additional_headers=headers, proxy=None, max_size=None) as client:
        audio = {
            "format": {"type": "audio/pcm", "rate": RATE},
            "transcription": {"language": "en"},
            "turn_detection": {"type": "server_vad", "silence_duration_ms": silence_ms},
        }
        session = {"type": "transcription", "audio": {"input": audio}, "include": ["voxloop.unstable"]}
        await client.send(json.dumps({"type": "session.update", "session": session}))
        while json.loads(await client.recv())["type"] != "session.updated":
            pass
        began = time.monotonic()
        sender = asyncio.create_task(_say(client, spoken.sound, began))
        watcher = Watcher(spoken, began, seen)
        while not (sender.done() and watcher.idle):
            try:
                event = json.loads(await asyncio.wait_for(client.recv(), 2.0))
            except TimeoutError:
                continue
            watcher.take(event, time.monotonic())
        await sender
    seen.text = watcher.text
    return seen


async def _say(client: Any, sound: Sound, began: float) -> None:
    pcm = to_pcm16(sound)
    for place in range(0, len(pcm), 2 * CHUNK):
        # A microphone gives a piece when it is over.
        await asyncio.sleep(max(0.0, began + (place + 2 * CHUNK) / 2 / RATE - time.monotonic()))
        await client.send(pcm[place : place + 2 * CHUNK])


class Watcher:
    """What a client has seen so far, by item, and since when each reference word stands there."""

    def __init__(self, spoken: Spoken, began: float, seen: Seen) -> None:
        self.spoken, self.began, self.seen = spoken, began, seen
        self.items: dict[str, list[str]] = {}  # decided, tail
        self.finals: dict[str, str] = {}
        self.stopped: dict[str, float] = {}
        self.known: dict[str, set[int]] = {"shown": set(), "decided": set()}
        self.before: list[str] = []

    @property
    def idle(self) -> bool:
        return set(self.items) == set(self.finals)

    @property
    def text(self) -> str:
        return " ".join(self.finals.get(item, "".join(pair)) for item, pair in self.items.items())

    def take(self, event: dict[str, Any], now: float) -> None:
        kind, item = event["type"].rpartition(".")[2], event.get("item_id", "")
        if event["type"] == "error":
            raise RuntimeError(event["error"]["message"])
        if kind == "speech_started":
            self.items[item] = ["", ""]
        elif kind == "speech_stopped":
            self.stopped[item] = self.began + event["audio_end_ms"] / 1000
        elif kind == "delta":
            self.items[item][0] += event["delta"]
            self.items[item][1] = ""
        elif kind == "unstable":
            self.items[item][1] = event["text"]
        elif event["type"] == f"{TRANSCRIPTION}.completed":
            self.finals[item] = event["transcript"]
            self.seen.finals += 1
            self.seen.contradicted += _words(self.items[item][0]) != _words(event["transcript"])
            if event["transcript"]:
                self.seen.final.append(now - self.stopped[item])
        else:
            return
        if kind == "delta":
            return  # the tail that follows makes the text whole, or a final does
        self._look(now)

    def _look(self, now: float) -> None:
        begun = sum(start <= now - self.began for start in self.spoken.starts)
        decided = [self.finals.get(item, pair[0]) for item, pair in self.items.items()]
        shown = [self.finals.get(item, "".join(pair)) for item, pair in self.items.items()]
        self._note("decided", decided, begun, now, self.seen.decided)
        self._note("shown", shown, begun, now, self.seen.shown)
        words = [word for text in shown for word in _words(text)]
        same = next((i for i, (a, b) in enumerate(zip(self.before, words, strict=False)) if a != b), None)
        kept = min(len(self.before), len(words)) if same is None else same
        self.seen.erased += len(self.before) - kept
        self.before = words

    def _note(self, what: str, texts: Sequence[str], begun: int, now: float, latencies: list[float]) -> None:
        reference = " ".join(self.spoken.words[:begun])
        heard = " ".join(word for text in texts for word in _words(text))
        if not reference or not heard:
            return
        place = 0
        for pair in align(reference, heard):
            if pair.reference is None:
                continue
            if pair.reference == pair.hypothesis and place not in self.known[what]:
                self.known[what].add(place)
                latencies.append(now - self.began - self.spoken.ends[place])
            place += 1


# Figures -------------------------------------------------------------------------------------------------------------


def _run(
    given: argparse.Namespace, count: int, spoken: Sequence[Spoken], seen: Sequence[Seen], offline: Sequence[str]
) -> Run:
    words = sum(len(one.words) for one in spoken)
    return Run(
        name=given.name,
        streams=count,
        words=words,
        shown_s=_spread([s for one in seen for s in one.shown]),
        decided_s=_spread([s for one in seen for s in one.decided]),
        final_s=_spread([s for one in seen for s in one.final]),
        erased=round(sum(one.erased for one in seen) / max(1, sum(len(one.text.split()) for one in seen)), 3),
        contradicted=round(sum(one.contradicted for one in seen) / max(1, sum(one.finals for one in seen)), 3),
        wer=_wer(spoken, [one.text for one in seen]),
        wer_offline=_wer(spoken, offline),
        silence_ms=given.silence_ms,
        measured=machine(),
    )


def _spread(values: Sequence[float]) -> tuple[float, float] | None:
    if not values:
        return None
    middle, late = np.percentile(values, [50, 95])
    return round(float(middle), 2), round(float(late), 2)


def _wer(spoken: Sequence[Spoken], texts: Sequence[str]) -> float:
    counts = [
        word_errors(normalise(" ".join(one.words), "en"), normalise(text, "en"))
        for one, text in zip(spoken, texts, strict=True)
    ]
    return round(sum(one.errors for one in counts) / max(1, sum(one.units for one in counts)), 4)


def _table(runs: Sequence[Run]) -> str:
    lines = ["| model | streams | words | shown | decided | final | erased | contradicted | WER | offline |"]
    lines.append("|---|---|---|---|---|---|---|---|---|---|")
    for run in runs:
        figures = [f"{one[0]:.2f} / {one[1]:.2f}" if one else "–" for one in (run.shown_s, run.decided_s, run.final_s)]
        shares = [f"{run.erased:.2f}", f"{run.contradicted:.0%}", f"{run.wer:.1%}", f"{run.wer_offline:.1%}"]
        cells = [run.name, str(run.streams), str(run.words), *figures, *shares]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _bare(word: str) -> str:
    return re.sub(r"[^\w']+", "", word).casefold()


def _words(text: str) -> list[str]:
    return [bare for word in text.replace("-", " ").split() if (bare := _bare(word))]
