"""The automatic loop on one page: which event wakes which step.

    recording.ingested ──► segment ──► recording.segmented (transcription.asked) ──► transcribe
        ──► transcription.completed ──► restore ──► nlp.postprocessed ──► index
                                    └─► align (a long recording's given text)

    training.queued ──► train

What follows is a person's decision in this version, made from the command line:
review, freeze a dataset, train, evaluate, promote.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from voxloop.steps import alignment, similarity, training, transcripts, utterances
from voxloop.workspace import Workspace, open_workspace

LISTENERS: Mapping[str, tuple[str, ...]] = {
    "recording.ingested": ("segment",),
    "recording.described": ("segment",),  # a text or segments for audio that is known already
    "recording.segmented": ("transcribe",),
    "transcription.asked": ("transcribe",),  # again, by a new champion
    "transcription.completed": ("restore", "align"),
    "nlp.postprocessed": ("index",),
    "training.queued": ("train",),
}


@dataclass(frozen=True, slots=True)
class Step:
    """A step of the loop: what it does with the subjects of a batch of jobs."""

    run: Callable[[Workspace, Sequence[str]], Any]
    batch: int  # jobs taken at once: large where a batch is cheaper than its parts
    free: Callable[[Workspace], bool] = lambda _: True  # whether this machine can take one now


STEPS: Mapping[str, Step] = {
    "segment": Step(utterances.segment, batch=16),
    "transcribe": Step(transcripts.transcribe, batch=64),
    "restore": Step(transcripts.restore, batch=64),
    "align": Step(alignment.align, batch=64),
    "index": Step(similarity.index, batch=64),
    "train": Step(training.work, batch=1, free=training.device_free),
}


def open_loop(folder: Path, *, create: bool = False, **settings: Any) -> Workspace:
    """Open a workspace whose events wake the steps above."""
    return open_workspace(folder, listeners=LISTENERS, create=create, **settings)
