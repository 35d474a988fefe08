"""What a starter learns of a speaker whom it never heard: Voxloop's training against the well-known recipe, update for
update.

Both sides tune the shipped starter on the same 80 clips of theo's recorded digits (50 alone, 30 strings of two to four
of them), 8 to a step, at the same rate, and are tested on digits that were not trained on, alone and in strings. Each
is served as it was trained: ours at the clip's own length, the peer at 30 s.
"""

from __future__ import annotations

import random
import shutil
import statistics
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np

from benchmarks import learning
from benchmarks.side_by_side import Row
from benchmarks.training_sides import BATCH, PLAIN, RATE, ours, peer, write_manifest
from voxloop import text
from voxloop.starter import STARTER_DIR
from voxloop.starter.measure import strings

DATA: Final = Path(__file__).parents[2] / "shared" / "data"
UNHEARD: Final = "theo"
SINGLES: Final = 50
STRINGS: Final = 30
UPDATES: Final = 100
LEARNING_RATE: Final = 4e-4
SEEDS: Final = (1, 2, 3)
TESTED_STRINGS: Final = 100

Sounds = Sequence[np.ndarray[tuple[int], np.dtype[np.float32]]]


def measure(folder: Path, data: Path, *, threads: int, seeds: Sequence[int] = SEEDS) -> tuple[list[Row], str]:
    """A row for single digits and one for strings, and every seed's rates; nothing where there are no recordings."""
    if not (data / "digits_en" / "metadata.jsonl").is_file():
        print(f"part wer is left out: {data / 'digits_en'} is not there; name its folder with --data")
        return [], ""
    voice = learning.voice(data, UNHEARD)
    test = [learning._clip(said) for said in voice.test]
    joined = strings(test, count=TESTED_STRINGS, seed=0)
    heard = {
        "single digits": ([clip.wave for clip in test], [clip.text for clip in test]),
        "strings": ([each.wave for each in joined], [each.text for each in joined]),
    }
    before = {context: _rates(STARTER_DIR, context, heard) for context in ("trimmed", "full")}
    after: dict[str, list[dict[str, float]]] = {"ours": [], "peer": []}
    for seed in seeds:
        sounds, texts = _speech(voice, seed)
        manifest = write_manifest(folder / f"speech-{seed}", sounds, texts)
        recipe = replace(PLAIN, max_steps=UPDATES, learning_rate=LEARNING_RATE, seed=seed)
        batches = -(-len(sounds) // BATCH)
        mine = ours(
            folder / f"ours-{seed}",
            STARTER_DIR,
            manifest,
            recipe,
            budget_s=_budget(folder / f"ours-{seed}-plan", manifest, recipe, batches),
            threads=threads,
        )
        _finish(mine)
        theirs = peer(folder / f"peer-{seed}", STARTER_DIR, manifest, recipe, threads=threads, save=True)
        _finish(theirs)
        for name in ("tokenizer.json", "tokenizer_config.json", "processor_config.json", "vocab.json", "merges.txt"):
            shutil.copy(STARTER_DIR / name, theirs.folder / "final" / name)
        after["ours"].append(_rates(mine.folder / "final", "trimmed", heard))
        after["peer"].append(_rates(theirs.folder / "final", "full", heard))
        print(f"seed {seed}: ours {after['ours'][-1]}, peer {after['peer'][-1]}", flush=True)
    return _table(before, after)


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


def _budget(folder: Path, manifest: Path, recipe: Any, batches: int) -> float:
    """The seconds of a batch with which an epoch of ours has as many batches as the peer's."""
    from voxloop.families.contract import family
    from voxloop.training.batches import Plan, read_rows

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
    raise SystemExit(f"{folder}: no budget makes {batches} batches of {len(rows)} clips")


def _rates(
    model: Path, context: Literal["trimmed", "full"], heard: dict[str, tuple[Sounds, list[str]]]
) -> dict[str, float]:
    """Word error rates of each set in percent."""
    from voxloop.families.contract import Decoding, family

    recogniser = family("whisper").load(model)
    decoding = Decoding(language="en", audio_context=context)
    found = {}
    for name, (sounds, texts) in heard.items():
        said = [text.normalise(each, "en") for each in texts]
        written = [text.normalise(each.text, "en") for each in recogniser.transcribe(list(sounds), decoding)]
        found[name] = 100 * text.total(text.word_errors_each(said, written)).rate
    return found


def _table(before: dict[str, dict[str, float]], after: dict[str, list[dict[str, float]]]) -> tuple[list[Row], str]:
    rows, lines = [], []
    for name in before["full"]:
        mine, theirs = [seed[name] for seed in after["ours"]], [seed[name] for seed in after["peer"]]
        rows.append(
            Row(
                name=f"starter, {UPDATES} updates on {UNHEARD}'s digits, {len(mine)} seeds: word errors of {name}",
                ours=statistics.median(mine),
                peer=statistics.median(theirs),
                unit="% (less is better)",
                ratio_median=statistics.median(mine) / statistics.median(theirs),
                ratio_min=min(mine) / max(theirs),
                ratio_max=max(mine) / min(theirs),
                quality_ours=f"from {before['trimmed'][name]:.1f} to {min(mine):.1f}-{max(mine):.1f} %",
                quality_peer=f"from {before['full'][name]:.1f} to {min(theirs):.1f}-{max(theirs):.1f} %",
            )
        )
        pairs = ", ".join(f"{a:.1f} / {b:.1f}" for a, b in zip(mine, theirs, strict=True))
        lines.append(f"- Word errors of {name} by seed, ours / peer, in percent: {pairs}.")
    return rows, "\n".join(lines)
