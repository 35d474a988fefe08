"""Checkpoints: all that a run needs to go on exactly where it stood.

    checkpoint-N/state.pt             trained weights, their average, optimiser, scaler, random generators
                 trainer_state.json   as transformers writes it
                 loop_state.json      `LoopState`; written last, so that a folder without it is half of one

What is not trained is read from the base model again.
"""

from __future__ import annotations

import shutil
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from accelerate.utils import gather_object

from voxloop.errors import TrainingError
from voxloop.steps.training.files import LOOP_STATE, sync, whole_checkpoints, write_json

if TYPE_CHECKING:
    from voxloop.steps.training.journal import Journal
    from voxloop.steps.training.session import Session

STATE = "state.pt"


def newest_checkpoint(folder: Path) -> Path | None:
    """The newest whole checkpoint; those cut off by a kill are removed."""
    whole = whole_checkpoints(folder)
    for checkpoint in set(folder.glob("checkpoint-*")) - set(whole):
        shutil.rmtree(checkpoint, ignore_errors=True)  # another process may do the same
    return whole[-1] if whole else None


def save_checkpoint(session: Session, optimizer: Any, journal: Journal) -> None:
    """Write a checkpoint, then drop the oldest beyond what the recipe keeps. Every process calls it, one writes."""
    accelerator = session.accelerator
    generators = {"cpu": torch.get_rng_state()}
    if accelerator.device.type == "cuda":
        generators["cuda"] = torch.cuda.get_rng_state()
    random = gather_object([generators])
    if not accelerator.is_main_process:
        return
    folder = session.folder / f"checkpoint-{journal.step}"
    folder.mkdir(exist_ok=True)
    state = {
        "weights": {name: weight.detach() for name, weight in session.trained()},
        "average": session.average.state_dict() if session.average else None,
        "ctc": session.ctc.linear.state_dict() if session.ctc else None,
        "optimizer": optimizer.state_dict(),
        "scaler": accelerator.scaler.state_dict() if accelerator.scaler else None,
        "random": random,
    }
    with (folder / STATE).open("wb") as file:  # an open file would hold a full disk's room
        torch.save(state, file)
    journal.save(folder)
    sync(folder)
    session.progress.elapsed_s = session.elapsed_s
    write_json(folder / LOOP_STATE, asdict(session.progress))
    # Only now: with the new one whole there is always one to go on from.
    for old in whole_checkpoints(session.folder)[: -session.recipe.keep_checkpoints]:
        (old / LOOP_STATE).unlink()
        shutil.rmtree(old)


def load_checkpoint(checkpoint: Path, session: Session, optimizer: Any, journal: Journal) -> None:
    """Go on from a checkpoint. Raises TrainingError for one that an earlier version wrote."""
    if not (checkpoint / STATE).exists():
        run = session.config.run
        raise TrainingError(
            f"{checkpoint.name} was written by an earlier version of Voxloop and cannot be read. Keep the best model "
            f"so far with `voxloop run stop {run}`, or train from the beginning with `voxloop run retry {run}`"
        )
    state = torch.load(checkpoint / STATE, map_location="cpu", weights_only=True)
    with torch.no_grad():
        for name, weight in session.trained():
            weight.copy_(state["weights"][name])
    if session.average:
        session.average.load_state_dict(state["average"])
    if session.ctc:
        session.ctc.linear.load_state_dict(state["ctc"])
    optimizer.load_state_dict(state["optimizer"])
    accelerator = session.accelerator
    if accelerator.scaler and state["scaler"]:
        accelerator.scaler.load_state_dict(state["scaler"])
    journal.load(checkpoint)
    if accelerator.process_index < len(state["random"]):  # else there were fewer processes then
        generators = state["random"][accelerator.process_index]
        torch.set_rng_state(generators["cpu"])
        if accelerator.device.type == "cuda" and "cuda" in generators:
            torch.cuda.set_rng_state(generators["cuda"])
