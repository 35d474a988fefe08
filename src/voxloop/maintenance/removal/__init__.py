"""Forget: what was taken in of a speaker or as a recording goes again, everywhere that this workspace reaches."""

from voxloop.maintenance.removal.finishing import clean_run_data, redact_dataset, redacted, resume, unfinished
from voxloop.maintenance.removal.forgetting import Marked, Removal, alive, forget

__all__ = [
    "Marked",
    "Removal",
    "alive",
    "clean_run_data",
    "forget",
    "redact_dataset",
    "redacted",
    "resume",
    "unfinished",
]
