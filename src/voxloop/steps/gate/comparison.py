"""Whether a challenger is better than a champion: the verdict that promotion rests on.

Compares the hypotheses that both models' evaluations stored for the same frozen references; nothing is decoded here.
Comparing is free: only `promotion.promote` charges the ledger. docs/gate.md measures the gate's error rate and power.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import TYPE_CHECKING, Any, Literal

from voxloop.errors import ConflictError, UsageError
from voxloop.families.decoding import Decoding
from voxloop.records import Dataset, Evaluation, Model, Split, Verdict
from voxloop.steps.datasets.splits import clips_for_test
from voxloop.steps.evaluation import Scored, parted, scored_rows, significance, texts_heard, wer
from voxloop.steps.evaluation.heard_texts import HEARD, NEW
from voxloop.steps.evaluation.words import Change, SliceChange, changes, slice_change, slice_changes
from voxloop.steps.gate import ledger
from voxloop.steps.gate.guards import (
    Guard,
    clusters,
    engine_guard,
    general_guard,
    paired,
    served_guards,
    slice_guard,
)
from voxloop.steps.gate.ledger import Limits

if TYPE_CHECKING:
    from voxloop.settings import Settings
    from voxloop.workspace import Workspace

WORSE_ERROR = 0.01  # chance of calling an equally good model clearly worse
FEW_DIFFER = 10  # with fewer recordings or speakers whose errors differ, the interval cannot rule out a gain
MUCH_LARGER = 100  # a test this many times as large as today's is not worth suggesting
EXAMPLE = 0.2  # share of errors saved that the advised test size assumes when no gain was seen

Rests = Literal["all texts", "new texts"]


@dataclass(frozen=True, kw_only=True, slots=True)
class TextRates:
    """WER of both models on the whole test or on a part of its texts."""

    texts: str  # all, new, or heard in training
    utterances: int
    words: int
    wer_before: float
    wer_after: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Found:
    """Statistics of two models on the same rows. The verdict also depends on the limit of p."""

    paired: significance.Paired
    before: float  # WER
    after: float
    utterances: int
    words: int
    recordings: int
    counted_by: str  # speaker or recording
    clusters: int
    speakers: int
    guards: tuple[Guard, ...]

    @property
    def errors(self) -> int:
        """Word errors of the champion."""
        return round(self.before * self.words)


@dataclass(frozen=True, kw_only=True, slots=True)
class Judgement:
    """The verdict on two models, with its reasons."""

    found: Found
    limits: Limits
    needed_utterances: int | None  # test size that would confirm the gain; None: unknown, or already shown
    verdict: Verdict
    reasons: tuple[str, ...]  # sentences, each a fact with its number
    next_step: str | None  # None: nothing is left to do


@dataclass(frozen=True, kw_only=True, slots=True)
class Comparison:
    """A challenger and a champion on the same frozen references, with a verdict. Negative differences are better.

    WER, differences and p are of the rows that the verdict `rests_on`; `texts` has the WER of all rows and of parts.
    """

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
    cer_before: float  # on the whole test
    cer_after: float
    difference: float
    difference_low: float  # ends of the 95 % interval
    difference_high: float
    probability: float  # that the challenger is better, by bootstrap
    chance: float  # p: that equally good models differ so much in the challenger's favour
    guards: tuple[Guard, ...]
    verdict: Verdict
    reasons: tuple[str, ...]  # what led to the verdict, in words
    next_step: str | None = None  # what to do, in words
    level: float = 0.05  # the p that promotion asks of this challenger on this test set
    counted_by: str = "recording"  # or speaker: what bootstrap and permutation draw
    needed_utterances: int | None = None  # test size that would confirm the gain; None: shown, or no gain
    general: str | None = None  # id of the general dataset, if one was measured too
    rests_on: Rests = "all texts"
    texts: tuple[TextRates, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Comparison:
        """Restore the result of `as_dict`, also after a JSON round trip or from an earlier version."""
        known = {name: value for name, value in values.items() if name in cls.__dataclass_fields__}
        known["level"] = values.get("level", values.get("accepted", 0.05))
        return cls(
            **known
            | {
                "guards": tuple(Guard(**guard) for guard in values["guards"]),
                "reasons": tuple(values["reasons"]),
                "texts": tuple(TextRates(**one) for one in values.get("texts", ())),
            }
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Findings:
    """Two evaluations side by side, not yet judged. `judged` turns them into a `Comparison`."""

    key: str  # of an attempt with these: `ledger.key`
    found: Found
    rests_on: Rests
    texts: tuple[TextRates, ...]
    challenger: Evaluation
    champion: Evaluation
    general: str | None

    def judged(self, limits: Limits, settings: Settings) -> Comparison:
        """The comparison, with the verdict at these limits of p."""
        made = judge(self.found, limits=limits, settings=settings, rests_on=self.rests_on, texts=self.texts)
        found = self.found
        return Comparison(
            challenger=self.challenger.model,
            champion=self.champion.model,
            challenger_evaluation=self.challenger.id,
            champion_evaluation=self.champion.id,
            dataset=self.challenger.dataset,
            split=self.challenger.split,
            normaliser=self.challenger.normaliser,
            utterances=found.utterances,
            recordings=found.recordings,
            words=found.words,
            wer_before=found.before,
            wer_after=found.after,
            cer_before=self.champion.scores["cer"],
            cer_after=self.challenger.scores["cer"],
            difference=found.paired.difference,
            difference_low=found.paired.low,
            difference_high=found.paired.high,
            probability=found.paired.probability,
            chance=found.paired.chance,
            guards=found.guards,
            verdict=made.verdict,
            reasons=made.reasons,
            next_step=made.next_step,
            level=limits.now,
            counted_by=found.counted_by,
            needed_utterances=made.needed_utterances,
            general=self.general,
            rests_on=self.rests_on,
            texts=self.texts,
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class SideBySide:
    """Two models on the same references: the comparison, and the utterances that got better or worse."""

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
    texts = [
        slice_change("texts", name, [before[at] for at in places], [after[at] for at in places])
        for name, places in _by_texts(ws, evaluation, against, before).items()
        if places
    ]
    return SideBySide(
        evaluation=evaluation,
        against=against,
        comparison=comparison,
        slices=(*texts, *slice_changes(before, after)),
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
    """Judge the challenger at the limit that an attempt would have now, without charging the ledger.

    Arguments and errors as in `find`.
    """
    findings = find(ws, challenger, champion, general=general, engines=engines)
    with ws.read() as reader:
        charged = ledger.charge(
            reader,
            1 - ws.settings.promote_confidence,
            key=findings.key,
            dataset=challenger.dataset,
            split=challenger.split,
        )
    return findings.judged(charged.limits, ws.settings)


def find(
    ws: Workspace,
    challenger: Evaluation,
    champion: Evaluation,
    *,
    general: tuple[Evaluation, Evaluation] | None = None,
    engines: Sequence[tuple[Evaluation, Evaluation]] = (),
) -> Findings:
    """Compare the hypotheses of challenger and champion. Raises UsageError if the two cannot be compared.

    `general` holds both models' evaluations on the general set, `engines` those on further serving engines.
    The verdict counts errors on texts that neither model was trained on if there are at least
    `promote_min_utterances` of them, otherwise on all; the guards always use all.
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
    places = _by_texts(ws, challenger, champion, before)
    texts = [_text_rates("all", before, after)]
    texts += [_text_rates(name, *_at(at, before, after)) for name, at in places.items() if at]
    new = places.get(NEW, [])
    only_new = margins.promote_min_utterances <= len(new) < len(before)
    judged = _at(new, before, after) if only_new else (before, after)
    found = weigh(*judged, settings=margins, guards=[slice_guard(before, after, margin=margins.promote_slice_margin)])
    return Findings(
        key=ledger.key(challenger.model, champion.model, *judged),
        found=replace(found, guards=(*found.guards, *found_guards)),
        rests_on="new texts" if only_new else "all texts",
        texts=tuple(texts) if places else (),
        challenger=challenger,
        champion=champion,
        general=general[0].dataset if general else None,
    )


def _by_texts(
    ws: Workspace, challenger: Evaluation, champion: Evaluation, rows: Sequence[Scored]
) -> dict[str, list[int]]:
    """Row indices by whether either model saw the text in training; empty if neither was trained here."""
    heard = texts_heard(ws, challenger.model, champion.model)
    return {} if heard is None else parted(rows, heard, challenger.decoding.get("language"), ws.settings.normaliser)


def _at(places: Sequence[int], before: Sequence[Scored], after: Sequence[Scored]) -> tuple[list[Scored], list[Scored]]:
    return [before[at] for at in places], [after[at] for at in places]


def _text_rates(name: str, before: Sequence[Scored], after: Sequence[Scored]) -> TextRates:
    words = sum(row.words for row in before)
    return TextRates(texts=name, utterances=len(before), words=words, wer_before=wer(before), wer_after=wer(after))


def _rows(ws: Workspace, challenger: Evaluation, champion: Evaluation) -> tuple[list[Scored], list[Scored]]:
    """The scored rows of champion and challenger. Raises UsageError if they were measured differently."""
    asked = [
        {"dataset": one.dataset, "split": one.split, "normaliser": one.normaliser, "decoding": decoding}
        for one, decoding in zip((champion, challenger), _decodings(ws, champion, challenger), strict=True)
    ]
    for name, left in asked[0].items():
        right = asked[1][name]
        if left != right:
            raise UsageError(
                f"the two evaluations differ in {name} ({left} and {right}), so their errors cannot be compared: "
                "evaluate both models on the same dataset with the same settings"
            )
    before, after = scored_rows(ws, champion), scored_rows(ws, challenger)
    if [(row.utterance, row.reference) for row in before] != [(row.utterance, row.reference) for row in after]:
        raise ConflictError(
            f"evaluations {champion.id} and {challenger.id} do not hold the same references in the same order, so one "
            "of their files was changed: find it with `voxloop verify`"
        )
    return before, after


def _decodings(ws: Workspace, champion: Evaluation, challenger: Evaluation) -> list[dict[str, Any]]:
    """The decoding identities of both. Models of different families may use different engines."""
    found = [Decoding.from_dict(one.decoding).identity() for one in (champion, challenger)]
    with ws.read() as reader:
        models = [reader.find(Model, one.model) for one in (champion, challenger)]
    if len({model.family for model in models if model}) > 1:
        found = [{name: value for name, value in one.items() if name != "engine"} for one in found]
    return found


# From numbers to a verdict --------------------------------------------------------------------------------------------


def weigh(
    before: Sequence[Scored],
    after: Sequence[Scored],
    *,
    settings: Settings,
    guards: Sequence[Guard] | None = None,
    resamples: int | None = None,
) -> Found:
    """Statistics of two models' errors on the same rows. `guards` None: guard the slices of these rows."""
    counted_by, names = clusters(before)
    words = sum(row.words for row in before)
    # Subtract half an utterance's words from the gain, for rare large errors that this test may not contain.
    unheard = math.ceil(words / max(len(before), 1) / 2)
    if guards is None:
        guards = (slice_guard(before, after, margin=settings.promote_slice_margin),)
    return Found(
        paired=paired(before, after, unheard=unheard, resamples=resamples),
        before=wer(before),
        after=wer(after),
        utterances=len(before),
        words=words,
        recordings=len({row.recording for row in before}),
        counted_by=counted_by,
        clusters=len(set(names)),
        speakers=len({row.speaker for row in before if row.speaker}),
        guards=tuple(guards),
    )


def judge(
    found: Found,
    *,
    limits: Limits,
    settings: Settings,
    rests_on: Rests = "all texts",
    texts: Sequence[TextRates] = (),
) -> Judgement:
    """The verdict on two models, with its reasons and the next step in words.

    `promote` requires enough utterances, p at the limit or below, an improvement
    of at least `promote_min_improvement`, and every guard passed. `reject` means
    that the challenger is clearly worse, that a guard failed, or that the 95 %
    interval rules out an improvement of `promote_min_improvement`. Everything else
    is `insufficient evidence`, so that bad luck does not reject a true gain.
    """
    verdict, why, after = _verdict(found, limits, settings)
    needed = needed_utterances(found, limits, settings) if verdict == "insufficient evidence" else None
    pair = found.paired
    reasons = [
        *why,
        f"WER {percent(found.before)} -> {percent(found.after)} on {_sizes(found)}.",
        f"Change {points(pair.difference)} points (95 % interval {points(pair.low)} to {points(pair.high)}).",
        f"{_p(pair.chance)} (limit {limits.now:.2g}).",
    ]
    reasons += _about_texts(rests_on, texts, settings)
    if verdict == "promote" and found.counted_by == "recording" and found.speakers:
        who = f"the {found.speakers} speakers" if found.speakers > 1 else "the one speaker"
        reasons.append(f"This holds for {who} in the test; other voices were not tested.")
    return Judgement(
        found=found,
        limits=limits,
        needed_utterances=needed,
        verdict=verdict,
        reasons=tuple(reasons),
        next_step=after or (_review_more(found, needed, limits, settings) if verdict != "promote" else None),
    )


NO_BETTER = "Train on more speech, or fine-tune a larger base: `voxloop base list` shows which ones fit this machine."
MEND_GUARD = "Keep the champion, add speech of the kind that got worse to the training set, and train again."


def _verdict(found: Found, limits: Limits, settings: Settings) -> tuple[Verdict, list[str], str | None]:
    """The verdict, its reasons, and the next step unless that is to review more clips."""
    pair, least = found.paired, settings.promote_min_improvement
    if found.utterances < settings.promote_min_utterances:
        needed = settings.promote_min_utterances
        few = f"Too few test utterances: {found.utterances} of the {needed} that a verdict needs."
        return "insufficient evidence", [few], None
    failed = [f"{_sentence(guard.finding)}" for guard in found.guards if not (guard.passed or guard.unsure)]
    if failed:
        return "reject", failed, MEND_GUARD
    if not pair.differing:
        return (
            "reject",
            [f"No better: both models make the same number of errors in every {found.counted_by}."],
            NO_BETTER,
        )
    if pair.chance_worse <= WORSE_ERROR:
        return "reject", [f"Clearly worse ({_p(pair.chance_worse)} for a loss this large by chance)."], NO_BETTER
    if pair.differing >= FEW_DIFFER and -pair.low < least * found.before:
        most = (
            f"it removes at most {_saved(-pair.low, found.before)} of the errors, and {100 * least:.1f} % is required"
        )
        return "reject", [f"No better: {most}."], NO_BETTER
    if pair.difference >= 0:
        most = f"a gain of up to {_saved(-pair.low, found.before)} of the errors cannot be ruled out"
        return "insufficient evidence", [f"No gain seen, but {most}."], None
    unsure = [f"{_sentence(guard.finding)}" for guard in found.guards if not guard.passed]
    if pair.chance > limits.now + 1e-9:
        return "insufficient evidence", ["Better, but this may be chance.", *unsure], None
    if -pair.difference < least * found.before:
        small = (
            f"it removes {_saved(-pair.difference, found.before)} of the errors, and {100 * least:.1f} % is required"
        )
        return "insufficient evidence", [f"Better, but too little: {small}."], None
    if unsure:
        return "insufficient evidence", unsure, "Add speech to the sets that were too small to judge, then try again."
    return "promote", [f"Better: it removes {_saved(-pair.difference, found.before)} of the errors."], None


def needed_utterances(found: Found, limits: Limits, settings: Settings) -> int | None:
    """Test utterances that confirm the observed gain with a power of 80 %; None if there is none, or it is too small.

    Uses the limits of p of the next attempt, which differ once the test has doubled in size.
    """
    size = found.utterances
    if found.paired.saved <= 0:
        return settings.promote_min_utterances if size < settings.promote_min_utterances else None
    needed = significance.growth(found.paired, limits.again)
    if needed >= 1 / ledger.FRESH:
        needed = max(significance.growth(found.paired, limits.fresh), 1 / ledger.FRESH)
    if needed > MUCH_LARGER:
        return None
    return max(math.ceil(needed * size), size + 1, settings.promote_min_utterances)


def size_for(found: Found, saved: float, level: float) -> int | None:
    """Test utterances that show this share of errors saved with a power of 80 %, at this WER and clip length."""
    errors = max(round(saved * found.errors), 1)
    squares = max(found.paired.squares, errors)
    times = significance.growth(replace(found.paired, saved=errors, squares=squares), level)
    return math.ceil(times * found.utterances) if times <= MUCH_LARGER else None


def _review_more(found: Found, needed: int | None, limits: Limits, settings: Settings) -> str:
    """How many more clips to review for a verdict."""
    if needed is not None:
        more = clips_for_test(max(needed - found.utterances, 1))
        if found.paired.saved <= 0:
            return (
                f"Review about {_count(more, 'more clip')} and build the dataset again: "
                f"a verdict needs {needed} test clips, and there are {found.utterances}."
            )
        return (
            f"Review about {_count(more, 'more clip')} to know, and build the dataset again: a test of {needed} clips "
            f"(there are {found.utterances}) detects a gain of this size four times in five."
        )
    size = size_for(found, EXAMPLE, limits.fresh)
    if size is None or size <= found.utterances:
        return NO_BETTER
    return (
        f"{NO_BETTER} To detect a gain of {100 * EXAMPLE:.0f} % at this WER, review about "
        f"{_count(clips_for_test(size - found.utterances), 'more clip')}, for a test of {size}."
    )


def _about_texts(rests_on: Rests, texts: Sequence[TextRates], settings: Settings) -> list[str]:
    """WER on new texts and on texts heard in training, and which of them the verdict rests on."""
    parts = {one.texts: one for one in texts}
    if HEARD not in parts:
        return []
    said = [
        f"{title}: WER {percent(part.wer_before)} -> {percent(part.wer_after)} "
        f"on {_count(part.utterances, 'utterance')}"
        for name, title in ((NEW, "New texts"), (HEARD, "texts heard in training"))
        if (part := parts.get(name))
    ]
    if rests_on == "new texts":
        why = "the verdict rests on the new texts"
    else:
        new = parts[NEW].utterances if NEW in parts else 0
        why = (
            f"the verdict rests on all texts, because {new} are new and {settings.promote_min_utterances} are required"
        )
    line = "; ".join([*said, why])
    return [line[0].upper() + line[1:] + "."]


def points(difference: float) -> str:
    """A difference of shares in percentage points, with sign."""
    return f"{100 * difference:+.1f}"


def percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def _p(chance: float) -> str:
    return f"p = {chance:.2g}" if chance >= 1e-4 else "p < 0.0001"


def _saved(difference: float, before: float) -> str:
    return f"{100 * difference / before:.1f} %" if before else "0.0 %"


def _sizes(found: Found) -> str:
    by = f", {_count(found.clusters, found.counted_by)}" if found.clusters != found.utterances else ""
    return f"{_count(found.utterances, 'test utterance')} ({_count(found.words, 'word')}{by})"


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


def _sentence(finding: str) -> str:
    return f"{finding[0].upper()}{finding[1:]}."
