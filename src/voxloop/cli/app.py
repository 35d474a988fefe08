"""The command `voxloop`: load, call one step, print. No logic of its own, and no heavy import before it is needed."""

from __future__ import annotations

import os
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, get_args

import typer
from typer.core import TyperArgument, TyperGroup, TyperOption

from voxloop import __version__
from voxloop.cli import bases, datasets, evaluation, keep, models, recipes, review, runs, serve, speech, work
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
review.register(app)
datasets.register(app)
runs.register(app)
recipes.register(app)
bases.register(app)
evaluation.register(app)
models.register(app)
keep.register(app)
serve.register(app)


def main() -> None:
    """The console script."""
    for name, value in THREADS_WAIT.items():
        os.environ.setdefault(name, value)
    app()
