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

CPU_BYTES = 64 << 20  # of logits at once: more are done in parts, each of which goes through the whole gradient
GPU_BYTES = 1 << 30
CAST_BYTES = 8 << 20  # of weights in autocast's type at once; autocast itself would cast and keep all of them


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
        device = hidden.device.type
        kind = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else weight.dtype
        at_once = max(1, (GPU_BYTES if hidden.is_cuda else CPU_BYTES) // (4 * len(weight)))
        pieces = _pieces(weight, kind)
        total = torch.zeros((), device=hidden.device)
        by_hidden = torch.empty_like(hidden, dtype=torch.float32) if ctx.needs_input_grad[0] else None
        by_weight = torch.empty_like(weight) if ctx.needs_input_grad[1] else None
        with torch.autocast(device, enabled=False):
            for begin in range(0, len(hidden), at_once):
                tokens = slice(begin, begin + at_once)
                states = hidden[tokens].to(kind)
                logits = hidden.new_empty((len(states), len(weight)), dtype=torch.float32)
                for piece in pieces:
                    _multiply(states, weight[piece].to(kind).T, logits[:, piece])
                loss, gradient = _in_place(logits, answers[tokens, None], smoothing)
                total += loss
                for piece in pieces:
                    part = gradient[:, piece].to(kind)
                    if by_hidden is not None:
                        _multiply(part, weight[piece].to(kind), by_hidden[tokens], add=piece.start > 0)
                    if by_weight is not None:
                        _multiply(part.T, states, by_weight[piece], add=begin > 0)
        ctx.by_hidden = None if by_hidden is None else by_hidden.to(hidden.dtype)
        ctx.by_weight = by_weight
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, scale: torch.Tensor) -> tuple[torch.Tensor | None, torch.Tensor | None, None, None]:
        by_hidden, by_weight = ctx.by_hidden, ctx.by_weight
        # Nobody else may hold the weight's, or autograd copies it: it becomes `weight.grad` as it is.
        del ctx.by_hidden, ctx.by_weight
        for gradient in (by_hidden, by_weight):
            if gradient is not None:
                gradient.mul_(scale)
        return by_hidden, by_weight, None, None


def _pieces(weight: torch.Tensor, kind: torch.dtype) -> list[slice]:
    """Rows of the weight (V, D) that are used together."""
    rows = len(weight) if weight.is_cuda or weight.dtype == kind else max(1, CAST_BYTES // (2 * weight.shape[1]))
    return [slice(begin, begin + rows) for begin in range(0, len(weight), rows)]


def _multiply(left: torch.Tensor, right: torch.Tensor, out: torch.Tensor, *, add: bool = False) -> None:
    """The matrix product into `out`, whatever its type, or added to what it holds."""
    if out.dtype == left.dtype:
        out.addmm_(left, right, beta=int(add))
    elif add:
        out.add_(left @ right)
    else:
        out.copy_(left @ right)


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
