"""Voice activity: Silero's own loop is the reference, on the demo's speech in noise and between pauses."""

from __future__ import annotations

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from silero_vad import get_speech_timestamps, load_silero_vad
from silero_vad.utils_vad import get_speech_timestamps_from_probs

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


def test_pytorch_is_not_imported() -> None:
    """It takes longer to import than a short file takes to be heard."""
    code = "import sys, numpy as np; from voxloop.speech import voice; voice.chances_of([np.zeros(9000, np.float32)])"
    code += "; print(sorted({'torch', 'transformers', 'silero_vad'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_threads_hear_what_one_hears_alone(speech: Waveform) -> None:
    clips = [speech[start : start + 3 * RATE] for start in range(0, 8 * RATE, RATE)]
    alone = [voice.chances_of([clip])[0] for clip in clips]
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(lambda clip: voice.chances_of([clip])[0], clips)) == alone


@pytest.mark.parametrize("seed", range(20))
def test_speech_begins_and_ends_by_silero_s_rule(seed: int) -> None:
    """Also where speech goes on for longer than 30 s, with and without a pause to cut it at."""
    chance = np.random.default_rng(seed)
    for threshold, pause_ms, padding_ms in ((0.5, 100, 30), (0.25, 300, 0), (0.5, 500, 400)):
        count = int(chance.integers(1, 3000))
        probabilities = [
            chance.beta(0.3, 0.3, count),
            np.where(chance.random(count) < 0.995, 0.95, 0.05),
            np.clip(np.cumsum(chance.normal(0, 0.12, count)) % 2 - 0.5, 0, 1),
        ][seed % 3].tolist()
        samples = count * voice.FRAME - int(chance.integers(0, voice.FRAME))
        expected = get_speech_timestamps_from_probs(
            probabilities,
            sampling_rate=RATE,
            threshold=threshold,
            min_speech_duration_ms=100,
            max_speech_duration_s=30.0,
            min_silence_duration_ms=pause_ms,
            speech_pad_ms=padding_ms,
            audio_length_samples=samples,
        )
        found = voice.stretches(
            probabilities, samples, threshold=threshold, shortest=1600, pause=16 * pause_ms, padding=16 * padding_ms
        )
        assert found == [(one["start"], one["end"]) for one in expected]
