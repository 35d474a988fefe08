"""The law through error rates by amount of speech: against SciPy, on known laws, and where it should say nothing."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import curve_fit

from voxloop.steps.evaluation.curves import Trial, extrapolate, fit
from voxloop.steps.evaluation.forecast import sentences

SHARES = (6, 12, 25, 50)


def simulated(
    seed: int,
    floor: float,
    scale: float,
    exponent: float,
    *,
    runs: int = 3,
    utterances: int = 100,
    spread: float = 0.12,
) -> list[Trial]:
    """Errors of runs whose expected WER follows a law, in utterances of unlike difficulty, 4 words each."""
    rng = np.random.default_rng(seed)
    difficulty = rng.gamma(1.0, 1.0, size=utterances)
    trials = []
    for clips in SHARES:
        mean = floor + scale * (clips / SHARES[-1]) ** -exponent
        for run in range(runs):
            rate = mean * np.exp(rng.normal(0, spread) - spread**2 / 2)
            errors = rng.poisson(np.minimum(4 * rate * difficulty, 12))
            trials.append(Trial(clips=clips, seed=run, errors=tuple(int(n) for n in errors)))
    return trials


def curve(trials: list[Trial], at: tuple[int, ...] = (100, 200)):
    utterances = len(trials[0].errors)
    return extrapolate(trials, [4] * utterances, [str(n) for n in range(utterances)], at)


@given(st.floats(0.0, 0.3), st.floats(0.02, 0.5), st.floats(0.1, 1.5))
def test_a_law_without_noise_is_found_again(floor: float, scale: float, exponent: float) -> None:
    wers = np.array([[floor + scale * (n / 50) ** -exponent for n in SHARES]])
    found = [float(value[0]) for value in fit(SHARES, wers, np.full(4, 0.01))]
    there = found[0] + found[1] * 2 ** -found[2]
    assert there == pytest.approx(floor + scale * 2**-exponent, abs=0.003 * wers.max())


@pytest.mark.parametrize("seed", range(5))
def test_the_fit_is_no_worse_than_scipys(seed: int) -> None:
    rng = np.random.default_rng(seed)
    clips, spreads = np.array([5, 10, 20, 40, 80]), np.array([0.03, 0.03, 0.02, 0.02, 0.01])
    wers = 0.05 + 0.1 * (clips / 80) ** -0.6 + rng.normal(0, spreads)

    def law(n, floor, scale, exponent):
        return floor + scale * (n / 80) ** -exponent

    bounds = ([0, 0, 0.05], [np.inf, np.inf, 2.0])
    theirs, _ = curve_fit(law, clips, wers, p0=[0.05, 0.1, 0.5], sigma=spreads, bounds=bounds, max_nfev=10_000)
    ours = [float(value[0]) for value in fit(clips, wers[None], spreads)]

    def misfit(values):
        return float((((wers - law(clips, *values)) / spreads) ** 2).sum())

    assert ours[3] == pytest.approx(misfit(ours[:3]))
    assert misfit(ours[:3]) <= misfit(theirs) * 1.01 + 1e-3


def test_intervals_cover_what_is_so() -> None:
    """docs/log.md has the whole table; here a few dozen draws of one law."""
    truth = 0.05 + 0.1 * 2**-0.7
    found = [curve(simulated(seed, 0.05, 0.1, 0.7), at=(100,)) for seed in range(20)]
    covered = sum(one.forecast[0].low <= truth <= one.forecast[0].high for one in found)
    falls = sum(one.falls[0].low <= 0.15 - truth <= one.falls[0].high for one in found)
    assert covered >= 17
    assert falls >= 17
    assert sum(one.usable for one in found) >= 15


def test_where_more_speech_brings_nothing_no_forecast_is_made() -> None:
    found = [curve(simulated(seed, 0.15, 0.0, 1.0), at=(100,)) for seed in range(15)]
    assert sum(one.usable for one in found) <= 2
    said = sentences(next(one for one in found if not one.usable), seconds=60.0, words=200)
    assert "cannot be estimated" in said[1]
    assert "use a larger val split (it has 200 words)" in said[-1]
    assert not any("would give about" in one for one in said)


def test_what_is_said_holds_the_numbers() -> None:
    found = curve(simulated(1, 0.02, 0.2, 0.8, utterances=300))
    said = sentences(found, seconds=90.0, words=1200)
    assert found.usable
    assert said[0].startswith("Today's 50 clips (1.5 min) give a WER of")
    assert said[1].startswith("2 times the speech (100 clips, 3.0 min) would give about")
    assert f"{100 * found.falls[0].wer:.1f} points less" in said[1]
    assert found.measured[-1].clips == 50
    assert found.forecast[1].wer <= found.forecast[0].wer <= found.measured[0].wer


def test_too_little_to_fit_is_refused() -> None:
    trials = simulated(0, 0.1, 0.1, 0.5)
    with pytest.raises(ValueError, match="3 shares with 2 runs"):
        curve([trial for trial in trials if trial.clips > 12])
    with pytest.raises(ValueError, match="3 shares with 2 runs"):
        curve([trial for trial in trials if trial.seed == 0])


def test_error_rates_on_another_curve_are_not_drawn_on() -> None:
    """As of 3 to 25 clips of a voice (docs/log.md): slow first, then a cliff, which no law of this kind has."""
    trials = [
        Trial(clips=clips, seed=run, errors=tuple(int(4 * rate * (1 + (n + run) % 3) / 2) for n in range(200)))
        for clips, rate in zip(SHARES, (1.0, 0.95, 0.9, 0.3), strict=True)
        for run in range(3)
    ]
    found = curve(trials)
    assert not found.follows
    assert not found.usable
    assert "not along a curve that can be extrapolated (6 clips" in sentences(found, seconds=60.0, words=800)[1]
