"""Windows: what lies in them, what is written of it, and that training on them can be killed and resumed."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit import tiny_whisper
from tests.unit.test_training import StopAt, lay_out, metrics, weights
from voxloop.families.contract import Segment
from voxloop.families.registry import family
from voxloop.speech.audio import to_pcm16, wav_bytes
from voxloop.steps.training import packing, trainer
from voxloop.steps.training.batches import ClipRow, Collator, Plan, Speech
from voxloop.steps.training.packing import Window, heard, windows
from voxloop.steps.training.recipes import Recipe
from voxloop.steps.training.state import StopFlag

RATE = 16_000
PACKED = Recipe(max_steps=1, batch_seconds=30.0, audio_context="packed")


def row(number: int, duration: float, speaker: str | None = "ann", folder: Path = Path()) -> ClipRow:
    return ClipRow(
        id=f"clip-{number}",
        path=folder / f"{number}.wav",
        text=f"text {number}",
        duration=duration,
        speaker=speaker,
        language="en",
    )


def packed(rows: list[ClipRow], recipe: Recipe = PACKED, seed: int = 0) -> list[Window]:
    return windows(rows, recipe, random.Random(seed), name="0", time_stamps=True, fits=lambda *_: True)


def plan(rows: list[ClipRow], recipe: Recipe, limit: int = 10_000) -> Plan:
    return Plan(
        rows,
        recipe,
        padded_s=family("whisper").padded_seconds,
        label_length=lambda text, _: len(text),
        label_limit=limit,
        time_stamps=True,
    )


def sounding(folder: Path, *durations: float) -> list[ClipRow]:
    """Clips that are loud from their first sample to their last."""
    folder.mkdir(exist_ok=True)
    rows = []
    for number, duration in enumerate(durations):
        wave = np.full(round(duration * RATE), 0.5, dtype=np.float32)
        (folder / f"{number}.wav").write_bytes(wav_bytes(to_pcm16(wave)))
        rows.append(row(number, duration, folder=folder))
    return rows


class TestWindows:
    @given(
        durations=st.lists(st.floats(0.1, 29.9), min_size=1, max_size=80),
        alone=st.sampled_from([0.0, 0.25, 1.0]),
        speed=st.sampled_from([0.0, 0.1, 0.5]),
    )
    @settings(max_examples=40, deadline=None)
    def test_every_clip_lies_in_one_window_of_its_speaker_that_fits(
        self, durations: list[float], alone: float, speed: float
    ) -> None:
        rows = [row(number, round(s, 3), speaker="ann" if number % 3 else None) for number, s in enumerate(durations)]
        made = packed(rows, replace(PACKED, alone_share=alone, speed=speed))
        assert Counter(id for window in made for id in window.clips) == {r.id: 1 for r in rows}
        speakers = {r.id: r.speaker for r in rows}
        for window in made:
            assert len({speakers[id] for id in window.clips}) == 1
            assert window.duration <= max(packing.WINDOW_S, max(durations)) + 1e-3  # lengths are kept in milliseconds
            assert len(window.clips) == 1 or window.duration <= packing.WINDOW_S

    def test_windows_are_full_but_for_the_last(self) -> None:
        made = packed([row(number, 3.0) for number in range(40)], replace(PACKED, alone_share=0.0, speed=0.0))
        assert sorted(len(window.clips) for window in made)[1:] == [8] * (len(made) - 1)
        assert all(packing.GAPS_S[0] <= gap <= packing.GAPS_S[1] for window in made for gap in window.gaps)

    def test_shares_of_clips_alone_and_of_windows_with_time_stamps(self) -> None:
        made = packed([row(number, 2.0) for number in range(2000)])
        alone = sum(len(window.clips) == 1 for window in made)
        assert 430 < alone < 570
        assert 0.4 < sum(window.time_stamps for window in made) / len(made) < 0.6

    def test_a_window_holds_no_more_text_than_the_model_can_write(self) -> None:
        examples = plan([row(n, 1.0) for n in range(9)], replace(PACKED, alone_share=0.0), limit=2 * 8 + 4).examples(0)
        assert max(len(window.clips) for window in examples) == 2

    def test_segments_lie_where_their_clips_sound(self, tmp_path: Path) -> None:
        rows = sounding(tmp_path, 1.0, 2.5, 0.7)
        for speed in (1.0, 0.9, 1.1):
            window = Window("w", tuple(r.id for r in rows), (0.2, 0.3, 0.1), speed, True, 4.8, "en")
            samples, text, language = heard(window, Speech(rows))
            assert language == "en"
            assert isinstance(text, list)
            assert [segment.text for segment in text] == ["text 0", "text 1", "text 2"]
            loud = np.abs(samples) > 0.25
            for segment, r in zip(text, rows, strict=True):
                begin, end = round(segment.start * RATE), round(segment.end * RATE)
                assert (end - begin) / RATE == pytest.approx(r.duration / speed, abs=0.002)
                assert loud[begin + 200 : end - 200].all()
                assert not loud[max(0, begin - 1500) : max(0, begin - 100)].any()
            plain = heard(replace(window, time_stamps=False), Speech(rows))[1]
            assert plain == "text 0 text 1 text 2"


class TestPlan:
    def test_an_epoch_follows_from_the_seed_and_its_number(self) -> None:
        rows = [row(number, 1.0 + number % 7) for number in range(60)]
        first, again = plan(rows, PACKED), plan(rows, PACKED)
        assert [batch.cuts for batch in first.epoch(3)] == [batch.cuts for batch in again.epoch(3)]
        assert [batch.cuts for batch in first.epoch(3)] != [batch.cuts for batch in first.epoch(4)]
        other = plan(rows, replace(PACKED, seed=2))
        assert [batch.cuts for batch in first.epoch(3)] != [batch.cuts for batch in other.epoch(3)]

    def test_batches_keep_to_the_budget_and_hear_short_clips_in_the_floor(self) -> None:
        rows = [row(number, 1.0 + number % 12) for number in range(200)]
        sizes = set()
        for batch in plan(rows, replace(PACKED, batch_seconds=60.0)).epoch(0):
            longest = max(cut.duration for cut in batch.cuts)
            assert batch.at_least_s == min(30.0, max(10.0, 2 * longest))
            assert len(batch.cuts) * batch.at_least_s <= 60.0 + 1e-6
            assert batch.clips == sum(len(cut.clips) for cut in batch.cuts)
            sizes.add((len(batch.cuts), batch.at_least_s))
        assert {(2, 30.0), (5, 10.0)} <= sizes

    @pytest.mark.parametrize(("context", "least"), [("floor", 10.0), ("full", 30.0), ("trimmed", 0.0)])
    def test_other_contexts_hear_single_clips(self, context: str, least: float) -> None:
        rows = [row(number, 2.0) for number in range(20)]
        batches = list(plan(rows, replace(PACKED, audio_context=context, join_share=0.0)).epoch(0))
        assert {batch.at_least_s for batch in batches} == {least}
        assert sorted(cut.id for batch in batches for cut in batch.cuts) == sorted(r.id for r in rows)


class TestCollator:
    def test_a_window_becomes_labels_with_the_times_of_its_clips(self, tmp_path: Path) -> None:
        base = tiny_whisper.make(tmp_path / "model", vocabulary=256 + 8 + 1501)
        trainable = family("whisper").open_for_training(base, audio_context="full")
        rows = sounding(tmp_path / "speech", 1.0, 2.0, 1.5)
        recipe = replace(PACKED, alone_share=0.0, time_stamp_share=1.0, noise_share=0.0, mask_bands=0, mask_frames=0)
        (batch,) = plan(rows, recipe).epoch(0)
        inputs = Collator(Speech(rows), recipe, family("whisper"), trainable)(batch)
        (window,) = batch.cuts
        texts = heard(window, Speech(rows))[1]
        assert all(isinstance(segment, Segment) for segment in texts)
        times = [time for segment in texts for time in (segment.start, segment.end)]
        said = inputs["labels"][0]
        first = trainable.processor.tokenizer.convert_tokens_to_ids("<|notimestamps|>") + 1
        assert said[said >= first].tolist() == [first + round(time / 0.02) for time in times]
        assert inputs["place"] == (0, 0, 3)


class TestRuns:
    @pytest.fixture(scope="class")
    def base(self, tmp_path_factory: pytest.TempPathFactory) -> Path:
        return tiny_whisper.make(tmp_path_factory.mktemp("base") / "model", sharpness=1.0, vocabulary=256 + 8 + 1501)

    def test_a_run_on_windows_that_is_stopped_and_resumed_ends_at_the_same_weights(
        self, base: Path, tmp_path: Path
    ) -> None:
        asked = ("audio_context=packed", "max_steps=5", "eval_steps=1000", "batch_seconds=30", "mask_frames=4")
        whole = lay_out(tmp_path / "whole", base, *asked)
        trainer.run(whole, StopFlag())
        halved = lay_out(tmp_path / "halved", base, *asked, data=whole / "data")
        assert trainer.run(halved, StopAt(halved, 3)).status == "stopped"
        assert trainer.run(halved, StopFlag()).status == "completed"
        for name, weight in weights(whole / "final").items():
            assert np.array_equal(weights(halved / "final")[name].numpy(), weight.numpy()), name
        assert [line["step"] for line in metrics(whole) if "val_loss" in line] == [0, 5]
