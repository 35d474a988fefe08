"""What training makes of real models: word error rates before and after, voice by voice, with the product's defaults.

    python -m benchmarks learning --data ../shared/data --sets F03,M05 --clips 20,50,all --bases base --seeds 1

Each cell goes the way of `voxloop demo`, in a workspace of its own: ingest, segment, dataset, train, promote. A voice's
clips are divided once into test (`TEST` clips at least, where there are so many; where one speaker says many things,
texts that training never hears), val (30 clips, fewer of small sets) and what may be learnt from, of which a cell takes
20, 50 or all. A row is appended to OUT/learning.jsonl as soon as a cell is done, and such cells are not done again;
`--table` only prints the table. Other voices: 40 clips of another set, in the model's own choice of language.

Processor minutes are those of the training process, evaluations on val included; clock minutes of a shared machine say
little.
"""

from __future__ import annotations

import argparse
import json
import logging
import random
import resource
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from benchmarks import checkpoints, results
from benchmarks.side_by_side import machine
from voxloop import models
from voxloop.automation.worker import work
from voxloop.pipeline import open_loop
from voxloop.records import Evaluation, Model
from voxloop.speech import text
from voxloop.speech.audio import decode
from voxloop.steps import datasets, evaluation, hearing, training, transcripts
from voxloop.steps.evaluation import Scored, scored_rows
from voxloop.steps.gate import promotion
from voxloop.steps.recordings import ingest
from voxloop.workspace import Workspace

TEST: Final = 60
VAL: Final = 30
OTHERS: Final = 40
ALL: Final = 0  # of --clips: all there are


@dataclass(frozen=True, kw_only=True, slots=True)
class Voice:
    """A set of the data folder, or one speaker of it."""

    folder: str
    language: str
    speaker: str | None = None
    other: str = "kathleen"
    """The voice on which forgetting is measured."""
    most: int = 500
    """Clips taken in at most."""


VOICES: Final = {
    "F03": Voice(folder="torgo_en", language="en", speaker="torgo-F03"),
    "M05": Voice(folder="torgo_en", language="en", speaker="torgo-M05"),
    "fosd": Voice(folder="fosd_vi", language="vi"),
    "keywords": Voice(folder="keywords_vi", language="vi", other="fosd"),
    "prompts": Voice(folder="prompts_en", language="en"),
    "kathleen": Voice(folder="kathleen_en", language="en", other="prompts"),
    "kerstin": Voice(folder="kerstin_de", language="de"),
    "digits": Voice(folder="digits_en", language="en", speaker="george"),
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """One cell. Rates are errors by word of the reference, both sides normalised as the product does."""

    voice: str
    base: str
    asked: int
    """Clips to train on; 0: all."""
    seed: int
    settings: list[str]
    recipe: str
    clips: int
    train_minutes: float
    """Of speech."""
    test_clips: int
    test_words: int
    before: float
    after: float
    low: float | None
    high: float | None
    """Ends of the 95 % interval of the difference; None where the base was kept."""
    new_words: int
    """Words of test clips whose texts training never heard."""
    new_before: float | None
    new_after: float | None
    heard_before: float | None
    heard_after: float | None
    others_before: float
    others_after: float
    val_before: float | None
    val_after: float | None
    blend: float
    steps: int
    verdict: str
    reasons: list[str]
    cpu_minutes: float
    clock_minutes: float

    @property
    def gone(self) -> float:
        """Share of the errors on new texts, or on all where none are new, that is gone."""
        before, after = (self.before, self.after) if self.new_before is None else (self.new_before, self.new_after)
        return 1 - (after or 0.0) / before if before else 0.0


def speech(data: Path, name: str) -> list[dict[str, Any]]:
    """Lines of the metadata of a voice, in an order of its own that is always the same."""
    voice = VOICES[name]
    listing = data / voice.folder / "metadata.jsonl"
    if not listing.is_file():
        raise SystemExit(f"{listing} is not there: needed is the folder with {voice.folder}; name it with --data")
    rows = [json.loads(line) for line in listing.read_text(encoding="utf-8").splitlines()]
    mine = [row for row in rows if voice.speaker in (None, row.get("speaker"))]
    return random.Random(f"order {name}").sample(mine, len(mine))[: voice.most]


class Bench:
    """Does the cells that are not done yet."""

    def __init__(self, asked: argparse.Namespace) -> None:
        self.asked = asked
        self.kept: Path = asked.out / "learning.jsonl"
        asked.out.mkdir(parents=True, exist_ok=True)
        self.rows = [Row(**json.loads(line)) for line in _lines(self.kept)]

    def done(self, voice: str, base: str, clips: int, seed: int) -> bool:
        key = (voice, base, clips, seed, self.asked.set)
        return any((row.voice, row.base, row.asked, row.seed, row.settings) == key for row in self.rows)

    def base(self, name: str) -> str:
        return str(checkpoints.fetch(name)) if name in checkpoints.CHECKPOINTS else name

    def settings(self, base: str) -> dict[str, Any]:
        # Words cut out of longer recordings are short, and read noisier than they are: all of them are to be used.
        return {
            "min_clip_s": 0.1,
            "min_snr_db": -100.0,
            "threads": self.asked.threads,
            "base_model": self.base(base),
            "engine": "ctranslate2",
        }

    def prepared(self, voice: str, base: str) -> Path:
        """A workspace with a voice's speech taken in, made once and then copied for each cell."""
        place: Path = self.asked.out / "prepared" / f"{voice}-{base.replace('/', '-')}"
        if place.is_dir():
            return place
        partial = place.with_name(place.name + ".partial")
        shutil.rmtree(partial, ignore_errors=True)
        listed = partial.parent / f"{partial.name}.speech"
        shutil.rmtree(listed, ignore_errors=True)
        listed.mkdir(parents=True)
        lines = []
        for row in speech(self.asked.data, voice):
            (listed / Path(row["file"]).name).symlink_to(
                (self.asked.data / VOICES[voice].folder / row["file"]).resolve()
            )
            told = {"file": Path(row["file"]).name, "text": row["text"], "language": VOICES[voice].language}
            lines.append(json.dumps(told | {"speaker": row.get("speaker")}))
        (listed / "metadata.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
        with open_loop(partial, create=True, **self.settings(base)) as ws:
            report = ingest(ws, listed)
            if report.refused:
                raise SystemExit(f"{len(report.refused)} clips were refused: {report.refused[:3]}")
            # What the base hears in it decides nothing here: training learns from the texts that are given.
            work(ws, ["segment"], until_idle=True)
        shutil.rmtree(listed)
        partial.rename(place)
        return place

    def run(self, voice: str, base: str, clips: int, seed: int) -> Row:
        """One cell, in a copy of the prepared workspace that goes with it."""
        prepared = self.prepared(voice, base)
        with tempfile.TemporaryDirectory(prefix="cell-", dir=self.asked.out) as temporary:
            place = shutil.copytree(prepared, Path(temporary) / "workspace")
            return self.measured(place, voice, base, clips, seed)

    def measured(self, place: Path, voice: str, base: str, clips: int, seed: int) -> Row:
        """Train in a workspace, and measure before and after."""
        with open_loop(place, **self.settings(base)) as ws:
            total = len(speech(self.asked.data, voice))
            test = max(min(TEST / total, 0.35), 0.25)
            val = min(VAL / total, 0.15)
            frozen = datasets.build(
                ws,
                ratios=(1 - test - val, val, test),
                train_limit=clips or None,
            )
            before, began = _cpu_s(), time.monotonic()
            run = training.train(ws, dataset=frozen.id, overrides=[f"seed={seed}", *self.asked.set], progress=_told)
            cpu_s, clock_s = _cpu_s() - before, time.monotonic() - began
            own = models.base_model(ws)
            others = Others(self.asked.data, VOICES[voice].other)
            first = evaluation.evaluate(ws, own.id, dataset=frozen.id)
            second, tuned, outcome = first, own, None
            if run.model is not None:
                outcome = promotion.promote(ws, run.model, dataset=frozen.id, by="benchmark").comparison
                with ws.read() as reader:
                    tuned = reader.get(Model, run.model)
                    if outcome is not None:
                        first = reader.get(Evaluation, outcome.champion_evaluation)
                        second = reader.get(Evaluation, outcome.challenger_evaluation)
            texts = {text.normalise(row.text, row.language) for row in datasets.rows(ws, frozen.id, "train")}
            rows_before, rows_after = scored_rows(ws, first), scored_rows(ws, second)
            new = [text.normalise(row.reference, row.language) not in texts for row in rows_before]
            heard = [not one for one in new]
            others_before = others.rate(ws, own)
            base_score, best = run.progress.get("base") or {}, run.progress.get("best") or {}
            return Row(
                voice=voice,
                base=base,
                asked=clips,
                seed=seed,
                settings=self.asked.set,
                recipe=run.recipe["name"],
                clips=frozen.clips["train"],
                train_minutes=round(60 * frozen.hours.get("train", 0.0), 2),
                test_clips=len(rows_before),
                test_words=sum(row.words for row in rows_before),
                before=_rate(rows_before),
                after=_rate(rows_after),
                low=round(outcome.difference_low, 4) if outcome else None,
                high=round(outcome.difference_high, 4) if outcome else None,
                new_words=sum(row.words for row, one in zip(rows_before, new, strict=True) if one),
                new_before=_rate_of(rows_before, new),
                new_after=_rate_of(rows_after, new),
                heard_before=_rate_of(rows_before, heard),
                heard_after=_rate_of(rows_after, heard),
                others_before=others_before,
                others_after=others_before if tuned.id == own.id else others.rate(ws, tuned),
                val_before=base_score.get("wer"),
                val_after=best.get("wer"),
                blend=0.0 if run.model is None else best.get("blend", 1.0),
                steps=int(run.progress.get("step", 0)),
                verdict=outcome.verdict if outcome else "kept the base",
                reasons=list(outcome.reasons) if outcome else list(run.progress.get("notes", ())),
                cpu_minutes=round(cpu_s / 60, 2),
                clock_minutes=round(clock_s / 60, 2),
            )

    def keep(self, row: Row) -> None:
        """Write a row down at once: what is kept survives whatever ends this process."""
        self.rows.append(row)
        with self.kept.open("a", encoding="utf-8") as file:
            file.write(json.dumps(asdict(row)) + "\n")


class Others:
    """Clips of another voice, to see what training made a model forget."""

    def __init__(self, data: Path, name: str) -> None:
        rows = speech(data, name)[:OTHERS]
        self.clips = [decode(data / VOICES[name].folder / row["file"]) for row in rows]
        self.texts = [text.normalise(row["text"], VOICES[name].language) for row in rows]
        self.language = VOICES[name].language

    def rate(self, ws: Workspace, model: Model) -> float:
        with models.loaded(ws, model) as recogniser:
            heard = hearing.hear_files(recogniser, self.clips, transcripts.decoding(ws, model=model), ws.settings)
        found = [text.normalise(one.hypothesis.text, self.language) for one in heard]
        return round(text.total(text.word_errors_each(self.texts, found)).rate, 4)


def _cpu_s() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _rate(rows: Sequence[Scored]) -> float:
    return round(sum(row.errors for row in rows) / max(1, sum(row.words for row in rows)), 4)


def _rate_of(rows: Sequence[Scored], chosen: Sequence[bool]) -> float | None:
    mine = [row for row, one in zip(rows, chosen, strict=True) if one]
    return _rate(mine) if sum(row.words for row in mine) else None


def _lines(file: Path) -> Iterator[str]:
    if file.exists():
        yield from file.read_text(encoding="utf-8").splitlines()


def _told(line: dict[str, Any]) -> None:
    names = ("step", "val_wer", "val_loss", "blend", "blend_wer", "served_wer", "loss")
    shown = {name: line[name] for name in names if name in line}
    sys.stderr.write(f"  {json.dumps(shown)}  {line.get('elapsed_s', 0):.0f} s\n")
    sys.stderr.flush()


# Results -------------------------------------------------------------------------------------------------------------


def section(rows: Sequence[Row]) -> str:
    """Markdown: every cell, in the order of voices and clips."""
    order = list(VOICES)
    lines = [
        machine(),
        "",
        "The product's own defaults. Word error rates of test clips that training never heard; `new texts` are those "
        "whose words it never heard either. `others`: 40 clips of another voice, or language. Interval: of the "
        "difference, 95 %, by bootstrap over recordings.",
        "",
        "| voice | base | clips | test: clips, words | before | after | interval | new texts | heard texts | gone | "
        "others | blend | verdict | processor min |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in sorted(rows, key=lambda r: (order.index(r.voice), r.base, r.asked or 10**9, r.seed)):
        seed = f", seed {row.seed}" if row.seed != 1 else ""
        changed = f" ({', '.join(row.settings)})" if row.settings else ""
        interval = "–" if row.low is None or row.high is None else f"{100 * row.low:+.1f} to {100 * row.high:+.1f}"
        lines.append(
            f"| {row.voice} | {row.base}{changed} | {row.clips}{seed} | {row.test_clips}, {row.test_words} | "
            f"{row.before:.1%} | {row.after:.1%} | {interval} | {_pair(row.new_before, row.new_after)} | "
            f"{_pair(row.heard_before, row.heard_after)} | {row.gone:.0%} | "
            f"{_pair(row.others_before, row.others_after)} | {row.blend:g} | {row.verdict} | {row.cpu_minutes:.1f} |"
        )
    return "\n".join(lines) + "\n"


def _pair(before: float | None, after: float | None) -> str:
    return "–" if before is None or after is None else f"{before:.1%} -> {after:.1%}"


def main(arguments: Sequence[str]) -> None:
    """Do the cells that are not done yet, one by one; then write the section of the results."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks learning", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--data", type=Path, default=Path("../shared/data"), help="folder of torgo_en and the others")
    parser.add_argument("--sets", default=",".join(VOICES), help=f"of {', '.join(VOICES)}; all by default")
    parser.add_argument("--clips", default="20,50,all", help="clips to train on")
    parser.add_argument("--bases", default="base", help="tiny.en and base, which are fetched; starter; or a folder")
    parser.add_argument("--seeds", default="1")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="a setting of the recipe")
    parser.add_argument("--threads", type=int, default=0, help="CPU threads; 0: all cores")
    parser.add_argument("--out", type=Path, default=Path("build/bench"))
    parser.add_argument("--table", action="store_true", help="measure nothing: write the table of what is done")
    parser.add_argument("--results", type=Path, default=results.PATH, help="Markdown file that takes the table")
    asked = parser.parse_args(arguments)
    logging.getLogger("voxloop").setLevel(logging.WARNING)
    bench = Bench(asked)
    cells = [
        (voice, base, ALL if clips == "all" else int(clips), int(seed))
        for seed in asked.seeds.split(",")
        for clips in asked.clips.split(",")
        for base in asked.bases.split(",")
        for voice in asked.sets.split(",")
    ]
    for voice, base, clips, seed in () if asked.table else cells:
        if voice not in VOICES:
            parser.error(f"there is no set {voice!r}; known: {', '.join(VOICES)}")
        if (base.endswith(".en") and VOICES[voice].language != "en") or bench.done(voice, base, clips, seed):
            continue
        sys.stderr.write(f"{voice}, {base}, {clips or 'all'} clips, seed {seed}\n")
        bench.keep(bench.run(voice, base, clips, seed))
    body = section(bench.rows)
    results.put(asked.results, "learning", body)
    sys.stdout.write(body)
