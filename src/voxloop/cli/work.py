"""init, status, worker, events, doctor, demo."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from voxloop.cli.screen import (
    Json,
    counted,
    lasting,
    opened,
    percent,
    print_json,
    short,
    table,
    tell_speechless,
    when,
    working,
)

if TYPE_CHECKING:
    from voxloop.status import Status

PAYLOAD_SHOWN = 140  # characters of an event's payload per line; --json prints all of it
EVENT_HEAD = 71  # characters before the payload
SHOWN_DEAD = 5  # failed jobs printed


def register(app: typer.Typer) -> None:
    app.command()(init)
    app.command()(status)
    app.command()(worker)
    app.command()(events)
    app.command()(doctor)
    app.command()(demo)


def init(ctx: typer.Context) -> None:
    """Create a workspace: a folder for all data, with its settings in voxloop.toml."""
    with opened(ctx, create=True) as ws:
        typer.echo(f"workspace: {ws.folder}")
        typer.echo(f"settings:  {ws.folder / 'voxloop.toml'}")
        typer.echo("next:      voxloop ingest FOLDER")


def status(ctx: typer.Context, as_json: Json = False) -> None:
    """Show the workspace's contents, its jobs and the next step."""
    from voxloop.status import status as look

    with opened(ctx) as ws:
        found = look(ws)
    if as_json:
        print_json(found)
    else:
        _print_status(found)


def _print_status(found: Status) -> None:
    dataset, run = found.newest_dataset, found.newest_run
    lines = [
        ("workspace", found.workspace),
        ("recordings", f"{found.recordings:,} ({lasting(found.hours * 3600)} of audio)"),
        ("utterances", _total(found.utterances)),
        ("references", f"{found.references:,}"),
        ("datasets", f"{found.datasets:,}"),
        ("runs", _total(found.runs)),
        ("models", f"{found.models:,} trained"),
        ("champion", short(found.champion) if found.champion else f"none; {found.base_model} transcribes"),
    ]
    if dataset is not None:
        clips = ", ".join(f"{count:,} {split}" for split, count in dataset.clips.items())
        lines.insert(5, ("  newest", f"{dataset.name} {short(dataset.id)}: {clips}"))
    if found.refused:
        lines.insert(2, ("refused", _total(found.refused, "file")))
    if run is not None and run.status == "running":
        step, wer = run.progress.get("step", 0), percent(run.progress.get("val_wer"))
        lines.append(("training", f"{short(run.id)}: step {step:,}, val WER {wer}"))
    if found.cycle is not None:
        why = found.cycle.verdict or found.cycle.message  # the gate's reasons take a paragraph: `voxloop plan` has them
        told = f": {why}" if why else ""
        lines.append(("automatic", f"run {short(found.cycle.id)} is {found.cycle.state}{told}"))
        lines.append(("", f"{lasting(found.new_hours * 3600)} of new usable speech since (`voxloop plan`)"))
    for name, text in lines:
        typer.echo(f"{name:<12}{text}")
    if found.jobs:
        typer.echo()
        table(
            ["step", "waiting", "running", "failed"],
            [
                [step, states.get("ready", 0), states.get("leased", 0), states.get("dead", 0)]
                for step, states in found.jobs.items()
            ],
        )
    for dead in found.dead[:SHOWN_DEAD]:
        typer.echo(f"failed: {dead.step} {short(dead.subject)}: {dead.error}")
    failed = sum(states.get("dead", 0) for states in found.jobs.values())
    if failed > SHOWN_DEAD:
        typer.echo(f"and {counted(failed - SHOWN_DEAD, 'more failed job')}; --json lists the errors")
    if found.speechless:
        typer.echo()
        tell_speechless(found.speechless)
    if found.next_steps:
        typer.echo("\nnext:")
        steps = [step.partition("    ") for step in found.next_steps]
        width = max(len(command) for command, _, _ in steps)
        for command, _, purpose in steps:
            typer.echo(f"  {command:<{width}}  {purpose}")


def _total(counts: dict[str, int], noun: str = "") -> str:
    """A total and what it consists of: 3: 2 completed, 1 failed."""
    total = sum(counts.values())
    head = counted(total, noun) if noun else f"{total:,}"
    return head + (": " + ", ".join(f"{count:,} {name}" for name, count in counts.items()) if counts else "")


def worker(
    ctx: typer.Context,
    steps: Annotated[
        list[str] | None, typer.Argument(help="Steps to run.", show_default="all steps", metavar="[STEP]...")
    ] = None,
    until_idle: Annotated[bool, typer.Option("--until-idle", help="Exit when no jobs are left.")] = False,
    retry_dead: Annotated[
        bool, typer.Option("--retry-dead", help="First retry the jobs that failed on every attempt.")
    ] = False,
) -> None:
    """Run waiting jobs, of all steps or of those named (see `docs/loop.md`). Several workers can run at once."""
    import signal
    import threading
    import time

    from voxloop.automation.relaying import relaying
    from voxloop.automation.worker import work
    from voxloop.steps.utterances import speechless

    stop = threading.Event()
    began = time.monotonic()
    # Service managers send SIGTERM: finish the current batch, then exit.
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    with opened(ctx) as ws:
        if retry_dead:
            typer.echo(f"{counted(ws.jobs.retry(), 'failed job')} queued again")
        with ws.read() as reader:
            since = reader.now()
        with relaying(ws), working() as told:
            done = work(ws, steps or (), until_idle=until_idle, stop=stop, progress=told)
        with ws.read() as reader:
            dead = len(ws.jobs.dead(reader))
        silent = [one.name for one in speechless(ws, since=since)]
    typer.echo(
        f"{counted(done, 'job')} done in {lasting(time.monotonic() - began)}"
        + (f"; {counted(dead, 'job')} failed on every attempt: see `voxloop status`" if dead else "")
    )
    tell_speechless(silent)
    if dead and until_idle:
        raise typer.Exit(1)


def events(
    ctx: typer.Context,
    follow: Annotated[bool, typer.Option("--follow", help="Keep printing new events until Ctrl-C.")] = False,
    since: Annotated[int, typer.Option(help="Print only events after this number.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object per line.")] = False,
) -> None:
    """Print the audit trail: everything that happened, in order."""
    import dataclasses
    import json
    import shutil
    import sys

    from voxloop.stores import events as _events

    room = max(shutil.get_terminal_size().columns - EVENT_HEAD, 20) if sys.stdout.isatty() else PAYLOAD_SHOWN

    with opened(ctx) as ws:

        def wait() -> None:
            ws.bus.wait((), ws.settings.poll_s)

        told = _events.follow(ws.catalog, since=since, wait=wait) if follow else _events.trail(ws.catalog, since=since)
        for event in told:
            if as_json:
                typer.echo(json.dumps(dataclasses.asdict(event), ensure_ascii=False))
                continue
            payload = json.dumps(event.payload, ensure_ascii=False) if event.payload else ""
            if len(payload) > room:
                payload = payload[: room - 1] + "…"
            typer.echo(
                f"{event.seq:>6}  {when(event.created)}  {event.type:<24}  {short(event.subject):<12}  {payload}"
            )


def doctor(ctx: typer.Context) -> None:
    """Show what this machine has installed, and test each of the workspace's stores. Exits with 1 if one is broken."""
    from voxloop.doctor import examine
    from voxloop.settings import workspace_folder

    rows = _machine()
    width = max(len(name) for name, _ in rows) + 2
    for name, found in rows:
        typer.echo(f"{name:<{width}}{found}")
    broken = 0
    for finding in examine(workspace_folder(ctx.obj)):
        broken += not finding.sound
        typer.echo(f"{finding.part:<{width}}{'' if finding.sound else 'BROKEN: '}{finding.found}")
    if broken:
        raise typer.Exit(1)


# Packages that are always installed, then those of the extras and what each is for.
PACKAGES = ("torch", "transformers", "ctranslate2", "peft", "lhotse", "av", "sqlalchemy", "obstore")
OPTIONAL = {
    "psycopg": ("postgres", "a catalog on PostgreSQL"),
    "nats-py": ("nats", "waking workers and publishing events through NATS"),
    "qdrant-client": ("qdrant", "vectors in Qdrant"),
    "pyarrow": ("parquet", "Parquet exports"),
    "matplotlib": ("plot", "charts of datasets"),
    "mistral-common": ("voxtral", "Voxtral models"),
}


def _machine() -> list[tuple[str, str]]:
    """This machine's versions, processors and programs."""
    import os
    import platform
    from importlib.metadata import PackageNotFoundError, version

    import torch

    from voxloop import __version__
    from voxloop.errors import install_command
    from voxloop.speech import playing

    system = f"{platform.system()} {platform.machine()}"
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    rows = [
        ("voxloop", __version__),
        ("python", f"{platform.python_version()} on {system}, {counted(os.cpu_count() or 1, 'core')}"),
        ("GPU", ", ".join(gpus) or "none; models run on the CPU"),
        *((package, version(package)) for package in PACKAGES),
    ]
    for package, (extra, purpose) in OPTIONAL.items():
        try:
            rows.append((package, version(package)))
        except PackageNotFoundError:
            rows.append((package, f"not installed ({purpose}): {install_command(extra)}"))
    players = playing.installed()
    rows.append(("player", players[0] if players else "none found: install ffmpeg to play audio from the terminal"))
    return rows


def demo(
    audio: Annotated[Path, typer.Argument(help="Folder with audio files and a metadata.jsonl.")],
    speaker: Annotated[str | None, typer.Option(metavar="NAME", help="Use only this speaker.")] = None,
    clips: Annotated[int, typer.Option(help="Maximum number of training clips.", min=5)] = 50,
    base: Annotated[
        str | None,
        typer.Option(help="Base model, as in `train`.", show_default="the setting base_model"),
    ] = None,
    train_seconds: Annotated[
        float | None,
        typer.Option(
            help="Maximum training time in seconds.",
            min=5,
            show_default="60 for the starter, 300 for a published model",
        ),
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder for the workspace and result.json.")] = Path("build/demo"),
) -> None:
    """Run the whole loop on one speaker: ingest, transcribe, build a dataset, train, evaluate, promote, compare."""
    from voxloop.demo import run_demo

    run_demo(audio, speaker=speaker, clips=clips, base=base, train_seconds=train_seconds, out=out, say=typer.echo)
