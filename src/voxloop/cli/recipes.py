"""recipe."""

from __future__ import annotations

import dataclasses
from typing import Annotated, Any

import typer

from voxloop.cli.screen import Json, opened, print_json, table

recipe = typer.Typer(no_args_is_help=True, help="Recipes, how a model is trained: list, show.")


def register(app: typer.Typer) -> None:
    app.add_typer(recipe, name="recipe")


@recipe.command("list")
def recipe_list(as_json: Json = False) -> None:
    """The named recipes and what each is for."""
    from voxloop.steps.training.recipes import RECIPES, SUITS

    if as_json:
        print_json([{"name": name, "suits": SUITS[name]} for name in RECIPES])
        return
    table(["recipe", "for"], [[name, SUITS[name]] for name in RECIPES])
    typer.echo("\n`voxloop recipe show NAME` prints every setting; `voxloop train` chooses, where none is named")


@recipe.command("show")
def recipe_show(
    ctx: typer.Context,
    name: Annotated[
        str | None,
        typer.Argument(help="A recipe; the one that `voxloop train` would choose here, where none is named."),
    ] = None,
    set: Annotated[
        list[str] | None, typer.Option("--set", help="One setting, name=value (may be given again), as for train.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Every setting of a recipe: its value, its default where that is another, and what it means."""
    from voxloop.steps.training import recipes

    if name is None:
        from voxloop.steps.training import suggest

        with opened(ctx) as ws:
            found = suggest(ws)
    else:
        found = recipes.named(name)
    found = recipes.override(found, set or ())
    settings = recipes.described(found)
    if as_json:
        rows = [dataclasses.asdict(setting) | {"differs": setting.differs} for setting in settings]
        print_json({"name": found.name, "suits": recipes.SUITS[found.name], "why": found.why or None, "settings": rows})
        return
    typer.echo(f"{found.name}: for {recipes.SUITS[found.name]}")
    if found.why:
        typer.echo(f"chosen, since {found.why}")
    typer.echo()
    table(
        ["setting", "value", "default", "meaning"],
        [[s.setting, _shown(s.value), _shown(s.default) if s.differs else "", s.meaning] for s in settings],
    )


def _shown(value: Any) -> str:
    """A value as `--set` takes it."""
    if value is None:
        return "none"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list):
        return ",".join(value) or "none"
    return f"{value:g}" if isinstance(value, float) else str(value)
