"""train, run."""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any

import typer

from voxloop.cli.screen import Json, opened, percent, print_json, short, table

if TYPE_CHECKING:
    from collections.abc import Callable

    from voxloop.records import Run

run = typer.Typer(no_args_is_help=True, help="Training runs: list, show, logs.")


class Method(StrEnum):
    lora = "lora"
    full = "full"


def register(app: typer.Typer) -> None:
    app.command()(train)
    app.add_typer(run, name="run")


def training_lines(say: Callable[[str], None]) -> Callable[[dict[str, Any]], None]:
    """A training's progress as lines: the recipe, and one for each validation."""

    def told(line: dict[str, Any]) -> None:
        if line.get("why"):
            say(f"  recipe {line['recipe']}: {line['why']}")
        if line.get("val_wer") is None:
            return
        left = f", {line['eta_s']:.0f} s left" if line.get("eta_s") is not None else ""
        loss = f", loss {line['loss']:.3f}" if line.get("loss") is not None else ""
        say(
            f"  step {line.get('step', 0):>5}{loss}, val WER {percent(line['val_wer'])}, "
            f"{line.get('elapsed_s', 0):.0f} s{left}"
        )

    return told


def train(
    ctx: typer.Context,
    dataset: Annotated[
        str | None, typer.Option(help="A dataset's name or id; the newest, where none is given.")
    ] = None,
    base: Annotated[str | None, typer.Option(help="champion, a model's id, starter, a folder or a Hub id.")] = None,
    method: Annotated[
        Method | None, typer.Option(help="LoRA, or all weights; the recipe decides, where none is given.")
    ] = None,
    recipe: Annotated[
        str | None, typer.Option(help="A recipe's name; chosen by data and model, where none is given.")
    ] = None,
    set: Annotated[
        list[str] | None, typer.Option("--set", help="One setting of the recipe, name=value (may be given again).")
    ] = None,
    max_seconds: Annotated[float | None, typer.Option(help="Seconds of training at most.", min=1)] = None,
    as_json: Json = False,
) -> None:
    """Fine-tune a model on a frozen dataset, in a process of its own."""
    from voxloop.training import train as start

    with opened(ctx) as ws:
        done = start(
            ws,
            dataset=dataset,
            base=base,
            method=method.value if method else None,
            recipe=recipe,
            overrides=set or (),
            max_seconds=max_seconds,
            progress=training_lines(lambda line: typer.echo(line, err=True)),
        )
        _print_run(done, as_json)
        if not as_json and done.model:
            typer.echo(f"next: voxloop model promote {short(done.model)}")


def _print_run(found: Run, as_json: bool) -> None:
    if as_json:
        print_json(found)
        return
    lines = [
        ("run", found.id),
        ("status", found.status + (f": {found.error}" if found.error else "")),
        ("base", f"{found.base} ({found.family}, {found.method})"),
        ("dataset", short(found.dataset)),
        ("steps", str(found.progress.get("step", 0))),
        ("val WER", percent(found.progress.get("best_val_wer", found.progress.get("val_wer")))),
        ("model", short(found.model) if found.model else "–"),
    ]
    for name, text in lines:
        typer.echo(f"{name:<9}{text}")


@run.command("list")
def run_list(ctx: typer.Context, as_json: Json = False) -> None:
    """All runs, oldest first."""
    from voxloop.records import Run

    with opened(ctx) as ws, ws.read() as reader:
        found = reader.all(Run)
    if as_json:
        print_json(found)
        return
    table(
        ["run", "status", "base", "method", "dataset", "steps", "val WER", "model"],
        [
            [
                r.id,
                r.status,
                short(r.base),
                r.method,
                short(r.dataset),
                r.progress.get("step", 0),
                percent(r.progress.get("best_val_wer", r.progress.get("val_wer"))),
                short(r.model) if r.model else None,
            ]
            for r in found
        ],
        empty="no run yet: `voxloop train` starts one",
    )


@run.command("show")
def run_show(ctx: typer.Context, id: str, as_json: Json = False) -> None:
    """One run: how it went, or why it failed."""
    from voxloop.records import Run

    with opened(ctx) as ws, ws.read() as reader:
        found = reader.get(Run, id)
        _print_run(found, as_json)
        if not as_json:
            typer.echo(f"{'folder':<9}{ws.runs / found.id}")


@run.command("logs")
def run_logs(ctx: typer.Context, id: str) -> None:
    """A run's whole log."""
    from voxloop.errors import UnknownRecord
    from voxloop.records import Run

    with opened(ctx) as ws, ws.read() as reader:
        log = ws.runs / reader.get(Run, id).id / "train.log"
        if not log.exists():
            raise UnknownRecord(f"run {id} has no log on this machine: {log} is not there")
        typer.echo(log.read_text(errors="replace"), nl=False)
