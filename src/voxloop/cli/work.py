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
    from voxloop.workspace import Workspace

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
    if found.speechless:
        typer.echo()
        tell_speechless(found.speechless)
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

    from voxloop.automation.worker import work
    from voxloop.steps.utterances import speechless

    stop = threading.Event()
    began = time.monotonic()
    # A service manager says SIGTERM: finish the batch in hand, then end.
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    with opened(ctx) as ws:
        if retry_dead:
            typer.echo(f"{counted(ws.jobs.retry(), 'failed job')} queued again")
        with ws.read() as reader:
            since = reader.now()
        with working() as told:
            done = work(ws, steps or (), until_idle=until_idle, stop=stop, progress=told)
        with ws.read() as reader:
            dead = len(ws.jobs.dead(reader))
        silent = [one.name for one in speechless(ws, since=since)]
    typer.echo(
        f"{counted(done, 'job')} done in {lasting(time.monotonic() - began)}"
        + (f"; {dead} given up: `voxloop status` shows why" if dead else "")
    )
    tell_speechless(silent)
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
    """Report what this machine has, and try the workspace's stores."""
    from voxloop.errors import WorkspaceError

    rows = _machine()
    try:
        with opened(ctx) as ws:
            rows += _tried(ws)
    except WorkspaceError as error:
        rows.append(("workspace", str(error)))
    width = max(len(name) for name, _ in rows) + 2
    for name, found in rows:
        typer.echo(f"{name:<{width}}{found}")


# What is in no extra, then the packages of extras with what each is for.
PACKAGES = ("torch", "transformers", "peft", "lhotse", "av", "sqlalchemy", "obstore")
OPTIONAL = {
    "ctranslate2": ("fast", "faster transcription on a CPU"),
    "psycopg": ("postgres", "the catalog on PostgreSQL"),
    "pyarrow": ("parquet", "Parquet exports"),
    "matplotlib": ("plot", "charts of datasets"),
    "mistral-common": ("voxtral", "Voxtral models"),
}


def _machine() -> list[tuple[str, str]]:
    """Versions, processors and programs of this machine."""
    import os
    import platform
    import shutil
    from importlib.metadata import PackageNotFoundError, version

    import torch

    from voxloop import __version__
    from voxloop.errors import install_command

    system = f"{platform.system()} {platform.machine()}"
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    rows = [
        ("voxloop", __version__),
        ("python", f"{platform.python_version()} on {system}, {counted(os.cpu_count() or 1, 'core')}"),
        ("GPU", ", ".join(gpus) or "none: the CPU transcribes and trains"),
        *((package, version(package)) for package in PACKAGES),
    ]
    for package, (extra, purpose) in OPTIONAL.items():
        try:
            rows.append((package, version(package)))
        except PackageNotFoundError:
            rows.append((package, f"not installed ({purpose}): {install_command(extra)}"))
    players = [name for name in ("ffplay", "aplay", "paplay", "pw-play", "afplay") if shutil.which(name)]
    rows.append(("player", players[0] if players else "none found: install ffmpeg to play audio from the terminal"))
    return rows


def _tried(ws: Workspace) -> list[tuple[str, str]]:
    """Where the workspace keeps what; each store was written to and read from."""
    import os
    import shutil

    key = f"doctor/{os.getpid()}"
    ws.blobs.put(key, b"written")
    read = ws.blobs.get(key)
    ws.blobs.delete(key)
    return [
        ("workspace", f"{ws.folder}, {shutil.disk_usage(ws.folder).free / 1e9:.1f} GB free"),
        ("catalog", repr(ws.catalog.engine.url)),
        ("blobs", ws.blobs.url),
        ("stores", "written and read" if read == b"written" else "what was written came back changed"),
    ]


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
