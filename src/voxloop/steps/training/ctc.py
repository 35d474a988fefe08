"""Auxiliary CTC loss: a linear head on the encoder's output, used in training and then discarded.

The decoder alone is slow to learn the alignment of text and audio; a loss on the
encoder teaches it (Watanabe, Hori, Kim: arXiv:1609.06773; CTC: Graves et al. 2006).
The head covers only the tokens of the training texts, so it stays small with any
vocabulary.

Letters in shapes: `B` batch, `E` encoder positions, `D` width, `C` classes, `U` tokens of a text.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

import torch
from torch import nn
from torch.nn import functional

BLANK = 0  # class of "no token here"
INPUTS = ("ctc_targets", "ctc_lengths", "ctc_positions")  # what a batch brings for it beside the model's own inputs


def classes(texts: Iterable[str], tokens: Callable[[str], Sequence[int]]) -> dict[int, int]:
    """A class for every token of the texts, from 1, including tokens after a space, as in strings."""
    found = {token for text in texts for form in (text, f" {text}") for token in tokens(form)}
    return {token: number for number, token in enumerate(sorted(found), 1)}


def targets(texts: Sequence[str], tokens: Callable[[str], Sequence[int]], known: Mapping[int, int]) -> torch.Tensor:
    """The classes of each text as (B, U), padded with the blank. Unknown tokens are left out."""
    rows = [torch.tensor([known[token] for token in tokens(text) if token in known]) for text in texts]
    return nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=BLANK).long()


class Head:
    """The linear layer from encoder states to classes, and its loss. Not a part of the model that is saved."""

    def __init__(self, width: int, classes: int, weight: float) -> None:
        self.linear = nn.Linear(width, classes + 1)
        self.weight = weight
        # From zero: what the encoder knows is not pushed about by a head that knows nothing.
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    def loss(
        self, states: torch.Tensor, targets: torch.Tensor, lengths: torch.Tensor, positions: torch.Tensor
    ) -> torch.Tensor:
        """The weighted sum over a batch, from states (B, E, D), targets (B, U), and how much of both is real (B,)."""
        with torch.autocast(states.device.type, enabled=False):
            scores = self.linear(states.float()).log_softmax(dim=-1).transpose(0, 1)
        # zero_infinity: a text that has more tokens than its sound has positions teaches nothing here.
        total = functional.ctc_loss(scores, targets, positions, lengths, BLANK, reduction="sum", zero_infinity=True)
        return self.weight * total
