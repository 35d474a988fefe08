"""Forecast the gain from more speech: fit a power law to error rates on parts of a dataset. Pure NumPy.

The law is Hestness et al.'s ("Deep Learning Scaling is Predictable, Empirically",
arXiv:1712.00409): WER(n) = floor + scale * (n / N)^-exponent, `N` the most clips measured.
Letters in shapes: `S` shares, `K` runs, `U` utterances, `C` clusters (recordings), `R` resamples, `E` exponents.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

Array = np.ndarray[Any, np.dtype[Any]]

RESAMPLES = 2000
LEVEL = 0.95  # of intervals
EXPONENTS = np.geomspace(0.05, 2.0, 200)  # Hestness et al. found 0.07 to 0.35 at scale; small data falls faster
MIN_RUNS = 2  # per share: a single run cannot separate the effect of speech from chance
FALLS = 0.95  # share of resamples in which WER has to fall from the smallest share to the largest
WIDEST = 0.5  # widest useful interval of the next fall, relative to today's error rate
Z_MISFIT = 2.326  # the 99 % point of the normal distribution: a law with a larger misfit is rejected
NOT_REJECTED = 3.84  # chi-squared of one degree of freedom at 95 %: how much worse a law without a floor may fit


@dataclass(frozen=True, kw_only=True, slots=True)
class Trial:
    """One training run on a share of the clips, with its word errors by utterance."""

    clips: int
    seed: int
    errors: tuple[int, ...]  # (U,)


@dataclass(frozen=True, kw_only=True, slots=True)
class At:
    """An error rate at a number of clips, with its 95 % interval."""

    clips: int
    wer: float
    low: float
    high: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Curve:
    """A fitted law and its forecast."""

    floor: float  # the WER that more such speech cannot beat
    scale: float
    exponent: float
    measured: tuple[At, ...]  # by share, smallest first
    forecast: tuple[At, ...]  # beyond what was measured
    falls: tuple[At, ...]  # for each of `forecast`: how far below today's WER it lies; above 0 is better
    probability: float  # share of resamples in which WER falls from the smallest share to the largest
    today: float  # the law's WER at the largest share; `measured` has the observed one
    follows: bool  # whether the error rates lie on such a curve, within their noise
    usable: bool  # False: too flat, too noisy, or another kind of curve


def fit(
    clips: Sequence[int], wers: Array, spreads: Array, *, floored: bool = True
) -> tuple[Array, Array, Array, Array]:
    """Least-squares fit of the law (or, if not `floored`, one without a floor) for each row of `wers` (R, S).

    `spreads` (S,) are the standard errors. Returns floor, scale, exponent and chi-squared, (R,) each.

    For a given exponent the law is linear in floor and scale, so their best values are exact and the
    best exponent is found on a grid, without start values or local minima. Floor and scale are at least 0.
    """
    x = np.asarray(clips, dtype=float) / max(clips)
    precision = 1 / np.maximum(np.asarray(spreads, dtype=float), 1e-9) ** 2
    weights = precision / precision.sum()
    basis = x[None, :] ** -EXPONENTS[:, None]  # (E, S)
    mean_basis = basis @ weights  # (E,)
    mean_wer = wers @ weights  # (R,)
    centred = basis - mean_basis[:, None]
    variance = (centred**2) @ weights
    covariance = ((wers - mean_wer[:, None]) * weights) @ centred.T
    scale = np.maximum(covariance / np.maximum(variance, 1e-12), 0.0)  # (R, E)
    floor = mean_wer[:, None] - scale * mean_basis
    # Where the line would start below 0: the best one through 0.
    through = (wers * weights) @ basis.T / ((basis**2) @ weights)
    scale = np.where((floor < 0) | (not floored), np.maximum(through, 0.0), scale)
    floor = np.maximum(floor, 0.0) if floored else np.zeros_like(floor)
    missed = wers[:, None, :] - (floor[:, :, None] + scale[:, :, None] * basis)
    chi_squared = (missed**2) @ precision  # (R, E)
    best = np.argmin(chi_squared, axis=1)
    rows = np.arange(len(wers))
    return floor[rows, best], scale[rows, best], EXPONENTS[best], chi_squared[rows, best]


def extrapolate(
    trials: Sequence[Trial], words: Sequence[int], clusters: Sequence[str], at: Sequence[int], *, seed: int = 0
) -> Curve:
    """The law through the trials, with intervals by a bootstrap over recordings and over runs.

    Recordings are drawn as in `significance.interval`, the same ones for all trials. Residuals between
    runs of one share are pooled over the shares (scaled by the root of the WER, with which they shrink)
    and drawn anew for each run. Raises ValueError for fewer than three shares, or fewer than MIN_RUNS
    runs in a share.
    """
    shares = sorted({trial.clips for trial in trials})
    groups = [[number for number, trial in enumerate(trials) if trial.clips == share] for share in shares]
    if len(shares) < 3 or min(len(group) for group in groups) < MIN_RUNS:
        raise ValueError(
            f"at least 3 shares with {MIN_RUNS} runs each are needed; found {[len(group) for group in groups]}"
        )
    rng = np.random.default_rng(seed)
    names, index = np.unique(np.asarray(clusters), return_inverse=True)
    errors = np.zeros((len(trials), len(names)))  # (K, C)
    units = np.zeros(len(names))
    np.add.at(units, index, np.asarray(words, dtype=float))
    for number, trial in enumerate(trials):
        np.add.at(errors[number], index, np.asarray(trial.errors, dtype=float))
    drawn = rng.multinomial(len(names), np.full(len(names), 1 / len(names)), size=RESAMPLES)  # (R, C)
    rates = (drawn @ errors.T) / np.maximum(drawn @ units, 1)[:, None]  # (R, K)
    observed = errors.sum(axis=1) / max(units.sum(), 1)  # (K,)
    by_share = np.stack([observed[group].mean() for group in groups])  # (S,)
    residuals = np.concatenate(
        [(observed[group] - mean) / _root(mean) for group, mean in zip(groups, by_share, strict=True)]
    )
    # Correct the residuals for the degrees of freedom used by the means.
    residuals *= np.sqrt(len(residuals) / (len(residuals) - len(groups)))
    resampled = np.empty((RESAMPLES, len(shares)))
    for column, (group, mean) in enumerate(zip(groups, by_share, strict=True)):
        chance = rng.choice(residuals, size=(RESAMPLES, len(group))).mean(axis=1) * _root(mean)
        resampled[:, column] = np.maximum(rates[:, group].mean(axis=1) + chance, 0.0)
    spreads = resampled.std(axis=0) + 1e-4
    floor, scale, exponent, misfit = (float(value[0]) for value in fit(shares, by_share[None, :], spreads))
    floors, scales, exponents, _ = fit(shares, resampled, spreads)
    if float(fit(shares, by_share[None, :], spreads, floored=False)[3][0]) - misfit <= NOT_REJECTED:
        # A handful of shares seldom shows whether there is a floor. If there may be none, half of the resamples are
        # fitted without one, so that the interval covers the uncertainty about the law itself.
        for laws, without in zip(
            (floors, scales, exponents), fit(shares, resampled[::2], spreads, floored=False)[:3], strict=True
        ):
            laws[::2] = without

    def law(clips: int) -> tuple[float, Array]:
        x = clips / shares[-1]
        return floor + scale * x**-exponent, floors + scales * x**-exponents

    today, todays = law(shares[-1])
    beyond = [(clips, *law(clips)) for clips in at]
    forecast = tuple(_at(clips, value, values) for clips, value, values in beyond)
    probability = float((resampled[:, -1] < resampled[:, 0]).mean())
    falls = tuple(_at(clips, today - value, todays - values) for clips, value, values in beyond)
    width = max((one.high - one.low for one in falls[:1]), default=0.0)
    follows = misfit <= _most_misfit(len(shares) - 3)
    return Curve(
        floor=floor,
        scale=scale,
        exponent=exponent,
        measured=tuple(
            _at(share, float(by_share[column]), resampled[:, column]) for column, share in enumerate(shares)
        ),
        forecast=forecast,
        falls=falls,
        probability=probability,
        today=today,
        follows=follows,
        usable=follows and probability >= FALLS and width <= WIDEST * max(today, 1e-9),
    )


def _most_misfit(freedom: int) -> float:
    """The 99 % point of chi-squared (Wilson and Hilferty, PNAS 17, 1931); with no degree of freedom left, any fits."""
    return (
        freedom * (1 - 2 / (9 * freedom) + Z_MISFIT * (2 / (9 * freedom)) ** 0.5) ** 3 if freedom > 0 else float("inf")
    )


def _root(mean: float) -> float:
    return float(np.sqrt(max(mean, 1e-4)))


def _at(clips: int, value: float, values: Array) -> At:
    tail = (1 - LEVEL) / 2
    low, high = np.quantile(values, [tail, 1 - tail])
    return At(clips=clips, wer=value, low=float(low), high=float(high))
