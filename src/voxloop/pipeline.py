"""The automatic loop on one page: which event wakes which step.

    recording.ingested ──► segment ──► recording.segmented (transcription.asked) ──► transcribe
        ──► transcription.completed ──► restore ──► nlp.postprocessed ──► index
                                    └─► align (a long recording's given text)

    nlp.postprocessed, utterance.reviewed ──► rank (the order of review, one job for all that waits)

    training.queued ──► train

What follows is a person's decision in this version, made from the command line:
review, freeze a dataset, train, evaluate, promote.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from voxloop.steps import alignment, review, similarity, training, transcripts, utterances
from voxloop.workspace import Workspace, open_workspace

LISTENERS: Mapping[str, tuple[str, ...]] = {
    "recording.ingested": ("segment",),
    "recording.described": ("segment",),  # a text or segments for audio that is known already
    "recording.segmented": ("transcribe",),
    "transcription.asked": ("transcribe",),  # again, by a new champion
    "transcription.completed": ("restore", "align"),
    "nlp.postprocessed": ("index", "rank"),
    "utterance.reviewed": ("rank",),
    "training.queued": ("train",),
}

COALESCED = ("rank",)  # steps of which one job waits at most, whatever the number of events

# Jobs of an event are as urgent as this, 0 where it is not named; what a job causes is as urgent as the job.
LIVE = 20  # for `emit(priority=...)`: speech that somebody waits for now
PRIORITIES: Mapping[str, int] = {
    "utterance.reviewed": 10,  # a person is at work
    "transcription.asked": -10,  # everything again, by a new champion
}


@dataclass(frozen=True, slots=True)
class Step:
    """A step of the loop: what it does with the subjects of a batch of jobs."""

    run: Callable[[Workspace, Sequence[str]], Any]
    batch: int  # jobs taken at once (within `CLAIM_S` of audio): large where a batch is cheaper than its parts
    free: Callable[[Workspace], bool] = lambda _: True  # whether this machine can take one now


STEPS: Mapping[str, Step] = {
    "segment": Step(utterances.segment, batch=16),
    "transcribe": Step(transcripts.transcribe, batch=64),
    "restore": Step(transcripts.restore, batch=64),
    "align": Step(alignment.align, batch=64),
    "index": Step(similarity.index, batch=64),
    "rank": Step(review.rank, batch=1),
    "train": Step(training.work, batch=1, free=training.device_free),
}


def open_loop(folder: Path, *, create: bool = False, **settings: Any) -> Workspace:
    """Open a workspace whose events wake the steps above."""
    return open_workspace(
        folder, listeners=LISTENERS, priorities=PRIORITIES, coalesced=COALESCED, create=create, **settings
    )
