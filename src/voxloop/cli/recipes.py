"""recipe list, show."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from voxloop.cli.screen import Json, opened, print_json, table

recipe = typer.Typer(no_args_is_help=True, help="List and show training recipes.")


def register(app: typer.Typer) -> None:
    app.add_typer(recipe, name="recipe")


@recipe.command("list")
def recipe_list(as_json: Json = False) -> None:
    """List the training recipes and what each is for."""
    from voxloop.steps.training.recipes import RECIPES, SUITS

    if as_json:
        print_json([{"name": name, "suits": SUITS[name]} for name in RECIPES])
        return
    table(["recipe", "for"], [[name, SUITS[name]] for name in RECIPES])
    typer.echo(
        "\nSee every setting with `voxloop recipe show NAME`. `voxloop train` picks a recipe unless you name one."
    )


@recipe.command("show")
def recipe_show(
    ctx: typer.Context,
    name: Annotated[
        str | None,
        typer.Argument(help="Recipe name.", show_default="the recipe that `voxloop train` would pick"),
    ] = None,
    published: Annotated[
        bool,
        typer.Option(
            "--published",
            help="With NAME, show the values for a published model instead of a small one such as the starter.",
        ),
    ] = False,
    set: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="NAME=VALUE", help="Override a setting, as in `train`. Can be repeated."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Show each setting of a recipe with its value, its default if different, and its meaning."""
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
        typer.echo(f"picked because {shown.why}")
    typer.echo()
    table(
        ["setting", "value", "default", "meaning"],
        [[s.setting, _shown(s.value), _shown(s.default) if s.differs else "", s.meaning] for s in shown.settings],
    )


def _shown(value: Any) -> str:
    """A value in the form that `--set` accepts."""
    if value is None:
        return "none"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list):
        return ",".join(value) or "none"
    return f"{value:g}" if isinstance(value, float) else str(value)
