"""Forget speakers and recordings; delete models, runs and datasets that are not in use."""

from voxloop.maintenance.removal.deleting import Deleted, delete_dataset, delete_model, delete_run
from voxloop.maintenance.removal.erasing import erase_deleted
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
    "erase_deleted",
    "forget",
    "redact_dataset",
    "redacted",
    "resume",
    "unfinished",
]
