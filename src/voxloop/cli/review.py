"""review list, next, show, diff, save, accept, reject, skip, undo, bulk-accept, rank, export, import, stats."""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer

from voxloop.cli.screen import By, Json, alignment, opened, percent, print_json, progress, short, table, when
from voxloop.errors import UsageError

if TYPE_CHECKING:
    from voxloop.steps.review import Difference, Filters, Item
    from voxloop.steps.review.warnings import WarningKind

review = typer.Typer(no_args_is_help=True, help="People's corrections: what to look at first, decide, exchange.")


class Status(StrEnum):
    new = "new"
    transcribed = "transcribed"
    reviewed = "reviewed"
    rejected = "rejected"


class ExchangeFormat(StrEnum):
    jsonl = "jsonl"
    csv = "csv"
    label_studio = "label-studio"


DATES = ["%Y-%m-%d", "%Y-%m-%dT%H:%M", "%Y-%m-%dT%H:%M:%S"]

OfStatus = Annotated[Status | None, typer.Option("--status", help="Only utterances of this status.")]
OfSpeaker = Annotated[str | None, typer.Option("--speaker", help="Only this speaker's.")]
OfLanguage = Annotated[str | None, typer.Option("--language", help="Only of this language (ISO 639-1).")]
MinConfidence = Annotated[float | None, typer.Option(help="Only machine texts at least so confident, 0 to 1.")]
MaxConfidence = Annotated[float | None, typer.Option(help="Only machine texts at most so confident.")]
Since = Annotated[datetime | None, typer.Option(formats=DATES, help="Only taken in since then.")]
Until = Annotated[datetime | None, typer.Option(formats=DATES, help="Only taken in before then.")]
Contains = Annotated[
    str | None, typer.Option(help="Only where the text has this in it, within words, too, whatever its case.")
]
OfWarning = Annotated[
    str | None, typer.Option("--warning", help="Only with this warning, such as `noisy`; `any` or `none`.")
]
Seen = Annotated[
    str | None,
    typer.Option(help="The reference that you saw, as `review show` tells; empty: none. Refused where it changed."),
]
OfFormat = Annotated[ExchangeFormat | None, typer.Option("--format", help="If the name does not tell it.")]


def register(app: typer.Typer) -> None:
    app.add_typer(review, name="review")


def _filters(
    *,
    status: Status | None = None,
    speaker: str | None = None,
    language: str | None = None,
    min_confidence: float | None = None,
    max_confidence: float | None = None,
    since: datetime | None = None,
    until: datetime | None = None,
    contains: str | None = None,
    warning: str | None = None,
) -> Filters:
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
    )


@review.command("list")
def review_list(
    ctx: typer.Context,
    status: OfStatus = None,
    speaker: OfSpeaker = None,
    language: OfLanguage = None,
    min_confidence: MinConfidence = None,
    max_confidence: MaxConfidence = None,
    since: Since = None,
    until: Until = None,
    contains: Contains = None,
    warning: OfWarning = None,
    limit: Annotated[int, typer.Option(help="How many at most.", min=1)] = 20,
    after: Annotated[str | None, typer.Option(help="Go on behind this `cursor` of the last page.")] = None,
    as_json: Json = False,
) -> None:
    """Utterances, the least certain and least like what is reviewed first."""
    from voxloop.steps.review import page

    where = _filters(
        status=status,
        speaker=speaker,
        language=language,
        min_confidence=min_confidence,
        max_confidence=max_confidence,
        since=since,
        until=until,
        contains=contains,
        warning=warning,
    )
    with opened(ctx) as ws:
        found = page(ws, where=where, limit=limit, after=after)
    if as_json:
        print_json([_item_json(item) for item in found.items])
        return
    table(
        ["utterance", "s", "speaker", "status", "confidence", "warnings", "text"],
        [
            [
                _short_utterance(item.utterance.id),
                round(item.utterance.duration, 1),
                item.utterance.speaker,
                item.utterance.status,
                item.hypothesis.confidence if item.hypothesis else None,
                ", ".join(warning.kind for warning in item.warnings),
                item.text,
            ]
            for item in found.items
        ],
        empty="no such utterances: `voxloop status` says what there is",
    )
    if found.after:
        typer.echo(f"there are more: --after {found.after}")


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
        "warnings": item.warnings,
        "version": item.version,
        "cursor": item.cursor,
    }


@review.command("next")
def review_next(
    ctx: typer.Context,
    by: By = "cli",
    speaker: OfSpeaker = None,
    language: OfLanguage = None,
    min_confidence: MinConfidence = None,
    max_confidence: MaxConfidence = None,
    contains: Contains = None,
    warning: OfWarning = None,
    as_json: Json = False,
) -> None:
    """Take the next utterance to review: no other reviewer gets it for a while."""
    from voxloop.steps import review as step

    where = _filters(
        speaker=speaker,
        language=language,
        min_confidence=min_confidence,
        max_confidence=max_confidence,
        contains=contains,
        warning=warning,
    )
    with opened(ctx) as ws:
        turn = step.next(ws, by=by, where=where)
    if as_json:
        print_json(_item_json(turn.item) | {"by": turn.by, "taken": turn.taken, "until": turn.until} if turn else None)
        return
    if turn is None:
        typer.echo("nothing waits for review")
        return
    _tell(turn.item)
    typer.echo(f"yours for {(turn.until - turn.taken) / 60:.0f} minutes")
    typer.echo(f"next: voxloop review save|accept|reject|skip {_short_utterance(turn.item.utterance.id)}")


@review.command("show")
def review_show(ctx: typer.Context, utterance: str, as_json: Json = False) -> None:
    """One utterance with every version of its text and every decision."""
    from voxloop.steps.review import history, show

    with opened(ctx) as ws:
        item = show(ws, utterance)
        decisions = history(ws, item.utterance.id)
    if as_json:
        print_json(_item_json(item) | {"decisions": decisions})
        return
    _tell(item)
    if item.reference:
        typer.echo(f"the reference is {item.reference.id}: who replaces another's gives it as --seen")
    if decisions:
        table(
            ["decision", "by", "what", "when", "reason"],
            [
                [str(d.seq), d.by, f"undo of {d.undoes}" if d.undoes else d.kind, when(d.created), d.reason]
                for d in decisions
            ],
        )


def _tell(item: Item) -> None:
    found = item.utterance
    typer.echo(
        f"{found.id}\n{found.duration:.2f} s, speaker {found.speaker or 'unknown'}, {found.status}, "
        f"split {found.split or 'not decided'}"
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


@review.command("diff")
def review_diff(
    ctx: typer.Context,
    utterance: Annotated[str | None, typer.Argument(help="An utterance's id.")] = None,
    version: Annotated[
        str | None,
        typer.Option(
            help="The text looked at: a number of `review show`, an id or a kind; the machine's, if not given."
        ),
    ] = None,
    against: Annotated[
        str | None, typer.Option(help="The text taken as right, named likewise; the reference, if not given.")
    ] = None,
    worst: Annotated[
        int | None, typer.Option(help="Instead of one utterance: so many with the most word errors.", min=1)
    ] = None,
    as_written: Annotated[
        bool, typer.Option("--as-written", help="Without the normaliser: case and punctuation count.")
    ] = False,
    speaker: OfSpeaker = None,
    language: OfLanguage = None,
    min_confidence: MinConfidence = None,
    max_confidence: MaxConfidence = None,
    since: Since = None,
    until: Until = None,
    contains: Contains = None,
    warning: OfWarning = None,
    as_json: Json = False,
) -> None:
    """What the machine heard otherwise than the reference has it, word under word."""
    from voxloop.steps import review as step

    where = _filters(
        speaker=speaker,
        language=language,
        min_confidence=min_confidence,
        max_confidence=max_confidence,
        since=since,
        until=until,
        contains=contains,
        warning=warning,
    )
    if (utterance is None) == (worst is None):
        raise UsageError("name either an utterance or how many of the worst, such as --worst 10")
    if worst is not None and (version or against):
        raise UsageError(
            "--worst holds machine texts against references: --version and --against are for one utterance"
        )
    if utterance is not None and where != step.Filters():
        raise UsageError("filters narrow --worst; they say nothing of one utterance")
    with opened(ctx) as ws:
        if utterance is not None:
            found = [step.diff(ws, utterance, version=version, against=against, written=as_written)]
        else:
            found = step.worst(ws, limit=worst or 0, where=where, written=as_written)
    if as_json:
        print_json([_diff_json(one) for one in found] if utterance is None else _diff_json(found[0]))
        return
    if not found:
        typer.echo("no machine text differs from its reference")
    for place, one in enumerate(found):
        if place:
            typer.echo()
        _tell_diff(one)


def _diff_json(one: Difference) -> dict[str, object]:
    words, characters = one.found.words, one.found.characters
    return {
        "utterance": one.utterance.id,
        "reference": one.reference,
        "hypothesis": one.hypothesis,
        "normaliser": one.found.normaliser,
        "pieces": one.found.pieces,
        "words": words,
        "wer": words.rate,
        "characters": characters,
        "cer": characters.rate,
    }


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
    """Keep a corrected text as the reference."""
    from voxloop.steps.review import save

    with opened(ctx) as ws:
        saved = save(ws, utterance, text, by=by, seen=seen)
    if as_json:
        print_json(saved)
    else:
        typer.echo(f"saved: {saved.text}")


@review.command("accept")
def review_accept(ctx: typer.Context, utterance: str, by: By = "cli", seen: Seen = None, as_json: Json = False) -> None:
    """Take the machine's text as right."""
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
    reason: Annotated[str, typer.Option(help="Why it may not be used.")],
    by: By = "cli",
    seen: Seen = None,
    as_json: Json = False,
) -> None:
    """Leave an utterance out of every dataset to come."""
    from voxloop.steps.review import reject

    with opened(ctx) as ws:
        found = reject(ws, utterance, reason=reason, by=by, seen=seen)
    if as_json:
        print_json(found)
    else:
        typer.echo(f"rejected: {found.id}")


@review.command("skip")
def review_skip(ctx: typer.Context, utterance: str, by: By = "cli", as_json: Json = False) -> None:
    """Leave an utterance for later: it comes back when its time is up or nothing else waits."""
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
    decision: Annotated[int | None, typer.Option(help="Its number, to undo another person's decision.")] = None,
    as_json: Json = False,
) -> None:
    """Take back the last decision on an utterance; again, the one before it."""
    from voxloop.steps.review import show, undo

    with opened(ctx) as ws:
        noted = undo(ws, utterance, by=by, decision=decision)
        item = show(ws, noted.utterance)
    if as_json:
        print_json(noted)
    else:
        typer.echo(f"undone: {item.utterance.id} is {item.utterance.status} again: {item.text}")


@review.command("bulk-accept")
def review_bulk_accept(
    ctx: typer.Context,
    above: Annotated[float, typer.Option(help="Confidence from which machine text is taken, above 0 to 1.")],
    by: By = "cli",
    speaker: OfSpeaker = None,
    language: OfLanguage = None,
    since: Since = None,
    until: Until = None,
    contains: Contains = None,
    warned: Annotated[bool, typer.Option("--warned", help="Also those with warnings.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only count.")] = False,
    as_json: Json = False,
) -> None:
    """Take the machine's text as right wherever it is confident."""
    from voxloop.steps.review import bulk_accept

    where = _filters(speaker=speaker, language=language, since=since, until=until, contains=contains)
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
    """Find the order of what waits anew, now; it happens by itself as reviews are made."""
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
def review_export(
    ctx: typer.Context,
    path: Path,
    format: OfFormat = None,
    status: OfStatus = None,
    speaker: OfSpeaker = None,
    language: OfLanguage = None,
    min_confidence: MinConfidence = None,
    max_confidence: MaxConfidence = None,
    since: Since = None,
    until: Until = None,
    contains: Contains = None,
    warning: OfWarning = None,
    clips: Annotated[Path | None, typer.Option(help="Folder to write each utterance's audio to.")] = None,
    audio_url: Annotated[str | None, typer.Option(help="Put before a clip's name where audio is named.")] = None,
    all_versions: Annotated[bool, typer.Option("--all-versions", help="Every reference, not only the last.")] = False,
    as_json: Json = False,
) -> None:
    """Write texts with authors, times and ids: .jsonl, .csv, or .json for Label Studio."""
    from voxloop.steps.review import export

    where = _filters(
        status=status,
        speaker=speaker,
        language=language,
        min_confidence=min_confidence,
        max_confidence=max_confidence,
        since=since,
        until=until,
        contains=contains,
        warning=warning,
    )
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
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Where texts conflict, take the file's.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would come of it.")] = False,
    as_json: Json = False,
) -> None:
    """Take texts from a file that export or Label Studio wrote, or with the columns utterance and text."""
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
    """How much is reviewed, by whom, and how fast."""
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
