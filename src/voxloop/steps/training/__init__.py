"""The train step: a dataset and a base model in, a registered model out; the work is done by a child process.

    submit.py ──► queue ──► runs.py ──► run folder: data/, training_config.json ──► child.py ──► trainer.py
                              ▲                                                         │
                              └── control.py follows metrics.jsonl and status.json ◄────┘

`runs.py` has the states of a run and who may change them, `recipes.py` says how it is trained, `material.py`,
`batches.py` and `augment.py` what is heard. `trainer.py` has the loop itself, `journal.py` what it tells,
`checkpoints.py` what it goes on from. Importing this package loads no torch.
"""

from __future__ import annotations

from voxloop.steps.training.control import metrics
from voxloop.steps.training.disk import parameters
from voxloop.steps.training.runs import (
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
    train,
    unlearn,
    work,
)
from voxloop.steps.training.submit import submit, suggest

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
