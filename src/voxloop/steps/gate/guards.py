"""Guards: what must not get worse while the word error rate improves.

Most guards refuse a model on two conditions: it is worse by more than a stated margin, and the difference is
statistically significant. A guard with nothing to measure says so and passes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from voxloop.speech.text import normalise
from voxloop.steps.evaluation import Scored, significance, slices, wer
from voxloop.steps.evaluation.written import style, written

if TYPE_CHECKING:
    from voxloop.records import Evaluation
    from voxloop.settings import Settings

SLICE_MIN_UTTERANCES, SLICE_MIN_WORDS = 10, 50  # smaller slices are not judged alone
SLICE_ERROR = 0.05  # family-wise error over all slices (Bonferroni)
JOINED_APPLIES = 0.5  # a champion with a higher WER than this on joined speech sets no standard for it
GUARD_ERROR = 0.01  # chance that one guard refuses a model that is no worse; five guards use it
TIMES_MARGIN_S = 0.05  # how much worse word times may get on average
WRITTEN_MARGIN = 0.01  # share of correct words that may lose their capitals or punctuation
SHORTER, LONGER = 0.67, 1.5  # expected ratio of text lengths on unlabelled speech; outside it something is wrong
UNLABELLED_MIN = 20  # clips decoded by both models; fewer say nothing
SPEAKERS_MIN = 6  # fewer speakers cannot be significant: all six better has p = 1/64


@dataclass(frozen=True, kw_only=True, slots=True)
class Guard:
    """One thing that must not get worse, and the finding."""

    name: str
    passed: bool
    finding: str
    unsure: bool = False  # not passed because there is too little speech to tell
    measured: bool = True  # False: nothing to measure, so it passes

    @property
    def state(self) -> str:
        """passed, failed, unsure or not measured."""
        if not self.measured:
            return "not measured"
        return "passed" if self.passed else "unsure" if self.unsure else "failed"


def clusters(rows: Sequence[Scored]) -> tuple[str, list[str]]:
    """The unit of clustering, `speaker` or `recording`, and the cluster of each row.

    With enough speakers errors are summed by speaker, and a verdict generalises to
    unheard speakers. With fewer they are summed by recording, and a verdict holds
    for these speakers only.
    """
    if len({row.speaker for row in rows if row.speaker}) >= SPEAKERS_MIN:
        return "speaker", [f"speaker {row.speaker}" if row.speaker else row.recording for row in rows]
    return "recording", [row.recording for row in rows]


def paired(
    before: Sequence[Scored], after: Sequence[Scored], *, unheard: int = 0, resamples: int | None = None
) -> significance.Paired:
    """Paired statistics of two models' word errors on the same rows."""
    return significance.paired(
        [row.errors for row in before],
        [row.errors for row in after],
        [row.words for row in before],
        clusters(before)[1],
        unheard=unheard,
        resamples=resamples,
    )


def slice_guard(before: Sequence[Scored], after: Sequence[Scored], *, margin: float) -> Guard:
    """No slice may be worse by more than the margin and significantly so (Bonferroni over slices)."""
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
        return Guard(name="slices", passed=True, finding="no slice is large enough to judge on its own")
    return Guard(name="slices", passed=True, finding=f"none of {_several(len(judged), 'slice')} is clearly worse")


def silence_guard(challenger: Evaluation, champion: Evaluation, *, more_words: int) -> Guard:
    """The model must not write significantly more words where nobody speaks.

    Both models get the same sounds through the voice detector; the sign-flip test runs over these sounds.
    """
    name = "silence"
    before, after = (_counts(one) for one in (champion, challenger))
    if before is None or after is None or set(before) != set(after):
        return _unmeasured(name, "the two models were not measured on the same sounds without speech")
    words = sum(before.values()), sum(after.values())
    found = (
        f"{_several(words[1], 'word')} in {sum(count > 0 for count in after.values())} of {len(after)} sounds without "
        f"speech, {_several(words[0], 'word')} in {sum(count > 0 for count in before.values())} before"
    )
    if not words[1]:
        return Guard(name=name, passed=True, finding=f"no words in {len(after)} sounds without speech")
    if words[1] <= words[0] + more_words:
        return Guard(name=name, passed=True, finding=found)
    chance = _chance_of_more([after[sound] - before[sound] for sound in after])
    if chance > GUARD_ERROR:
        return Guard(name=name, passed=True, finding=f"{found}, which may be chance ({_p(chance)})")
    heard = sorted((sound for sound in after if after[sound] > before[sound]), key=lambda sound: -after[sound])
    return Guard(
        name=name,
        passed=False,
        finding=f"writes words where nobody speaks: {found} ({_p(chance)}), most in {', '.join(heard[:3])}",
    )


def _counts(evaluation: Evaluation) -> dict[str, int] | None:
    """Words written for each sound without speech; None in evaluations of earlier versions, which lack them."""
    groups = [evaluation.scores.get(name, {}).get("counts") for name in ("silence", "noise")]
    if any(group is None for group in groups):
        return None
    quiet, loud = groups
    return {f"quiet {name}": count for name, count in quiet.items()} | dict(loud)


def joined_guard(challenger: Evaluation, champion: Evaluation, *, margin: float) -> Guard:
    """WER on test clips joined up to 30 s must not rise by more than the margin."""
    old, new = champion.scores.get("joined"), challenger.scores.get("joined")
    if old is None or new is None:
        return Guard(name="30 s", passed=True, finding="too little test speech to join up to 30 s")
    change = f"clips joined up to 30 s: WER {100 * old['wer']:.1f} % -> {100 * new['wer']:.1f} %"
    if old["wer"] > JOINED_APPLIES:
        return Guard(name="30 s", passed=True, finding=f"{change}; ignored, since the champion fails on them too")
    return Guard(name="30 s", passed=new["wer"] <= old["wer"] + margin, finding=change)


def general_guard(before: Sequence[Scored], after: Sequence[Scored], *, name: str, margin: float) -> Guard:
    """WER on the general set must not rise by more than the margin, over the whole interval of the change."""
    found = paired(before, after)
    change = (
        f"general set {name}: WER {100 * wer(before):.1f} % -> {100 * wer(after):.1f} %, "
        f"95 % interval of the change up to {100 * found.high:+.1f} points (limit {100 * margin:+.1f})"
    )
    if found.high <= margin:
        return Guard(name="general", passed=True, finding=change)
    if found.difference > margin:
        return Guard(name="general", passed=False, finding=change)
    return Guard(
        name="general",
        passed=False,
        unsure=True,
        finding=f"{change}; too few utterances to tell ({len(before)}): add speech to this set",
    )


def served_guards(
    challenger: Evaluation, champion: Evaluation, before: Sequence[Scored], after: Sequence[Scored], settings: Settings
) -> list[Guard]:
    """All guards that need only two evaluations of one test set; `before` and `after` are their rows."""
    return [
        silence_guard(challenger, champion, more_words=settings.promote_silence_words),
        joined_guard(challenger, champion, margin=settings.promote_joined_margin),
        language_guard(before, after),
        times_guard(before, after),
        written_guard(before, after),
        unlabelled_guard(challenger, champion),
    ]


def engine_guard(before: Sequence[Scored], after: Sequence[Scored], *, engine: str) -> Guard:
    """The model must be no worse than the champion on another serving engine."""
    name = f"on {engine}"
    found = paired(before, after, resamples=1)
    change = f"on {engine}: WER {_percent(wer(before))} -> {_percent(wer(after))}"
    if found.difference <= 0:
        return Guard(name=name, passed=True, finding=change)
    if found.chance_worse <= GUARD_ERROR:
        return Guard(name=name, passed=False, finding=f"{change} ({_p(found.chance_worse)})")
    return Guard(
        name=name,
        passed=False,
        unsure=True,
        finding=f"{change}, which may be chance ({_p(found.chance_worse)}); it must not be worse there",
    )


def language_guard(before: Sequence[Scored], after: Sequence[Scored]) -> Guard:
    """The model must still detect the language of test clips whose language is known."""
    name = "language"
    pairs = [(b, a) for b, a in zip(before, after, strict=True) if b.language and b.detected and a.detected]
    if not pairs:
        return _unmeasured(name, "no test clip has a known language, or one of the models knows only one language")
    wrong = [sum(row.detected != row.language for row in side) for side in zip(*pairs, strict=True)]
    found = f"wrong language detected in {wrong[1]} of {_several(len(pairs), 'test clip')}, {wrong[0]} before"
    return _judged(
        name,
        found,
        worse=wrong[1] > wrong[0],
        rows=[b for b, _ in pairs],
        changes=[(a.detected != a.language) - (b.detected != b.language) for b, a in pairs],
    )


def times_guard(before: Sequence[Scored], after: Sequence[Scored]) -> Guard:
    """Word times must not get worse, against the references' times or else against the ends of the speech.

    The ends count in clips whose first and last words both models got right: of other words the times are no better or
    worse.
    """
    name = "time stamps"

    def by_reference(row: Scored) -> float | None:
        return (row.start_error_s + row.end_error_s) / row.timed_words / 2 if row.timed_words else None

    def by_edges(row: Scored) -> float | None:
        return None if row.edge_error_s is None or not _right_at_the_ends(row) else row.edge_error_s / 2

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
            f"word times are {1000 * new:.0f} ms off {of} on average, {1000 * old:.0f} ms before "
            f"({_several(len(known), 'test clip')})"
        )
        return _judged(
            name,
            found,
            worse=new > old + TIMES_MARGIN_S,
            rows=[row for row, _, _ in known],
            changes=[round(100 * (now - was)) for _, was, now in known],
        )
    return _unmeasured(name, "no word times to compare")


def _right_at_the_ends(row: Scored) -> bool:
    said, heard = (normalise(one, row.language).split() for one in (row.reference, row.hypothesis))
    return bool(said and heard) and (said[0], said[-1]) == (heard[0], heard[-1])


def written_guard(before: Sequence[Scored], after: Sequence[Scored]) -> Guard:
    """Words that both models got right must keep the references' capitals and punctuation."""
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
        return _unmeasured(name, "no word was transcribed correctly by both models")
    what = " and ".join(
        kind for kind, there in (("capitals", asked.capitals), ("punctuation", asked.punctuation)) if there
    )
    found = (
        f"{what}: {_percent(wrong[1] / words)} of {_several(words, 'word')} that both models got right differ from the "
        f"references, {_percent(wrong[0] / words)} before"
    )
    return _judged(name, found, worse=wrong[1] > wrong[0] + WRITTEN_MARGIN * words, rows=before, changes=changes)


def unlabelled_guard(challenger: Evaluation, champion: Evaluation) -> Guard:
    """On clips without references, no more texts may be empty, looping or too long; lengths stay similar."""
    name = "unlabelled"
    before, after = ((one.scores.get("unlabelled") or {}).get("each", {}) for one in (champion, challenger))
    shared = sorted(before.keys() & after.keys())
    if len(shared) < UNLABELLED_MIN:
        return _unmeasured(
            name,
            f"{_several(len(shared), 'clip')} without a reference decoded by both models; {UNLABELLED_MIN} required",
        )
    odd = [sum(side[id]["odd"] != "" for id in shared) for side in (before, after)]
    found = (
        f"{odd[1]} of {len(shared)} clips without a reference have an empty, looping or too long text, {odd[0]} before"
    )
    chance = _chance_of_more([(after[id]["odd"] != "") - (before[id]["odd"] != "") for id in shared])
    if odd[1] > odd[0] and chance <= GUARD_ERROR:
        return Guard(name=name, passed=False, finding=f"{found} ({_p(chance)})")
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
                finding=f"{found} (expected {SHORTER:g} to {LONGER:g}): listen to some of them, and promote with "
                "--force if they are right",
            )
    return Guard(name=name, passed=True, finding=found)


def _judged(name: str, found: str, *, worse: bool, rows: Sequence[Scored], changes: Sequence[int]) -> Guard:
    """The guard for changes by row (above 0 is worse): fails if `worse` and statistically significant."""
    if not worse:
        return Guard(name=name, passed=True, finding=found)
    chance = _chance_of_more(changes, clusters(rows)[1])
    if chance > GUARD_ERROR:
        return Guard(name=name, passed=True, finding=f"{found}, which may be chance ({_p(chance)})")
    return Guard(name=name, passed=False, finding=f"{found} ({_p(chance)})")


def _chance_of_more(changes: Sequence[int], names: Sequence[str] | None = None) -> float:
    """One-sided p of the sign-flip test: the chance of a sum this high if signs (by row or cluster) were random."""
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


def _p(chance: float) -> str:
    return f"p = {chance:.2g}" if chance >= 1e-4 else "p < 0.0001"


def _several(count: int, what: str) -> str:
    return f"{count} {what}{'' if count == 1 else 's'}"
