"""What OpenAI's clients speak: /v1/audio/transcriptions, /v1/audio/translations, /v1/models.

Requests and answers have the shapes of OpenAI's API reference (developers.openai.com/api/reference). What a field asks
for that no model here can do is refused by name; what only tunes OpenAI's own models is taken and has no effect.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import json
import math
import shutil
import tempfile
from collections.abc import AsyncIterator, Sequence
from contextlib import ExitStack, aclosing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from anyio import to_thread
from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.datastructures import FormData, UploadFile

from voxloop.errors import UnknownRecord, VoxloopError
from voxloop.families.contract import PersonalVocabulary, Term, compression
from voxloop.families.registry import family
from voxloop.records import Model
from voxloop.serving import files
from voxloop.serving.batches import Urgency
from voxloop.speech.audio import channel_count
from voxloop.speech.languages import UnknownLanguage, language_code, language_name
from voxloop.speech.spooled import Sound
from voxloop.steps import transcripts
from voxloop.steps.transcripts import FileTranscript, Segment
from voxloop.web.access import Listener, needs
from voxloop.web.metrics import AUDIO
from voxloop.web.problems import Problem, problem_body, status_of

if TYPE_CHECKING:
    from voxloop.families.contract import Decoding
    from voxloop.records import Word
    from voxloop.serving.files import Part
    from voxloop.serving.tokens import Client
    from voxloop.web.app import Served

router = APIRouter(prefix="/v1")

# What OpenAI's own models are called: clients that can name no other are served by the champion.
ALIASES = (
    "",
    "whisper-1",
    "gpt-4o-transcribe",
    "gpt-4o-mini-transcribe",
    "gpt-4o-transcribe-diarize",
    "gpt-transcribe",
    "gpt-live-transcribe",
)
Format = Literal["json", "text", "srt", "verbose_json", "vtt", "diarized_json"]
FORMATS: tuple[Format, ...] = get_args(Format)
SPEAKERS = "ABCDEFGH"  # what channels are called, as OpenAI calls speakers that it does not know


# What is asked -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True, slots=True)
class Asked:
    """A request, whichever way it came."""

    file: Path
    name: str  # of the file, as the client calls it
    model: str = ""
    language: str | None = None
    format: Format = "json"
    words: bool = False
    logprobs: bool = False
    stream: bool = False
    speakers: tuple[str, ...] = ()
    fields: dict[str, Any] = field(default_factory=dict)  # all that were sent, by name


async def _asked(request: Request, folder: Path) -> Asked:
    """The request, its file written into `folder`. Raises Problem for what is missing or cannot be."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    path = folder / "upload"
    if kind == "application/json":
        try:
            values = json.loads(await request.body())
        except ValueError as error:
            raise Problem(400, f"the body is not valid JSON: {error}", code="invalid_json") from error
        if not isinstance(values, dict):
            raise Problem(400, "the body has to be a JSON object", code="invalid_json")
        audio = values.pop("input_audio", None)
        data = audio.get("data") if isinstance(audio, dict) else None
        if not isinstance(data, str):
            raise Problem(400, "no audio was sent: give input_audio.data as base64", param="input_audio")
        try:
            content = base64.b64decode(
                data.partition("base64,")[2] if data.startswith("data:") else data, validate=True
            )
        except (binascii.Error, ValueError) as error:
            raise Problem(400, f"input_audio.data is not base64: {error}", param="input_audio") from error
        await to_thread.run_sync(path.write_bytes, content)
        return _fields(path, f"audio.{audio.get('format', 'bin')}", values)
    if kind != "multipart/form-data":
        raise Problem(415, f"the body is {kind or 'of no type'}: send multipart/form-data with a file, or JSON")
    form = await request.form(max_part_size=1 << 24)  # references to known speakers are sound in text fields
    upload = form.get("file")
    if not isinstance(upload, UploadFile):
        raise Problem(
            400, "no file was sent: give it as the field `file`", code="missing_required_parameter", param="file"
        )
    with path.open("wb") as out:
        await to_thread.run_sync(shutil.copyfileobj, upload.file, out)
    name = upload.filename or "audio"
    values = _lists(form)
    await form.close()
    return _fields(path, name, values)


def _lists(form: FormData) -> dict[str, Any]:
    """Fields by name: those that end with `[]`, or come several times, as lists."""
    values: dict[str, Any] = {}
    for name in form:
        if name != "file":
            given = [value for value in form.getlist(name) if isinstance(value, str)]
            values[name.removesuffix("[]")] = given if name.endswith("[]") or len(given) > 1 else given[0]
    return values


def _fields(file: Path, name: str, values: dict[str, Any]) -> Asked:
    format = str(values.get("response_format") or "json")
    if format not in FORMATS:
        raise Problem(
            400,
            f"response_format is {format!r}: it must be one of {', '.join(FORMATS)}",
            code="invalid_value",
            param="response_format",
        )
    return Asked(
        file=file,
        name=name,
        model=str(values.get("model") or ""),
        language=_language(values),
        format=format,
        words="word" in _many(values, "timestamp_granularities"),
        logprobs="logprobs" in _many(values, "include"),
        stream=str(values.get("stream", "")).lower() in ("true", "1"),
        speakers=tuple(_many(values, "known_speaker_names")),
        fields=values,
    )


def _many(values: dict[str, Any], name: str) -> list[str]:
    found = values.get(name) or []
    return [str(one) for one in found] if isinstance(found, list) else [str(found)]


def _language(values: dict[str, Any]) -> str | None:
    """The language asked for; of several that may be spoken, none: the model finds out which."""
    several = _many(values, "languages")
    given = str(values.get("language") or "") or (several[0] if len(several) == 1 else "")
    try:
        return language_code(given)
    except UnknownLanguage as error:
        raise Problem(400, str(error), code="invalid_value", param="language") from error


# Its answer ----------------------------------------------------------------------------------------------------------


@dataclass(eq=False, kw_only=True, slots=True)
class Job:
    """A request under way."""

    served: Served
    asked: Asked
    client: Client
    model: Model
    decoding: Decoding
    parts: list[tuple[str | None, Part]]  # with the speaker, in the order of time
    duration: float  # seconds

    async def segments(self) -> AsyncIterator[tuple[str | None, Segment]]:
        """What is heard, in the order of time, with the speaker where that is known."""
        speakers = [speaker for speaker, _ in self.parts]
        wanted = self.asked.words or self.asked.logprobs or self.asked.format in ("srt", "vtt")
        hearing = files.hear(
            self.served.batches,
            [part for _, part in self.parts],
            self.decoding,
            model=self.model,
            client=self.client.name,
            urgency=files.urgency_of(self.parts[0][1].sound) if self.parts else Urgency.REQUEST,
            word_times=wanted,
        )
        async with aclosing(hearing):
            place = 0
            async for part, heard in hearing:
                AUDIO.labels(heard.model).inc((part.given[1] - part.given[0]) / 16_000)
                yield speakers[place], part.segment(heard)
                place += 1


def _begin(served: Served, asked: Asked, client: Client, using: ExitStack) -> Job:
    """Decode a request's file and find its speech. Raises Problem, AudioError, QueueFull."""
    settings = served.ws.settings
    try:
        named = None if asked.model in ALIASES else served.models.find(asked.model)
    except UnknownRecord as error:
        raise Problem(
            404, f"there is no model {asked.model!r}: /v1/models lists them", code="model_not_found", param="model"
        ) from error
    # Held until the request is answered: whatever is promoted meanwhile, one request is heard by one model.
    model, recogniser = using.enter_context(served.models.using(named))
    decoding = _decoding(served, asked, model)
    max_seconds, max_bytes = settings.serve_max_audio_hours * 3600, settings.serve_max_upload_mb << 20
    context = recogniser.context(decoding.audio_context, decoding.untuned)
    channels: list[int | None] = [None]
    if asked.format == "diarized_json":
        channels = list(range(_channels(asked, max_bytes)))
    parts: list[tuple[str | None, Part]] = []
    duration = 0.0
    for channel in channels:
        sound = Sound(asked.file, max_seconds=max_seconds, max_bytes=max_bytes, channel=channel)
        using.callback(sound.close)
        duration = sound.duration
        served.batches.admit(files.urgency_of(sound))
        speaker = None if channel is None else _speaker(asked, channel)
        parts += [(speaker, part) for part in files.parts(served.ws, sound, context)]
    parts.sort(key=lambda pair: pair[1].span)
    return Job(
        served=served,
        asked=asked,
        client=client,
        model=model,
        decoding=decoding,
        parts=parts,
        duration=duration,
    )


def _decoding(served: Served, asked: Asked, model: Model) -> Decoding:
    """How the workspace reads text off the model, with the prompt and the words that this request brings along."""
    decoding = transcripts.decoding(served.ws, asked.language, model=model)
    prompt = str(asked.fields.get("prompt") or "")
    words = tuple(Term(word) for word in _many(asked.fields, "keywords") if word.strip())
    known = decoding.vocabulary or PersonalVocabulary(terms=(), bonus=served.ws.settings.vocabulary_bonus)
    vocabulary = replace(known, terms=(*known.terms, *words)) if words else decoding.vocabulary
    return replace(decoding, prompt=prompt or decoding.prompt, vocabulary=vocabulary)


def _channels(asked: Asked, max_bytes: int) -> int:
    """Channels of a file in which each speaker has one."""
    found = channel_count(asked.file, max_bytes=max_bytes)
    if not 2 <= found <= len(SPEAKERS):
        raise Problem(
            400,
            f"diarized_json needs a file with a channel for each speaker, 2 to {len(SPEAKERS)}: this one has {found}",
            code="unsupported_value",
            param="response_format",
        )
    return found


def _speaker(asked: Asked, channel: int) -> str:
    return asked.speakers[channel] if channel < len(asked.speakers) else SPEAKERS[channel]


@router.post("/audio/transcriptions")
async def transcriptions(request: Request, client: Listener) -> Response:
    """Transcribe an audio file: multipart with `file`, or JSON with `input_audio`."""
    return await _answered(request, client)


async def _answered(request: Request, client: Client) -> Response:
    served: Served = request.app.state.served
    using = ExitStack()
    try:
        folder = using.enter_context(tempfile.TemporaryDirectory(prefix="voxloop-"))
        asked = await _asked(request, Path(folder))
        job = await to_thread.run_sync(_begin, served, asked, client, using)
        await served.limit.charge(client, job.duration)
        headers = {"x-voxloop-model": job.model.id}
        if asked.stream and asked.format in ("json", "text", "diarized_json"):
            return StreamingResponse(
                _events(job, using.pop_all()),
                media_type="text/event-stream",
                headers=headers | {"cache-control": "no-store", "x-accel-buffering": "no"},
            )
        found = await _while_there(request, _all(job))
        return _body(job, found, headers)
    finally:
        using.close()


async def _all(job: Job) -> list[tuple[str | None, Segment]]:
    return [one async for one in job.segments()]


async def _while_there(request: Request, work: Any) -> Any:
    """The result of work, which ends when the client is gone: nobody would read it."""
    job = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(_gone(request))
    try:
        await asyncio.wait({job, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not job.done():
            raise Problem(499, "the client is gone")
        return job.result()
    finally:
        for one in (job, gone):
            one.cancel()


async def _gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def _events(job: Job, using: ExitStack) -> AsyncIterator[str]:
    """Server-sent events: a delta for each part as it is heard, then the whole text."""
    texts: list[str] = []
    scores: list[dict[str, Any]] = []
    with using:
        try:
            number = 0
            async for speaker, segment in job.segments():
                if not segment.text:
                    continue
                if job.asked.format == "diarized_json":
                    yield _event(_diarized(number, speaker, segment))
                number += 1
                delta = segment.text if not texts else f" {segment.text}"
                texts.append(segment.text)
                scores += (logprobs := _logprobs([segment])) if job.asked.logprobs else []
                extra = {"logprobs": logprobs} if job.asked.logprobs else {}
                yield _event({"type": "transcript.text.delta", "delta": delta} | extra)
            done = {"type": "transcript.text.done", "text": " ".join(texts), "usage": _tokens(job, texts)}
            yield _event(done | ({"logprobs": scores} if job.asked.logprobs else {}))
            yield "data: [DONE]\n\n"
        except VoxloopError as error:
            yield f"data: {json.dumps(problem_body(status_of(error), str(error)))}\n\n"


def _event(body: dict[str, Any]) -> str:
    return f"event: {body['type']}\ndata: {json.dumps(body, ensure_ascii=False)}\n\n"


def _body(job: Job, found: Sequence[tuple[str | None, Segment]], headers: dict[str, str]) -> Response:
    segments = [segment for _, segment in found]
    format = job.asked.format
    whole = FileTranscript(file=job.asked.name, model=job.model.id, duration=job.duration, segments=tuple(segments))
    if format in ("text", "srt", "vtt"):
        return PlainTextResponse(transcripts.formatted(whole, format).rstrip("\n") + "\n", headers=headers)
    usage = {"type": "duration", "seconds": round(job.duration, 3)}
    body: dict[str, Any] = {"text": whole.text, "usage": usage}
    languages = list(dict.fromkeys(one.language for one in segments if one.language))
    if format == "json":
        body["languages"] = [{"code": code} for code in languages]
        if job.asked.logprobs:
            body["logprobs"] = _logprobs(segments)
    elif format == "diarized_json":
        body |= {"task": "transcribe", "duration": round(job.duration, 3)}
        body["segments"] = [_diarized(number, speaker, one) for number, (speaker, one) in enumerate(found) if one.text]
    else:
        body |= {"task": "transcribe", "language": _named(languages), "duration": round(job.duration, 3)}
        body["segments"] = [_verbose(number, one) for number, one in enumerate(segments)]
        if job.asked.words:
            body["words"] = [
                {"word": word.text.strip(), "start": word.start, "end": word.end}
                for one in segments
                for word in one.words
            ]
    return JSONResponse(body, headers=headers)


def _verbose(number: int, one: Segment) -> dict[str, Any]:
    return {
        "id": number,
        "seek": int(one.start * 100),
        "start": round(one.start, 3),
        "end": round(one.end, 3),
        "text": one.text,
        "tokens": [],
        "temperature": one.temperature,
        "avg_logprob": one.mean_logprob if one.mean_logprob is not None else 0.0,
        "compression_ratio": round(compression(one.text), 3),
        "no_speech_prob": one.no_speech if one.no_speech is not None else 0.0,
    }


def _diarized(number: int, speaker: str | None, one: Segment) -> dict[str, Any]:
    return {
        "type": "transcript.text.segment",
        "id": f"seg_{number:03}",
        "speaker": speaker or "A",
        "start": round(one.start, 3),
        "end": round(one.end, 3),
        "text": one.text,
    }


def _logprobs(segments: Sequence[Segment]) -> list[dict[str, Any]]:
    return word_logprobs([word for one in segments for word in one.words])


def word_logprobs(words: Sequence[Word]) -> list[dict[str, Any]]:
    """Log-probabilities by word: the mean of its tokens' probabilities, as kept with every text here."""
    return [
        {
            "token": word.text,
            "bytes": list(word.text.encode()),
            "logprob": round(math.log(max(word.probability, 1e-9)), 6),
        }
        for word in words
    ]


def _tokens(job: Job, texts: Sequence[str]) -> dict[str, Any]:
    """What OpenAI's events count: encoder positions, 50 for a second of audio, and words for lack of tokens."""
    heard, written = math.ceil(50 * job.duration), sum(len(text.split()) for text in texts)
    details = {"audio_tokens": heard, "text_tokens": 0}
    counted = {"input_tokens": heard, "output_tokens": written, "total_tokens": heard + written}
    return {"type": "tokens", "input_token_details": details} | counted


def _named(languages: Sequence[str]) -> str:
    """The first language by its English name, as OpenAI's verbose answers have it."""
    return language_name(languages[0]).lower() if languages else ""


# Models --------------------------------------------------------------------------------------------------------------


@router.get("/models", dependencies=[needs("listen")])
def list_models(request: Request) -> dict[str, Any]:
    """The models that a request may name: the workspace's own, and what its aliases stand for."""
    served: Served = request.app.state.served
    return {"object": "list", "data": [_described(name, model) for name, model in served.models.named()]}


@router.get("/models/{name:path}", dependencies=[needs("listen")])
def show_model(request: Request, name: str) -> dict[str, Any]:
    """One model, by alias, id or the id's beginning."""
    served: Served = request.app.state.served
    if name in ALIASES:
        return _described(name, served.models.current)
    try:
        return _described(name, served.models.find(name))
    except UnknownRecord as error:
        raise Problem(404, f"there is no model {name!r}", code="model_not_found", param="model") from error


def _described(name: str, model: Model) -> dict[str, Any]:
    return {
        "id": name,
        "object": "model",
        "created": int(model.created),
        "owned_by": "voxloop",
        "model": model.id,
        "family": family(model.family).name,
        "base": model.base if "/" not in model.base or not Path(model.base).is_absolute() else Path(model.base).name,
    }
