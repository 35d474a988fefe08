"""What the gate finds, by WER, clips and true gain, beside the rule before; and what it makes of real models' errors.

    python -m benchmarks.gate_power [--kept FOLDER] [--trials N] [--out FOLDER]

Vectorised over test sets of single clips: the exact sign-flip p (`gate_nights.chances`), and Student's interval in
place of the bootstrap. `--kept` is what `benchmarks.gate_decode` wrote; test sets are drawn from it with replacement.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.gate import exact_interval, kept, tilted
from benchmarks.gate_nights import ALPHA, LEAST_SAVED, Counts, Floats, chances
from voxloop.steps.evaluation.significance import _student
from voxloop.steps.gate.comparison import FEW_DIFFER, WORSE_ERROR
from voxloop.steps.gate.ledger import Wealth

NEW, OLD = Wealth.start(ALPHA).level, ALPHA / 2
WERS, GAINS, SIZES = (0.05, 0.1, 0.2, 0.5), (0.1, 0.2, 0.4), (50, 100, 200, 500, 1000)
REPEATS = 20  # models tried on the same test set
SETS = ("torgo_en", "kathleen_en", "prompts_en")


def verdicts(words: Counts, before: Counts, after: Counts, level: float = NEW) -> dict[str, Any]:
    """Verdicts on test sets (T, N) as a first attempt, by the gate and by the rule before: booleans (T,)."""
    change = after - before
    total, errors, size = change.sum(axis=1), before.sum(axis=1), change.shape[1]
    p = chances(change, np.ceil(words.sum(axis=1) / size / 2).astype(np.int64))
    worse = chances(-change, np.zeros(len(change), dtype=np.int64)) <= WORSE_ERROR
    spread = change.std(axis=1, ddof=1) * math.sqrt(size) * _student(0.975, size - 1)
    hopeless = (np.count_nonzero(change, axis=1) >= FEW_DIFFER) & (spread - total < LEAST_SAVED * errors)
    enough = -total >= LEAST_SAVED * errors
    rejected = (change == 0).all(axis=1) | worse | hopeless
    return {
        "promote": ~rejected & enough & (p <= level),
        "reject": rejected,
        "old promote": enough & (total < 0) & (p <= OLD),
        "old reject": (total >= 0) | ~enough,
    }


def simulated(rng: np.random.Generator, wer: float, gain: float, clips: int, trials: int) -> dict[str, Any]:
    """Clips of 3 to 15 words; both models share how hard each is, and each makes something of its own of it."""
    words = rng.integers(3, 16, (trials, clips))
    shared, spread = rng.standard_normal((trials, clips)), 1.0
    # The mean of a logistic of a normal, by its probit approximation, is set to the WER.
    middle = math.log(wer / (1 - wer)) * math.sqrt(1 + math.pi / 8 * 2 * spread**2)

    def rate() -> Floats:
        found: Floats = 1 / (1 + np.exp(-(middle + spread * shared + 0.7 * rng.standard_normal((trials, clips)))))
        return found

    return verdicts(words, rng.binomial(words, rate()), rng.binomial(words, (1 - gain) * rate()))


def real(folder: Path, trials: int) -> list[dict[str, Any]]:
    """Test sets from real errors: nulls by three ways, and `base` in place of `tiny.en`."""
    rng, found = np.random.default_rng(2), []
    for name in SETS:
        paths = {way: folder / f"{name}-{way}.jsonl" for way in ("tiny.en", "base", "base-sampled1", "base-sampled2")}
        if not all(path.exists() for path in paths.values()):
            continue
        heard = {way: kept(path) for way, path in paths.items()}
        words = np.array([row.words for row in heard["base"]])
        errors = {way: np.array([row.errors for row in rows]) for way, rows in heard.items()}
        rates = {way: float(each.sum() / words.sum()) for way, each in errors.items()}
        for kind, (old, new) in {
            "two samplings, swapped": ("base-sampled1", "base-sampled2"),
            "tiny.en and base, swapped": ("tiny.en", "base"),
            "tiny.en and base, tilted": ("tiny.en", "base"),
            "base for tiny.en": ("tiny.en", "base"),
        }.items():
            weights = tilted(errors[new] - errors[old]) if "tilted" in kind else None
            for clips in (50, 100, 200):
                drawn = rng.choice(len(words), (trials, clips), p=weights)
                left, right = errors[old][drawn], errors[new][drawn]
                if "swapped" in kind:
                    coin = rng.random(drawn.shape) < 0.5
                    left, right = np.where(coin, left, right), np.where(coin, right, left)
                row = {"set": name, "kind": kind, "clips": clips, "before": rates[old], "after": rates[new]}
                found.append(row | _shares(verdicts(words[drawn], left, right)))
    return found


def lives(folder: Path, trials: int) -> list[dict[str, Any]]:
    """A/B runs: lives of one test set of real clips on which REPEATS models that are no better are tried.

    Champion and challengers take each clip from one of two exchangeable samplings by a coin.
    """
    rng, found = np.random.default_rng(3), []
    for name in SETS:
        paths = [folder / f"{name}-base-sampled{seed}.jsonl" for seed in (1, 2)]
        if not all(path.exists() for path in paths):
            continue
        both = np.array([[row.errors for row in kept(path)] for path in paths])
        words = np.array([row.words for row in kept(paths[0])])
        clips = np.arange(len(words))
        champion = both[rng.integers(0, 2, (trials, len(words))), clips]
        passed, unheeded = np.zeros(trials, dtype=bool), np.zeros(trials, dtype=bool)
        wealth = Wealth.start(ALPHA)
        for _ in range(REPEATS):
            challenger = both[rng.integers(0, 2, (trials, len(words))), clips]
            whole = np.broadcast_to(words, challenger.shape)
            passed |= verdicts(whole, champion, challenger, wealth.level)["promote"]
            unheeded |= verdicts(whole, champion, challenger, NEW)["promote"]
            wealth = wealth.tried(promoted=False)
        low, high = exact_interval(int(passed.sum()), trials)
        found.append(
            {"set": name, "any": float(passed.mean()), "low": low, "high": high, "unheeded": float(unheeded.mean())}
        )
    return found


def _shares(found: dict[str, Any]) -> dict[str, float]:
    return {name: float(one.mean()) for name, one in found.items()}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gate_power", description=__doc__)
    parser.add_argument("--kept", type=Path, help="what benchmarks.gate_decode wrote")
    parser.add_argument("--trials", type=int, default=2000)
    parser.add_argument("--out", type=Path, default=Path("build/gate"))
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    began, rng, grid = time.perf_counter(), np.random.default_rng(1), []
    for wer in WERS:
        for gain in (0.0, *GAINS):
            for clips in SIZES:
                found = _shares(simulated(rng, wer, gain, clips, max(given.trials * 100 // max(clips, 100), 200)))
                grid.append({"wer": wer, "gain": gain, "clips": clips, **found})
        print(f"{time.perf_counter() - began:5.0f} s  WER {wer:.0%}", flush=True)
    out = {"grid": grid}
    if given.kept:
        out |= {"real": real(given.kept, given.trials), "lives": lives(given.kept, given.trials)}
    (given.out / "gate-power.json").write_text(json.dumps(out, indent=1) + "\n")
    print(f"{time.perf_counter() - began:5.0f} s  done", flush=True)


if __name__ == "__main__":
    main()
