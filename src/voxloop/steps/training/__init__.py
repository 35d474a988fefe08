"""The train step: from a dataset and a base model to a registered model. A child process does the training.

    submit.py ──► queue ──► runs.py ──► run folder: data/, training_config.json ──► child.py ──► trainer.py
                              ▲                                                         │
                              ├── control.py follows metrics.jsonl and status.json ◄────┘
                              ├── telemetry.py ──► catalog: metrics, log ──► whoever looks, from anywhere
                              └── moving.py ◄──► blob store: the newest checkpoint ◄──► another machine

`runs.py` has the states of a run and their transitions, `recipes.py` the settings; `material.py`, `batches.py` and
`augment.py` make the training data. `trainer.py` has the training loop, `journal.py` its metrics and log, and
`checkpoints.py` saves and resumes. Importing this package does not load torch.
"""

from __future__ import annotations

from voxloop.steps.training.disk import parameters
from voxloop.steps.training.moving import give_up_copy, named_blobs, names_blob, place
from voxloop.steps.training.runs import (
    QueuePosition,
    attended,
    begin_anew,
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
from voxloop.steps.training.submit import submit, suggest, suited
from voxloop.steps.training.telemetry import log_after, metrics

__all__ = [
    "QueuePosition",
    "attended",
    "begin_anew",
    "device_free",
    "device_lock",
    "find",
    "give_up_copy",
    "log_after",
    "metrics",
    "named_blobs",
    "names_blob",
    "parameters",
    "pause",
    "place",
    "reconcile",
    "resume",
    "retry",
    "see_through",
    "stop",
    "submit",
    "suggest",
    "suited",
    "train",
    "unlearn",
    "work",
]
