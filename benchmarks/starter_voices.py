"""What a voice's own clips teach: word error rates before and after tuning a starter that never heard the voice.

    python -m benchmarks voices --data ../shared/data --starters build/starter --steps 250

Each row is one run of the recipe `quick` on 20 or 50 clips of a voice, through the steps a user takes: ingest, worker,
dataset, train. The clips are all that is known of the voice: none are held back to choose the best weights by, so the
last ones are kept. Before and after are measured on the same clips of the voice, none of which is ever trained on.

- Digits: half of a speaker's recordings of each digit are the test, alone and joined into strings of three to five with
  pauses of 50 to 300 ms. A run trains on as many of each digit (2 or 5), drawn by its seed.
- Sentences: 60 clips are the test; a run draws its own from the others, less those with a text of the test.

Rows that are done are kept in the output folder and not done again, as long as starter, recipe and steps are the same.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import logging
import random
import statistics
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from benchmarks import results
from benchmarks.side_by_side import machine
from voxloop import models
from voxloop.automation.worker import work
from voxloop.pipeline import open_loop
from voxloop.records import Model
from voxloop.speech import text
from voxloop.speech.audio import decode
from voxloop.starter import STARTER_DIR
from voxloop.starter.corpus import Clip
from voxloop.starter.measure import strings
from voxloop.steps import datasets, hearing, training, transcripts
from voxloop.steps.recordings import ingest
from voxloop.steps.training import recipes
from voxloop.workspace import Workspace

RECIPE: Final = "quick"
CLIPS: Final = (20, 50)
SEEDS: Final = (1, 2, 3)
DIGIT_SPEAKERS: Final = ("george", "jackson", "lucas", "nicolas", "theo")
SENTENCE_SETS: Final = {"kathleen": "kathleen_en", "allison-smith": "prompts_en"}
SHIPPED_NEVER_HEARD: Final = ("theo", "kathleen")
"""Voices that the shipped starter can be measured on; its card says so."""

STRINGS: Final = 100
SENTENCE_TESTS: Final = 60
SENTENCE_WORDS: Final = 3  # fewer are no sentence
SENTENCE_S: Final = 6.0  # the starter was trained on no longer ones
EVALUATIONS: Final = 6  # of a run of so many steps, where there is anything to evaluate on: one each 10 s of the 60


@dataclass(frozen=True, kw_only=True, slots=True)
class Said:
    """One recording of a voice with its text."""

    file: Path
    text: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Voice:
    """One voice: what is tested, never trained on, and what runs may draw from."""

    name: str
    digits: bool
    test: tuple[Said, ...]
    pool: tuple[Said, ...]

    def draw(self, count: int, seed: int) -> list[Said]:
        """`count` clips of the pool: of digits as many of each, of sentences any."""
        rng = random.Random(f"{self.name} {seed}")
        if not self.digits:
            return rng.sample(self.pool, min(count, len(self.pool)))
        drawn: list[Said] = []
        words = sorted({said.text for said in self.pool})
        for word in words:
            drawn += rng.sample([said for said in self.pool if said.text == word], count // len(words))
        return drawn


@dataclass(frozen=True, kw_only=True, slots=True)
class LearningRow:
    """One run. Rates are errors by word of the reference, both sides normalised as the product does."""

    voice: str
    clips: int
    """Clips trained on: the workspace may have left some out."""
    asked: int
    seed: int
    steps: int
    starter: str
    recipe: str
    singles_before: float
    singles_after: float
    """Single digits, or sentences."""
    strings_before: float | None
    strings_after: float | None
    train_s: float
    """Wall-clock seconds of training; says little on a machine that does other things too."""

    @property
    def improvement(self) -> float:
        """Share of the errors on single clips that is gone."""
        return 1 - self.singles_after / self.singles_before if self.singles_before else 0.0


Heard = tuple[float, float | None]
"""Word error rates on single clips and on strings."""


# Speech --------------------------------------------------------------------------------------------------------------


def voice(data: Path, name: str) -> Voice:
    """A voice of the data folder, divided the same way every time."""
    digits = name in DIGIT_SPEAKERS
    folder = data / ("digits_en" if digits else SENTENCE_SETS[name])
    listing = folder / "metadata.jsonl"
    if not listing.is_file():
        raise SystemExit(f"{listing} is not there: needed is the folder with {folder.name}; name it with --data")
    rows = [json.loads(line) for line in listing.read_text(encoding="utf-8").splitlines()]
    said = [Said(file=folder / row["file"], text=row["text"]) for row in rows if _suits(row, name, digits)]
    rng = random.Random(f"test {name}")
    if digits:
        test: list[Said] = []
        for word in sorted({each.text for each in said}):
            of_word = [each for each in said if each.text == word]
            test += rng.sample(of_word, len(of_word) // 2)
    else:
        test = rng.sample(said, SENTENCE_TESTS)
    tested = {each.file for each in test} if digits else {each.text for each in test}
    pool = [each for each in said if (each.file if digits else each.text) not in tested]
    return Voice(name=name, digits=digits, test=tuple(test), pool=tuple(pool))


def _suits(row: dict[str, Any], name: str, digits: bool) -> bool:
    if row["speaker"] != name:
        return False
    return digits or (row["duration"] <= SENTENCE_S and len(row["text"].split()) >= SENTENCE_WORDS)


def _clip(said: Said) -> Clip:
    samples = np.round(np.clip(decode(said.file), -1, 1) * 32767).astype(np.int16)
    return Clip(kind="digit", text=said.text, speaker="", real=True, samples=samples)


# One run -------------------------------------------------------------------------------------------------------------


class Bench:
    """Measures voices one row at a time and keeps what is done in `voices_rows.jsonl`."""

    def __init__(self, asked: argparse.Namespace) -> None:
        self.asked = asked
        self.kept = asked.out / "voices_rows.jsonl"
        self.rows: list[LearningRow] = []
        self.before: dict[tuple[str, str], Heard] = {}
        asked.out.mkdir(parents=True, exist_ok=True)
        if self.kept.exists():
            for line in self.kept.read_text(encoding="utf-8").splitlines():
                self.rows.append(LearningRow(**json.loads(line)))
        for row in self.rows:
            self.before[row.voice, row.starter] = (row.singles_before, row.strings_before)

    def overrides(self, seed: int) -> list[str]:
        """Settings of the recipe for one run: an end by steps where steps are asked for, else by its own clock."""
        given = [f"seed={seed}", *self.asked.set]
        if self.asked.steps:
            every = max(1, self.asked.steps // EVALUATIONS)
            given += [f"max_steps={self.asked.steps}", "max_seconds=none", "eval_seconds=none", f"eval_steps={every}"]
        return given

    def recipe_id(self) -> str:
        """Short name of everything the recipe says, but for the seed."""
        recipe = recipes.override(recipes.named(RECIPE), self.overrides(0))
        return hashlib.sha256(json.dumps(recipe.as_dict(), sort_keys=True).encode()).hexdigest()[:12]

    def starter(self, name: str) -> Path:
        """A starter that never heard the voice."""
        folder: Path = self.asked.starters / name
        if (folder / "config.json").is_file():
            return folder
        if name in SHIPPED_NEVER_HEARD:
            return STARTER_DIR
        raise SystemExit(
            f"{folder} holds no model: needed is a starter that never heard {name}; "
            f"make it with python -m voxloop.starter.build --leave-out {name} --polish-minutes 0 --out {folder}"
        )

    def run(self, voice: Voice, clips: int, seed: int) -> LearningRow | None:
        """One row; None where it is done already."""
        folder = self.starter(voice.name)
        with tempfile.TemporaryDirectory(prefix="voxloop-voices-") as temporary:
            # Digits are short, and clips cut tightly around one word read noisier than they are: all are to be used.
            settings = {"min_clip_s": 0.1, "min_snr_db": -100.0}
            settings |= {"threads": self.asked.threads, "base_model": str(folder)}
            with open_loop(Path(temporary) / "workspace", create=True, **settings) as ws:
                base = models.base_model(ws)
                for row in self.rows:
                    if (row.voice, row.asked, row.seed) != (voice.name, clips, seed):
                        continue
                    if (row.starter, row.recipe) == (base.id, self.recipe_id()):
                        return None
                _take(ws, voice.draw(clips, seed), Path(temporary) / "speech")
                # All of it is for training: a voice's own clips are few, and none are kept to choose weights by.
                dataset = datasets.build(ws, ratios=(1.0, 0.0, 0.0))
                run = training.train(ws, dataset=dataset.id, recipe=RECIPE, overrides=self.overrides(seed))
                if (voice.name, base.id) not in self.before:
                    self.before[voice.name, base.id] = _heard(ws, base, voice)
                with ws.read() as reader:
                    tuned = reader.get(Model, str(run.model))
                before, after = self.before[voice.name, base.id], _heard(ws, tuned, voice)
                return LearningRow(
                    voice=voice.name,
                    clips=dataset.clips["train"],
                    asked=clips,
                    seed=seed,
                    steps=int(run.progress["step"]),
                    starter=base.id,
                    recipe=self.recipe_id(),
                    singles_before=before[0],
                    singles_after=after[0],
                    strings_before=before[1],
                    strings_after=after[1],
                    train_s=float(run.progress["elapsed_s"]),
                )

    def keep(self, row: LearningRow) -> None:
        """Write a row down at once: what is kept survives whatever ends this process."""
        self.rows.append(row)
        with self.kept.open("a", encoding="utf-8") as file:
            file.write(json.dumps(asdict(row)) + "\n")

    def current(self) -> list[LearningRow]:
        """The rows of the present recipe, the newest of each, in the order of the table."""
        newest = {(row.voice, row.asked, row.seed): row for row in self.rows if row.recipe == self.recipe_id()}
        order = [*DIGIT_SPEAKERS, *SENTENCE_SETS]
        return sorted(newest.values(), key=lambda row: (order.index(row.voice), row.asked, row.seed))


def _take(ws: Workspace, drawn: Sequence[Said], folder: Path) -> None:
    """The clips with their texts into the workspace, as a user's folder would come in."""
    folder.mkdir()
    lines = []
    for said in drawn:
        (folder / said.file.name).symlink_to(said.file.resolve())
        lines.append(json.dumps({"file": said.file.name, "text": said.text, "speaker": "me", "language": "en"}))
    (folder / "metadata.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    report = ingest(ws, folder)
    if len(report.taken) != len(drawn):
        raise SystemExit(f"{len(report.taken)} of {len(drawn)} clips were taken in: {report.refused[:3]}")
    work(ws, until_idle=True)


def _heard(ws: Workspace, model: Model, voice: Voice) -> Heard:
    """What a model, served as it always is, makes of the test clips and of strings of them."""
    clips = [_clip(said) for said in voice.test]
    singles = _rate(ws, model, [clip.wave for clip in clips], [clip.text for clip in clips])
    if not voice.digits:
        return singles, None
    joined = strings(clips, count=STRINGS, seed=0)
    return singles, _rate(ws, model, [each.wave for each in joined], [each.text for each in joined])


def _rate(ws: Workspace, model: Model, waveforms: Sequence[Any], references: Sequence[str]) -> float:
    with models.loaded(ws, model) as recogniser:
        heard = hearing.hear_files(recogniser, waveforms, transcripts.decoding(ws, model=model), ws.settings)
    said = [text.normalise(reference, "en") for reference in references]
    found = [text.normalise(one.hypothesis.text, "en") for one in heard]
    return round(text.total(text.word_errors_each(said, found)).rate, 4)


# Results -------------------------------------------------------------------------------------------------------------


def section(rows: Sequence[LearningRow], *, steps: int | None, overrides: Sequence[str]) -> str:
    """Markdown: a summary by voice, then every row."""
    ended = f"{steps} steps" if steps else "60 s by the clock"
    changed = f" with {', '.join(overrides)}" if overrides else ""
    lines = [
        machine(),
        "",
        f"Recipe `{RECIPE}`{changed}, {ended}. Each starter was made without the voice. Word error rates of single "
        "digits or sentences and of strings; after: the median over the seeds, from the least to the greatest. Digits "
        "are learnt from as many clips of each; before and after are heard in 250 others and in strings of them.",
        "",
        "| voice | clips | seeds | before | after | relative improvement | strings before | strings after |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for group in _groups(rows):
        first = group[0]
        gains = [row.improvement for row in group]
        joined = [row.strings_after for row in group if row.strings_after is not None]
        before = f"{first.strings_before:.1%}" if first.strings_before is not None else ""
        lines.append(
            f"| {first.voice} | {first.asked} | {len(group)} | {first.singles_before:.1%} | "
            f"{_spread([row.singles_after for row in group])} | {statistics.median(gains):.0%} | {before} | "
            f"{_spread(joined) if joined else ''} |"
        )
    for clips in CLIPS:
        gains = [row.improvement for row in rows if row.asked == clips and row.voice in DIGIT_SPEAKERS]
        if gains:
            voices = len({row.voice for row in rows if row.asked == clips and row.voice in DIGIT_SPEAKERS})
            lines += [
                "",
                f"{clips} clips, single digits, {len(gains)} runs of {voices} speakers: median relative improvement "
                f"{statistics.median(gains):.0%} (from {min(gains):.0%} to {max(gains):.0%}).",
            ]
    lines += [
        "",
        "Every run:",
        "",
        "| voice | clips | seed | steps | before | after | strings before | strings after |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        joined_before = f"{row.strings_before:.1%}" if row.strings_before is not None else ""
        joined_after = f"{row.strings_after:.1%}" if row.strings_after is not None else ""
        lines.append(
            f"| {row.voice} | {row.clips} | {row.seed} | {row.steps} | {row.singles_before:.1%} | "
            f"{row.singles_after:.1%} | {joined_before} | {joined_after} |"
        )
    return "\n".join(lines) + "\n"


def _groups(rows: Sequence[LearningRow]) -> list[list[LearningRow]]:
    groups: dict[tuple[str, int], list[LearningRow]] = {}
    for row in rows:
        groups.setdefault((row.voice, row.asked), []).append(row)
    return list(groups.values())


def _spread(values: Sequence[float]) -> str:
    return f"{statistics.median(values):.1%} ({min(values):.1%} to {max(values):.1%})"


def main(arguments: Sequence[str]) -> None:
    """Do what is not done yet, row by row; then write the JSON and the section of the results."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks voices", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--data", type=Path, default=Path("../shared/data"), help="folder of digits_en and the others")
    parser.add_argument("--starters", type=Path, default=Path("build/starters"), help="DIR/VOICE never heard VOICE")
    parser.add_argument("--voice", action="append", help="only this voice; may be given again")
    parser.add_argument("--clips", type=int, action="append", help=f"{CLIPS} by default")
    parser.add_argument("--seed", type=int, action="append", help=f"{SEEDS} by default")
    parser.add_argument("--steps", type=int, help="end by steps, where the clock of a busy machine would tell lies")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="a setting of the recipe")
    parser.add_argument("--threads", type=int, default=0, help="CPU threads; 0: all cores")
    parser.add_argument("--out", type=Path, default=Path("build/bench"))
    parser.add_argument("--table", action="store_true", help="measure nothing: write the tables of what is done")
    parser.add_argument("--results", type=Path, default=results.PATH, help="Markdown file that takes the table")
    asked = parser.parse_args(arguments)
    logging.getLogger("voxloop").setLevel(logging.WARNING)
    bench = Bench(asked)
    # Seeds outermost: a table cut short covers every voice.
    for seed in () if asked.table else asked.seed or SEEDS:
        for name in asked.voice or (*DIGIT_SPEAKERS, *SENTENCE_SETS):
            measured = voice(asked.data, name)
            for clips in asked.clips or CLIPS:
                row = bench.run(measured, clips, seed)
                if row is not None:
                    bench.keep(row)
                    sys.stdout.write(json.dumps(asdict(row)) + "\n")
                    sys.stdout.flush()
    rows = bench.current()
    values = {"machine": machine(), "rows": [asdict(row) for row in rows]}
    (asked.out / "voices.json").write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
    body = section(rows, steps=asked.steps, overrides=asked.set)
    results.put(asked.results, "voices", body)
    sys.stdout.write(body)
