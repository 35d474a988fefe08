"""The next step after a verdict of the gate, in words, with a larger base that fits this machine."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from voxloop import bases, models
from voxloop.records import Model
from voxloop.steps.gate.comparison import NO_BETTER

if TYPE_CHECKING:
    from voxloop.workspace import Workspace


def spelled_out(ws: Workspace, next_step: str, model: str) -> str:
    """The gate's advice on `model`, naming the larger base that this machine can fine-tune."""
    if NO_BETTER not in next_step:
        return next_step
    with ws.read() as reader:
        folder = Path(models.model_folder(ws, reader.get(Model, model), checked=False))
    found = bases.larger(ws, folder)
    if found is None:
        return next_step.replace(NO_BETTER, "Train on more speech; no known larger base fits this machine.")
    name, weights = found
    named = (
        f"Train on more speech, or fine-tune a larger base: `voxloop train --base {name}` "
        f"({weights / 1e6:.0f} M parameters)."
    )
    return next_step.replace(NO_BETTER, named)
