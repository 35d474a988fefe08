"""The options that select utterances, declared once for every review command that takes them."""

# No `from __future__ import annotations` here: `filtered` needs the annotations of `filters` as objects, not strings.

import functools
import inspect
from collections.abc import Callable
from datetime import datetime
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any, cast, get_type_hints

import typer

if TYPE_CHECKING:
    from voxloop.steps.review import Filters
    from voxloop.steps.review.warnings import WarningKind


class Status(StrEnum):
    new = "new"
    transcribed = "transcribed"
    reviewed = "reviewed"
    rejected = "rejected"
    deleted = "deleted"


DATES = ["%Y-%m-%d", "%Y-%m-%dT%H:%M", "%Y-%m-%dT%H:%M:%S"]


def filters(
    *,
    status: Annotated[Status | None, typer.Option(help="Only utterances with this status.")] = None,
    speaker: Annotated[str | None, typer.Option(metavar="NAME", help="Only utterances by this speaker.")] = None,
    language: Annotated[
        str | None,
        typer.Option(metavar="CODE", help="Only utterances in this language: an ISO 639-1 code such as `en`."),
    ] = None,
    min_confidence: Annotated[
        float | None, typer.Option(help="Only hypotheses with at least this confidence, from 0 to 1.")
    ] = None,
    max_confidence: Annotated[
        float | None, typer.Option(help="Only hypotheses with at most this confidence, from 0 to 1.")
    ] = None,
    since: Annotated[
        datetime | None,
        typer.Option(
            formats=DATES,
            metavar="TIME",
            help="Only utterances ingested at or after this local time, such as 2026-01-31T12:00.",
        ),
    ] = None,
    until: Annotated[
        datetime | None,
        typer.Option(
            formats=DATES, metavar="TIME", help="Only utterances ingested before this local time, such as 2026-01-31."
        ),
    ] = None,
    contains: Annotated[
        str | None, typer.Option(help="Only texts that contain this string, even inside a word. Ignores case.")
    ] = None,
    warning: Annotated[
        str | None,
        typer.Option(
            help="Only utterances with this warning, such as `noisy`; `any` for any warning, `none` for none."
        ),
    ] = None,
    requested: Annotated[
        bool, typer.Option("--requested", help="Only utterances whose review an automatic run waits for.")
    ] = False,
) -> "Filters":
    """Build the filters from the command's options. Raises UsageError for an unknown value."""
    from voxloop.steps.review import Filters

    return Filters(
        status=status.value if status else None,
        speaker=speaker,
        language=language,
        min_confidence=min_confidence,
        max_confidence=max_confidence,
        since=since.timestamp() if since else None,
        until=until.timestamp() if until else None,
        contains=contains,
        warning=None if warning in ("any", "none") else cast("WarningKind | None", warning),
        warned=warning == "any" if warning in ("any", "none") else None,
        requested=requested or None,
    )


def filtered(command: Callable[..., None]) -> Callable[..., None]:
    """Replace a command's parameter `where: Filters` with the options of `filters`, and pass the filters they build."""
    options = inspect.signature(filters).parameters
    # `Filters` is imported for type checkers only, and its parameter is replaced anyway.
    types = get_type_hints(command, localns={"Filters": Any}, include_extras=True)
    parameters: list[inspect.Parameter] = []
    for own in inspect.signature(command).parameters.values():
        if own.name == "where":
            parameters += options.values()
        else:
            parameters.append(own.replace(annotation=types[own.name], kind=inspect.Parameter.KEYWORD_ONLY))

    @functools.wraps(command)
    def with_filters(**given: Any) -> None:
        command(where=filters(**{name: given.pop(name) for name in options}), **given)

    vars(with_filters)["__signature__"] = inspect.Signature(parameters)
    with_filters.__annotations__ = {one.name: one.annotation for one in parameters}
    return with_filters
