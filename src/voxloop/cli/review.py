"""review list, next, show, diff, save, accept, reject, skip, undo, bulk-accept, rank, export, import, stats."""

from __future__ import annotations

import sys
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from voxloop.cli.filters import filtered
from voxloop.cli.screen import By, Json, alignment, clock, opened, percent, print_json, progress, short, table, when
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
    typer.Option(help="Id of the reference that you saw, empty for none; refused if it has changed since."),
]
OfFormat = Annotated[
    ExchangeFormat | None, typer.Option("--format", help="Format of the file.", show_default="by the file's suffix")
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
    autoplay: Annotated[bool, typer.Option("--play/--no-play", help="Play each utterance as it comes up.")] = True,
) -> None:
    """Review in the terminal: hear, correct, accept or reject, by single keys. Or use one of the commands below."""
    from voxloop.steps.review import Filters as Given

    if ctx.invoked_subcommand is not None:
        if where != Given():
            raise UsageError(f"give the filters after the command: voxloop review {ctx.invoked_subcommand} --speaker …")
        return
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        raise UsageError(
            "an interactive review needs a terminal; in scripts use `voxloop review next`, `save`, `accept` and "
            "`reject`, or `review export` and `review import`"
        )
    from voxloop.cli.reviewing import Reviewing

    with opened(ctx) as ws:
        Reviewing(ws=ws, by=by, where=where, play=None, autoplay=autoplay).run()


@review.command("list")
@filtered
def review_list(
    ctx: typer.Context,
    *,
    where: Filters,
    limit: Annotated[int, typer.Option(help="Number of utterances at most.", min=1)] = 20,
    after: Annotated[str | None, typer.Option(help="Continue after this cursor, which the last page printed.")] = None,
    as_json: Json = False,
) -> None:
    """List utterances, those that most need review first."""
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
        empty="no utterance matches: `voxloop status` counts what there is",
    )
    if found.after:
        typer.echo(f"there are more: --after {found.after}")


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
    """Take the next utterance to review; other reviewers are not offered it for a while."""
    from voxloop.steps import review as step

    with opened(ctx) as ws:
        turn = step.next(ws, by=by, where=where)
    if as_json:
        print_json(turn)
        return
    if turn is None:
        typer.echo("nothing waits for review")
        return
    _tell(turn.item)
    typer.echo(f"yours for {(turn.until - turn.taken) / 60:.0f} minutes")
    typer.echo(f"next: voxloop review play|save|accept|reject|skip {turn.item.number}")


@review.command("show")
def review_show(ctx: typer.Context, utterance: str, as_json: Json = False) -> None:
    """Show an utterance with every version of its text and every decision."""
    from voxloop.steps.review import item_history

    with opened(ctx) as ws:
        found = item_history(ws, utterance)
    if as_json:
        print_json(found)
        return
    _tell(found.item)
    if found.item.reference:
        typer.echo(f"the reference is {found.item.reference.id}: to replace another person's, give it as --seen")
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
        typer.echo(f"level {found.quality.level_dbfs:.0f} dBFS, SNR {snr}, clipping {found.quality.clipping:.1%}")
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
def review_play(ctx: typer.Context, utterance: str) -> None:
    """Play an utterance with a player that this machine has."""
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
    utterance: Annotated[str | None, typer.Argument(help="An utterance's id.")] = None,
    version: Annotated[
        str | None,
        typer.Option(
            help="Text to look at: its number in `review show`, an id, or a kind.", show_default="the machine's text"
        ),
    ] = None,
    against: Annotated[
        str | None, typer.Option(help="Text taken as right, named in the same ways.", show_default="the reference")
    ] = None,
    worst: Annotated[
        int | None, typer.Option(help="Instead of one utterance, show this many with the most word errors.", min=1)
    ] = None,
    as_written: Annotated[
        bool, typer.Option("--as-written", help="Compare without the normaliser, so that case and punctuation count.")
    ] = False,
    where: Filters,
    as_json: Json = False,
) -> None:
    """Compare what the machine heard with the reference, word under word."""
    from voxloop.steps import review as step

    if (utterance is None) == (worst is None):
        raise UsageError("name either an utterance or a number of the worst ones, such as --worst 10")
    if worst is not None and (version or against):
        raise UsageError(
            "--worst compares machine texts with references: --version and --against are for one utterance"
        )
    if utterance is not None and where != step.Filters():
        raise UsageError("filters choose among the worst: give --worst with them, or one utterance without them")
    with opened(ctx) as ws:
        if utterance is not None:
            found = [step.diff(ws, utterance, version=version, against=against, written=as_written)]
        else:
            found = step.worst(ws, limit=worst or 0, where=where, written=as_written)
    if as_json:
        print_json(found if utterance is None else found[0])
        return
    if not found:
        typer.echo("no machine text differs from its reference")
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
        f"{words.errors} errors in {words.units} words: {words.substitutions} substituted, {words.deletions} deleted, "
        f"{words.insertions} inserted; WER {percent(words.rate)}, CER {percent(one.found.characters.rate)}"
    )


@review.command("save")
def review_save(
    ctx: typer.Context, utterance: str, text: str, by: By = "cli", seen: Seen = None, as_json: Json = False
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
def review_accept(ctx: typer.Context, utterance: str, by: By = "cli", seen: Seen = None, as_json: Json = False) -> None:
    """Accept the machine's text as the reference."""
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
    utterance: str,
    reason: Annotated[str, typer.Option(help="Why it must not be used.")],
    by: By = "cli",
    seen: Seen = None,
    as_json: Json = False,
) -> None:
    """Keep an utterance out of every future dataset."""
    from voxloop.steps.review import reject

    with opened(ctx) as ws:
        found = reject(ws, utterance, reason=reason, by=by, seen=seen)
    if as_json:
        print_json(found)
    else:
        typer.echo(f"rejected: {found.id}")


@review.command("skip")
def review_skip(ctx: typer.Context, utterance: str, by: By = "cli", as_json: Json = False) -> None:
    """Put an utterance off; it is offered again after `review_skip_s` seconds, or when nothing else waits."""
    from voxloop.steps.review import skip

    with opened(ctx) as ws:
        decision = skip(ws, utterance, by=by)
    if as_json:
        print_json(decision)
    else:
        typer.echo(f"skipped: {decision.utterance}")


@review.command("undo")
def review_undo(
    ctx: typer.Context,
    utterance: str,
    by: By = "cli",
    decision: Annotated[
        int | None, typer.Option(help="Number of the decision, to undo one that another person made.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Undo the last decision on an utterance; run again, it undoes the one before."""
    from voxloop.steps.review import show, undo

    with opened(ctx) as ws:
        noted = undo(ws, utterance, by=by, decision=decision)
        item = show(ws, noted.utterance)
    if as_json:
        print_json(noted)
    else:
        typer.echo(f"undone: {item.utterance.id} is {item.utterance.status} again: {item.text}")


@review.command("bulk-accept")
@filtered
def review_bulk_accept(
    ctx: typer.Context,
    *,
    above: Annotated[float, typer.Option(help="Lowest confidence that is accepted, above 0 and at most 1.")],
    by: By = "cli",
    where: Filters,
    warned: Annotated[bool, typer.Option("--warned", help="Accept utterances with warnings, too.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Count only; change nothing.")] = False,
    as_json: Json = False,
) -> None:
    """Accept the machine's text wherever its confidence is high enough."""
    from voxloop.steps.review import bulk_accept

    with opened(ctx) as ws, progress("accepting", "utterances") as tell:
        done = bulk_accept(ws, above=above, by=by, where=where, warned=warned, dry_run=dry_run, progress=tell)
    if as_json:
        print_json(done)
        return
    said = "would be accepted" if dry_run else "accepted"
    typer.echo(f"{done.accepted} utterances ({done.duration / 60:.1f} min) {said}")
    if done.warned or done.taken:
        typer.echo(f"left: {done.warned} with warnings (--warned takes them), {done.taken} in reviewers' hands")


@review.command("rank")
def review_rank(ctx: typer.Context, as_json: Json = False) -> None:
    """Reorder what waits for review now; it also happens by itself as reviews come in."""
    from voxloop.steps.review import prioritise

    with opened(ctx) as ws:
        ranking = prioritise(ws)
    if as_json:
        print_json(ranking)
        return
    typer.echo(f"{ranking.waiting} waiting utterances ordered, {ranking.moved} moved")
    if ranking.without_vector:
        typer.echo(f"{ranking.without_vector} are not indexed yet: `voxloop worker --until-idle` does that")


@review.command("export")
@filtered
def review_export(
    ctx: typer.Context,
    *,
    path: Path,
    format: OfFormat = None,
    where: Filters,
    clips: Annotated[Path | None, typer.Option(help="Folder to write each utterance's audio to, as WAV.")] = None,
    audio_url: Annotated[
        str | None, typer.Option(help="URL prefix for audio: it is put before each clip's file name.")
    ] = None,
    all_versions: Annotated[
        bool, typer.Option("--all-versions", help="Export every reference, not only the current one.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Export texts with authors, times and ids: .jsonl, .csv, or .json for Label Studio."""
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
    typer.echo(f"{done.path}: {done.utterances} utterances, {done.references} references, {done.clips} clips written")
    if done.format == "label-studio":
        typer.echo(f"the labelling configuration for Label Studio: {done.path.with_suffix('.xml')}")


@review.command("import")
def review_import(
    ctx: typer.Context,
    path: Path,
    format: OfFormat = None,
    by: By = "cli",
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Take the file's text where it conflicts with the reference.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Report only; change nothing.")] = False,
    as_json: Json = False,
) -> None:
    """Import texts from a file that export or Label Studio wrote, or one with the columns utterance and text."""
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
        f"{done.new} new, {done.same} same, {done.conflicting} conflicting, {done.unknown} unknown, "
        f"{done.refused} unreadable, {done.without} without a text{' (nothing written)' if dry_run else ''}"
    )
    if done.notices:
        table(
            ["", "utterance", "why"],
            [[notice.outcome, _short_utterance(notice.utterance), notice.message] for notice in done.notices[:20]],
        )
    if len(done.notices) > 20:
        typer.echo(f"and {len(done.notices) - 20} more: --json lists them")


@review.command("stats")
def review_stats(ctx: typer.Context, as_json: Json = False) -> None:
    """Show how much is reviewed, by whom, and how fast."""
    from voxloop.steps.review import stats

    with opened(ctx) as ws:
        found = stats(ws)
    if as_json:
        print_json(found)
        return
    typer.echo(
        f"{found.reviewed} reviewed and {found.rejected} rejected of {found.utterances} ({percent(found.share)}), "
        f"{found.reviewed_hours:.2f} of {found.hours:.2f} hours; {found.waiting} wait, {found.taken} in hand"
    )
    if found.sessions:
        pace = "" if found.seconds is None else f", {found.seconds:.0f} s each (median)"
        typer.echo(f"sessions: {found.sessions}, of {found.entries_per_session:.1f} entries on average{pace}")
    if not found.reviewers:
        return
    table(
        ["by", "saved", "accepted", "in bulk", "rejected", "skipped", "imported", "undone", "s each", "sessions"],
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
