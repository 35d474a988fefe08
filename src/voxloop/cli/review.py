"""review list, show, save, accept, reject."""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import typer

from voxloop.cli.screen import By, Json, opened, print_json, short, table

if TYPE_CHECKING:
    from voxloop.review import Item

review = typer.Typer(no_args_is_help=True, help="People's corrections: list, show, save, accept, reject.")


class Status(StrEnum):
    new = "new"
    transcribed = "transcribed"
    reviewed = "reviewed"
    rejected = "rejected"


def register(app: typer.Typer) -> None:
    app.add_typer(review, name="review")


@review.command("list")
def review_list(
    ctx: typer.Context,
    status: Annotated[Status | None, typer.Option(help="Only utterances of this status.")] = None,
    speaker: Annotated[str | None, typer.Option(help="Only this speaker's.")] = None,
    limit: Annotated[int, typer.Option(help="How many at most.", min=1)] = 20,
    as_json: Json = False,
) -> None:
    """Utterances, the least certain first."""
    from voxloop.review import items

    with opened(ctx) as ws:
        found = items(ws, status=status.value if status else None, speaker=speaker, limit=limit)
    if as_json:
        print_json([_item_json(item) for item in found])
        return
    table(
        ["utterance", "s", "speaker", "status", "confidence", "text"],
        [
            [
                _short_utterance(item.utterance.id),
                round(item.utterance.duration, 1),
                item.utterance.speaker,
                item.utterance.status,
                item.hypothesis.confidence if item.hypothesis else None,
                item.text,
            ]
            for item in found
        ],
        empty="no such utterances: `voxloop status` says what there is",
    )


def _short_utterance(id: str) -> str:
    recording, _, span = id.partition(":")
    return f"{short(recording)}:{span}"


def _item_json(item: Item) -> dict[str, object]:
    return {
        "utterance": item.utterance,
        "text": item.text,
        "reference": item.reference,
        "hypothesis": item.hypothesis,
        "versions": item.versions,
    }


@review.command("show")
def review_show(ctx: typer.Context, utterance: str, as_json: Json = False) -> None:
    """One utterance with every version of its text."""
    from voxloop.review import show

    with opened(ctx) as ws:
        item = show(ws, utterance)
    if as_json:
        print_json(_item_json(item))
        return
    found = item.utterance
    typer.echo(
        f"{found.id}\n{found.duration:.2f} s, speaker {found.speaker or 'unknown'}, {found.status}, "
        f"split {found.split or 'not decided'}"
    )
    if found.quality:
        snr = "unknown" if found.quality.snr_db is None else f"{found.quality.snr_db:.0f} dB"
        typer.echo(f"level {found.quality.level_dbfs:.0f} dBFS, SNR {snr}, clipping {found.quality.clipping:.1%}")
    table(["kind", "by", "confidence", "text"], [[t.kind, short(t.by), t.confidence, t.text] for t in item.versions])


@review.command("save")
def review_save(ctx: typer.Context, utterance: str, text: str, by: By = "cli") -> None:
    """Keep a corrected text as the reference."""
    from voxloop.review import save

    with opened(ctx) as ws:
        saved = save(ws, utterance, text, by=by)
    typer.echo(f"saved: {saved.text}")


@review.command("accept")
def review_accept(ctx: typer.Context, utterance: str, by: By = "cli") -> None:
    """Take the machine's text as right."""
    from voxloop.review import accept

    with opened(ctx) as ws:
        saved = accept(ws, utterance, by=by)
    typer.echo(f"accepted: {saved.text}")


@review.command("reject")
def review_reject(
    ctx: typer.Context,
    utterance: str,
    reason: Annotated[str, typer.Option(help="Why it may not be used.")],
    by: By = "cli",
) -> None:
    """Leave an utterance out of every dataset to come."""
    from voxloop.review import reject

    with opened(ctx) as ws:
        found = reject(ws, utterance, reason=reason, by=by)
    typer.echo(f"rejected: {found.id}")
