"""Whether one model hears better than another: the verdict that promotion rests on.

Reads what both models heard of the same frozen references (`evaluation.py`) and decodes nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from voxloop import significance
from voxloop.errors import ConflictError, UsageError
from voxloop.evaluation import Scored, scored_rows, slices, wer
from voxloop.records import Evaluation, Split, Verdict
from voxloop.stores import catalog as tables

if TYPE_CHECKING:
    from voxloop.workspace import Workspace

SLICE_MIN_UTTERANCES, SLICE_MIN_WORDS = 10, 50  # smaller slices are not judged alone
SLICE_MARGIN = 0.01  # a slice may lose this much WER: with much data even a trifle is significant
SLICE_ERROR = 0.05  # chance of blaming any slice wrongly, shared among the slices
JOINED_MARGIN = 0.10  # WER that joined speech may lose: a handful of inputs decides no finer
JOINED_APPLIES = 0.5  # a champion that errs more than this on joined speech sets no standard for it
MUCH_USED = 10  # models measured on one test set, from which on its repeated use is said


@dataclass(frozen=True, kw_only=True, slots=True)
class Guard:
    """One thing that must not get worse, and what was found."""

    name: str
    passed: bool
    finding: str


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
    probability: float  # that the challenger is better, by bootstrap over recordings
    chance: float  # that equally good models differ so much in the challenger's favour
    models_measured: int  # on this split so far, these two included
    guards: tuple[Guard, ...]
    verdict: Verdict
    reasons: tuple[str, ...]  # what led to the verdict, in words

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Comparison:
        """The comparison that `as_dict` made a dictionary of, also after a way through JSON."""
        guards = tuple(Guard(**guard) for guard in values["guards"])
        return cls(**values | {"guards": guards, "reasons": tuple(values["reasons"])})


def compare(ws: Workspace, challenger: Evaluation, champion: Evaluation) -> Comparison:
    """Judge the challenger by what both models heard. Raises UsageError where the two cannot be compared.

    `promote` asks for all of: enough utterances; the bootstrap's probability of
    improvement and the permutation test at `promote_confidence`; every guard.
    `reject` means no better, or a guard that failed. What looks better but may be
    luck is `insufficient evidence`, and so is every test that is too small.
    """
    _check_comparable(challenger, champion)
    before, after = scored_rows(ws, champion), scored_rows(ws, challenger)
    if [(row.utterance, row.reference) for row in before] != [(row.utterance, row.reference) for row in after]:
        raise ConflictError(
            f"evaluations {champion.id} and {challenger.id} do not hold the same references in the same order: "
            "one of their files was changed; `voxloop verify` finds which"
        )
    found = significance.paired(
        [row.errors for row in before],
        [row.errors for row in after],
        [row.words for row in before],
        [row.recording for row in before],
    )
    with ws.read() as reader:
        e = tables.evaluation.c
        statement = sa.select(sa.func.count(sa.distinct(e.model))).where(
            e.dataset == challenger.dataset, e.split == challenger.split
        )
        measured = int(reader.connection.execute(statement).scalar_one())
    guards = (_slice_guard(before, after), _silence_guard(challenger, champion), _joined_guard(challenger, champion))
    verdict, reasons = judge(
        found,
        rates=(wer(before), wer(after)),
        utterances=len(before),
        recordings=len({row.recording for row in before}),
        guards=guards,
        confidence=ws.settings.promote_confidence,
        min_utterances=ws.settings.promote_min_utterances,
    )
    if measured >= MUCH_USED:
        reasons += (
            f"{measured} models were measured on this test set: the best of many looks better than it is; "
            "add fresh speech to the test",
        )
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
        difference=found.difference,
        difference_low=found.low,
        difference_high=found.high,
        probability=found.probability,
        chance=found.chance,
        models_measured=measured,
        guards=guards,
        verdict=verdict,
        reasons=reasons,
    )


def _check_comparable(challenger: Evaluation, champion: Evaluation) -> None:
    for name in ("dataset", "split", "normaliser", "decoding"):
        left, right = getattr(champion, name), getattr(challenger, name)
        if left != right:
            raise UsageError(
                f"the two evaluations differ in {name} ({left} and {right}), so their errors do not compare: "
                "evaluate both models on the same dataset with the same settings"
            )


def judge(
    found: significance.Paired,
    *,
    rates: tuple[float, float],
    utterances: int,
    recordings: int,
    guards: Sequence[Guard],
    confidence: float,
    min_utterances: int,
) -> tuple[Verdict, tuple[str, ...]]:
    """The verdict and its reasons in words; `rates` are WER before and after."""
    before, after = (f"{100 * rate:.1f} %" for rate in rates)
    on = f"on {utterances} test utterances of {recordings} recordings"
    if utterances < min_utterances:
        return "insufficient evidence", (
            f"only {utterances} test utterances, {min_utterances} are needed: review more and freeze a new dataset",
            f"word error rate {before} before, {after} after",
        )
    if found.difference >= 0:
        if found.low > 0:
            return "reject", (f"clearly worse: word error rate rose from {before} to {after} {on}",)
        how = "stayed at" if found.difference == 0 else f"went from {before} to"
        return "reject", (f"no better: word error rate {how} {after} {on}",)
    gain = f"word error rate fell from {before} to {after} {on}"
    span = f"95 % interval of the change: {_points(found.low)} to {_points(found.high)} points"
    failed = tuple(guard.finding for guard in guards if not guard.passed)
    if failed:
        return "reject", (*failed, f"although {gain}")
    better = (
        f"better in {100 * found.probability:.1f} % of {significance.RESAMPLES:,} resamples of the recordings; "
        f"{100 * confidence:g} % are asked for"
    )
    luck = (
        f"models equally good would differ so much by luck in {100 * found.chance:.2g} % of cases; "
        f"at most {100 * (1 - confidence):.2g} % are accepted"
    )
    if found.probability >= confidence and found.chance <= 1 - confidence + 1e-9:
        return "promote", (gain, span, better, luck)
    return "insufficient evidence", (
        f"{gain}, but this may be luck: test on more recordings",
        span,
        *([better] if found.probability < confidence else []),
        *([luck] if found.chance > 1 - confidence else []),
    )


def _points(difference: float) -> str:
    return f"{100 * difference:+.1f}"


# Guards --------------------------------------------------------------------------------------------------------------


def _slice_guard(before: Sequence[Scored], after: Sequence[Scored]) -> Guard:
    """No speaker, language or length is clearly worse: by the permutation test over its utterances, and by a margin."""
    import numpy as np

    heard_after = {row.utterance: row for row in after}
    judged = {
        key: part
        for key, part in slices(before).items()
        if len(part) >= SLICE_MIN_UTTERANCES and sum(row.words for row in part) >= SLICE_MIN_WORDS
    }
    worse: list[str] = []
    for (by, name), part in judged.items():
        then = [heard_after[row.utterance] for row in part]
        if wer(then) <= wer(part) + SLICE_MARGIN:
            continue
        losses = np.array([old.errors - new.errors for old, new in zip(part, then, strict=True)])
        if significance.chance_of_improvement(losses, np.random.default_rng(0)) <= SLICE_ERROR / len(judged):
            worse.append(f"{by} {name} ({100 * wer(part):.1f} % to {100 * wer(then):.1f} %)")
    if worse:
        return Guard(name="slices", passed=False, finding=f"clearly worse for {', '.join(worse)}")
    if not judged:
        return Guard(name="slices", passed=True, finding="no slice is large enough to be judged alone")
    return Guard(name="slices", passed=True, finding=f"none of {len(judged)} slices is clearly worse")


def _silence_guard(challenger: Evaluation, champion: Evaluation) -> Guard:
    """Silence and faint noise bring no text, or no more than they did."""
    before, after = champion.scores["silence"]["words"], challenger.scores["silence"]["words"]
    if after <= before:
        heard = f"{after} words heard in silence and faint noise, {before} before"
        return Guard(name="silence", passed=True, finding=heard if after else "silence stays silent")
    texts = "; ".join(repr(heard) for heard in challenger.scores["silence"]["texts"] if heard.strip())
    return Guard(
        name="silence",
        passed=False,
        finding=f"hears words in silence or faint noise: {after} words, {before} before ({texts[:200]})",
    )


def _joined_guard(challenger: Evaluation, champion: Evaluation) -> Guard:
    """Speech of 30 s, joined from the test's clips, is understood about as well as before."""
    old, new = champion.scores.get("joined"), challenger.scores.get("joined")
    if old is None or new is None:
        return Guard(name="30 s", passed=True, finding="too little test speech to join")
    change = (
        f"joined speech of up to 30 s: word error rate {100 * old['wer']:.1f} % before, {100 * new['wer']:.1f} % after"
    )
    if old["wer"] > JOINED_APPLIES:
        return Guard(name="30 s", passed=True, finding=f"{change}; not held against it, as the champion cannot do it")
    return Guard(name="30 s", passed=new["wer"] <= old["wer"] + JOINED_MARGIN, finding=change)
