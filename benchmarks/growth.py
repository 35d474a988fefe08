"""What the catalog costs as it grows: pages, filters, counts and a dataset build, at 10,000 to 1,000,000 utterances.

The rows are synthetic, five utterances to a recording, with the texts, events and done jobs that the loop leaves.
Each dataset build runs in a process of its own, so that its peak memory is its own.
"""

from __future__ import annotations

import json
import random
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from itertools import islice
from pathlib import Path
from statistics import median
from typing import Any

import sqlalchemy as sa

from benchmarks.side_by_side import Row
from voxloop import datasets, review
from voxloop.pipeline import open_loop
from voxloop.records import Quality, Recording, Transcript, Utterance, utterance_id
from voxloop.review import Filters
from voxloop.status import status
from voxloop.stores import catalog as tables
from voxloop.stores.catalog import to_row
from voxloop.workspace import Workspace

SIZES = (10_000, 100_000, 1_000_000)
PER_RECORDING = 5
SAMPLES = 64_000  # of an utterance, 4 s
SPEAKERS = 2_000
LANGUAGES = ("en", "vi", "de")
REVIEWED = 0.3  # share of the utterances
QUALITY = Quality(level_dbfs=-24.1, peak_dbfs=-3.2, snr_db=31.5, clipping=0.0, silence=0.12, bandwidth_hz=7_100.0)
WORDS = ("please", "open", "the", "small", "window", "and", "turn", "down", "radio", "before", "supper", "everybody")
BEGAN = 1_790_000_000.0  # seconds since the epoch
BLOCK = 20_000  # rows sent at once
REPEATS = 7


def fill(ws: Workspace, utterances: int, *, seed: int = 1) -> None:
    """Write the rows of a workspace in which so many utterances were ingested, transcribed and partly reviewed."""
    rows = _rows(utterances, random.Random(seed))
    while block := list(islice(rows, BLOCK)):
        found: dict[sa.Table, list[dict[str, Any]]] = {}
        for table, row in block:
            found.setdefault(table, []).append(row)
        with ws.catalog.write() as writer:
            for table in tables.metadata.sorted_tables:  # a row after those that it refers to
                if table in found:
                    writer.connection.execute(sa.insert(table), found[table])


def _rows(utterances: int, chance: random.Random) -> Iterator[tuple[sa.Table, dict[str, Any]]]:
    """Each recording's rows together, since the others refer to it."""
    for number in range(utterances // PER_RECORDING):
        id = f"sha256-{chance.randbytes(32).hex()}"
        speaker, language = f"speaker{chance.randrange(SPEAKERS):04}", chance.choice(LANGUAGES)
        now = BEGAN + number
        found = Recording(
            id=id,
            source=f"/archive/{number // 1000:04}/{number:07}.wav",
            name=f"{number:07}.wav",
            samples=PER_RECORDING * SAMPLES,
            speaker=speaker,
            language=language,
            quality=QUALITY,
            created=now,
        )
        yield tables.recording, to_row(found)
        yield from _told("recording.ingested", id, ("segment",), now)
        for place in range(PER_RECORDING):
            yield from _spoken(found, place, chance)


def _spoken(recording: Recording, place: int, chance: random.Random) -> Iterator[tuple[sa.Table, dict[str, Any]]]:
    start, end, now = place * SAMPLES, (place + 1) * SAMPLES, recording.created
    reviewed = chance.random() < REVIEWED
    utterance = Utterance(
        id=utterance_id(recording.id, start, end),
        recording=recording.id,
        start=start,
        end=end,
        speaker=recording.speaker,
        language=recording.language,
        status="reviewed" if reviewed else "transcribed",
        quality=QUALITY,
        priority=chance.random(),
    )
    yield tables.utterance, to_row(utterance) | {"ingested": now}
    heard = Transcript(
        id=f"model:{utterance.id}",
        utterance=utterance.id,
        kind="hypothesis",
        text=" ".join(chance.choices(WORDS, k=8)),
        by="starter",
        confidence=chance.random(),
        created=now,
    )
    yield tables.transcript, to_row(heard)
    if reviewed:
        yield tables.transcript, to_row(replace(heard, id=f"r:{utterance.id}", kind="reference", by="ann"))
    yield from _told("transcription.completed", utterance.id, ("transcribe", "restore", "index"), now)


def _told(type: str, subject: str, steps: tuple[str, ...], now: float) -> Iterator[tuple[sa.Table, dict[str, Any]]]:
    event = {"id": f"{type}:{subject}", "created": now, "type": type, "subject": subject, "payload": {}}
    yield tables.event, event
    for step in steps:
        yield (
            tables.job,
            {
                "id": f"{step}:{event['id']}",
                "created": now,
                "step": step,
                "event": event["id"],
                "subject": subject,
                "state": "done",
                "run_at": now,
                "attempts": 1,
                "finished": now,
            },
        )


def questions(ws: Workspace) -> dict[str, Callable[[], Any]]:
    """What screens and commands ask, each as a call."""
    first = review.page(ws, limit=50)
    with ws.read() as reader:
        newest = float(reader.connection.execute(sa.select(sa.func.max(tables.recording.c.created))).scalar_one())
    filters = {
        "waiting": Filters(status="transcribed"),
        "one speaker": Filters(speaker="speaker0007"),
        "one language": Filters(language="vi"),
        "confidence below 0.2": Filters(max_confidence=0.2),
        "of the last hour": Filters(since=newest - 3600),
    }
    asked: dict[str, Callable[[], Any]] = {
        "page of 50": lambda: review.page(ws, limit=50),
        "next page": lambda: review.page(ws, limit=50, after=first.after),
        "counts of the status page": lambda: status(ws),
    }
    asked |= {f"page, {name}": partial(review.page, ws, where=where, limit=50) for name, where in filters.items()}
    return asked


def timed(call: Callable[[], Any]) -> list[float]:
    """Milliseconds of each of some calls; the first, which fills the caches, is not counted."""
    call()
    found = []
    for _ in range(REPEATS):
        began = time.perf_counter()
        call()
        found.append((time.perf_counter() - began) * 1000)
    return found


def build(folder: Path) -> dict[str, float]:
    """A dataset of all that is reviewed: seconds, and the process's memory before it and at its peak in MB."""
    with open_loop(folder) as ws:
        before = _peak_mb()
        began = time.perf_counter()
        datasets.build(ws, name="all")
        return {"seconds": time.perf_counter() - began, "before_mb": before, "peak_mb": _peak_mb()}


def _peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def measure(rounds: int) -> list[Row]:
    """Each question at the largest size ("ours") and at the smallest ("peer"): how much it grows."""
    del rounds  # each question is asked REPEATS times: they take milliseconds
    found: dict[int, dict[str, list[float]]] = {}
    memory: dict[int, float] = {}
    for size in SIZES:
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary) / "workspace"
            with open_loop(folder, create=True) as ws:
                fill(ws, size)
                found[size] = {name: timed(call) for name, call in questions(ws).items()}
            command = [sys.executable, "-m", "benchmarks.growth", str(folder)]
            built = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
            found[size]["dataset build"] = [built["seconds"] * 1000]
            memory[size] = built["peak_mb"]
        print(f"{size:>9,} utterances: " + ", ".join(f"{name} {median(ms):.1f} ms" for name, ms in found[size].items()))
        print(f"{'':>9} dataset build: {memory[size]:.0f} MB at its peak", flush=True)
    small, large = SIZES[0], SIZES[-1]
    return [_row(name, found[large][name], found[small][name]) for name in found[large]]


def _row(name: str, large: list[float], small: list[float]) -> Row:
    ratios = [one / median(small) for one in large]
    return Row(
        name=f"{name}, {SIZES[-1]:,} against {SIZES[0]:,} utterances",
        ours=median(large),
        peer=median(small),
        unit="ms",
        ratio_median=median(ratios),
        ratio_min=min(ratios),
        ratio_max=max(ratios),
        quality_ours=f"x{SIZES[-1] // SIZES[0]} rows",
        quality_peer="",
    )


if __name__ == "__main__":
    print(json.dumps(build(Path(sys.argv[1]))))
