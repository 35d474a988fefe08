"""A workspace on real servers, on this machine: PostgreSQL, S3 (SeaweedFS), NATS, three workers and the web server.

    make cluster         runs until Ctrl-C, and says how to use it from another terminal
    make cluster-demo    drops speech in, and shows its transcripts as NATS tells of them

Every part is a process of its own on a free port of 127.0.0.1. All data is in a temporary folder and goes with them.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from tests import postgresql  # noqa: E402
from tests.servers import (  # noqa: E402
    free_ports,
    nats_started,
    s3_environment,
    s3_started,
    wait_for_s3,
)

WORKERS = 3
CLIPS = 12
DURABLE = {"fsync": "on", "synchronous_commit": "on", "full_page_writes": "on", "max_connections": "200"}
ENDED_S = 40.0  # for which a process may finish what it does


def voxloop(*arguments: str) -> list[str]:
    return [sys.executable, "-c", "from voxloop.cli import main; main()", *arguments]


@contextmanager
def process(name: str, command: Sequence[str], folder: Path, environment: dict[str, str]) -> Iterator[None]:
    """A process that is asked to end with the block. Its output is in NAME.log."""
    with (folder / f"{name}.log").open("wb") as log:
        # In a group of its own, so that Ctrl-C in the terminal reaches this script alone, which ends it in order.
        started = subprocess.Popen(command, stdout=log, stderr=log, env=environment, start_new_session=True)
        print(f"{name:<12}{started.pid}", flush=True)
        try:
            yield
        finally:
            started.send_signal(signal.SIGTERM)
            try:
                started.wait(ENDED_S)
            except subprocess.TimeoutExpired:
                print(f"{name} did not end and is killed", file=sys.stderr)
                started.kill()
                started.wait()


@contextmanager
def cluster(folder: Path, *, workers: int) -> Iterator[dict[str, str]]:
    """All parts; the environment that leads to them."""
    with ExitStack() as stack:
        for part in ("s3", "nats"):
            (folder / part).mkdir()
        catalog_port, s3_port, nats_port, web_port = free_ports(4)
        server = stack.enter_context(postgresql.started(catalog_port, **DURABLE))
        print(f"{'PostgreSQL':<12}127.0.0.1:{catalog_port}", flush=True)
        os.environ.update(s3_environment(s3_port))
        wait_for_s3(stack.enter_context(s3_started(folder / "s3", s3_port)), folder / "s3")
        print(f"{'S3':<12}127.0.0.1:{s3_port}", flush=True)
        nats = stack.enter_context(nats_started(folder / "nats", nats_port))
        print(f"{'NATS':<12}127.0.0.1:{nats_port}", flush=True)
        leads = {
            **s3_environment(s3_port),
            "VOXLOOP_WORKSPACE": str(folder / "workspace"),
            "VOXLOOP_CATALOG": server.create(),
            "VOXLOOP_BLOBS": "s3://voxloop/demo",
            "VOXLOOP_BUS": f"{nats.url}/demo",
            "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1"),
        }
        environment = os.environ | leads
        subprocess.run(voxloop("init"), check=True, env=environment, stdout=subprocess.DEVNULL)
        serve = voxloop("serve", "--port", str(web_port), "--no-auth")
        stack.enter_context(process("server", serve, folder, environment))
        for number in range(1, workers + 1):
            stack.enter_context(process(f"worker {number}", voxloop("worker"), folder, environment))
        print(f"{'web':<12}http://127.0.0.1:{web_port}", flush=True)
        yield leads


def speech(folder: Path) -> list[str]:
    """Digit strings in voices that espeak-ng makes; their texts by file name."""
    import soundfile

    from voxloop.starter.synthesis import random_voice, speak
    from voxloop.starter.texts import DIGITS

    chance = random.Random(18)
    folder.mkdir()
    texts = []
    for number in range(CLIPS):
        text = " ".join(chance.choices(DIGITS, k=4))
        soundfile.write(folder / f"{number:02}.wav", speak(text, voice=random_voice(chance)), 16_000)
        texts.append(text)
    return texts


async def follow(leads: dict[str, str], recordings: int, dropping: asyncio.Task[Any]) -> None:
    """Print events as any NATS client reads them, until every recording's texts are there."""
    import nats

    server, _, name = leads["VOXLOOP_BUS"].rpartition("/")
    connection = await nats.connect(server)
    events = await connection.jetstream().subscribe(f"{name}.events.>", ordered_consumer=True)
    began, heard = time.monotonic(), 0
    while heard < recordings:
        message = await events.next_msg(timeout=300)
        event = json.loads(message.data)
        print(f"{time.monotonic() - began:6.1f} s  {message.subject:<44} {event['subject'][:20]}", flush=True)
        heard += event["type"] == "nlp.postprocessed"
    await dropping
    await connection.close()


def transcripts(leads: dict[str, str]) -> list[tuple[str, str]]:
    """Each file's name and text."""
    from voxloop.pipeline import open_loop
    from voxloop.records import Recording, Transcript, Utterance

    with (
        open_loop(Path(leads["VOXLOOP_WORKSPACE"]), environ=leads | {"VOXLOOP_BUS": "local"}) as ws,
        ws.read() as reader,
    ):
        names = {recording.id: recording.name for recording in reader.all(Recording)}
        recordings = {utterance.id: utterance.recording for utterance in reader.all(Utterance)}
        texts = {recordings[one.utterance]: one.text for one in reader.all(Transcript) if one.kind == "clean"}
    return sorted((names[id], text) for id, text in texts.items())


def demonstrate(leads: dict[str, str], folder: Path) -> None:
    """Drop speech in, and show how it comes out."""
    spoken = speech(folder / "speech")

    async def both() -> None:
        await connected(leads)
        ingest = voxloop("ingest", str(folder / "speech"))
        dropping = asyncio.create_task(asyncio.to_thread(subprocess.run, ingest, check=True, env=os.environ | leads))
        await follow(leads, len(spoken), dropping)

    asyncio.run(both())
    print(f"\n{'file':<10}{'spoken':<32}recognised by the starter")
    for name, text in transcripts(leads):
        print(f"{name:<10}{spoken[int(name.partition('.')[0])]:<32}{text}")


async def connected(leads: dict[str, str]) -> None:
    """Make the stream of events, as the first relay does, so that it can be read from its start."""
    from voxloop.stores.nats_bus import NatsBus

    bus = NatsBus(leads["VOXLOOP_BUS"], {})
    await asyncio.to_thread(bus.check)
    await asyncio.to_thread(bus.close)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--demo", action="store_true", help="drop speech in, show its transcripts, and end")
    parser.add_argument("--workers", type=int, default=WORKERS)
    given = parser.parse_args()
    for asked in (signal.SIGINT, signal.SIGTERM):  # also where a shell started it with SIGINT ignored
        signal.signal(asked, signal.default_int_handler)
    with tempfile.TemporaryDirectory(prefix="voxloop-cluster-") as name:
        folder = Path(name)
        folder.chmod(0o755)  # PostgreSQL's own user looks in
        try:
            with cluster(folder, workers=given.workers) as leads:
                if given.demo:
                    demonstrate(leads, folder)
                    return
                shown = " ".join(f"{variable}={shlex.quote(value)}" for variable, value in leads.items())
                print(f"\nlogs: {folder}/*.log\nfrom another terminal:\n\n    export {shown}\n")
                print(
                    "    .venv/bin/voxloop ingest FOLDER; .venv/bin/voxloop doctor\n\nCtrl-C ends everything.",
                    flush=True,
                )
                while True:
                    time.sleep(3600)
        except KeyboardInterrupt:
            print("\nended", flush=True)


if __name__ == "__main__":
    main()
