"""init, status, worker, events, doctor, demo."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from voxloop.cli.screen import Json, opened, percent, print_json, short, table, when

if TYPE_CHECKING:
    from voxloop.automation.worker import BatchReport
    from voxloop.status import Status

PAYLOAD_SHOWN = 140  # characters of an event on a line; --json has all


def register(app: typer.Typer) -> None:
    app.command()(init)
    app.command()(status)
    app.command()(worker)
    app.command()(events)
    app.command()(doctor)
    app.command()(demo)


def init(ctx: typer.Context) -> None:
    """Create a workspace: a folder that holds everything, with its settings in voxloop.toml."""
    with opened(ctx, create=True) as ws:
        typer.echo(f"workspace: {ws.folder}")
        typer.echo(f"settings:  {ws.folder / 'voxloop.toml'}")
        typer.echo("next:      voxloop ingest FOLDER")


def status(ctx: typer.Context, as_json: Json = False) -> None:
    """Show what is there, waiting, running and failed, and what to do next."""
    from voxloop.status import status as look

    with opened(ctx) as ws:
        found = look(ws)
    if as_json:
        print_json(found)
    else:
        _print_status(found)


def _print_status(found: Status) -> None:
    utterances = found.utterances
    lines = [
        ("workspace", found.workspace),
        ("recordings", f"{found.recordings} ({found.hours:.2f} h)" + _listed("refused files", found.refused)),
        ("utterances", f"{sum(utterances.values())}" + _listed("", utterances)),
        ("references", f"{found.references} texts by people"),
        ("datasets", f"{found.datasets}" + (f", newest {_dataset(found)}" if found.newest_dataset else "")),
        ("runs", f"{sum(found.runs.values())}" + _listed("", found.runs)),
        (
            "models",
            f"{found.models} trained; champion: "
            + (short(found.champion) if found.champion else f"none, {found.base_model} transcribes"),
        ),
    ]
    for name, text in lines:
        typer.echo(f"{name:<12}{text}")
    if found.newest_run and found.newest_run.status == "running":
        progress = found.newest_run.progress
        typer.echo(
            f"{'training':<12}{found.newest_run.id}: step {progress.get('step', 0)}, "
            f"val WER {percent(progress.get('val_wer'))}"
        )
    if found.jobs:
        typer.echo()
        table(
            ["step", "waiting", "running", "failed"],
            [
                [step, states.get("ready", 0), states.get("leased", 0), states.get("dead", 0)]
                for step, states in found.jobs.items()
            ],
        )
    for dead in found.dead[:5]:
        typer.echo(f"failed: {dead.step} of {short(dead.subject)}: {dead.error}")
    if found.next_steps:
        typer.echo("\nnext:")
        for step in found.next_steps:
            typer.echo(f"  {step}")


def _listed(name: str, counts: dict[str, int]) -> str:
    if not counts:
        return ""
    return f"; {name + ': ' if name else ''}" + ", ".join(f"{count} {reason}" for reason, count in counts.items())


def _dataset(found: Status) -> str:
    dataset = found.newest_dataset
    if dataset is None:
        return ""
    return (
        f"{dataset.name} {short(dataset.id)} (" + ", ".join(f"{n} {split}" for split, n in dataset.clips.items()) + ")"
    )


def worker(
    ctx: typer.Context,
    steps: Annotated[
        list[str] | None, typer.Argument(help="Only these steps.", show_default="all", metavar="[STEP]...")
    ] = None,
    until_idle: Annotated[bool, typer.Option("--until-idle", help="Exit when nothing is waiting.")] = False,
    retry_dead: Annotated[
        bool, typer.Option("--retry-dead", help="First retry the jobs whose attempts are spent.")
    ] = False,
) -> None:
    """Do the waiting work: segment, transcribe, restore, align, index, rank, train. Several workers share it."""
    import signal
    import threading
    import time

    from voxloop.automation.worker import COUNTED, work

    stop = threading.Event()
    began = time.monotonic()
    failed = 0

    def ended(batch: BatchReport) -> None:
        nonlocal failed
        rate = batch.jobs / max(batch.seconds, 1e-6)
        tail = f"failed: {batch.error}" if batch.error else f"{rate:.1f} a second"
        failed += bool(batch.error)
        waiting = batch.waiting if batch.waiting < COUNTED else f"{COUNTED} or more"
        typer.echo(
            f"{batch.step:<10} {batch.jobs:>4} jobs in {batch.seconds:.1f} s, {tail}; {waiting} waiting", err=True
        )

    # A service manager says SIGTERM: finish the batch in hand, then end.
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    with opened(ctx) as ws:
        if retry_dead:
            typer.echo(f"{ws.jobs.retry()} failed jobs woken")
        done = work(ws, steps or (), until_idle=until_idle, stop=stop, progress=ended)
        with ws.read() as reader:
            dead = len(ws.jobs.dead(reader))
    typer.echo(
        f"{done} jobs done in {time.monotonic() - began:.1f} s"
        + (f"; {dead} given up, see `voxloop status`" if dead else "")
    )
    if dead and until_idle:
        raise typer.Exit(1)


def events(
    ctx: typer.Context,
    follow: Annotated[bool, typer.Option("--follow", help="Wait for more, until Ctrl-C.")] = False,
    since: Annotated[int, typer.Option(help="Only events after this number.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object a line.")] = False,
) -> None:
    """The audit trail: everything that happened, in order."""
    import dataclasses
    import json

    from voxloop.stores import events as _events

    with opened(ctx) as ws:

        def wait() -> None:
            ws.bus.wait((), ws.settings.poll_s)

        told = _events.follow(ws.catalog, since=since, wait=wait) if follow else _events.trail(ws.catalog, since=since)
        for event in told:
            if as_json:
                typer.echo(json.dumps(dataclasses.asdict(event), ensure_ascii=False))
                continue
            payload = json.dumps(event.payload, ensure_ascii=False) if event.payload else ""
            if len(payload) > PAYLOAD_SHOWN:
                payload = payload[: PAYLOAD_SHOWN - 1] + "…"
            typer.echo(f"{event.seq:>6}  {when(event.created)}  {event.type:<24} {short(event.subject):<28} {payload}")


def doctor(ctx: typer.Context) -> None:
    """Report what this machine has, and try the stores."""
    import os
    import platform
    import shutil
    from importlib.metadata import version

    from voxloop import __version__

    typer.echo(f"voxloop     {__version__}")
    typer.echo(
        f"python      {platform.python_version()} on {platform.system()} {platform.machine()}, {os.cpu_count()} cores"
    )
    for package in ("torch", "transformers", "peft", "lhotse", "av", "sqlalchemy", "obstore"):
        typer.echo(f"{package:<12}{version(package)}")
    import torch

    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    typer.echo(f"{'GPU':<12}{', '.join(gpus) or 'none: the CPU transcribes and trains'}")
    with opened(ctx) as ws:
        free = shutil.disk_usage(ws.folder).free
        typer.echo(f"{'workspace':<12}{ws.folder}, {free / 1e9:.1f} GB free")
        typer.echo(f"{'catalog':<12}{ws.catalog.engine.url!r}")
        typer.echo(f"{'blobs':<12}{ws.blobs.url}")
        key = f"doctor/{os.getpid()}"
        ws.blobs.put(key, b"written")
        ws.blobs.delete(key)
        typer.echo(f"{'stores':<12}written and read")


def demo(
    audio: Annotated[Path, typer.Argument(help="Folder of audio with a metadata.jsonl.")],
    speaker: Annotated[str | None, typer.Option(help="Only this speaker.")] = None,
    clips: Annotated[int, typer.Option(help="Number of training clips at most.", min=5)] = 50,
    base: Annotated[
        str | None,
        typer.Option(help="The model to begin with, as for `train`.", show_default="the setting base_model"),
    ] = None,
    train_seconds: Annotated[
        float | None,
        typer.Option(
            help="Seconds of training at most.", min=5, show_default="60 for the starter, 300 for a published model"
        ),
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder for the workspace and result.json.")] = Path("build/demo"),
) -> None:
    """Run the whole loop on one speaker: ingest, transcribe, freeze, train, evaluate, promote, compare."""
    from voxloop.demo import run_demo

    run_demo(audio, speaker=speaker, clips=clips, base=base, train_seconds=train_seconds, out=out, say=typer.echo)
