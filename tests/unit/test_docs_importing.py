"""Every command of docs/importing.md is run, in order, on small folders of each kind."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import numpy as np
import pytest
import soundfile
from typer.testing import CliRunner

from voxloop.cli import app

PAGE = Path(__file__).parents[2] / "docs" / "importing.md"
RATE = 16_000
# What each command finds, in the order of the page: (taken, known).
FOUND = [*[(2, 0)] * 3, (1, 0), (0, 1), (1, 0), (1, 0), (1, 0), (1, 0), (2, 0), (1, 0), (1, 0), (2, 0), (2, 0), (0, 2)]


def make(path: Path, seed: int, *, seconds: float = 2.0, channels: int = 1) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(seed).normal(0, 0.05, (round(seconds * RATE), channels))
    soundfile.write(path, noise, RATE, format="FLAC" if path.suffix == ".flac" else "WAV")
    return path


def write(path: Path, *lines: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines))


def folders(root: Path) -> None:
    """One small folder for each part of the page."""
    make(root / "recordings" / "hello.wav", 1)
    make(root / "recordings" / "deep" / "bye.wav", 2)
    write(root / "recordings" / "hello.txt", "hello")
    write(root / "lists" / "some.csv", "file_name,text", "hello.wav,hello")
    for number in range(2):
        make(root / "with-metadata" / f"{number}.wav", 10 + number)
    write(root / "with-metadata" / "metadata.jsonl", {"file": "0.wav", "text": "good morning", "speaker": "ann"})
    for number in range(2):
        make(root / "with-csv" / "clips" / f"{number}.wav", 15 + number)
    write(root / "with-csv" / "metadata.csv", "file_name,transcription,speaker", 'clips/0.wav,"good, morning",ann')
    make(root / "with-spans" / "call.wav", 20, seconds=6)
    spans = [(0.4, 3.1, "good morning", "ann"), (3.3, 5.0, "and to you", "bob")]
    rows = [{"file": "call.wav", "start": s, "end": e, "text": t, "speaker": who} for s, e, t, who in spans]
    write(root / "with-spans" / "metadata.jsonl", *rows)
    make(root / "with-audio-path" / "audio" / "a.wav", 30)
    write(root / "with-audio-path" / "train.jsonl", {"audio_path": "audio/a.wav", "text": "as exported"})
    make(root / "nemo" / "a.wav", 40)
    row = {"audio_filepath": "a.wav", "offset": 0.5, "duration": 1.0, "text": "nemo"}
    write(root / "nemo" / "train_manifest.json", row)
    for number, name in enumerate(("lhotse", "lhotse-cuts")):
        lhotse(root / name, 50 + number, cuts=name == "lhotse-cuts")
    for number in range(2):
        make(root / "kaldi" / f"{number}.wav", 60 + number)
    data = root / "kaldi" / "data" / "train"
    write(data / "wav.scp", *(f"r{number} {root}/kaldi/{number}.wav" for number in range(2)))
    write(data / "text", "r0 kaldi", "r1 kaldi too")
    for number in range(2):
        make(root / "cv-corpus" / "vi" / "clips" / f"{number}.wav", 70 + number)
        table = root / "cv-corpus" / "vi" / ("validated.tsv" if number == 0 else "other.tsv")
        write(table, "client_id\tpath\tsentence\tlocale", f"x\t{number}.wav\tbật đèn\tvi")
    for number in range(2):
        make(root / "LibriSpeech" / "dev" / "84" / "1" / f"84-1-000{number}.flac", 80 + number)
    write(root / "LibriSpeech" / "dev" / "84" / "1" / "84-1.trans.txt", "84-1-0000 GO", "84-1-0001 ON")
    make(root / "calls" / "call.wav", 90, channels=2)


def lhotse(folder: Path, seed: int, *, cuts: bool) -> None:
    from lhotse import CutSet, Recording, RecordingSet, SupervisionSegment, SupervisionSet

    recording = Recording.from_file(make(folder.parent / f"audio-{folder.name}" / "a.wav", seed))
    supervision = SupervisionSegment(id="s", recording_id=recording.id, start=0.5, duration=1.0, text="lhotse")
    folder.mkdir()
    recordings, supervisions = RecordingSet.from_recordings([recording]), SupervisionSet.from_segments([supervision])
    if cuts:
        CutSet.from_manifests(recordings, supervisions).to_file(folder / "cuts.jsonl.gz")
    else:
        recordings.to_file(folder / "recordings.jsonl.gz")
        supervisions.to_file(folder / "supervisions.jsonl.gz")


def test_every_command_of_the_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folders(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("VOXLOOP_WORKSPACE", str(tmp_path / "workspace"))
    commands = [line for block in re.findall(r"```sh\n(.*?)```", PAGE.read_text(), re.S) for line in block.splitlines()]
    found = []
    for command in commands:
        program, *arguments = shlex.split(command)
        assert program == "voxloop"
        result = CliRunner().invoke(app, [*arguments, *([] if "--json" in arguments else ["--json"])])
        assert result.exit_code == 0, f"{command}: {result.output} {result.exception}"
        told = json.loads(result.stdout)
        assert told["refused"] == 0, (command, told)
        found.append((told["taken"], told["known"]))
    assert dict(zip(commands, found, strict=True)) == dict(zip(commands, FOUND, strict=True))


def test_every_reason_is_explained() -> None:
    source = Path(__file__).parents[2] / "src" / "voxloop"
    modules = [*(source / "speech").glob("*.py"), *(source / "steps" / "recordings").glob("*.py")]
    patterns = (r'AudioError\(\s*"([a-z-]+)"', r'reason="([a-z-]+)"', r'(?:_wrong\(row|refuse\(said), "([a-z-]+)"')
    reasons = {
        reason for module in modules for pattern in patterns for reason in re.findall(pattern, module.read_text())
    }
    assert len(reasons) > 12
    assert not [reason for reason in sorted(reasons) if f"`{reason}`" not in PAGE.read_text()]
