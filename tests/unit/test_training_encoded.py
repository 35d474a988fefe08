"""A frozen encoder whose outputs are kept: the same training as with an encoder that computes them anew."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.unit import tiny_whisper
from tests.unit.test_training import StopAt, lay_out, metrics, weights
from voxloop.errors import SettingError, TrainingError
from voxloop.families.contract import Trainable
from voxloop.families.registry import family
from voxloop.families.whisper import Whisper
from voxloop.steps.training import disk, recipes, trainer
from voxloop.steps.training.batches import Plan, read_rows
from voxloop.steps.training.encoded import EncodedBatches
from voxloop.steps.training.session import StopFlag

HEARD = ("freeze_encoder=true", "silence_share=0.1", "join_seconds=4", "eval_steps=1000", "max_epochs=none")


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_whisper.make(tmp_path_factory.mktemp("base") / "model", sharpness=1.0, width=48)


def losses(folder: Path) -> list[float]:
    return [line["loss"] for line in metrics(folder) if "loss" in line]


def changed(base: Path, folder: Path) -> list[str]:
    return [name for name, weight in weights(folder).items() if not torch.equal(weight, weights(base)[name])]


@pytest.fixture
def computed(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Clips of each batch that the encoder of a training computes."""
    found: list[int] = []
    real = Whisper.encode

    def encode(self: Whisper, trainable: Trainable, inputs: Any) -> dict[str, Any]:
        found.append(len(inputs["input_features"]))
        return real(self, trainable, inputs)

    monkeypatch.setattr(Whisper, "encode", encode)
    return found


def epochs(folder: Path, *overrides: str) -> Plan:
    recipe = recipes.override(recipes.named("quick"), ["audio_context=trimmed", *overrides])
    return Plan(
        read_rows(folder / "data" / "train.jsonl"),
        recipe,
        padded_s=family("whisper").padded_seconds,
        label_length=lambda text, _: len(text),
        label_limit=96,
    )


class TestPlan:
    def test_the_first_epochs_are_those_without_copies_and_then_they_come_again(
        self, base: Path, tmp_path: Path
    ) -> None:
        folder = lay_out(tmp_path / "run", base)
        new = epochs(folder, "freeze_encoder=true", "silence_share=0.1")
        again = epochs(folder, "freeze_encoder=true", "silence_share=0.1", "encoder_copies=2")

        def clips(plan: Plan, epoch: int) -> list[list[str]]:
            return [[cut.id for cut in batch.cuts] for batch in plan.epoch(epoch)]

        for epoch in (0, 1):
            assert clips(again, epoch) == clips(new, epoch)
        for epoch in (2, 3, 4, 5):
            assert sorted(clips(again, epoch)) == sorted(clips(again, epoch % 2))
            assert [batch.index for batch in again.epoch(epoch)] == list(range(len(clips(again, epoch))))
        orders = [[batch.drawn for batch in again.epoch(epoch)] for epoch in (0, 2, 4)]
        assert len({str(order) for order in orders}) == 3


class TestTraining:
    @pytest.mark.parametrize("method", ["full", "lora"])
    def test_kept_outputs_train_as_computed_ones_do(
        self, base: Path, tmp_path: Path, computed: list[int], method: str
    ) -> None:
        """As long as no epoch comes again both are the same run, bit for bit; and the encoder computes no more then."""
        steps = (*HEARD, "batch_seconds=8", f"method={method}", "average=0.9", "log_steps=1")
        plan = epochs(lay_out(tmp_path / "new", base, *steps, "max_steps=1"), *HEARD, "batch_seconds=8")
        two = sum(len(list(plan.epoch(epoch))) for epoch in (0, 1))
        new = lay_out(tmp_path / "new", base, *steps, f"max_steps={two}", data=tmp_path / "new" / "data")
        trainer.run(new, StopFlag())
        assert not computed
        kept = lay_out(tmp_path / "kept", base, *steps, f"max_steps={2 * two}", "encoder_copies=2", data=new / "data")
        trainer.run(kept, StopFlag())
        assert len(computed) == two
        # The rate falls with the share of the steps that are done, so that only the first steps can be compared.
        assert losses(kept)[:2] == pytest.approx(losses(new)[:2], rel=1e-6)
        assert losses(kept)[-1] < losses(kept)[0]
        moved = [
            name for name, weight in weights(kept / "final").items() if not torch.equal(weight, weights(base)[name])
        ]
        assert moved
        assert not [name for name in moved if ".encoder." in name]

    def test_what_is_read_gives_the_loss_of_what_was_computed(self, base: Path, tmp_path: Path) -> None:
        # Weights that do not move: every batch has the loss that it had the first time, when the encoder computed it.
        folder = lay_out(
            tmp_path / "run", base, *HEARD, "batch_seconds=8", "encoder_copies=1", "learning_rate=1e-30", "log_steps=1",
            "max_steps=12",
        )  # fmt: skip
        trainer.run(folder, StopFlag())
        by_batch: dict[tuple[int, int], list[float]] = {}
        plan = epochs(folder, *HEARD, "batch_seconds=8", "encoder_copies=1")
        drawn = {(batch.epoch, batch.index): batch.drawn for epoch in range(9) for batch in plan.epoch(epoch)}
        for line in metrics(folder):
            if "loss" in line:
                by_batch.setdefault(drawn[line["epoch"], line["batch"] - 1], []).append(line["loss"])
        assert sum(len(found) > 1 for found in by_batch.values()) >= 3
        for found in by_batch.values():
            assert found == pytest.approx([found[0]] * len(found), rel=1e-6)

    def test_a_run_that_was_stopped_ends_at_the_same_weights(self, base: Path, tmp_path: Path) -> None:
        steps = (*HEARD, "batch_seconds=8", "encoder_copies=1", "max_steps=12")
        whole = lay_out(tmp_path / "whole", base, *steps)
        trainer.run(whole, StopFlag())
        halved = lay_out(tmp_path / "halved", base, *steps, data=whole / "data")
        # In the second epoch: what comes again was computed by a process that is gone.
        assert trainer.run(halved, StopAt(halved, 7)).status == "stopped"
        assert trainer.run(halved, StopFlag()).status == "completed"
        for name, weight in weights(whole / "final").items():
            torch.testing.assert_close(weights(halved / "final")[name], weight, atol=1e-6, rtol=1e-5)

    def test_other_processes_that_prepare_batches_change_nothing(self, base: Path, tmp_path: Path) -> None:
        steps = (*HEARD, "batch_seconds=8", "encoder_copies=1", "max_steps=8")
        alone = lay_out(tmp_path / "alone", base, *steps)
        trainer.run(alone, StopFlag())
        helped = lay_out(tmp_path / "helped", base, *steps, "workers=2", data=alone / "data")
        trainer.run(helped, StopFlag())
        for name, weight in weights(alone / "final").items():
            torch.testing.assert_close(weights(helped / "final")[name], weight, atol=1e-6, rtol=1e-5)

    def test_bf16_reads_what_it_computed(self, base: Path, tmp_path: Path) -> None:
        folder = lay_out(
            tmp_path / "run", base, *HEARD, "precision=bf16", "encoder_copies=1", "max_steps=2", "batch_seconds=60"
        )
        assert trainer.run(folder, StopFlag()).status == "completed"


def test_adapters_leave_a_frozen_encoder_alone(base: Path, tmp_path: Path) -> None:
    folder = lay_out(tmp_path / "run", base, "max_steps=2", "method=lora", "freeze_encoder=true")
    trainer.run(folder, StopFlag())
    moved = changed(base, folder / "final")
    assert moved
    assert all(".decoder." in name for name in moved)
    assert any("encoder_attn" in name for name in moved)


def test_frozen_embeddings_do_not_move_and_take_no_optimiser_state(base: Path, tmp_path: Path) -> None:
    folder = lay_out(tmp_path / "run", base, "max_steps=2", "freeze_embeddings=true")
    trainer.run(folder, StopFlag())
    name = "model.decoder.embed_tokens.weight"
    assert torch.equal(weights(folder / "final")[name], weights(base)[name])
    other = "model.decoder.layers.0.fc1.weight"
    assert not torch.equal(weights(folder / "final")[other], weights(base)[other])


def test_the_gradient_of_the_embedding_is_that_of_a_dense_lookup(base: Path) -> None:
    """The lookup's rows are added to the output layer's part in place; padding (the end token) learns from neither."""
    whisper = family("whisper")
    found = []
    for stock in (True, False):
        trainable = whisper.open_for_training(base, audio_context="trimmed")
        tokens = trainable.model.get_input_embeddings()
        if stock:
            tokens.__class__ = torch.nn.Embedding
        clips = [torch.randn(8_000, generator=torch.Generator().manual_seed(n)).numpy() * 0.1 for n in range(3)]
        batch: dict[str, Any] = whisper.collate(trainable, clips, ["one", "seventeen", "two"], ["en"] * 3)
        labels = batch.pop("labels")
        for _ in range(2):  # the second adds to the first, as accumulation does
            if not stock:
                (trainable.model(**batch, answers=labels).loss / (labels != -100).sum()).backward()
            else:
                trainable.model(**batch, labels=labels).loss.backward()
        found.append({name: weight.grad for name, weight in trainable.model.named_parameters() if weight.requires_grad})
    assert found[0].keys() == found[1].keys()
    for name, gradient in found[0].items():
        torch.testing.assert_close(found[1][name], gradient, atol=1e-6, rtol=1e-4)


def test_layer_norm_hands_on_the_type_of_autocast_and_changes_little(base: Path) -> None:
    """Against stock layer norm, whose result each projection casts for itself: in bf16 near it, in fp32 the same."""
    whisper = family("whisper")
    clip = torch.randn(8_000, generator=torch.Generator().manual_seed(1)).numpy() * 0.1
    found: dict[tuple[bool, bool], tuple[torch.Tensor, torch.Tensor]] = {}
    for stock in (True, False):
        trainable = whisper.open_for_training(base, audio_context="trimmed")
        norms = [part for part in trainable.model.modules() if isinstance(part, torch.nn.LayerNorm)]
        if stock:
            for norm in norms:
                norm.__class__ = torch.nn.LayerNorm
        batch: dict[str, Any] = whisper.collate(trainable, [clip], ["seventeen"], ["en"])
        for autocast in (False, True):
            trainable.model.zero_grad()
            kinds: list[torch.dtype] = []
            hook = norms[0].register_forward_hook(lambda _, __, output, kinds=kinds: kinds.append(output.dtype))
            with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
                loss = trainable.model(**batch).loss
            loss.backward()
            hook.remove()
            assert kinds == [torch.bfloat16 if autocast and not stock else torch.float32]
            gradients = [weight.grad.flatten() for weight in trainable.model.parameters() if weight.grad is not None]
            found[stock, autocast] = loss.detach(), torch.cat(gradients)
    assert torch.equal(found[True, False][1], found[False, False][1])
    torch.testing.assert_close(found[True, True][0], found[False, True][0], rtol=0.01, atol=0)
    exact = found[True, False][1]
    off = [(found[stock, True][1] - exact).norm() / exact.norm() for stock in (True, False)]
    assert off[1] < 1.5 * off[0]
    assert off[1] < 0.1


class TestFile:
    def test_tensors_come_back_as_they_were_and_no_file_is_left(self, tmp_path: Path) -> None:
        kept = EncodedBatches(tmp_path)
        first = {"encoder_outputs": torch.randn(2, 5, 3), "labels": torch.tensor([[1, -100]])}
        second = {"encoder_outputs": torch.randn(1, 7, 3).bfloat16()}
        kept.write((0, 0), first)
        kept.write((0, 1), second)
        for drawn, tensors in (((0, 0), first), ((0, 1), second), ((0, 0), first)):
            found = kept.read(drawn)
            assert found.keys() == tensors.keys()
            assert all(torch.equal(found[name], tensor) for name, tensor in tensors.items())
        assert not list(tmp_path.iterdir())

    def test_its_room_is_asked_for_before_the_run(self, base: Path, tmp_path: Path) -> None:
        recipe = recipes.override(recipes.named("quick"), ["freeze_encoder=true", "encoder_copies=4", "replay_share=0"])
        recipe = recipes.override(recipe, ["audio_context=trimmed"])
        asked = disk.encoded_bytes(base, recipe, clips=900, seconds=3600)
        states = 4 * 50 * 3600 * 48 * 4  # copies, positions, seconds, width, bytes
        assert states < asked < 1.7 * states
        with pytest.raises(TrainingError, match="set encoder_copies=2000000"):
            many = recipes.override(recipe, ["encoder_copies=4000000"])
            disk.check(tmp_path, base, many, clips=900, speech_s=3600)


def test_copies_of_an_encoder_that_is_trained_are_refused() -> None:
    with pytest.raises(SettingError, match="set freeze_encoder=true"):
        recipes.override(recipes.named("quick"), ["encoder_copies=2"])
    with pytest.raises(SettingError, match="0 or more"):
        recipes.override(recipes.named("quick"), ["freeze_encoder=true", "encoder_copies=-1"])


def test_metrics_tell_how_long_a_step_waited_for_data(base: Path, tmp_path: Path) -> None:
    folder = lay_out(tmp_path / "run", base, "max_steps=4")
    trainer.run(folder, StopFlag())
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    waited = [line["wait_share"] for line in lines if "loss" in line]
    assert waited
    assert all(0 < share < 1 for share in waited)
