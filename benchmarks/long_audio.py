"""Long audio: files of ten minutes and more, against faster-whisper's batched pipeline with its own voice detection.

Real speech is joined with pauses to one FLAC file. Both sides read it, find the speech and write its text, greedily,
without time stamps; with word times where a row says so.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any, Final
from unittest import mock

import numpy as np

from benchmarks import peers
from benchmarks.apart import apart
from benchmarks.checkpoints import fetch
from benchmarks.side_by_side import Row, compare
from voxloop.families.decoding import AudioContext
from voxloop.families.registry import family
from voxloop.pipeline import open_loop
from voxloop.speech import text
from voxloop.speech.audio import decode
from voxloop.starter import STARTER_DIR
from voxloop.steps import transcripts

SECONDS: Final = 600
SENTENCES: Final = ("kathleen_en", "prompts_en")
STARTER_TOKENS: Final = 220  # its positions end at 224
BATCH: Final = 8
PIECE_S: Final = 5  # about as long as the strings that the starter learnt


# The starter, for its error rate -------------------------------------------------------------------------------------


def by_starter(folder: Path, rounds: int, data: Path) -> list[Row]:
    """Rows of the starter, or none where there is no recorded speech in `data`."""
    if not (data / "digits_en").is_dir():
        return []
    file = folder / "digits.flac"
    said = _joined(
        file, [row for row in _rows(data / "digits_en") if row["speaker"] == peers.UNHEARD], (0.1, 0.3), SECONDS
    )
    fast = folder / "starter-int8"
    if not fast.exists():
        family("whisper").convert(STARTER_DIR, fast, "int8")
    options = peers.bounded_options(STARTER_TOKENS)
    heard: dict[str, str] = {}

    def wer(who: str) -> str:
        return f"WER {text.total(text.word_errors_each([said], [heard[who]])).rate:.1%}"

    settings = {"engine": "ctranslate2", "compute_type": "int8", "threads": peers.THREADS}
    with (
        apart(_pipeline, fast, options) as peer,
        tempfile.TemporaryDirectory(dir=folder) as temporary,
        open_loop(Path(temporary), create=True, **settings) as ws,
    ):

        def ours(*, timed: bool = False, context: AudioContext = "trimmed") -> float:
            asked: dict[str, Any] = {"word_times": timed, "audio_context": context}
            found = transcripts.transcribe_file(ws, file, model="starter", language="en", **asked)
            heard["ours"] = found.text
            return found.duration

        def theirs(**how: Any) -> float:
            duration, heard["peer"] = peer(file, **how)
            return float(duration)

        rows = []
        for how, mine, name, other in (
            ("trimmed", ours, "", theirs),
            ("trimmed", lambda: ours(timed=True), ", word times on both sides", lambda: theirs(timed=True)),
            (
                "trimmed",
                ours,
                f", in pieces of {PIECE_S} s, filled with silence",
                lambda: theirs(silent=True, piece_s=PIECE_S),
            ),
            (
                "at 30 s as well",
                lambda: ours(context="full"),
                ", its windows filled with silence",
                lambda: theirs(silent=True),
            ),
        ):
            mine()
            other()
            rows.append(
                compare(
                    f"starter, {SECONDS // 60} minutes of real digits from file to text: int8, {how}, against "
                    f"faster-whisper's batched pipeline, int8{name}",
                    ours=mine,
                    peer=other,
                    unit="s of audio/s",
                    rounds=rounds,
                    quality_ours=wer("ours"),
                    quality_peer=wer("peer"),
                )
            )
        return rows


def _pipeline(fast: Path, options: dict[str, Any]) -> Callable[..., tuple[float, str]]:
    """faster-whisper's batched pipeline: a file's length in seconds, and its text."""
    from faster_whisper import BatchedInferencePipeline

    model = BatchedInferencePipeline(peers.whisper_model(fast))

    def run(file: Path, *, timed: bool = False, silent: bool = False, piece_s: int | None = None) -> tuple[float, str]:
        asked = options | {"batch_size": BATCH, "word_timestamps": timed, "chunk_length": piece_s}
        with _filled_with_silence() if silent else nullcontext():
            segments, found = model.transcribe(str(file), **asked)
            joined = " ".join(one.text.strip() for one in segments)
        return float(found.duration), joined

    return run


@contextmanager
def _filled_with_silence() -> Iterator[None]:
    """faster-whisper's windows, filled with what silence looks like in Whisper's features and not with zeros."""

    def filled(features: Any, length: int = 3000, *, axis: int = -1) -> Any:
        room = max(0, length - features.shape[axis])
        return np.pad(features, ((0, 0), (0, room)), constant_values=features.min())[:, :length]

    with mock.patch("faster_whisper.transcribe.pad_or_trim", filled):
        yield


# Real models ---------------------------------------------------------------------------------------------------------


def ten_minutes(model: str, folder: Path, rounds: int, data: Path) -> list[Row]:
    return _by_model(model, folder, rounds, data, 600, sequential=True)


def an_hour(model: str, folder: Path, rounds: int, data: Path) -> list[Row]:
    return _by_model(model, folder, 1, data, 3600, sequential=False)


def _by_model(model: str, folder: Path, rounds: int, data: Path, length_s: int, *, sequential: bool) -> list[Row]:
    file = folder / f"sentences-{length_s}.flac"
    said = _joined(file, [row for name in SENTENCES for row in _rows(data / name)], (0.2, 0.8), length_s)
    heard: dict[str, str] = {}

    def wer(who: str) -> str:
        pair = [[text.normalise(one, "en")] for one in (said, heard[who])]
        return f"WER {text.total(text.word_errors_each(*pair)).rate:.2%}"

    options = {"language": "en", "beam_size": 1, "without_timestamps": True}
    settings = {"base_model": str(fetch(model)), "engine": "ctranslate2", "threads": peers.THREADS}
    rows = []
    with (
        apart(_pipeline, fetch(model), options) as peer,
        apart(_sequential, model, file) as whole,
        tempfile.TemporaryDirectory(dir=folder) as temporary,
        open_loop(Path(temporary) / "workspace", create=True, **settings) as ws,
    ):
        # Both are loaded, and warm, before the clock runs.
        first = _rows(data / SENTENCES[0])[0]["path"]
        transcripts.transcribe_file(ws, first, language="en")
        peer(first)

        def ours() -> float:
            found = transcripts.transcribe_file(ws, file, language="en")
            heard["ours"] = found.text
            return found.duration

        def batched() -> float:
            duration, heard["peer"] = peer(file)
            return duration

        def one_by_one() -> float:
            heard["peer"] = whole()
            return float(length_s)

        sides = [("faster-whisper's batched pipeline", batched)]
        sides += [("Whisper's sequential decoding (transformers, float32)", one_by_one)] * sequential
        for name, other in sides:
            row = compare(
                f"{model}, {length_s // 60} minutes of real speech from file to text: against {name}",
                ours=ours,
                peer=other,
                unit="s of audio/s",
                rounds=1 if other is one_by_one else rounds,
                quality_ours="",
                quality_peer="",
            )
            rows.append(replace(row, quality_ours=wer("ours"), quality_peer=wer("peer")))
    return rows


def stock_model(name: str) -> tuple[Any, Path]:
    """A real checkpoint as transformers loads it, and the folder that it was written to."""
    from transformers import WhisperForConditionalGeneration

    from voxloop.families.whisper import ctranslate_folder

    folder = Path(tempfile.mkdtemp(prefix="voxloop-stock-"))
    ctranslate_folder.restore(fetch(name), folder)
    return WhisperForConditionalGeneration.from_pretrained(folder).eval(), folder


def _sequential(name: str, file: Path) -> Callable[[], str]:
    """Window after window, each beginning where the time stamps of the one before ended: arXiv:2212.04356, 3.8."""
    import torch
    from transformers import WhisperProcessor

    torch.set_num_threads(peers.THREADS)
    model, folder = stock_model(name)
    processor: Any = WhisperProcessor.from_pretrained(folder)
    asked: dict[str, Any] = {} if name.endswith(".en") else {"language": "en", "task": "transcribe"}

    def run() -> str:
        given = processor(
            decode(file), sampling_rate=peers.RATE, return_tensors="pt", truncation=False, return_attention_mask=True
        )
        with torch.inference_mode():
            tokens = model.generate(
                given.input_features,
                attention_mask=given.attention_mask,
                return_timestamps=True,
                num_beams=1,
                temperature=(0.0, 0.2, 0.4, 0.6, 0.8, 1.0),
                compression_ratio_threshold=2.4,
                logprob_threshold=-1.0,
                no_speech_threshold=0.6,
                condition_on_prev_tokens=False,
                **asked,
            )
        return str(processor.batch_decode(tokens, skip_special_tokens=True)[0])

    return run


# What is spoken ------------------------------------------------------------------------------------------------------


def _rows(folder: Path) -> list[dict[str, Any]]:
    lines = (folder / "metadata.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) | {"path": folder / json.loads(line)["file"]} for line in lines]


def _joined(file: Path, rows: list[dict[str, Any]], pauses_s: tuple[float, float], length_s: float) -> str:
    """Write speech with pauses, one in four of them of 0.8 to 2 s, up to the length wanted; what is said in it."""
    import soundfile

    chance = np.random.default_rng(0)
    parts: list[peers.Sound] = []
    words: list[str] = []
    held = 0
    while held < length_s * peers.RATE:
        for index in chance.permutation(len(rows)):
            pause = chance.uniform(*(pauses_s if chance.random() < 0.75 else (0.8, 2.0)))
            silence = (3e-4 * chance.standard_normal(int(pause * peers.RATE))).astype(np.float32)
            parts += [decode(rows[index]["path"]), silence]
            words.append(rows[index]["text"])
            held += len(parts[-2]) + len(parts[-1])
            if held >= length_s * peers.RATE:
                break
    soundfile.write(file, np.concatenate(parts), peers.RATE)
    return " ".join(words)
