"""The command `voxloop`: load, call one step, print. No logic of its own, and no heavy import before it is needed."""

from __future__ import annotations

import contextlib
import io
import os
import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, NoReturn, get_args

import typer
from typer.core import TyperArgument, TyperGroup, TyperOption

from voxloop import __version__
from voxloop.cli import (
    automation,
    bases,
    consent,
    datasets,
    evaluation,
    importing,
    jobs,
    keep,
    listen,
    models,
    recipes,
    recordings,
    review,
    runs,
    serve,
    speech,
    vocabulary,
    work,
)
from voxloop.errors import UsageError, VoxloopError
from voxloop.settings import THREADS_WAIT

VALUES = {"int": "N", "float": "NUMBER", "Path": "PATH", "datetime": "TIME", "str": "TEXT"}


def value_name(parameter: Any) -> str:
    """What help calls the value of a parameter: its choices, or a name that a person can read; nothing for a switch."""
    if parameter.metavar and parameter.param_type_name == "option":
        return str(parameter.metavar)
    kind = parameter.type_descriptor.annotation
    while get_args(kind):
        kind = get_args(kind)[0]
    if isinstance(kind, type) and issubclass(kind, StrEnum):
        return "|".join(kind)
    if parameter.param_type_name == "argument":
        return ""
    return "" if getattr(parameter, "is_flag", False) else VALUES.get(getattr(kind, "__name__", ""), "TEXT")


# Typer writes `<bool>` behind every switch, `<list[str]>` and date formats, and no metavar that it is given.
for _parameter in (TyperOption, TyperArgument):
    _parameter.display_type_rich = lambda self, ctx: value_name(self)  # type: ignore[method-assign]


class _Commands(TyperGroup):
    """Turns the errors that Voxloop raises on purpose into one line and an exit status."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except VoxloopError as error:
            typer.echo(f"error: {error}", err=True)
            # 1: it failed; 2: it was asked for in a way that cannot be done.
            raise typer.Exit(2 if isinstance(error, UsageError) else 1) from error
        except KeyboardInterrupt:
            typer.echo("stopped: what was finished is kept; the same command goes on from there", err=True)
            raise typer.Exit(130) from None
        except OSError as error:
            if isinstance(error, BrokenPipeError):
                raise  # whoever read the output has gone: main() knows
            typer.echo(f"error: {_of_system(error)}", err=True)
            raise typer.Exit(1) from error


def _of_system(error: OSError) -> str:
    """What the operating system refused, in a sentence: a full disk, a folder that may not be written."""
    path = f"{error.filename}: " if error.filename else ""
    return f"{path}{(error.strerror or str(error)).lower()}"


app = typer.Typer(
    cls=_Commands,
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Speech in, a better speech recogniser out: ingest, correct, freeze, fine-tune, evaluate, promote.",
)


def _version(value: bool) -> None:
    if value:
        typer.echo(f"voxloop {__version__}")
        raise typer.Exit


@app.callback()
def _main(
    ctx: typer.Context,
    workspace: Annotated[
        Path | None,
        typer.Option(
            "-C",
            "--workspace",
            help="The workspace folder.",
            envvar="VOXLOOP_WORKSPACE",
            show_default="voxloop-workspace",
        ),
    ] = None,
    verbose: Annotated[bool, typer.Option("-v", "--verbose", help="Say more of what is done.")] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    import logging

    logging.basicConfig(
        level=logging.INFO if verbose else logging.WARNING, format="%(levelname)s %(name)s: %(message)s"
    )
    ctx.obj = workspace


work.register(app)
speech.register(app)
recordings.register(app)
review.register(app)
datasets.register(app)
runs.register(app)
recipes.register(app)
bases.register(app)
evaluation.register(app)
models.register(app)
keep.register(app)
serve.register(app)
automation.register(app)
jobs.register(app)
listen.register(app)
vocabulary.register(app)
consent.register(app)
importing.register(app)


def main() -> None:
    """The console script. Whatever is wrong with its streams or its output ends in one line and an exit status."""
    for name, value in THREADS_WAIT.items():
        os.environ.setdefault(name, value)
    _in_utf8()
    _open_streams()
    try:
        try:
            app()
        finally:
            sys.stdout.flush()  # now, where it can still be told that there was no room for it
    except BrokenPipeError:
        _end(141)  # as a program ends that the signal SIGPIPE stops: nobody reads on
    except OSError as error:
        with contextlib.suppress(OSError):
            sys.stderr.write(f"error: the output could not be written: {_of_system(error)}\n")
        _end(1)


def _in_utf8() -> None:
    """Start again in Python's UTF-8 mode where the locale has another encoding (`LC_ALL=C`), children included.

    Names of files are then read and written as in any other locale; https://docs.python.org/3/library/os.html#utf8-mode.
    """
    if sys.getfilesystemencoding() != "utf-8" and os.environ.get("PYTHONUTF8") != "1":
        os.environ["PYTHONUTF8"] = "1"
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def _open_streams() -> None:
    """Streams that take any text, and exist.

    A closed descriptor would be given to the next file that is opened, and a library's message written into it. What a
    locale cannot write is replaced, since no name or text may end a command half-way.
    """
    for descriptor, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDONLY if name == "stdin" else os.O_WRONLY)  # takes the lowest number that is free
        if getattr(sys, name) is None:
            setattr(sys, name, open(descriptor, "r" if name == "stdin" else "w", encoding="utf-8", closefd=False))  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace" if stream is sys.stderr else "replace")


def _end(status: int) -> NoReturn:
    """Leave without flushing what cannot be written: Python would complain about it on its way out."""
    os._exit(status)
