"""recipe."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from voxloop.cli.screen import Json, opened, print_json, table

recipe = typer.Typer(no_args_is_help=True, help="Recipes, how a model is trained: list, show.")


def register(app: typer.Typer) -> None:
    app.add_typer(recipe, name="recipe")


@recipe.command("list")
def recipe_list(as_json: Json = False) -> None:
    """List the recipes and what each is for."""
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
        typer.Argument(help="A recipe's name.", show_default="the one that `voxloop train` would choose here"),
    ] = None,
    published: Annotated[
        bool,
        typer.Option(
            "--published", help="As it is for a published model, not for a small one such as the starter; with NAME."
        ),
    ] = False,
    set: Annotated[
        list[str] | None, typer.Option("--set", help="Change one setting, as name=value; repeatable, as for `train`.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Show every setting of a recipe: its value, its default where it differs, and what it means."""
    from voxloop.steps.training import recipes

    if name is None:
        from voxloop.steps.training import suggest

        with opened(ctx) as ws:
            found = suggest(ws)
    else:
        found = recipes.named(name, published=published)
    found = recipes.override(found, set or ())
    shown = recipes.details(found)
    if as_json:
        print_json(shown)
        return
    typer.echo(f"{shown.name}: for {shown.suits}")
    if shown.why:
        typer.echo(f"chosen, since {shown.why}")
    typer.echo()
    table(
        ["setting", "value", "default", "meaning"],
        [[s.setting, _shown(s.value), _shown(s.default) if s.differs else "", s.meaning] for s in shown.settings],
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
