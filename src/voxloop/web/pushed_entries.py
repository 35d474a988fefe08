"""POST /api/entries: an app sends audio with its own text."""

from __future__ import annotations

import base64
import binascii
import json
import tempfile
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from anyio import to_thread
from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse
from starlette.datastructures import UploadFile

from voxloop.records import Utterance, plain
from voxloop.speech.languages import UnknownLanguage, language_code
from voxloop.steps import captures, consent, review
from voxloop.steps.recordings.conversion import of_waveform
from voxloop.stores import tables
from voxloop.web.access import Listener
from voxloop.web.problems import Problem

if TYPE_CHECKING:
    from voxloop.serving.tokens import Client
    from voxloop.speech.spooled import Sound
    from voxloop.web.app import Served
    from voxloop.workspace import Workspace

router = APIRouter(prefix="/api", tags=["review"])

MOST_CHARACTERS = 20_000
YES = ("true", "1", "yes")


@dataclass(frozen=True, kw_only=True, slots=True)
class _Sent:
    content: bytes
    name: str
    text: str
    reviewed: bool
    speaker: str | None
    language: str | None
    session: str | None
    timestamp: float


@router.post("/entries")
async def push(request: Request, client: Listener) -> JSONResponse:
    """Keep audio with the app's own text: multipart with `file` and `transcript`, or JSON with `audio` as base64.

    Without `is_reviewed`, the text is one to review. With it, it counts as a person's, and a token of scope `review` is
    needed. Known audio is answered with 200, new with 201. The answer is the entry as `/api/entries/{id}` shows it, and
    `audio_warnings`, a sentence each: what a speaker should know while they can say it again.
    """
    served: Served = request.app.state.served
    sent = await _sent(request)
    if sent.reviewed and not client.may("review"):
        raise Problem(403, "is_reviewed needs a token of scope review", param="is_reviewed")
    settings = served.ws.settings
    with tempfile.TemporaryDirectory(prefix="voxloop-") as folder:
        path = Path(folder) / "upload"
        await to_thread.run_sync(path.write_bytes, sent.content)
        # In one piece in memory: an entry is a clip, and longer files are for `voxloop ingest`.
        sound = await served.decoders.decode(
            path,
            sent.name,
            max_seconds=60 * settings.capture_queue_minutes,
            max_bytes=settings.serve_max_upload_mb << 20,
        )
    with sound:
        await served.limit.charge(client, sound.duration)
        new, entry = await to_thread.run_sync(_kept, served.ws, sound, sent, client)
    return JSONResponse(entry, status_code=201 if new else 200, headers={"x-voxloop-recording": entry["recording"]})


async def _sent(request: Request) -> _Sent:
    """The request. Raises Problem for what is missing or cannot be."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    name, values, content = "audio", {}, b""
    if kind == "application/json":
        try:
            values = json.loads(await request.body())
        except (ValueError, RecursionError) as error:
            raise Problem(400, f"the body is not valid JSON: {error}", code="invalid_json") from error
        if not isinstance(values, dict):
            raise Problem(400, "the body has to be a JSON object", code="invalid_json")
        audio = values.get("audio")
        if not isinstance(audio, str):
            raise Problem(400, "no audio was sent: give `audio` as base64", param="audio")
        try:
            content = base64.b64decode(
                audio.partition("base64,")[2] if audio.startswith("data:") else audio, validate=True
            )
        except (binascii.Error, ValueError) as error:
            raise Problem(400, f"audio is not base64: {error}", param="audio") from error
        name = str(values.get("name") or name)
    elif kind == "multipart/form-data":
        async with request.form() as form:
            upload = form.get("file") or form.get("audio")
            if not isinstance(upload, UploadFile):
                raise Problem(400, "no file was sent: give it as the field `file`", param="file")
            content, name = await upload.read(), upload.filename or name
            values = {key: value for key, value in form.items() if isinstance(value, str)}
    else:
        raise Problem(415, f"the body is {kind or 'of no type'}: send multipart/form-data with a file, or JSON")
    text = values.get("transcript", "")
    if not isinstance(text, str) or len(text) > MOST_CHARACTERS:
        raise Problem(400, f"transcript must be a text of at most {MOST_CHARACTERS:,} characters", param="transcript")
    text = text.replace("\0", "").strip()
    reviewed = str(values.get("is_reviewed", "")).lower() in YES
    if reviewed and not text:
        raise Problem(400, "is_reviewed needs a transcript", param="transcript")
    try:
        language = language_code(str(values.get("language") or ""))
    except UnknownLanguage as error:
        raise Problem(400, str(error), param="language") from error
    speaker = str(values.get("speaker") or "")
    session = "".join(char for char in str(values.get("session") or "") if char.isprintable())
    return _Sent(
        content=content,
        name=captures.file_name(name),
        text=text,
        reviewed=reviewed,
        speaker=consent.speaker_name(speaker) if speaker else None,
        language=language,
        session=session or None,
        timestamp=_time(values.get("timestamp")),
    )


def _time(given: Any) -> float:
    if given in (None, ""):
        return 0.0
    try:
        when = datetime.fromisoformat(str(given))
        return max(0.0, (when if when.tzinfo else when.replace(tzinfo=UTC)).timestamp())
    except (ValueError, OverflowError) as error:
        raise Problem(400, "timestamp must be ISO 8601, such as 2026-10-04T14:23:15Z", param="timestamp") from error


def _kept(ws: Workspace, sound: Sound, sent: _Sent, client: Client) -> tuple[bool, dict[str, Any]]:
    if sent.speaker:
        with ws.read() as reader:
            if "train" not in consent.of(reader, sent.speaker).permits:
                raise Problem(403, f"{sent.speaker} has withdrawn consent: nothing is kept", code="consent_withdrawn")
    converted = of_waveform(sound.read(0, sound.samples), sound.encoding)
    kept = captures.keep(
        ws,
        converted,
        place=Path("capture") / sent.name,
        speaker=sent.speaker,
        language=sent.language,
        session=sent.session,
        text=captures.Text(text=sent.text, by=client.name, reviewed=sent.reviewed) if sent.text else None,
        source=captures.Source(client=client.name, token=client.token),
        created=sent.timestamp,
    )
    return kept.new, shown(ws, kept.recording) | {
        "audio_warnings": captures.warnings_of(converted.quality, converted.samples)
    }


def shown(ws: Workspace, recording: str) -> dict[str, Any]:
    """The entry that a recording became; where its audio is still to be cut, `id` is None and the recording named."""
    with ws.read() as reader:
        utterance = tables.utterance.c
        found = reader.all(Utterance, utterance.recording == recording, utterance.status != "deleted", limit=1)
    entry: dict[str, Any] = plain(review.entry(ws, found[0].id)) if found else {"id": None, "recording": recording}
    return entry
