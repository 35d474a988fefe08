"""What must not get worse while the word error rate gets better: slices, silence, 30 s, a general set."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from voxloop.steps.evaluation import Scored, significance, slices, wer

if TYPE_CHECKING:
    from voxloop.records import Evaluation

SLICE_MIN_UTTERANCES, SLICE_MIN_WORDS = 10, 50  # smaller slices are not judged alone
SLICE_ERROR = 0.05  # chance of blaming any slice wrongly, shared among the slices (Bonferroni)
JOINED_APPLIES = 0.5  # a champion that errs more than this on joined speech sets no standard for it
SPEAKERS_MIN = 6  # fewer speakers cannot show anything: even all six better is luck in one of 64 cases


@dataclass(frozen=True, kw_only=True, slots=True)
class Guard:
    """One thing that must not get worse, and what was found."""

    name: str
    passed: bool
    finding: str
    unsure: bool = False  # not passed for want of speech to tell by, not because it is worse


def clusters(rows: Sequence[Scored]) -> tuple[str, list[str]]:
    """What the rows are counted by, `speaker` or `recording`, and which one each row belongs to.

    By speaker where there are enough of them: then a verdict holds for speakers not
    heard, of whom some may lose what others gain. With fewer it holds for these
    speakers, and is counted by recording.
    """
    if len({row.speaker for row in rows if row.speaker}) >= SPEAKERS_MIN:
        return "speaker", [f"speaker {row.speaker}" if row.speaker else row.recording for row in rows]
    return "recording", [row.recording for row in rows]


def paired(
    before: Sequence[Scored], after: Sequence[Scored], *, unheard: int = 0, resamples: int | None = None
) -> significance.Paired:
    """Word errors of two models on the same rows."""
    return significance.paired(
        [row.errors for row in before],
        [row.errors for row in after],
        [row.words for row in before],
        clusters(before)[1],
        unheard=unheard,
        resamples=resamples,
    )


def slice_guard(before: Sequence[Scored], after: Sequence[Scored], *, margin: float) -> Guard:
    """No slice is clearly worse: by the permutation test, its error shared among the slices, and by a margin."""
    heard_after = {row.utterance: row for row in after}
    judged = {
        key: part
        for key, part in slices(before).items()
        if len(part) >= SLICE_MIN_UTTERANCES and sum(row.words for row in part) >= SLICE_MIN_WORDS
    }
    worse: list[str] = []
    for (by, name), part in judged.items():
        then = [heard_after[row.utterance] for row in part]
        if wer(then) <= wer(part) + margin:
            continue
        if paired(part, then, resamples=1).chance_worse <= SLICE_ERROR / len(judged):
            worse.append(f"{by} {name} ({100 * wer(part):.1f} % to {100 * wer(then):.1f} %)")
    if worse:
        return Guard(name="slices", passed=False, finding=f"clearly worse for {', '.join(worse)}")
    if not judged:
        return Guard(name="slices", passed=True, finding="no slice is large enough to be judged alone")
    return Guard(name="slices", passed=True, finding=f"none of {len(judged)} slices is clearly worse")


def silence_guard(challenger: Evaluation, champion: Evaluation, *, more_words: int) -> Guard:
    """Silence and faint noise bring no text, or hardly more than they did."""
    before, after = champion.scores["silence"]["words"], challenger.scores["silence"]["words"]
    if after <= before + more_words:
        heard = f"{after} words heard in silence and faint noise, {before} before"
        return Guard(name="silence", passed=True, finding=heard if after else "silence stays silent")
    texts = "; ".join(repr(heard) for heard in challenger.scores["silence"]["texts"] if heard.strip())
    return Guard(
        name="silence",
        passed=False,
        finding=f"hears words in silence or faint noise: {after} words, {before} before ({texts[:200]})",
    )


def joined_guard(challenger: Evaluation, champion: Evaluation, *, margin: float) -> Guard:
    """Speech of 30 s, joined from the test's clips, is understood about as well as before."""
    old, new = champion.scores.get("joined"), challenger.scores.get("joined")
    if old is None or new is None:
        return Guard(name="30 s", passed=True, finding="too little test speech to join")
    change = (
        f"joined speech of up to 30 s: word error rate {100 * old['wer']:.1f} % before, {100 * new['wer']:.1f} % after"
    )
    if old["wer"] > JOINED_APPLIES:
        return Guard(name="30 s", passed=True, finding=f"{change}; not held against it, as the champion cannot do it")
    return Guard(name="30 s", passed=new["wer"] <= old["wer"] + margin, finding=change)


def general_guard(before: Sequence[Scored], after: Sequence[Scored], *, name: str, margin: float) -> Guard:
    """A general set is not worse than by a margin: the whole interval of the change lies below it."""
    found = paired(before, after)
    change = (
        f"general set {name}: word error rate {100 * wer(before):.1f} % before, {100 * wer(after):.1f} % after, "
        f"which may be up to {100 * found.high:+.1f} points; {100 * margin:.1f} are allowed"
    )
    if found.high <= margin:
        return Guard(name="general", passed=True, finding=change)
    if found.difference > margin:
        return Guard(name="general", passed=False, finding=change)
    return Guard(
        name="general",
        passed=False,
        unsure=True,
        finding=f"{change}: {len(before)} utterances are too few to tell, add speech to it",
    )
