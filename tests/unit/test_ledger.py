"""The ledger: levels against another implementation of LORD++, bounds for any p-values, and the catalog."""

from __future__ import annotations

import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st
from online_fdr.p_values import LordPlusPlus

from tests.unit import frozen_speech
from voxloop.pipeline import open_loop
from voxloop.steps import datasets
from voxloop.steps.gate import ledger
from voxloop.steps.gate.ledger import Attempt, Wealth
from voxloop.workspace import Workspace

ERROR = 0.05


class Gamma:
    """The shares of a sum, as the oracle asks for them."""

    def calc_gamma(self, j: int, **_: object) -> float:
        left = 1.0
        for attempt in range(1, j):
            left *= 1 - ledger.share(attempt)
        return left * ledger.share(j)


@given(st.lists(st.sampled_from([1e-12, 1e-4, 0.001, 0.004, 0.01, 0.3, 1.0]), max_size=60))
def test_levels_and_decisions_are_those_of_another_implementation(chances: list[float]) -> None:
    oracle = LordPlusPlus(alpha=ERROR, wealth=ledger.FIRST * ERROR)
    oracle.seq = Gamma()
    wealth = Wealth.start(ERROR)
    for chance in chances:
        level = wealth.level
        promoted = oracle.test_one(chance)
        assert oracle.alpha == pytest.approx(level, rel=1e-9)
        assert promoted == (chance <= level)
        wealth = wealth.tried(promoted=promoted)


nights = st.lists(st.tuples(st.booleans(), st.booleans()), max_size=120)


@given(nights, st.floats(0.001, 0.5))
def test_levels_never_sum_to_more_than_the_promotions_earned(history: list[tuple[bool, bool]], error: float) -> None:
    """Of LORD++ this is what bounds the false ones, whatever the p-values; fresh speech must not break it."""
    wealth, spent, promotions = Wealth.start(error), 0.0, 0
    for fresh, promoted in history:
        wealth = wealth.freshened() if fresh else wealth
        assert wealth.level > 0
        spent += wealth.level
        assert spent <= error * max(promotions, 1) + 1e-12
        wealth = wealth.tried(promoted=promoted)
        promotions += promoted
    assert sum(pot.left for pot in wealth.pots) + spent == pytest.approx(
        error * (promotions if promotions else ledger.FIRST)
    )


def test_a_promotion_and_new_speech_earn_back() -> None:
    poor = Wealth.start(ERROR)
    assert poor.level == pytest.approx(0.02)
    for _ in range(30):
        before = poor.level
        poor = poor.tried(promoted=False)
        assert poor.level < before
    assert poor.freshened().level > 20 * poor.level
    assert poor.tried(promoted=True).level > 20 * poor.level
    rich = poor.tried(promoted=True).tried(promoted=True)
    assert rich.level > ledger.HEAD * ERROR


def test_a_nightly_loop_does_not_starve_as_it_did() -> None:
    """The hundredth attempt: some 1e-5, where the rule before asked for 5e-6; with new speech 50 times as much."""
    wealth = Wealth.start(ERROR)
    for _ in range(99):
        wealth = wealth.tried(promoted=False)
    assert wealth.level > 2 * ERROR / (100 * 101)
    assert wealth.freshened().level > 200 * ERROR / (100 * 101)


def test_no_better_models_for_ever_are_promoted_in_one_of_twenty_lives_at_most() -> None:
    rng = np.random.default_rng(4)
    lives, any_promoted = 400, 0
    for _ in range(lives):
        wealth, promoted = Wealth.start(ERROR), 0
        for night in range(200):
            wealth = wealth.freshened() if night in (20, 60, 140) else wealth
            hit = bool(rng.random() <= wealth.level)
            wealth, promoted = wealth.tried(promoted=hit), promoted + hit
        any_promoted += promoted > 0
    assert any_promoted <= scipy.stats.binom.ppf(0.999, lives, ERROR)


# In the catalog -------------------------------------------------------------------------------------------------------


@pytest.fixture
def ws(tmp_path: Path) -> Workspace:
    return open_loop(tmp_path / "workspace", create=True, min_snr_db=-99.0)


def enter(ws: Workspace, key: str, dataset: str = "d", *, promoted: bool = False) -> ledger.Charge:
    with ws.transaction() as tx:
        ledger.lock(tx)
        charged = ledger.charge(tx, ERROR, key=key, dataset=dataset, split="test")
        ledger.enter(tx, charged, model="m", champion="c", dataset=dataset, p=0.3, promoted=promoted)
    return charged


def kept(ws: Workspace) -> list[Attempt]:
    with ws.read() as reader:
        return ledger.attempts(reader)


def test_attempts_are_kept_in_their_order_and_replayed(each_workspace: Workspace) -> None:
    ws = each_workspace
    wealth = Wealth.start(ERROR)
    for number, promoted in enumerate((False, True, False, True, False)):
        charged = enter(ws, f"k{number}", promoted=promoted)
        assert charged.fresh  # a dataset that holds nothing known counts as new speech
        wealth = wealth.freshened()
        assert charged.limits.now == pytest.approx(wealth.level)
        wealth = wealth.tried(promoted=promoted)
    found = kept(ws)
    assert [(one.key, one.promoted, one.p, one.model, one.champion) for one in found] == [
        (f"k{number}", number in (1, 3), 0.3, "m", "c") for number in range(5)
    ]
    assert ledger.replay(ERROR, found) == wealth


def test_the_same_attempt_is_charged_once(ws: Workspace) -> None:
    first = enter(ws, "same")
    enter(ws, "other")
    again = enter(ws, "same")
    assert (first.known, again.known) == (False, True)
    assert again.limits.now == first.limits.now
    assert [one.key for one in kept(ws)] == ["same", "other"]


def test_attempts_made_at_once_are_given_levels_one_after_the_other(each_workspace: Workspace) -> None:
    ws = each_workspace
    threads = [threading.Thread(target=enter, args=(ws, f"k{number}")) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    found = kept(ws)
    wealth = Wealth.start(ERROR)
    for attempt in found:
        wealth = wealth.freshened()
        assert attempt.level == pytest.approx(wealth.level)
        wealth = wealth.tried(promoted=False)
    assert len({one.level for one in found}) == len(found) == 6


def test_shares_begin_again_when_half_of_the_test_is_new(ws: Workspace, tmp_path: Path) -> None:
    whole = frozen_speech.freeze(ws, tmp_path / "speech", clips=12, speakers=("ann", "bob", "cleo"))
    few = datasets.build(ws, name="few", ratios=(0.0, 0.0, 1.0), speakers=["ann"])
    more = datasets.build(ws, name="more", ratios=(0.0, 0.0, 1.0), speakers=["ann", "bob"])
    assert (few.clips["test"], more.clips["test"], whole.clips["test"]) == (4, 8, 12)
    levels = [enter(ws, f"k{number}", dataset).limits.now for number, dataset in enumerate((few.id, few.id, more.id))]
    assert levels[1] < levels[2] < levels[0]  # what is left is spent as at the start
    assert [one.fresh for one in kept(ws)] == [True, False, True]
    assert not enter(ws, "k3", whole.id).fresh  # a third of it is new
    assert not enter(ws, "k4", more.id).fresh


def test_what_makes_an_attempt_another_one() -> None:
    from tests.unit.test_comparison import scored

    rows, better = [scored(0, "ann", 2), scored(1, "ann", 1)], [scored(0, "ann", 1), scored(1, "ann", 1)]
    key = ledger.key("m", "c", rows, better)
    assert key == ledger.key("m", "c", list(rows), [replace(row, hypothesis="other words") for row in better])
    others = [
        ledger.key("n", "c", rows, better),
        ledger.key("m", "d", rows, better),
        ledger.key("m", "c", better, better),
        ledger.key("m", "c", rows[:1], better[:1]),
    ]
    assert len({key, *others}) == 5
