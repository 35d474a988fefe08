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

EVENTS: Mapping[str, str] = {
    "recording.ingested": "A recording was stored that was not known before.",
    "recording.described": "A text or segments were given for a recording that was known already.",
    "recording.corrected": "What is said of a known recording was corrected; the payload names the fields.",
    "recording.rejected": "A file was refused at ingest; the payload has the reason.",
    "recording.segmented": "A recording was cut into utterances, or its utterances were cut anew.",
    "recording.speechless": "No speech was found in a recording when it was cut, so it has no utterances.",
    "recording.forgotten": "A recording was removed, and all that was made of it.",
    "speaker.forgotten": "All recordings of a speaker were removed, and all that was made of them.",
    "transcription.asked": "A recording is to be transcribed again, by another model than before.",
    "transcription.completed": "A recording's utterances were transcribed; the payload names the model.",
    "nlp.postprocessed": "A recording's hypotheses were restored to clean text.",
    "utterance.reviewed": "A person saved, accepted, imported or rejected a text, or undid that.",
    "utterance.aligned": "An utterance got its part of the text that a long recording came with.",
    "review.prioritised": "The order of the review queue was computed.",
    "dataset.new_sample": "An utterance was given a reference.",
    "dataset.frozen": "A dataset was built; the payload has its name and counts by split.",
    "dataset.renamed": "A dataset was given another name, which the payload has with the one before.",
    "dataset.deleted": "A dataset was deleted, with the evaluations on it.",
    "training.queued": "A run waits for its turn: it is new, or it is to continue.",
    "training.started": "A run's process was started.",
    "training.progress": "A run wrote how far it is: step, loss, word error rate on val.",
    "training.paused": "A run was paused on request.",
    "training.interrupted": "A run's processes died without a word; it can be continued.",
    "training.stopped": "A run was stopped for good before its end, without a model.",
    "training.failed": "A run failed; the payload has the error.",
    "training.completed": "A run ended; the payload names its model, or none where it made its base no better.",
    "run.deleted": "A run was deleted, with its log, metrics and folder.",
    "model.evaluated": "A model was measured on a split of a dataset; the payload has the scores.",
    "model.compared": "The gate compared a model with the one that holds the alias; the payload has its evidence.",
    "model.tried": "An attempt to promote was charged to the gate's ledger; the payload has its p-value and its limit.",
    "model.promoted": "An alias moved to a model; the payload has the verdict.",
    "model.rolled_back": "An alias moved back to the model that held it before.",
    "model.renamed": "A model was given a name, which the payload has.",
    "model.deleted": "A model was deleted, with its evaluations and files.",
    "serving.changed": "A running server took a new champion into use, after a try on some test clips.",
    "serving.refused": "A running server kept its model: the new champion could not be loaded, or failed its try.",
}
"""Every event that is emitted, in one sentence. Its subject is the id of the record that it is about; a path for
`recording.rejected`, and the removal's id for what was forgotten."""

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
    share: float = 0.0
    """Of the time that a second of audio takes through the whole loop, what this step takes: told progress is even."""
    leads_to: tuple[str, ...] = ()
    """The steps that its events wake which take a share of the time."""


STEPS: Mapping[str, Step] = {
    "segment": Step(utterances.segment, batch=16, share=0.1, leads_to=("transcribe",)),
    "transcribe": Step(transcripts.transcribe, batch=64, share=0.8, leads_to=("index",)),
    "restore": Step(transcripts.restore, batch=64, leads_to=("index",)),
    "align": Step(alignment.align, batch=64),
    "index": Step(similarity.index, batch=64, share=0.1),
    "rank": Step(review.rank, batch=1),
    "train": Step(training.work, batch=1, free=training.device_free),
}


def share_ahead(step: str) -> float:
    """The share of the loop's time that still lies ahead of audio which waits for a step."""
    return STEPS[step].share + sum(share_ahead(next) for next in STEPS[step].leads_to)


def open_loop(folder: Path, *, create: bool = False, **settings: Any) -> Workspace:
    """Open a workspace whose events wake the steps above."""
    return open_workspace(
        folder, listeners=LISTENERS, priorities=PRIORITIES, coalesced=COALESCED, create=create, **settings
    )
