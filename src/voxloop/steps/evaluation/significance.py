"""Whether a difference in error rate is more than luck: bootstrap and permutation over recordings. Pure NumPy.

Utterances of one recording share voice, room and topic, so they are drawn together
(clusters): drawing utterances singly makes intervals too narrow.
Letters in shapes: `N` utterances, `C` clusters, `R` resamples.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import numpy as np

Array = np.ndarray[Any, np.dtype[Any]]

RESAMPLES = 10_000
LEVEL = 0.95  # of intervals
POWER = 0.8  # share of cases in which a test of the size that `growth` names finds the difference
BLOCK = 2_000_000  # numbers drawn at once, so that memory stays bounded


@dataclass(frozen=True, kw_only=True, slots=True)
class Paired:
    """Two systems on the same utterances. Differences are after minus before: below 0 is better."""

    difference: float  # of the error rates, as observed
    low: float  # ends of the interval of the difference
    high: float
    probability: float  # share of resamples in which the second system is better; ties do not count
    chance: float  # probability of an improvement this large where both are equally good
    chance_worse: float  # probability of a loss this large where both are equally good
    clusters: int
    differing: int  # clusters in which the two systems made unequal numbers of errors
    saved: int  # errors
    squares: int  # sum over clusters of the squared difference of errors
    unheard: int  # errors that `chance` takes off what was saved


def interval(
    errors: Sequence[int], units: Sequence[int], clusters: Sequence[str], *, seed: int = 0
) -> tuple[float, float]:
    """Percentile interval of an error rate, by a bootstrap over clusters; inputs (N,)."""
    sums = _by_cluster(clusters, errors, units)
    drawn = np.concatenate(list(_resampled(sums, np.random.default_rng(seed), RESAMPLES)))
    return _ends(drawn[:, 0] / np.maximum(drawn[:, 1], 1), len(sums))


def paired(
    before: Sequence[int],
    after: Sequence[int],
    units: Sequence[int],
    clusters: Sequence[str],
    *,
    unheard: int = 0,
    resamples: int | None = None,
    seed: int = 0,
) -> Paired:
    """Compare the errors of two systems on the same utterances; inputs (N,), the references' units shared.

    The interval and the probability of improvement are Bisani & Ney's ("Bootstrap
    estimates for confidence intervals in ASR performance evaluation", ICASSP 2004),
    drawing clusters. A bootstrap of few clusters promises too much, so the verdict
    rests on `chance`: the sign-flip permutation test over clusters, whose error is
    bounded at any size (Yeh, "More accurate tests for the statistical significance
    of result differences", COLING 2000). It is bounded where luck is as likely to help
    as to harm. A system that falls into rare, large errors has luck that mostly helps:
    a small test may hold none of them. So `unheard` errors are taken off what was saved.
    """
    sums = _by_cluster(clusters, before, after, units)
    rng = np.random.default_rng(seed)
    drawn = np.concatenate(list(_resampled(sums, rng, resamples or RESAMPLES)))
    differences = (drawn[:, 1] - drawn[:, 0]) / np.maximum(drawn[:, 2], 1)
    low, high = _ends(differences, len(sums))
    total = sums.sum(axis=0)
    changes = sums[:, 1] - sums[:, 0]
    return Paired(
        difference=float((total[1] - total[0]) / max(total[2], 1)),
        low=low,
        high=high,
        probability=float((differences < 0).mean()),
        chance=chance_of_improvement(changes, unheard=unheard),
        chance_worse=chance_of_improvement(-changes),
        clusters=len(sums),
        differing=int(np.count_nonzero(changes)),
        saved=int(-changes.sum()),
        squares=int(np.square(changes).sum()),
        unheard=unheard,
    )


def chance_of_improvement(differences: Array, *, unheard: int = 0) -> float:
    """Probability of a sum as low as that of whole `differences` (C,), where the sign of each is a coin's toss.

    `unheard` is added to their sum first.

    The sum's distribution is the inverse Fourier transform of its characteristic
    function, the product of cos(d t) over the differences (Pagano & Tritchler, "On
    obtaining permutation distributions in polynomial time", JASA 78, 1983): exact but
    for rounding, which is why nothing below 1e-12 is answered.
    """
    sizes, counts = np.unique(np.abs(differences[differences != 0]), return_counts=True)
    most = int(sizes @ counts)
    if not most:
        return 1.0
    points = 1 << (2 * most).bit_length()  # more than the 2 * most + 1 sums there can be
    angles = 2 * np.pi * np.arange(points // 2 + 1) / points
    wave = np.ones_like(angles)
    for size, count in zip(sizes, counts, strict=True):
        wave *= np.cos(size * angles) ** count
    of_sums = np.fft.irfft(wave, n=points)  # [s] is the probability of the sum s, [-s] of -s
    observed = min(int(differences.sum()) + unheard, most)
    return float(np.clip(of_sums[np.arange(-most, observed + 1)].sum(), 1e-12, 1.0))


def growth(found: Paired, level: float, power: float = POWER) -> float:
    """How many times as large a test would show this difference, were it as large there, in `power` of cases.

    By the normal approximation of the sign-flip test, with f times the clusters:
    f saved - unheard = z sqrt(f squares). At least as many clusters as can show anything.
    """
    if found.saved <= 0:
        return math.inf
    z = NormalDist().inv_cdf(1 - level) + NormalDist().inv_cdf(power)
    spread = z * math.sqrt(found.squares)
    root = (spread + math.sqrt(spread**2 + 4 * found.saved * found.unheard)) / (2 * found.saved)
    return max(root**2, math.log2(1 / level) / found.differing)


def _by_cluster(clusters: Sequence[str], *columns: Sequence[int]) -> Array:
    """Columns (N,) summed within clusters: (C, columns)."""
    names, index = np.unique(np.asarray(clusters), return_inverse=True)
    sums = np.zeros((len(names), len(columns)), dtype=np.int64)
    np.add.at(sums, index, np.column_stack([np.asarray(column, dtype=np.int64) for column in columns]))
    return sums


def _resampled(sums: Array, rng: np.random.Generator, resamples: int) -> Iterator[Array]:
    """Totals of R resamples of the rows of `sums` (C, columns), in blocks (rows, columns)."""
    step = max(1, BLOCK // max(len(sums), 1))
    for start in range(0, resamples, step):
        rows = min(step, resamples - start)
        chosen = rng.integers(0, len(sums), size=(rows, len(sums)))
        yield np.stack([column[chosen].sum(axis=1) for column in sums.T], axis=1)


def _ends(values: Array, clusters: int) -> tuple[float, float]:
    """Ends of the percentile interval, widened for few clusters.

    The spread of C values is estimated too small by sqrt((C - 1) / C), and normal
    quantiles stand for Student's: both are mended at the percentiles that are read
    (Hesterberg, "What Teachers Should Know About the Bootstrap", arXiv:1411.5279, 5.3).
    """
    tail = (1 - LEVEL) / 2
    if clusters > 1:
        wider = _student(1 - tail, clusters - 1) * math.sqrt(clusters / (clusters - 1))
        tail = NormalDist().cdf(-wider)
    low, high = np.quantile(values, [tail, 1 - tail])
    return float(low), float(high)


def _student(level: float, freedom: int) -> float:
    """Quantile of Student's t by its expansion about the normal (Abramowitz & Stegun 26.7.5); close from 3 up."""
    z = NormalDist().inv_cdf(level)
    terms = (
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
    )
    return z + math.fsum(term / freedom**power for power, term in enumerate(terms, 1))
