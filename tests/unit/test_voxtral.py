"""The Voxtral family beside transformers' own use of the model, and through a run."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import VoxtralForConditionalGeneration, VoxtralProcessor

from tests.unit import tiny_voxtral
from voxloop.errors import ModelError, UsageError
from voxloop.families.decoding import Decoding
from voxloop.families.voxtral import VOXTRAL
from voxloop.records import Dataset, Model
from voxloop.speech.audio import to_pcm16, wav_bytes
from voxloop.steps.training import material, recipes, trainer
from voxloop.steps.training.state import StopFlag, TrainingConfig
from voxloop.workspace import Workspace

RATE = 16_000
AUDIO = [24] * 375


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_voxtral.make(tmp_path_factory.mktemp("voxtral"))


def noise(*durations_s: float) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [(0.1 * rng.standard_normal(round(duration * RATE))).astype(np.float32) for duration in durations_s]


def spelled(text: str) -> list[int]:
    return [byte + 40 for byte in text.encode()]


def test_a_training_batch_token_by_token(folder: Path) -> None:
    trainable = VOXTRAL.open_for_training(folder, audio_context="full")
    inputs = VOXTRAL.collate(trainable, noise(0.5, 2.0), ["yes", "no"], ["en", None])
    named = [1, 3, 25, *AUDIO, 4, *spelled("lang:en"), 34]  # <s> [INST] [BEGIN_AUDIO] … [/INST] … [TRANSCRIBE]
    unnamed = [1, 3, 25, *AUDIO, 4, 34]
    first, second = [*named, *spelled("yes"), 2], [*unnamed, *spelled("no"), 2]
    behind = len(first) - len(second)
    assert inputs["input_ids"].tolist() == [first, second + [11] * behind]
    assert inputs["attention_mask"].tolist() == [[1] * len(first), [1] * len(second) + [0] * behind]
    assert inputs["labels"].tolist() == [
        [-100] * len(named) + [*spelled("yes"), 2],
        [-100] * len(unnamed) + [*spelled("no"), 2] + [-100] * behind,
    ]
    assert inputs["input_features"].shape == (2, 128, 3000)


def test_texts_are_those_of_stock_transformers(folder: Path) -> None:
    clips = noise(0.5, 2.0)
    processor = VoxtralProcessor.from_pretrained(folder)
    model = VoxtralForConditionalGeneration.from_pretrained(folder).eval()
    given = processor.apply_transcription_request(
        audio=clips, model_id="any", language=["en", "en"], sampling_rate=RATE, format=["WAV", "WAV"]
    )
    assert given["input_ids"][:, 0].tolist() == [1, 1]
    out = model.generate(**given, max_new_tokens=12, do_sample=False)
    expected = processor.batch_decode(out[:, given["input_ids"].shape[1] :], skip_special_tokens=True)
    found = VOXTRAL.load(folder).transcribe(clips, Decoding(language="en", max_new_tokens=12))
    assert [one.text for one in found] == [text.strip() for text in expected]
    assert any(one.text for one in found)


def test_prompts_of_unlike_length_share_a_batch(folder: Path) -> None:
    trainable = VOXTRAL.open_for_training(folder, audio_context="full")
    clips, texts, languages = noise(0.5, 2.0), ["yes", "no"], ["en", None]

    def loss(rows: slice) -> float:
        inputs = VOXTRAL.collate(trainable, clips[rows], texts[rows], languages[rows])
        with torch.no_grad():
            return VOXTRAL.loss(trainable, trainable.model.eval(), inputs)[0].item()

    assert loss(slice(0, 2)) == pytest.approx(loss(slice(0, 1)) + loss(slice(1, 2)), rel=1e-5)


def test_a_text_is_bounded_by_the_sound(folder: Path) -> None:
    recogniser = VOXTRAL.load(folder)
    recogniser.model.generation_config.eos_token_id = 39  # hardly ever written: it does not end by itself
    short, long = recogniser.transcribe(noise(0.2, 2.0), Decoding())
    assert len(short.text.encode()) <= 3 * (0.2 * 25 + 16)
    assert len(long.text) > len(short.text)


def test_what_is_no_language_is_refused(folder: Path) -> None:
    with pytest.raises(ModelError, match=r"does not accept the language xx .*ISO 639-1"):
        VOXTRAL.load(folder).transcribe(noise(0.5), Decoding(language="xx"))


def test_a_folder_without_its_tokenizer_is_refused(folder: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    (copy / "tekken.json").unlink()
    with pytest.raises(ModelError, match="tokenizer"):
        VOXTRAL.load(copy)


def test_another_kind_of_model_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama"}))
    with pytest.raises(ModelError, match="of type 'llama': name a Voxtral model, such as mistralai/"):
        VOXTRAL.load(tmp_path)


def test_a_recipe_that_the_family_cannot_follow_is_refused_before_the_run(workspace: Workspace) -> None:
    base = Model(id="m", family="voxtral", base="m", kind="full", where="m")
    dataset = Dataset(id="d", name="d", filters={}, clips={}, hours={})
    quick = recipes.override(recipes.named("quick"), ["replay_share=0"])
    assert material.resolved(workspace, quick, dataset, base).audio_context == "full"
    for context in ("trimmed", "packed", "floor"):
        with pytest.raises(UsageError, match="voxtral models do not support short context: set audio_context=full"):
            material.resolved(workspace, recipes.override(quick, [f"audio_context={context}"]), dataset, base)
    full = recipes.override(quick, ["audio_context=full", "method=lora"])
    assert "gate_proj" in material.resolved(workspace, full, dataset, base).lora_targets
    with pytest.raises(UsageError, match="not support encoder states: set ctc_weight=0"):
        material.resolved(workspace, recipes.override(full, ["ctc_weight=0.3"]), dataset, base)


@pytest.mark.parametrize("method", ["full", "lora"])
def test_a_run_learns_and_what_it_saves_hears_the_same(folder: Path, tmp_path: Path, method: str) -> None:
    run = tmp_path / "run"
    run.mkdir()
    for split, clips in (("train", noise(0.4, 0.5, 0.6, 0.7)), ("val", noise(0.4, 0.5))):
        lines = []
        for number, clip in enumerate(clips):
            (run / f"{split}-{number}.wav").write_bytes(wav_bytes(to_pcm16(clip)))
            row = {"audio_path": f"{split}-{number}.wav", "text": "yes", "duration": len(clip) / RATE, "language": "en"}
            lines.append(json.dumps(row))
        (run / f"{split}.jsonl").write_text("\n".join(lines))
    asked = [
        *(f"method={method}", "audio_context=full", "max_seconds=none", "max_steps=12", "eval_steps=12", "average=0"),
        *("batch_seconds=60", "log_steps=1", "eval_seconds=none", "learning_rate=3e-3", "warmup_steps=0"),
        *("join_share=0", "silence_share=0", "speed=0"),
    ]
    config = TrainingConfig(
        run="r",
        family="voxtral",
        base=str(folder),
        train="train.jsonl",
        val="val.jsonl",
        recipe=recipes.override(recipes.named("quick"), asked).as_dict(),
        device="cpu",
        threads=1,
    )
    config.save(run)
    assert trainer.run(run, StopFlag()).status == "completed"
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    losses = [line["loss"] for line in lines if "loss" in line]
    assert losses[-1] < 0.9 * losses[0]
    found = VOXTRAL.load(run / "final").transcribe(noise(0.5), Decoding(language="en", max_new_tokens=4))
    assert found[0].confidence
    assert (run / "final" / "adapter").is_dir() == (method == "lora")
    VoxtralForConditionalGeneration.from_pretrained(run / "final")
