"""Batches: every clip once an epoch, within the budget, the same again after a resume."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.signal
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit import tiny_whisper
from voxloop.audio import to_pcm16, wav_bytes
from voxloop.errors import TrainingError
from voxloop.families.whisper import WHISPER
from voxloop.training import augment
from voxloop.training.batches import Batch, Collator, Plan, Row, Speech, loader, read_rows, spoken
from voxloop.training.recipes import Recipe

RATE = 16_000
PLAIN = Recipe(max_steps=1, batch_seconds=10.0)


def row(number: int, duration: float, speaker: str | None = None) -> Row:
    return Row(
        id=f"clip-{number}",
        path=Path(f"{number}.wav"),
        text=f"text {number}",
        duration=duration,
        speaker=speaker,
        language="en",
    )


def plan(rows: list[Row], recipe: Recipe, limit: int = 10_000) -> Plan:
    return Plan(rows, recipe, padded_s=lambda s: s + 0.64, label_length=lambda text, _: len(text), label_limit=limit)


def heard(cut: Any) -> list[str]:
    """Ids of the clips of a cut, a string's in their order."""
    tracks = getattr(cut, "tracks", None)
    return [cut.id] if tracks is None else [t.cut.recording_id for t in tracks if t.cut.recording_id.startswith("clip")]


def names(batches: list[Batch]) -> list[list[str]]:
    return [[id for cut in batch.cuts for id in heard(cut)] for batch in batches]


class TestPlan:
    @given(
        durations=st.lists(st.floats(0.1, 20.0), min_size=1, max_size=80),
        join=st.sampled_from([0.0, 0.4, 1.0]),
        full=st.sampled_from([0.0, 0.5]),
        seed=st.integers(0, 5),
    )
    @settings(max_examples=40, deadline=None)
    def test_every_clip_is_heard_once_an_epoch(
        self, durations: list[float], join: float, full: float, seed: int
    ) -> None:
        recipe = replace(PLAIN, join_share=join, full_length_share=full, seed=seed)
        rows = [row(number, round(s, 3), speaker="ann" if number % 3 else None) for number, s in enumerate(durations)]
        made = plan(rows, recipe)
        for epoch in range(2):
            counts = Counter(id for batch in names(list(made.epoch(epoch))) for id in batch)
            assert counts == {r.id: 1 for r in rows}

    @given(durations=st.lists(st.floats(0.1, 9.0), min_size=1, max_size=80), join=st.sampled_from([0.0, 0.5]))
    @settings(max_examples=30, deadline=None)
    def test_batches_stay_within_the_padded_budget(self, durations: list[float], join: float) -> None:
        rows = [row(number, round(s, 3)) for number, s in enumerate(durations)]
        for batch in plan(rows, replace(PLAIN, join_share=join)).epoch(0):
            longest = max(cut.duration for cut in batch.cuts) + 0.64
            assert len(batch.cuts) == 1 or len(batch.cuts) * longest <= PLAIN.batch_seconds + 1e-6

    def test_full_length_batches_count_30_s_a_clip(self) -> None:
        rows = [row(number, 0.5) for number in range(40)]
        recipe = replace(PLAIN, batch_seconds=60.0, full_length_share=1.0, join_share=0.0)
        batches = list(plan(rows, recipe).epoch(0))
        assert any(batch.full_length for batch in batches)
        assert all(len(batch.cuts) <= 2 for batch in batches if batch.full_length)

    def test_strings_are_short_enough_and_of_one_speaker(self) -> None:
        rows = [row(number, 1.0, speaker="ann" if number % 2 else "bob") for number in range(60)]
        recipe = replace(PLAIN, join_share=1.0, join_clips=9, join_seconds=4.0)
        examples = plan(rows, recipe).examples(0)
        speakers = {r.id: r.speaker for r in rows}
        assert max(len(heard(cut)) for cut in examples) > 1
        for cut in examples:
            assert cut.duration <= 4.0
            assert len({speakers[id] for id in heard(cut)}) == 1

    def test_strings_respect_what_the_model_can_write(self) -> None:
        rows = [row(number, 0.5) for number in range(40)]
        examples = plan(rows, replace(PLAIN, join_share=1.0), limit=len("text 10 text 11")).examples(0)
        assert max(len(heard(cut)) for cut in examples) == 2

    def test_epochs_differ_and_the_seed_decides(self) -> None:
        rows = [row(number, 0.5 + number / 100) for number in range(40)]
        first, again = plan(rows, PLAIN), plan(rows, PLAIN)
        assert names(list(first.epoch(0))) == names(list(again.epoch(0)))
        assert names(list(first.epoch(0))) != names(list(first.epoch(1)))
        assert names(list(first.epoch(0))) != names(list(plan(rows, replace(PLAIN, seed=2)).epoch(0)))

    def test_going_on_continues_where_it_stopped(self) -> None:
        made = plan([row(number, 0.5 + number / 100) for number in range(40)], PLAIN)
        whole = list(islice(made.batches(), 30))
        place = whole[17]
        resumed = list(islice(made.batches(place.epoch, place.index), 13))
        assert names(resumed) == names(whole[17:])

    def test_nothing_to_train_on(self) -> None:
        with pytest.raises(TrainingError, match="train split is empty"):
            plan([], PLAIN)


@pytest.fixture
def speech(tmp_path: Path) -> Speech:
    rng = np.random.default_rng(3)
    lines = []
    for number in range(24):
        wave = (0.2 * rng.standard_normal(round(RATE * rng.uniform(0.3, 0.9)))).astype(np.float32)
        (tmp_path / f"{number}.wav").write_bytes(wav_bytes(to_pcm16(wave)))
        lines.append(
            {"audio_path": f"{number}.wav", "text": f"t{number}", "duration": len(wave) / RATE, "id": f"clip-{number}"}
        )
    (tmp_path / "train.jsonl").write_text("\n".join(json.dumps(line) for line in lines))
    return Speech(read_rows(tmp_path / "train.jsonl"))


class TestSpeech:
    def test_a_string_holds_its_clips_with_pauses(self, speech: Speech) -> None:
        recipe = replace(PLAIN, join_share=1.0)
        made = plan(speech.rows, recipe)
        cut = next(cut for cut in made.examples(0) if len(heard(cut)) >= 3)
        wave, text, _ = spoken(cut, speech)
        assert text.split() == [speech.row(id).text for id in heard(cut)]
        assert len(wave) == pytest.approx(cut.duration * RATE, abs=2)
        place = 0
        for id in heard(cut):
            clip = speech.waveform(id)
            pauses = [
                p for p in range(place, place + round(0.3 * RATE) + 2) if np.array_equal(wave[p : p + 50], clip[:50])
            ]
            assert pauses
            np.testing.assert_array_equal(wave[pauses[0] : pauses[0] + len(clip)], clip)
            place = pauses[0] + len(clip)

    def test_missing_audio_is_told(self, speech: Speech) -> None:
        speech.rows[0].path.unlink()
        with pytest.raises(TrainingError, match="cannot be read"):
            speech.waveform("clip-0")

    def test_a_broken_manifest_names_its_line(self, tmp_path: Path) -> None:
        (tmp_path / "bad.jsonl").write_text('{"audio_path": "a.wav", "text": "x", "duration": 1}\n{"text": "y"}\n')
        with pytest.raises(TrainingError, match=r"bad\.jsonl, line 2"):
            read_rows(tmp_path / "bad.jsonl")


class TestLoader:
    @pytest.mark.parametrize("workers", [0, 2])
    def test_batches_are_the_same_whoever_makes_them(self, speech: Speech, tmp_path: Path, workers: int) -> None:
        trainable = WHISPER.open_for_training(tiny_whisper.make(tmp_path / "m"), audio_context="trimmed")
        made = plan(speech.rows, PLAIN)
        collator = Collator(speech, PLAIN, WHISPER, trainable)
        expected = [collator(batch) for batch in islice(made.batches(1, 1), 5)]
        found = list(islice(loader(made, collator, epoch=1, index=1, workers=workers), 5))
        for ours, theirs in zip(found, expected, strict=True):
            assert tuple(ours["place"]) == theirs["place"]
            torch.testing.assert_close(ours["input_features"], theirs["input_features"])
            assert torch.equal(ours["labels"], theirs["labels"])

    def test_the_same_clip_sounds_otherwise_in_another_epoch(self, speech: Speech, tmp_path: Path) -> None:
        trainable = WHISPER.open_for_training(tiny_whisper.make(tmp_path / "m"), audio_context="trimmed")
        made = plan(speech.rows, replace(PLAIN, join_share=0.0))
        collator = Collator(speech, PLAIN, WHISPER, trainable)
        batch = next(made.epoch(0))
        one, other = collator(batch), collator(replace(batch, epoch=1))
        assert not torch.equal(one["input_features"], other["input_features"][..., : one["input_features"].shape[-1]])


class TestAugment:
    def test_speed_moves_pitch_and_length(self) -> None:
        tone = np.sin(2 * np.pi * 440 * np.arange(RATE) / RATE).astype(np.float32)
        faster = augment.change_speed(tone, 1.25)
        assert len(faster) == pytest.approx(RATE / 1.25, abs=2)
        frequencies, power = scipy.signal.periodogram(faster, RATE)
        assert frequencies[power.argmax()] == pytest.approx(550, abs=2)

    def test_noise_has_the_ratio_asked_for(self) -> None:
        recipe = replace(PLAIN, speed=0.0, volume_db=0.0, noise_share=1.0, noise_snr_db=10.0)
        clip = (0.1 * np.sin(np.arange(4 * RATE) / 7)).astype(np.float32)
        for seed in range(5):
            noise = augment.waveform(clip, recipe, np.random.default_rng(seed)) - clip
            snr_db = 10 * np.log10(np.mean(clip**2) / np.mean(noise**2))
            assert 9.5 < snr_db < 10.5 + augment.NOISE_RANGE_DB

    def test_silence_stays_silent(self) -> None:
        silence = np.zeros(RATE, np.float32)
        assert not augment.waveform(silence, PLAIN, np.random.default_rng(0)).any()

    def test_masks_hide_the_clip_only(self) -> None:
        features = torch.randn(6, 80, 200)
        frames = torch.tensor([200, 150, 100, 50, 20, 1])
        masked = augment.mask_features(features, frames, PLAIN, np.random.default_rng(0))
        changed = masked != features
        assert changed[0].any()
        for index, own in enumerate(frames.tolist()):
            assert not changed[index, :, own:].any()
        mean = features[1, :, :150].mean()
        torch.testing.assert_close(masked[1][changed[1]], mean.expand(int(changed[1].sum())), atol=1e-5, rtol=0)

    def test_nothing_asked_nothing_changed(self) -> None:
        recipe = replace(PLAIN, speed=0.0, volume_db=0.0, noise_share=0.0, mask_bands=0, mask_frames=0)
        clip = np.linspace(-0.5, 0.5, 999, dtype=np.float32)
        assert np.array_equal(augment.waveform(clip, recipe, np.random.default_rng(0)), clip)
        features = torch.randn(1, 80, 10)
        assert augment.mask_features(features, torch.tensor([10]), recipe, np.random.default_rng(0)) is features
