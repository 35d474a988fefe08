"""The API of models, datasets, recordings and speakers, and of usage and health.

Everybody who reviews may look; changing, deleting and forgetting is for administrators. Whoever changes a model or a
dataset may send the ETag that they saw as If-Match: if it has changed since, the answer is 412.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from fastapi import APIRouter, Depends, Header, Query, Request
from fastapi.responses import HTMLResponse, Response, StreamingResponse
from pydantic import BaseModel, Field

from voxloop import health
from voxloop.maintenance.naming import rename_dataset, rename_model
from voxloop.maintenance.removal import delete_dataset, delete_model, forget
from voxloop.records import Split, UtteranceStatus, plain
from voxloop.steps import consent, datasets, recordings, report
from voxloop.steps.evaluation.words import Change, differences
from voxloop.steps.gate import overview, promotion
from voxloop.steps.recordings import listing
from voxloop.web.access import Administrator
from voxloop.web.entries import IfMatch, Ws, byte_range, limited
from voxloop.web.problems import Problem
from voxloop.web.training import answered, check, served

if TYPE_CHECKING:
    from voxloop.records import Evaluation
    from voxloop.steps.gate.comparison import SideBySide
    from voxloop.workspace import Workspace

PART = 1 << 20  # bytes of audio that are read at a time
MOST_CHANGES = 100  # utterances better, and as many worse, in one answer
# A report is one file with its own style; nothing in it may run, and it asks for nothing.
REPORT_POLICY = "default-src 'none'; style-src 'unsafe-inline'; media-src data:; frame-ancestors 'none'; sandbox"

router = APIRouter(prefix="/api", dependencies=[Depends(limited)], tags=["models and data"])
IfNoneMatch = Annotated[str | None, Header()]


class Named(BaseModel):
    """A new name."""

    name: Annotated[str, Field(max_length=200)]

    model_config = {"json_schema_extra": {"examples": [{"name": "kitchen-2"}]}}


# Models ---------------------------------------------------------------------------------------------------------------


@router.get("/lineage")
def lineage(ws: Ws, if_none_match: IfNoneMatch = None) -> Response:
    """Every model with its aliases and test scores, every run and every dataset: what came from what."""
    return answered(overview.lineage(ws), if_none_match)


@router.get("/models")
def list_models(ws: Ws) -> dict[str, Any]:
    """Every model, oldest first, with its aliases and its newest test scores."""
    return {"models": plain(overview.overview(ws)), "promotions": plain(promotion.history(ws))}


@router.post("/models/rollback")
def rollback(ws: Ws, client: Administrator) -> dict[str, Any]:
    """Make the previous champion the champion again; doing it twice undoes it."""
    told: dict[str, Any] = plain(promotion.rollback(ws, by=client.name))
    return told


@router.get("/models/{id}")
def get_model(ws: Ws, id: str, if_none_match: IfNoneMatch = None) -> Response:
    """One model by name or id: evaluations, comparisons by the gate, promotions."""
    return answered(_known(ws, id), if_none_match)


@router.put("/models/{id}")
def put_model(ws: Ws, id: str, named: Named, client: Administrator, if_match: IfMatch = None) -> Response:
    """Name a model."""
    found = _known(ws, id)
    check(found, if_match)
    rename_model(ws, found.model.id, named.name, by=client.name)
    return answered(_known(ws, found.model.id))


@router.delete("/models/{id}")
def remove_model(ws: Ws, id: str, client: Administrator, if_match: IfMatch = None) -> dict[str, Any]:
    """Delete a model that nothing needs, with its evaluations and files; 409 says what needs it."""
    found = _known(ws, id)
    check(found, if_match)
    told: dict[str, Any] = plain(delete_model(ws, found.model.id, by=client.name))
    return told


class Judged(BaseModel):
    """How to judge a model for promotion."""

    dataset: Annotated[str | None, Field(description="Default: the newest", max_length=200)] = None
    force: Annotated[bool, Field(description="Promote it whatever the verdict")] = False


@router.post("/models/{id}/promote", status_code=202)
def promote(request: Request, ws: Ws, id: str, client: Administrator, how: Judged | None = None) -> dict[str, Any]:
    """Judge a model on frozen test speech and make it the champion if it is better; `task` of the status says how."""
    found, how = _known(ws, id), how or Judged()
    told: dict[str, Any] = plain(
        served(request).tasks.start(
            "promote", by=client.name, model=found.model.id, dataset=how.dataset, force=how.force
        )
    )
    return told


@router.post("/models/{id}/evaluate", status_code=202)
def evaluate(request: Request, ws: Ws, id: str, client: Administrator, how: Judged | None = None) -> dict[str, Any]:
    """Measure a model on frozen test speech; `task` of the status says how far that is."""
    found = _known(ws, id)
    told: dict[str, Any] = plain(
        served(request).tasks.start("evaluate", by=client.name, model=found.model.id, dataset=(how or Judged()).dataset)
    )
    return told


@router.get("/models/{id}/changes")
def changes(ws: Ws, id: str) -> dict[str, Any]:
    """What a model hears differently from the one that the gate last compared it with, word by word.

    `entry` is the id of `/api/entries/{id}/audio`.
    """
    both = overview.heard_differently(ws, _known(ws, id).model.id)
    better, worse = both.better[:MOST_CHANGES], both.worse[:MOST_CHANGES]
    where = datasets.origins(ws, [one.before.utterance for one in (*better, *worse)])
    numbers = {utterance: origin.number for utterance, origin in where.items()}
    return {
        "comparison": plain(both.comparison),
        "slices": plain(both.slices),
        "better": [_change(ws, one, both, numbers) for one in better],
        "worse": [_change(ws, one, both, numbers) for one in worse],
        "better_count": len(both.better),
        "worse_count": len(both.worse),
        "same": both.same,
    }


def _change(ws: Workspace, one: Change, both: SideBySide, numbers: dict[str, int]) -> dict[str, Any]:
    language = both.evaluation.decoding.get("language")
    told: dict[str, Any] = {
        "entry": numbers.get(one.before.utterance),
        "speaker": one.before.speaker,
        "seconds": one.before.duration,
        "reference": one.before.reference,
    }
    for name, row in (("before", one.before), ("after", one.after)):
        told[name] = {
            "text": row.hypothesis,
            "errors": row.errors,
            "confidence": row.confidence,
            "words": plain(differences(row, language, ws.settings.normaliser)),
        }
    return told


@router.get("/models/{id}/report")
def model_report(ws: Ws, id: str, audio: bool = True, download: bool = False) -> Response:
    """The newest test evaluation as one HTML page: charts, slices, confusions, the worst utterances with audio."""
    found = _known(ws, id)
    measured: list[Evaluation] = [one for one in found.evaluations if one.split == "test"]
    if not measured:
        raise Problem(404, "this model was not measured on test speech yet: evaluate it first", code="no_evaluation")
    with tempfile.TemporaryDirectory(prefix="voxloop-report-") as folder:
        file = Path(folder) / "report.html"
        report.write(ws, measured[-1], file, audio=audio)
        page = file.read_text(encoding="utf-8")
    headers = {"content-security-policy": REPORT_POLICY, "cache-control": "no-store"}
    if download:
        headers["content-disposition"] = 'attachment; filename="report.html"'
    return HTMLResponse(page, headers=headers)


def _known(ws: Workspace, id: str) -> overview.ModelDetails:
    """A model of this workspace by alias, name or id. Raises Problem for anything else: no path, no download."""
    for one in overview.overview(ws):
        short = one.model.id.removeprefix("sha256-")
        if id in (*one.aliases, one.model.name, one.model.id) or (len(id) >= 8 and short.startswith(id)):
            return overview.details(ws, one.model.id)
    raise Problem(404, f"there is no model {id!r} in this workspace", code="model_not_found")


# Datasets -------------------------------------------------------------------------------------------------------------


@router.get("/datasets")
def list_datasets(ws: Ws) -> dict[str, Any]:
    """Every dataset, oldest first."""
    return {"datasets": plain(datasets.all_datasets(ws))}


@router.get("/datasets/{id}")
def get_dataset(ws: Ws, id: str, if_none_match: IfNoneMatch = None) -> Response:
    """One dataset: statistics by split, speaker and language, warnings, and who wrote its texts."""
    found = datasets.details(ws, id)
    return answered(found, if_none_match, beside={"contributors": plain(datasets.contributors(ws, found.dataset.id))})


@router.get("/datasets/{id}/entries")
def dataset_entries(
    ws: Ws,
    id: str,
    split: Split | None = None,
    by: Annotated[str | None, Query(description="Only texts that this person or model wrote")] = None,
    limit: Annotated[int, Query(ge=1, le=500)] = 50,
    after: Annotated[int, Query(ge=0, description="`next` of the page before")] = 0,
) -> dict[str, Any]:
    """The utterances of a dataset with the texts that were frozen and who wrote them."""
    dataset = datasets.find(ws, id)
    found = datasets.members(ws, dataset.id, split=split, by=by, limit=limit + 1, after=after)
    shown = found[:limit]
    return {"entries": plain(shown), "next": shown[-1].number if len(found) > limit else None}


@router.get("/datasets/{id}/exclusions")
def dataset_exclusions(
    ws: Ws,
    id: str,
    reason: Annotated[str | None, Query(description="A part of the reason, ignoring case")] = None,
    reviewed: Annotated[bool, Query(description="Only those whose text a person wrote or accepted")] = False,
    limit: Annotated[int, Query(ge=1, le=1000)] = 100,
) -> dict[str, Any]:
    """The utterances that a dataset left out, with the reasons."""
    dataset = datasets.find(ws, id)
    found = datasets.exclusions(ws, dataset.id, reason=reason, reviewed=reviewed)
    where = datasets.origins(ws, [one.utterance for one in found[:limit]])
    return {
        "reasons": dataset.excluded,
        "count": len(found),
        "exclusions": [plain(one) | {"origin": plain(where.get(one.utterance))} for one in found[:limit]],
    }


@router.put("/datasets/{id}")
def put_dataset(ws: Ws, id: str, named: Named, client: Administrator, if_match: IfMatch = None) -> dict[str, Any]:
    """Rename a dataset."""
    dataset = datasets.find(ws, id)
    check(datasets.details(ws, dataset.id), if_match)
    told: dict[str, Any] = plain(rename_dataset(ws, dataset.id, named.name, by=client.name))
    return told


@router.delete("/datasets/{id}")
def remove_dataset(ws: Ws, id: str, client: Administrator, if_match: IfMatch = None) -> dict[str, Any]:
    """Delete a dataset that nothing needs; its recordings and texts stay. 409 says what needs it."""
    dataset = datasets.find(ws, id)
    check(datasets.details(ws, dataset.id), if_match)
    told: dict[str, Any] = plain(delete_dataset(ws, dataset.id, by=client.name))
    return told


# Recordings and speakers ----------------------------------------------------------------------------------------------


@router.get("/recordings")
def list_recordings(
    ws: Ws,
    q: Annotated[str | None, Query(description="A part of the file's name, ignoring case")] = None,
    speaker: str | None = None,
    language: str | None = None,
    status: UtteranceStatus | None = None,
    limit: Annotated[int, Query(ge=1, le=500)] = 50,
    after: Annotated[str | None, Query(description="`next` of the page before")] = None,
) -> dict[str, Any]:
    """Recordings, newest first."""
    found = listing.recordings(
        ws,
        name=q or None,
        speaker=speaker or None,
        language=language or None,
        status=status,
        limit=limit + 1,
        newest=True,
        after=after,
    )
    shown = found[:limit]
    return {"recordings": plain(shown), "next": shown[-1].recording.id if len(found) > limit else None}


@router.get("/recordings/{id}")
def get_recording(ws: Ws, id: str) -> dict[str, Any]:
    """One recording, with what its speaker permits."""
    found = listing.show(ws, id)
    with ws.read() as reader:
        standing = consent.of(reader, found.recording.speaker) if found.recording.speaker else None
    told: dict[str, Any] = plain(found)
    return told | {"speaker_consent": plain(standing)}


@router.get("/recordings/{id}/audio")
def recording_audio(
    ws: Ws, id: str, span: Annotated[str, Header(alias="range")] = "", download: bool = False
) -> Response:
    """A recording as WAV (16 kHz, mono), in parts as long recordings need it. Answers one byte range."""
    found = listing.show(ws, id).recording
    key = recordings.audio_key(found.id)
    size = ws.blobs.size(key)
    if size is None:
        raise Problem(404, "the audio of this recording is missing: `voxloop verify` says more", code="no_audio")
    headers = {"accept-ranges": "bytes", "cache-control": "no-store"}
    if download:
        headers["content-disposition"] = f'attachment; filename="{found.id[7:19]}.wav"'
    wanted = byte_range(span, size)
    first, last = wanted or (0, size - 1)
    if first >= size:
        return Response(status_code=416, headers=headers | {"content-range": f"bytes */{size}"})
    headers["content-length"] = str(last - first + 1)
    if wanted is not None:
        headers["content-range"] = f"bytes {first}-{last}/{size}"

    def parts() -> Iterator[bytes]:
        for begin in range(first, last + 1, PART):
            yield ws.blobs.get(key, begin, min(begin + PART, last + 1))

    return StreamingResponse(
        parts(), status_code=200 if wanted is None else 206, media_type="audio/wav", headers=headers
    )


@router.delete("/recordings/{id}")
def remove_recording(
    ws: Ws, id: str, client: Administrator, dry_run: Annotated[bool, Query(description="Only count")] = False
) -> dict[str, Any]:
    """Remove a recording and everything made from it, for good. Models that heard it are marked."""
    found = listing.show(ws, id).recording
    told: dict[str, Any] = plain(forget(ws, recording=found.id, by=client.name, dry_run=dry_run))
    return told


@router.get("/speakers")
def list_speakers(ws: Ws) -> dict[str, Any]:
    """Every speaker with the amount of speech, what they permit, and when and by whom that was noted."""
    known = {one.speaker: one for one in consent.standings(ws)}
    return {
        "speakers": [plain(one) | {"consent": plain(known.get(one.name))} for one in listing.speakers(ws)],
    }


class Forgotten(BaseModel):
    """Whom to forget."""

    speaker: Annotated[str, Field(min_length=1, max_length=400)]
    dry_run: Annotated[bool, Field(description="Only count what would be removed")] = False

    model_config = {"json_schema_extra": {"examples": [{"speaker": "ann", "dry_run": True}]}}


@router.post("/speakers/forget")
def forget_speaker(ws: Ws, asked: Forgotten, client: Administrator) -> dict[str, Any]:
    """Remove every recording in which a speaker speaks, and everything made from them, for good."""
    told: dict[str, Any] = plain(forget(ws, speaker=asked.speaker, by=client.name, dry_run=asked.dry_run))
    return told


# Usage and health -----------------------------------------------------------------------------------------------------


@router.get("/usage")
def usage(request: Request, ws: Ws) -> dict[str, Any]:
    """How long each step works on an hour of audio, what runs took, what succeeded, and the commonest errors."""
    told: dict[str, Any] = plain(health.health(ws))
    model = served(request).models.current
    return told | {"machine": plain(health.machine()), "serving": model.id}


class Retried(BaseModel):
    """Which failed job to retry."""

    job: Annotated[str | None, Field(description="Default: all of them", max_length=400)] = None


@router.post("/jobs/retry")
def retry_jobs(ws: Ws, client: Administrator, asked: Retried | None = None) -> dict[str, Any]:
    """Queue jobs again that failed on every attempt; a worker takes them."""
    return {"queued": ws.jobs.retry((asked or Retried()).job)}
