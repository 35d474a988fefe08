"""CTC beside cross-entropy: its loss by hand, its classes, and that it goes on where it stopped."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
import torch

from tests.unit import tiny_whisper
from voxloop.families.whisper import WHISPER
from voxloop.steps.training import ctc


def letters(text: str) -> list[int]:
    return [ord(letter) for letter in text]


def test_every_token_of_a_string_has_a_class() -> None:
    known = ctc.classes(["ab", "cb"], letters)
    assert known == {ord(" "): 1, ord("a"): 2, ord("b"): 3, ord("c"): 4}
    assert ctc.targets(["ab cb", "b", ""], letters, known).tolist() == [[2, 3, 1, 4, 3], [3, 0, 0, 0, 0], [0] * 5]


def collapsed(path: tuple[int, ...]) -> list[int]:
    return [label for label, _ in itertools.groupby(path) if label != ctc.BLANK]


def test_the_loss_is_that_of_all_paths_that_spell_the_text() -> None:
    torch.manual_seed(1)
    head = ctc.Head(4, 2, weight=0.5)
    torch.nn.init.normal_(head.linear.weight)
    states = torch.randn(2, 5, 4)
    chances = head.linear(states).softmax(dim=-1)
    texts, positions = [[1, 2], [1, 1]], [5, 4]
    expected = 0.0
    for row, text in enumerate(texts):
        paths = (path for path in itertools.product(range(3), repeat=positions[row]) if collapsed(path) == text)
        total = sum(torch.stack([chances[row, e, label] for e, label in enumerate(path)]).prod() for path in paths)
        expected -= float(torch.log(torch.as_tensor(total)))
    found = head.loss(states, torch.tensor(texts), torch.tensor([2, 2]), torch.tensor(positions))
    assert float(found) == pytest.approx(0.5 * expected, rel=1e-4)


def test_a_new_head_pushes_nothing_and_a_text_too_long_teaches_nothing() -> None:
    head = ctc.Head(4, 2, weight=1.0)
    states = torch.randn(1, 3, 4, requires_grad=True)
    head.loss(states, torch.tensor([[1, 2]]), torch.tensor([2]), torch.tensor([3])).backward()
    assert states.grad is not None
    assert not states.grad.any()
    assert head.linear.weight.grad is not None
    assert head.linear.weight.grad.any()
    assert float(head.loss(states, torch.tensor([[1, 2, 1, 2]]), torch.tensor([4]), torch.tensor([3]))) == 0.0


class TestWhisper:
    @pytest.fixture(scope="class")
    @staticmethod
    def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
        return tiny_whisper.make(tmp_path_factory.mktemp("m") / "model")

    def test_positions_are_those_that_the_encoder_makes(self, folder: Path) -> None:
        trainable = WHISPER.open_for_training(folder, audio_context="trimmed")
        import numpy as np

        clips = [np.zeros(16_000, np.float32), np.zeros(30_000, np.float32)]
        batch = WHISPER.collate(trainable, clips, ["a", "b"], ["en", "en"])
        alone = WHISPER.collate(trainable, clips[:1], ["a"], ["en"])
        positions = WHISPER.encoder_positions(batch).tolist()
        with torch.inference_mode():
            states = trainable.model.model.encoder(batch["input_features"], attention_mask=batch["attention_mask"])
        assert positions[1] == states.last_hidden_state.shape[1]
        assert states.last_hidden_state.shape[2] == WHISPER.encoder_width(trainable)
        assert [positions[0]] == WHISPER.encoder_positions(alone).tolist()

    def test_layers_are_counted_from_the_top(self, folder: Path) -> None:
        trainable = WHISPER.open_for_training(folder, audio_context="trimmed")
        above = {name: WHISPER.layers_above(trainable, name) for name, _ in trainable.model.named_parameters()}
        assert above["model.encoder.layers.1.fc1.weight"] == 0
        assert above["model.encoder.layers.0.fc1.weight"] == 1
        assert above["model.encoder.conv1.weight"] == 2
        assert above["model.encoder.layer_norm.weight"] == 0
        assert above["model.decoder.layers.0.encoder_attn.q_proj.weight"] == 1
        assert above["model.decoder.embed_tokens.weight"] == 2
        adapter = "base_model.model.model.decoder.layers.0.fc1.lora_A.default.weight"
        assert WHISPER.layers_above(trainable, adapter) == 1
