"""The commands `train` and `run`."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any

import typer

from voxloop.cli.screen import (
    PLAIN_EVERY_S,
    By,
    Json,
    Yes,
    confirm,
    lasting,
    opened,
    percent,
    print_json,
    short,
    table,
    told_of_deletion,
)

if TYPE_CHECKING:
    from voxloop.records import Run
    from voxloop.steps.training import QueuePosition
    from voxloop.workspace import Workspace

run = typer.Typer(
    no_args_is_help=True,
    help="Follow and control training runs from any terminal: list, show, logs, pause, resume, stop, retry, delete.",
)

CURVE_ROWS = 8
FOLLOW_S = 0.5  # between two looks at a log that grows

Set = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="NAME=VALUE", help="Override one setting of the recipe; repeatable."),
]
NoWait = Annotated[
    bool,
    typer.Option("--no-wait", help="Queue the run and return; `voxloop worker train` starts it, here or elsewhere."),
]

RunId = Annotated[str, typer.Argument(metavar="RUN", help="A run's id.")]


class Method(StrEnum):
    lora = "lora"
    full = "full"


def register(app: typer.Typer) -> None:
    app.command()(train)
    app.add_typer(run, name="run")


def status_parts(line: dict[str, Any]) -> list[tuple[str, str]]:
    """The metrics of a training run, as pairs of name and text."""
    loss, rate, left = line.get("loss"), line.get("learning_rate"), line.get("eta_s")
    return [
        ("step", str(line.get("step", 0))),
        ("epoch", str(line.get("epoch", 0))),
        ("loss", "–" if loss is None else f"{loss:.3f}"),
        ("val WER", percent(line.get("val_wer"))),
        ("val loss", "–" if line.get("val_loss") is None else f"{line['val_loss']:.3f}"),
        ("rate", "–" if rate is None else f"{rate:.2g}"),
        ("clips/s", "–" if line.get("samples_per_second") is None else f"{line['samples_per_second']:.1f}"),
        ("time", lasting(line.get("elapsed_s", 0.0))),
        ("left", "–" if left is None else lasting(left)),
    ]


def blend_text(line: dict[str, Any]) -> str:
    """The val scores of a blend of the base model's weights and the trained ones."""
    return f"blend {line['blend']:g}: val WER {percent(line['blend_wer'])}, loss {line['blend_loss']:.3f}"


def served_text(line: dict[str, Any]) -> str:
    """The val score, as served, of the base model or of the one that is kept."""
    return f"{'as served' if line['served_step'] else 'base as served'}: val WER {percent(line['served_wer'])}"


@contextmanager
def live(id: str) -> Iterator[tuple[Callable[[dict[str, Any]], None], Callable[[QueuePosition], None]]]:
    """Show a run's progress: a block that updates in place on a terminal, plain lines elsewhere.

    Yields two functions: one takes a line of metrics, the other the run's position in the queue.
    """
    import sys

    known: dict[str, Any] = {}
    if sys.stderr.isatty():
        from rich.console import Console
        from rich.live import Live
        from rich.table import Table
        from rich.text import Text

        def block(text: str | None = None) -> Table:
            drawn = Table(box=None, pad_edge=False, header_style="dim", title=f"run {id}", title_justify="left")
            if text:
                drawn.add_column("waiting")
                drawn.add_row(Text(text))
            elif known:
                for name, _ in status_parts(known):
                    drawn.add_column(name, justify="right", no_wrap=True)
                drawn.add_row(*(value for _, value in status_parts(known)))
            else:
                drawn.add_column("")
                drawn.add_row("loading the base model and measuring it on val")
            return drawn

        with Live(block(), console=Console(stderr=True), refresh_per_second=4) as shown:

            def draw(line: dict[str, Any]) -> None:
                known.update(line)
                shown.update(block())

            yield draw, lambda turn: shown.update(block(turn_text(turn)))
        return
    told = 0.0
    typer.echo(f"run {id}", err=True)

    def say(line: dict[str, Any]) -> None:
        nonlocal told
        known.update(line)
        if line.get("blend_wer") is not None:
            typer.echo(f"  {blend_text(line)}", err=True)
            return
        if line.get("served_wer") is not None:
            typer.echo(f"  {served_text(line)}", err=True)
            return
        if line.get("val_wer") is None and time.monotonic() - told < PLAIN_EVERY_S:
            return
        told = time.monotonic()
        typer.echo("  " + ", ".join(f"{name} {value}" for name, value in status_parts(known) if value != "–"), err=True)

    yield say, lambda turn: typer.echo(f"  waiting {turn_text(turn)}", err=True)


def turn_text(turn: QueuePosition) -> str:
    """What a queued run is waiting for, and its place in the queue."""
    holder = turn.holder
    who = f"for run {holder['run']} on {turn.device} (workspace {holder['workspace']})" if holder else "for its turn"
    return f"{who}, place {turn.ahead + 1} in the queue"


def see_through(ws: Workspace, found: Run, *, no_wait: bool, as_json: bool) -> None:
    """Follow a queued run until it ends, or leave it to a worker."""
    from voxloop.errors import TrainingError
    from voxloop.steps import training

    if no_wait:
        if as_json:
            print_json(found)
        else:
            typer.echo(f"run {found.id} is queued; next: voxloop worker train")
        return
    import signal

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    # Service managers send SIGTERM: pause, as on Ctrl-C.
    signal.signal(signal.SIGTERM, interrupt)
    try:
        with live(found.id) as (progress, waiting):
            done = training.see_through(ws, found.id, progress=progress, waiting=waiting)
    except KeyboardInterrupt:
        now = training.find(ws, found.id)
        step = now.progress.get("step", 0)
        typer.echo(
            f"{now.status} at step {step}: continue with `voxloop run resume {found.id}`, or end the run and keep its "
            f"best model so far with `voxloop run stop {found.id}`",
            err=True,
        )
        raise typer.Exit(130) from None
    except TrainingError:
        if as_json:
            print_json(training.find(ws, found.id))
        raise
    _print_run(done, as_json)
    if as_json:
        return
    if done.status == "paused":
        typer.echo(f"next: voxloop run resume {done.id}")
    elif done.model:
        _print_next(ws, done)


def train(
    ctx: typer.Context,
    dataset: Annotated[str | None, typer.Option(help="Name or id of the dataset.", show_default="the newest")] = None,
    base: Annotated[
        str | None,
        typer.Option(
            help="Model to fine-tune: champion, a model's name or id, starter, a folder or a Hub id.",
            show_default="the champion, else the setting base_model",
        ),
    ] = None,
    method: Annotated[
        Method | None, typer.Option(help="Train LoRA adapters or all weights.", show_default="the recipe's")
    ] = None,
    recipe: Annotated[
        str | None,
        typer.Option(
            help="Name of the recipe: quick, thorough, careful or full.",
            show_default="chosen by model size and training speech",
        ),
    ] = None,
    set: Set = None,
    max_seconds: Annotated[
        float | None, typer.Option(help="Longest training time in seconds.", min=1, show_default="the recipe's")
    ] = None,
    keep_no_better: Annotated[
        bool,
        typer.Option("--keep-no-better", help="Keep the trained weights as a model even if they are no better on val."),
    ] = False,
    no_wait: NoWait = False,
    as_json: Json = False,
) -> None:
    """Fine-tune a model on a frozen dataset in a separate process; wait while another run uses the device."""
    from voxloop.steps.training import submit

    with opened(ctx) as ws:
        found = submit(
            ws,
            dataset=dataset,
            base=base,
            method=method.value if method else None,
            recipe=recipe,
            overrides=[*(set or ()), *(["keep_no_better=true"] if keep_no_better else [])],
            max_seconds=max_seconds,
        )
        if found.recipe["why"] and not as_json:
            typer.echo(f"recipe {found.recipe['name']}: {found.recipe['why']}", err=True)
        see_through(ws, found, no_wait=no_wait, as_json=as_json)


def _print_next(ws: Workspace, ended: Run) -> None:
    """Print the next step for a run that has ended."""
    from voxloop.advice import spelled_out
    from voxloop.steps.gate.comparison import NO_BETTER

    if ended.no_better:
        typer.echo(f"next: {spelled_out(ws, NO_BETTER, ended.base)}")
    elif ended.model:
        typer.echo(f"next: voxloop model promote {short(ended.model)}")


def _print_run(found: Run, as_json: bool) -> None:
    if as_json:
        print_json(found)
        return
    recipe = found.recipe
    lines = [
        ("run", found.id + (f", a retry of {found.retry_of}" if found.retry_of else "")),
        ("status", found.status + (f": {found.error}" if found.error else "")),
        ("base", f"{short(found.base)} ({found.family}, {found.method})"),
        ("recipe", recipe["name"] + (f": {recipe['why']}" if recipe.get("why") else "")),
        ("dataset", short(found.dataset)),
        ("batch", f"{recipe['batch_seconds']:g} s x {recipe['accumulation']}, rate {recipe['learning_rate']:g}"),
        ("steps", f"{found.progress.get('step', 0)}, epoch {found.progress.get('epoch', 0)}"),
        ("val WER", _wer(found)),
        ("val loss", _loss(found)),
        ("blend", _blend(found)),
        ("model", short(found.model) if found.model else "–"),
    ]
    lines += [("note", note) for note in found.progress.get("notes", ())]
    for name, text in lines:
        if text is not None:
            typer.echo(f"{name:<9}{text}")


def _wer(found: Run) -> str:
    base, best = (found.progress.get(name) or {} for name in ("base", "best"))
    after = best.get("wer", found.progress.get("best_val_wer"))
    if "wer" not in base:
        return percent(after)
    return f"{percent(base['wer'])} -> {percent(after)}" + (
        " (no better than the base)" if best.get("step") == 0 else ""
    )


def _loss(found: Run) -> str:
    losses = [(found.progress.get(name) or {}).get("loss") for name in ("base", "best")]
    return " -> ".join("–" if loss is None else f"{loss:.3f}" for loss in losses)


def _blend(found: Run) -> str | None:
    """The blend between base and trained weights; None until it is decided."""
    best = found.progress.get("best") or {}
    if found.status not in ("completed", "stopped") or not best:
        return None
    return "0" if best.get("step") == 0 else f"{best.get('blend', 1.0):g}"


@run.command("list")
def run_list(ctx: typer.Context, as_json: Json = False) -> None:
    """List all runs, oldest first."""
    from voxloop.records import Run
    from voxloop.steps.training import reconcile

    with opened(ctx) as ws:
        reconcile(ws)
        with ws.read() as reader:
            found = reader.all(Run)
    if as_json:
        print_json(found)
        return
    table(
        ["run", "status", "method", "dataset", "val WER", "model"],  # 80 columns have no room for more: see `run show`
        [
            [
                short(r.id),
                r.status + (f" ({r.wanted} requested)" if r.wanted else ""),
                r.method,
                short(r.dataset),
                _wer(r),
                short(r.model) if r.model else None,
            ]
            for r in found
        ],
        empty="no runs yet: start one with `voxloop train`",
    )


@run.command("show")
def run_show(ctx: typer.Context, id: RunId, as_json: Json = False) -> None:
    """Show one run: settings, progress, curves, and the error if it failed."""
    import dataclasses

    from voxloop.steps import training

    with opened(ctx) as ws:
        found = training.find(ws, id)
        folder = training.place(ws, found.id)
        lines = training.metrics(ws, found.id)
    if as_json:
        print_json(dataclasses.asdict(found) | {"folder": folder, "metrics": lines})
        return
    _print_run(found, as_json)
    if found.status == "running":
        typer.echo("now      " + ", ".join(f"{name} {value}" for name, value in status_parts(found.progress)))
    pace = [line for line in lines if line.get("wait_share") is not None]
    if pace:
        rate, waited = (sum(line[key] for line in pace) / len(pace) for key in ("samples_per_second", "wait_share"))
        typer.echo(f"{'speed':<9}{rate:.1f} clips/s, {percent(waited)} of the time spent waiting for data")
    typer.echo(f"{'folder':<9}{folder}")
    for name, key in (("loss", "loss"), ("val loss", "val_loss"), ("val WER", "val_wer")):
        points = [(line["step"], line[key]) for line in lines if line.get(key) is not None]
        if len(points) > 1:
            typer.echo(f"\n{name} by step")
            typer.echo(curve(points, as_percent=key == "val_wer"))


def curve(points: list[tuple[int, float]], *, as_percent: bool = False, width: int = 60) -> str:
    """Plot points (step, value) with characters; a column shows the mean of its values."""
    first, last = points[0][0], points[-1][0]
    columns: dict[int, list[float]] = {}
    for step, value in points:
        columns.setdefault(round((step - first) / max(1, last - first) * (width - 1)), []).append(value)
    heights = {column: sum(values) / len(values) for column, values in columns.items()}
    low, high = min(heights.values()), max(heights.values())
    rows = [[" "] * width for _ in range(CURVE_ROWS)]
    for column, height in heights.items():
        share = (height - low) / (high - low) if high > low else 0.0
        rows[round((1 - share) * (CURVE_ROWS - 1))][column] = "•"
    labels = [percent(value) if as_percent else f"{value:.3f}" for value in (high, low)]
    margin = max(map(len, labels))
    named = {0: labels[0], CURVE_ROWS - 1: labels[1]}
    drawn = [f"{named.get(i, ''):>{margin}} │{''.join(row).rstrip()}" for i, row in enumerate(rows)]
    return "\n".join(
        [*drawn, f"{'':>{margin}} └{'─' * width}", f"{'':>{margin}}  {first}{last:>{width - len(str(first))}}"]
    )


@run.command("logs")
def run_logs(
    ctx: typer.Context,
    id: RunId,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Keep printing new lines until the run ends.")] = False,
) -> None:
    """Print a run's log, whichever machine it runs on."""
    from voxloop.errors import UnknownRecord
    from voxloop.steps import training

    with opened(ctx) as ws:
        found = training.find(ws, id)
        place = 0
        while True:
            # Checked before reading, so that the last lines written are read too.
            going = follow and found.status in ("queued", "running")
            while True:
                text, place = training.log_after(ws, found.id, place)
                if not text:
                    break
                typer.echo(text.decode(errors="replace"), nl=False)
            if not going:
                break
            time.sleep(FOLLOW_S)
            found = training.find(ws, found.id)
        if not place and not follow:
            raise UnknownRecord(f"run {found.id} is {found.status} and has no log yet")


@run.command("pause")
def run_pause(ctx: typer.Context, id: RunId, as_json: Json = False) -> None:
    """Save a checkpoint and free the device; `run resume` continues from it, even after a reboot."""
    from voxloop.steps import training

    with opened(ctx) as ws:
        _asked(training.pause(ws, id), as_json)


@run.command("stop")
def run_stop(
    ctx: typer.Context,
    id: RunId,
    discard: Annotated[bool, typer.Option("--discard", help="Discard everything the run has learnt.")] = False,
    as_json: Json = False,
) -> None:
    """End a run for good and keep its best weights so far as a model."""
    from voxloop.steps import training

    with opened(ctx) as ws:
        now = training.stop(ws, id, discard=discard)
        _asked(now, as_json)
        if now.model and not now.wanted and not as_json:
            _print_next(ws, now)


def _asked(now: Run, as_json: bool) -> None:
    """Print the outcome of a request."""
    if as_json:
        print_json(now)
        return
    step = now.progress.get("step", 0)
    if now.wanted:
        typer.echo(f"requested: {now.wanted} run {now.id}; it is still {now.status}, at step {step}")
    elif now.status == "paused":
        typer.echo(f"paused at step {step}; continue with `voxloop run resume {now.id}`")
    elif now.model:
        typer.echo(f"{now.status} at step {step}; kept model {short(now.model)}, val WER {_wer(now)}")
    else:
        typer.echo(f"{now.status} at step {step}" + (f": {now.error}" if now.error else ""))


@run.command("resume")
def run_resume(ctx: typer.Context, id: RunId, no_wait: NoWait = False, as_json: Json = False) -> None:
    """Resume a paused, interrupted or failed run from its newest checkpoint."""
    from voxloop.steps import training

    with opened(ctx) as ws:
        see_through(ws, training.resume(ws, id), no_wait=no_wait, as_json=as_json)


@run.command("retry")
def run_retry(
    ctx: typer.Context,
    id: RunId,
    set: Set = None,
    no_wait: NoWait = False,
    as_json: Json = False,
) -> None:
    """Start a new run with the settings of an ended one, optionally changing some."""
    from voxloop.steps import training

    with opened(ctx) as ws:
        see_through(ws, training.retry(ws, id, set or ()), no_wait=no_wait, as_json=as_json)


@run.command("delete")
def run_delete(
    ctx: typer.Context,
    id: RunId,
    yes: Yes = False,
    by: By = "cli",
    as_json: Json = False,
) -> None:
    """Delete the log, metrics and folder of an ended run that has no model."""
    from voxloop.maintenance.removal import delete_run

    with opened(ctx) as ws:
        confirm(f"Permanently delete run {id}?", yes)
        done = delete_run(ws, id, by=by)
    print_json(done) if as_json else told_of_deletion(done)
