"""The train step: from a dataset and a base model to a registered model. A child process does the training.

    submit.py ──► queue ──► runs.py ──► run folder: data/, training_config.json ──► child.py ──► trainer.py
                              ▲                                                         │
                              ├── control.py follows metrics.jsonl and status.json ◄────┘
                              ├── telemetry.py ──► catalog: metrics, log ──► whoever looks, from anywhere
                              └── moving.py ◄──► blob store: the newest checkpoint ◄──► another machine

`runs.py` has the states of a run and their transitions, `listing.py` how it stands, `recipes.py` the settings.
`asking.py` turns what people ask for into a recipe and, if they want one, a new dataset. `material.py`, `batches.py`
and `augment.py` make the training data. `trainer.py` has the training loop, `journal.py` its metrics and log, and
`checkpoints.py` saves and resumes. Importing this package does not load torch.
"""

from __future__ import annotations

from voxloop.steps.training.asking import TrainingProposal, TrainingRequest, as_overrides, propose, start
from voxloop.steps.training.disk import parameters
from voxloop.steps.training.listing import RunStanding, current, listed, standing
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
from voxloop.steps.training.telemetry import log_after, metrics, metrics_after

__all__ = [
    "QueuePosition",
    "RunStanding",
    "TrainingProposal",
    "TrainingRequest",
    "as_overrides",
    "attended",
    "begin_anew",
    "current",
    "device_free",
    "device_lock",
    "find",
    "give_up_copy",
    "listed",
    "log_after",
    "metrics",
    "metrics_after",
    "named_blobs",
    "names_blob",
    "parameters",
    "pause",
    "place",
    "propose",
    "reconcile",
    "resume",
    "retry",
    "see_through",
    "standing",
    "start",
    "stop",
    "submit",
    "suggest",
    "suited",
    "train",
    "unlearn",
    "work",
]
