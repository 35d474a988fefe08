"""The train step: a dataset and a base model in, a registered model out; the work is done by a child process.

    submit.py ──► queue ──► runs.py ──► run folder: data/, training_config.json ──► child.py ──► trainer.py
                              ▲                                                         │
                              └── control.py follows metrics.jsonl and status.json ◄────┘

`runs.py` has the states of a run and who may change them, `recipes.py` says how it is trained, `material.py`,
`batches.py` and `augment.py` what is heard. Importing this package loads no torch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from voxloop.records import Run
from voxloop.training.control import metrics
from voxloop.training.disk import parameters
from voxloop.training.runs import (
    Progress,
    Turn,
    attended,
    device_free,
    device_lock,
    find,
    pause,
    reconcile,
    resume,
    retry,
    see_through,
    stop,
    unlearn,
    work,
)
from voxloop.training.submit import submit, suggest

if TYPE_CHECKING:
    from voxloop.workspace import Workspace

__all__ = [
    "Turn",
    "attended",
    "device_free",
    "device_lock",
    "find",
    "metrics",
    "parameters",
    "pause",
    "reconcile",
    "resume",
    "retry",
    "see_through",
    "stop",
    "submit",
    "suggest",
    "train",
    "unlearn",
    "work",
]


def train(
    ws: Workspace,
    *,
    dataset: str | None = None,
    base: str | None = None,
    method: str | None = None,
    recipe: str | None = None,
    overrides: Sequence[str] = (),
    max_seconds: float | None = None,
    progress: Progress | None = None,
    waiting: Callable[[Turn], None] | None = None,
) -> Run:
    """Fine-tune a base model on a dataset's train split, and register the best model found.

    `dataset` is an id or a name (the newest one by default), `base` whatever
    `transcripts.base_model` knows, `recipe` a name (chosen by data and model by
    default), `overrides` are `key=value` settings of it. Waits while another run
    has the device. Else as `runs.see_through`.
    """
    run = submit(
        ws,
        dataset=dataset,
        base=base,
        method=method,
        recipe=recipe,
        overrides=overrides,
        max_seconds=max_seconds,
    )
    return see_through(ws, run.id, progress=progress, waiting=waiting)
