"""What a starter learns of a speaker whom it never heard: Voxloop's training against the well-known recipe, update for
update.

Both sides tune the shipped starter on the same 80 clips of theo's recorded digits (50 alone, 30 strings of two to four
of them), 8 to a step, at the same rate, and are tested on digits that were not trained on, alone and in strings. Each
is served as it was trained: ours at the clip's own length, the peer at 30 s.
"""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np

from benchmarks import learning
from benchmarks.side_by_side import Row, paired
from benchmarks.training_sides import BATCH, PLAIN, RATE, ours, peer, write_manifest
from voxloop.speech import text
from voxloop.starter import STARTER_DIR
from voxloop.starter.measure import strings
from voxloop.steps.training.recipes import Precision, Recipe

DATA: Final = Path(__file__).parents[2] / "shared" / "data"
UNHEARD: Final = "theo"
SINGLES: Final = 50
STRINGS: Final = 30
UPDATES: Final = 100
LEARNING_RATE: Final = 4e-4
SEEDS: Final = (1, 2, 3)
TESTED: Final = 100  # single digits: hearing one at 30 s takes as long as 20 at its own length
TESTED_STRINGS: Final = 50
CONTEXTS: Final[dict[str, Literal["trimmed", "full"]]] = {"ours": "trimmed", "peer": "full"}
PRECISIONS: Final[dict[str, Precision]] = {"ours": "fp32", "ours in bf16": "bf16"}

Sounds = Sequence[np.ndarray[tuple[int], np.dtype[np.float32]]]


def measure(
    folder: Path, data: Path, kept: Path, *, threads: int, seeds: Sequence[int] = SEEDS
) -> tuple[list[Row], str]:
    """A row for single digits and one for strings, and every seed's rates; nothing where there are no recordings.

    What a seed ended at is kept in the file `kept` at once, and not done again. The rows are of all that are kept.
    """
    if not (data / "digits_en" / "metadata.jsonl").is_file():
        print(f"part wer is left out: {data / 'digits_en'} is not there; name its folder with --data")
        return [], ""
    voice = learning.voice(data, UNHEARD)
    test = [learning._clip(said) for said in random.Random("test").sample(voice.test, TESTED)]
    joined = strings(test, count=TESTED_STRINGS, seed=0)
    heard = {
        "single digits": ([clip.wave for clip in test], [clip.text for clip in test]),
        "strings": ([each.wave for each in joined], [each.text for each in joined]),
    }
    done = [json.loads(line) for line in kept.read_text().splitlines()] if kept.exists() else []

    def keep(found: dict[str, Any]) -> None:
        print(found, flush=True)
        done.append(found)
        with kept.open("a", encoding="utf-8") as file:
            file.write(json.dumps(found) + "\n")

    if not any(found["seed"] is None for found in done):
        rates = {side: _rates(STARTER_DIR, context, heard) for side, context in CONTEXTS.items()}
        keep({"seed": None, "updates": 0} | rates)
    for seed in seeds:
        if not any((found["seed"], found["updates"]) == (seed, UPDATES) for found in done):
            keep({"seed": seed, "updates": UPDATES} | _tuned(folder, voice, seed, heard, threads))
    return _table(done)


def _tuned(
    folder: Path, voice: learning.Voice, seed: int, heard: dict[str, tuple[Sounds, list[str]]], threads: int
) -> dict[str, dict[str, float]]:
    """What both sides' models make of what is tested, after training on the same clips."""
    sounds, texts = _speech(voice, seed)
    manifest = write_manifest(folder / f"speech-{seed}", sounds, texts)
    recipe = replace(PLAIN, max_steps=UPDATES, learning_rate=LEARNING_RATE, seed=seed, precision="fp32")
    budget_s = _budget(manifest, recipe, batches=-(-len(sounds) // BATCH))
    mine = {}
    for name, precision in PRECISIONS.items():
        place = folder / f"{name}-{seed}"
        side = ours(
            place, STARTER_DIR, manifest, replace(recipe, precision=precision), budget_s=budget_s, threads=threads
        )
        _finish(side)
        mine[name] = _rates(side.folder / "final", CONTEXTS["ours"], heard)
    theirs = peer(folder / f"peer-{seed}", STARTER_DIR, manifest, recipe, threads=threads, save=True)
    _finish(theirs)
    for name in ("tokenizer.json", "tokenizer_config.json", "processor_config.json", "vocab.json", "merges.txt"):
        shutil.copy(STARTER_DIR / name, theirs.folder / "final" / name)
    return mine | {"peer": _rates(theirs.folder / "final", CONTEXTS["peer"], heard)}


def _finish(side: Any) -> None:
    try:
        side.wait()
    finally:
        side.kill()


def _speech(voice: learning.Voice, seed: int) -> tuple[list[Any], list[str]]:
    """Single digits and strings of them, to train on."""
    clips = [learning._clip(said) for said in voice.draw(SINGLES, seed)]
    rng = random.Random(f"joined {seed}")
    sounds, texts = [clip.wave for clip in clips], [clip.text for clip in clips]
    for _ in range(STRINGS):
        parts = rng.sample(clips, rng.randint(2, 4))
        waves = [np.append(part.wave, np.zeros(round(rng.uniform(0.05, 0.3) * RATE), np.float32)) for part in parts]
        sounds.append(np.concatenate(waves))
        texts.append(" ".join(part.text for part in parts))
    return sounds, texts


def _budget(manifest: Path, recipe: Recipe, *, batches: int) -> float:
    """The seconds of a batch with which an epoch of ours has as many batches as the peer's."""
    from voxloop.families.registry import family
    from voxloop.steps.training.batches import Plan, read_rows

    whisper = family("whisper")
    rows = read_rows(manifest)
    for tenths in range(10, 1000):
        plan = Plan(
            rows,
            replace(recipe, batch_seconds=tenths / 10),
            padded_s=whisper.padded_seconds,
            label_length=lambda words, _: len(words),
            label_limit=200,
        )
        if plan.batches_in_epoch() <= batches:
            return tenths / 10
    raise SystemExit(f"no budget makes {batches} batches of {len(rows)} clips")


def _rates(
    model: Path, context: Literal["trimmed", "full"], heard: dict[str, tuple[Sounds, list[str]]]
) -> dict[str, float]:
    """Word error rates of each set in percent."""
    from voxloop.families.decoding import Decoding
    from voxloop.families.registry import family

    recogniser = family("whisper").load(model)
    decoding = Decoding(language="en", audio_context=context)
    found = {}
    for name, (sounds, texts) in heard.items():
        said = [text.normalise(each, "en") for each in texts]
        written = [text.normalise(each.text, "en") for each in recogniser.transcribe(list(sounds), decoding)]
        found[name] = 100 * text.total(text.word_errors_each(said, written)).rate
    return found


def _table(done: Sequence[dict[str, Any]]) -> tuple[list[Row], str]:
    before = next(found for found in done if found["seed"] is None)
    seeds = sorted((found for found in done if found["updates"] == UPDATES), key=lambda found: found["seed"])
    rows, lines = [], []
    for name, side in ((name, side) for name in before["peer"] for side in PRECISIONS):
        mine, theirs = [found[side][name] for found in seeds], [found["peer"][name] for found in seeds]
        bf16 = " in bf16" if PRECISIONS[side] == "bf16" else ""
        rows.append(
            paired(
                f"starter, {UPDATES} updates{bf16} on {UNHEARD}'s digits, {len(seeds)} seeds: word errors of {name}",
                mine,
                theirs,
                unit="% (less is better)",
                quality_ours=f"{min(mine):.1f} to {max(mine):.1f} %; untuned {before['ours'][name]:.1f} %",
                quality_peer=f"{min(theirs):.1f} to {max(theirs):.1f} %; untuned {before['peer'][name]:.1f} %",
            )
        )
        pairs = ", ".join(f"{a:.1f} / {b:.1f}" for a, b in zip(mine, theirs, strict=True))
        lines.append(f"- Word errors of {name} by seed, {side} / peer, in percent: {pairs}.")
    return rows, "\n".join(lines)
