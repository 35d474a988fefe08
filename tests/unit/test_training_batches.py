"""Batches: every clip once an epoch, within the budget, the same again after a resume."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.signal
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit import tiny_whisper
from voxloop.errors import TrainingError
from voxloop.families.whisper import WHISPER
from voxloop.speech.audio import to_pcm16, wav_bytes
from voxloop.steps.training import augment
from voxloop.steps.training.batches import SILENCE, Batch, ClipRow, Collator, Plan, Speech, loader, read_rows, spoken
from voxloop.steps.training.recipes import Recipe

RATE = 16_000
PLAIN = Recipe(max_steps=1, batch_seconds=10.0, audio_context="trimmed")


def row(number: int, duration: float, speaker: str | None = None) -> ClipRow:
    return ClipRow(
        id=f"clip-{number}",
        path=Path(f"{number}.wav"),
        text=f"text {number}",
        duration=duration,
        speaker=speaker,
        language="en",
    )


def padded(seconds: float, at_least_s: float) -> float:
    return max(seconds + 0.64, at_least_s)


def plan(rows: list[ClipRow], recipe: Recipe, limit: int = 10_000) -> Plan:
    return Plan(
        rows,
        recipe,
        padded_s=padded,
        label_length=lambda text, _: len(text),
        label_limit=limit,
    )


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
        assert any(batch.at_least_s == 30 for batch in batches)
        assert all(len(batch.cuts) <= 2 for batch in batches if batch.at_least_s == 30)

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

    def test_a_share_of_an_epoch_is_silence_without_a_text(self) -> None:
        rows = [row(number, 1.0) for number in range(50)]
        made = plan(rows, replace(PLAIN, silence_share=0.1))
        for epoch in range(2):
            quiet = [cut for cut in made.examples(epoch) if cut.id.startswith(SILENCE)]
            assert len(quiet) == 5
            assert [spoken(cut, Speech(rows))[1:] for cut in quiet] == [("", "en")] * 5
        ids = [id for id in chain.from_iterable(names(list(made.epoch(0)))) if not id.startswith(SILENCE)]
        assert sorted(ids) == sorted(r.id for r in rows)

    def test_silence_is_a_rooms_hiss_that_the_seed_decides(self) -> None:
        rows = [row(number, 3.0) for number in range(50)]
        cuts = [c for c in plan(rows, replace(PLAIN, silence_share=0.5)).examples(0) if c.id.startswith(SILENCE)]
        levels = []
        for cut in cuts:
            wave = spoken(cut, Speech(rows), 1)[0]
            assert len(wave) == round(cut.duration * RATE)
            assert np.array_equal(wave, spoken(cut, Speech(rows), 1)[0])
            assert not np.array_equal(wave, spoken(cut, Speech(rows), 2)[0])
            levels.append(10 * np.log10(np.mean(np.square(wave, dtype=np.float64))))
        assert -80.1 < min(levels) < -60 < -45 < max(levels) < -34.9

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

    @given(
        own=st.integers(1, 60),
        earlier=st.integers(0, 60),
        share=st.sampled_from([0.0, 0.2, 0.5, 0.9]),
        join=st.sampled_from([0.0, 0.5]),
    )
    @settings(max_examples=30, deadline=None)
    def test_an_epoch_hears_its_share_of_earlier_speech_once(
        self, own: int, earlier: int, share: float, join: float
    ) -> None:
        rows = [row(number, 0.5) for number in range(own)]
        old = [row(number, 0.5) for number in range(1000, 1000 + earlier)]
        recipe = replace(PLAIN, join_share=join, replay_share=share)
        made = Plan(
            rows,
            recipe,
            padded_s=padded,
            label_length=lambda t, _: len(t),
            label_limit=99,
            earlier=old,
        )
        counts = Counter(id for batch in names(list(made.epoch(0))) for id in batch)
        again = {r.id for r in old} & set(counts)
        assert set(counts.values()) == {1}
        assert set(counts) - again == {r.id for r in rows}
        assert len(again) == min(earlier, round(own * share / (1 - share)))

    def test_earlier_speech_changes_from_epoch_to_epoch_as_the_seed_says(self) -> None:
        rows, old = [row(n, 0.5) for n in range(20)], [row(n, 0.5) for n in range(100, 200)]

        def heard_again(epoch: int, seed: int = 1) -> set[str]:
            recipe = replace(PLAIN, join_share=0.0, replay_share=0.5, seed=seed)
            made = Plan(
                rows, recipe, padded_s=lambda s: s, label_length=lambda t, _: len(t), label_limit=99, earlier=old
            )
            return {cut.id for cut in made.examples(epoch)} - {r.id for r in rows}

        assert heard_again(0) == heard_again(0)
        assert heard_again(0) != heard_again(1)
        assert heard_again(0) != heard_again(0, seed=2)

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
        one, other = collator(batch), collator(replace(batch, drawn=(1, 0)))
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

    @pytest.mark.parametrize("length", [4 * RATE, RATE // 3])
    def test_own_noises_have_the_ratio_asked_for(self, length: int) -> None:
        rng = np.random.default_rng(1)
        clip = (0.1 * np.sin(np.arange(length) / 7)).astype(np.float32)
        hum = (0.3 * np.sin(2 * np.pi * 50 * np.arange(RATE) / RATE)).astype(np.float32)
        piece = augment.stretch(hum, length, rng)
        assert len(piece) == length
        added = augment.add_noise(clip, piece, 6.0) - clip
        assert 10 * np.log10(np.mean(clip**2) / np.mean(added**2)) == pytest.approx(6.0, abs=0.05)
        frequencies, power = scipy.signal.periodogram(added, RATE)
        assert frequencies[power.argmax()] == pytest.approx(50, abs=RATE / length)

    def test_own_noises_are_heard_at_their_share_the_same_every_time(self) -> None:
        recipe = replace(PLAIN, speed=0.0, volume_db=0.0, noise_share=0.0, noise_folder_share=0.4)
        noises = [np.full(500, 0.1, np.float32), np.full(500, -0.1, np.float32)]
        clip = (0.1 * np.sin(np.arange(500) / 7)).astype(np.float32)
        heard = [augment.waveform(clip, recipe, np.random.default_rng(seed), noises) - clip for seed in range(2000)]
        assert np.mean([difference.any() for difference in heard]) == pytest.approx(0.4, abs=0.03)
        assert {np.sign(difference[0]) for difference in heard} == {0.0, 1.0, -1.0}
        again = augment.waveform(clip, recipe, np.random.default_rng(7), noises) - clip
        assert np.array_equal(again, heard[7])
        assert np.array_equal(augment.waveform(clip, recipe, np.random.default_rng(7)), clip)

    def test_a_silent_noise_adds_nothing(self) -> None:
        clip = np.linspace(-0.5, 0.5, 99, dtype=np.float32)
        assert np.array_equal(augment.add_noise(clip, np.zeros(99, np.float32), 0.0), clip)

    @given(length=st.integers(0, 20_000))
    @settings(max_examples=30, deadline=None)
    def test_what_comes_over_the_telephone_keeps_its_length(self, length: int) -> None:
        clip = np.random.default_rng(length).uniform(-0.5, 0.5, length).astype(np.float32)
        heard = augment.telephone(clip)
        assert heard.shape == clip.shape
        assert heard.dtype == np.float32

    def test_the_telephone_passes_300_to_3400_hz(self) -> None:
        noise = (0.2 * np.random.default_rng(2).standard_normal(8 * RATE)).astype(np.float32)
        frequencies, before = scipy.signal.welch(noise, RATE, nperseg=1024)
        _, after = scipy.signal.welch(augment.telephone(noise), RATE, nperseg=1024)
        gain_db = 10 * np.log10(after / before)
        inside = (frequencies > 350) & (frequencies < 3300)
        assert np.abs(gain_db[inside]).max() < 1.0
        # What is left outside is the noise of eight bits, below 4 kHz.
        assert gain_db[(frequencies > 20) & (frequencies < 150)].max() < -25
        assert gain_db[frequencies > 4200].max() < -40

    def test_mu_law_is_that_of_the_telephone(self) -> None:
        import av

        rng = np.random.default_rng(3)
        clip = (0.3 * np.sin(np.arange(8_000) / 5) * rng.uniform(0.01, 1, 8_000)).astype(np.float32)
        encoder, decoder = (av.CodecContext.create("pcm_mulaw", mode) for mode in ("w", "r"))
        for codec in (encoder, decoder):
            codec.sample_rate, codec.layout = 8_000, "mono"
        encoder.format = "s16"
        frame = av.AudioFrame.from_ndarray(np.round(clip * 32_767).astype(np.int16)[None], format="s16", layout="mono")
        frame.sample_rate = 8_000
        packets = [*encoder.encode(frame), *encoder.encode(None)]
        decoded = [frame.to_ndarray()[0] for packet in packets for frame in decoder.decode(packet)]
        oracle = np.concatenate(decoded) / 32_768
        ours = augment.mu_law(clip)

        def ratio_db(of: np.ndarray) -> float:
            return float(10 * np.log10(np.mean(clip**2) / np.mean((of - clip) ** 2)))

        # G.711 draws the logarithm with eight straight pieces: its steps are near ours, not the same.
        assert ratio_db(ours) == pytest.approx(ratio_db(oracle), abs=1.0)
        assert np.abs(ours - oracle).max() < 0.02

    def test_the_telephone_is_heard_at_its_share(self) -> None:
        recipe = replace(PLAIN, speed=0.0, volume_db=0.0, noise_share=0.0, telephone_share=0.25)
        clip = (0.1 * np.random.default_rng(1).standard_normal(500)).astype(np.float32)
        heard = [augment.waveform(clip, recipe, np.random.default_rng(seed)) for seed in range(2000)]
        assert np.mean([not np.array_equal(wave, clip) for wave in heard]) == pytest.approx(0.25, abs=0.03)

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

    def test_a_stretch_hides_a_fifth_of_a_short_clip_at_most(self) -> None:
        features = torch.randn(64, 80, 25)
        recipe = replace(PLAIN, mask_bands=0)
        masked = augment.mask_features(features, torch.full((64,), 25), recipe, np.random.default_rng(0))
        hidden = (masked != features).all(dim=1).sum(dim=1)
        assert int(hidden.max()) == 25 // 5

    @given(st.integers(0, 3 * RATE), st.floats(0, 0.5), st.integers(0, 99))
    def test_a_cut_clip_is_a_piece_of_it(self, samples: int, longest_s: float, seed: int) -> None:
        clip = np.arange(samples, dtype=np.float32)
        piece = augment.cut_ends(clip, longest_s, np.random.default_rng(seed))
        most = min(samples / 4, longest_s * RATE)
        assert len(piece) >= samples - 2 * most
        if samples:
            first, last = int(piece[0]), int(piece[-1])
            assert first <= most
            assert samples - 1 - last <= most
            assert np.array_equal(piece, clip[first : last + 1])

    def test_as_many_clips_are_cut_as_asked_for(self) -> None:
        recipe = replace(PLAIN, speed=0.0, volume_db=0.0, noise_share=0.0, cut_share=0.5)
        clip = np.ones(RATE, np.float32)
        whole = sum(len(augment.waveform(clip, recipe, np.random.default_rng(seed))) == RATE for seed in range(400))
        # Of the half that is cut, a quarter keeps both its ends.
        assert 200 <= whole <= 300

    def test_nothing_asked_nothing_changed(self) -> None:
        recipe = replace(PLAIN, speed=0.0, volume_db=0.0, noise_share=0.0, mask_bands=0, mask_frames=0)
        clip = np.linspace(-0.5, 0.5, 999, dtype=np.float32)
        assert np.array_equal(augment.waveform(clip, recipe, np.random.default_rng(0)), clip)
        features = torch.randn(1, 80, 10)
        assert augment.mask_features(features, torch.tensor([10]), recipe, np.random.default_rng(0)) is features
