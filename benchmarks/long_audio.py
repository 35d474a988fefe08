"""Long audio: files of ten minutes and more, against faster-whisper's batched pipeline with its own voice detection.

Real speech is joined with pauses to one FLAC file. Both sides read it, find the speech and write its text, greedily,
without time stamps; with word times where a row says so. The starter has error rates, on digits of a speaker that it
never heard; the shape of whisper-tiny has random weights, and both sides write as many tokens in all.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, Final
from unittest import mock

import numpy as np

from benchmarks import peers
from benchmarks.apart import apart
from benchmarks.side_by_side import Row, compare
from voxloop.families.contract import AudioContext, Decoding
from voxloop.families.registry import family
from voxloop.pipeline import open_loop
from voxloop.speech import text
from voxloop.speech.audio import decode
from voxloop.starter import STARTER_DIR
from voxloop.steps import transcripts
from voxloop.steps.utterances import PHRASES, WINDOWS, spans_in

SECONDS: Final = 600
SENTENCES: Final = ("kathleen_en", "prompts_en")
WINDOW_TOKENS: Final = 90  # in 30 s of speech: three a second
STARTER_TOKENS: Final = 220  # its positions end at 224
BATCH: Final = 8
PIECE_S: Final = 5  # about as long as the strings that the starter learnt


def measure(part: str, folder: Path, rounds: int, data: Path) -> list[Row]:
    """Rows of the starter or of the tiny shape, or none where there is no recorded speech in `data`."""
    if not (data / "digits_en").is_dir():
        return []
    return (_by_starter if part == "long-starter" else _by_shape)(folder, rounds, data)


# The starter, for its error rate -------------------------------------------------------------------------------------


def _by_starter(folder: Path, rounds: int, data: Path) -> list[Row]:
    file = folder / "digits.flac"
    said = _joined(file, [row for row in _rows(data / "digits_en") if row["speaker"] == peers.UNHEARD], (0.1, 0.3))
    fast = folder / "starter-int8"
    if not fast.exists():
        family("whisper").convert(STARTER_DIR, fast, "int8")
    options = peers.faster_options(forced=False) | {"max_new_tokens": 2 * STARTER_TOKENS - 2}
    heard: dict[str, str] = {}

    def wer(who: str) -> str:
        return f"WER {text.total(text.word_errors_each([said], [heard[who]])).rate:.1%}"

    settings = {"engine": "ctranslate2", "compute_type": "int8", "threads": peers.THREADS}
    with (
        apart(_pipeline, fast, file, options) as peer,
        tempfile.TemporaryDirectory(dir=folder) as temporary,
        open_loop(Path(temporary), create=True, **settings) as ws,
    ):

        def ours(*, timed: bool = False, context: AudioContext = "trimmed") -> float:
            asked: dict[str, Any] = {"word_times": timed, "audio_context": context}
            found = transcripts.transcribe_file(ws, file, model="starter", language="en", **asked)
            heard["ours"] = found.text
            return found.duration

        def theirs(**how: Any) -> float:
            duration, heard["peer"], _ = peer(**how)
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


def _pipeline(fast: Path, file: Path, options: dict[str, Any]) -> Callable[..., tuple[float, str, int]]:
    """faster-whisper's batched pipeline: the file's length in seconds, its text, and how many tokens it has."""
    from faster_whisper import BatchedInferencePipeline

    model = BatchedInferencePipeline(peers.whisper_model(fast))

    def run(*, timed: bool = False, silent: bool = False, piece_s: int | None = None) -> tuple[float, str, int]:
        asked = options | {"batch_size": BATCH, "word_timestamps": timed, "chunk_length": piece_s}
        with _filled_with_silence() if silent else nullcontext():
            segments, found = model.transcribe(str(file), **asked)
            written = list(segments)
        joined = " ".join(one.text.strip() for one in written)
        return float(found.duration), joined, sum(len(one.tokens) for one in written)

    return run


@contextmanager
def _filled_with_silence() -> Iterator[None]:
    """faster-whisper's windows, filled with what silence looks like in Whisper's features and not with zeros."""

    def filled(features: Any, length: int = 3000, *, axis: int = -1) -> Any:
        room = max(0, length - features.shape[axis])
        return np.pad(features, ((0, 0), (0, room)), constant_values=features.min())[:, :length]

    with mock.patch("faster_whisper.transcribe.pad_or_trim", filled):
        yield


# The shape of whisper-tiny -------------------------------------------------------------------------------------------


def _by_shape(folder: Path, rounds: int, data: Path) -> list[Row]:
    file = folder / "sentences.flac"
    sentences = [row for name in SENTENCES if (data / name).is_dir() for row in _rows(data / name)]
    _joined(file, sentences, (0.2, 0.8))
    source, fast = folder / "tiny", folder / "tiny-int8"
    if not fast.exists():
        peers.tiny_shape(source)
        family("whisper").convert(source, fast, "int8")
    recogniser = family("whisper").load_converted(fast)
    # CTranslate2 writes half of max_length, and faster-whisper adds the prompt of 2 to what it is given.
    options = peers.faster_options(forced=True) | {"max_new_tokens": 2 * WINDOW_TOKENS - 2}

    def ours(context: AudioContext, tokens: int) -> tuple[float, int]:
        """Tokens in all are shared out among the spans; returned are those written, at least."""
        sound = decode(file)
        joining = PHRASES if context == "trimmed" else WINDOWS
        spans = spans_in(lambda start, end: sound[start:end], len(sound), ws.settings, joining)
        most = -(-tokens // len(spans))
        asked = Decoding(language="en", max_new_tokens=most, audio_context=context)
        recogniser.transcribe([sound[start:end] for start, end in spans], asked)
        return len(sound) / peers.RATE, most * len(spans)

    rows = []
    with (
        apart(_pipeline, fast, file, options) as peer,
        tempfile.TemporaryDirectory(dir=folder) as temporary,
        open_loop(Path(temporary), create=True) as ws,
    ):
        tokens = peer()[2]
        contexts: list[tuple[AudioContext, str]] = [("trimmed", "trimmed"), ("full", "at 30 s, as an untuned model")]
        for context, how in contexts:
            _, written = ours(context, tokens)
            rows.append(
                compare(
                    f"tiny shape, {SECONDS // 60} minutes of real speech from file to text: int8, {how}, against "
                    "faster-whisper's batched pipeline, int8",
                    ours=lambda context=context: ours(context, tokens)[0],  # type: ignore[misc]
                    peer=lambda: peer()[0],
                    unit="s of audio/s",
                    rounds=rounds,
                    quality_ours=f"{written} tokens",
                    quality_peer=f"{tokens} tokens",
                )
            )
    return rows


# What is spoken ------------------------------------------------------------------------------------------------------


def _rows(folder: Path) -> list[dict[str, Any]]:
    lines = (folder / "metadata.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) | {"path": folder / json.loads(line)["file"]} for line in lines]


def _joined(file: Path, rows: list[dict[str, Any]], pauses_s: tuple[float, float]) -> str:
    """Write speech with pauses, one in four of them of 0.8 to 2 s, up to the length wanted; what is said in it."""
    import soundfile

    chance = np.random.default_rng(0)
    parts: list[peers.Sound] = []
    words: list[str] = []
    held = 0
    while held < SECONDS * peers.RATE:
        for index in chance.permutation(len(rows)):
            pause = chance.uniform(*(pauses_s if chance.random() < 0.75 else (0.8, 2.0)))
            silence = (3e-4 * chance.standard_normal(int(pause * peers.RATE))).astype(np.float32)
            parts += [decode(rows[index]["path"]), silence]
            words.append(rows[index]["text"])
            held += len(parts[-2]) + len(parts[-1])
            if held >= SECONDS * peers.RATE:
                break
    soundfile.write(file, np.concatenate(parts), peers.RATE)
    return " ".join(words)
