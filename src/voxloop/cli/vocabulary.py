"""vocabulary add, remove, list, import."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from voxloop.cli.screen import Json, counted, opened, print_json, table

vocabulary = typer.Typer(
    no_args_is_help=True, help="Add, remove, list and import personal vocabulary: names and jargon to prefer."
)

Terms = Annotated[
    list[str], typer.Argument(help="Words or phrases, spelled as transcripts should spell them.", metavar="TERM...")
]


def register(app: typer.Typer) -> None:
    app.add_typer(vocabulary, name="vocabulary")


@vocabulary.command("add")
def vocabulary_add(
    ctx: typer.Context,
    terms: Terms,
    language: Annotated[
        str, typer.Option(help="Language in which the terms apply, such as en or English.", show_default="any language")
    ] = "",
) -> None:
    """Add terms that the recogniser should prefer."""
    from voxloop.steps import vocabulary as steps

    with opened(ctx) as ws:
        new = steps.add(ws, terms, language=language)
        total = len(steps.entries(ws))
    _print_added(new, len(terms) - new, total)


def _print_added(new: int, known: int, total: int) -> None:
    typer.echo(f"{new:,} added, {known:,} already known; the vocabulary has {counted(total, 'term')}")


@vocabulary.command("remove")
def vocabulary_remove(
    ctx: typer.Context,
    terms: Terms,
    language: Annotated[
        str | None,
        typer.Option(help="Remove only entries for this language, such as en or English.", show_default="all entries"),
    ] = None,
) -> None:
    """Remove terms from the vocabulary."""
    from voxloop.steps import vocabulary as steps

    with opened(ctx) as ws:
        removed = steps.remove(ws, terms, language=language)
        total = len(steps.entries(ws))
    typer.echo(f"{removed:,} removed; the vocabulary has {counted(total, 'term')}")


@vocabulary.command("list")
def vocabulary_list(
    ctx: typer.Context,
    language: Annotated[
        str | None,
        typer.Option(help="Only terms that apply in this language, such as en or English.", show_default="all terms"),
    ] = None,
    as_json: Json = False,
) -> None:
    """List the vocabulary, newest terms first."""
    from voxloop.steps import vocabulary as steps

    with opened(ctx) as ws:
        found = steps.entries(ws, language)
    if as_json:
        print_json(found)
        return
    rows = [[one.text, one.language or "any"] for one in found]
    table(["term", "language"], rows, empty="the vocabulary is empty; next: voxloop vocabulary add TERM...")


@vocabulary.command("import")
def vocabulary_import(
    ctx: typer.Context,
    file: Annotated[
        Path, typer.Argument(help="UTF-8 text file with one term per line; lines that begin with # are ignored.")
    ],
    language: Annotated[
        str, typer.Option(help="Language in which the terms apply, such as en or English.", show_default="any language")
    ] = "",
) -> None:
    """Add the terms in a text file."""
    from voxloop.steps import vocabulary as steps

    terms = steps.read_terms(file)
    with opened(ctx) as ws:
        new = steps.add(ws, terms, language=language)
        total = len(steps.entries(ws))
    _print_added(new, len(terms) - new, total)
