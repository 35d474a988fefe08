"""What the catalog costs as it grows: pages in every filter, counts, ingest and a dataset build.

The rows are synthetic, five utterances to a recording, with the texts, events and done jobs that the loop leaves.
Each dataset build runs in a process of its own, so that its peak memory is its own. A million utterances take minutes
to write: `--sizes 1000000 --fill FOLDER` writes them apart, `--workspaces FOLDER` measures there (once: a dataset and
new recordings are left behind).
"""

from __future__ import annotations

import argparse
import json
import random
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from itertools import islice
from pathlib import Path
from statistics import median
from typing import Any, cast

import sqlalchemy as sa

from benchmarks import growth_page, results
from benchmarks.ingest import small_files
from benchmarks.side_by_side import Row, machine, rows_table, write
from voxloop.pipeline import open_loop
from voxloop.records import Quality, Recording, Transcript, Utterance, utterance_id
from voxloop.status import status
from voxloop.steps import datasets, review
from voxloop.steps.recordings import ingest
from voxloop.steps.review import Filters
from voxloop.stores import tables
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
INGESTED = 1000  # small files taken into each workspace
SELDOM = "everybody supper everybody"  # in about one text of 300
RARE = f"{SELDOM} window everybody radio"  # in about one of a million
NOTES = """Ours is the largest size, the peer the smallest: how much each grows. Medians of seven after one that fills
the caches; the build and the ingest of 1,000 small files are single runs."""


def fill(ws: Workspace, utterances: int, *, seed: int = 1) -> None:
    """Write the rows of a workspace in which so many utterances were ingested, transcribed and partly reviewed."""
    rows = _rows(utterances, random.Random(seed))
    with ws.catalog.engine.connect() as connection:
        # Keys are random: with a small cache each row is a page read and written.
        driver = cast("sqlite3.Connection", connection.connection.driver_connection)
        driver.execute("PRAGMA cache_size=-1000000")  # KB
        driver.execute("PRAGMA synchronous=off")
        while block := list(islice(rows, BLOCK)):
            found: dict[sa.Table, list[dict[str, Any]]] = {}
            for table, row in block:
                found.setdefault(table, []).append(row)
            for table in tables.metadata.sorted_tables:  # a row after those that it refers to
                if table in found:
                    connection.execute(sa.insert(table), found[table])
            connection.commit()
        connection.invalidate()  # the next one has the settings of every workspace


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
    heard = Transcript(
        id=f"model:{utterance.id}",
        utterance=utterance.id,
        kind="hypothesis",
        text=" ".join(chance.choices(WORDS, k=8)),
        by="starter",
        confidence=chance.random(),
        created=now,
    )
    yield tables.utterance, to_row(utterance) | {"ingested": now, "confidence": heard.confidence}
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
                "not_before": now,
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
        "of the last minute": Filters(since=newest - 60),
        "of the last hour": Filters(since=newest - 3600),
        "of the last hour, waiting, one language": Filters(since=newest - 3600, status="transcribed", language="vi"),
        "of the first hour": Filters(until=BEGAN + 3600),
        "confidence from 0.5": Filters(min_confidence=0.5),
        "confidence to 0.2": Filters(max_confidence=0.2),
        "confidence from 0.99": Filters(min_confidence=0.99),
        "confidence from 0.999": Filters(min_confidence=0.999),
        "a frequent word": Filters(contains="window"),
        "words of one text in 300": Filters(contains=SELDOM),
        "words of hardly any text": Filters(contains=RARE),
        "a word of no text": Filters(contains="zebra"),
        "two letters of no text": Filters(contains="zq"),
        "a warning": Filters(warned=True),
        "one warning": Filters(warning="low confidence"),
        "no warning": Filters(warned=False),
    }
    asked: dict[str, Callable[[], Any]] = {
        "page of 50": lambda: review.page(ws, limit=50),
        "next page": lambda: review.page(ws, limit=50, after=first.after),
        "counts of the status page": lambda: status(ws),
    }
    asked |= {f"page, {name}": partial(review.page, ws, where=where, limit=50) for name, where in filters.items()}
    return asked


def timed(call: Callable[[], Any], rounds: int) -> list[float]:
    """Milliseconds of each of some calls; the first, which fills the caches, is not counted."""
    call()
    found = []
    for _ in range(rounds):
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
    """Of this program alone: `ru_maxrss` counts what its parent held when it started it."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:")) / 1024


def measured(folder: Path, size: int, rounds: int) -> dict[str, list[float]]:
    """Milliseconds of every question, of the build and of ingesting a file, and megabytes of the build."""
    with open_loop(folder) as ws:
        found = {name: timed(call, rounds) for name, call in questions(ws).items()}
        for name, ms in found.items():
            print(f"{size:>9,}  {name:40} {median(ms):9.2f} ms", flush=True)
    command = [sys.executable, "-m", "benchmarks.growth", str(folder)]
    built = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)
    found["dataset build"] = [built["seconds"] * 1000]
    found["memory of the build"] = [built["peak_mb"]]
    with tempfile.TemporaryDirectory() as files, open_loop(folder) as ws:
        small_files(Path(files), INGESTED)
        ingest(ws, Path(files), limit=INGESTED // 10, processes=1)
        began = time.perf_counter()
        taken = len(ingest(ws, Path(files), processes=1).taken)
        found["ingest of a small file"] = [(time.perf_counter() - began) / taken * 1000]
    print(
        f"{size:>9,}  build {built['seconds']:.1f} s, {built['peak_mb']:.0f} MB; "
        f"ingest {found['ingest of a small file'][0]:.2f} ms a file",
        flush=True,
    )
    return found


def main(arguments: Sequence[str]) -> None:
    """`python -m benchmarks growth`."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks growth", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=REPEATS, help="times that each question is asked")
    parser.add_argument("--out", type=Path, default=Path("build/bench"))
    parser.add_argument(
        "--sizes", type=int, nargs="*", default=list(SIZES), help="utterances; none: only write the page"
    )
    parser.add_argument("--fill", type=Path, metavar="FOLDER", help="only write the workspaces, as FOLDER/SIZE")
    parser.add_argument("--workspaces", type=Path, metavar="FOLDER", help="measure in those written before")
    parser.add_argument("--page", type=Path, metavar="DOCS", help="write growth.svg and the table of growth.md there")
    given = parser.parse_args(arguments)
    for size in given.sizes:
        if given.fill:
            with open_loop(given.fill / str(size), create=True) as ws:
                fill(ws, size)
            continue
        with tempfile.TemporaryDirectory(prefix="voxloop-bench-") as temporary:
            folder = Path(given.workspaces or temporary) / str(size)
            if not folder.exists():
                with open_loop(folder, create=True) as ws:
                    fill(ws, size)
            found = measured(folder, size, given.rounds)
        given.out.mkdir(parents=True, exist_ok=True)
        text = json.dumps({"machine": machine(), "size": size, "found": found}, indent=2)
        (given.out / f"growth-{size}.json").write_text(text + "\n")
    if not given.fill:
        known = measures(given.out)
        results.put(results.PATH, "growth", section(given.out, known))
        if given.page:
            growth_page.write(given.page, known)


def measures(out: Path) -> list[dict[str, Any]]:
    """What was measured, the newest at each size, the smallest first."""
    known = (json.loads(path.read_text()) for path in out.glob("growth-*.json"))
    return sorted(known, key=lambda one: int(one["size"]))


def section(out: Path, known: Sequence[dict[str, Any]]) -> str:
    """The largest size against the smallest, for the results; the rows as `growth.json`."""
    small, large = known[0], known[-1]
    rows = [_row(name, large, small) for name in large["found"] if name in small["found"]]
    print(write(out / "growth.json", rows))
    print(rows_table(rows))
    machines = "\n\n".join(dict.fromkeys(one["machine"] for one in known))
    return f"{machines}\n\n{rows_table(rows)}\n\n{NOTES}"


def _row(name: str, large: dict[str, Any], small: dict[str, Any]) -> Row:
    a, b = large["found"][name], small["found"][name]
    ratios = [one / median(b) for one in a]
    return Row(
        name=f"{name}, {large['size']:,} against {small['size']:,} utterances",
        ours=median(a),
        peer=median(b),
        unit="MB" if name.startswith("memory") else "ms",
        ratio_median=median(ratios),
        ratio_min=min(ratios),
        ratio_max=max(ratios),
        quality_ours=f"x{large['size'] / small['size']:.0f} rows",
        quality_peer="",
    )


if __name__ == "__main__":
    print(json.dumps(build(Path(sys.argv[1]))))
