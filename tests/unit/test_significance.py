"""Intervals and tests over recordings, against kaldialign, SciPy and simulation."""

from __future__ import annotations

import kaldialign
import numpy as np
import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st

from voxloop import significance
from voxloop.significance import chance_of_improvement, interval, paired


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
    found = chance_of_improvement(np.array(differences), np.random.default_rng(0))
    oracle = scipy.stats.permutation_test(
        (np.array(differences, dtype=float),),
        lambda x, axis: x.sum(axis=axis),
        permutation_type="samples",
        vectorized=True,
        alternative="less",
        n_resamples=np.inf,
    )
    assert found == pytest.approx(oracle.pvalue)


def test_many_recordings_are_drawn_to_the_same_answer() -> None:
    differences = np.array([-1] * 12 + [1] * 4)  # 16 that differ: more than are tried one by one
    found = chance_of_improvement(differences, np.random.default_rng(0))
    assert found == pytest.approx(scipy.stats.binomtest(12, 16, alternative="greater").pvalue, abs=0.01)


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
        promoted += found.probability >= 0.95 and found.chance <= 0.05
    assert promoted <= better
    assert promoted <= scipy.stats.binom.ppf(0.99, trials, 0.05)


def test_a_truly_better_system_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(significance, "RESAMPLES", 1000)
    rng = np.random.default_rng(5)
    found = 0
    for seed in range(50):
        words = np.full(100, 3)
        before, after = rng.binomial(words, 0.25), rng.binomial(words, 0.08)
        result = paired(before.tolist(), after.tolist(), words.tolist(), [str(n) for n in range(100)], seed=seed)
        found += result.probability >= 0.95 and result.chance <= 0.05
    assert found >= 48


def test_few_recordings_widen_the_interval_and_convince_nobody() -> None:
    before, after, words = [2] * 40, [1] * 38 + [3] * 2, [4] * 40
    alone = paired(before, after, words, [str(n) for n in range(40)])
    together = paired(before, after, words, [str(n // 10) for n in range(40)])
    assert alone.chance < 0.001
    assert together.chance == 1 / 16  # four recordings, all better: the least that four can show
    errors = ([3] * 10 + [0] * 10) * 2
    narrow, wide = (interval(errors, words, [str(n // size) for n in range(40)]) for size in (1, 10))
    assert wide[1] - wide[0] > 2 * (narrow[1] - narrow[0])


def test_without_words_there_is_no_division_by_zero() -> None:
    found = paired([1, 0], [0, 0], [0, 0], ["a", "b"])
    assert found.difference == -1.0
    assert interval([0], [0], ["a"]) == (0.0, 0.0)
