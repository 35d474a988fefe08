"""Whether one model hears better than another: the verdict that promotion rests on.

Reads what both models heard of the same frozen references (`evaluation.py`) and decodes nothing. How often it is wrong
and what it finds is measured in docs/gate.md.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from voxloop.errors import ConflictError, UsageError
from voxloop.families.contract import Decoding
from voxloop.records import Dataset, Evaluation, Model, Split, Verdict
from voxloop.steps.evaluation import Scored, scored_rows, significance, wer
from voxloop.steps.evaluation.words import Change, SliceChange, changes, slice_changes
from voxloop.steps.gate.guards import (
    Guard,
    clusters,
    engine_guard,
    general_guard,
    paired,
    served_guards,
    slice_guard,
)
from voxloop.stores import tables

if TYPE_CHECKING:
    from voxloop.settings import Settings
    from voxloop.workspace import Workspace

SAME_TEST = 0.5  # share of a test set's utterances that another test set holds, from which on it counts as the same
WORSE_ERROR = 0.05  # chance of calling an equally good model clearly worse
MUCH_LARGER = 100  # times as large a test as there is: not worth naming


@dataclass(frozen=True, kw_only=True, slots=True)
class Judgement:
    """What was found on the rows that two models heard, and what follows from it."""

    found: significance.Paired
    counted_by: str  # speaker or recording
    accepted: float  # chance of luck at most
    needed_utterances: int | None  # so many would show the improvement seen; None: it is shown, or there is none
    guards: tuple[Guard, ...]
    verdict: Verdict
    reasons: tuple[str, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Comparison:
    """A challenger beside a champion on the same frozen references, with a verdict. Differences below 0 are better."""

    challenger: str  # models
    champion: str
    challenger_evaluation: str
    champion_evaluation: str
    dataset: str
    split: Split
    normaliser: str
    utterances: int
    recordings: int
    words: int
    wer_before: float
    wer_after: float
    cer_before: float
    cer_after: float
    difference: float
    difference_low: float  # ends of the 95 % interval
    difference_high: float
    probability: float  # that the challenger is better, by bootstrap
    chance: float  # that equally good models differ so much in the challenger's favour
    models_measured: int  # on this test set so far, these two included
    guards: tuple[Guard, ...]
    verdict: Verdict
    reasons: tuple[str, ...]  # what led to the verdict, in words
    accepted: float = 0.05  # the chance at most that promotion accepts, for this challenger on this test set
    rank: int = 1  # which challenger on this test set this is
    counted_by: str = "recording"  # or speaker: what bootstrap and permutation draw
    needed_utterances: int | None = None  # so many would show the improvement seen; None: it is shown, or there is none
    general: str | None = None  # dataset that was asked as well

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Comparison:
        """The comparison that `as_dict` made a dictionary of, also after a way through JSON."""
        guards = tuple(Guard(**guard) for guard in values["guards"])
        return cls(**values | {"guards": guards, "reasons": tuple(values["reasons"])})


@dataclass(frozen=True, kw_only=True, slots=True)
class SideBySide:
    """Two models on the same references: the judgement, and where each of them hears better."""

    evaluation: Evaluation
    against: Evaluation
    comparison: Comparison
    slices: tuple[SliceChange, ...]
    better: tuple[Change, ...]  # utterances that got better, the most changed first
    worse: tuple[Change, ...]
    same: int  # utterances with as many errors as before

    def as_dict(self) -> dict[str, Any]:
        return {f.name: getattr(self, f.name) for f in fields(self) if f.name != "same"}


def side_by_side(ws: Workspace, evaluation: Evaluation, against: Evaluation) -> SideBySide:
    """Compare an evaluation with another, down to the utterance. Raises as `compare`."""
    comparison = compare(ws, evaluation, against)
    before, after = scored_rows(ws, against), scored_rows(ws, evaluation)
    better, worse = changes(before, after)
    return SideBySide(
        evaluation=evaluation,
        against=against,
        comparison=comparison,
        slices=tuple(slice_changes(before, after)),
        better=tuple(better),
        worse=tuple(worse),
        same=len(before) - len(better) - len(worse),
    )


def compare(
    ws: Workspace,
    challenger: Evaluation,
    champion: Evaluation,
    *,
    general: tuple[Evaluation, Evaluation] | None = None,
    engines: Sequence[tuple[Evaluation, Evaluation]] = (),
) -> Comparison:
    """Judge the challenger by what both models heard. Raises UsageError where the two cannot be compared.

    `general` are both models' evaluations on a set that is only guarded, `engines` those on other engines that serve.
    """
    before, after = _rows(ws, challenger, champion)
    margins = ws.settings
    found_guards = served_guards(challenger, champion, before, after, margins)
    found_guards += [engine_guard(*_rows(ws, *pair), engine=pair[0].decoding["engine"]) for pair in engines]
    if general:
        with ws.read() as reader:
            name = reader.get(Dataset, general[0].dataset).name
        rows = _rows(ws, *general)
        found_guards.append(general_guard(*rows, name=name, margin=margins.promote_general_margin))
    measured = _models_measured(ws, challenger)
    challengers = [model for model in measured if model != champion.model]
    rank = challengers.index(challenger.model) + 1 if challenger.model in challengers else 1
    judged = judge(before, after, rank=rank, guards=found_guards, settings=margins)
    return Comparison(
        challenger=challenger.model,
        champion=champion.model,
        challenger_evaluation=challenger.id,
        champion_evaluation=champion.id,
        dataset=challenger.dataset,
        split=challenger.split,
        normaliser=challenger.normaliser,
        utterances=len(before),
        recordings=len({row.recording for row in before}),
        words=sum(row.words for row in before),
        wer_before=wer(before),
        wer_after=wer(after),
        cer_before=champion.scores["cer"],
        cer_after=challenger.scores["cer"],
        difference=judged.found.difference,
        difference_low=judged.found.low,
        difference_high=judged.found.high,
        probability=judged.found.probability,
        chance=judged.found.chance,
        models_measured=len(measured),
        guards=judged.guards,
        verdict=judged.verdict,
        reasons=judged.reasons,
        accepted=judged.accepted,
        rank=rank,
        counted_by=judged.counted_by,
        needed_utterances=judged.needed_utterances,
        general=general[0].dataset if general else None,
    )


def _rows(ws: Workspace, challenger: Evaluation, champion: Evaluation) -> tuple[list[Scored], list[Scored]]:
    """What champion and challenger heard. Raises where one of them was asked otherwise than the other."""
    asked = [
        {"dataset": one.dataset, "split": one.split, "normaliser": one.normaliser, "decoding": decoding}
        for one, decoding in zip((champion, challenger), _decodings(ws, champion, challenger), strict=True)
    ]
    for name, left in asked[0].items():
        right = asked[1][name]
        if left != right:
            raise UsageError(
                f"the two evaluations differ in {name} ({left} and {right}), so their errors do not compare: "
                "evaluate both models on the same dataset with the same settings"
            )
    before, after = scored_rows(ws, champion), scored_rows(ws, challenger)
    if [(row.utterance, row.reference) for row in before] != [(row.utterance, row.reference) for row in after]:
        raise ConflictError(
            f"evaluations {champion.id} and {challenger.id} do not hold the same references in the same order: "
            "one of their files was changed; `voxloop verify` finds which"
        )
    return before, after


def _decodings(ws: Workspace, champion: Evaluation, challenger: Evaluation) -> list[dict[str, Any]]:
    """What decided the texts of both. Models of two families are each compared on the engine that serves them."""
    found = [Decoding.from_dict(one.decoding).identity() for one in (champion, challenger)]
    with ws.read() as reader:
        models = [reader.find(Model, one.model) for one in (champion, challenger)]
    if len({model.family for model in models if model}) > 1:
        found = [{name: value for name, value in one.items() if name != "engine"} for one in found]
    return found


def _models_measured(ws: Workspace, challenger: Evaluation) -> list[str]:
    """Models measured on this test set or on one that is mostly the same, in the order of their first time.

    Freezing again with a few clips more must not make a much used test set look fresh.
    """
    held, e = tables.dataset_utterance, tables.evaluation.c
    mine = sa.select(held.c.utterance).where(held.c.dataset == challenger.dataset, held.c.split == challenger.split)
    with ws.read() as reader:
        shared: dict[str, int] = dict(
            reader.connection.execute(
                sa.select(held.c.dataset, sa.func.count())
                .where(held.c.split == challenger.split, held.c.utterance.in_(mine))
                .group_by(held.c.dataset)
            ).all()
        )
        least = SAME_TEST * shared.get(challenger.dataset, 0)
        same = {challenger.dataset, *(dataset for dataset, number in shared.items() if number >= least)}
        statement = (
            sa.select(e.model)
            .where(e.dataset.in_(sorted(same)), e.split == challenger.split)
            .group_by(e.model)
            .order_by(sa.func.min(e.created), e.model)
        )
        return list(reader.connection.execute(statement).scalars())


def judge(
    before: Sequence[Scored],
    after: Sequence[Scored],
    *,
    rank: int,
    settings: Settings,
    guards: Sequence[Guard] = (),
    resamples: int | None = None,
) -> Judgement:
    """Champion and challenger on the same rows, `rank` saying which challenger on this test set it is.

    `promote` asks for all of: enough utterances; an improvement of
    `promote_min_improvement`; less luck than is accepted, by the permutation test;
    every guard. `reject` means no better, too little better, or a guard that failed.
    What looks better but may be luck is `insufficient evidence`, and so is every test
    that is too small. `guards` are those found elsewhere; the slices are seen to here.
    """
    counted_by, names = clusters(before)
    counted = f"{len(set(names))} {counted_by}s" if len(set(names)) > 1 else f"one {counted_by}"
    # Half of an utterance's words are taken off what was saved, for rare large errors that this test may not hold.
    unheard = math.ceil(sum(row.words for row in before) / max(len(before), 1) / 2)
    found = paired(before, after, unheard=unheard, resamples=resamples)
    guards = (slice_guard(before, after, margin=settings.promote_slice_margin), *guards)
    error = 1 - settings.promote_confidence
    accepted = significance.share_of_error(error, rank)
    factor = significance.growth(found, accepted)
    needed = math.ceil(factor * len(before)) if factor <= MUCH_LARGER else None
    verdict, reasons = verdict_of(
        found,
        rates=(wer(before), wer(after)),
        utterances=len(before),
        counted=counted,
        needed_utterances=needed,
        guards=guards,
        accepted=accepted,
        settings=settings,
    )
    if rank > 1:
        reasons += (
            f"{rank - 1} other {'model was' if rank == 2 else 'models were'} measured on this test set before, and the "
            f"best of many looks better than it is: the luck accepted is {100 * accepted:.2g} %, for the first it was "
            f"{100 * significance.share_of_error(error, 1):.2g} %; a test set that is mostly fresh speech starts anew",
        )
    speakers = len({row.speaker for row in before if row.speaker})
    if verdict == "promote" and counted_by == "recording" and speakers:
        reasons += (
            f"shown for the {f'{speakers} speakers' if speakers > 1 else 'speaker'} of this test, not for others",
        )
    return Judgement(
        found=found,
        counted_by=counted_by,
        accepted=accepted,
        needed_utterances=needed if verdict == "insufficient evidence" else None,
        guards=guards,
        verdict=verdict,
        reasons=reasons,
    )


def verdict_of(
    found: significance.Paired,
    *,
    rates: tuple[float, float],
    utterances: int,
    counted: str,
    needed_utterances: int | None,
    guards: Sequence[Guard],
    accepted: float,
    settings: Settings,
) -> tuple[Verdict, tuple[str, ...]]:
    """The verdict and its reasons in words; `rates` are WER before and after, `counted` such as `12 recordings`."""
    before, after = (f"{100 * rate:.1f} %" for rate in rates)
    on = f"on {utterances} test utterances of {counted}"
    least = settings.promote_min_utterances
    if utterances < least:
        return "insufficient evidence", (
            f"only {utterances} test utterances, {least} are needed: review more and freeze a new dataset",
            f"word error rate {before} before, {after} after",
        )
    if found.difference >= 0:
        if found.chance_worse <= WORSE_ERROR:
            return "reject", (f"clearly worse: word error rate rose from {before} to {after} {on}",)
        how = "stayed at" if found.difference == 0 else f"went from {before} to"
        return "reject", (f"no better: word error rate {how} {after} {on}",)
    gain = f"word error rate fell from {before} to {after} {on}"
    span = f"95 % interval of the change: {points(found.low)} to {points(found.high)} points"
    failed = tuple(guard.finding for guard in guards if not (guard.passed or guard.unsure))
    if failed:
        return "reject", (*failed, f"although {gain}")
    saved = -found.difference / rates[0]
    if saved < settings.promote_min_improvement:
        return "reject", (
            f"better by too little: {gain}, which saves {100 * saved:.1f} of 100 errors; "
            f"{100 * settings.promote_min_improvement:g} are asked for",
        )
    luck = (
        f"models equally good would differ so much by luck in {_rare(found.chance)} of cases; "
        f"at most {100 * accepted:.2g} % are accepted"
    )
    unsure = tuple(guard.finding for guard in guards if not guard.passed)
    if found.chance > accepted + 1e-9:
        if needed_utterances is None:
            more = f"even {MUCH_LARGER} times as many would hardly show so small an improvement"
        else:
            more = (
                f"were the improvement to stay as large, {needed_utterances} test utterances "
                f"({needed_utterances - utterances} more) would show it in four of five cases"
            )
        return "insufficient evidence", (f"{gain}, but this may be luck", more, span, luck, *unsure)
    if unsure:
        return "insufficient evidence", (*unsure, f"although {gain}", span, luck)
    return "promote", (gain, span, luck)


def points(difference: float) -> str:
    """A difference of shares in percentage points, with its sign."""
    return f"{100 * difference:+.1f}"


def _rare(chance: float) -> str:
    return f"{100 * chance:.2g} %" if chance >= 1e-4 else "less than 0.01 %"
