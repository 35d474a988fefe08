"""The training benchmark is fair: both sides compute the same on the same batch. Its FLOPs are counted right."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from benchmarks import training_sides
from benchmarks.side_by_side import Row
from benchmarks.training import Part, section
from benchmarks.training_profile import forward_flops
from benchmarks.training_sides import BATCH, CLIPS, PLAIN, SHAPES, Shape, batch_seconds, write_model, write_noise
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from transformers import WhisperForConditionalGeneration

from voxloop.families.registry import family
from voxloop.steps.training import trainer
from voxloop.steps.training.batches import Plan, read_rows
from voxloop.steps.training.recipes import Recipe
from voxloop.steps.training.session import Session
from voxloop.steps.training.state import LoopState, StopFlag, TrainingConfig

STEPS = 4
PROMPT = 1  # no time stamps: an English-only model names neither language nor task


@pytest.fixture(scope="module")
def sides(tmp_path_factory: pytest.TempPathFactory) -> tuple[Session, Any]:
    """Ours, padding to 30 s like the peer, and the peer's, both as the benchmark's processes make them."""
    folder = tmp_path_factory.mktemp("sides")
    write_model(folder / "base", SHAPES["smallest"])
    manifest = write_noise(folder / "speech", 0.5)
    recipe = replace(PLAIN, audio_context="full", batch_seconds=30.0 * BATCH, max_steps=STEPS)
    training_sides.lay_out(folder / "run", folder / "base", manifest, recipe, device="cpu", threads=1)
    session = Session(folder / "run", TrainingConfig.load(folder / "run"), recipe, StopFlag(), LoopState())
    peer = training_sides.PeerConfig(
        base=str(folder / "base"), train=str(manifest), recipe=recipe.as_dict(), device="cpu", threads=1
    )
    return session, training_sides.peer_trainer(folder / "peer", peer)


def test_both_sides_make_the_same_update_of_the_same_batch(sides: tuple[Session, Any]) -> None:
    ours, theirs = sides
    mine = ours.on_device(next(ours.batches()))
    names = [row.id for row in ours.plan.rows]
    same = theirs.data_collator([theirs.train_dataset[names.index(cut.id)] for cut in next(ours.plan.epoch(0)).cuts])
    assert len(mine["labels"]) == BATCH
    assert mine["input_features"].shape[-1] == 3000
    assert torch.allclose(mine["input_features"], same["input_features"], atol=1e-4)
    # The peer learns its prompt as well, and texts without the space that published models begin theirs with.
    learnt, theirs_learnt = ([row[row != -100].tolist() for row in one["labels"]] for one in (mine, same))
    assert learnt == [[ord(" "), *row[PROMPT:]] for row in theirs_learnt]
    same |= {name: mine[name] for name in ("labels", "decoder_input_ids")}

    optimizer = trainer.adamw(ours)
    theirs.create_optimizer_and_scheduler(num_training_steps=STEPS)
    tokens = (mine["labels"] != -100).sum()
    loss = float(trainer.gradients(ours, [mine], tokens))
    assert loss == pytest.approx(float(theirs.training_step(theirs.model, same, tokens)), rel=1e-5)
    for model, norm in ((ours.model, PLAIN.clip_norm), (theirs.model, theirs.args.max_grad_norm)):
        torch.nn.utils.clip_grad_norm_(model.parameters(), norm)
    for (name, a), (_, b) in zip(ours.model.named_parameters(), theirs.model.named_parameters(), strict=True):
        if a.requires_grad:
            assert torch.allclose(a.grad, b.grad, atol=1e-4), name

    rates: tuple[list[float], list[float]] = ([], [])
    for step in range(STEPS):
        rates[0].append(optimizer.param_groups[0]["initial_lr"] * ours.rate(step))
        rates[1].append(theirs.lr_scheduler.get_last_lr()[0])
        theirs.optimizer.step()
        theirs.lr_scheduler.step()
    assert rates[0] == pytest.approx(rates[1])
    assert rates[0][0] == PLAIN.learning_rate
    for key in ("betas", "eps", "fused"):
        assert optimizer.defaults[key] == theirs.optimizer.defaults[key]
    decays = [
        sorted((g["weight_decay"], len(g["params"])) for g in o.param_groups) for o in (optimizer, theirs.optimizer)
    ]
    assert decays[0] == decays[1]


@pytest.mark.parametrize("seconds", [0.5, 4.0, 12.0])
def test_a_batch_of_ours_has_as_many_clips_as_the_peers(seconds: float, tmp_path: Path) -> None:
    manifest = write_noise(tmp_path / "speech", seconds)
    recipe: Recipe = replace(PLAIN, batch_seconds=batch_seconds(manifest))
    plan = Plan(
        read_rows(manifest),
        recipe,
        padded_s=family("whisper").padded_seconds,
        label_length=lambda text, _: len(text),
        label_limit=200,
    )
    for epoch in range(5):
        assert [len(batch.cuts) for batch in plan.epoch(epoch)] == [BATCH] * (CLIPS // BATCH)


def test_flops_are_those_that_torch_counts(tmp_path: Path) -> None:
    shape = Shape(width=64, encoder_layers=3, decoder_layers=2, heads=4, mels=80, vocabulary=500)
    write_model(tmp_path, shape)
    model: Any = WhisperForConditionalGeneration.from_pretrained(tmp_path)
    tokens = 20
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model(input_features=torch.zeros(2, 80, 3000), decoder_input_ids=torch.ones(2, tokens, dtype=torch.long))
    counted = counter.get_total_flops()
    assert forward_flops(shape, batch=2, positions=1500, tokens=tokens) == pytest.approx(counted, rel=1e-3)


def test_parts_measured_apart_make_one_table() -> None:
    row = Row(
        name="full",
        ours=6.0,
        peer=1.0,
        unit="clips/s",
        ratio_median=6.0,
        ratio_min=5.5,
        ratio_max=6.5,
        quality_ours="loss 1",
        quality_peer="loss 2",
    )
    parts = {
        "4s": Part(rows=[row], text="- said of 4 s", machine="box, load 1"),
        "12s": Part(rows=[replace(row, name="long", ratio_median=0.5)], machine="box, load 2"),
    }
    made = section(parts)
    assert made.startswith("4s: box, load 1\n\n12s: box, load 2\n\n| | ours |")
    assert "| full | 6.00 | 1.00 | clips/s | 6.0 (5.5 to 6.5) | loss 1 | loss 2 |\n| long |" in made
    assert "0.50 (5.5" in made
    assert made.endswith("- said of 4 s")
