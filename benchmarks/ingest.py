"""Ingest against one ffmpeg process a file, on files of eight kinds.

Both sides decode, resample to 16 kHz mono, measure and store WAV. Ours also hashes, looks for what is known and writes
the catalog's rows, events and jobs; ffmpeg's measurement is `astats` alone. Needs the command `ffmpeg`.
"""

from __future__ import annotations

import itertools
import json
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import soundfile

from benchmarks.side_by_side import Row, compare
from voxloop import audio
from voxloop.pipeline import open_loop
from voxloop.recordings import ingest

SPEECH = Path(__file__).parents[1] / "demo" / "speech"
FILES = 500
# Suffix, sampling rate, and what ffmpeg is to encode it with.
KINDS = (
    (".wav", 8_000, "pcm_s16le"),
    (".wav", 44_100, "pcm_s16le"),
    (".wav", 48_000, "pcm_s24le"),
    (".mp3", 44_100, "libmp3lame"),
    (".m4a", 44_100, "aac"),
    (".flac", 48_000, "flac"),
    (".ogg", 44_100, "libvorbis"),
    (".opus", 48_000, "libopus"),
)


def measure(rounds: int) -> list[Row]:
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        files = mixed_files(folder / "mixed", FILES)
        return [_row(files, folder, rounds, ours=ours, peers=peers) for ours, peers in ((1, 1), (2, 1), (2, 2))]


def mixed_files(folder: Path, count: int) -> list[Path]:
    """Speech of 1 to 8 s in the kinds above, in turn, no two with the same samples."""
    folder.mkdir(parents=True)
    lines = (SPEECH / "metadata.jsonl").read_text().splitlines()
    clips = [audio.decode(SPEECH / json.loads(line)["file"]) for line in lines]
    chance = np.random.default_rng(1)
    made = []
    for number in range(count):
        suffix, rate, codec = KINDS[number % len(KINDS)]
        parts = [clips[one] for one in chance.integers(len(clips), size=chance.integers(1, 6))]
        source = folder / "source.wav"
        soundfile.write(source, np.concatenate(parts)[: 8 * audio.SAMPLE_RATE] * chance.uniform(0.5, 0.9), 16_000)
        path = folder / f"{number:04}{suffix}"
        arguments = ["-y", "-i", source, "-ar", str(rate), "-ac", str(1 + number % 2), "-c:a", codec, path]
        subprocess.run(["ffmpeg", "-nostdin", "-loglevel", "error", *arguments], check=True)
        made.append(path)
    source.unlink()
    return made


def _row(files: Sequence[Path], folder: Path, rounds: int, *, ours: int, peers: int) -> Row:
    turn = itertools.count()

    def ingested() -> float:
        with open_loop(folder / f"workspace{next(turn)}", create=True) as ws:
            report = ingest(ws, files, processes=ours)
            if len(report.taken) != len(files):
                raise RuntimeError(f"{len(report.taken)} of {len(files)} files were taken: {report.reasons}")
            shutil.rmtree(ws.folder)
        return float(len(files))

    def converted() -> float:
        out = folder / "peer"
        out.mkdir()
        with ThreadPoolExecutor(peers) as pool:
            list(pool.map(lambda path: _ffmpeg(path, out / f"{path.name}.wav"), files))
        shutil.rmtree(out)
        return float(len(files))

    ingested()
    return compare(
        f"{len(files)} files of eight kinds, {ours} of our processes against {peers} ffmpeg at a time",
        ours=ingested,
        peer=converted,
        unit="files/s",
        rounds=rounds,
        quality_ours="hashed, measured, in the catalog",
        quality_peer="measured (astats)",
    )


def _ffmpeg(path: Path, out: Path) -> None:
    arguments = ["-i", path, "-ac", "1", "-ar", "16000", "-af", "astats", "-c:a", "pcm_s16le", out]
    subprocess.run(["ffmpeg", "-nostdin", "-threads", "1", *arguments], check=True, capture_output=True)
