"""Forget what was taken in of a speaker or as a recording; delete models, runs and datasets that nothing needs."""

from voxloop.maintenance.removal.deleting import Deleted, delete_dataset, delete_model, delete_run
from voxloop.maintenance.removal.finishing import clean_run_data, redact_dataset, redacted, resume, unfinished
from voxloop.maintenance.removal.forgetting import Marked, Removal, alive, forget

__all__ = [
    "Deleted",
    "Marked",
    "Removal",
    "alive",
    "clean_run_data",
    "delete_dataset",
    "delete_model",
    "delete_run",
    "forget",
    "redact_dataset",
    "redacted",
    "resume",
    "unfinished",
]
