"""base list."""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING

import typer

from voxloop.cli.screen import Json, opened, print_json, table

if TYPE_CHECKING:
    from voxloop.bases import Need

base = typer.Typer(no_args_is_help=True, help="List the base models for training and transcription.")


def register(app: typer.Typer) -> None:
    app.add_typer(base, name="base")


@base.command("list")
def base_list(ctx: typer.Context, as_json: Json = False) -> None:
    """List the base models on this machine with the memory (GB) and time (s) that each needs."""
    from voxloop.bases import here

    with opened(ctx) as ws:
        machine, bases = here(ws)
    if as_json:
        print_json({"machine": machine, "bases": bases})
        return
    table(
        ["base", "weights", *(f"{use} GB, s" for use in ("int8", "fp32", "LoRA", "full"))],
        [
            [_folded(one.name), f"{one.parameters / 1e6:,.0f} M", *map(_need, (one.int8, one.fp32, one.lora, one.full))]
            for one in bases
            if not one.refused
        ],
    )
    for one in bases:
        if one.refused:
            typer.echo(f"\n{one.name} cannot be used as a base: {one.refused}")
    typer.echo(
        f"\nEstimated memory and time on {machine.device} "
        f"(measured: {machine.operations_per_s / 1e9:,.0f} GFLOP/s).\n"
        "int8, fp32: transcribe one minute of speech with ctranslate2 or torch.\n"
        "LoRA, full: train on 30 s of speech once, in the batches of the default recipe.\n"
        "Choose a base with `--base NAME` or with `base_model` in voxloop.toml."
    )


def _need(need: Need | None) -> str:
    if need is None:
        return "–"
    seconds = f"{need.seconds:.1f}" if need.seconds < 10 else f"{need.seconds:.0f}"
    return f"{need.memory_bytes / 1e9:.1f}, {seconds}"


def _folded(name: str) -> str:
    """A name or long path, wrapped so that the table fits in 80 columns."""
    return "\n".join(textwrap.wrap(name, 22))
