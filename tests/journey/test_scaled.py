"""The loop on real servers, with two workers: kills of a worker, of NATS and of PostgreSQL lose and double nothing."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
import sqlalchemy as sa

from tests.conftest import ROOT
from tests.contracts.test_bus import stored
from tests.postgresql import Server, name_of
from tests.servers import free_ports, nats_started
from voxloop.errors import CatalogAway
from voxloop.pipeline import open_loop
from voxloop.steps.recordings import ingest
from voxloop.stores import tables
from voxloop.stores.events import trail
from voxloop.workspace import Workspace

CLIPS = 16
DEADLINE_S = 240.0
SEQUENCE = ("recording.ingested", "recording.segmented", "transcription.completed", "nlp.postprocessed")


def until(happened: Callable[[], bool], log: Path) -> None:
    ends = time.monotonic() + DEADLINE_S
    while True:
        with suppress(CatalogAway):  # while PostgreSQL recovers
            if happened():
                return
        assert time.monotonic() < ends, log.read_text()[-4000:]
        time.sleep(0.1)


def states(ws: Workspace) -> Counter[str]:
    with ws.read() as reader:
        counts = sa.select(tables.job.c.state, sa.func.count()).group_by(tables.job.c.state)
        return Counter({row[0]: row[1] for row in reader.connection.execute(counts)})


def unpublished(ws: Workspace) -> int:
    with ws.read() as reader:
        waiting = sa.select(sa.func.count()).where(tables.event.c.published == sa.false())
        return int(reader.connection.execute(waiting).scalar_one())


def test_kills_lose_and_double_nothing(
    tmp_path: Path,
    postgresql_server: Server,
    postgresql: str,
    s3: str,
    demo_speech: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name, value in {
        "VOXLOOP_CATALOG": postgresql, "VOXLOOP_BLOBS": s3, "VOXLOOP_LEASE_S": "2", "VOXLOOP_POLL_S": "0.2",
        "VOXLOOP_ENGINE": "torch",  # whose threads bear that the crew forks after loading
    }.items():  # fmt: skip
        monkeypatch.setenv(name, value)
    speech, log = tmp_path / "speech", tmp_path / "log"
    speech.mkdir()
    for file in sorted(demo_speech.glob("*.ogg"))[:CLIPS]:
        shutil.copy(file, speech)
    (tmp_path / "nats").mkdir()
    with nats_started(tmp_path / "nats", free_ports(1)[0]) as nats:
        monkeypatch.setenv("VOXLOOP_BUS", nats.url)
        with open_loop(tmp_path / "workspace", create=True) as ws:
            command = [sys.executable, "-m", "tests.journey.crew", str(ws.folder), "2"]
            with log.open("w") as file:
                crew = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=file, cwd=ROOT, text=True)
            assert crew.stdout is not None
            first = int(crew.stdout.readline())
            try:
                ingest(ws, speech, processes=1)
                until(lambda: states(ws)["done"] >= 4, log)
                os.kill(first, signal.SIGKILL)
                until(lambda: states(ws)["done"] >= 12, log)
                nats.kill()
                until(lambda: states(ws)["done"] >= 24, log)
                nats.start()
                mine = f"SELECT pid FROM pg_stat_activity WHERE datname = '{name_of(postgresql)}' LIMIT 1"
                os.kill(postgresql_server.execute(mine)[0].pid, signal.SIGKILL)  # all of them end, and it recovers
                until(lambda: recovered(postgresql_server), log)
                until(lambda: states(ws).keys() == {"done"} and not unpublished(ws), log)
            finally:
                crew.terminate()
                crew.wait(60)
            happened = list(trail(ws.catalog))
            found = [event for _, event in asyncio.run(stored(f"{nats.url}/voxloop"))]
            assert [event["id"] for event in found] == [event.id for event in happened]
            assert states(ws) == {"done": sum(states(ws).values())}
            ingested = {event.subject for event in happened if event.type == "recording.ingested"}
            assert len(ingested) == CLIPS
            for recording in ingested:  # the sequence that other programs rely on
                types = [event["type"] for event in found if event["subject"] == recording]
                assert [type for type in types if type in SEQUENCE] == list(SEQUENCE), types
            with ws.read() as reader:
                texts = sa.select(tables.transcript.c.utterance).where(tables.transcript.c.kind == "hypothesis")
                utterances = list(reader.connection.execute(texts).scalars())
                assert len(utterances) == len(set(utterances)) >= CLIPS


def recovered(server: Server) -> bool:
    try:
        server.execute("SELECT 1")
    except sa.exc.OperationalError:
        return False
    return True
