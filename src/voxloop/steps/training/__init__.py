"""The train step: a dataset and a base model in, a registered model out; the work is done by a child process.

    submit.py ──► queue ──► runs.py ──► run folder: data/, training_config.json ──► child.py ──► trainer.py
                              ▲                                                         │
                              ├── control.py follows metrics.jsonl and status.json ◄────┘
                              ├── telemetry.py ──► catalog: metrics, log ──► whoever looks, from anywhere
                              └── moving.py ◄──► blob store: the newest checkpoint ◄──► another machine

`runs.py` has the states of a run and who may change them, `recipes.py` says how it is trained, `material.py`,
`batches.py` and `augment.py` what is heard. `trainer.py` has the loop itself, `journal.py` what it tells,
`checkpoints.py` what it goes on from. Importing this package loads no torch.
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
