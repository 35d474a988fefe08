"""The automatic loop on one page: which event starts which step.

    recording.ingested ──► segment ──► recording.segmented (transcription.asked) ──► transcribe
        ──► transcription.completed ──► restore ──► nlp.postprocessed ──► index
                                    └─► align (a long recording's given text)

    nlp.postprocessed, utterance.reviewed ──► rank (reorders the review queue; one job for the whole queue)

    training.queued ──► train

In this version, people start the other stages from the command line: review, build a
dataset, train, evaluate, promote.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from voxloop.steps import alignment, review, similarity, training, transcripts, utterances
from voxloop.workspace import Workspace, open_workspace

EVENTS: Mapping[str, str] = {
    "recording.ingested": "A new recording was stored.",
    "recording.described": "A known recording received a text or segments.",
    "recording.corrected": "A known recording's metadata was corrected; the payload names the fields.",
    "recording.rejected": "A file was refused at ingest; the payload has the reason.",
    "recording.segmented": "A recording was split into utterances, for the first time or again.",
    "recording.speechless": "No speech was found in a recording, so it has no utterances.",
    "recording.forgotten": "A recording and everything made from it were removed.",
    "speaker.forgotten": "All recordings of a speaker and everything made from them were removed.",
    "recording.captured": "The server kept what a client sent; the payload names the client.",
    "capture.expired": "Captured recordings that nobody reviewed in time were removed; the payload counts them.",
    "consent.given": "A speaker consented; the payload has the purposes and the version of the text.",
    "consent.withdrawn": "A speaker withdrew consent; the payload has the purposes.",
    "phrases.changed": "The workspace's list of phrases to read aloud was replaced for a language.",
    "transcription.asked": "A recording is to be transcribed again by another model.",
    "transcription.completed": "A recording's utterances were transcribed; the payload names the model.",
    "nlp.postprocessed": "Punctuation and case of a recording's hypotheses were restored.",
    "utterance.reviewed": "A reviewer saved, accepted, imported, rejected or deleted a text, or undid that.",
    "utterance.described": "A reviewer corrected an utterance's speaker or language.",
    "utterance.forgotten": "Deleted utterances were erased with everything made from them.",
    "utterance.aligned": "An utterance received its part of a long recording's given text.",
    "review.prioritised": "The review queue was reordered.",
    "dataset.new_sample": "An utterance received a reference.",
    "dataset.frozen": "A dataset was built; the payload has its name and the number of clips per split.",
    "dataset.renamed": "A dataset was renamed; the payload has the new and the old name.",
    "dataset.deleted": "A dataset and the evaluations on it were deleted.",
    "training.queued": "A run was queued, to start or to continue.",
    "training.started": "A run's process started.",
    "training.progress": "A run reported its progress: step, loss, val word error rate.",
    "training.paused": "A run was paused on request.",
    "training.interrupted": "A run's processes died; it can be resumed.",
    "training.stopped": "A run was stopped early without a model; it cannot be resumed.",
    "training.failed": "A run failed; the payload has the error.",
    "training.completed": "A run finished; the payload names its model, or none if it is no better than its base.",
    "run.deleted": "A run was deleted with its log, metrics and folder.",
    "model.evaluated": "A model was evaluated on a split of a dataset; the payload has the scores.",
    "model.compared": "The gate compared a model with the one behind the alias; the payload has the evidence.",
    "model.tried": "A promotion attempt was entered in the gate's ledger; the payload has the p-value and its limit.",
    "model.promoted": "An alias moved to a model; the payload has the verdict.",
    "model.rolled_back": "An alias moved back to its previous model.",
    "model.renamed": "A model was named; the payload has the name.",
    "model.deleted": "A model was deleted with its evaluations and files.",
    "serving.changed": "A running server started to use a new champion, after trying it on test clips.",
    "serving.refused": "A running server kept its model because the new champion failed to load or failed its trial.",
}
"""Every event, in one sentence. An event's subject is the id of the record it is about, except that it is the file's
path for `recording.rejected` and the removal's id for forgotten recordings and speakers."""

LISTENERS: Mapping[str, tuple[str, ...]] = {
    "recording.ingested": ("segment",),
    "recording.described": ("segment",),  # a text or segments for known audio
    "recording.segmented": ("transcribe",),
    "transcription.asked": ("transcribe",),  # by a new champion
    "transcription.completed": ("restore", "align"),
    "nlp.postprocessed": ("index", "rank"),
    "utterance.reviewed": ("rank",),
    "training.queued": ("train",),
}

COALESCED = ("rank",)  # steps with at most one waiting job, however many events ask for it

# The priority of an event's jobs; 0 unless listed. Jobs caused by a job inherit its priority.
LIVE = 20  # for `emit(priority=...)`: speech that somebody is waiting for now
PRIORITIES: Mapping[str, int] = {
    "utterance.reviewed": 10,  # a person is working on it
    "transcription.asked": -10,  # everything is transcribed again by a new champion
}


@dataclass(frozen=True, slots=True)
class Step:
    """A step of the loop."""

    run: Callable[[Workspace, Sequence[str]], Any]
    batch: int  # maximum number of jobs per claim (within `CLAIM_S` of audio)
    free: Callable[[Workspace], bool] = lambda _: True  # whether this machine can take a job now
    share: float = 0.0
    """This step's share of the time that the whole loop needs for a second of audio, so that progress is even."""
    leads_to: tuple[str, ...] = ()
    """The steps that follow it and also take a share of the time."""


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
    """The share of the loop's time that is left for audio waiting for a step."""
    return STEPS[step].share + sum(share_ahead(next) for next in STEPS[step].leads_to)


def open_loop(folder: Path, *, create: bool = False, **settings: Any) -> Workspace:
    """Open a workspace whose events start the steps above."""
    return open_workspace(
        folder, listeners=LISTENERS, priorities=PRIORITIES, coalesced=COALESCED, create=create, **settings
    )
