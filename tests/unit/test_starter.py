"""The starter ships small and whole, hears nothing in silence, and its recipe runs."""

from __future__ import annotations

import json
import random
import shutil

import numpy as np
import pytest

from voxloop.families.decoding import Decoding
from voxloop.families.registry import family
from voxloop.starter import STARTER_DIR

needs_espeak = pytest.mark.skipif(shutil.which("espeak-ng") is None, reason="espeak-ng is not installed")


def test_it_ships_small_with_its_card_and_says_how_it_is_fed() -> None:
    assert sum(file.stat().st_size for file in STARTER_DIR.glob("*.safetensors")) <= 8_000_000
    assert json.loads((STARTER_DIR / "config.json").read_text())["voxloop_audio_context"] == "trimmed"
    card = (STARTER_DIR / "README.md").read_text()
    for said in ("never heard `theo`", "CC BY-SA 4.0", "free-spoken-digit-dataset", "Limits"):
        assert said in card


def test_silence_and_faint_noise_stay_silent() -> None:
    noise = np.random.default_rng(0).standard_normal(5 * 16_000).astype(np.float32)
    heard = family("whisper").load(STARTER_DIR).transcribe([np.zeros(32_000, np.float32), 1e-3 * noise], Decoding())
    assert [hypothesis.text for hypothesis in heard] == ["", ""]


def test_any_text_can_be_written_with_its_tokens() -> None:
    from transformers import WhisperProcessor

    tokenizer = WhisperProcessor.from_pretrained(STARTER_DIR).tokenizer
    for text in ("seven", "cà phê sữa đá", "Grüße, 世界!"):
        assert tokenizer.decode(tokenizer(text).input_ids, skip_special_tokens=True).strip() == text


@needs_espeak
def test_synthetic_voices_speak_and_a_telephone_narrows_them() -> None:
    from voxloop.starter import synthesis

    voice = synthesis.random_voice(random.Random(3))
    wave = synthesis.speak("seven", voice=voice)
    assert 0.2 < len(wave) / 16_000 < 2.0
    assert np.abs(wave).max() > 0.05
    assert np.array_equal(wave, synthesis.speak("seven", voice=voice))

    def above_4_khz(samples: np.ndarray) -> float:
        power = np.abs(np.fft.rfft(samples)) ** 2
        return float(power[np.fft.rfftfreq(len(samples), 1 / 16_000) > 4_000].sum() / power.sum())

    assert above_4_khz(synthesis.telephone(wave, mu_law=False)) < 0.01 < above_4_khz(wave) + 0.01


def test_a_stop_is_held_longer_and_nothing_else_is_cut() -> None:
    from voxloop.starter.examples import Mixer

    mixer = Mixer([], seed=0)
    tone = np.sin(np.arange(8_000) / 5).astype(np.float32)
    assert np.array_equal(mixer._gap(tone), tone)
    stop = tone.copy()
    stop[3_840:4_160] = 0
    held = mixer._gap(stop)
    assert 0.02 * 16_000 <= len(held) - len(stop) <= 0.15 * 16_000
    first, last = 3_840, len(stop) - 4_160
    assert np.array_equal(held[:first], stop[:first])
    assert np.array_equal(held[-last:], stop[-last:])
    assert not held[first:-last].any()


@needs_espeak
def test_the_recipe_runs_both_rounds() -> None:
    from voxloop.starter import build, synthesis
    from voxloop.starter.corpus import Clip

    chance = random.Random(0)
    digits = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
    clips = []
    for text in digits:
        wave = synthesis.speak(text, voice=synthesis.random_voice(chance))
        samples = (wave * 32767).astype(np.int16)
        clips.append(Clip(kind="digit", text=text, speaker="a", real=False, samples=samples))
    recipe = build.Recipe(steps=3, polish_steps=2, width=64, frame_budget=600, easy_frame_budget=600)
    model, spent = build.train(clips, recipe, device="cpu", log=lambda _: None)
    assert (spent["steps"], spent["polish_steps"]) == (3, 2)
    assert all(bool(weight.isfinite().all()) for weight in model.parameters())
