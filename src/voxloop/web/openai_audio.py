"""What OpenAI's clients speak: /v1/audio/transcriptions and /v1/models, in the shapes of their API reference."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, cast

from anyio import from_thread, to_thread
from fastapi import APIRouter, Form, Request, UploadFile
from fastapi.responses import JSONResponse, PlainTextResponse, Response

from voxloop.errors import UnknownRecord
from voxloop.records import plain, seconds
from voxloop.serving import files
from voxloop.serving.tokens import Client
from voxloop.steps import transcripts
from voxloop.steps.transcripts import FileTranscript
from voxloop.web.access import Listener, needs
from voxloop.web.problems import Problem

if TYPE_CHECKING:
    from voxloop.records import Model
    from voxloop.web.app import Served

router = APIRouter(prefix="/v1")

# What OpenAI's own models are called: clients that can name no other are served by the champion.
ALIASES = ("", "whisper-1", "gpt-4o-transcribe", "gpt-4o-mini-transcribe", "gpt-transcribe", "champion")
Format = Literal["json", "text", "srt", "verbose_json", "vtt"]


@router.get("/models", dependencies=[needs("listen")])
def list_models(request: Request) -> dict[str, Any]:
    """The models that a request may name."""
    served: Served = request.app.state.served
    return {"object": "list", "data": [_described(served.models.current)]}


def _described(model: Model) -> dict[str, Any]:
    return {"id": model.id, "object": "model", "created": int(model.created), "owned_by": "voxloop"}


@router.post("/audio/transcriptions")
async def transcriptions(
    request: Request,
    client: Listener,
    file: UploadFile,
    model: Annotated[str, Form()] = "",
    language: Annotated[str | None, Form()] = None,
    response_format: Annotated[Format, Form()] = "json",
    timestamp_granularities: Annotated[list[str] | None, Form(alias="timestamp_granularities[]")] = None,
) -> Response:
    """Transcribe an audio file."""
    served: Served = request.app.state.served
    found = await to_thread.run_sync(_heard, served, client, file, model, language, response_format)
    if response_format in ("text", "srt", "vtt"):
        return PlainTextResponse(transcripts.formatted(found, response_format) + "\n")
    usage = {"type": "duration", "seconds": round(found.duration, 3)}
    if response_format == "json":
        return JSONResponse({"text": found.text, "usage": usage})
    return JSONResponse(_verbose(found, usage, words="word" in (timestamp_granularities or ())))


def _heard(
    served: Served, client: Client, file: UploadFile, model: str, language: str | None, format: Format
) -> FileTranscript:
    """A file's transcript, heard part by part among what other clients sent."""
    ws = served.ws
    try:
        named = None if model in ALIASES else served.models.find(model)
    except UnknownRecord as error:
        raise Problem(404, f"there is no model {model!r}", code="model_not_found", param="model") from error
    current = named or served.models.current
    with tempfile.TemporaryDirectory(prefix="voxloop-") as folder:
        path = Path(folder) / "upload"
        with path.open("wb") as out:
            shutil.copyfileobj(file.file, out)
        waveform = files.decoded(
            path,
            max_seconds=ws.settings.serve_max_audio_hours * 3600,
            max_bytes=ws.settings.serve_max_upload_mb << 20,
        )
    from_thread.run(served.limit.charge, client, seconds(len(waveform)))
    asked = transcripts.decoding(ws, language, model=current)
    parts = list(
        files.parts(
            ws,
            served.batches,
            waveform,
            asked,
            context=served.models.context(current.id, asked.audio_context),
            client=client.name,
            model=named.id if named else None,
            word_times=format in ("verbose_json", "srt", "vtt"),
        )
    )
    segments = tuple(part.segment() for part in parts)
    answered = {part.heard.result().model for part in parts} or {current.id}
    return FileTranscript(
        file=file.filename or "", model=min(answered), duration=seconds(len(waveform)), segments=segments
    )


def _verbose(found: FileTranscript, usage: dict[str, Any], *, words: bool) -> dict[str, Any]:
    segments = [
        {
            "id": number,
            "seek": 0,
            "start": round(one.start, 3),
            "end": round(one.end, 3),
            "text": one.text,
            "tokens": [],
            "temperature": one.temperature,
            "avg_logprob": one.mean_logprob or 0.0,
            "compression_ratio": 1.0,
            "no_speech_prob": one.no_speech or 0.0,
        }
        for number, one in enumerate(found.segments)
    ]
    body: dict[str, Any] = {
        "task": "transcribe",
        "language": next((one.language for one in found.segments if one.language), ""),
        "duration": round(found.duration, 3),
        "text": found.text,
        "segments": segments,
        "usage": usage,
    }
    if words:
        body["words"] = [
            {"word": word.text, "start": word.start, "end": word.end} for one in found.segments for word in one.words
        ]
    return cast("dict[str, Any]", plain(body))
