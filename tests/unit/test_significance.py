"""Intervals and tests over recordings, against kaldialign, SciPy and simulation."""

from __future__ import annotations

import itertools
import random
from dataclasses import replace

import kaldialign
import numpy as np
import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st

from voxloop.steps.evaluation import significance
from voxloop.steps.evaluation.significance import chance_of_improvement, interval, paired


def spoken(rng: np.random.Generator, errors: float, references: list[list[str]]) -> list[list[str]]:
    """References with some words replaced."""
    return [[word if rng.random() > errors else "wrong" for word in reference] for reference in references]


def test_with_one_utterance_a_recording_the_bootstrap_is_kaldialigns() -> None:
    rng = np.random.default_rng(3)
    references = [[f"w{n}" for n in range(rng.integers(1, 9))] for _ in range(120)]
    first, second = spoken(rng, 0.3, references), spoken(rng, 0.25, references)
    oracle = kaldialign.bootstrap_wer_ci(references, first, second)
    before, after = (
        [sum(a != b for a, b in zip(r, h, strict=True)) for r, h in zip(references, heard, strict=True)]
        for heard in (first, second)
    )
    words = [len(reference) for reference in references]
    alone = [str(n) for n in range(len(words))]
    low, high = interval(before, words, alone)
    assert low == pytest.approx(oracle["system1"]["ci95min"], abs=0.01)
    assert high == pytest.approx(oracle["system1"]["ci95max"], abs=0.01)
    assert paired(before, after, words, alone).probability == pytest.approx(oracle["p_s2_improv_over_s1"], abs=0.02)


@given(st.lists(st.integers(-4, 4), min_size=2, max_size=9))
def test_the_sign_flip_test_is_scipys(differences: list[int]) -> None:
    found = chance_of_improvement(np.array(differences))
    oracle = scipy.stats.permutation_test(
        (np.array(differences, dtype=float),),
        lambda x, axis: x.sum(axis=axis),
        permutation_type="samples",
        vectorized=True,
        alternative="less",
        n_resamples=np.inf,
    )
    assert found == pytest.approx(oracle.pvalue)


@given(st.lists(st.integers(-4, 4), max_size=8), st.integers(0, 12))
def test_what_is_unheard_is_taken_off_before_the_coins_are_tossed(differences: list[int], unheard: int) -> None:
    sums = [sum(signs) for signs in itertools.product(*((d, -d) for d in differences))]
    oracle = np.mean([total <= sum(differences) + unheard for total in sums])
    assert chance_of_improvement(np.array(differences, dtype=np.int64), unheard=unheard) == pytest.approx(oracle)


@given(st.lists(st.integers(-9, 9), max_size=60), st.randoms())
def test_the_chance_is_a_tail_of_a_symmetric_distribution(differences: list[int], order: random.Random) -> None:
    values = np.array(differences, dtype=np.int64)
    found, opposite = chance_of_improvement(values), chance_of_improvement(-values)
    assert found + opposite >= 1 - 1e-9  # both tails hold the observed sum
    assert 1e-12 <= found <= 1
    order.shuffle(differences)
    assert chance_of_improvement(np.array([*differences, 0], dtype=np.int64)) == pytest.approx(found, abs=1e-9)
    assert chance_of_improvement(3 * values) == pytest.approx(found, abs=1e-9)  # counted in other units


@pytest.mark.parametrize(("better", "worse"), [(12, 4), (300, 240), (40, 0), (30, 0)])
def test_any_number_of_recordings_is_answered_exactly(better: int, worse: int) -> None:
    differences = np.array([-1] * better + [1] * worse)
    oracle = scipy.stats.binomtest(better, better + worse, alternative="greater").pvalue
    assert chance_of_improvement(differences) == pytest.approx(max(oracle, 1e-12), rel=1e-6, abs=1e-13)


def test_many_unequal_recordings_are_close_to_the_normal_law() -> None:
    differences = np.random.default_rng(2).integers(-30, 30, 3000)
    oracle = scipy.stats.norm.cdf(differences.sum() / np.sqrt(np.square(differences).sum()))
    assert chance_of_improvement(differences) == pytest.approx(oracle, rel=0.01)


def test_the_interval_is_scipys_bootstrap_but_wider_for_few_recordings() -> None:
    rng = np.random.default_rng(4)
    for recordings, wider in ((200, 1.0), (6, 1.15)):
        words = np.full(recordings, 40)
        errors = rng.binomial(words, rng.beta(2, 6, size=recordings))
        low, high = interval(errors.tolist(), words.tolist(), [str(n) for n in range(recordings)])
        oracle = scipy.stats.bootstrap(
            (errors, words),
            lambda e, w, axis: e.sum(axis=axis) / w.sum(axis=axis),
            paired=True,
            method="percentile",
            n_resamples=5000,
            random_state=0,
        ).confidence_interval
        if wider == 1.0:
            assert (low, high) == pytest.approx((oracle.low, oracle.high), abs=0.004)
        else:
            assert high - low > wider * (oracle.high - oracle.low)


@pytest.mark.parametrize("freedom", [3, 5, 20, 500])
def test_students_quantile_is_scipys(freedom: int) -> None:
    assert significance._student(0.975, freedom) == pytest.approx(scipy.stats.t.ppf(0.975, freedom), rel=0.01)


def test_the_interval_holds_the_truth_as_often_as_it_says(monkeypatch: pytest.MonkeyPatch) -> None:
    """Eight recordings with difficulties of their own: the plain percentile interval held it in 88 % of cases."""
    monkeypatch.setattr(significance, "RESAMPLES", 1000)
    rng = np.random.default_rng(9)
    held, trials = 0, 300
    for seed in range(trials):
        rates = rng.beta(4, 12, size=8)
        errors = rng.binomial(50, rates)
        low, high = interval(errors.tolist(), [50] * 8, [str(n) for n in range(8)], seed=seed)
        held += low <= 0.25 <= high
    assert held / trials > 0.92


def test_a_test_as_large_as_growth_says_finds_the_difference_in_four_of_five_cases() -> None:
    level, rng = 0.025, np.random.default_rng(1)

    def seen(recordings: int) -> significance.Paired:
        before, after = rng.binomial(5, 0.30, recordings), rng.binomial(5, 0.24, recordings)
        return paired(before.tolist(), after.tolist(), [5] * recordings, [*map(str, range(recordings))], resamples=1)

    hint = seen(2000)
    size = round(2000 * significance.growth(hint, level))
    assert 150 < size < 500
    found = sum(seen(size).chance <= level for _ in range(300))
    assert 0.7 < found / 300 < 0.9
    assert significance.growth(replace(hint, unheard=50), level) > significance.growth(hint, level)
    nothing = paired([1, 0], [1, 0], [2, 2], ["a", "b"], resamples=1)
    assert significance.growth(nothing, level) == np.inf


def test_identical_systems_are_never_better() -> None:
    same = paired([1, 0, 2] * 20, [1, 0, 2] * 20, [4] * 60, [str(n) for n in range(60)])
    assert (same.difference, same.probability, same.chance) == (0.0, 0.0, 1.0)


def test_equal_systems_pass_both_tests_in_at_most_one_of_twenty_cases(monkeypatch: pytest.MonkeyPatch) -> None:
    """Recordings with several utterances and effects of their own: where the bootstrap alone promises too much."""
    monkeypatch.setattr(significance, "RESAMPLES", 1000)
    rng = np.random.default_rng(11)
    trials, promoted, better = 300, 0, 0
    for seed in range(trials):
        clusters = int(rng.integers(4, 30))
        names = [str(n) for n in np.repeat(np.arange(clusters), 4)]
        words = rng.integers(1, 8, size=len(names))
        hard = [np.repeat(rng.gamma(2, 0.5, size=clusters), 4) for _ in range(2)]
        errors = [rng.binomial(words, np.clip(0.2 * h, 0, 1)) for h in hard]
        found = paired(errors[0].tolist(), errors[1].tolist(), words.tolist(), names, seed=seed)
        better += found.probability >= 0.95
        promoted += found.chance <= 0.05
    assert better > promoted
    assert promoted <= scipy.stats.binom.ppf(0.99, trials, 0.05)


def test_a_truly_better_system_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(significance, "RESAMPLES", 1000)
    rng = np.random.default_rng(5)
    found = 0
    for seed in range(50):
        words = np.full(100, 3)
        before, after = rng.binomial(words, 0.25), rng.binomial(words, 0.08)
        result = paired(before.tolist(), after.tolist(), words.tolist(), [str(n) for n in range(100)], seed=seed)
        found += result.chance <= 0.05
    assert found >= 48


def test_few_recordings_widen_the_interval_and_convince_nobody() -> None:
    before, after, words = [2] * 40, [1] * 38 + [3] * 2, [4] * 40
    alone = paired(before, after, words, [str(n) for n in range(40)])
    together = paired(before, after, words, [str(n // 10) for n in range(40)])
    assert alone.chance < 0.001
    assert together.chance == pytest.approx(1 / 16)  # four recordings, all better: the least that four can show
    errors = ([3] * 10 + [0] * 10) * 2
    narrow, wide = (interval(errors, words, [str(n // size) for n in range(40)]) for size in (1, 10))
    assert wide[1] - wide[0] > 2 * (narrow[1] - narrow[0])


def test_without_words_there_is_no_division_by_zero() -> None:
    found = paired([1, 0], [0, 0], [0, 0], ["a", "b"])
    assert found.difference == -1.0
    assert interval([0], [0], ["a"]) == (0.0, 0.0)
