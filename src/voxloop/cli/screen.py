"""Shared output of the commands: opening the workspace, tables, JSON, progress."""

from __future__ import annotations

import json
import re
import shutil
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import zip_longest
from typing import TYPE_CHECKING, Annotated, Any

import typer

from voxloop.errors import counted as counted

if TYPE_CHECKING:
    from rich.text import Text

    from voxloop.automation.worker import WorkProgress
    from voxloop.maintenance.removal import Deleted
    from voxloop.speech.text import Aligned
    from voxloop.workspace import Workspace

Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask for confirmation.")]
NewName = Annotated[
    str, typer.Argument(metavar="NAME", help="New name: letters, digits, dots, hyphens and underscores.")
]
By = Annotated[
    str,
    typer.Option(
        "--by",
        metavar="NAME",
        help="Your name, stored with the decision.",
        envvar="USER",
        show_default="the variable USER, or else cli",
    ),
]

PLAIN_EVERY_S = 5.0  # minimum time between progress lines when stderr is not a terminal


@contextmanager
def opened(ctx: typer.Context, *, create: bool = False, **settings: Any) -> Iterator[Workspace]:
    """Open the workspace named on the command line. Settings given here, unless None, override the workspace's own."""
    from voxloop.pipeline import open_loop
    from voxloop.settings import workspace_folder

    given = {name: value for name, value in settings.items() if value is not None}
    with open_loop(workspace_folder(ctx.obj), create=create, **given) as ws:
        yield ws


def print_json(value: Any) -> None:
    """Print a record, or a list of records, as JSON."""
    from voxloop.records import plain

    typer.echo(json.dumps(plain(value), ensure_ascii=False, indent=2))


WHOLE = 14  # widest cell, in characters, of columns that are never folded: ids, numbers, states


def table(
    columns: Sequence[str],
    rows: Iterable[Sequence[Any]],
    *,
    title: str | None = None,
    empty: str = "",
    if_different: Sequence[str] = (),
) -> None:
    """Print rows under column headings, numbers aligned right; with no rows, print `empty` instead.

    `if_different` names columns that are left out if all rows hold the same.
    """
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    listed = [list(row) for row in rows]
    if not listed and empty:
        typer.echo(empty)
        return
    shown = [
        index
        for index, column in enumerate(columns)
        if column not in if_different or len({str(row[index]) for row in listed}) > 1
    ]
    columns = [columns[index] for index in shown]
    listed = [[row[index] for index in shown] for row in listed]
    cells = [[_cell(value) for value in row] for row in listed]
    widths = [max((len(row[index]) for row in cells), default=0) for index in range(len(columns))]
    # Without a terminal, the variable COLUMNS sets the width.
    room = shutil.get_terminal_size((80, 24)).columns
    tight = sum(max(width, len(column)) + 2 for width, column in zip(widths, columns, strict=True)) - 2 > room
    drawn = Table(title=title, title_justify="left", box=None, pad_edge=False, header_style="bold")
    for index, column in enumerate(columns):
        numeric = bool(listed) and all(isinstance(row[index], int | float) or row[index] is None for row in listed)
        drawn.add_column(
            column.replace(" ", "\n") if tight and len(column) > widths[index] else column,
            justify="right" if numeric else "left",
            overflow="fold",
            no_wrap=max(widths[index], len(column)) <= WHOLE,
        )
    for row in cells:
        drawn.add_row(*[Text(cell) for cell in row])  # text, not markup: a transcript may hold brackets
    Console(width=room, highlight=False).print(drawn)


def _cell(value: Any) -> str:
    if value is None:
        return "–"
    if isinstance(value, float):
        return f"{value:.3g}" if abs(value) < 1 else f"{value:,.1f}"
    return str(value)


SHOWN_SPEECHLESS = 10  # names printed; `status --json` lists all
SPEECHLESS = "Listen to them. If there is speech, supply its text with `voxloop ingest --metadata`."


def tell_speechless(names: Sequence[str], remedy: str = SPEECHLESS, *, err: bool = False) -> None:
    """List the files in which no speech was found, and say what to do. Print nothing if there are none."""
    if not names:
        return
    typer.echo(f"no speech found in {counted(len(names), 'file')}:", err=err)
    for name in names[:SHOWN_SPEECHLESS]:
        typer.echo(f"  {name}", err=err)
    if len(names) > SHOWN_SPEECHLESS:
        typer.echo(f"  ... and {len(names) - SHOWN_SPEECHLESS} more", err=err)
    typer.echo(f"  {remedy}", err=err)


SIGNS = {"equal": "", "substitute": "S", "delete": "D", "insert": "I"}
COLOURS = {"equal": "", "substitute": "bold yellow", "delete": "bold red", "insert": "bold green"}
LABELS = ("ref  ", "hyp  ", "     ")


def alignment(pieces: Sequence[Aligned]) -> None:
    """Print the reference above the hypothesis, with the differences coloured and marked S, D or I."""
    from rich.console import Console

    # Without a terminal, the variable COLUMNS sets the width.
    width = shutil.get_terminal_size((100, 24)).columns
    Console(width=width, highlight=False, soft_wrap=True).print(*aligned_lines(pieces, width), sep="\n")


def aligned_lines(pieces: Sequence[Aligned], width: int) -> list[Text]:
    """Reference, hypothesis and error marks as three aligned lines, in blocks at most `width` cells wide.

    The layout is that of NIST's sclite: asterisks stand for a word that only the other
    line has, and the third line marks S (substitution), D (deletion) and I (insertion).
    """
    from rich.cells import cell_len, chop_cells
    from rich.text import Text

    room = max(width - len(LABELS[0]), 4)
    blocks: list[list[Text]] = []
    left = 0  # free cells in the current block
    for piece in pieces:
        style, sign = COLOURS[piece.operation], SIGNS[piece.operation]
        words = (piece.reference, piece.hypothesis)
        # A word wider than the screen continues in the next block.
        for parts in zip_longest(*(chop_cells(word or "", room) for word in words), fillvalue=""):
            cells = max(map(cell_len, (*parts, sign)))
            if cells > left:
                blocks.append([Text.assemble((label, "dim")) for label in LABELS])
                left = room
            shown = ["*" * cells if word is None else part for word, part in zip(words, parts, strict=True)]
            for line, said in zip(blocks[-1], (*shown, sign), strict=True):
                line.append(said, style=style)
                line.append(" " * (cells - cell_len(said) + 1))
            left -= cells + 1
    lines = [line for block in blocks for line in block if line.plain.strip()]
    for line in lines:
        line.rstrip()
    return lines


def told_of_deletion(done: Deleted) -> None:
    """Print what was deleted."""
    name = f"{done.name} " if done.name else ""
    went = f" and {counted(done.evaluations, 'evaluation')}" if done.evaluations else ""
    typer.echo(f"deleted {done.kind} {name}{short(done.id)} with {counted(done.blobs, 'blob')}{went}")


def percent(share: float | None) -> str:
    """A fraction as a percentage with one decimal: 0.125 is 12.5 %."""
    return "–" if share is None else f"{100 * share:.1f} %"


ULID = re.compile(r"[0-9A-HJKMNP-TV-Z]{26}")


def short(id: str) -> str:
    """The short form of an id: the first digits of a hash, or the last of a ULID, which starts with the time."""
    if id.startswith("sha256-"):
        return id.removeprefix("sha256-")[:12]
    return id[-8:] if ULID.fullmatch(id) else id


def confirm(question: str, yes: bool) -> None:
    """Ask before deleting. Raises UsageError if nobody can answer and `--yes` was not given."""
    from voxloop.errors import UsageError

    if yes:
        return
    if not sys.stdin.isatty():
        raise UsageError("Deleting cannot be undone. To delete without being asked, pass --yes.")
    typer.confirm(question, abort=True)


def clock(samples: int) -> str:
    """A position in a recording as players show it: 1:02:03.4, or 2:03.4 within the first hour."""
    from voxloop.records import seconds

    tenths = round(10 * seconds(samples))
    minutes, rest = divmod(tenths, 600)
    hours, minutes = divmod(minutes, 60)
    shown = f"{minutes}:{rest // 10:02}.{rest % 10}"
    return f"{hours}:{minutes:02}:{rest // 10:02}.{rest % 10}" if hours else shown


def when(seconds: float) -> str:
    """A time, given in seconds since the epoch, as local date and time."""
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seconds))


def lasting(seconds: float) -> str:
    """A duration: 4.2 s, 55 s, 3 min 20 s, 2 h 5 min."""
    if seconds < 9.95:
        return f"{max(seconds, 0.0):.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def time_left(done: float, total: float | None, began: float) -> str:
    """The estimated time left for work that started at `began` (`time.monotonic()`); empty if unknown."""
    rate = done / max(time.monotonic() - began, 1e-6)
    return f"{lasting(max(0.0, total - done) / rate)} left" if total and rate > 0 else ""


@contextmanager
def working() -> Iterator[Callable[[WorkProgress], None]]:
    """Show a worker's progress over all waiting work: one updating line on a terminal, plain lines elsewhere.

    Each failure is printed at once, on a line of its own.
    """
    from voxloop.automation.worker import COUNTED

    began = told = time.monotonic()

    def line(now: WorkProgress) -> str:
        total_s = now.audio_s + now.left_s
        more = "" if now.waiting < COUNTED else " or more"
        parts = [f"{now.step}: {counted(now.jobs, 'job')} done, {now.waiting:,}{more} waiting"]
        if total_s > 0:
            speed = now.audio_s / max(time.monotonic() - began, 1e-6)
            parts.append(f"{now.audio_s / 60:.1f} of {total_s / 60:.1f} min of audio")
            parts += [f"{speed:.1f} times real time"] if now.audio_s else []
            parts += [left] if (left := time_left(now.audio_s, total_s, began)) else []
        return ", ".join(parts)

    if sys.stderr.isatty():
        from rich.console import Console

        with Console(stderr=True).status("looking for work") as drawn:

            def draw(now: WorkProgress) -> None:
                if now.error:
                    drawn.console.print(f"{now.step} failed: {now.error}", style="red", markup=False, highlight=False)
                drawn.update(line(now).replace("[", r"\["))

            yield draw
        return

    def say(now: WorkProgress) -> None:
        nonlocal told
        if now.error:
            typer.echo(f"{now.step} failed: {now.error}", err=True)
        if time.monotonic() - told >= PLAIN_EVERY_S:
            told = time.monotonic()
            typer.echo(line(now), err=True)

    yield say


@contextmanager
def progress(label: str, unit: str) -> Iterator[Callable[[float, float | None], None]]:
    """Show the progress of long work: a bar with rate and time left on a terminal, plain lines elsewhere.

    Yields a function to call with the amount done and the total (None if unknown).
    """
    if sys.stderr.isatty():
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.completed:.0f}/{task.total:.0f} " + unit),
            TextColumn("{task.fields[rate]}"),
            TimeRemainingColumn(),
        )
        with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
            task = bar.add_task(label, total=1, rate="")
            began = time.monotonic()

            def draw(done: float, total: float | None) -> None:
                rate = done / max(time.monotonic() - began, 1e-6)
                bar.update(task, completed=done, total=max(total or done, 1), rate=f"{rate:.1f} {unit}/s")

            yield draw
        return
    began = told = time.monotonic()

    def say(done: float, total: float | None) -> None:
        nonlocal told
        now = time.monotonic()
        if now - told < PLAIN_EVERY_S:
            return
        told = now
        rate = done / max(now - began, 1e-6)
        left = f", {one}" if (one := time_left(done, total, began)) else ""
        of = f"/{total:.0f}" if total else ""
        typer.echo(f"{label}: {done:.0f}{of} {unit}, {rate:.1f} {unit}/s{left}", err=True)

    yield say
