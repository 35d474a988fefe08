"""review list, next, show, play, diff, save, accept, reject, skip, delete, undo, bulk-accept, rank, export, import."""

from __future__ import annotations

import sys
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from voxloop.cli.filters import filtered
from voxloop.cli.screen import (
    By,
    Json,
    alignment,
    clock,
    counted,
    lasting,
    opened,
    percent,
    print_json,
    progress,
    short,
    table,
    when,
)
from voxloop.errors import UsageError

if TYPE_CHECKING:
    from voxloop.steps.review import Difference, Filters, Item

review = typer.Typer(invoke_without_command=True)


class ExchangeFormat(StrEnum):
    jsonl = "jsonl"
    csv = "csv"
    label_studio = "label-studio"


Seen = Annotated[
    str | None,
    typer.Option(
        metavar="ID",
        help="To replace someone else's text, pass the id of the reference you saw (empty if there was none).",
    ),
]
Named = Annotated[str, typer.Argument(metavar="UTTERANCE", help="Number or id of the utterance.")]
OfFormat = Annotated[
    ExchangeFormat | None, typer.Option("--format", help="File format.", show_default="from the file's suffix")
]


def register(app: typer.Typer) -> None:
    app.add_typer(review, name="review")


@review.callback()
@filtered
def review_session(
    ctx: typer.Context,
    *,
    by: By = "cli",
    where: Filters,
    autoplay: Annotated[bool, typer.Option("--play/--no-play", help="Play each utterance when it is shown.")] = True,
) -> None:
    """Review utterances in the terminal: play, edit, accept or reject with single keys. Scripts use the subcommands."""
    from voxloop.steps.review import Filters as Given

    if ctx.invoked_subcommand is not None:
        if where != Given():
            raise UsageError(
                f"Put the filters after the subcommand, as in `voxloop review {ctx.invoked_subcommand} --speaker NAME`."
            )
        return
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        raise UsageError(
            "`voxloop review` needs a terminal. In scripts, use `voxloop review next`, `save`, `accept` and `reject`, "
            "or `voxloop review export` and `import`."
        )
    from voxloop.cli.reviewing import Reviewing
    from voxloop.records import seconds
    from voxloop.steps.recordings.listening import playing_beside

    with opened(ctx) as ws:
        session = Reviewing(ws=ws, by=by, where=where, autoplay=autoplay)
        session.play = lambda one: playing_beside(
            ws, one.recording, seconds(one.start), seconds(one.end), session.silence
        )
        session.run()


@review.command("list")
@filtered
def review_list(
    ctx: typer.Context,
    *,
    where: Filters,
    limit: Annotated[int, typer.Option(help="Maximum number of utterances.", min=1)] = 20,
    after: Annotated[
        str | None, typer.Option(metavar="CURSOR", help="Continue after the cursor printed by the previous page.")
    ] = None,
    as_json: Json = False,
) -> None:
    """List utterances, the ones that most need review first."""
    from voxloop.steps.review import page

    with opened(ctx) as ws:
        found = page(ws, where=where, limit=limit, after=after)
    if as_json:
        print_json(found.items)
        return
    table(
        ["utterance", "file", "at", "s", "speaker", "status", "confidence", "warnings", "text"],
        [
            [
                str(item.number),
                item.file,
                clock(item.utterance.start),
                round(item.utterance.duration, 1),
                item.utterance.speaker,
                item.utterance.status,
                item.hypothesis.confidence if item.hypothesis else None,
                ", ".join(warning.kind for warning in item.warnings),
                item.text,
            ]
            for item in found.items
        ],
        empty="no matching utterances; `voxloop status` shows how many there are",
        if_different=("at", "speaker", "status", "warnings"),
    )
    if found.after:
        typer.echo(f"next page: --after {found.after}")


def _short_utterance(id: str) -> str:
    recording, _, span = id.partition(":")
    return f"{short(recording)}:{span}"


@review.command("next")
@filtered
def review_next(
    ctx: typer.Context,
    *,
    by: By = "cli",
    where: Filters,
    as_json: Json = False,
) -> None:
    """Take the next utterance to review, and reserve it so that no other reviewer gets it."""
    from voxloop.steps import review as step

    with opened(ctx) as ws:
        turn = step.next(ws, by=by, where=where)
    if as_json:
        print_json(turn)
        return
    if turn is None:
        typer.echo("nothing to review")
        return
    _tell(turn.item)
    typer.echo(f"reserved for you for {lasting(turn.until - turn.taken)}")
    typer.echo(f"next: voxloop review play|save|accept|reject|skip {turn.item.number}")


@review.command("show")
def review_show(ctx: typer.Context, utterance: Named, as_json: Json = False) -> None:
    """Show an utterance with every version of its text and every decision."""
    from voxloop.steps.review import item_history

    with opened(ctx) as ws:
        found = item_history(ws, utterance)
    if as_json:
        print_json(found)
        return
    _tell(found.item)
    if found.item.reference:
        typer.echo(
            f"current reference: {found.item.reference.id}\nTo replace someone else's text, pass this id with --seen."
        )
    if found.decisions:
        table(
            ["decision", "by", "what", "when", "reason"],
            [
                [str(d.seq), d.by, f"undo of {d.undoes}" if d.undoes else d.kind, when(d.created), d.reason]
                for d in found.decisions
            ],
        )


def _tell(item: Item) -> None:
    found = item.utterance
    typer.echo(
        f"utterance {item.number}: {item.file} at {clock(found.start)}, {found.duration:.2f} s, "
        f"speaker {found.speaker or 'unknown'}, {found.status}, split {found.split or 'not decided'}\n{found.id}"
    )
    if found.quality:
        snr = "unknown" if found.quality.snr_db is None else f"{found.quality.snr_db:.0f} dB"
        clipping = percent(found.quality.clipping)
        typer.echo(f"level {found.quality.level_dbfs:.0f} dBFS, SNR {snr}, clipping {clipping}")
    for warning in item.warnings:
        typer.echo(f"{warning.kind}: {warning.detail}")
    table(
        ["version", "kind", "by", "when", "confidence", "text"],
        [
            [str(number), t.kind, short(t.by), when(t.created), t.confidence, t.text]
            for number, t in enumerate(item.versions, 1)
        ],
    )


@review.command("play")
def review_play(ctx: typer.Context, utterance: Named) -> None:
    """Play an utterance."""
    from voxloop.records import seconds
    from voxloop.steps.recordings.listening import play
    from voxloop.steps.review import show

    with opened(ctx) as ws:
        item = show(ws, utterance)
        found = item.utterance
        typer.echo(f"{item.file} at {clock(found.start)}, {found.duration:.1f} s: {item.text}", err=True)
        play(ws, found.recording, seconds(found.start), seconds(found.end))


@review.command("diff")
@filtered
def review_diff(
    ctx: typer.Context,
    *,
    utterance: Annotated[str | None, typer.Argument(help="Number or id of an utterance.")] = None,
    version: Annotated[
        str | None,
        typer.Option(
            help="Text to compare: its number in `review show`, its id or its kind.", show_default="the hypothesis"
        ),
    ] = None,
    against: Annotated[
        str | None,
        typer.Option(help="Text to compare it with, given in the same way.", show_default="the reference"),
    ] = None,
    worst: Annotated[
        int | None, typer.Option(help="Show this many utterances with the most word errors.", min=1)
    ] = None,
    as_written: Annotated[
        bool, typer.Option("--as-written", help="Compare without the normaliser: case and punctuation count.")
    ] = False,
    where: Filters,
    as_json: Json = False,
) -> None:
    """Compare the machine's text with the reference, word by word."""
    from voxloop.steps import review as step

    if (utterance is None) == (worst is None):
        raise UsageError("Name one utterance, or ask for the worst ones with --worst 10.")
    if worst is not None and (version or against):
        raise UsageError(
            "--worst always compares hypotheses with references. Use --version and --against with a single utterance."
        )
    if utterance is not None and where != step.Filters():
        raise UsageError("Filters work only with --worst. Add --worst, or remove the filters.")
    with opened(ctx) as ws:
        if utterance is not None:
            found = [step.diff(ws, utterance, version=version, against=against, written=as_written)]
        else:
            found = step.worst(ws, limit=worst or 0, where=where, written=as_written)
    if as_json:
        print_json(found if utterance is None else found[0])
        return
    if not found:
        typer.echo("every hypothesis matches its reference")
    for place, one in enumerate(found):
        if place:
            typer.echo()
        _tell_diff(one)


def _tell_diff(one: Difference) -> None:
    words = one.found.words
    typer.echo(one.utterance.id)
    typer.echo(
        f"ref: {one.reference.kind} by {short(one.reference.by)}; hyp: {one.hypothesis.kind} by "
        f"{short(one.hypothesis.by)}; {one.found.normaliser}"
    )
    alignment(one.found.pieces)
    typer.echo(
        f"{counted(words.errors, 'error')} in {counted(words.units, 'word')}: "
        f"{counted(words.substitutions, 'substitution')}, {counted(words.deletions, 'deletion')}, "
        f"{counted(words.insertions, 'insertion')}; "
        f"WER {percent(words.rate)}, CER {percent(one.found.characters.rate)}"
    )


@review.command("save")
def review_save(
    ctx: typer.Context,
    utterance: Named,
    text: Annotated[str, typer.Argument(help="The correct text.")],
    by: By = "cli",
    seen: Seen = None,
    as_json: Json = False,
) -> None:
    """Save a corrected text as the reference."""
    from voxloop.steps.review import save

    with opened(ctx) as ws:
        saved = save(ws, utterance, text, by=by, seen=seen)
    if as_json:
        print_json(saved)
    else:
        typer.echo(f"saved: {saved.text}")


@review.command("accept")
def review_accept(
    ctx: typer.Context, utterance: Named, by: By = "cli", seen: Seen = None, as_json: Json = False
) -> None:
    """Accept the hypothesis as the reference."""
    from voxloop.steps.review import accept

    with opened(ctx) as ws:
        saved = accept(ws, utterance, by=by, seen=seen)
    if as_json:
        print_json(saved)
    else:
        typer.echo(f"accepted: {saved.text}")


@review.command("reject")
def review_reject(
    ctx: typer.Context,
    utterance: Named,
    reason: Annotated[str, typer.Option(help="Why the utterance must not be used.")],
    by: By = "cli",
    seen: Seen = None,
    as_json: Json = False,
) -> None:
    """Exclude an utterance from all future datasets."""
    from voxloop.steps.review import reject

    with opened(ctx) as ws:
        found = reject(ws, utterance, reason=reason, by=by, seen=seen)
    if as_json:
        print_json(found)
    else:
        typer.echo(f"rejected: {found.id}")


@review.command("skip")
def review_skip(ctx: typer.Context, utterance: Named, by: By = "cli", as_json: Json = False) -> None:
    """Skip an utterance. It comes back after `review_skip_s` seconds, or when nothing else is left to review."""
    from voxloop.steps.review import skip

    with opened(ctx) as ws:
        decision = skip(ws, utterance, by=by)
    if as_json:
        print_json(decision)
    else:
        typer.echo(f"skipped: {decision.utterance}")


@review.command("delete")
def review_delete(
    ctx: typer.Context, utterance: Named, by: By = "cli", seen: Seen = None, as_json: Json = False
) -> None:
    """Delete an utterance: out of every list and later dataset, and erased after `review_undo_s` seconds."""
    from voxloop.steps.review import delete

    with opened(ctx) as ws:
        decision = delete(ws, utterance, by=by, seen=seen)
    if as_json:
        print_json(decision)
    else:
        typer.echo(f"deleted: {decision.utterance}; `voxloop review undo` brings it back until it is erased")


@review.command("undo")
def review_undo(
    ctx: typer.Context,
    utterance: Named,
    by: By = "cli",
    decision: Annotated[int | None, typer.Option(help="To undo someone else's decision, pass its number.")] = None,
    as_json: Json = False,
) -> None:
    """Undo the last decision on an utterance. Run it again to undo the decision before that."""
    from voxloop.steps.review import show, undo

    with opened(ctx) as ws:
        noted = undo(ws, utterance, by=by, decision=decision)
        item = show(ws, noted.utterance)
    if as_json:
        print_json(noted)
    else:
        typer.echo(f"undone: utterance {item.number} is {item.utterance.status} again: {item.text}")


@review.command("bulk-accept")
@filtered
def review_bulk_accept(
    ctx: typer.Context,
    *,
    above: Annotated[float, typer.Option(help="Lowest confidence to accept: above 0, at most 1.")],
    by: By = "cli",
    where: Filters,
    warned: Annotated[bool, typer.Option("--warned", help="Also accept utterances with warnings.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Count the utterances without accepting them.")] = False,
    as_json: Json = False,
) -> None:
    """Accept every hypothesis whose confidence is high enough."""
    from voxloop.steps.review import bulk_accept

    with opened(ctx) as ws, progress("accepting", "utterances") as tell:
        done = bulk_accept(ws, above=above, by=by, where=where, warned=warned, dry_run=dry_run, progress=tell)
    if as_json:
        print_json(done)
        return
    said = "would be accepted" if dry_run else "accepted"
    typer.echo(f"{counted(done.accepted, 'utterance')} ({lasting(done.duration)}) {said}")
    if done.warned or done.taken:
        typer.echo(f"left: {done.warned:,} with warnings (accept them with --warned), {done.taken:,} under review")


@review.command("rank")
def review_rank(ctx: typer.Context, as_json: Json = False) -> None:
    """Reorder the review queue now. Workers also do this as reviews come in."""
    from voxloop.steps.review import prioritise

    with opened(ctx) as ws:
        ranking = prioritise(ws)
    if as_json:
        print_json(ranking)
        return
    typer.echo(f"{counted(ranking.waiting, 'waiting utterance')} ranked, {ranking.moved:,} moved")
    if ranking.without_vector:
        typer.echo(f"{ranking.without_vector:,} not indexed yet; index them with `voxloop worker --until-idle`")


@review.command("export")
@filtered
def review_export(
    ctx: typer.Context,
    *,
    path: Annotated[Path, typer.Argument(help="File to write.")],
    format: OfFormat = None,
    where: Filters,
    clips: Annotated[Path | None, typer.Option(help="Folder for each utterance's audio, as WAV.")] = None,
    audio_url: Annotated[
        str | None, typer.Option(metavar="URL", help="URL prefix to put before each clip's file name.")
    ] = None,
    all_versions: Annotated[
        bool, typer.Option("--all-versions", help="Export every reference instead of only the current one.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Export texts with authors, times and ids to .jsonl, .csv, or .json (Label Studio)."""
    from voxloop.steps.review import export

    with opened(ctx) as ws, progress("exporting", "utterances") as tell:
        done = export(
            ws,
            path,
            format=format.value if format else None,
            where=where,
            clips=clips,
            audio_url=audio_url,
            all_versions=all_versions,
            progress=tell,
        )
    if as_json:
        print_json(done)
        return
    typer.echo(
        f"{done.path}: {counted(done.utterances, 'utterance')}, {counted(done.references, 'reference')}, "
        f"{counted(done.clips, 'new clip')}"
    )
    if done.format == "label-studio":
        typer.echo(f"labelling configuration for Label Studio: {done.path.with_suffix('.xml')}")


@review.command("import")
def review_import(
    ctx: typer.Context,
    path: Annotated[Path, typer.Argument(help="File to read.")],
    format: OfFormat = None,
    by: By = "cli",
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="On a conflict, replace the reference with the file's text.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show what would be imported without importing it.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Import texts from `review export`, from Label Studio, or from any file with the columns utterance and text."""
    from voxloop.steps.review import import_reviews

    with opened(ctx) as ws, progress("importing", "utterances") as tell:
        done = import_reviews(
            ws,
            path,
            by=by,
            format=format.value if format else None,
            overwrite=overwrite,
            dry_run=dry_run,
            progress=tell,
        )
    if as_json:
        print_json(done)
        return
    typer.echo(
        f"{done.new} new, {done.same} unchanged, {done.conflicting} conflicting, {done.unknown} unknown, "
        f"{done.refused} unreadable, {done.without} without text{' (dry run: nothing imported)' if dry_run else ''}"
    )
    if done.notices:
        table(
            ["", "utterance", "why"],
            [[notice.outcome, _short_utterance(notice.utterance), notice.message] for notice in done.notices[:20]],
        )
    if len(done.notices) > 20:
        typer.echo(f"and {len(done.notices) - 20} more; --json lists all of them")


@review.command("stats")
def review_stats(ctx: typer.Context, as_json: Json = False) -> None:
    """Show review progress, reviewers and speed."""
    from voxloop.steps.review import stats

    with opened(ctx) as ws:
        found = stats(ws)
    if as_json:
        print_json(found)
        return
    typer.echo(
        f"{found.reviewed:,} reviewed and {found.rejected:,} rejected of {counted(found.utterances, 'utterance')} "
        f"({percent(found.share)})\n"
        f"{lasting(3600 * found.reviewed_hours)} of {lasting(3600 * found.hours)} of audio reviewed\n"
        f"{found.waiting:,} waiting, {found.taken:,} under review now"
    )
    if found.sessions:
        pace = "" if found.seconds is None else f", median {lasting(found.seconds)} per utterance"
        typer.echo(
            f"{counted(found.sessions, 'session')}, {found.entries_per_session:.1f} utterances each on average{pace}"
        )
    if not found.reviewers:
        return
    table(
        ["reviewer", "saved", "accepted", "in bulk", "rejected", "skipped", "imported", "undone", "s each", "sessions"],
        [
            [
                one.by,
                one.saved,
                one.accepted,
                one.bulk_accepted,
                one.rejected,
                one.skipped,
                one.imported,
                one.undone,
                one.seconds,
                one.sessions,
            ]
            for one in found.reviewers
        ],
    )
