"""vocabulary add, remove, list, import."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from voxloop.cli.screen import Json, opened, print_json, table

vocabulary = typer.Typer(
    no_args_is_help=True, help="Personal vocabulary, names and jargon to prefer: add, remove, list, import."
)

Terms = Annotated[
    list[str], typer.Argument(help="Words or phrases, spelled as they are to be written.", metavar="TERM...")
]


def register(app: typer.Typer) -> None:
    app.add_typer(vocabulary, name="vocabulary")


@vocabulary.command("add")
def vocabulary_add(
    ctx: typer.Context,
    terms: Terms,
    language: Annotated[
        str, typer.Option(help="Count only in this language (ISO 639-1).", show_default="any language")
    ] = "",
) -> None:
    """Add terms that texts are to hold where they were said."""
    from voxloop.steps import vocabulary as steps

    with opened(ctx) as ws:
        new = steps.add(ws, terms, language=language)
        total = len(steps.entries(ws))
    typer.echo(f"{new} added, {len(terms) - new} known; {total} in the vocabulary")


@vocabulary.command("remove")
def vocabulary_remove(
    ctx: typer.Context,
    terms: Terms,
    language: Annotated[
        str | None, typer.Option(help="Only the entries of this language (ISO 639-1).", show_default="all entries")
    ] = None,
) -> None:
    """Remove terms."""
    from voxloop.steps import vocabulary as steps

    with opened(ctx) as ws:
        removed = steps.remove(ws, terms, language=language)
        total = len(steps.entries(ws))
    typer.echo(f"{removed} removed; {total} in the vocabulary")


@vocabulary.command("list")
def vocabulary_list(
    ctx: typer.Context,
    language: Annotated[
        str | None, typer.Option(help="What counts in this language (ISO 639-1).", show_default="all entries")
    ] = None,
    as_json: Json = False,
) -> None:
    """List the vocabulary, the newest first."""
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
        Path, typer.Argument(help="A text file in UTF-8, a term on each line; lines that begin with # are left out.")
    ],
    language: Annotated[
        str, typer.Option(help="Count only in this language (ISO 639-1).", show_default="any language")
    ] = "",
) -> None:
    """Add the terms of a text file."""
    from voxloop.steps import vocabulary as steps

    terms = steps.read_terms(file)
    with opened(ctx) as ws:
        new = steps.add(ws, terms, language=language)
        total = len(steps.entries(ws))
    typer.echo(f"{new} added, {len(terms) - new} known; {total} in the vocabulary")
