"""Years of nightly runs through rules of error over time: how many promotions are false, how many true gains are found.

    python -m benchmarks.gate_nights [--years N] [--nights N] [--out FOLDER]

Every night a challenger is trained. It copies the champion on four clips of ten and hears the rest afresh, a share of
its errors truly saved or added; all of a year share one growing test set and one champion, so that their p-values
depend on each other as they do in use. All years go on side by side in NumPy. Promoted is what passes the exact
sign-flip test at the level of the rule and saves two errors of a hundred; guards are left out.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from voxloop.steps.gate import ledger

ALPHA = 0.05
AFRESH = 0.6  # share of clips that a challenger does not hear as the champion does
VAL = 40  # clips
LEAST_SAVED = 0.02

Floats = np.ndarray[Any, np.dtype[np.float64]]
Counts = np.ndarray[Any, np.dtype[np.int64]]
Flags = np.ndarray[Any, np.dtype[np.bool_]]


@dataclass(frozen=True, kw_only=True)
class Scenario:
    """What the nights bring: kinds of challengers with their shares, and the test set."""

    name: str
    saved: Sequence[float]  # share of the champion's errors that a challenger truly saves, by kind; below 0: adds
    shares: Sequence[float]  # of the kinds
    first: int  # test clips in the first night
    more: float = 0.0  # test clips that come each night
    nights: int = 365


SCENARIOS = (
    Scenario(name="none better, 100 clips for ever", saved=[0.0], shares=[1.0], first=100),
    Scenario(name="none better, 50 clips and 1 more a night", saved=[0.0], shares=[1.0], first=50, more=1),
    Scenario(
        name="2 % save a third, 50 clips and 1 more a night", saved=[0.33, 0.0], shares=[0.02, 0.98], first=50, more=1
    ),
    Scenario(
        name="10 % save a fifth, 30 % add a tenth, 100 clips and 2 more a night",
        saved=[0.2, 0.0, -0.1],
        shares=[0.1, 0.6, 0.3],
        first=100,
        more=2,
    ),
    Scenario(
        name="half save a tenth, 100 clips and 2 more a night", saved=[0.1, 0.0], shares=[0.5, 0.5], first=100, more=2
    ),
    Scenario(
        name="a person, 12 times: one in three saves a third, 60 clips and 10 more each time",
        saved=[0.33, 0.0],
        shares=[0.33, 0.67],
        first=60,
        more=10,
        nights=12,
    ),
    Scenario(
        name="one in a hundred saves a half, 200 clips for ever", saved=[0.5, 0.0], shares=[0.01, 0.99], first=200
    ),
)


# Rules, each for many years side by side -----------------------------------------------------------------------------


class Spending:
    """The rule until now: 0.05 / (n (n + 1)) for the n-th model measured on a test set that is mostly the same."""

    name = "0.05/(n(n+1))"
    val_first = False

    def __init__(self, years: int) -> None:
        self.sizes: list[int] = []

    def levels(self, clips: int) -> Floats | float:
        self.sizes.append(clips)
        rank = sum(size >= clips / 2 for size in self.sizes)
        return ALPHA / (rank * (rank + 1))

    def tried(self, tried: Flags, p: Floats, promoted: Flags) -> None:
        """Nothing is earned."""


class Lord:
    """LORD++ as the gate has it; `ledger.Wealth`, with years as a dimension."""

    val_first = True

    def __init__(
        self, years: int, *, decay: float = ledger.DECAY, first: float = ledger.FIRST, head: float = ledger.HEAD
    ) -> None:
        self.decay, self.first, self.head = decay, first, head
        self.left = np.full((years, 1), first * ALPHA)
        self.clock = np.ones((years, 1))
        self.promoted = np.zeros(years, dtype=bool)
        self.began: Floats | None = None  # clips in the test when the clocks were set back, by year
        self.clips = 0

    @property
    def name(self) -> str:
        return f"LORD++ (head {self.head:g}, decay {self.decay:g}, first {self.first:g})"

    def levels(self, clips: int) -> Floats | float:
        self.clips = clips
        if self.began is None:
            self.began = np.full(len(self.left), float(clips))
        fresh = clips >= self.began / (1 - ledger.FRESH)
        self.clock[fresh] = 1
        self.began[fresh] = clips
        return (self.left * self._share()).sum(axis=1)

    def _share(self) -> Floats:
        found: Floats = np.where(self.clock == 1, self.head, 1 - (1 - 1 / np.maximum(self.clock, 2)) ** self.decay)
        return found

    def tried(self, tried: Flags, p: Floats, promoted: Flags) -> None:
        self.left = np.where(tried[:, None], self.left * (1 - self._share()), self.left)
        self.clock = np.where(tried[:, None], self.clock + 1, self.clock)
        if promoted.any():
            earned = np.where(promoted, np.where(self.promoted, ALPHA, (1 - self.first) * ALPHA), 0.0)
            self.left = np.column_stack([self.left, earned])
            self.clock = np.column_stack([self.clock, np.ones(len(earned))])
            self.promoted |= promoted


class Saffron:
    """SAFFRON (arXiv:1802.09098): attempts whose p is at most 0.5 are not charged."""

    val_first = True
    name = "SAFFRON (λ 0.5)"
    candidate = 0.5

    def __init__(self, years: int) -> None:
        self.weights = np.full((years, 1), ledger.FIRST * ALPHA)
        self.clock = np.ones((years, 1))
        self.promoted = np.zeros(years, dtype=bool)

    def levels(self, clips: int) -> Floats | float:
        later = np.maximum(self.clock, 2)
        gamma = (1 - ledger.HEAD) * ((later - 1) ** -ledger.DECAY - later**-ledger.DECAY)
        gamma = np.where(self.clock == 1, ledger.HEAD, gamma)
        found: Floats = np.minimum(self.candidate, (1 - self.candidate) * (self.weights * gamma).sum(axis=1))
        return found

    def tried(self, tried: Flags, p: Floats, promoted: Flags) -> None:
        self.clock += (tried & (p > self.candidate))[:, None]
        if promoted.any():
            earned = np.where(promoted, np.where(self.promoted, ALPHA, (1 - ledger.FIRST) * ALPHA), 0.0)
            self.weights = np.column_stack([self.weights, earned])
            self.clock = np.column_stack([self.clock, np.ones(len(earned))])
            self.promoted |= promoted


# The nights ----------------------------------------------------------------------------------------------------------


def chances(differences: Counts, unheard: Counts) -> Floats:
    """`significance.chance_of_improvement` of each row (years, clips) of whole differences, all at once."""
    sizes = np.arange(1, max(int(np.abs(differences).max()), 1) + 1)
    counts = np.stack([(np.abs(differences) == size).sum(axis=1) for size in sizes], axis=1)
    most = counts @ sizes
    points = 1 << (2 * int(most.max(initial=1))).bit_length()
    wave = np.cos(np.outer(sizes, 2 * np.pi * np.arange(points // 2 + 1) / points))
    size_of = np.exp(counts @ np.log(np.maximum(np.abs(wave), 1e-30)))
    waves = size_of * np.where((counts @ (wave < 0)) % 2 == 1, -1.0, 1.0)
    of_sums = np.fft.fftshift(np.fft.irfft(waves, n=points, axis=1), axes=1)  # of -points/2 ..
    below = np.cumsum(of_sums, axis=1)
    observed = np.minimum(differences.sum(axis=1) + unheard, most)
    found: Floats = np.clip(below[np.arange(len(below)), observed + points // 2], 1e-12, 1.0)
    return found


def heard(rng: np.random.Generator, words: Counts, hard: Floats, factor: Floats) -> Counts:
    """Errors in clips (years, clips); `factor` by year scales how often a word is wrong."""
    found: Counts = rng.binomial(words, np.clip(hard * factor[:, None], 0, 1))
    return found


def nights(scenario: Scenario, rule: Any, *, years: int, count: int, seed: int = 1) -> dict[str, float]:
    """What `count` nights bring in each of `years` years under a rule."""
    rng = np.random.default_rng(seed)
    most = int(scenario.first + scenario.more * count)
    words = rng.integers(1, 13, (years, most + VAL))
    hard = 1 / (1 + np.exp(1.9 - 1.2 * rng.standard_normal((years, most + VAL))))  # a word is wrong in some 20 %
    factor = np.ones(years)
    champion = heard(rng, words, hard, factor)
    true, false, offered = (np.zeros(years) for _ in range(3))
    kinds = rng.choice(len(scenario.saved), (years, count), p=scenario.shares)
    saves = np.asarray(scenario.saved)[kinds]
    for night in range(count):
        clips = int(scenario.first + scenario.more * night)
        levels = np.broadcast_to(rule.levels(clips), (years,))
        saved = saves[:, night]
        afresh = heard(rng, words, hard, factor * (1 - saved / AFRESH))
        challenger = np.where(rng.random(words.shape) < AFRESH, afresh, champion)
        change = challenger - champion
        tried = change[:, most:].sum(axis=1) < 0 if rule.val_first else np.ones(years, dtype=bool)
        test = change[:, :clips]
        unheard = np.ceil(words[:, :clips].sum(axis=1) / clips / 2).astype(np.int64)
        total = test.sum(axis=1)
        p = np.ones(years)
        asked = tried & (total < 0)
        if asked.any():
            p[asked] = chances(test[asked], unheard[asked])
        enough = -total >= LEAST_SAVED * champion[:, :clips].sum(axis=1)
        promoted = asked & enough & (p <= levels)
        rule.tried(tried, p, promoted)
        better = saved > 0
        offered += better
        true += promoted & better
        false += promoted & ~better
        champion = np.where(promoted[:, None], challenger, champion)
        factor = np.where(promoted, factor * (1 - saved), factor)
    return {
        "fdr": float((false / np.maximum(true + false, 1)).mean()),
        "fdr error": float((false / np.maximum(true + false, 1)).std() / np.sqrt(years)),
        "of all": float(false.sum() / max((true + false).sum(), 1)),
        "false a year": float(false.mean()),
        "true a year": float(true.mean()),
        "offered": float(offered.mean()),
        "wer": float(factor.mean()),
    }


RULES: tuple[Any, ...] = (Spending, Lord, Saffron)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gate_nights", description=__doc__)
    parser.add_argument("--years", type=int, default=400)
    parser.add_argument("--nights", type=int, default=365)
    parser.add_argument("--decays", type=float, nargs="*", default=[], help="compare LORD++ with these, too")
    parser.add_argument("--heads", type=float, nargs="*", default=[ledger.HEAD])
    parser.add_argument("--firsts", type=float, nargs="*", default=[ledger.FIRST])
    parser.add_argument("--only", type=int, nargs="*", help="numbers of scenarios")
    parser.add_argument("--out", type=Path, default=Path("build/gate"))
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    began, rows = time.perf_counter(), []
    rules = [
        *RULES,
        *(
            partial(Lord, decay=decay, first=first, head=head)
            for decay in given.decays
            for first in given.firsts
            for head in given.heads
        ),
    ]
    for number, scenario in enumerate(SCENARIOS):
        if given.only and number not in given.only:
            continue
        for kind in rules:
            rule = kind(given.years)
            found = nights(scenario, rule, years=given.years, count=min(given.nights, scenario.nights))
            rows.append({"scenario": scenario.name, "rule": rule.name, **found})
            shown = ", ".join(f"{name} {value:.3f}" for name, value in found.items())
            print(f"{time.perf_counter() - began:5.0f} s  {scenario.name}; {rule.name}: {shown}", flush=True)
    out = {"nights": {"years": given.years, "count": given.nights, "rows": rows}}
    (given.out / "gate-nights.json").write_text(json.dumps(out, indent=1) + "\n")


if __name__ == "__main__":
    main()
