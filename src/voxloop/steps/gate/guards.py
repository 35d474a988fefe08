"""What must not get worse while the word error rate gets better.

Most guards ask two things before they refuse a model: that it is worse by more than a stated margin, and that two
models equally good would hardly differ so much by luck. A guard that had nothing to measure says so and refuses nobody.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from voxloop.steps.evaluation import Scored, significance, slices, wer
from voxloop.steps.evaluation.written import style, written

if TYPE_CHECKING:
    from voxloop.records import Evaluation
    from voxloop.settings import Settings

SLICE_MIN_UTTERANCES, SLICE_MIN_WORDS = 10, 50  # smaller slices are not judged alone
SLICE_ERROR = 0.05  # chance of blaming any slice wrongly, shared among the slices (Bonferroni)
JOINED_APPLIES = 0.5  # a champion that errs more than this on joined speech sets no standard for it
GUARD_ERROR = 0.01  # chance that one of the guards below blames a model that is no worse; there are five of them
TIMES_MARGIN_S = 0.05  # by which times may get worse on average
WRITTEN_MARGIN = 0.01  # share of words heard right that may lose their capitals or marks
SHORTER, LONGER = 0.67, 1.5  # text on unlabelled speech, as many times as long as before: outside, something is amiss
UNLABELLED_MIN = 20  # clips that both models heard: fewer say nothing
SPEAKERS_MIN = 6  # fewer speakers cannot show anything: even all six better is luck in one of 64 cases


@dataclass(frozen=True, kw_only=True, slots=True)
class Guard:
    """One thing that must not get worse, and what was found."""

    name: str
    passed: bool
    finding: str
    unsure: bool = False  # not passed for want of speech to tell by, not because it is worse
    measured: bool = True  # False: there was nothing to measure, so it is passed

    @property
    def state(self) -> str:
        """In a word: kept, failed, not sure, or not measured."""
        if not self.measured:
            return "not measured"
        return "kept" if self.passed else "not sure" if self.unsure else "failed"


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
    """Where nobody speaks a model writes nothing, or hardly more than before, luck aside.

    Both heard the same sounds through the detector; the test is the sign-flip test over these.
    """
    name = "silence"
    before, after = (_counts(one) for one in (champion, challenger))
    if before is None or after is None or set(before) != set(after):
        return _unmeasured(name, "the two models were not given the same sounds without speech")
    words = sum(before.values()), sum(after.values())
    found = (
        f"{_several(words[1], 'word')} in {sum(count > 0 for count in after.values())} of {len(after)} sounds without "
        f"speech, {_several(words[0], 'word')} in {sum(count > 0 for count in before.values())} before"
    )
    if not words[1]:
        return Guard(name=name, passed=True, finding=f"nothing heard in {len(after)} sounds without speech")
    if words[1] <= words[0] + more_words:
        return Guard(name=name, passed=True, finding=found)
    chance = _chance_of_more([after[sound] - before[sound] for sound in after])
    if chance > GUARD_ERROR:
        return Guard(name=name, passed=True, finding=f"{found}, which may be luck ({_percent(chance)})")
    heard = sorted((sound for sound in after if after[sound] > before[sound]), key=lambda sound: -after[sound])
    return Guard(
        name=name,
        passed=False,
        finding=f"writes words where nobody speaks: {found} (chance of luck {_percent(chance)}), most in "
        f"{', '.join(heard[:3])}",
    )


def _counts(evaluation: Evaluation) -> dict[str, int] | None:
    """Words heard in each sound without speech; None in evaluations of earlier versions, which did not say."""
    groups = [evaluation.scores.get(name, {}).get("counts") for name in ("silence", "noise")]
    if any(group is None for group in groups):
        return None
    quiet, loud = groups
    return {f"quiet {name}": count for name, count in quiet.items()} | dict(loud)


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


def served_guards(
    challenger: Evaluation, champion: Evaluation, before: Sequence[Scored], after: Sequence[Scored], settings: Settings
) -> list[Guard]:
    """All guards that two evaluations of one test set answer; `before` and `after` are what was kept of them."""
    return [
        silence_guard(challenger, champion, more_words=settings.promote_silence_words),
        joined_guard(challenger, champion, margin=settings.promote_joined_margin),
        language_guard(before, after),
        times_guard(before, after),
        written_guard(before, after),
        unlabelled_guard(challenger, champion),
    ]


def engine_guard(before: Sequence[Scored], after: Sequence[Scored], *, engine: str) -> Guard:
    """On another engine that serves, the model is no worse than the champion there."""
    name = f"on {engine}"
    found = paired(before, after, resamples=1)
    change = f"on {engine}: word error rate {_percent(wer(before))} before, {_percent(wer(after))} after"
    if found.difference <= 0:
        return Guard(name=name, passed=True, finding=change)
    if found.chance_worse <= GUARD_ERROR:
        return Guard(name=name, passed=False, finding=f"{change} (chance of luck {_percent(found.chance_worse)})")
    return Guard(
        name=name,
        passed=False,
        unsure=True,
        finding=f"{change}, which may be luck ({_percent(found.chance_worse)}): it must be no worse there",
    )


def language_guard(before: Sequence[Scored], after: Sequence[Scored]) -> Guard:
    """A model that is not told the language still finds it: test clips whose language is known."""
    name = "language"
    pairs = [(b, a) for b, a in zip(before, after, strict=True) if b.language and b.detected and a.detected]
    if not pairs:
        return _unmeasured(name, "no test clip names its language, or a model knows one language only")
    wrong = [sum(row.detected != row.language for row in side) for side in zip(*pairs, strict=True)]
    found = f"language detected wrongly in {wrong[1]} of {_several(len(pairs), 'test clip')}, in {wrong[0]} before"
    return _judged(
        name,
        found,
        worse=wrong[1] > wrong[0],
        rows=[b for b, _ in pairs],
        changes=[(a.detected != a.language) - (b.detected != b.language) for b, a in pairs],
    )


def times_guard(before: Sequence[Scored], after: Sequence[Scored]) -> Guard:
    """Words lie in time where they did: against the references' times, else against the ends of the speech."""
    name = "time stamps"

    def by_reference(row: Scored) -> float | None:
        return (row.start_error_s + row.end_error_s) / row.timed_words / 2 if row.timed_words else None

    def by_edges(row: Scored) -> float | None:
        return None if row.edge_error_s is None else row.edge_error_s / 2

    kinds: tuple[tuple[str, Callable[[Scored], float | None]], ...] = (
        ("the references' times", by_reference),
        ("the ends of the speech", by_edges),
    )
    for of, error in kinds:
        known: list[tuple[Scored, float, float]] = []
        for row, new_row in zip(before, after, strict=True):
            was, now = error(row), error(new_row)
            if was is not None and now is not None:
                known.append((row, was, now))
        if not known:
            continue
        old, new = (float(np.mean(side)) for side in ([was for _, was, _ in known], [now for _, _, now in known]))
        found = (
            f"words lie {1000 * new:.0f} ms from {of} on average, {1000 * old:.0f} ms before "
            f"({_several(len(known), 'test clip')})"
        )
        return _judged(
            name,
            found,
            worse=new > old + TIMES_MARGIN_S,
            rows=[row for row, _, _ in known],
            changes=[round(100 * (now - was)) for _, was, now in known],
        )
    return _unmeasured(name, "there are no word times")


def written_guard(before: Sequence[Scored], after: Sequence[Scored]) -> Guard:
    """Words that both models heard right are written as in the references: capitals and punctuation."""
    name = "written form"
    asked = style([row.reference for row in before])
    if not asked:
        return _unmeasured(name, "the references have neither capitals nor punctuation")
    changes, words, wrong = [], 0, [0, 0]
    for old, new in zip(before, after, strict=True):
        was = written(old.reference, old.hypothesis, old.language, asked)
        now = written(new.reference, new.hypothesis, new.language, asked)
        both = was.keys() & now.keys()
        mine = [sum(not side[place] for place in both) for side in (was, now)]
        changes.append(mine[1] - mine[0])
        words += len(both)
        wrong = [sum(pair) for pair in zip(wrong, mine, strict=True)]
    if not words:
        return _unmeasured(name, "no word was heard right by both models")
    what = " and ".join(
        kind for kind, there in (("capitals", asked.capitals), ("punctuation", asked.punctuation)) if there
    )
    found = (
        f"{what}: {_percent(wrong[1] / words)} of {_several(words, 'word')} that both heard right are not written as "
        f"in the references, {_percent(wrong[0] / words)} before"
    )
    return _judged(name, found, worse=wrong[1] > wrong[0] + WRITTEN_MARGIN * words, rows=before, changes=changes)


def unlabelled_guard(challenger: Evaluation, champion: Evaluation) -> Guard:
    """On speech without references no more texts are empty, loop or are too long, and they are about as long."""
    name = "unlabelled"
    before, after = ((one.scores.get("unlabelled") or {}).get("each", {}) for one in (champion, challenger))
    shared = sorted(before.keys() & after.keys())
    if len(shared) < UNLABELLED_MIN:
        return _unmeasured(
            name,
            f"{_several(len(shared), 'clip')} without a reference heard by both models, {UNLABELLED_MIN} are needed",
        )
    odd = [sum(side[id]["odd"] != "" for id in shared) for side in (before, after)]
    found = (
        f"{odd[1]} of {len(shared)} clips without a reference came out empty, looping or too long for their sound, "
        f"{odd[0]} before"
    )
    chance = _chance_of_more([(after[id]["odd"] != "") - (before[id]["odd"] != "") for id in shared])
    if odd[1] > odd[0] and chance <= GUARD_ERROR:
        return Guard(name=name, passed=False, finding=f"{found} (chance of luck {_percent(chance)})")
    plain = [id for id in shared if not before[id]["odd"] and not after[id]["odd"]]
    lengths = [sum(side[id]["characters"] for id in plain) for side in (before, after)]
    ratio = lengths[1] / max(lengths[0], 1)
    if len(plain) >= UNLABELLED_MIN:
        found += f"; the other texts are {ratio:.2f} times as long as before"
        grown = [after[id]["characters"] - before[id]["characters"] for id in plain]
        chance = _chance_of_more(grown if ratio > 1 else [-one for one in grown])
        if not SHORTER <= ratio <= LONGER and chance <= GUARD_ERROR:
            return Guard(
                name=name,
                passed=False,
                unsure=True,
                finding=f"{found}, where {SHORTER:g} to {LONGER:g} is expected: listen to some of them, "
                "and promote by hand if they are right",
            )
    return Guard(name=name, passed=True, finding=found)


def _judged(name: str, found: str, *, worse: bool, rows: Sequence[Scored], changes: Sequence[int]) -> Guard:
    """What follows of changes by row, where above 0 is worse: refused where it is `worse`, and not by luck."""
    if not worse:
        return Guard(name=name, passed=True, finding=found)
    chance = _chance_of_more(changes, clusters(rows)[1])
    if chance > GUARD_ERROR:
        return Guard(name=name, passed=True, finding=f"{found}, which may be luck ({_percent(chance)})")
    return Guard(name=name, passed=False, finding=f"{found} (chance of luck {_percent(chance)})")


def _chance_of_more(changes: Sequence[int], names: Sequence[str] | None = None) -> float:
    """Chance of a sum as high as that of these changes where a coin decides the sign of each, or of each cluster's."""
    values = np.asarray(changes, dtype=np.int64)
    if names is not None:
        _, index = np.unique(np.asarray(names), return_inverse=True)
        sums = np.zeros(index.max() + 1, dtype=np.int64)
        np.add.at(sums, index, values)
        values = sums
    return significance.chance_of_improvement(-values)


def _unmeasured(name: str, why: str) -> Guard:
    return Guard(name=name, passed=True, measured=False, finding=why)


def _percent(share: float) -> str:
    return f"{100 * share:.2g} %" if 0 < share < 0.01 else f"{100 * share:.1f} %"


def _several(count: int, what: str) -> str:
    return f"{count} {what}{'' if count == 1 else 's'}"
