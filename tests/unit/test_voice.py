"""Voice activity: Silero's own loop is the reference, on the demo's speech in noise and between pauses."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from silero_vad import get_speech_timestamps, load_silero_vad

from voxloop.settings import Settings
from voxloop.speech import voice
from voxloop.speech.audio import Waveform, decode
from voxloop.steps.utterances import speech_spans

RATE = 16_000
CLOSE = 1e-4


@pytest.fixture(scope="module")
def speech(demo_speech: Path) -> Waveform:
    """Phrases between pauses of unlike length and noise, 24 s, ending within a frame."""
    chance = np.random.default_rng(0)
    parts: list[Waveform] = []
    for path in sorted(demo_speech.glob("*.ogg"))[::12]:
        pause = int(chance.choice([0.1, 0.4, 1.0, 3.0]) * RATE)
        parts += [decode(path), np.zeros(pause, np.float32)]
    whole = np.concatenate(parts)[: 24 * RATE - 137]
    level = np.repeat(10 ** chance.uniform(-5, -2, 24), RATE)[: len(whole)]
    noisy: Waveform = (whole + level * chance.standard_normal(len(whole))).astype(np.float32)
    return noisy


def by_silero(waveform: Waveform) -> list[float]:
    """Silero's loop, a frame a call."""
    model: Any = load_silero_vad()
    padded = np.zeros(-(-len(waveform) // voice.FRAME) * voice.FRAME, np.float32)
    padded[: len(waveform)] = waveform
    with torch.inference_mode():
        return [model(frame[None], RATE).item() for frame in torch.from_numpy(padded).split(voice.FRAME)]


def furthest(found: list[float], expected: list[float]) -> float:
    assert len(found) == len(expected)
    return float(np.abs(np.array(found) - np.array(expected)).max(initial=0.0))


def test_the_probabilities_are_silero_s_own(speech: Waveform) -> None:
    expected = by_silero(speech)
    assert min(expected) < 0.05
    assert max(expected) > 0.95
    found = voice.chances(lambda start, end: speech[start:end], len(speech))
    assert furthest(found, expected) < CLOSE
    assert furthest(voice.chances_of([speech])[0], expected) < CLOSE


def test_a_recording_is_heard_through_whatever_is_held_at_a_time(
    speech: Waveform, monkeypatch: pytest.MonkeyPatch
) -> None:
    (expected,) = voice.chances_of([speech])
    monkeypatch.setattr(voice, "READ_FRAMES", 100)
    monkeypatch.setattr(voice, "AT_ONCE", 37)
    reads: list[int] = []

    def read(start: int, end: int) -> Waveform:
        reads.append(end - start)
        return speech[start:end]

    assert furthest(voice.chances(read, len(speech)), expected) < CLOSE
    assert len(reads) > 7
    assert max(reads) == 100 * voice.FRAME + voice.BEFORE


def test_recordings_side_by_side_are_heard_as_each_alone(speech: Waveform) -> None:
    some = [speech[first : first + length] for first, length in [(0, 40_000), (70_000, 5), (90_000, 90_017), (9, 512)]]
    for found, waveform in zip(voice.chances_of(some), some, strict=True):
        assert furthest(found, by_silero(waveform)) < CLOSE


@pytest.mark.parametrize("length", [0, 1, 511, 512, 513, 1024])
def test_every_length_has_a_probability_for_each_frame_that_it_begins(speech: Waveform, length: int) -> None:
    waveform = speech[5_000 : 5_000 + length]
    expected = by_silero(waveform) if length else []
    assert furthest(voice.chances(lambda start, end: waveform[start:end], length), expected) < CLOSE
    assert furthest(voice.chances_of([waveform])[0], expected) < CLOSE


def test_speech_is_where_silero_finds_it(speech: Waveform) -> None:
    """Each span of ours begins and ends where one of Silero's does, and none of these is left out."""
    chosen = Settings()
    theirs = get_speech_timestamps(
        torch.from_numpy(speech),
        load_silero_vad(),
        min_speech_duration_ms=100,
        min_silence_duration_ms=chosen.vad_min_silence_ms,
        speech_pad_ms=chosen.vad_pad_ms,
    )
    ours = speech_spans(speech, chosen)
    assert len(ours) > 2
    assert {start for start, _ in ours} <= {one["start"] for one in theirs}
    assert {end for _, end in ours} <= {one["end"] for one in theirs}
    for one in theirs:
        assert any(start <= one["start"] and one["end"] <= end for start, end in ours)


def test_nothing_is_heard_of_no_recordings() -> None:
    assert voice.chances_of([]) == []
    assert voice.chances(lambda start, end: np.zeros(end - start, np.float32), 0) == []


def test_the_threads_of_pytorch_stay_as_they_were() -> None:
    """Silero's package sets them to one when it is imported, which every model in the process would pay for."""
    told = "import torch; torch.set_num_threads(3); from voxloop.speech import voice; voice.silero()"
    told += "; voice.chances_of([[0.0]]); print(torch.get_num_threads())"
    done = subprocess.run([sys.executable, "-c", told], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "3"


def test_hearing_in_threads_leaves_every_thread_its_number() -> None:
    """PyTorch counts for each thread apart, and gives one that first computes the number that was set last."""
    code = (
        "import threading, time, torch\n"
        "torch.set_num_threads(3)\n"
        "from voxloop.speech import voice\n"
        "import numpy as np\n"
        "clip = np.zeros(80_000, np.float32)\n"
        "def number():\n"
        "    torch.ones(2) + 1\n"
        "    seen.add(torch.get_num_threads())\n"
        "def hear():\n"
        "    number()\n"
        "    for _ in range(5):\n"
        "        voice.silero()\n"
        "        voice.chances_of([clip])\n"
        "        number()\n"
        "seen, inside = set(), set()\n"
        "hearing = [threading.Thread(target=hear) for _ in range(8)]\n"
        "for one in hearing: one.start()\n"
        "while any(one.is_alive() for one in hearing):\n"
        "    threading.Thread(target=number).start()\n"
        "    time.sleep(0.001)\n"
        "number()\n"
        "voice._voice().lstm.register_forward_pre_hook(lambda *_: inside.add(torch.get_num_threads()))\n"
        "voice.chances_of([clip])\n"
        "print(sorted(seen), sorted(inside))\n"
    )
    environment = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=120, check=True
    )
    assert done.stdout.strip() == "[3] [1]", done.stderr
