"""Transcribing: CTranslate2 in int8 on clips at their own length, against transformers and faster-whisper at 30 s.

    python -m benchmarks transcription                           every part, one after the other
    python -m benchmarks transcription --part shape --rounds 3   one of them; the others stay as they were measured

Each part keeps its rows in build/bench/transcription/PART.json, and the table is made of all that are there: `shape`
and `starter` are short clips, `long-shape` and `long-starter` are files of ten minutes, where there is recorded speech
(`--data`).

Speed is that of whisper-tiny's shape with random weights, every side writing the same number of tokens of each clip;
such a model has no error rate. Error rates are the starter's, in rows of their own, on digits of a speaker that it
never heard, joined to about 4 s (on the demo's clips, where the recorded digits are not beside this checkout).
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import long_audio, results
from benchmarks.apart import apart
from benchmarks.peers import (
    LONGEST,
    RATE,
    TEXT_TOKENS,
    THREADS,
    TOKENS,
    UNHEARD,
    Sound,
    faster_options,
    tiny_shape,
    whisper_model,
)
from benchmarks.side_by_side import Row, compare, rows_table, write
from voxloop.families.contract import Decoding
from voxloop.families.registry import family
from voxloop.speech import text
from voxloop.speech.audio import decode
from voxloop.starter import STARTER_DIR

ROOT = Path(__file__).parents[1]
DATA = ROOT.parent / "shared" / "data"
DIGITS = DATA / "digits_en"
DEMO = ROOT / "demo" / "speech"
CLIPS, SECONDS = 200, 4.0
SAMPLE = 24  # clips of each round that a peer at 30 s is given: its rate does not depend on how many there are
BATCH = 8
PARTS = ("shape", "starter", "long-shape", "long-starter")

NOTES = """All on two threads, each peer in a process of its own. The tiny shape has random weights, so no error rate:
every side writes the same 20 tokens of each clip. Ours are batched by equal length out of 200 clips; the peers are
given 24 of these each round, transformers in batches of 8, faster-whisper clip by clip, as its interface takes short
files. Trimming is what these rates come from, and it is safe only on models tuned so: the starter is, and its rows have
the error rates. faster-whisper fills the spectrogram's rest with zeros where Whisper was trained on silence; the
starter, which never heard that, makes more errors of it (transformers, fed such zeros, does as well), so its row
compares the speed alone. The starter is so small that the work per token decides, not the encoder, and its 32 strings
make batches of one to four: its ratios to transformers are lower than those of the tiny shape. In int8 one of its clips
hangs in the balance: made 0.1 or 0.2 % louder or softer, the same 32 end at 55.5 to 60.2 %, in float32 always at 57.3.

Long audio is real speech joined with pauses to ten minutes, read from one FLAC file, greedily, without time stamps.
Each side finds the speech itself, by the same detector: ours hears it as phrases of up to 15 s at their own length,
faster-whisper packs what it finds into windows of 30 s, eight at a time. The starter learnt strings of a few digits and
never 30 s of them: where ours is fed windows of 30 s as well, it makes about as many errors as the peer, and where the
peer is told to cut pieces of 5 s, filled with what silence looks like, it makes about as few as ours. Of the tiny shape
both sides write as many tokens; a model that was not tuned on trimmed clips runs at 30 s, and phrases are joined to
windows then.
"""


def main(arguments: Sequence[str]) -> None:
    import torch

    parser = argparse.ArgumentParser(
        prog="python -m benchmarks transcription",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--part", action="append", choices=PARTS, help="only this one; may be given more than once")
    parser.add_argument("--rounds", type=int, default=5, help="interleaved rounds")
    parser.add_argument("--out", type=Path, default=Path("build/bench"))
    parser.add_argument("--data", type=Path, default=DATA, help="folder with recorded speech, for long audio")
    given = parser.parse_args(arguments)
    torch.set_num_threads(THREADS)
    kept = given.out / "transcription"
    kept.mkdir(parents=True, exist_ok=True)
    for part in given.part or PARTS:
        with tempfile.TemporaryDirectory(prefix="voxloop-transcription-") as temporary:
            rows = _measure(part, Path(temporary), given)
        if rows:
            print(rows_table(rows))
            write(kept / f"{part}.json", rows)
    found = {
        part: json.loads((kept / f"{part}.json").read_text()) for part in PARTS if (kept / f"{part}.json").exists()
    }
    measured = [f"{part}: {one['machine']}" for part, one in found.items()]
    rows = [Row(**row) for one in found.values() for row in one["rows"]]
    results.put(results.PATH, "transcription", "\n\n".join([*measured, rows_table(rows), NOTES]))
    print(write(given.out / "transcription.json", rows))


def _measure(part: str, folder: Path, given: argparse.Namespace) -> list[Row]:
    if part.startswith("long"):
        return long_audio.measure(part, folder, given.rounds, given.data)
    return {"shape": _by_shape, "starter": _by_starter}[part](folder, given.rounds)


# The shape of whisper-tiny -------------------------------------------------------------------------------------------


def _by_shape(folder: Path, rounds: int) -> list[Row]:
    source, fast = tiny_shape(folder / "tiny"), folder / "tiny-int8"
    family("whisper").convert(source, fast, "int8")
    chance = np.random.default_rng(0)
    lengths = chance.uniform(0.75, 1.25, CLIPS) * SECONDS
    clips = [(0.1 * chance.standard_normal(int(s * RATE))).astype(np.float32) for s in lengths]
    asked = Decoding(language="en", max_new_tokens=TOKENS, audio_context="trimmed")
    ours = family("whisper").load_converted(fast)
    written = "same tokens"
    sides = {
        "transformers at 30 s, float32, batches of 8": (_transformers, source),
        "faster-whisper int8, clip by clip as it takes them": (_faster, fast),
    }
    rows = []

    def speak(sounds: Sequence[Sound]) -> Callable[[], float]:
        def work() -> float:
            ours.transcribe(sounds, asked)
            return sum(map(len, sounds)) / RATE

        return work

    ours_counts = _tokens_of(ours, clips[:SAMPLE], asked)
    assert set(ours_counts) == {TOKENS}, ours_counts
    for name, (make, model) in sides.items():
        with apart(make, model) as peer:
            counts = peer(clips[:3])
            assert set(counts) == {TOKENS}, f"{name} wrote {counts} tokens where {TOKENS} are asked"

            def peer_work(peer: Callable[..., list[int]] = peer) -> float:
                peer(clips[:SAMPLE])
                return sum(map(len, clips[:SAMPLE])) / RATE

            rows.append(
                compare(
                    f"tiny shape, {CLIPS} clips of about 4 s: int8, trimmed, against {name}",
                    ours=speak(clips),
                    peer=peer_work,
                    unit="s of audio/s",
                    rounds=rounds,
                    quality_ours=f"{written}: {TOKENS} a clip",
                    quality_peer=f"{TOKENS} a clip",
                )
            )
    with apart(_faster_file, fast) as peer:
        rows.append(_latency(folder, "tiny shape", source, fast, clips[0], asked, peer, rounds))
    return rows


def _tokens_of(recogniser: Any, sounds: Sequence[Sound], asked: Decoding) -> list[int]:
    """Tokens that our side writes of each clip: at the limit its guard says so."""
    from dataclasses import replace

    from voxloop.families.contract import Guards

    open_guards = Guards(max_compression=1e9, min_logprob=-1e9, max_no_speech=1.0)
    heard = recogniser.transcribe(sounds, replace(asked, guards=open_guards))
    return [asked.max_new_tokens if "cut off" in one.guards else -1 for one in heard]


def _transformers(source: Path) -> Callable[[Sequence[Sound]], list[int]]:
    import torch
    from transformers import WhisperForConditionalGeneration, WhisperProcessor

    torch.set_num_threads(THREADS)
    model: Any = WhisperForConditionalGeneration.from_pretrained(source).eval()
    processor: Any = WhisperProcessor.from_pretrained(source)

    def run(sounds: Sequence[Sound]) -> list[int]:
        counts = []
        for first in range(0, len(sounds), BATCH):
            features = processor(list(sounds[first : first + BATCH]), sampling_rate=RATE, return_tensors="pt")
            with torch.inference_mode():
                tokens = model.generate(features.input_features, max_new_tokens=TOKENS, num_beams=1, do_sample=False)
            processor.batch_decode(tokens, skip_special_tokens=True)
            # Some versions return the prompt as well, which is no part of a text.
            counts += [int((row < TEXT_TOKENS).sum()) for row in tokens]
        return counts

    return run


def _faster(fast: Path) -> Callable[[Sequence[Sound]], list[int]]:
    model, options = whisper_model(fast), faster_options(forced=True)

    def run(sounds: Sequence[Sound]) -> list[int]:
        return [sum(len(one.tokens) for one in model.transcribe(sound, **options)[0]) for sound in sounds]

    return run


def _faster_file(fast: Path) -> Callable[[Path], str]:
    model, options = whisper_model(fast), faster_options(forced=True)

    def run(file: Path) -> str:
        return " ".join(one.text.strip() for one in model.transcribe(str(file), **options)[0])

    return run


def _latency(
    folder: Path,
    name: str,
    source: Path,
    fast: Path,
    clip: Sound,
    asked: Decoding,
    peer: Callable[[Path], str],
    rounds: int,
) -> Row:
    """One clip from its file to its text, with the model loaded: files read in a second, one after the other."""
    import soundfile

    file, times = folder / "clip.wav", 5
    soundfile.write(file, clip, RATE)
    recogniser = family("whisper").load_converted(fast)

    def ours() -> float:
        for _ in range(times):
            recogniser.transcribe([decode(file)], asked)
        return float(times)

    def theirs() -> float:
        for _ in range(times):
            peer(file)
        return float(times)

    ours()
    theirs()
    return compare(
        f"{name}, one clip of {len(clip) / RATE:.1f} s from file to text, against faster-whisper int8",
        ours=ours,
        peer=theirs,
        unit="files/s",
        rounds=rounds,
        quality_ours="same tokens",
        quality_peer="same tokens",
    )


# The starter, for its error rate -------------------------------------------------------------------------------------


def _by_starter(folder: Path, rounds: int) -> list[Row]:
    fast = folder / "starter-int8"
    family("whisper").convert(STARTER_DIR, fast, "int8")
    ours = family("whisper").load_converted(fast)
    torchs = family("whisper").load(STARTER_DIR)
    sounds, references, voice = _speech()
    seconds = sum(map(len, sounds)) / RATE
    asked = Decoding(language="en", max_new_tokens=LONGEST)
    heard: dict[str, list[str]] = {}

    def by_us(who: str, recogniser: Any) -> Callable[[], float]:
        def work() -> float:
            heard[who] = [one.text for one in recogniser.transcribe(sounds, asked)]
            return seconds

        return work

    def by_peer(who: str, peer: Callable[..., list[str]]) -> Callable[[], float]:
        def work() -> float:
            heard[who] = peer(sounds)
            return seconds

        return work

    def wer(who: str) -> str:
        counted = text.word_errors_each(references, [one.strip() for one in heard[who]])
        return f"WER {text.total(counted).rate:.1%}"

    with apart(_stock_texts) as stock, apart(_faster_texts, fast) as faster:
        work = {
            "int8, trimmed": by_us("int8, trimmed", ours),
            "torch, trimmed": by_us("torch, trimmed", torchs),
            "transformers at 30 s": by_peer("transformers at 30 s", stock),
            "faster-whisper int8": by_peer("faster-whisper int8", faster),
        }
        for one in work.values():
            one()
        pairs = [
            ("int8, trimmed", "transformers at 30 s"),
            ("torch, trimmed", "transformers at 30 s"),
            ("int8, trimmed", "faster-whisper int8"),
        ]
        return [
            compare(
                f"starter, {len(sounds)} strings of {voice}, {seconds / len(sounds):.1f} s: {mine} against {peer}",
                ours=work[mine],
                peer=work[peer],
                unit="s of audio/s",
                rounds=rounds,
                quality_ours=wer(mine),
                quality_peer=wer(peer),
            )
            for mine, peer in pairs
        ]


def _stock_texts() -> Callable[[Sequence[Sound]], list[str]]:
    import torch
    from transformers import WhisperForConditionalGeneration, WhisperProcessor

    torch.set_num_threads(THREADS)
    model: Any = WhisperForConditionalGeneration.from_pretrained(STARTER_DIR).eval()
    processor: Any = WhisperProcessor.from_pretrained(STARTER_DIR)

    def run(sounds: Sequence[Sound]) -> list[str]:
        texts: list[str] = []
        for first in range(0, len(sounds), BATCH):
            features = processor(list(sounds[first : first + BATCH]), sampling_rate=RATE, return_tensors="pt")
            with torch.inference_mode():
                tokens = model.generate(features.input_features, max_new_tokens=LONGEST, do_sample=False)
            texts += processor.batch_decode(tokens, skip_special_tokens=True)
        return texts

    return run


def _faster_texts(fast: Path) -> Callable[[Sequence[Sound]], list[str]]:
    model, options = whisper_model(fast), faster_options(forced=False)

    def run(sounds: Sequence[Sound]) -> list[str]:
        return [" ".join(one.text.strip() for one in model.transcribe(sound, **options)[0]) for sound in sounds]

    return run


def _speech() -> tuple[list[Sound], list[str], str]:
    """Clips of one voice joined with short pauses to about 4 s, with their texts."""
    real = DIGITS.is_dir()
    folder = DIGITS if real else DEMO
    rows = [json.loads(line) for line in (folder / "metadata.jsonl").read_text().splitlines()]
    rows = [row for row in rows if row["speaker"] == UNHEARD] if real else rows
    chance = np.random.default_rng(0)
    chance.shuffle(rows)
    sounds, texts = [], []
    parts: list[Sound] = []
    words: list[str] = []
    for row in rows:
        parts += [decode(folder / row["file"]), np.zeros(int(chance.uniform(0.1, 0.3) * RATE), np.float32)]
        words.append(row["text"])
        if sum(map(len, parts)) >= (SECONDS - 0.4) * RATE:
            sounds.append(np.concatenate(parts))
            texts.append(" ".join(words))
            parts, words = [], []
        if len(sounds) == BATCH * 4:
            break
    return sounds, texts, "real digits" if real else "the demo's speech"
