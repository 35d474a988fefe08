"""Which words are taken for which, and where two models differ. Pure functions over what was heard."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from voxloop.speech import text
from voxloop.speech.text import Aligned
from voxloop.steps.evaluation import significance
from voxloop.steps.evaluation.scores import Scored, slices, wer


@dataclass(frozen=True, kw_only=True, slots=True)
class Confusion:
    """An error that was made several times: said and not heard, heard and not said, or one for the other."""

    said: str | None
    heard: str | None
    count: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Confusions:
    """The most frequent errors, each kind by its count."""

    substitutions: tuple[Confusion, ...]
    deletions: tuple[Confusion, ...]
    insertions: tuple[Confusion, ...]


def differences(row: Scored, language: str | None, rules: text.Changes | None = None) -> list[Aligned]:
    """The normalised words of reference and hypothesis side by side: what was counted, word by word.

    `language` counts where the row names none; `rules` is the setting `normaliser`.
    """
    spoken = row.language or language
    return text.align(text.normalise(row.reference, spoken, rules), text.normalise(row.hypothesis, spoken, rules))


def confusions(
    rows: Sequence[Scored], language: str | None, rules: text.Changes | None = None, *, most: int = 15
) -> Confusions:
    """The `most` frequent substitutions, deletions and insertions; of equals the first by alphabet."""
    counts: dict[str, Counter[tuple[str | None, str | None]]] = {
        "substitute": Counter(),
        "delete": Counter(),
        "insert": Counter(),
    }
    for row in rows:
        if row.errors:
            for pair in differences(row, language, rules):
                if pair.operation != "equal":
                    counts[pair.operation][(pair.reference, pair.hypothesis)] += 1

    def first(operation: str) -> tuple[Confusion, ...]:
        ordered = sorted(counts[operation].items(), key=lambda one: (-one[1], one[0][0] or "", one[0][1] or ""))
        return tuple(Confusion(said=said, heard=heard, count=count) for (said, heard), count in ordered[:most])

    return Confusions(substitutions=first("substitute"), deletions=first("delete"), insertions=first("insert"))


def worst(rows: Sequence[Scored], *, most: int) -> list[Scored]:
    """Utterances with the most errors, of equals the shorter; those without any are none of them."""
    wrong = [row for row in rows if row.errors]
    return sorted(wrong, key=lambda row: (-row.errors, row.words, row.utterance))[:most]


# Two models ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True, slots=True)
class Change:
    """One utterance as two models hear it."""

    before: Scored
    after: Scored

    @property
    def errors(self) -> int:
        """Errors more; below 0 is better."""
        return self.after.errors - self.before.errors


@dataclass(frozen=True, kw_only=True, slots=True)
class SliceChange:
    """A slice as two models hear it; differences below 0 are better."""

    by: str
    name: str
    utterances: int
    words: int
    wer_before: float
    wer_after: float
    difference: float
    low: float  # ends of the 95 % interval of the difference
    high: float


def changes(before: Sequence[Scored], after: Sequence[Scored]) -> tuple[list[Change], list[Change]]:
    """The utterances that got better and those that got worse, the most changed first; rows in the same order."""
    pairs = [Change(before=old, after=new) for old, new in zip(before, after, strict=True)]
    better = sorted((one for one in pairs if one.errors < 0), key=lambda one: (one.errors, one.before.utterance))
    worse = sorted((one for one in pairs if one.errors > 0), key=lambda one: (-one.errors, one.before.utterance))
    return better, worse


def slice_changes(before: Sequence[Scored], after: Sequence[Scored]) -> list[SliceChange]:
    """Each slice's error rate by both models, with the interval of the difference, clustered by recording."""
    heard = {row.utterance: row for row in after}
    return [
        slice_change(by, name, part, [heard[row.utterance] for row in part])
        for (by, name), part in slices(before).items()
    ]


def slice_change(by: str, name: str, before: Sequence[Scored], after: Sequence[Scored]) -> SliceChange:
    """One part of a test set, named by what it was parted by, as two models hear it; rows in the same order."""
    paired = significance.paired(
        [row.errors for row in before],
        [row.errors for row in after],
        [row.words for row in before],
        [row.recording for row in before],
    )
    return SliceChange(
        by=by,
        name=name,
        utterances=len(before),
        words=sum(row.words for row in before),
        wer_before=wer(before),
        wer_after=wer(after),
        difference=paired.difference,
        low=paired.low,
        high=paired.high,
    )
