"""Cross-entropy right behind the output layer: a batch's logits are held once, and become their own gradient.

Logits over 51,865 tokens are the largest tensor of a step on short clips, and cross-entropy as a function of its own
holds four of that size: them, their softmax, and the gradients of both. Here the gradient is computed with the loss
and in place, and what a large batch has too many of is done in parts (as by Hsu et al., arXiv:2410.10989).

Letters in shapes: `N` label tokens of all clips together, `D` width, `V` vocabulary.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.autograd.function import once_differentiable
from torch.nn import functional

CPU_BYTES = 64 << 20  # of logits at once: more are done in parts, each of which goes through the whole gradient
GPU_BYTES = 1 << 30


def cross_entropy(hidden: torch.Tensor, weight: torch.Tensor, answers: torch.Tensor, smoothing: float) -> torch.Tensor:
    """The summed loss of hidden states (N, D), by an output layer (V, D), for the tokens (N,) that are right.

    `smoothing` is the share of the probability that is spread over all tokens (arXiv:1512.00567).
    """
    found: torch.Tensor = _CrossEntropy.apply(hidden, weight, answers, smoothing)  # type: ignore[no-untyped-call]
    return found


class _CrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: torch.Tensor, weight: torch.Tensor, answers: torch.Tensor, smoothing: float
    ) -> torch.Tensor:
        at_once = max(1, (GPU_BYTES if hidden.is_cuda else CPU_BYTES) // (4 * len(weight)))
        total = torch.zeros((), device=hidden.device)
        by_hidden: list[torch.Tensor] = []
        by_weight: torch.Tensor | None = None
        for begin in range(0, len(hidden), at_once):
            states, right = hidden[begin : begin + at_once], answers[begin : begin + at_once, None]
            logits = functional.linear(states, weight).float()
            loss, gradient = _in_place(logits, right, smoothing)
            total += loss
            if ctx.needs_input_grad[0]:
                by_hidden.append(gradient @ weight)
            if ctx.needs_input_grad[1]:
                part = (gradient.T @ states).to(weight.dtype)
                by_weight = part if by_weight is None else by_weight.add_(part)
        ctx.by_hidden = torch.cat(by_hidden).to(hidden.dtype) if by_hidden else None
        ctx.by_weight = by_weight
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, scale: torch.Tensor) -> tuple[torch.Tensor | None, torch.Tensor | None, None, None]:
        by_hidden, by_weight = ctx.by_hidden, ctx.by_weight
        # Nobody else may hold the weight's: to it the gradient of the token embedding, the same weight, is added.
        del ctx.by_hidden, ctx.by_weight
        for gradient in (by_hidden, by_weight):
            if gradient is not None:
                gradient.mul_(scale)
        return by_hidden, by_weight, None, None


def _in_place(logits: torch.Tensor, right: torch.Tensor, smoothing: float) -> tuple[torch.Tensor, torch.Tensor]:
    """The summed loss of logits (N, V), and in their place its gradient: their softmax less the right shares."""
    chosen = logits.gather(1, right)
    spread = smoothing * logits.mean(dim=1, keepdim=True) if smoothing else 0.0
    peak = logits.amax(dim=1, keepdim=True)
    gradient = logits.sub_(peak).exp_()
    norm = gradient.sum(dim=1, keepdim=True)
    loss = (norm.log() + peak - (1 - smoothing) * chosen - spread).sum()
    gradient.div_(norm)
    if smoothing:
        gradient.sub_(smoothing / logits.shape[1])
    gradient.scatter_add_(1, right, torch.full_like(chosen, smoothing - 1))
    return loss, gradient
