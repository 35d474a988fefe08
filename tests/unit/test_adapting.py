"""A base learns to hear short contexts from itself, and is a base of its own then."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file
from typer.testing import CliRunner

from voxloop import bases, models
from voxloop.cli import app
from voxloop.errors import ConflictError, UsageError
from voxloop.families.whisper import Whisper
from voxloop.pipeline import open_loop
from voxloop.speech.audio import decode
from voxloop.starter import STARTER_DIR
from voxloop.steps import adapting, exporting
from voxloop.steps.adapting import Adaptation, Measured
from voxloop.steps.training import packing
from voxloop.steps.training.submit import suited
from voxloop.workspace import Workspace

KIND = Whisper()


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The starter as if it had been published: its config says nothing of short contexts."""
    folder = tmp_path_factory.mktemp("published") / "model"
    shutil.copytree(STARTER_DIR, folder)
    told = json.loads((folder / "config.json").read_text())
    del told["voxloop_audio_context"]
    (folder / "config.json").write_text(json.dumps(told))
    return folder


@pytest.fixture(scope="module")
def speech(demo_speech: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("speech")
    for path in sorted(demo_speech.glob("*.ogg"))[:15]:
        shutil.copyfile(path, folder / path.name)
    return folder


@pytest.fixture
def ws(published: Path, tmp_path: Path) -> Iterator[Workspace]:
    with open_loop(tmp_path / "ws", create=True, base_model=str(published), threads=1, device="cpu") as opened:
        yield opened


def adapter(folder: Path) -> Any:
    trainable = KIND.open_for_training(folder, audio_context="trimmed")
    config = LoraConfig(r=4, target_modules=list(KIND.lora_targets), bias="none")
    return trainable, get_peft_model(trainable.model, config)


def entropy_of(chances: torch.Tensor) -> float:
    """Sum over places (U, K), with all other tokens as one."""
    whole = torch.cat([chances, (1 - chances.sum(dim=-1, keepdim=True)).clamp(min=1e-6)], dim=-1)
    return -float((whole * whole.log()).sum())


def test_a_model_that_hears_30_s_has_nothing_to_learn_from_itself(published: Path, speech: Path) -> None:
    """The loss at 30 s is the entropy of its own distribution; at the clip's own length it is larger, and learnt."""
    trainable, model = adapter(published)
    clips = [decode(path) for path in sorted(speech.glob("*.ogg"))[:6]]
    lessons = KIND.lessons(trainable, model, clips, "en")
    pairs = [(clip, one) for clip, one in zip(clips, lessons, strict=True) if one is not None]
    assert len(pairs) >= 3
    waves, known = [clip for clip, _ in pairs], [one for _, one in pairs]
    for clip, one in pairs:
        assert one.states.shape == (len(clip) // 320, trainable.model.config.d_model)
        assert one.tokens.shape == one.logprobs.shape == (len(one.text), 32)
    with torch.no_grad():
        states, entropy = KIND.distil(trainable, model, waves, known, at_least_s=30.0)
        wrong, more = KIND.distil(trainable, model, waves, known)
    own = sum(entropy_of(one.logprobs.float().exp()) for one in known)
    assert float(states) < 1e-4
    assert float(entropy) == pytest.approx(own / sum(len(one.text) for one in known), abs=0.02)
    assert float(wrong) > 10 * float(states)
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=2e-3)
    for _ in range(25):
        total = sum(KIND.distil(trainable, model, waves, known))
        torch.autograd.backward(total)
        optimizer.step()
        optimizer.zero_grad()
    assert float(total) < 0.9 * float(wrong + more)
    assert all("lora" in name for name, weight in model.named_parameters() if weight.requires_grad)


def test_silence_teaches_nothing(published: Path) -> None:
    trainable, model = adapter(published)
    noise = np.random.default_rng(0).normal(0, 1e-4, 16_000).astype(np.float32)
    assert KIND.lessons(trainable, model, [noise], "en") == [None]


def test_an_adapted_base_is_a_base(ws: Workspace, speech: Path, tmp_path: Path, published: Path) -> None:
    told: list[adapting.AdaptProgress] = []
    found = adapting.adapt(ws, None, [speech], name="short", minutes=0.05, keep=True, progress=told.append)
    assert [one.context for one in found.measured] == ["trimmed", "full"]
    assert found.files == 3
    assert not found.references
    assert {one.phase for one in told} == {"listening", "training", "measuring"}
    model = models.base_model(ws, "short")
    assert (model.id, model.kind, model.base) == (found.model, "adapter", models.base_model(ws).id)
    folder = Path(models.model_folder(ws, model))
    assert KIND.tuned_context(folder) == "trimmed"
    assert KIND.published(folder)
    assert not KIND.published(STARTER_DIR)
    assert KIND.open_for_training(folder, audio_context="trimmed").spaced
    assert packing.usual_context(KIND, folder) == "trimmed"
    assert (folder / "adapter" / "adapter_model.safetensors").exists()
    done = exporting.export_model(ws, "short", tmp_path / "out", format="peft", clips=0)
    assert (done.folder / "adapter_config.json").exists()
    before, after = (load_file(place / "model.safetensors") for place in (published, folder))
    assert any(not torch.equal(before[name], after[name]) for name in before)
    with models.loaded(ws, model) as recogniser:
        assert recogniser.context("auto") == "trimmed"
    assert "short" in [base.name for base in bases.here(ws)[1] if base.lora]
    again = adapting.adapt(ws, None, [speech], name="short", minutes=0.05, keep=True)
    assert (again.model, again.steps) == (found.model, found.steps)  # its minutes are spent
    with open_loop(ws.folder, base_model="short") as by_name:
        assert models.base_model(by_name).id == found.model
    with pytest.raises(ConflictError, match="begun with another base or other audio"):
        adapting.adapt(ws, None, sorted(speech.glob("*.ogg"))[:5], name="short")
    with pytest.raises(UsageError, match="hears clips at their own length already"):
        adapting.adapt(ws, "short", [speech])


def test_training_chooses_the_rates_of_a_published_model(published: Path, tmp_path: Path) -> None:
    from voxloop.records import Dataset

    made = KIND.open_for_training(published, audio_context="trimmed")
    KIND.save(made, made.model, tmp_path / "adapted")
    dataset = Dataset(id="d", name="d", filters={}, hours={"train": 0.1}, clips={"train": 10})
    assert suited(dataset, tmp_path / "adapted").learning_rate == 2e-5
    assert suited(dataset, STARTER_DIR).learning_rate == 6e-4


def test_an_interrupted_adaptation_goes_on(ws: Workspace, speech: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And ends at the weights of one that ran through, where epochs and not the clock end it."""
    monkeypatch.setattr(adapting, "EPOCHS", 2)
    monkeypatch.setattr(adapting, "FULL_SHARE", 0.0)
    monkeypatch.setattr(adapting, "BATCH_S", 6.0)

    def stop(line: adapting.AdaptProgress) -> None:
        if line.phase == "training" and line.step == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        adapting.adapt(ws, None, [speech], name="halved", minutes=1e6, progress=stop)
    assert (ws.folder / "adapted" / "halved" / "state.pt").exists()
    steps: list[int] = []
    halved = adapting.adapt(
        ws, None, [speech], name="halved", minutes=1e6, progress=lambda line: steps.append(line.step)
    )
    assert min(step for step in steps if step) == 4
    whole = adapting.adapt(ws, None, [speech], name="whole", minutes=1e6)
    assert halved.steps == whole.steps > 4
    left, right = (load_file(one.folder / "model.safetensors") for one in (halved, whole))
    for name, weight in left.items():
        torch.testing.assert_close(weight, right[name], atol=1e-5, rtol=1e-4)
    assert halved.model is None  # the test is too small to accept anything
    kept = json.loads((ws.folder / "adapted" / "whole" / "adaptation.json").read_text())
    assert kept["result"]["steps"] == whole.steps


def measured(*highs: float, words: int = 300) -> Adaptation:
    return Adaptation(
        folder=Path(), model=None, name="n", clips=1, seconds=1.0, steps=1, files=1, words=words, references=True,
        measured=tuple(
            Measured(context=context, before=0.1, after=0.1, low=-0.01, high=high, margin=margin)
            for high, (context, margin) in zip(highs, adapting.MARGINS.items(), strict=True)
        ),
    )  # fmt: skip


@pytest.mark.parametrize(
    ("highs", "words", "accepted"),
    [((0.01, 0.005), 300, True), ((0.011, 0.0), 300, False), ((0.0, 0.006), 300, False), ((0.0, 0.0), 100, False)],
)
def test_both_ends_of_both_differences_must_be_within_the_margins(
    highs: tuple[float, float], words: int, accepted: bool
) -> None:
    assert measured(*highs, words=words).accepted is accepted


def test_files_with_texts_are_tested_and_no_file_is_learnt_and_tested() -> None:
    items = [adapting.Item(path=Path(f"{n}.wav"), text="said" if n % 5 == 0 else None) for n in range(50)]
    learnt, test = adapting._parted(items)
    assert len(test) == 10
    assert all(item.text for item in test)
    assert {item.path for item in learnt}.isdisjoint(item.path for item in test)
    assert adapting._parted(items[::-1]) == (learnt, test)
    with pytest.raises(UsageError, match="at least two"):
        adapting._parted(items[:1])


def test_the_command_says_what_the_test_shows(published: Path, speech: Path, tmp_path: Path) -> None:
    folder = str(tmp_path / "ws")
    assert CliRunner().invoke(app, ["-C", folder, "init"]).exit_code == 0
    call = ["-C", folder, "model", "adapt", str(published), "--audio", str(speech), "--minutes", "0.02", "--name"]
    shown = CliRunner().invoke(app, [*call, "quick"])
    assert shown.exit_code == 0, shown.output
    assert "difference from the base's own texts in 3 files" in shown.output
    assert "not registered" in shown.output
    assert CliRunner().invoke(app, [*call, "../out"]).exit_code == 2
    assert not (tmp_path / "out").exists()
