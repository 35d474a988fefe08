"""Transcribing with real Whisper models: speed and word errors beside those of the usual programs.

    python -m benchmarks transcription                          every part, one after the other
    python -m benchmarks transcription --part short --rounds 5  one of them; the others stay as they were measured

Each part keeps its rows in build/bench/transcription/PART.json, and the table is made of all that are there. All but
`starter` and `long-starter` need recorded speech (`--data`).
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import long_audio, results
from benchmarks.apart import apart
from benchmarks.checkpoints import CHECKPOINTS, fetch
from benchmarks.peers import LONGEST, RATE, THREADS, UNHEARD, Sound, bounded_options, whisper_model
from benchmarks.side_by_side import Row, compare, rows_table, write
from voxloop.families.decoding import AudioContext, Decoding
from voxloop.families.registry import family
from voxloop.pipeline import open_loop
from voxloop.speech import text
from voxloop.speech.audio import decode
from voxloop.starter import STARTER_DIR
from voxloop.steps import hearing, transcripts
from voxloop.workspace import Workspace

ROOT = Path(__file__).parents[1]
DATA = ROOT.parent / "shared" / "data"
DEMO = ROOT / "demo" / "speech"
SETS = ("kathleen_en", "prompts_en")
CLIPS = 20  # of each set
STRINGS, SECONDS = 32, 4.0  # of the starter's digits
BATCH = 8
WARM = 5  # times that one clip is read in a row
PARTS = ("short", "latency", "cold", "long", "hour", "starter", "long-starter")

NOTES = """Real Whisper weights, int8, greedy, two threads on both sides; each peer is a process of its own. Both sides
hear the same recorded clips, with their guards and fall-back temperatures, and detect speech where a row says so.
faster-whisper takes short files one by one, as its interface does; transformers in batches of 8 in float32, without
guards. "Adaptive" is a context of twice the clip, 10 s at least, and 30 s where the text is doubtful.

Cold: one command from its start to its end, ours `voxloop transcribe`, the peer a script of four lines.

Long audio is real speech joined with pauses, read from one FLAC file, whose text is known. Each side finds the speech
itself, by the same kind of detector; both pack it into windows of 30 s. Sequential: Whisper's own long-form decoding,
as transformers has it.

The starter (digits) hears clips at their own length, which only models tuned so can do.
"""

Said = tuple[list[Sound], list[str]]


def main(arguments: Sequence[str]) -> None:
    import torch

    parser = argparse.ArgumentParser(
        prog="python -m benchmarks transcription",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--part", action="append", choices=PARTS, help="only this one; may be given more than once")
    parser.add_argument("--rounds", type=int, default=3, help="interleaved rounds")
    parser.add_argument("--models", default="base,tiny.en", help=f"of {', '.join(CHECKPOINTS)}")
    parser.add_argument("--out", type=Path, default=Path("build/bench"))
    parser.add_argument("--data", type=Path, default=DATA, help="folder of recorded speech")
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
    if part == "starter":
        return _by_starter(folder, given.rounds, given.data)
    if part == "long-starter":
        return long_audio.by_starter(folder, given.rounds, given.data)
    if not (given.data / SETS[0]).is_dir():
        return []
    measure = {"short": _short, "latency": _latency, "cold": _cold, "long": long_audio.ten_minutes}.get(
        part, long_audio.an_hour
    )
    return [row for model in given.models.split(",") for row in measure(model, folder, given.rounds, given.data)]


@contextmanager
def served(model: str, folder: Path) -> Iterator[Workspace]:
    """A workspace that serves a real model, as `voxloop transcribe` does with the engine CTranslate2."""
    settings = {"base_model": str(fetch(model)), "engine": "ctranslate2", "threads": THREADS}
    with (
        tempfile.TemporaryDirectory(dir=folder) as made,
        open_loop(Path(made) / "workspace", create=True, **settings) as ws,
    ):
        yield ws


def wer(said: Sequence[str], heard: Sequence[str]) -> str:
    pairs = [[text.normalise(one, "en") for one in side] for side in (said, heard)]
    return f"WER {text.total(text.word_errors_each(*pairs)).rate:.1%}"


# Short clips ---------------------------------------------------------------------------------------------------------


def _clips(data: Path) -> dict[str, Said]:
    """Clips of each set, spread over it, that are no longer than a window."""
    found: dict[str, Said] = {}
    for name in SETS:
        rows = [json.loads(line) for line in (data / name / "metadata.jsonl").read_text().splitlines()]
        rows = [row for row in rows if row.get("text") and (row.get("duration") or 0) < 28]
        rows = rows[:: max(1, len(rows) // CLIPS)][:CLIPS]
        found[name] = [decode(data / name / row["file"]) for row in rows], [row["text"] for row in rows]
    return found


def _short(model: str, folder: Path, rounds: int, data: Path) -> list[Row]:
    from voxloop.models import base_model, loaded

    said = _clips(data)
    sounds = [sound for mine, _ in said.values() for sound in mine]
    texts = [one for _, mine in said.values() for one in mine]
    seconds = sum(map(len, sounds)) / RATE
    heard: dict[str, list[str]] = {}
    with (
        served(model, folder) as ws,
        loaded(ws, base_model(ws)) as recogniser,
        apart(_faster, fetch(model)) as faster,
        apart(_transformers, model) as stock,
    ):

        def ours(context: AudioContext, timed: bool) -> Callable[[], float]:
            def work() -> float:
                asked = transcripts.decoding(ws, "en", context)
                found = hearing.hear_files(recogniser, sounds, asked, ws.settings, word_times=timed)
                heard["ours"] = [one.hypothesis.text for one in found]
                return seconds

            return work

        def peer(call: Callable[..., list[str]], **how: Any) -> Callable[[], float]:
            def work() -> float:
                heard["peer"] = call(sounds, **how)
                return seconds

            return work

        rows = []
        for context, timed, name, other in (
            ("full", False, "faster-whisper", peer(faster)),
            ("full", True, "faster-whisper, word times on both sides", peer(faster, timed=True)),
            ("adaptive", False, "faster-whisper", peer(faster)),
            ("adaptive", True, "faster-whisper, word times on both sides", peer(faster, timed=True)),
            ("full", False, "transformers", peer(stock)),
            ("adaptive", False, "transformers", peer(stock)),
        ):
            mine = ours(context, timed)  # type: ignore[arg-type]
            mine()
            other()
            shown = "30 s" if context == "full" else context
            rows.append(
                compare(
                    f"{model}, {len(sounds)} clips of {seconds / len(sounds):.1f} s, {shown}: against {name}",
                    ours=mine,
                    peer=other,
                    unit="s of audio/s",
                    rounds=rounds,
                    quality_ours=wer(texts, heard["ours"]),
                    quality_peer=wer(texts, heard["peer"]),
                )
            )
        return rows


def _faster(folder: Path) -> Callable[..., list[str]]:
    model = whisper_model(folder)

    def run(sounds: Sequence[Sound], *, timed: bool = False) -> list[str]:
        asked = {"language": "en", "beam_size": 1, "without_timestamps": True, "word_timestamps": timed}
        return ["".join(one.text for one in model.transcribe(sound, **asked)[0]).strip() for sound in sounds]

    return run


def _transformers(name: str) -> Callable[[Sequence[Sound]], list[str]]:
    import torch
    from transformers import WhisperProcessor

    torch.set_num_threads(THREADS)
    model, folder = long_audio.stock_model(name)
    processor: Any = WhisperProcessor.from_pretrained(folder)
    asked: dict[str, Any] = {} if name.endswith(".en") else {"language": "en", "task": "transcribe"}

    def run(sounds: Sequence[Sound]) -> list[str]:
        texts: list[str] = []
        for first in range(0, len(sounds), BATCH):
            features = processor(list(sounds[first : first + BATCH]), sampling_rate=RATE, return_tensors="pt")
            with torch.inference_mode():
                tokens = model.generate(features.input_features, do_sample=False, num_beams=1, **asked)
            texts += processor.batch_decode(tokens, skip_special_tokens=True)
        return texts

    return run


# One clip ------------------------------------------------------------------------------------------------------------


def _clip(folder: Path, data: Path) -> tuple[Path, str, float]:
    """A file of about 3 s, its text, and its length in seconds."""
    import soundfile

    sounds, texts = _clips(data)[SETS[0]]
    index = min(range(len(sounds)), key=lambda index: abs(len(sounds[index]) - 3 * RATE))
    file = folder / "clip.wav"
    soundfile.write(file, sounds[index], RATE)
    return file, texts[index], len(sounds[index]) / RATE


def _latency(model: str, folder: Path, rounds: int, data: Path) -> list[Row]:
    """From the file to its text, with the model loaded: files read in a second, one after the other."""
    file, said, seconds = _clip(folder, data)
    heard: dict[str, str] = {}
    rows = []
    with served(model, folder) as ws, apart(_faster_file, fetch(model)) as peer:
        contexts: tuple[tuple[AudioContext, str], ...] = (("full", "30 s"), ("adaptive", "adaptive"))
        for context, shown in contexts:

            def ours(context: AudioContext = context) -> float:
                for _ in range(WARM):
                    heard["ours"] = transcripts.transcribe_file(ws, file, language="en", audio_context=context).text
                return float(WARM)

            def theirs() -> float:
                for _ in range(WARM):
                    heard["peer"] = peer(file)
                return float(WARM)

            ours()
            theirs()
            rows.append(
                compare(
                    f"{model}, one clip of {seconds:.1f} s, warm, {shown}: against faster-whisper",
                    ours=ours,
                    peer=theirs,
                    unit="files/s",
                    rounds=rounds,
                    quality_ours=wer([said], [heard["ours"]]),
                    quality_peer=wer([said], [heard["peer"]]),
                )
            )
    return rows


def _faster_file(folder: Path) -> Callable[[Path], str]:
    model = whisper_model(folder)

    def run(file: Path) -> str:
        found, _ = model.transcribe(str(file), language="en", beam_size=1, without_timestamps=True)
        return "".join(one.text for one in found).strip()

    return run


SCRIPT = """
import sys
from faster_whisper import WhisperModel
model = WhisperModel(sys.argv[1], device="cpu", compute_type="int8")
print("".join(one.text for one in model.transcribe(sys.argv[2], language="en", beam_size=1)[0]))
"""


def _cold(model: str, folder: Path, rounds: int, data: Path) -> list[Row]:
    file, said, seconds = _clip(folder, data)
    place = folder / f"workspace-{model}"
    with open_loop(place, create=True, base_model=str(fetch(model)), engine="ctranslate2") as ws:
        transcripts.transcribe_file(ws, file, language="en")  # converts the model, once for the workspace
    (place / "voxloop.toml").write_text(f'base_model = "{fetch(model)}"\nengine = "ctranslate2"\n')
    command = [sys.executable, "-c", "from voxloop.cli import main; main()"]
    command += ["--workspace", str(place), "transcribe", "--language", "en", str(file)]
    heard: dict[str, str] = {}

    def timed(who: str, asked: list[str]) -> Callable[[], float]:
        def work() -> float:
            heard[who] = subprocess.run(asked, capture_output=True, text=True, check=True).stdout.strip()
            return 1.0

        return work

    ours = timed("ours", command)
    peer = timed("peer", [sys.executable, "-c", SCRIPT, str(fetch(model)), str(file)])
    ours()
    peer()
    return [
        compare(
            f"{model}, one clip of {seconds:.1f} s, cold, from the command line: against a script of faster-whisper",
            ours=ours,
            peer=peer,
            unit="commands/s",
            rounds=max(rounds, 5),
            quality_ours=wer([said], [heard["ours"]]),
            quality_peer=wer([said], [heard["peer"]]),
        )
    ]


# The starter, at the clips' own length -------------------------------------------------------------------------------


def _by_starter(folder: Path, rounds: int, data: Path) -> list[Row]:
    fast = folder / "starter-int8"
    family("whisper").convert(STARTER_DIR, fast, "int8")
    ours = family("whisper").load_converted(fast)
    sounds, references, voice = _digits(data / "digits_en")
    seconds = sum(map(len, sounds)) / RATE
    asked = Decoding(language="en", max_new_tokens=LONGEST)
    heard: dict[str, list[str]] = {}

    def mine() -> float:
        heard["ours"] = [one.text for one in ours.transcribe(sounds, asked)]
        return seconds

    with apart(_faster_texts, fast) as faster:

        def theirs() -> float:
            heard["peer"] = faster(sounds)
            return seconds

        mine()
        theirs()
        return [
            compare(
                f"starter, {len(sounds)} strings of {voice}, {seconds / len(sounds):.1f} s, own length: against "
                "faster-whisper at 30 s",
                ours=mine,
                peer=theirs,
                unit="s of audio/s",
                rounds=rounds,
                quality_ours=wer(references, heard["ours"]),
                quality_peer=wer(references, heard["peer"]),
            )
        ]


def _faster_texts(fast: Path) -> Callable[[Sequence[Sound]], list[str]]:
    model, options = whisper_model(fast), bounded_options()

    def run(sounds: Sequence[Sound]) -> list[str]:
        return [" ".join(one.text.strip() for one in model.transcribe(sound, **options)[0]) for sound in sounds]

    return run


def _digits(folder: Path) -> tuple[list[Sound], list[str], str]:
    """Clips of one voice joined with short pauses to about 4 s, with their texts."""
    real = folder.is_dir()
    folder = folder if real else DEMO
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
        if len(sounds) == STRINGS:
            break
    return sounds, texts, "real digits" if real else "the demo's speech"
