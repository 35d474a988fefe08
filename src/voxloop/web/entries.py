"""The review's HTTP API: /api/entries and what the review page needs beside it.

Whoever changes an entry sends the ETag that they saw as If-Match. If the entry has changed since, the answer is 412
and bears the entry as it is now, so that nobody overwrites what they have not seen; without If-Match, another
person's text is not replaced (409). Everything is written under the name of the token.
"""

from __future__ import annotations

import tempfile
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from fastapi import APIRouter, Depends, File, Form, Header, Query, Request, UploadFile
from fastapi.responses import FileResponse, JSONResponse, Response
from pydantic import BaseModel, Field
from starlette.background import BackgroundTask

from voxloop.errors import ConflictError, UnknownRecord
from voxloop.records import UtteranceStatus, plain
from voxloop.steps import review
from voxloop.steps.review import Choice, Filters, Outcome
from voxloop.steps.review.exchange import Format
from voxloop.web.access import Reviewer
from voxloop.web.problems import Problem

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from voxloop.web.app import Served
    from voxloop.workspace import Workspace

MOST_CHARACTERS = 20_000  # of a transcript; nobody says that many in 30 s
SUFFIXES: dict[Format, str] = {"jsonl": ".jsonl", "csv": ".csv", "label-studio": ".json"}


async def limited(request: Request, client: Reviewer) -> None:
    """Let a reviewer in, up to the number of requests a minute that the settings allow."""
    served: Served = request.app.state.served
    await served.requests.charge(client, 1)


router = APIRouter(prefix="/api", dependencies=[Depends(limited)], tags=["review"])


def workspace(request: Request) -> Workspace:
    """The served workspace."""
    served: Served = request.app.state.served
    return served.ws


Ws = Annotated[Any, Depends(workspace)]
IfMatch = Annotated[str | None, Header(description="The ETag that the client saw")]
Seconds = Annotated[float | None, Field(ge=0, le=86_400, description="Time spent on the entry, in seconds")]


def filters(
    *,
    status: Annotated[UtteranceStatus | None, Query()] = None,
    is_reviewed: Annotated[bool | None, Query(description="false: those that wait for review")] = None,
    is_trained: Annotated[bool | None, Query(description="Whether a model was trained on it")] = None,
    speaker: Annotated[str | None, Query()] = None,
    language: Annotated[str | None, Query(description="ISO 639-1 code")] = None,
    min_confidence: Annotated[float | None, Query(ge=0, le=1)] = None,
    max_confidence: Annotated[float | None, Query(ge=0, le=1)] = None,
    since: Annotated[datetime | None, Query(description="Ingested at or after; UTC unless it has an offset")] = None,
    until: Annotated[datetime | None, Query(description="Ingested before; UTC unless it has an offset")] = None,
    q: Annotated[str | None, Query(description="A part of the text, ignoring case")] = None,
    warning: Annotated[str | None, Query(description="A warning's name, or `any` or `none`")] = None,
    session: Annotated[str | None, Query(description="Of the recording, as its client named it")] = None,
) -> Filters:
    """The filters that a listing takes."""
    if status is None and is_reviewed is not None:
        status = "reviewed" if is_reviewed else "transcribed"
    return Filters(
        status=status,
        speaker=speaker or None,
        language=language or None,
        min_confidence=min_confidence,
        max_confidence=max_confidence,
        since=_epoch(since),
        until=_epoch(until),
        contains=q or None,
        warning=None if warning in ("any", "none", "") else warning,  # type: ignore[arg-type]
        warned=warning == "any" if warning in ("any", "none") else None,
        trained=is_trained,
        session=session or None,
    )


Where = Annotated[Filters, Depends(filters)]


def _epoch(time: datetime | None) -> float | None:
    if time is None:
        return None
    return (time if time.tzinfo else time.replace(tzinfo=UTC)).timestamp()


# Reading -------------------------------------------------------------------------------------------------------------


@router.get("/entries")
def list_entries(
    ws: Ws,
    where: Where,
    limit: Annotated[int, Query(ge=1, le=500)] = 50,
    after: Annotated[str | None, Query(description="`next` of the page before")] = None,
) -> dict[str, Any]:
    """List entries, those that most need review first."""
    found = review.entries(ws, where=where, limit=limit, after=after)
    told: dict[str, Any] = plain(found)
    return told


@router.post("/entries/next")
def next_entry(ws: Ws, where: Where, client: Reviewer) -> Response:
    """Take the first entry that waits for review and that nobody works on; 204 where there is none."""
    turn = review.next(ws, by=client.name, where=where)
    return _shown(ws, turn.item.number) if turn else Response(status_code=204)


@router.get("/entries/{id}")
def get_entry(ws: Ws, id: int) -> Response:
    """One entry with its words, every version of its text and every decision on it."""
    return _shown(ws, id)


@router.get("/entries/{id}/audio")
def entry_audio(ws: Ws, id: int, range: Annotated[str, Header()] = "", download: bool = False) -> Response:
    """The entry's audio as WAV (16 kHz, mono). Answers one byte range."""
    wav = review.entry_wav(ws, str(id))
    headers = {"accept-ranges": "bytes", "cache-control": "no-store"}
    if download:
        headers["content-disposition"] = f'attachment; filename="{id}.wav"'
    wanted = _range(range, len(wav))
    if wanted is None:
        return Response(wav, media_type="audio/wav", headers=headers)
    first, last = wanted
    if first >= len(wav):
        return Response(status_code=416, headers=headers | {"content-range": f"bytes */{len(wav)}"})
    headers["content-range"] = f"bytes {first}-{last}/{len(wav)}"
    return Response(wav[first : last + 1], status_code=206, media_type="audio/wav", headers=headers)


def _range(header: str, size: int) -> tuple[int, int] | None:
    """First and last byte of a Range header; None: all of it. Several ranges at once are answered with all."""
    unit, _, span = header.partition("=")
    first, dash, last = span.strip().partition("-")
    if unit.strip() != "bytes" or not dash or "," in span:
        return None
    if first.isdecimal() and (last.isdecimal() or not last):
        end = min(int(last), size - 1) if last else size - 1
        return (int(first), end) if int(first) <= end or int(first) >= size else None
    if not first and last.isdecimal() and int(last):
        return max(size - int(last), 0), size - 1
    return None


@router.get("/entries/{id}/peaks")
def entry_peaks(ws: Ws, id: int) -> Response:
    """The loudest sample of every 10 ms, 0 to 127, to draw a waveform from."""
    return JSONResponse({"peaks": review.peaks(ws, str(id))}, headers={"cache-control": "no-store"})


@router.get("/stats")
def stats(ws: Ws, client: Reviewer) -> dict[str, Any]:
    """The progress of the review, and each reviewer's decisions."""
    found = review.stats(ws)
    told: dict[str, Any] = plain(found)
    return told | {"total": found.utterances, "percent": round(100 * found.share, 1), "you": client.name}


@router.get("/options")
def options(ws: Ws, client: Reviewer) -> dict[str, Any]:
    """What the page's filters offer, and who is signed in."""
    return {
        "you": client.name,
        "speakers": review.speakers(ws),
        "languages": review.languages(ws),
        "warnings": review.WARNINGS,
        "undo_s": ws.settings.review_undo_s,
    }


# Deciding ------------------------------------------------------------------------------------------------------------


class Change(BaseModel):
    """What to change of an entry; what is left out stays. A saved transcript counts as reviewed."""

    transcript: Annotated[str | None, Field(max_length=MOST_CHARACTERS)] = None
    is_reviewed: bool | None = None
    speaker: Annotated[str | None, Field(max_length=200)] = None
    language: Annotated[str | None, Field(max_length=40)] = None
    seconds: Seconds = None

    model_config = {"json_schema_extra": {"examples": [{"transcript": "Hello, how are you?", "is_reviewed": True}]}}


class Decided(BaseModel):
    """A decision about an entry as it stands."""

    decision: Literal["accept", "reject", "skip", "undo"] = "accept"
    reason: Annotated[str, Field(max_length=1000)] = ""
    seconds: Seconds = None

    model_config = {"json_schema_extra": {"examples": [{"decision": "reject", "reason": "two people talk at once"}]}}


@router.put("/entries/{id}")
def put_entry(ws: Ws, id: int, change: Change, client: Reviewer, if_match: IfMatch = None) -> Response:
    """Save a transcript, mark an entry as reviewed or not, or correct its speaker or language."""
    seen, now = _tag(if_match), review.entry(ws, str(id)).item
    text, by = change.transcript, client.name
    try:
        if text is not None and change.is_reviewed is False and text.split() != now.text.split():
            raise Problem(400, "a saved transcript counts as reviewed: leave is_reviewed out", param="is_reviewed")
        if change.is_reviewed is False:
            if now.utterance.status == "reviewed":
                _reopen(ws, id, by)
        elif text is not None:
            review.save(ws, str(id), text, by=by, seen=seen, seconds=change.seconds)
            seen = None  # changed by us
        elif change.is_reviewed:
            review.confirm(ws, str(id), by=by, seen=seen, seconds=change.seconds)
            seen = None
        if change.speaker is not None or change.language is not None:
            review.describe(ws, str(id), by=by, speaker=change.speaker, language=change.language, seen=seen)
    except ConflictError as error:
        raise _conflict(ws, id, error, if_match) from error
    return _shown(ws, id)


@router.post("/entries/{id}/review")
def review_entry(
    ws: Ws, id: int, client: Reviewer, decided: Decided | None = None, if_match: IfMatch = None
) -> Response:
    """Accept an entry's text as it stands, reject the entry, put it off, or undo one's last decision on it."""
    decided, seen, by = decided or Decided(), _tag(if_match), client.name
    try:
        if decided.decision == "accept":
            review.confirm(ws, str(id), by=by, seen=seen, seconds=decided.seconds)
        elif decided.decision == "reject":
            review.reject(ws, str(id), reason=decided.reason, by=by, seen=seen, seconds=decided.seconds)
        elif decided.decision == "skip":
            review.skip(ws, str(id), by=by, seconds=decided.seconds)
        elif review.show(ws, str(id)).utterance.status == "deleted":
            _reopen(ws, id, by)  # anybody who reviews may bring an entry back
        else:
            review.undo(ws, str(id), by=by)
    except ConflictError as error:
        raise _conflict(ws, id, error, if_match) from error
    return _shown(ws, id)


@router.delete("/entries/{id}")
def delete_entry(ws: Ws, id: int, client: Reviewer, if_match: IfMatch = None) -> dict[str, Any]:
    """Take an entry out of every list and later dataset; it can be undone for a while, then it is erased."""
    review.entry(ws, str(id))
    try:
        made = review.delete(ws, str(id), by=client.name, seen=_tag(if_match))
    except ConflictError as error:
        raise _conflict(ws, id, error, if_match) from error
    return {"id": id, "deleted": True, "decision": made.seq, "undo_until": made.created + ws.settings.review_undo_s}


@router.post("/entries/{id}/take")
def take_entry(ws: Ws, id: int, client: Reviewer) -> dict[str, Any]:
    """Say that one works on an entry; 409 where another reviewer does."""
    turn = review.take(ws, str(id), by=client.name)
    return {"id": id, "until": turn.until}


@router.delete("/entries/{id}/take", status_code=204)
def release_entry(ws: Ws, id: int, client: Reviewer) -> None:
    """Leave an entry without a decision."""
    review.release(ws, review.entry(ws, str(id)).item.utterance.id, by=client.name)


def _reopen(ws: Workspace, id: int, by: str) -> None:
    """Undo the decision by which an entry became reviewed, whoever made it."""
    made = review.history(ws, str(id))
    undone = {one.undoes for one in made}
    last = next((one for one in reversed(made) if one.kind != "undo" and one.seq not in undone), None)
    if last is None:
        raise Problem(409, f"the text of entry {id} came with its recording: it cannot be marked as not reviewed")
    review.undo(ws, str(id), by=by, decision=last.seq)


def _tag(if_match: str | None) -> str | None:
    """The ETag in an If-Match header; None: any."""
    tag = (if_match or "").strip().removeprefix("W/").strip('"')
    return None if tag in ("", "*") else tag


def _shown(ws: Workspace, id: int) -> JSONResponse:
    found = review.entry(ws, str(id))
    headers = {"etag": f'"{found.item.state}"', "cache-control": "no-store"}
    return JSONResponse(plain(found), headers=headers)


def _conflict(ws: Workspace, id: int, error: ConflictError, if_match: str | None) -> Problem:
    try:
        entry = plain(review.entry(ws, str(id)))
    except UnknownRecord:
        entry = None
    return Problem(412 if _tag(if_match) else 409, str(error), code="conflict", also={"entry": entry})


# Many at once --------------------------------------------------------------------------------------------------------


class Chosen(BaseModel):
    """An entry as it was seen."""

    id: int
    etag: str | None = None


class Bulk(BaseModel):
    """The same decision about several entries."""

    action: Literal["accept", "reject", "delete"]
    entries: Annotated[list[Chosen], Field(max_length=1000)]
    reason: Annotated[str, Field(max_length=1000)] = ""


class Made(BaseModel):
    """A decision that is to be undone."""

    id: int
    decision: int


class Undone(BaseModel):
    """Decisions that are to be undone."""

    decisions: Annotated[list[Made], Field(max_length=1000)]


class Found(BaseModel):
    """What is looked for, and what it becomes."""

    find: Annotated[str, Field(min_length=1, max_length=500)]
    replace: Annotated[str, Field(max_length=500)] = ""
    ignore_case: bool = False
    whole_words: bool = False


class Replaced(Found):
    """Words to replace in the entries that a preview showed."""

    entries: Annotated[list[Chosen], Field(max_length=1000)]


@router.post("/bulk")
def bulk(ws: Ws, asked: Bulk, client: Reviewer) -> dict[str, Any]:
    """Accept, reject or delete several entries; those that have changed since they were seen stay as they are."""
    return _told(review.decide_all(ws, _choices(asked.entries), asked.action, by=client.name, reason=asked.reason))


class BulkMatching(BaseModel):
    """A decision about the entries that match, part by part."""

    action: Literal["accept", "reject", "delete"]
    reason: Annotated[str, Field(max_length=1000)] = ""
    after: Annotated[str | None, Field(description="`next` of the part before")] = None


@router.post("/bulk/preview")
def bulk_preview(ws: Ws, where: Where) -> dict[str, Any]:
    """How many entries match now. Send `until` back as a filter, so that nothing ingested later is decided on."""
    with ws.read() as reader:
        now = reader.now()
    until = now if where.until is None else min(now, where.until)
    return {"count": review.count(ws, where), "until": datetime.fromtimestamp(until, UTC).isoformat()}


@router.post("/bulk/matching")
def bulk_matching(ws: Ws, where: Where, asked: BulkMatching, client: Reviewer) -> dict[str, Any]:
    """Accept, reject or delete the next entries that match; `next` is null after the last."""
    part = review.decide_matching(ws, where, asked.action, by=client.name, reason=asked.reason, after=asked.after)
    return _told(part.outcomes) | {"next": part.next}


@router.post("/bulk/undo")
def bulk_undo(ws: Ws, asked: Undone, client: Reviewer) -> dict[str, Any]:
    """Undo what `/api/bulk` or `/api/replace` did, by the decisions that it named."""
    outcomes = (Outcome(utterance=str(one.id), decision=one.decision) for one in asked.decisions)
    return _told(review.undo_all(ws, outcomes, by=client.name))


@router.post("/replace/preview")
def replace_preview(ws: Ws, where: Where, asked: Found) -> dict[str, Any]:
    """The texts that words would be replaced in. Changes nothing."""
    found = review.find_all(
        ws, asked.find, asked.replace, where=where, ignore_case=asked.ignore_case, whole_words=asked.whole_words
    )
    return {"entries": plain(found), "places": sum(one.places for one in found)}


@router.post("/replace")
def replace(ws: Ws, asked: Replaced, client: Reviewer) -> dict[str, Any]:
    """Replace words in the entries that a preview showed."""
    outcomes = review.replace_all(
        ws,
        _choices(asked.entries),
        asked.find,
        asked.replace,
        by=client.name,
        ignore_case=asked.ignore_case,
        whole_words=asked.whole_words,
    )
    return _told(outcomes)


def _choices(entries: Iterable[Chosen]) -> list[Choice]:
    return [Choice(utterance=str(one.id), seen=one.etag) for one in entries]


def _told(outcomes: Sequence[Outcome]) -> dict[str, Any]:
    return {
        "changed": sum(one.error is None for one in outcomes),
        "entries": [{"id": int(one.utterance), "decision": one.decision, "error": one.error} for one in outcomes],
    }


# Out and in ----------------------------------------------------------------------------------------------------------


@router.get("/export")
def export(ws: Ws, where: Where, format: Format = "jsonl") -> FileResponse:
    """Download the entries that match, with their texts, authors and times."""
    folder = tempfile.TemporaryDirectory(prefix="voxloop-export-")
    path = Path(folder.name) / f"reviews{SUFFIXES[format]}"
    try:
        review.export(ws, path, format=format, where=where, audio_url="")
    except BaseException:
        folder.cleanup()
        raise
    return FileResponse(path, filename=path.name, background=BackgroundTask(folder.cleanup))


@router.post("/import")
def import_file(
    ws: Ws,
    client: Reviewer,
    file: Annotated[UploadFile, File(description="JSONL, CSV or Label Studio JSON, by its name's ending")],
    dry_run: Annotated[bool, Form()] = False,
    overwrite: Annotated[bool, Form()] = False,
) -> dict[str, Any]:
    """Import texts and rejections that were exported from here, or come from Label Studio or a spreadsheet."""
    with tempfile.TemporaryDirectory(prefix="voxloop-import-") as folder:
        suffix = Path(file.filename or "").suffix.lower()
        path = Path(folder) / f"reviews{suffix if suffix in SUFFIXES.values() else '.jsonl'}"
        path.write_bytes(file.file.read())
        told: dict[str, Any] = plain(
            review.import_reviews(ws, path, by=client.name, dry_run=dry_run, overwrite=overwrite)
        )
        return told
