"""The loss behind the output layer, against torch's own."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch.nn import functional

from tests.unit import tiny_whisper
from voxloop.families import whisper
from voxloop.families.whisper import output


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("at_once", [1, 3, 100])
@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16])
def test_loss_and_gradients_are_those_of_torch(
    smoothing: float, at_once: int, kind: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    generator = torch.Generator().manual_seed(1)
    hidden = torch.randn(7, 16, generator=generator, requires_grad=True)
    weight = torch.randn(40, 16, generator=generator, requires_grad=True)
    answers = torch.randint(0, 40, (7,), generator=generator)
    monkeypatch.setattr(output, "CPU_BYTES", at_once * 4 * 40)
    with torch.autocast("cpu", kind, enabled=kind is not torch.float32):
        logits = functional.linear(hidden, weight)
        expected = functional.cross_entropy(logits.float(), answers, label_smoothing=smoothing, reduction="sum")
        found = output.cross_entropy(hidden, weight, answers, smoothing)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    near = {"rtol": 1e-4, "atol": 1e-5} if kind is torch.float32 else {"rtol": 0.05, "atol": 0.05}
    for one, other in zip(
        torch.autograd.grad(found * 0.3, (hidden, weight)),
        torch.autograd.grad(expected * 0.3, (hidden, weight)),
        strict=True,
    ):
        assert one.dtype == other.dtype
        torch.testing.assert_close(one, other, **near)


def test_a_weight_that_is_not_trained_gets_no_gradient() -> None:
    hidden, weight = torch.randn(3, 4, requires_grad=True), torch.randn(5, 4)
    output.cross_entropy(hidden, weight, torch.tensor([0, 4, 2]), 0.0).backward()
    assert weight.grad is None
    assert hidden.grad is not None
    assert torch.isfinite(hidden.grad).all()


def test_large_logits_stay_finite() -> None:
    hidden = torch.full((2, 4), 100.0, requires_grad=True)
    weight = torch.stack([torch.full((4,), value) for value in (100.0, -100.0, 99.0)])
    loss = output.cross_entropy(hidden, weight, torch.tensor([0, 2]), 0.1)
    loss.backward()
    assert torch.isfinite(loss)
    assert hidden.grad is not None
    assert torch.isfinite(hidden.grad).all()


def test_what_is_saved_names_the_stock_class(tmp_path: Path) -> None:
    base = tiny_whisper.make(tmp_path / "base")
    trainable = whisper.WHISPER.open_for_training(base, audio_context="trimmed")
    whisper.WHISPER.save(trainable, trainable.model, tmp_path / "saved")
    assert '"WhisperForConditionalGeneration"' in (tmp_path / "saved" / "config.json").read_text()
