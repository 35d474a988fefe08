"""How jobs get from PostgreSQL to many workers: claimed in the catalog alone, or handed out by JetStream.

Both are real: workers are processes, PostgreSQL and NATS run on loopback, and a job does nothing. `catalog` is what
Voxloop does: a worker asks the catalog for work, and idle ones are woken by plain NATS messages. `jetstream` puts job
ids into a work-queue stream after their commit; a worker fetches ids, claims these jobs in the catalog, which alone
decides, and acknowledges. Two loads: all jobs waiting at the start (jobs/s), and one at a time while all workers are
idle (time from the commit to the claim). CPU time is that of workers, PostgreSQL and NATS together, per job.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import multiprocessing
import os
import resource
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import psutil
import sqlalchemy as sa
from tests import postgresql
from tests.servers import NatsServer, free_ports, nats_started

from benchmarks import results
from benchmarks.side_by_side import machine
from voxloop.automation.worker import SELDOM
from voxloop.stores import tables
from voxloop.stores.catalog import Catalog
from voxloop.stores.jobs import Jobs, News
from voxloop.stores.nats_bus import NatsBus

STEP = "transcribe"
LISTENERS = {"asked": (STEP,)}
JOBS = 2000
TRICKLE = 100  # jobs that come one at a time
EVERY_S = 0.05
POLL_S = 0.5  # as the setting
STREAM = "JOBS"
job = tables.job


def opened(url: str) -> Jobs:
    return Jobs(Catalog(url), LISTENERS, lease_s=60.0, max_attempts=5)


def note(jobs: Jobs, ids: Sequence[str], log: Any) -> None:
    """Write down when jobs were claimed."""
    now = time.time()
    log.write("".join(f"{id}\t{now}\n" for id in ids))
    log.flush()


def catalog_worker(url: str, bus_url: str, batch: int, path: Path, stop: Any) -> None:
    """The loop of `voxloop worker`, without its steps."""
    jobs, bus = opened(url), NatsBus(bus_url, {})
    waited = False
    with path.open("w") as log:
        while not stop.is_set():
            with jobs.catalog.read() as reader:
                ready = jobs.ready(reader, [STEP])
            claim = jobs.claim([STEP], limit=batch) if ready else None
            if claim is None:
                if not bus.listen([STEP]):
                    bus.wait([STEP], POLL_S * SELDOM)
                    waited = True
                continue
            if waited and claim.more:
                bus.wake([STEP])
            waited = False
            note(jobs, claim.jobs, log)
            with jobs.catalog.write() as tx:
                jobs.finish(tx, claim)
    bus.close()


def jetstream_worker(url: str, bus_url: str, batch: int, path: Path, stop: Any) -> None:
    asyncio.run(_jetstream_worker(url, bus_url, batch, path, stop))


async def _jetstream_worker(url: str, bus_url: str, batch: int, path: Path, stop: Any) -> None:
    import nats

    jobs = opened(url)
    client = await nats.connect(bus_url.rpartition("/")[0])
    fetching = await client.jetstream().pull_subscribe_bind("workers", stream=STREAM)
    with path.open("w") as log:
        while not stop.is_set():
            try:
                messages = await fetching.fetch(batch, timeout=POLL_S)
            except TimeoutError:
                continue
            ids = [message.data.decode() for message in messages]
            held = await asyncio.to_thread(_claim, jobs, ids)
            note(jobs, held, log)
            await asyncio.to_thread(_finish, jobs, held)
            for message in messages:
                await message.ack()
    await client.close()


def _claim(jobs: Jobs, ids: Sequence[str]) -> list[str]:
    """Lease jobs by id: what the catalog still has to decide when JetStream hands out."""
    with jobs.catalog.write() as tx:
        free = sa.and_(job.c.id.in_(ids), job.c.state == tables.READY)
        found = tx.connection.execute(sa.select(job.c.id).where(free).with_for_update(skip_locked=True)).scalars().all()
        held = {"state": "leased", "token": "t", "lease_until": tables.now_s() + 60.0, "attempts": job.c.attempts + 1}
        tx.connection.execute(sa.update(job).where(job.c.id.in_(found)).values(**held))
    return list(found)


def _finish(jobs: Jobs, ids: Sequence[str]) -> None:
    with jobs.catalog.write() as tx:
        mine = sa.and_(job.c.id.in_(ids), job.c.token == "t", job.c.state == "leased")
        done = {"state": "done", "finished": tables.now_s(), "error": None, "lease_until": None}
        tx.connection.execute(sa.update(job).where(mine).values(**done))


class Emitter:
    """Emits jobs, and tells workers of them in either way."""

    def __init__(self, kind: str, url: str, bus_url: str) -> None:
        self._jobs = opened(url)
        self._kind = kind
        self._bus = NatsBus(bus_url, {})
        self._bus.check()
        self._number = 0

    def emit(self, count: int) -> list[str]:
        names = [f"{self._kind}{self._number + one}" for one in range(count)]
        self._number += count
        with self._jobs.catalog.write() as tx:
            self._jobs.emit_all(tx, "asked", [News(name) for name in names])
        ids = [f"{STEP}:asked:{name}" for name in names]
        if self._kind == "catalog":
            self._bus.wake([STEP])
        else:
            self._bus._answer(self._publish(ids), 120.0)
        return ids

    async def _publish(self, ids: Sequence[str]) -> None:
        stream = self._bus._client.jetstream()
        sent = [await stream.publish_async("jobs", id.encode()) for id in ids]
        await asyncio.gather(*sent)

    def done(self) -> int:
        with self._jobs.catalog.read() as reader:
            count = sa.select(sa.func.count()).where(job.c.state == tables.DONE)
            return int(reader.connection.execute(count).scalar_one())

    def close(self) -> None:
        self._bus.close()
        self._jobs.catalog.close()


async def make_stream(url: str) -> None:
    import nats
    from nats.js.api import AckPolicy, ConsumerConfig, RetentionPolicy

    client = await nats.connect(url)
    stream = client.jetstream()
    await stream.add_stream(name=STREAM, subjects=["jobs"], retention=RetentionPolicy.WORK_QUEUE)
    consumer = ConsumerConfig(
        durable_name="workers", ack_policy=AckPolicy.EXPLICIT, ack_wait=60, max_ack_pending=10_000
    )
    await stream.add_consumer(STREAM, consumer)
    await client.close()


def servers_cpu_s() -> float:
    """CPU time of PostgreSQL and NATS, which are this process's children."""
    total = 0.0
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):
            if process.name().startswith(("postgres", "nats-server")):
                times = process.cpu_times()
                total += times.user + times.system
    return total


def measure(kind: str, workers: int, batch: int, jobs: int, folder: Path, server: Any, nats: NatsServer) -> Any:
    """Figures of one way with one number of workers."""
    url = server.create()
    catalog = Catalog(url)
    catalog.migrate()
    catalog.close()
    bus_url = f"{nats.url}/{kind}"
    if kind == "jetstream":
        asyncio.run(make_stream(nats.url))
    forked = multiprocessing.get_context("fork")
    stop = forked.Event()
    run = catalog_worker if kind == "catalog" else jetstream_worker
    paths = [folder / f"{kind}-{number}" for number in range(workers)]
    processes = [forked.Process(target=run, args=(url, bus_url, batch, path, stop)) for path in paths]
    for process in processes:
        process.start()
    emitter = Emitter(kind, url, bus_url)
    time.sleep(max(3.0, workers / 8))  # until all are connected and idle
    emitted: dict[str, float] = {}
    for _ in range(TRICKLE):
        ids = emitter.emit(1)
        emitted.update(dict.fromkeys(ids, time.time()))
        time.sleep(EVERY_S)
    time.sleep(1.0)
    servers, began = servers_cpu_s(), time.perf_counter()
    emitter.emit(jobs)
    filled = time.perf_counter() - began
    while emitter.done() < jobs + TRICKLE:
        time.sleep(0.1)
    took = time.perf_counter() - began
    servers = servers_cpu_s() - servers
    stop.set()
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    for process in processes:
        process.join()
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    emitter.close()
    claimed = dict(line.split("\t") for path in paths for line in path.read_text().splitlines())
    late = [1000 * max(0.0, float(claimed[id]) - at) for id, at in emitted.items()]
    server.drop(url)
    return {
        "jobs_s": jobs / took,
        "filled_s": filled,
        "idle_ms": median(late),
        "idle_90_ms": quantiles(late, n=10)[8],
        "servers_cpu_ms": 1000 * servers / jobs,
        "workers_cpu_s": after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime,
    }


def main(arguments: Sequence[str]) -> None:
    """`python -m benchmarks handing-out`."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks handing-out",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--workers", type=int, nargs="+", default=[10, 50], help="processes")
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 16], help="jobs of a claim")
    parser.add_argument("--jobs", type=int, default=JOBS)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--out", type=Path, default=Path("build/bench"))
    given = parser.parse_args(arguments)
    found: dict[str, list[Any]] = {}
    with _servers() as (folder, server):
        for _ in range(given.rounds):
            for workers in given.workers:
                for batch in given.batch:
                    for kind in ("catalog", "jetstream"):
                        with (
                            tempfile.TemporaryDirectory(prefix="voxloop-nats-") as store,
                            nats_started(Path(store), free_ports(1)[0]) as nats,
                        ):
                            one = measure(kind, workers, batch, given.jobs, folder, server, nats)
                        found.setdefault(f"{workers} workers, {batch} at a time, {kind}", []).append(one)
                        print(workers, batch, kind, one, file=sys.stderr)
    given.out.mkdir(parents=True, exist_ok=True)
    (given.out / "handing-out.json").write_text(json.dumps({"machine": machine(), "found": found}, indent=2) + "\n")
    text = section(machine(), found)
    print(text)
    results.put(results.PATH, "handing-out", text)


@contextlib.contextmanager
def _servers() -> Iterator[tuple[Path, Any]]:
    with (
        tempfile.TemporaryDirectory(prefix="voxloop-bench-") as folder,
        postgresql.started(free_ports(1)[0], max_connections="300") as server,
    ):
        yield Path(folder), server


def section(described: str, found: dict[str, list[Any]]) -> str:
    """A table of the medians over the rounds."""
    columns = {
        "jobs_s": "jobs/s",
        "idle_ms": "to an idle worker, ms: median",
        "idle_90_ms": "nine tenths within",
        "servers_cpu_ms": "servers' CPU per job, ms",
        "workers_cpu_s": "workers' CPU, s",
    }
    lines = ["| | " + " | ".join(columns.values()) + " |", "| --- |" + " --- |" * len(columns)]
    for name, rounds in found.items():
        cells = [f"{median(one[column] for one in rounds):.1f}" for column in columns]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return f"{described}, {os.cpu_count()} cores for all of it\n\n" + "\n".join(lines)
