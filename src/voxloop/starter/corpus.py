"""The starter's training speech: synthetic voices (made once, kept on disk) and, where present, real recordings."""

import concurrent.futures
import json
import os
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

import numpy as np
import numpy.typing as npt
import soundfile

from voxloop.starter import synthesis, texts
from voxloop.starter.synthesis import SAMPLE_RATE, Voice, Wave

Kind = Literal["digit", "digits", "phrase", "keyword"]

REAL_SETS: Final[dict[str, Kind]] = {"digits_en": "digit", "prompts_en": "phrase", "keywords_en": "keyword"}
"""Folders of real speech that are used when present, and what they hold."""

FREE_LICENCES: Final = ("CC0", "CC BY 4", "CC BY-SA", "Apache-2.0", "public domain")
"""Beginnings of the licences that let the weights be shared. Everything else is left out."""

LONGEST_S: Final = 5.0  # longer recordings cost more time than they teach


@dataclass(frozen=True, slots=True, kw_only=True)
class Clip:
    """One piece of speech in memory. `samples` is int16 of shape (N,) at 16 kHz: half the memory of float32."""

    kind: Kind
    text: str
    speaker: str
    real: bool
    samples: npt.NDArray[np.int16]

    @property
    def wave(self) -> Wave:
        return self.samples.astype(np.float32) / np.float32(32768)


def real_speech(
    data: Path, *, leave_out: Sequence[str] = (), report: Callable[[str], object] = lambda line: None
) -> list[Clip]:
    """Every usable clip under `data` whose licence is free, whose speaker is not in `leave_out`, without demo words.

    Files that cannot be read are skipped and reported.
    """
    clips = []
    for folder, kind in REAL_SETS.items():
        listing = data / folder / "metadata.jsonl"
        if not listing.is_file():
            continue
        for line in listing.read_text(encoding="utf-8").splitlines():
            row = json.loads(line)
            text = texts.spoken(row["text"])
            if row["speaker"] in leave_out or not row["license"].startswith(FREE_LICENCES):
                continue
            if not text or texts.RESERVED_WORDS & set(text.split()):
                continue
            try:
                wave = synthesis.read_wave(str(data / folder / row["file"]))
            except soundfile.LibsndfileError as reason:
                report(f"left out, unreadable: {folder}/{row['file']} ({reason})")
                continue
            if len(wave) <= LONGEST_S * SAMPLE_RATE:
                clips.append(Clip(kind=kind, text=text, speaker=row["speaker"], real=True, samples=_int16(wave)))
    return clips


def synthetic_speech(cache: Path, *, count: int, seed: int, workers: int | None = None) -> list[Clip]:
    """`count` synthetic clips, the same for the same seed; made once and cached in `cache`."""
    samples_path, rows_path = cache / f"synthetic-{seed}-{count}.npy", cache / f"synthetic-{seed}-{count}.jsonl"
    if not rows_path.is_file():
        cache.mkdir(parents=True, exist_ok=True)
        plan = _plan(count, seed)
        # Threads suffice: the work is done by the espeak-ng processes.
        with concurrent.futures.ThreadPoolExecutor(workers or os.cpu_count()) as pool:
            waves = list(pool.map(lambda job: _int16(synthesis.speak(job[1], voice=job[2])), plan))
        np.save(samples_path, np.concatenate(waves))
        rows = [
            {"kind": kind, "text": text, "speaker": voice.name, "samples": len(wave)}
            for (kind, text, voice), wave in zip(plan, waves, strict=True)
        ]
        # Written last: the rows say that the samples are complete.
        rows_path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    flat = np.load(samples_path, mmap_mode="r")
    clips, start = [], 0
    for line in rows_path.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        end = start + row["samples"]
        clip = Clip(kind=row["kind"], text=row["text"], speaker=row["speaker"], real=False, samples=flat[start:end])
        clips.append(clip)
        start = end
    return clips


def _plan(count: int, seed: int) -> list[tuple[Kind, str, Voice]]:
    rng = random.Random(seed)
    plan: list[tuple[Kind, str, Voice]] = []
    for index in range(count):
        kind: Kind = ("digit", "digits", "phrase", "phrase")[index % 4]
        if kind == "digit":
            text = texts.DIGITS[index // 4 % 10]
        else:
            text = texts.digit_string(rng) if kind == "digits" else texts.phrase(rng)
        plan.append((kind, text, synthesis.random_voice(rng)))
    return plan


def _int16(wave: Wave) -> npt.NDArray[np.int16]:
    return np.round(np.clip(wave, -1, 1) * 32767).astype(np.int16)


def unheard_synthetic(*, seed: int, count: int = 240) -> list[Clip]:
    """Clips of timbres the training never used, in equal parts digits, digit strings and phrases of training words."""
    rng = random.Random(seed)
    clips = []
    for index in range(count):
        kind: Kind = ("digit", "digits", "phrase")[index % 3]
        made = {
            "digit": rng.choice(texts.DIGITS),
            "digits": texts.digit_string(rng, longest=5),
            "phrase": texts.phrase(rng),
        }
        voice = Voice(
            accent=rng.choice(synthesis.ACCENTS[:2]),
            variant=rng.choice(synthesis.RESERVED_VARIANTS),
            speed_wpm=rng.randint(120, 200),
            pitch=rng.randint(25, 75),
        )
        samples = _int16(synthesis.speak(made[kind], voice=voice))
        clips.append(Clip(kind=kind, text=made[kind], speaker=voice.name, real=False, samples=samples))
    return clips
