"""Runs, from the step down to the child process: what they leave behind, how they end, how they go on."""

from __future__ import annotations

import json
import signal
import subprocess
import time
from dataclasses import replace
from pathlib import Path
from subprocess import PIPE
from typing import Any

import numpy as np
import pytest
import torch
from transformers import TrainerState

from tests.unit import tiny_whisper
from voxloop import models
from voxloop.errors import SettingError, TrainingError, UsageError
from voxloop.families.decoding import Decoding
from voxloop.families.registry import family
from voxloop.families.whisper import Whisper
from voxloop.records import Dataset, Event, Model, Recording, Run
from voxloop.speech.audio import to_pcm16, wav_bytes
from voxloop.steps import datasets, training
from voxloop.steps.recordings import ingest
from voxloop.steps.training import control, recipes, runs, session, trainer
from voxloop.steps.training.batches import Speech, read_rows
from voxloop.steps.training.files import LOOP_STATE, read_json
from voxloop.steps.training.session import Session
from voxloop.steps.training.state import LoopState, Score, StopFlag, TrainingConfig
from voxloop.steps.utterances import segment
from voxloop.stores import tables
from voxloop.stores.catalog import to_event
from voxloop.workspace import Workspace

RATE = 16_000
WORDS = ("one", "two", "six")
PITCHES = {"one": 300.0, "two": 700.0, "six": 1500.0}


def tone(word: str, rng: np.random.Generator) -> np.ndarray:
    """A word of a language of tones: learnable in a few steps."""
    time_s = np.arange(round(RATE * rng.uniform(0.3, 0.5))) / RATE
    wave = 0.3 * np.sin(2 * np.pi * PITCHES[word] * rng.uniform(0.97, 1.03) * time_s)
    return (wave + 0.01 * rng.standard_normal(len(time_s))).astype(np.float32)


def write_data(folder: Path, *, train: int = 24, val: int = 6, text: str | None = None) -> Path:
    rng = np.random.default_rng(5)
    folder.mkdir(parents=True)
    for split, clips in (("train", train), ("val", val)):
        lines = []
        for number in range(clips):
            word = WORDS[number % len(WORDS)]
            wave = tone(word, rng)
            name = f"{split}-{number}.wav"
            (folder / name).write_bytes(wav_bytes(to_pcm16(wave)))
            row = {"audio_path": name, "text": text or word, "duration": len(wave) / RATE, "id": f"{split}-{number}"}
            lines.append(json.dumps(row | {"speaker": "s", "language": "en"}))
        (folder / f"{split}.jsonl").write_text("\n".join(lines))
    return folder


SMALL = ("max_seconds=none", "average=0", "batch_seconds=12", "log_steps=2", "eval_seconds=none")
SMALL += ("learning_rate=2e-3", "audio_context=trimmed", "blend=false")


def lay_out(folder: Path, base: Path, *overrides: str, data: Path | None = None) -> Path:
    """A run's folder, ready for the child."""
    folder.mkdir(exist_ok=True)
    data = data or write_data(folder / "data")
    recipe = recipes.override(recipes.named("quick"), [*SMALL, *overrides])
    config = TrainingConfig(
        run="r",
        family="whisper",
        base=str(base),
        train=str(data / "train.jsonl"),
        val=str(data / "val.jsonl"),
        recipe=recipe.as_dict(),
        device="cpu",
        threads=1,
    )
    config.save(folder)
    return folder


def metrics(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    return load_file(folder / "model.safetensors")


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_whisper.make(tmp_path_factory.mktemp("base") / "model", sharpness=1.0, width=48)


class TestRun:
    def test_learns_and_leaves_everything_behind(self, base: Path, tmp_path: Path) -> None:
        folder = lay_out(tmp_path / "run", base, "max_steps=60", "eval_steps=20", "warmup_steps=5")
        outcome = trainer.run(folder, StopFlag())
        assert outcome.status == "completed"
        assert outcome.steps == 60
        lines = metrics(folder)
        losses = [line["loss"] for line in lines if "loss" in line]
        assert losses[-1] < 0.5 * losses[0]
        assert [line["step"] for line in lines if "val_wer" in line] == [0, 20, 40, 60]
        known = {"step", "epoch", "learning_rate", "samples_per_second", "elapsed_s", "eta_s", "time"}
        assert known <= set([line for line in lines if "loss" in line][-1])
        rates = [line["learning_rate"] for line in lines if "learning_rate" in line]
        assert rates[0] < max(rates)
        assert rates[-1] < 0.1 * max(rates)
        for name in ("best", "final"):
            found = family("whisper").load(folder / name).transcribe([np.zeros(RATE, np.float32)], Decoding())
            assert len(found) == 1
            assert read_json(folder / name / "config.json")["voxloop_audio_context"] == "trimmed"
        assert read_json(folder / "train_results.json")["steps"] == 60
        assert set(read_json(folder / "eval_results.json")) == {"base", "best"}

    def test_generated_text_on_val_is_that_of_serving(self, base: Path, tmp_path: Path) -> None:
        folder = lay_out(tmp_path / "run", base, "max_steps=40", "eval_steps=40")
        outcome = trainer.run(folder, StopFlag())
        session_rows = read_rows(folder / "data" / "val.jsonl")
        heard = (
            family("whisper")
            .load(folder / "final")
            .transcribe([Speech(session_rows).waveform(row.id) for row in session_rows], Decoding(language="en"))
        )
        from voxloop.speech import text

        expected = text.total(
            text.word_errors_each(
                [text.normalise(row.text, "en") for row in session_rows],
                [text.normalise(h.text, "en") for h in heard],
            )
        )
        assert [line["val_wer"] for line in metrics(folder) if "val_wer" in line][-1] == pytest.approx(expected.rate)
        assert outcome.best is not None

    @pytest.mark.parametrize(
        "extra",
        [
            ("average=0.9", "ctc_weight=0.3", "layer_decay=0.8"),
            ("method=lora", "average=0.9", "ctc_weight=0.3"),
        ],
    )
    def test_resuming_ends_at_the_weights_of_an_undisturbed_run(
        self, base: Path, tmp_path: Path, extra: tuple[str, ...]
    ) -> None:
        steps = ("max_steps=12", "eval_steps=6", *extra)
        whole = lay_out(tmp_path / "whole", base, *steps)
        trainer.run(whole, StopFlag())
        halved = lay_out(tmp_path / "halved", base, *steps)
        stop = StopAt(halved, 5)
        assert trainer.run(halved, stop).status == "stopped"
        assert (halved / "checkpoint-5" / LOOP_STATE).exists()
        assert not (halved / "final").exists()
        # A checkpoint that a kill cut off is not used.
        (halved / "checkpoint-9").mkdir()
        assert trainer.run(halved, StopFlag()).status == "completed"
        for name, weight in weights(whole / "final").items():
            torch.testing.assert_close(weights(halved / "final")[name], weight, atol=1e-5, rtol=1e-4)
        heard = [(line["step"], line["epoch"]) for line in metrics(whole) if "loss" in line]
        again = {line["step"]: line["epoch"] for line in metrics(halved) if "loss" in line}
        assert all(again[step] == epoch for step, epoch in heard if step in again)

    def test_strings_of_val_count_where_clips_are_joined(self, base: Path, tmp_path: Path) -> None:
        folder = lay_out(tmp_path / "run", base, "max_steps=2", "eval_steps=2", "join_share=0.5")
        trainer.run(folder, StopFlag())
        assert [line["val_strings_wer"] >= 0 for line in metrics(folder) if "val_wer" in line] == [True, True]
        alone = lay_out(tmp_path / "alone", base, "max_steps=2", "eval_steps=2", "join_share=0")
        trainer.run(alone, StopFlag())
        assert not [line for line in metrics(alone) if "val_strings_wer" in line]

    def test_a_model_that_forgot_strings_is_not_the_best(self) -> None:
        # As earlier versions wrote them, where `wer` was that of single clips.
        words_alone = Score.of({"step": 40, "wer": 0.03, "cer": 0.02, "strings_wer": 0.39})
        both = Score.of({"step": 240, "wer": 0.07, "cer": 0.05, "strings_wer": 0.24})
        assert both.at_least_as_good_as(words_alone)
        assert not words_alone.at_least_as_good_as(both)
        assert Score(step=1, wer=0.1, cer=0.1).at_least_as_good_as(Score(step=0, wer=0.1, cer=0.2))

    def test_lora_keeps_the_adapter_beside_merged_weights(self, base: Path, tmp_path: Path) -> None:
        folder = lay_out(tmp_path / "run", base, "max_steps=4", "method=lora", "lora_rank=4", "eval_steps=4")
        trainer.run(folder, StopFlag())
        assert (folder / "final" / "adapter" / "adapter_model.safetensors").exists()
        moved = [n for n, w in weights(folder / "final").items() if not torch.equal(w, weights(base)[n])]
        assert moved
        assert all(any(target in name for target in family("whisper").lora_targets) for name in moved)

    def test_a_frozen_encoder_does_not_move(self, base: Path, tmp_path: Path) -> None:
        folder = lay_out(tmp_path / "run", base, "max_steps=3", "freeze_encoder=true")
        trainer.run(folder, StopFlag())
        moved = [n for n, w in weights(folder / "final").items() if not torch.equal(w, weights(base)[n])]
        assert moved
        assert not any("encoder.layers" in name or "conv" in name for name in moved)

    def test_the_base_is_kept_where_training_spoils_it(self, base: Path, tmp_path: Path) -> None:
        good = lay_out(tmp_path / "good", base, "max_steps=150", "eval_steps=50")
        trained = trainer.run(good, StopFlag())
        assert trained.best is not None
        assert trained.best.wer < 0.5
        spoilt = lay_out(
            tmp_path / "spoilt",
            good / "best",
            "max_steps=6",
            "eval_steps=3",
            "learning_rate=0.5",
            "warmup_steps=0",
            data=good / "data",
        )
        outcome = trainer.run(spoilt, StopFlag())
        assert outcome.best is not None
        assert outcome.best.step == 0
        assert any("did not improve the model on val: WER" in note for note in outcome.notes)
        for name, weight in weights(good / "best").items():
            assert torch.equal(weights(spoilt / "best")[name], weight)

    def test_without_val_the_last_weights_are_kept(self, base: Path, tmp_path: Path) -> None:
        data = write_data(tmp_path / "data", val=0)
        folder = lay_out(tmp_path / "run", base, "max_steps=2", data=data)
        outcome = trainer.run(folder, StopFlag())
        assert any("val split is empty" in note for note in outcome.notes)
        best, final = weights(folder / "best"), weights(folder / "final")
        assert all(torch.equal(best[name], final[name]) for name in final)

    def test_the_clock_ends_a_run_and_the_rate_falls_with_it(self, base: Path, tmp_path: Path) -> None:
        folder = lay_out(tmp_path / "run", base, "max_seconds=8", "max_epochs=none", "warmup_steps=0", "log_steps=1")
        began = time.monotonic()
        trainer.run(folder, StopFlag())
        assert time.monotonic() - began < 16  # eight, and what comes before the model is loaded
        lines = metrics(folder)
        assert lines[-1]["elapsed_s"] < 8.5
        rates = [line["learning_rate"] for line in lines if "learning_rate" in line]
        assert rates[-1] < 0.3 * 2e-3

    def test_patience_ends_a_run(self, base: Path, tmp_path: Path) -> None:
        folder = lay_out(tmp_path / "run", base, "max_steps=500", "eval_steps=1", "patience=2", "learning_rate=1e-9")
        assert trainer.run(folder, StopFlag()).steps <= 4

    @pytest.mark.parametrize("device", ["GPU", "CPU"])
    def test_out_of_memory_halves_the_batch_and_keeps_the_step(
        self, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, device: str
    ) -> None:
        folder = lay_out(tmp_path / "run", base, "max_steps=4", "batch_seconds=16")
        real = Whisper.loss

        def tight(self: Whisper, trainable: Any, model: Any, inputs: Any, **options: Any) -> Any:
            if inputs["labels"].shape[0] * inputs["input_features"].shape[-1] > 900:
                if device == "GPU":
                    raise torch.OutOfMemoryError("CUDA out of memory")
                torch.empty(1 << 55, dtype=torch.uint8)  # refused by the system: more than an address can reach
            return real(self, trainable, model, inputs, **options)

        monkeypatch.setattr(Whisper, "loss", tight)
        outcome = trainer.run(folder, StopFlag())
        assert outcome.status == "completed"
        assert any("batches are now 8 s, with 2 per step" in note for note in outcome.notes)
        results = read_json(folder / "train_results.json")
        assert results["batch_seconds"] * results["accumulation"] == 16
        kept = TrainingConfig.load(folder).recipe
        assert (kept["batch_seconds"], kept["accumulation"]) == (8, 2)

    def test_out_of_memory_with_single_windows_computes_activations_twice(
        self, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        folder = lay_out(tmp_path / "run", base, "audio_context=full", "max_steps=2", "batch_seconds=60")
        real = Whisper.loss

        def tight(self: Whisper, trainable: Any, model: Any, inputs: Any, **options: Any) -> Any:
            if torch.is_grad_enabled() and not trainable.model.is_gradient_checkpointing:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return real(self, trainable, model, inputs, **options)

        monkeypatch.setattr(Whisper, "loss", tight)
        outcome = trainer.run(folder, StopFlag())
        assert any("with a single window" in note for note in outcome.notes)
        kept = TrainingConfig.load(folder).recipe
        assert (kept["batch_seconds"], kept["accumulation"], kept["gradient_checkpointing"]) == (30, 2, True)

    def test_accumulation_changes_nothing_but_memory(self, base: Path, tmp_path: Path) -> None:
        # The loss of a step is over all its tokens: two small batches teach what one large does.
        data = write_data(tmp_path / "data", train=8)
        plain = ("speed=0", "noise_share=0", "volume_db=0", "mask_bands=0", "mask_frames=0", "join_share=0")
        plain += ("max_steps=1", "warmup_steps=0", "log_steps=1")
        one = lay_out(tmp_path / "one", base, "batch_seconds=100", *plain, data=data)
        trainer.run(one, StopFlag())
        two = lay_out(tmp_path / "two", base, "batch_seconds=5.2", "accumulation=2", *plain, data=data)
        trainer.run(two, StopFlag())
        losses = [next(line["loss"] for line in metrics(folder) if "loss" in line) for folder in (one, two)]
        assert losses[0] == pytest.approx(losses[1], rel=1e-4)

    def test_a_finished_run_keeps_the_state_that_transformers_writes(self, base: Path, tmp_path: Path) -> None:
        folder = lay_out(tmp_path / "run", base, "max_steps=6", "eval_steps=2", "join_share=0")
        stop = StopAt(folder, 3)
        assert trainer.run(folder, stop).status == "stopped"
        outcome = trainer.run(folder, StopFlag())
        assert outcome.best is not None
        state = TrainerState.load_from_json(str(folder / "trainer_state.json"))
        assert (state.global_step, state.max_steps) == (6, 6)
        assert state.best_global_step == outcome.best.step
        assert state.best_metric == outcome.best.wer
        assert state.best_model_checkpoint == str(folder / "best")
        learnt = [line for line in state.log_history if "loss" in line]
        measured = [line for line in state.log_history if "eval_wer" in line]
        assert [line["step"] for line in learnt] == [1, 2, 4, 6]  # those before the stop as well
        assert [line["step"] for line in measured] == [0, 2, 4, 6]
        assert all({"epoch", "learning_rate", "grad_norm"} <= line.keys() for line in learnt)
        told = {line["step"]: line["loss"] for line in metrics(folder) if "loss" in line}
        assert {line["step"]: line["loss"] for line in learnt} == told
        assert 0 < learnt[0]["epoch"] < learnt[-1]["epoch"] == pytest.approx(state.epoch)

    @pytest.mark.parametrize("val", [6, 0])
    def test_intermediate_models_stay_where_they_are_asked_for(self, base: Path, tmp_path: Path, val: int) -> None:
        data = write_data(tmp_path / "data", val=val)
        steps = ("max_steps=8", "eval_steps=2", "save_seconds=0.001", "keep_checkpoints_after=2")
        folder = lay_out(tmp_path / "run", base, *steps, data=data)
        trainer.run(folder, StopAt(folder, 5))
        trainer.run(folder, StopFlag())
        left = sorted(int(path.name.partition("-")[2]) for path in (folder / "intermediate").iterdir())
        scores = {line["step"]: (line["val_wer"], line["val_cer"]) for line in metrics(folder) if "val_wer" in line}
        if val:
            order = sorted((2, 4, 6, 8), key=lambda step: (*scores[step], -step))
            assert left == sorted(order[:2])
        else:
            assert left == [6, 7]  # the last step's is `final`
        for step in left:
            model = family("whisper").load(folder / "intermediate" / f"step-{step}")
            assert model.transcribe([np.zeros(RATE, np.float32)], Decoding(language="en"))
            assert not any(
                torch.equal(weights(folder / "intermediate" / f"step-{step}")[name], weight)
                for name, weight in weights(base).items()
                if "fc1.weight" in name
            )
        plain = lay_out(tmp_path / "plain", base, "max_steps=2", "eval_steps=1", data=data)
        trainer.run(plain, StopFlag())
        assert not (plain / "intermediate").exists()

    def test_a_checkpoint_of_an_earlier_version_is_refused_in_a_sentence(self, base: Path, tmp_path: Path) -> None:
        folder = lay_out(tmp_path / "run", base, "max_steps=6")
        trainer.run(folder, StopAt(folder, 3))
        checkpoint = trainer.newest_checkpoint(folder)
        assert checkpoint is not None
        (checkpoint / "state.pt").rename(checkpoint / "optimizer.pt")  # as up to 0.5, beside model.safetensors
        with pytest.raises(TrainingError, match=r"earlier version of Voxloop.*voxloop run retry r"):
            trainer.run(folder, StopFlag())

    def test_fp16_on_the_cpu_is_refused(self, base: Path, tmp_path: Path) -> None:
        folder = lay_out(tmp_path / "run", base, "max_steps=1", "precision=fp16")
        with pytest.raises(SettingError, match="set precision=fp32"):
            trainer.run(folder, StopFlag())

    def test_bf16_learns_and_says_where_it_is_slow(
        self, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(session, "bf16_in_hardware", lambda on_gpu: False)
        steps = ("max_steps=30", "warmup_steps=5", "ctc_weight=0.1")
        exact = lay_out(tmp_path / "fp32", base, *steps)
        trainer.run(exact, StopFlag())
        rounded = lay_out(tmp_path / "bf16", base, *steps, "precision=bf16", data=exact / "data")
        outcome = trainer.run(rounded, StopFlag())
        assert any("precision=fp32 is usually faster" in note for note in outcome.notes)
        losses = [[line["loss"] for line in metrics(folder) if "loss" in line] for folder in (exact, rounded)]
        assert losses[0] != losses[1]
        assert losses[1][0] == pytest.approx(losses[0][0], rel=0.02)
        assert losses[1][-1] < 0.7 * losses[1][0]
        assert all(weight.dtype == torch.float32 for weight in weights(rounded / "final").values())

    def test_auto_is_bf16_for_large_models_where_the_device_multiplies_it(
        self, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        losses: dict[tuple[bool, bool], list[float]] = {}
        data = None
        for fast, large in ((False, True), (True, False), (True, True)):
            monkeypatch.setattr(session, "bf16_in_hardware", lambda on_gpu, fast=fast: fast)
            monkeypatch.setattr(session, "SMALL_MODEL", 0 if large else 1 << 40)
            folder = lay_out(tmp_path / f"{fast}-{large}", base, "max_steps=2", "warmup_steps=0", data=data)
            data = data or folder / "data"
            outcome = trainer.run(folder, StopFlag())
            assert any("precision=auto" in note for note in outcome.notes) == (fast and large)
            losses[fast, large] = [line["loss"] for line in metrics(folder) if "loss" in line]
        assert losses[False, True] == losses[True, False]  # fp32
        assert losses[True, True] != losses[False, True]
        assert losses[True, True] == pytest.approx(losses[False, True], rel=0.02)

    @pytest.mark.parametrize("method", ["full", "lora"])
    def test_gradient_checkpointing_changes_no_gradient(self, base: Path, tmp_path: Path, method: str) -> None:
        steps = ("max_steps=3", "warmup_steps=0", "lora_dropout=0", f"method={method}")
        plain = lay_out(tmp_path / "plain", base, *steps)
        trainer.run(plain, StopFlag())
        thrifty = lay_out(tmp_path / "thrifty", base, *steps, "gradient_checkpointing=true", data=plain / "data")
        trainer.run(thrifty, StopFlag())
        for name, weight in weights(plain / "final").items():
            torch.testing.assert_close(weights(thrifty / "final")[name], weight, atol=1e-6, rtol=1e-5)
        assert read_json(thrifty / "final" / "config.json")["use_cache"]

    def test_lower_layers_learn_at_lower_rates(self, base: Path, tmp_path: Path) -> None:
        steps = ("max_steps=1", "warmup_steps=0", "weight_decay=0", "average=0", "clip_norm=1e9")
        folder = lay_out(tmp_path / "run", base, *steps, "layer_decay=0.5")
        trainer.run(folder, StopFlag())
        before, after = weights(base), weights(folder / "final")

        def moved(name: str) -> float:
            # The first step of Adam moves every weight by its rate, whatever its gradient.
            return float((after[name] - before[name]).abs().median())

        encoder = "model.encoder.layers.{}.fc1.weight"
        assert moved(encoder.format(1)) == pytest.approx(2e-3, rel=0.02)
        assert moved(encoder.format(0)) == pytest.approx(1e-3, rel=0.02)
        assert moved("model.encoder.conv1.weight") == pytest.approx(0.5e-3, rel=0.02)
        assert moved("model.decoder.layers.0.fc2.weight") == pytest.approx(1e-3, rel=0.02)
        assert next(line["learning_rate"] for line in metrics(folder) if "learning_rate" in line) <= 2e-3

    def test_ctc_teaches_the_encoder_and_its_head_is_thrown_away(self, base: Path, tmp_path: Path) -> None:
        frozen_decoder = ("max_steps=2", "warmup_steps=0")
        plain = lay_out(tmp_path / "plain", base, *frozen_decoder)
        trainer.run(plain, StopFlag())
        both = lay_out(tmp_path / "both", base, *frozen_decoder, "ctc_weight=1", data=plain / "data")
        trainer.run(both, StopFlag())
        one, other = weights(plain / "final"), weights(both / "final")
        assert set(one) == set(other)
        assert not torch.equal(one["model.encoder.conv1.weight"], other["model.encoder.conv1.weight"])
        assert not list((both / "final").glob("ctc*"))

    def test_earlier_speech_and_own_noises_are_heard(self, base: Path, tmp_path: Path) -> None:
        data = write_data(tmp_path / "data", train=6)
        earlier = write_data(tmp_path / "earlier", train=9, val=0)
        noise = tmp_path / "run" / "noise"
        noise.mkdir(parents=True)
        (noise / "0.wav").write_bytes(wav_bytes(to_pcm16(np.full(RATE, 0.2, np.float32))))
        folder = lay_out(tmp_path / "run", base, "max_steps=2", "replay_share=0.5", "noise_folder=x", data=data)
        rows = [json.loads(line) for line in (earlier / "train.jsonl").read_text().splitlines()]
        (earlier / "replay.jsonl").write_text("\n".join(json.dumps(row | {"id": f"old-{row['id']}"}) for row in rows))
        config = TrainingConfig.load(folder)
        replace(config, replay=str(earlier / "replay.jsonl"), noise="noise").save(folder)
        session = Session(folder, config := TrainingConfig.load(folder), recipes.from_dict(config.recipe), *fresh())
        assert [len(noise) for noise in session.noises] == [RATE]
        heard = {id for cut in session.plan.examples(0) for id in ids(cut)}
        assert sum(id.startswith("old-") for id in heard) == 6
        assert session.progress.notes == ["every epoch replays 6 clips from earlier models' training data"]
        assert trainer.run(folder, StopFlag()).status == "completed"

    def test_texts_longer_than_the_model_can_write_are_left_out(self, base: Path, tmp_path: Path) -> None:
        data = write_data(tmp_path / "data", text="a" * 200)
        folder = lay_out(tmp_path / "run", base, "max_steps=1", data=data)
        with pytest.raises(TrainingError, match="train split is empty"):
            trainer.run(folder, StopFlag())


def fresh() -> tuple[StopFlag, LoopState]:
    return StopFlag(), LoopState()


def ids(cut: Any) -> list[str]:
    """Ids of the clips of a cut."""
    return [track.cut.id for track in getattr(cut, "tracks", ())] or [cut.id]


class StopAt(StopFlag):
    """Asks to stop once a step has been logged."""

    def __init__(self, folder: Path, step: int) -> None:
        self.folder, self.step = folder, step

    @property
    def set(self) -> bool:  # type: ignore[override]
        path = self.folder / "metrics.jsonl"
        return path.exists() and any(line["step"] >= self.step - 1 and "loss" in line for line in metrics(self.folder))


class TestChild:
    def test_a_child_is_followed_to_its_end(self, base: Path, tmp_path: Path) -> None:
        folder = lay_out(tmp_path / "run", base, "max_steps=4", "eval_steps=2")
        process = control.start(folder, device="cpu", threads=1)
        lines = [line for line in control.follow(process) if line]
        assert lines == metrics(folder)
        ending = control.ending(process)
        assert ending.status == "completed"
        assert ending.values["peak_memory_mb"] > 100
        assert "step 4" in (folder / "train.log").read_text()

    def test_a_stopped_child_leaves_a_checkpoint_and_goes_on(self, base: Path, tmp_path: Path) -> None:
        folder = lay_out(tmp_path / "run", base, "max_steps=100000", "max_epochs=none")
        process = control.start(folder, device="cpu", threads=1)
        for line in control.follow(process):
            if line.get("step", 0) >= 2:
                break
        process.stop()
        assert control.ending(process).status == "stopped"
        assert trainer.newest_checkpoint(folder) is not None

    def test_a_killed_child_has_failed_with_a_reason(self, base: Path, tmp_path: Path) -> None:
        folder = lay_out(tmp_path / "run", base, "max_steps=100000", "max_epochs=none")
        process = control.start(folder, device="cpu", threads=1)
        for line in control.follow(process):
            if line:
                process.kill()
                break
        ending = control.ending(process)
        assert ending.status == "failed"
        assert "SIGKILL" in str(ending.error)

    def test_a_failed_child_says_why_in_a_line(self, base: Path, tmp_path: Path) -> None:
        folder = lay_out(tmp_path / "run", tmp_path / "no-model", "max_steps=1")
        process = control.start(folder, device="cpu", threads=1)
        list(control.follow(process))
        ending = control.ending(process)
        assert ending.status == "failed"
        assert "no-model" in str(ending.error)
        assert "\n" not in str(ending.error)
        assert "Traceback" in (folder / "train.log").read_text()

    def test_a_child_that_does_not_end_is_killed(self, tmp_path: Path) -> None:
        process = subprocess.Popen(["sh", "-c", "trap '' TERM; echo; sleep 60"], start_new_session=True, stdout=PIPE)
        assert process.stdout is not None
        process.stdout.readline()
        (tmp_path / "status.json").write_text(json.dumps({"status": "running", "pid": process.pid}))
        control.Child(tmp_path, process).stop(patience_s=0.3)
        assert process.returncode == -signal.SIGKILL


def frozen(ws: Workspace, folder: Path, *, clips: int = 36) -> Dataset:
    """A workspace with a dataset of tones."""
    rng = np.random.default_rng(11)
    folder.mkdir()
    lines = []
    for number in range(clips):
        word = WORDS[number % len(WORDS)]
        (folder / f"{number}.wav").write_bytes(wav_bytes(to_pcm16(tone(word, rng))))
        lines.append(json.dumps({"file_name": f"{number}.wav", "text": word, "speaker": "s", "language": "en"}))
    (folder / "metadata.jsonl").write_text("\n".join(lines))
    ingest(ws, folder, processes=1)
    with ws.read() as reader:
        recordings = [recording.id for recording in reader.all(Recording)]
    segment(ws, recordings)
    return datasets.build(taking_tones(ws), ratios=(0.6, 0.2, 0.2))


def taking_tones(ws: Workspace) -> Workspace:
    """A steady tone is all noise to the measure of SNR."""
    return replace(ws, settings=replace(ws.settings, min_snr_db=-100.0, min_clip_s=0.1))


def events(ws: Workspace) -> list[Event]:
    with ws.read() as reader:
        rows = reader.connection.execute(tables.event.select().order_by(tables.event.c.seq))
        return [to_event(row) for row in rows if row.type.startswith("training.")]


class TestStep:
    def test_a_run_ends_in_a_registered_model(self, workspace: Workspace, base: Path, tmp_path: Path) -> None:
        dataset = frozen(workspace, tmp_path / "speech")
        told: list[dict[str, Any]] = []
        run = training.train(
            workspace,
            base=str(base),
            recipe="quick",
            overrides=["max_steps=4", "eval_steps=2", "batch_seconds=12"],
            max_seconds=600,
            progress=told.append,
        )
        assert run.status == "completed"
        assert run.dataset == dataset.id
        assert run.recipe["max_steps"] == 4
        assert run.recipe["max_seconds"] == 600
        assert run.progress["step"] == 4
        assert run.finished is not None
        assert [line["step"] for line in told if "val_wer" in line] == [0, 2, 4]
        with workspace.read() as reader:
            model = reader.get(Model, str(run.model))
        assert model.run == run.id
        assert model.kind == "full"
        assert models.model_id(model.files) == model.id
        best = workspace.runs / run.id / "best"
        assert set(model.files) == {p.relative_to(best).as_posix() for p in best.rglob("*") if p.is_file()}
        opened = family("whisper").load(models.model_folder(workspace, model))
        assert opened.transcribe([np.zeros(RATE, np.float32)], Decoding())[0].confidence is not None
        kinds = [event.type for event in events(workspace)]
        assert kinds[:2] == ["training.queued", "training.started"]
        assert kinds[-1] == "training.completed"
        last = events(workspace)[-1]
        assert last.subject == run.id
        assert last.payload["model"] == model.id

    def test_registering_twice_changes_nothing(self, workspace: Workspace, base: Path, tmp_path: Path) -> None:
        frozen(workspace, tmp_path / "speech")
        run = training.train(workspace, base=str(base), recipe="quick", overrides=["max_steps=2"])
        before = events(workspace)
        again = runs._register(workspace, run, run.progress)
        assert again.model == run.model
        assert events(workspace) == before
        with workspace.read() as reader:
            assert reader.count(Model, tables.model.c.run == run.id) == 1

    def test_a_failed_run_is_kept_with_its_reason(self, workspace: Workspace, base: Path, tmp_path: Path) -> None:
        frozen(workspace, tmp_path / "speech")
        with pytest.raises(TrainingError, match=r"precision=fp32; see the log .*train\.log"):
            training.train(workspace, base=str(base), recipe="quick", overrides=["max_steps=2", "precision=fp16"])
        with workspace.read() as reader:
            run = reader.all(Run)[0]
        assert run.status == "failed"
        assert "precision=fp32" in str(run.error)
        assert events(workspace)[-1].type == "training.failed"

    def test_ctrl_c_pauses_the_run(self, workspace: Workspace, base: Path, tmp_path: Path) -> None:
        frozen(workspace, tmp_path / "speech")

        def impatient(line: dict[str, Any]) -> None:
            if line["step"] >= 1:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            training.train(
                workspace, base=str(base), recipe="quick", overrides=["max_steps=100000"], progress=impatient
            )
        with workspace.read() as reader:
            run = reader.all(Run)[0]
        assert run.status == "paused"
        folder = workspace.runs / run.id
        assert read_json(folder / "status.json")["status"] == "stopped"
        assert trainer.newest_checkpoint(folder) is not None

    def test_wrong_settings_are_refused_before_a_run_begins(
        self, workspace: Workspace, base: Path, tmp_path: Path
    ) -> None:
        frozen(workspace, tmp_path / "speech")
        with pytest.raises(SettingError, match="did you mean"):
            training.train(workspace, base=str(base), overrides=["learning_rte=1"])
        with pytest.raises(SettingError, match="full or lora"):
            training.train(workspace, base=str(base), method="half")
        with workspace.read() as reader:
            assert reader.count(Run) == 0

    def test_a_dataset_without_training_clips_is_refused(
        self, workspace: Workspace, base: Path, tmp_path: Path
    ) -> None:
        frozen(workspace, tmp_path / "speech")
        datasets.build(taking_tones(workspace), name="tests", ratios=(0.6, 0.2, 0.2), train_limit=0)
        with pytest.raises(UsageError, match="the train split of dataset 'tests' is empty"):
            training.train(workspace, dataset="tests", base=str(base))


def test_parameters_are_counted_off_the_files(base: Path) -> None:
    assert training.parameters(base) == sum(weight.numel() for weight in weights(base).values())
