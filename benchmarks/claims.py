"""What the job table costs with a million jobs waiting: look, claim, renew, finish, emit, count.

The jobs wait for four steps, a part of them urgent; ten thousand are leased by others, and as many were done. On SQLite
in a temporary folder, or on `--catalog postgresql+psycopg://…`, an empty database of your own. Each call is timed
together with its transaction. Its CPU time is that of this process: of SQLite all, of PostgreSQL the client's.
"""

from __future__ import annotations

import argparse
import itertools
import json
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import sqlalchemy as sa

from benchmarks import results
from benchmarks.side_by_side import machine
from voxloop.errors import UsageError
from voxloop.pipeline import COALESCED, LISTENERS, PRIORITIES
from voxloop.stores import tables
from voxloop.stores.catalog import Catalog, Reader, Writer
from voxloop.stores.jobs import Claim, Jobs, News

WAITING = 1_000_000
LEASED = DONE = 10_000
STEPS = ("segment", "transcribe", "restore", "index")
BLOCK = 20_000  # rows sent at once
ROUNDS = 200
BATCH = 64  # jobs of a claim, as `pipeline` takes them
ALLOWED_MS = 5.0  # for a claim
SECONDS = 7.0  # of audio that a job stands for


def fill(catalog: Catalog, waiting: int) -> None:
    """Write events with their jobs: so many that wait, and fewer that are leased or done."""
    with catalog.read() as reader:
        now = reader.now()
        if reader.connection.execute(sa.select(tables.job.c.id).limit(1)).first():
            raise UsageError("the catalog holds jobs already: name an empty database")
    rows = _rows(waiting, now)
    while block := list(islice(rows, BLOCK)):
        with catalog.write() as tx:
            events = [
                {"id": row["event"], "created": now, "type": "filled", "subject": row["subject"], "payload": {}}
                for row in block
            ]
            tx.connection.execute(sa.insert(tables.event), [one | {"published": False} for one in events])
            tx.connection.execute(sa.insert(tables.job), block)
    with catalog.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.exec_driver_sql("ANALYZE")


def _rows(waiting: int, now: float) -> Iterator[dict[str, Any]]:
    states = itertools.chain(
        itertools.repeat("ready", waiting), itertools.repeat("leased", LEASED), itertools.repeat("done", DONE)
    )
    for number, state in enumerate(states):
        step, subject = STEPS[number % len(STEPS)], f"sha256-{number:064x}"
        yield {
            "id": f"{step}:filled:{subject}",
            "created": now,
            "step": step,
            "event": f"filled:{subject}",
            "subject": subject,
            "state": state,
            "priority": 10 if number % 1000 == 0 else 0,
            "cost_s": SECONDS,
            "token": "other" if state == "leased" else None,
            "not_before": now - waiting + number / 1000,
            "lease_until": now + 86_400 if state == "leased" else None,
            "attempts": int(state != "ready"),
            "finished": now if state == "done" else None,
        }


@dataclass
class Worker:
    """Calls that a worker makes, each on jobs of its own."""

    catalog: Catalog
    jobs: Jobs
    number: int = 0

    def look(self) -> None:
        with self.catalog.read() as reader:
            assert self.jobs.ready(reader, STEPS)

    def look_in_vain(self) -> None:
        with self.catalog.read() as reader:
            assert not self.jobs.ready(reader, ["train", "rank"])

    def claim(self, limit: int) -> Claim:
        claim = self.jobs.claim(["transcribe"], limit=limit)
        assert claim is not None
        return claim

    def finish(self, claim: Claim) -> None:
        with self.catalog.write() as tx:
            self.jobs.finish(tx, claim)

    def finish_each(self, claim: Claim) -> None:
        for subject in claim.subjects:
            with self.catalog.write() as tx:
                self.jobs.finish(tx, claim, [subject])

    def emit(self, count: int) -> None:
        self.number += count
        news = [News(f"new{self.number - one}", seconds=SECONDS) for one in range(count)]
        with self.catalog.write() as tx:
            assert self.jobs.emit_all(tx, "transcription.completed", news) == count

    def read(self, question: Callable[[Reader], Any]) -> Any:
        with self.catalog.read() as reader:
            return question(reader)

    def write(self, change: Callable[[Writer], Any]) -> Any:
        with self.catalog.write() as tx:
            return change(tx)


def measured(worker: Worker, rounds: int) -> dict[str, list[tuple[float, float]]]:
    """Milliseconds of each call, and of this process's CPU in it, by what it does."""
    found: dict[str, list[tuple[float, float]]] = {}

    def timed(name: str, call: Callable[[], Any]) -> Any:
        began, computed = time.perf_counter(), time.process_time()
        answer = call()
        took = time.perf_counter() - began, time.process_time() - computed
        found.setdefault(name, []).append((took[0] * 1000, took[1] * 1000))
        return answer

    jobs = worker.jobs
    for _ in range(rounds):
        timed("look for jobs of four steps", worker.look)
        timed("look, and there are none", worker.look_in_vain)
        claim = timed("claim one job", partial(worker.claim, 1))
        timed("finish it", partial(worker.finish, claim))
        claim = timed(f"claim {BATCH} jobs", partial(worker.claim, BATCH))
        timed("renew their lease", partial(jobs.renew, claim))
        timed("finish them one by one, in all", partial(worker.finish_each, claim))
        timed("sweep", jobs.sweep)
        timed("emit an event with two jobs", partial(worker.emit, 1))
        timed("emit 100 events with two jobs each", partial(worker.emit, 100))
    for _ in range(max(3, rounds // 40)):
        timed("count by step and state", lambda: worker.read(lambda reader: jobs.counts(reader, done=False)))
        timed("count what is open, to 10,000", lambda: worker.read(lambda one: jobs.open(one, STEPS, limit=10_000)))
        timed("subjects of a step that nobody floods", lambda: worker.read(lambda reader: jobs.held(reader, "train")))
        timed("withdraw a subject's jobs", lambda: worker.write(lambda tx: jobs.withdraw(tx, "train", "none")))
    return found


def main(arguments: Sequence[str]) -> None:
    """`python -m benchmarks claims`."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks claims", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--catalog", help="URL of an empty database; by default SQLite in a temporary folder")
    parser.add_argument("--waiting", type=int, default=WAITING, help="jobs that wait")
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="times that each call is made")
    parser.add_argument("--out", type=Path, default=Path("build/bench"))
    given = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="voxloop-bench-") as folder:
        catalog = Catalog(given.catalog or f"sqlite:///{folder}/catalog.db")
        catalog.migrate()
        fill(catalog, given.waiting)
        jobs = Jobs(catalog, LISTENERS, lease_s=300.0, max_attempts=5, priorities=PRIORITIES, coalesced=COALESCED)
        found = measured(Worker(catalog, jobs), given.rounds)
        name = catalog.engine.dialect.name
        catalog.close()
    given.out.mkdir(parents=True, exist_ok=True)
    path = given.out / f"claims-{name}.json"
    path.write_text(json.dumps({"machine": machine(), "waiting": given.waiting, "found": found}, indent=2) + "\n")
    text = section(given.out)
    print(text)
    results.put(results.PATH, "claims", text)
    worst = median(wall for wall, _ in found[f"claim {BATCH} jobs"])
    if worst > ALLOWED_MS:
        raise SystemExit(f"a claim takes {worst:.1f} ms; {ALLOWED_MS:.0f} ms are allowed")


def section(out: Path) -> str:
    """A table of all databases measured."""
    known = {path.stem.removeprefix("claims-"): json.loads(path.read_text()) for path in sorted(out.glob("claims-*"))}
    calls = list(dict.fromkeys(call for one in known.values() for call in one["found"]))
    lines = ["| ms: median, nine tenths within, CPU | " + " | ".join(known) + " |", "| --- |" + " --- |" * len(known)]
    for call in calls:
        cells = [_cell(one["found"].get(call)) for one in known.values()]
        lines.append(f"| {call} | " + " | ".join(cells) + " |")
    waiting = ", ".join(f"{name}: {one['waiting']:,} jobs waiting" for name, one in known.items())
    machines = "\n\n".join(dict.fromkeys(one["machine"] for one in known.values()))
    return f"{machines}\n\n{waiting}\n\n" + "\n".join(lines)


def _cell(times: list[tuple[float, float]] | None) -> str:
    if not times:
        return ""
    walls, computed = zip(*times, strict=True)
    return f"{median(walls):.2f}, {quantiles(walls, n=10, method='inclusive')[8]:.2f}, {median(computed):.2f}"
