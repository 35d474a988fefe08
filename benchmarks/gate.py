"""How often the gate is wrong: simulated and resampled test sets through `comparison.judge` itself.

    python -m benchmarks.gate [--kept FOLDER] [--trials N] [--out FOLDER]

`--kept` is what `benchmarks.gate_runs` wrote: real errors of real models, from which test sets are drawn, and its A/A
runs. Writes JSON, of which `benchmarks.gate_page` makes the tables of docs/gate.md. Power, and attempts over time, are
measured by `benchmarks.gate_power` and `benchmarks.gate_nights`.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from voxloop.settings import Settings
from voxloop.steps.evaluation import Scored
from voxloop.steps.gate.comparison import Judgement, judge, weigh
from voxloop.steps.gate.ledger import Limits, Wealth

SETTINGS = Settings()
LOOP_WORDS = 12  # words that a model inserts where it falls into a loop
PARTS = ("equal", "runs")
ERROR = 1 - SETTINGS.promote_confidence
RESAMPLES = 400  # for an interval; p is exact

Counts = np.ndarray[Any, np.dtype[np.int64]]
Counted = tuple[Counts, Counts, Counts, Counts, Counts]
"""Speakers, recordings, words, errors before and after, by clip."""
Draw = Callable[[np.random.Generator], Counted]


@dataclass(frozen=True, kw_only=True)
class World:
    """Where test sets come from: clips in recordings by speakers, and two models' errors in them.

    A word is wrong with a probability whose log-odds add up from the clip's, the recording's and the speaker's
    difficulty, which both models share, and from what each model makes of them by itself.
    """

    name: str
    recordings: int
    clips: int = 1  # in a recording
    wer: float = 0.10  # of the champion, roughly
    words: tuple[int, int] = (3, 15)  # in a clip
    speakers: int = 1
    shared: float = 1.0  # standard deviation of the difficulty of a clip, and of a recording
    own: float = 0.7  # of what each model makes of a recording, and of a clip
    own_speaker: float = 0.0  # of what each model makes of a speaker
    uneven: float = 0.0  # spread of the number of clips in a recording, as a lognormal's
    loops: tuple[float, float] = (0.0, 0.0)  # share of clips in which champion and challenger loop
    better: float = 0.0  # share of its errors that the challenger truly saves

    def errors(self, rng: np.random.Generator, shift: float) -> Counted:
        """A test set; `shift` is added to the challenger's log-odds."""
        sizes = np.full(self.recordings, self.clips)
        if self.uneven:
            sizes = np.maximum(1, np.rint(self.clips * rng.lognormal(0, self.uneven, self.recordings))).astype(int)
        recording = np.repeat(np.arange(self.recordings), sizes)
        speaker = recording % self.speakers
        n = len(recording)
        words = rng.integers(self.words[0], self.words[1] + 1, n)
        odds = math.log(self.wer / (1 - self.wer)) + self.shared * (
            rng.standard_normal(n) + rng.standard_normal(self.recordings)[recording]
        )
        odds += 0.5 * rng.standard_normal(self.speakers)[speaker]
        heard = []
        for by, loops in ((0.0, self.loops[0]), (shift, self.loops[1])):
            own = odds + by + self.own * (rng.standard_normal(self.recordings)[recording] + rng.standard_normal(n))
            own += self.own_speaker * rng.standard_normal(self.speakers)[speaker]
            wrong = rng.binomial(words, 1 / (1 + np.exp(-own)))
            heard.append(wrong + LOOP_WORDS * (rng.random(n) < loops))
        return speaker, recording, words, heard[0], heard[1]

    def draw(self) -> Draw:
        """Test sets of this world, the challenger's log-odds set so that it truly is as much better as it should be."""
        large = replace(self, recordings=60_000 // self.clips, speakers=max(self.speakers, 2000), uneven=0.0)

        def excess(shift: float) -> float:
            _, _, _, before, after = large.errors(np.random.default_rng(5), shift)
            return float(after.sum() - (1 - self.better) * before.sum())

        low, high = -6.0, 6.0
        if excess(0.0) and (self.better or self.loops[0] != self.loops[1]):
            for _ in range(18):
                middle = (low + high) / 2
                low, high = (middle, high) if excess(middle) < 0 else (low, middle)
        else:
            low = high = 0.0  # the same in distribution
        return lambda rng: self.errors(rng, (low + high) / 2)


def rows(
    speaker: Counts, recording: Counts, words: Counts, before: Counts, after: Counts
) -> tuple[list[Scored], list[Scored]]:
    """Counts (N,) as evaluations keep them."""
    made: list[list[Scored]] = []
    for errors in (before, after):
        made.append(
            [
                scored(n, f"s{s}", f"r{r}", w, e)
                for n, (s, r, w, e) in enumerate(
                    zip(speaker.tolist(), recording.tolist(), words.tolist(), errors.tolist(), strict=True)
                )
            ]
        )
    return made[0], made[1]


def scored(number: int, speaker: str | None, recording: str, words: int, errors: int, seconds: float = 3.0) -> Scored:
    return Scored(
        utterance=f"{recording}:{number}",
        recording=recording,
        speaker=speaker,
        language="en",
        duration=seconds,
        reference="",
        hypothesis="",
        confidence=None,
        words=words,
        errors=errors,
        substitutions=errors,
        deletions=0,
        insertions=0,
        characters=0,
        character_errors=0,
        orthographic_words=0,
        orthographic_errors=0,
    )


# Worlds in which no challenger is better -----------------------------------------------------------------------------

EQUAL = (
    *(World(name=f"{n} single clips", recordings=n) for n in (20, 50, 200, 1000)),
    World(name="200 single clips, WER 5 %", recordings=200, wer=0.01),
    World(name="200 single clips, WER 57 %", recordings=200, wer=0.5),
    World(name="200 single words", recordings=200, words=(1, 1)),
    World(name="3 recordings of 40 clips", recordings=3, clips=40),
    World(name="6 recordings of 20 clips", recordings=6, clips=20),
    World(name="10 recordings of 20 clips", recordings=10, clips=20),
    World(name="50 recordings of 10 clips", recordings=50, clips=10),
    World(name="20 recordings of very uneven length", recordings=20, clips=8, uneven=1.2),
    World(name="6 speakers, 10 recordings each", recordings=60, clips=3, speakers=6, own_speaker=0.6),
    World(name="10 speakers, 10 recordings each", recordings=100, clips=3, speakers=10, own_speaker=0.6),
    World(name="30 speakers, 5 recordings each", recordings=150, clips=3, speakers=30, own_speaker=0.6),
    World(name="both loop in 2 % of clips", recordings=200, loops=(0.02, 0.02)),
    World(name="only the challenger loops, in 2 % of 200 clips", recordings=200, loops=(0.0, 0.02)),
    World(name="only the challenger loops, in 5 % of 50 clips", recordings=50, loops=(0.0, 0.05)),
    World(name="only the challenger loops, in 5 % of 100 clips", recordings=100, loops=(0.0, 0.05)),
    World(name="only the champion loops, in 5 % of 200 clips", recordings=200, loops=(0.05, 0.0)),
)


# Real errors ---------------------------------------------------------------------------------------------------------


def kept(path: Path) -> list[Scored]:
    """An evaluation that `benchmarks.gate_runs` wrote."""
    return [Scored(**json.loads(line)) for line in path.read_text().splitlines()[1:]]


@dataclass(frozen=True, kw_only=True)
class Real:
    """Test sets drawn with replacement from what two real models made of real speech, each clip a recording."""

    name: str
    before: Sequence[Scored]
    after: Sequence[Scored]
    clips: int
    how: str  # swapped: a coin decides which model is which; tilted: clips drawn so that both err equally often

    def draw(self) -> Draw:
        words = np.array([row.words for row in self.before])
        errors = np.array([[row.errors for row in part] for part in (self.before, self.after)])
        speakers = np.unique([row.speaker or "" for row in self.before], return_inverse=True)[1]
        loss = errors[1] - errors[0]
        weights = np.full(len(words), 1 / len(words))
        if self.how == "tilted":
            weights = tilted(loss)

        def test_set(rng: np.random.Generator) -> Counted:
            drawn = rng.choice(len(words), self.clips, p=weights)
            old, new = errors[0][drawn], errors[1][drawn]
            if self.how == "swapped":
                coin = rng.random(self.clips) < 0.5
                old, new = np.where(coin, new, old), np.where(coin, old, new)
            return speakers[drawn], np.arange(self.clips), words[drawn], old, new

        return test_set


def tilted(loss: Counts) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Weights (N,) proportional to exp(t loss), under which the loss is 0 on average: closest to even weights."""
    low, high = -20.0, 20.0
    for _ in range(60):
        tilt = (low + high) / 2
        weights = np.exp(tilt * np.clip(loss, -30, 30))
        low, high = (tilt, high) if (weights * loss).sum() < 0 else (low, tilt)
    return weights / weights.sum()


def real_pairs(folder: Path) -> Iterator[tuple[str, list[Scored], list[Scored]]]:
    """Pairs of models on the same real clips, by name."""
    for name, first, second in (
        ("theo's digits, starter and tuned", "runs-starter", "runs-seed1"),
        ("theo's digits, two seeds", "runs-seed3", "runs-seed5"),
        ("all digits, starter and tuned", "digits_en-starter", "digits_en-seed1"),
        ("all digits, two seeds", "digits_en-seed1", "digits_en-seed2"),
        ("telephone prompts, starter and tuned", "prompts_en-starter", "prompts_en-seed1"),
    ):
        paths = [folder / f"{part}.jsonl" for part in (first, second)]
        if all(path.exists() for path in paths):
            yield name, kept(paths[0]), kept(paths[1])


# Through the gate ----------------------------------------------------------------------------------------------------


def judged(before: list[Scored], after: list[Scored], level: float, resamples: int | None = RESAMPLES) -> Judgement:
    limits = Limits(now=level, again=level, fresh=level)
    return judge(weigh(before, after, settings=SETTINGS, resamples=resamples), limits=limits, settings=SETTINGS)


def promoted(draw: Draw, trials: int) -> tuple[int, int]:
    """Test sets of which the gate promotes as a first attempt, and of which it says that evidence is insufficient."""
    rng = np.random.default_rng(1)
    level = Wealth.start(ERROR).level
    verdicts = [judged(*rows(*draw(rng)), level).verdict for _ in range(trials)]
    return verdicts.count("promote"), verdicts.count("insufficient evidence")


def exact_interval(hits: int, trials: int) -> tuple[float, float]:
    """Clopper and Pearson's 95 % interval of a share."""
    from scipy.stats import binomtest

    found = binomtest(hits, trials).proportion_ci(0.95)
    return float(found.low), float(found.high)


def real_runs(folder: Path) -> dict[str, Any]:
    """A/A runs: every pair of models that differ in the seed alone, both ways round; and each against the starter."""
    found = {path.stem.removeprefix("runs-"): kept(path) for path in sorted(folder.glob("runs-*.jsonl"))}
    seeds = [name for name in found if name.startswith("seed")]
    level = Wealth.start(ERROR).level
    rates = {name: sum(r.errors for r in part) / sum(r.words for r in part) for name, part in found.items()}
    verdicts = {
        f"{new} over {old}": judged(found[old], found[new], level, None)
        for old, new in itertools.permutations(seeds, 2)
    }
    over_starter = {new: judged(found["starter"], found[new], level, None).verdict for new in seeds}
    return {
        "rates": rates,
        "pairs": len(verdicts) // 2,
        "verdicts": {name: one.verdict for name, one in verdicts.items()},
        "chances": {name: one.found.paired.chance for name, one in verdicts.items()},
        "over the starter": over_starter,
    }


# Reporting -----------------------------------------------------------------------------------------------------------


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gate", description=__doc__)
    parser.add_argument("--kept", type=Path, help="what benchmarks.gate_runs wrote")
    parser.add_argument("--trials", type=int, default=2000, help="test sets a cell")
    parser.add_argument("--out", type=Path, default=Path("build/gate"), help="where the JSON goes")
    parser.add_argument(
        "--parts", nargs="*", choices=PARTS, default=PARTS, metavar="PART", help=f"of {', '.join(PARTS)}"
    )
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    began = time.perf_counter()
    out: dict[str, Any] = {"trials": given.trials, "equal": []}

    def equal(name: str, draw: Draw) -> None:
        hits, unsure = promoted(draw, given.trials)
        low, high = exact_interval(hits, given.trials)
        out["equal"].append(
            {"name": name, "promoted": hits / given.trials, "low": low, "high": high, "unsure": unsure / given.trials}
        )
        print(
            f"{time.perf_counter() - began:5.0f} s  equal  {name}: {hits / given.trials:.2%} ({low:.2%} to {high:.2%})",
            flush=True,
        )

    for world in EQUAL if "equal" in given.parts else ():
        equal(world.name, world.draw())
    pairs = list(real_pairs(given.kept)) if given.kept else []
    for name, before, after in pairs if "equal" in given.parts else ():
        for how in ("swapped", "tilted"):
            for clips in (50, 200):
                equal(
                    f"real: {name}; {clips} clips {how}",
                    Real(name=name, before=before, after=after, clips=clips, how=how).draw(),
                )

    if given.kept and "runs" in given.parts:
        out["runs"] = real_runs(given.kept)
    (given.out / f"gate-{'-'.join(given.parts)}.json").write_text(json.dumps(out, indent=1) + "\n")


if __name__ == "__main__":
    main()
