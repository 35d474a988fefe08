"""What the commands share of the screen: the workspace, tables, JSON, progress."""

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

if TYPE_CHECKING:
    from rich.text import Text

    from voxloop.automation.worker import WorkProgress
    from voxloop.maintenance.removal import Deleted
    from voxloop.speech.text import Aligned
    from voxloop.workspace import Workspace

Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask for confirmation.")]
By = Annotated[str, typer.Option("--by", help="Name of the person who decides.", envvar="USER")]

PLAIN_EVERY_S = 5.0  # where there is no terminal, a progress line at most this often


@contextmanager
def opened(ctx: typer.Context, *, create: bool = False, **settings: Any) -> Iterator[Workspace]:
    """The workspace that the command line names; settings that are given, and not None, win over its own."""
    from voxloop.pipeline import open_loop
    from voxloop.settings import workspace_folder

    given = {name: value for name, value in settings.items() if value is not None}
    with open_loop(workspace_folder(ctx.obj), create=create, **given) as ws:
        yield ws


def print_json(value: Any) -> None:
    """A record, or a list of records, as JSON."""
    from voxloop.records import plain

    typer.echo(json.dumps(plain(value), ensure_ascii=False, indent=2))


def table(columns: Sequence[str], rows: Iterable[Sequence[Any]], *, title: str | None = None, empty: str = "") -> None:
    """Print rows under columns; numbers to the right. `empty` is said where there are no rows."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    listed = [list(row) for row in rows]
    if not listed and empty:
        typer.echo(empty)
        return
    drawn = Table(title=title, title_justify="left", box=None, pad_edge=False, header_style="bold")
    for index, column in enumerate(columns):
        numeric = bool(listed) and all(isinstance(row[index], int | float) or row[index] is None for row in listed)
        drawn.add_column(column, justify="right" if numeric else "left", overflow="fold")
    for row in listed:
        # Text, not markup: a transcript may hold brackets.
        drawn.add_row(*[Text(_cell(value)) for value in row])
    width = None if sys.stdout.isatty() else 200
    Console(width=width, highlight=False).print(drawn)


def _cell(value: Any) -> str:
    if value is None:
        return "–"
    if isinstance(value, float):
        return f"{value:.3g}" if abs(value) < 1 else f"{value:,.1f}"
    return str(value)


SHOWN_SPEECHLESS = 10  # names on the screen; --json of `status` lists all
SPEECHLESS = "play them; where somebody speaks, give their text (`voxloop ingest --metadata`)"


def tell_speechless(names: Sequence[str], remedy: str = SPEECHLESS, *, err: bool = False) -> None:
    """Name the files in which no speech was found, and what to do; nothing where there are none."""
    if not names:
        return
    typer.echo(f"no speech found in {len(names)} file{'s' if len(names) > 1 else ''}:", err=err)
    for name in names[:SHOWN_SPEECHLESS]:
        typer.echo(f"  {name}", err=err)
    if len(names) > SHOWN_SPEECHLESS:
        typer.echo(f"  ... and {len(names) - SHOWN_SPEECHLESS} more", err=err)
    typer.echo(f"  {remedy}", err=err)


SIGNS = {"equal": "", "substitute": "S", "delete": "D", "insert": "I"}
COLOURS = {"equal": "", "substitute": "bold yellow", "delete": "bold red", "insert": "bold green"}
LABELS = ("ref  ", "hyp  ", "     ")


def alignment(pieces: Sequence[Aligned]) -> None:
    """Print two texts one over the other, their differences in colour and by sign."""
    from rich.console import Console

    # COLUMNS counts where there is no terminal to ask.
    width = shutil.get_terminal_size((100, 24)).columns
    Console(width=width, highlight=False, soft_wrap=True).print(*aligned_lines(pieces, width), sep="\n")


def aligned_lines(pieces: Sequence[Aligned], width: int) -> list[Text]:
    """Reference over hypothesis over signs, in blocks that are at most `width` cells wide.

    As NIST's sclite writes them: stars where the other side has a word more, and
    below S (substituted), D (deleted: missing in the hypothesis), I (inserted).
    """
    from rich.cells import cell_len, chop_cells
    from rich.text import Text

    room = max(width - len(LABELS[0]), 4)
    blocks: list[list[Text]] = []
    left = 0  # cells of the block's lines that are free
    for piece in pieces:
        style, sign = COLOURS[piece.operation], SIGNS[piece.operation]
        words = (piece.reference, piece.hypothesis)
        # A word wider than the screen goes on in the next block.
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
    went = f", {done.evaluations} evaluations" if done.evaluations else ""
    typer.echo(f"deleted {done.kind} {name}{short(done.id)}: {done.blobs} blobs{went}")


def percent(share: float | None) -> str:
    """A share of 1 as a percentage, as error rates are read."""
    return "–" if share is None else f"{100 * share:.1f} %"


ULID = re.compile(r"[0-9A-HJKMNP-TV-Z]{26}")


def short(id: str) -> str:
    """The part of an id that people type: the head of a hash, the tail of a ULID, which begins with the time."""
    if id.startswith("sha256-"):
        return id.removeprefix("sha256-")[:12]
    return id[-8:] if ULID.fullmatch(id) else id


def confirm(question: str, yes: bool) -> None:
    """Ask before something goes for good; where nobody can answer, `--yes` is needed. Raises UsageError."""
    from voxloop.errors import UsageError

    if yes:
        return
    if not sys.stdin.isatty():
        raise UsageError("deleting cannot be undone: say --yes")
    typer.confirm(question, abort=True)


def clock(samples: int) -> str:
    """A place in a recording, as players show it: 1:02:03.4, or 2:03.4."""
    from voxloop.records import seconds

    tenths = round(10 * seconds(samples))
    minutes, rest = divmod(tenths, 600)
    hours, minutes = divmod(minutes, 60)
    shown = f"{minutes}:{rest // 10:02}.{rest % 10}"
    return f"{hours}:{minutes:02}:{rest // 10:02}.{rest % 10}" if hours else shown


def when(seconds: float) -> str:
    """A moment, in seconds since the epoch, by the clock of this place."""
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seconds))


def counted(count: int, noun: str, plural: str | None = None) -> str:
    """A number with its noun: 1 job, 2 jobs, 1,000 entries."""
    return f"{count:,} {noun if count == 1 else plural or noun + 's'}"


def lasting(seconds: float) -> str:
    """How long something takes, as people say it: 4.2 s, 55 s, 3 min 20 s, 2 h 5 min."""
    if seconds < 9.95:
        return f"{max(seconds, 0.0):.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def time_left(done: float, total: float | None, began: float) -> str:
    """What is left of work that began at a `time.monotonic()`, at the rate until now; empty where nobody can know."""
    rate = done / max(time.monotonic() - began, 1e-6)
    return f"{lasting(max(0.0, total - done) / rate)} left" if total and rate > 0 else ""


@contextmanager
def working() -> Iterator[Callable[[WorkProgress], None]]:
    """Tell of a worker's progress over all waiting work: one line redrawn on a terminal, plain lines elsewhere.

    What fails is told of at once, in a line of its own.
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
    """Tell of long work: a bar with rate and time left on a terminal, plain lines elsewhere.

    Yields a function of what is done and what is to be done in all (None where unknown).
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
