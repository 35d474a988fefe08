"""Ingest, measured in parts that can be run one by one (`--part`); the results hold the newest of each.

mixed: 500 files of eight kinds against one ffmpeg process a file. Both sides decode, resample to 16 kHz mono, measure
    and store WAV. Ours also hashes, looks for what is known and writes the catalog's rows, events and jobs; ffmpeg's
    measurement is `astats` alone. Needs the command `ffmpeg`, as does `long`.
small: many files of a second or less, all different, in one process: rate and memory from the first tenth to the last,
    then the same folder again.
long: one file of many hours.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import soundfile

from benchmarks import results
from benchmarks.side_by_side import Row, machine, paired, rows_table, write
from voxloop.pipeline import open_loop
from voxloop.records import Recording
from voxloop.speech import audio
from voxloop.steps.recordings import IngestProgress, ingest, read_audio

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
AGAINST = ((1, 1), (2, 1), (2, 2))  # our processes against ffmpeg's at a time
COMPARED = 48  # files whose samples are held against ffmpeg's
PER_FOLDER = 1000
PARTS = ("mixed", "small", "long")


# Files of eight kinds ------------------------------------------------------------------------------------------------


def mixed(folder: Path, given: argparse.Namespace) -> tuple[list[Row], str]:
    """Each round runs every side once, in turn."""
    files = mixed_files(folder / "mixed", FILES)
    sides = {
        **{f"ours {n}": lambda n=n: _ours(files, folder / "workspace", n) for n in (1, 2)},
        **{f"ffmpeg {n}": lambda n=n: _theirs(files, folder / "peer", n) for n in (1, 2)},
    }
    _ours(files, folder / "workspace", 1)  # caches
    rates: dict[str, list[float]] = {name: [] for name in sides}
    work: dict[str, list[float]] = {name: [] for name in sides}  # CPU ms a file
    for _ in range(given.rounds):
        for name, run in sides.items():
            began, worked = time.perf_counter(), _cpu_s()
            run()
            rates[name].append(len(files) / (time.perf_counter() - began))
            work[name].append((_cpu_s() - worked) / len(files) * 1000)
        print(", ".join(f"{name}: {found[-1]:.1f} files/s" for name, found in rates.items()), flush=True)
    differences = _differences(files[:COMPARED], folder)
    rows = []
    for ours, theirs in AGAINST:
        rows.append(
            paired(
                f"{len(files)} files of eight kinds, {ours} of our processes against {theirs} ffmpeg at a time",
                rates[f"ours {ours}"],
                rates[f"ffmpeg {theirs}"],
                unit="files/s",
                quality_ours="hashed, measured, in the catalog",
                quality_peer="measured (astats)",
            )
        )
    spent = (
        f"CPU time a file, which other work on the machine changes less: ours {median(work['ours 1']):.1f} ms in "
        f"one process and {median(work['ours 2']):.1f} ms in two with their start, "
        f"ffmpeg {median(work['ffmpeg 1']):.1f} ms."
    )
    return rows, f"{spent}\n\n{_said_of(differences)}"


def _cpu_s() -> float:
    """Seconds of this process and of those that it started and that have ended."""
    used = os.times()
    return used.user + used.system + used.children_user + used.children_system


def mixed_files(folder: Path, count: int) -> list[Path]:
    """Speech of 1 to 8 s in the kinds above, in turn, no two with the same samples."""
    folder.mkdir(parents=True)
    clips = _speech()
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


def _speech() -> list[audio.Waveform]:
    lines = (SPEECH / "metadata.jsonl").read_text().splitlines()
    return [audio.decode(SPEECH / json.loads(line)["file"]) for line in lines]


def _ours(files: Sequence[Path], folder: Path, processes: int) -> None:
    with open_loop(folder, create=True) as ws:
        report = ingest(ws, files, processes=processes)
        if len(report.taken) != len(files):
            raise RuntimeError(f"{len(report.taken)} of {len(files)} files were taken: {report.reasons}")
    shutil.rmtree(folder)


def _theirs(files: Sequence[Path], folder: Path, at_a_time: int) -> None:
    folder.mkdir()
    with ThreadPoolExecutor(at_a_time) as pool:
        list(pool.map(lambda path: _ffmpeg(path, folder / f"{path.name}.wav"), files))
    shutil.rmtree(folder)


def _ffmpeg(path: Path, out: Path) -> None:
    arguments = ["-i", path, "-ac", "1", "-ar", "16000", "-af", "astats", "-c:a", "pcm_s16le", out]
    subprocess.run(["ffmpeg", "-nostdin", "-threads", "1", *arguments], check=True, capture_output=True)


def _differences(files: Sequence[Path], folder: Path) -> dict[str, list[tuple[int, float]]]:
    """By kind: how many samples longer ours is than ffmpeg's, and the difference between both in dB to the signal."""
    found: dict[str, list[tuple[int, float]]] = {}
    with open_loop(folder / "workspace", create=True) as ws:
        ingest(ws, files, processes=1)
        with ws.read() as reader:
            stored = {recording.name: read_audio(ws, recording.id) for recording in reader.all(Recording)}
    for number, path in enumerate(files):
        out = folder / "theirs.wav"
        _ffmpeg(path, out)
        theirs, _ = soundfile.read(out, dtype="float32")
        out.unlink()
        ours = stored[path.name]
        least = min(len(ours), len(theirs))
        apart = np.sqrt(np.mean((ours[:least] - theirs[:least]) ** 2) / np.mean(theirs[:least] ** 2))
        suffix, rate, _ = KINDS[number % len(KINDS)]
        kind = f"{suffix[1:]} {rate / 1000:g} kHz"
        found.setdefault(kind, []).append((len(ours) - len(theirs), 20 * float(np.log10(max(apart, 1e-9)))))
    shutil.rmtree(folder / "workspace")
    return found


def _said_of(differences: dict[str, list[tuple[int, float]]]) -> str:
    told = [
        f"{kind} {median(db for _, db in found):.0f} dB"
        + (f" and up to {max(abs(n) for n, _ in found)} samples of length" if any(n for n, _ in found) else "")
        for kind, found in differences.items()
    ]
    return (
        "Our samples are not ffmpeg's bit by bit, since soxr resamples with another filter than swresample, and each "
        f"mixes channels in its own way. The difference, relative to the signal, median of {COMPARED // len(KINDS)} "
        f"files a kind: {'; '.join(told)}."
    )


# Many small files ----------------------------------------------------------------------------------------------------


def small(folder: Path, given: argparse.Namespace) -> tuple[list[Row], str]:
    """In a process of its own, so that its memory is its own."""
    small_files(folder / "small", given.files)
    found = _apart("small", folder / "small", folder / "workspace", str(given.rounds))
    rates, memory = found["rates"], found["memory_mb"]
    name = f"{given.files:,} files of a second or less"
    ratios = [rate / rates[0] for rate in rates]
    again = [given.files / seconds / (given.files / found["seconds"]) for seconds in found["again"]]
    rows = [
        Row(
            name=f"{name}: the last tenth of the run against its first",
            ours=rates[-1],
            peer=rates[0],
            unit="files/s",
            ratio_median=ratios[-1],
            ratio_min=min(ratios),
            ratio_max=max(ratios),
            quality_ours=f"{found['cpu_us'][-1]:.0f} CPU µs a file, {memory[-1]:.0f} MB resident",
            quality_peer=f"{found['cpu_us'][0]:.0f} CPU µs a file, {memory[0]:.0f} MB resident",
        ),
        Row(
            name=f"{name}: again, with nothing new, against the first run",
            ours=given.files / median(found["again"]),
            peer=given.files / found["seconds"],
            unit="files/s",
            ratio_median=median(again),
            ratio_min=min(again),
            ratio_max=max(again),
            quality_ours="all known",
            quality_peer="all taken",
        ),
    ]
    by_tenth = ", ".join(f"{rate:.0f}" for rate in rates)
    worked = ", ".join(f"{us:.0f}" for us in found["cpu_us"])
    note = (
        f"{given.files:,} small files in one process, by tenths of the run: {by_tenth} files/s; "
        f"{worked} CPU µs a file; "
        f"{found['start_mb']:.0f} MB resident before, {memory[0]:.0f} MB after the first tenth, "
        f"{memory[-1]:.0f} MB after the last, at most {found['peak_mb']:.0f} MB with the second runs. "
        "The ratio's range is that of all tenths to the first."
    )
    return rows, note


def small_files(folder: Path, count: int) -> None:
    """WAVs of 0.25 to 1 s, cut from speech; the first two samples count them, so that no two are the same."""
    pcm = (np.concatenate(_speech()) * 20_000).astype("<i2")
    chance = np.random.default_rng(2)
    for number in range(count):
        here = folder / f"{number // PER_FOLDER:03}"
        if number % PER_FOLDER == 0:
            here.mkdir(parents=True)
        length = int(chance.integers(4_000, 16_000))
        start = int(chance.integers(len(pcm) - length))
        clip = pcm[start : start + length].copy()
        clip[:2] = number & 0x7FFF, number >> 15
        (here / f"{number:06}.wav").write_bytes(audio.wav_bytes(clip.tobytes()))


def run_small(folder: Path, workspace: Path, rounds: int) -> dict[str, Any]:
    """Rates and memory by tenths, and the seconds of some second runs."""
    rates: list[float] = []
    memory: list[float] = []
    work: list[float] = []  # CPU µs a file
    mark = [0, time.perf_counter(), time.process_time()]

    def told(progress: IngestProgress) -> None:
        if progress.done * 10 >= progress.total * (len(rates) + 1):
            now, worked, files = time.perf_counter(), time.process_time(), progress.done - mark[0]
            rates.append(files / (now - mark[1]))
            work.append((worked - mark[2]) / files * 1e6)
            memory.append(_resident_mb())
            mark[:] = progress.done, now, worked

    with open_loop(workspace, create=True) as ws:
        start = _resident_mb()
        began = time.perf_counter()
        mark[1:] = began, time.process_time()
        first = ingest(ws, folder, processes=1, progress=told)
        seconds = time.perf_counter() - began
        again = []
        for _ in range(rounds):
            began = time.perf_counter()
            if len(ingest(ws, folder).known) != len(first.taken):
                raise RuntimeError("the second run did not know all files")
            again.append(time.perf_counter() - began)
    return {
        "rates": rates,
        "cpu_us": work,
        "memory_mb": memory,
        "start_mb": start,
        "peak_mb": _peak_mb(),
        "seconds": seconds,
        "again": again,
    }


def _resident_mb() -> float:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() / 2**20


def _peak_mb() -> float:
    """Of this program alone: `ru_maxrss` counts what its parent held when it started it."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:")) / 1024


# One long file -------------------------------------------------------------------------------------------------------


def long(folder: Path, given: argparse.Namespace) -> tuple[list[Row], str]:
    """Speech in noise that changes its level, over and over; WAV at 44.1 kHz."""
    path = folder / "long.wav"
    with soundfile.SoundFile(path, "w", samplerate=44_100, channels=1) as file:
        for block in _hours(given.hours):
            file.write(block)
    found = _apart("long", path, folder / "workspace")
    began = time.perf_counter()
    _ffmpeg(path, folder / "theirs.wav")
    theirs = time.perf_counter() - began
    row = paired(
        f"one WAV file of {given.hours:g} h, 44.1 kHz",
        [given.hours * 3600 / found["seconds"]],
        [given.hours * 3600 / theirs],
        unit="s of audio/s",
        quality_ours=f"{found['peak_mb']:.0f} MB at most",
    )
    size = path.stat().st_size / 2**20
    return [row], (
        f"The file of {given.hours:g} h ({size:.0f} MB) took {found['seconds']:.0f} s, from {found['start_mb']:.0f} MB "
        f"resident before to {found['peak_mb']:.0f} MB at the peak; one run."
    )


def _hours(hours: float) -> Iterator[np.ndarray]:  # type: ignore[type-arg]
    """Minutes at 44.1 kHz. Built at that rate from the speech, so that nothing is resampled here."""
    speech = np.repeat(np.concatenate(_speech()), 3)[: 60 * 44_100].astype(np.float32)
    speech = np.resize(speech, 60 * 44_100)
    chance = np.random.default_rng(3)
    noise = chance.normal(0, 0.003, len(speech)).astype(np.float32)
    for minute in range(round(hours * 60)):
        yield np.roll(speech, 977 * minute) * chance.uniform(0.3, 0.9) + np.roll(noise, 613 * minute)


def run_long(path: Path, workspace: Path) -> dict[str, Any]:
    with open_loop(workspace, create=True) as ws:
        start = _resident_mb()
        began = time.perf_counter()
        if len(ingest(ws, path).taken) != 1:
            raise RuntimeError("the long file was not taken")
        return {"seconds": time.perf_counter() - began, "start_mb": start, "peak_mb": _peak_mb()}


# The parts together --------------------------------------------------------------------------------------------------


def _apart(what: str, *arguments: Path | str) -> dict[str, Any]:
    """A run in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.ingest", what, *map(str, arguments)]
    found: dict[str, Any] = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)
    return found


def main(arguments: Sequence[str]) -> None:
    """`python -m benchmarks ingest`."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks ingest", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=5, help="interleaved rounds")
    parser.add_argument("--out", type=Path, default=Path("build/bench"))
    parser.add_argument("--part", choices=PARTS, action="append", help="only this; more than once: only these")
    parser.add_argument("--files", type=int, default=20_000, help="small files")
    parser.add_argument("--hours", type=float, default=1.0, help="length of the long file")
    given = parser.parse_args(arguments)
    for part in given.part or PARTS:
        with tempfile.TemporaryDirectory(prefix="voxloop-bench-") as folder:
            rows, note = {"mixed": mixed, "small": small, "long": long}[part](Path(folder), given)
        path = given.out / f"ingest-{part}.json"
        write(path, rows)
        path.write_text(json.dumps({**json.loads(path.read_text()), "note": note}, indent=2) + "\n")
        print(f"{rows_table(rows)}\n\n{note}\n", flush=True)
    results.put(results.PATH, "ingest", section(given.out))
    print(given.out / "ingest.json")


def section(out: Path) -> str:
    """All parts measured, the newest of each, for the results; their rows together as `ingest.json`."""
    parts = [json.loads(path.read_text()) for path in (out / f"ingest-{part}.json" for part in PARTS) if path.exists()]
    rows = [Row(**row) for part in parts for row in part["rows"]]
    (out / "ingest.json").write_text(
        json.dumps({"machine": machine(), "rows": [asdict(row) for row in rows]}, indent=2) + "\n"
    )
    machines = list(dict.fromkeys(part["machine"] for part in parts))
    notes = "\n\n".join(part["note"] for part in parts)
    return "\n\n".join(["\n\n".join(machines), rows_table(rows), notes])


if __name__ == "__main__":
    what, first, second, *more = sys.argv[1:]
    print(
        json.dumps(
            run_small(Path(first), Path(second), int(*more)) if what == "small" else run_long(Path(first), Path(second))
        )
    )
