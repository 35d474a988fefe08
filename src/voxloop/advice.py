"""What to do after a verdict of the gate, in words; where a larger base would help, which one fits this machine."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from voxloop import bases, models
from voxloop.records import Model
from voxloop.steps.gate.comparison import NO_BETTER

if TYPE_CHECKING:
    from voxloop.workspace import Workspace


def spelled_out(ws: Workspace, next_step: str, model: str) -> str:
    """The gate's advice on `model`; of larger bases in general, the one that this machine can tune is named."""
    if NO_BETTER not in next_step:
        return next_step
    with ws.read() as reader:
        folder = Path(models.model_folder(ws, reader.get(Model, model), checked=False))
    found = bases.larger(ws, folder)
    if found is None:
        return next_step.replace(NO_BETTER, "Train on more speech; no larger base is known that fits this machine.")
    name, weights = found
    named = (
        f"Train on more speech, or tune a larger base: `voxloop train --base {name}` ({weights / 1e6:.0f} M weights)."
    )
    return next_step.replace(NO_BETTER, named)
