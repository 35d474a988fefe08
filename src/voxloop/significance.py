"""Whether a difference in error rate is more than luck: bootstrap and permutation over recordings. Pure NumPy.

Utterances of one recording share voice, room and topic, so they are drawn together
(clusters): drawing utterances singly makes intervals too narrow.
Letters in shapes: `N` utterances, `C` clusters, `R` resamples.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

Array = np.ndarray[Any, np.dtype[Any]]

RESAMPLES = 10_000
LEVEL = 0.95  # of intervals
EXACT_UP_TO = 14  # clusters that differ: 2^14 sign patterns are tried one by one instead of drawn
BLOCK = 2_000_000  # numbers drawn at once, so that memory stays bounded


@dataclass(frozen=True, kw_only=True, slots=True)
class Paired:
    """Two systems on the same utterances. Differences are after minus before: below 0 is better."""

    difference: float  # of the error rates, as observed
    low: float  # ends of the interval of the difference
    high: float
    probability: float  # share of resamples in which the second system is better; ties do not count
    chance: float  # probability of an improvement this large where both are equally good


def interval(
    errors: Sequence[int], units: Sequence[int], clusters: Sequence[str], *, seed: int = 0
) -> tuple[float, float]:
    """Percentile interval of an error rate, by a bootstrap over clusters; inputs (N,)."""
    sums = _by_cluster(clusters, errors, units)
    drawn = np.concatenate(list(_resampled(sums, np.random.default_rng(seed))))
    return _ends(drawn[:, 0] / np.maximum(drawn[:, 1], 1))


def paired(
    before: Sequence[int], after: Sequence[int], units: Sequence[int], clusters: Sequence[str], *, seed: int = 0
) -> Paired:
    """Compare the errors of two systems on the same utterances; inputs (N,), the references' units shared.

    The interval and the probability of improvement are Bisani & Ney's ("Bootstrap
    estimates for confidence intervals in ASR performance evaluation", ICASSP 2004),
    drawing clusters. A bootstrap of few clusters promises too much, so `chance`
    stands beside it: the sign-flip permutation test over clusters, whose error is
    bounded at any size (Yeh, "More accurate tests for the statistical significance
    of result differences", COLING 2000).
    """
    sums = _by_cluster(clusters, before, after, units)
    rng = np.random.default_rng(seed)
    drawn = np.concatenate(list(_resampled(sums, rng)))
    differences = (drawn[:, 1] - drawn[:, 0]) / np.maximum(drawn[:, 2], 1)
    low, high = _ends(differences)
    total = sums.sum(axis=0)
    return Paired(
        difference=float((total[1] - total[0]) / max(total[2], 1)),
        low=low,
        high=high,
        probability=float((differences < 0).mean()),
        chance=chance_of_improvement(sums[:, 1] - sums[:, 0], rng),
    )


def chance_of_improvement(differences: Array, rng: np.random.Generator) -> float:
    """Probability of a sum as low as that of `differences` (C,) where the sign of each is a coin's toss."""
    differing = differences[differences != 0]
    observed = differing.sum()
    if len(differing) <= EXACT_UP_TO:
        patterns = np.arange(2 ** len(differing))[:, None] >> np.arange(len(differing)) & 1
        sums = (1 - 2 * patterns) @ differing
        return float((sums <= observed).mean())
    as_low = 0
    for rows in _blocks(len(differing)):
        signs = 1 - 2 * rng.integers(0, 2, size=(rows, len(differing)), dtype=np.int8)
        as_low += int((signs @ differing <= observed).sum())
    return (as_low + 1) / (RESAMPLES + 1)  # the observed pattern is one of those possible


def _by_cluster(clusters: Sequence[str], *columns: Sequence[int]) -> Array:
    """Columns (N,) summed within clusters: (C, columns)."""
    names, index = np.unique(np.asarray(clusters), return_inverse=True)
    sums = np.zeros((len(names), len(columns)), dtype=np.int64)
    np.add.at(sums, index, np.column_stack([np.asarray(column, dtype=np.int64) for column in columns]))
    return sums


def _resampled(sums: Array, rng: np.random.Generator) -> Iterator[Array]:
    """Totals of resamples of the rows of `sums` (C, columns), in blocks (rows, columns) that make R together."""
    for rows in _blocks(len(sums)):
        chosen = rng.integers(0, len(sums), size=(rows, len(sums)))
        yield np.stack([column[chosen].sum(axis=1) for column in sums.T], axis=1)


def _blocks(width: int) -> Iterator[int]:
    """Rows to draw at a time."""
    step = max(1, BLOCK // max(width, 1))
    for start in range(0, RESAMPLES, step):
        yield min(step, RESAMPLES - start)


def _ends(values: Array) -> tuple[float, float]:
    tail = (1 - LEVEL) / 2
    low, high = np.quantile(values, [tail, 1 - tail])
    return float(low), float(high)
