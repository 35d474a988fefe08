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
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeVar, get_args

from anyio import to_thread
from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.datastructures import FormData, UploadFile

from voxloop.errors import UnknownRecord, UsageError, VoxloopError
from voxloop.families.contract import require
from voxloop.families.registry import family
from voxloop.records import Model
from voxloop.serving import files
from voxloop.serving.batches import Urgency
from voxloop.serving.capture import Captured
from voxloop.serving.files import Chunking
from voxloop.serving.models import decoding_for
from voxloop.speech.languages import UnknownLanguage, language_code
from voxloop.steps import transcripts
from voxloop.steps.transcripts import FileTranscript
from voxloop.web import openai_shapes as shapes
from voxloop.web.access import Listener, needs
from voxloop.web.metrics import AUDIO
from voxloop.web.problems import Problem, problem_body, status_of

if TYPE_CHECKING:
    from voxloop.families.contract import Recogniser, Token
    from voxloop.families.decoding import Decoding, Task
    from voxloop.serving.capture import Offered, Wish
    from voxloop.serving.files import Part
    from voxloop.serving.tokens import Client
    from voxloop.speech.spooled import Sound
    from voxloop.steps.transcripts import Segment
    from voxloop.web.app import Served

router = APIRouter(prefix="/v1")
T = TypeVar("T")

# What OpenAI's own models are called: clients that can name no other are served by the champion.
ALIASES = (
    "",
    "whisper-1",
    "gpt-4o-transcribe",
    "gpt-4o-mini-transcribe",
    "gpt-4o-mini-transcribe-2025-12-15",
    "gpt-4o-transcribe-diarize",
    "gpt-transcribe",
    "gpt-live-transcribe",
)
Format = Literal["json", "text", "srt", "verbose_json", "vtt", "diarized_json"]
FORMATS: tuple[Format, ...] = get_args(Format)
TRANSLATED: tuple[Format, ...] = ("json", "text", "srt", "verbose_json", "vtt")
SPEAKERS = "ABCDEFGH"  # what channels are called, as OpenAI calls speakers that it does not know
PATIENCE_S = 120.0  # then a long JSON answer is begun: Node gives up where no header came within 300 s
BREATH_S = 15.0  # between the spaces that keep such an answer open


# What is asked -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True, slots=True)
class Asked:
    """A request, whichever way it came."""

    file: Path
    name: str  # of the file, as the client calls it
    model: str = ""
    task: Task = "transcribe"
    language: str | None = None
    languages: tuple[str, ...] = ()  # that may be spoken
    temperature: float = 0.0
    chunking: Chunking | None = None
    format: Format = "json"
    words: bool = False
    logprobs: bool = False
    stream: bool = False
    speakers: tuple[str, ...] = ()
    fields: dict[str, Any] = field(default_factory=dict)  # all that were sent, by name


async def _asked(request: Request, folder: Path, task: Task) -> Asked:
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
        return _fields(path, f"audio.{audio.get('format', 'bin')}", values, task)
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
    return _fields(path, name, values, task)


def _lists(form: FormData) -> dict[str, Any]:
    """Fields by name: those that end with `[]`, or come several times, as lists."""
    values: dict[str, Any] = {}
    for name in form:
        if name != "file":
            given = [value for value in form.getlist(name) if isinstance(value, str)]
            values[name.removesuffix("[]")] = given if name.endswith("[]") or len(given) > 1 else given[0]
    return values


def _fields(file: Path, name: str, values: dict[str, Any], task: Task) -> Asked:
    possible = FORMATS if task == "transcribe" else TRANSLATED
    format = str(values.get("response_format") or "json")
    if format not in possible:
        raise _invalid("response_format", format, f"one of {', '.join(possible)}")
    granularities = _among(values, "timestamp_granularities", ("word", "segment"))
    languages = [_code(one, "languages") for one in _many(values, "languages")]
    return Asked(
        file=file,
        name=name,
        model=str(values.get("model") or ""),
        task=task,
        language=_code(str(values.get("language") or ""), "language"),
        languages=tuple(code for code in languages if code),
        temperature=_number(values, "temperature", 0.0, 1.0) or 0.0,
        chunking=_chunking(values),
        format=format,
        words="word" in granularities,
        logprobs="logprobs" in _among(values, "include", ("logprobs",)),
        stream=str(values.get("stream", "")).lower() in ("true", "1"),
        speakers=tuple(_many(values, "known_speaker_names")),
        fields=values,
    )


def _many(values: dict[str, Any], name: str) -> list[str]:
    found = values.get(name) or []
    return [str(one) for one in found] if isinstance(found, list) else [str(found)]


def _among(values: dict[str, Any], name: str, possible: Sequence[str]) -> list[str]:
    """A field's values. Raises Problem for one that is not possible."""
    given = _many(values, name)
    for one in given:
        if one not in possible:
            raise _invalid(name, one, f"one of {', '.join(possible)}")
    return given


def _number(values: dict[str, Any], name: str, least: float, most: float, param: str | None = None) -> float | None:
    """A number within bounds; None where none was sent. Raises Problem."""
    given = values.get(name)
    if given in (None, ""):
        return None
    try:
        number = float(given)
    except (TypeError, ValueError):
        number = math.nan
    if not least <= number <= most:
        raise _invalid(param or name, given, f"a number from {least:g} to {most:g}")
    return number


def _chunking(values: dict[str, Any]) -> Chunking | None:
    """How the client wants its file cut: `auto`, or a detector with its settings. Raises Problem."""
    given = values.get("chunking_strategy")
    if given in (None, "") and "chunking_strategy[type]" in values:
        given = {
            name.removeprefix("chunking_strategy[").removesuffix("]"): value
            for name, value in values.items()
            if name.startswith("chunking_strategy[")
        }
    if given in (None, "", "auto"):
        return None
    if not isinstance(given, dict) or given.get("type") != "server_vad":
        raise _invalid("chunking_strategy", given, "auto, or an object of type server_vad")
    silence, padding = (
        _number(given, name, 0, 10_000, f"chunking_strategy.{name}")
        for name in ("silence_duration_ms", "prefix_padding_ms")
    )
    return Chunking(
        threshold=_number(given, "threshold", 0, 1, "chunking_strategy.threshold"),
        silence_ms=None if silence is None else int(silence),
        padding_ms=None if padding is None else int(padding),
    )


def _code(given: str, param: str) -> str | None:
    try:
        return language_code(given)
    except UnknownLanguage as error:
        raise Problem(400, str(error), code="invalid_value", param=param) from error


def _invalid(name: str, given: object, needed: str) -> Problem:
    return Problem(400, f"{name} is {given!r}: it must be {needed}", code="invalid_value", param=name)


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
    sound: Sound | None = None  # of a file whose channels were mixed
    wish: Wish | None = None  # how to keep it, where that is wanted

    async def segments(self) -> AsyncIterator[Said]:
        """What is said, in the order of time."""
        speakers = [speaker for speaker, _ in self.parts]
        hearing = files.hear(
            self.served.batches,
            [part for _, part in self.parts],
            self.decoding,
            model=self.model,
            client=self.client.name,
            urgency=files.urgency_of(self.parts[0][1].sound) if self.parts else Urgency.REQUEST,
            word_times=self.asked.words or self.asked.format in ("srt", "vtt"),
        )
        async with aclosing(hearing):
            place = 0
            async for part, heard in hearing:
                AUDIO.labels(heard.model).inc((part.given[1] - part.given[0]) / 16_000)
                yield Said(speakers[place], part.segment(heard), heard.hypothesis.tokens)
                place += 1


class Said(NamedTuple):
    """What was heard in a part of a file, and from whom where that is known."""

    speaker: str | None
    segment: Segment
    tokens: tuple[Token, ...]


def _model(served: Served, asked: Asked, using: ExitStack) -> tuple[Model, Recogniser, Decoding]:
    """The model that is to answer, held until `using` ends. Raises Problem for what is unknown, or beyond it."""
    try:
        named = None if asked.model in ALIASES else served.models.find(asked.model)
    except UnknownRecord as error:
        raise Problem(
            404, f"there is no model {asked.model!r}: /v1/models lists them", code="model_not_found", param="model"
        ) from error
    # Held until the request is answered: whatever is promoted meanwhile, one request is heard by one model.
    model, recogniser = using.enter_context(served.models.using(named))
    decoding = _decoding(served, asked, model)
    try:
        if asked.task == "translate":
            require(family(model.family), "translation")
        recogniser.transcribe([], decoding)  # says what it cannot do before a file is decoded
    except UsageError as error:
        raise Problem(400, str(error), code="unsupported_value", param="model") from error
    return model, recogniser, decoding


async def _begin(
    served: Served, asked: Asked, client: Client, model: tuple[Model, Recogniser, Decoding], using: ExitStack
) -> Job:
    """Decode a request's file and find its speech. Raises Problem, AudioError, QueueFull."""
    settings = served.ws.settings
    record, recogniser, decoding = model
    context = recogniser.context(decoding.audio_context, decoding.untuned)
    max_seconds, max_bytes = settings.serve_max_audio_hours * 3600, settings.serve_max_upload_mb << 20
    channels: list[int | None] = [None]
    if asked.format == "diarized_json":
        count = await served.decoders.channels(asked.file, asked.name, max_bytes=max_bytes)
        channels = list(range(_channels(count)))
    sounds: list[tuple[str | None, Sound]] = []
    for channel in channels:
        sound = await served.decoders.decode(
            asked.file, asked.name, max_seconds=max_seconds, max_bytes=max_bytes, channel=channel
        )
        using.callback(sound.close)
        sounds.append((None if channel is None else _speaker(asked, channel), sound))
        served.batches.admit(files.urgency_of(sound))
    duration = sounds[0][1].duration
    await served.limit.charge(client, duration)
    parts: list[tuple[str | None, Part]] = []
    for speaker, sound in sounds:
        found = await to_thread.run_sync(files.parts, served.ws, sound, context, asked.chunking)
        parts += [(speaker, part) for part in found]
    parts.sort(key=lambda pair: pair[1].span)
    return Job(
        served=served,
        asked=asked,
        client=client,
        model=record,
        decoding=decoding,
        parts=parts,
        duration=duration,
        sound=sounds[0][1] if channels == [None] else None,
    )


def _decoding(served: Served, asked: Asked, model: Model) -> Decoding:
    """How the workspace reads text off the model, with what this request asks for beyond that."""
    prompt, keywords = str(asked.fields.get("prompt") or ""), _many(asked.fields, "keywords")
    found = decoding_for(served.ws, model, asked.language, prompt, keywords)
    only = asked.languages[0] if len(asked.languages) == 1 else None
    return replace(
        found,
        task=asked.task,
        language=asked.language or only or (None if asked.languages else found.language),
        languages=asked.languages if len(asked.languages) > 1 else (),
        temperature=asked.temperature,
    )


def _channels(found: int) -> int:
    """Channels of a file in which each speaker has one. Raises Problem where it has one alone, or too many."""
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
    return await _answered(request, client, "transcribe")


@router.post("/audio/translations")
async def translations(request: Request, client: Listener) -> Response:
    """Write in English what is said in another language; the model in use, or the one named, has to be multilingual."""
    return await _answered(request, client, "translate")


async def _answered(request: Request, client: Client, task: Task) -> Response:
    served: Served = request.app.state.served
    using = ExitStack()
    try:
        folder = using.enter_context(tempfile.TemporaryDirectory(prefix="voxloop-"))
        asked = await _asked(request, Path(folder), task)
        # Not ended when the client is gone: what a thread enters is to be left again.
        model = await to_thread.run_sync(_model, served, asked, using)
        job = await _while_there(request, asyncio.ensure_future(_begin(served, asked, client, model, using)))
        headers = {"x-voxloop-model": job.model.id}
        if served.capture is not None and task == "transcribe":
            job.wish = await to_thread.run_sync(served.capture.wish, asked.fields, client)
        if asked.stream and asked.format in ("json", "text", "diarized_json"):
            return StreamingResponse(
                _events(job, using.pop_all()),
                media_type="text/event-stream",
                headers=headers | {"cache-control": "no-store", "x-accel-buffering": "no"},
            )
        work = asyncio.ensure_future(_all(job))
        patience_s = None if asked.format in ("text", "srt", "vtt") else PATIENCE_S
        try:
            found = await _while_there(request, work, patience_s)
            return _body(job, found, headers, await _kept(job, found))
        except TimeoutError:
            late = _late(job, work, using.pop_all())
            return StreamingResponse(late, media_type="application/json", headers=headers)
    finally:
        using.close()


async def _all(job: Job) -> list[Said]:
    return [one async for one in job.segments()]


async def _while_there(request: Request, work: asyncio.Future[T], patience_s: float | None = None) -> T:
    """The result of work, which is cancelled when the client is gone: nobody would read it.

    Raises TimeoutError where it takes longer than `patience_s`; the work goes on then.
    """
    gone = asyncio.ensure_future(_gone(request))
    both: list[asyncio.Future[Any]] = [work, gone]
    going_on = False
    try:
        await asyncio.wait(both, timeout=patience_s, return_when=asyncio.FIRST_COMPLETED)
        if work.done():
            return work.result()
        if gone.done():
            raise Problem(499, "the client is gone")
        going_on = True
        raise TimeoutError
    finally:
        gone.cancel()
        if not going_on:
            work.cancel()


async def _late(job: Job, work: asyncio.Future[list[Said]], using: ExitStack) -> AsyncIterator[bytes]:
    """A JSON answer behind spaces, which keep the connection open until it is there.

    Its status is sent by then, so a failure ends it half-way, which clients take for the error that it is.
    """
    with using:
        try:
            while not work.done():
                yield b" "
                await asyncio.wait({work}, timeout=BREATH_S)
            yield bytes(_body(job, work.result(), {}, await _kept(job, work.result())).body)
        finally:
            work.cancel()


async def _gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def _events(job: Job, using: ExitStack) -> AsyncIterator[str]:
    """Server-sent events: a delta for each part as it is heard, then the whole text."""
    said: list[Said] = []
    with using:
        try:
            async for one in job.segments():
                if not one.segment.text:
                    continue
                delta = one.segment.text if not said else f" {one.segment.text}"
                body = {"type": "transcript.text.delta", "delta": delta}
                if job.asked.format == "diarized_json":
                    segment = shapes.diarized(len(said), one)
                    yield _event(segment)
                    body |= {"segment_id": segment["id"]}
                said.append(one)
                yield _event(body | ({"logprobs": shapes.logprobs([one])} if job.asked.logprobs else {}))
            done = {
                "type": "transcript.text.done",
                "text": " ".join(one.segment.text for one in said),
                "usage": shapes.token_usage(job.duration, said),
                "languages": shapes.languages(said),
            }
            if offered := await _kept(job, said):
                done["capture"] = offered.as_dict()
            yield _event(done | ({"logprobs": shapes.logprobs(said)} if job.asked.logprobs else {}))
            yield "data: [DONE]\n\n"
        except VoxloopError as error:
            yield f"data: {json.dumps(problem_body(status_of(error), str(error)))}\n\n"


def _event(body: dict[str, Any]) -> str:
    return f"event: {body['type']}\ndata: {json.dumps(body, ensure_ascii=False)}\n\n"


async def _kept(job: Job, said: Sequence[Said]) -> Offered | None:
    """Offer to the capture what was heard, where that is wanted. It is written later; this waits for no disk."""
    capture, wish, sound = job.served.capture, job.wish, job.sound
    if capture is None or wish is None or sound is None:
        return None
    if not capture.fits(sound.samples):
        return capture.drop("too long")
    captured = Captured(
        waveform=sound.read(0, sound.samples),
        name=job.asked.name,
        wish=wish,
        model=job.model.id,
        segments=tuple(one.segment for one in said),
        encoding=sound.encoding,
        language=job.asked.language,
    )
    return await to_thread.run_sync(capture.offer, captured)


def _body(job: Job, found: Sequence[Said], headers: dict[str, str], offered: Offered | None = None) -> Response:
    format, asked = job.asked.format, job.asked
    if offered:
        headers = headers | offered.headers
    segments = tuple(one.segment for one in found)
    whole = FileTranscript(file=asked.name, model=job.model.id, duration=job.duration, segments=segments)
    if format in ("text", "srt", "vtt"):
        return PlainTextResponse(transcripts.formatted(whole, format).rstrip("\n") + "\n", headers=headers)
    duration = round(job.duration, 3)
    body: dict[str, Any] = {"text": whole.text, "usage": {"type": "duration", "seconds": duration}}
    if offered:
        body["capture"] = offered.as_dict()
    if format == "json":
        if asked.task == "transcribe":
            body["languages"] = shapes.languages(found)
        if asked.logprobs:
            body["logprobs"] = shapes.logprobs(found)
        return JSONResponse(body, headers=headers)
    body |= {"task": asked.task, "duration": duration}
    if format == "diarized_json":
        spoken = [one for one in found if one.segment.text]
        body["segments"] = [shapes.diarized(number, one) for number, one in enumerate(spoken)]
        return JSONResponse(body, headers=headers)
    body["language"] = "english" if asked.task == "translate" else shapes.named_language(found)
    body["segments"] = [shapes.verbose(number, one) for number, one in enumerate(found)]
    if asked.words:
        body["words"] = [
            {"word": word.text.strip(), "start": word.start, "end": word.end}
            for segment in segments
            for word in segment.words
        ]
    return JSONResponse(body, headers=headers)


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
