"""What the pages with a microphone need: consent, phrases to read, a check of each take, and keeping it.

A take is kept by the same step as audio that an app sends (`POST /api/entries`): as a recording with the phrase as its
text. From a token of scope `review` the text is final; otherwise it waits for a reviewer.
"""

from __future__ import annotations

import tempfile
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from anyio import to_thread
from fastapi import APIRouter, Depends, File, Form, Query, Request, UploadFile
from fastapi.responses import JSONResponse
from pydantic import BaseModel, Field

from voxloop.errors import UnknownRecord, UsageError
from voxloop.records import MAX_UTTERANCE_S, plain
from voxloop.serving import files
from voxloop.serving.batches import Urgency
from voxloop.serving.models import decoding_for
from voxloop.speech.languages import language_code
from voxloop.speech.text import differences
from voxloop.steps import captures, consent, phrases
from voxloop.steps.consent import Purpose
from voxloop.steps.recordings.conversion import of_waveform
from voxloop.web.access import Listener, Reviewer, client_of
from voxloop.web.entries import Ws
from voxloop.web.metrics import AUDIO
from voxloop.web.problems import Problem
from voxloop.web.pushed_entries import shown

if TYPE_CHECKING:
    from voxloop.records import Model
    from voxloop.serving.tokens import Client
    from voxloop.speech.spooled import Sound
    from voxloop.web.app import Served
    from voxloop.workspace import Workspace

NO_PATH = str.maketrans("/\\", "  ")
STANDARD = 0  # the version of the consent text that comes along, until it is the workspace's first


async def limited(request: Request, client: Listener) -> None:
    """Let in who may use the microphone, up to the number of requests a minute that the settings allow."""
    served: Served = request.app.state.served
    await served.requests.charge(client, 1)


router = APIRouter(prefix="/api", tags=["record"])
LIMITED = [Depends(limited)]

Name = Annotated[str, Field(min_length=1, max_length=200)]
Language = Annotated[str, Field(min_length=1, max_length=40, description="A code such as `en`, or a name")]


@router.get("/microphone")
def about(request: Request) -> dict[str, Any]:
    """Who is signed in and what they may do, the consent text, the model in use, and the languages with phrases."""
    served: Served = request.app.state.served
    client = client_of(request)
    if client is None:
        raise Problem(401, "sign in first", code="invalid_api_key")
    return {
        "you": client.name,
        "may_listen": client.may("listen"),
        "may_review": client.may("review"),
        "model": _named(served.models.current),
        "language": served.ws.settings.language or None,
        "capture": served.ws.settings.capture,
        "consent": _text(served.ws),
        "bundled": phrases.languages(),
        "own": phrases.own_languages(served.ws),
        "longest_s": MAX_UTTERANCE_S,
    }


# Consent -------------------------------------------------------------------------------------------------------------


class Given(BaseModel):
    """What a speaker agrees to: a version of the text (0: the one that comes along), and some of its purposes."""

    speaker: Name
    version: Annotated[int, Field(ge=0)]
    purposes: Annotated[list[Purpose], Field(max_length=3)] = []


@router.get("/consent", dependencies=LIMITED)
def standing(ws: Ws, speaker: Annotated[str, Query(min_length=1, max_length=200)]) -> dict[str, Any]:
    """What a speaker permits, and the newest version of the text that they agreed to."""
    with ws.read() as reader:
        return _standing(consent.of(reader, speaker))


@router.post("/consent", dependencies=LIMITED)
def give(ws: Ws, given: Given, client: Listener) -> dict[str, Any]:
    """Note that a speaker agrees."""
    version = given.version
    if version == STANDARD:
        version = consent.standard(ws, by=client.name).version
    found = consent.give(ws, given.speaker, version=version, purposes=given.purposes, by=client.name)
    return _standing(found)


@router.delete("/consent", dependencies=LIMITED)
def withdraw(ws: Ws, speaker: Annotated[str, Query(min_length=1, max_length=200)], client: Listener) -> dict[str, Any]:
    """Note that a speaker withdraws consent to everything. For others than oneself, scope `review` is needed."""
    if consent.speaker_name(speaker) != client.name and not client.may("review"):
        raise Problem(403, "to withdraw another speaker's consent, a token of scope review is needed")
    return _standing(consent.withdraw(ws, speaker, by=client.name))


def _text(ws: Workspace) -> dict[str, Any]:
    try:
        with ws.read() as reader:
            found = consent.text_of(reader)
        return {"version": found.version, "text": found.text, "purposes": found.purposes}
    except UnknownRecord:
        return {"version": STANDARD, "text": consent.STANDARD, "purposes": ["train"]}


def _standing(found: consent.Standing) -> dict[str, Any]:
    return {"speaker": found.speaker, "permits": found.permits, "version": found.version}


# Phrases -------------------------------------------------------------------------------------------------------------


class Wanted(BaseModel):
    """Whose next phrases, and from which list."""

    speaker: Name
    language: Language
    source: Literal["own", "bundled", "chosen"] = "bundled"
    count: Annotated[int, Field(ge=1, le=100)] = 10
    without: Annotated[list[str], Field(max_length=2000, description="Phrases that are put off or on their way")] = []


class List(BaseModel):
    """A list of phrases for a language, as it is to be; empty: none."""

    language: Language
    phrases: Annotated[list[str], Field(max_length=phrases.MOST)]


@router.post("/phrases/next", dependencies=LIMITED)
def next_phrases(ws: Ws, wanted: Wanted) -> dict[str, Any]:
    """The next phrases that a speaker has not recorded yet, and how far they are."""
    told: dict[str, Any] = plain(
        phrases.next_phrases(
            ws,
            speaker=wanted.speaker,
            language=wanted.language,
            source=wanted.source,
            count=wanted.count,
            without=wanted.without,
        )
    )
    return told


@router.get("/phrases", dependencies=LIMITED)
def own_phrases(ws: Ws, language: Annotated[str, Query(min_length=1, max_length=40)]) -> dict[str, Any]:
    """The workspace's own list for a language."""
    return {"language": language_code(language), "phrases": phrases.own(ws, language)}


@router.put("/phrases", dependencies=LIMITED)
def keep_phrases(ws: Ws, given: List, client: Reviewer) -> dict[str, Any]:
    """Replace the workspace's own list for a language."""
    kept = phrases.keep_list(ws, given.phrases, language=given.language, by=client.name)
    return {"language": language_code(given.language), "phrases": kept}


# Takes ---------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True, slots=True)
class Take:
    """A phrase as it was read."""

    sound: Sound
    phrase: str
    speaker: str
    language: str


async def _take(
    request: Request,
    client: Listener,
    file: Annotated[UploadFile, File(description="The recording: WAV, or anything that `/v1` takes")],
    phrase: Annotated[str, Form(min_length=1, max_length=phrases.LONGEST)],
    speaker: Annotated[str, Form(min_length=1, max_length=200)],
    language: Annotated[str, Form(min_length=1, max_length=40)],
) -> AsyncIterator[Take]:
    served: Served = request.app.state.served
    code = language_code(language)
    if code is None:
        raise UsageError("language is empty: give its code, such as en")
    name = captures.file_name(file.filename or "take.wav")
    with tempfile.TemporaryDirectory(prefix="voxloop-") as folder:
        path = Path(folder) / "upload"
        await to_thread.run_sync(path.write_bytes, await file.read())
        settings = served.ws.settings
        sound = await served.decoders.decode(
            path, name, max_seconds=60 * settings.capture_queue_minutes, max_bytes=settings.serve_max_upload_mb << 20
        )
    with sound:
        await served.limit.charge(client, sound.duration)
        if sound.duration > MAX_UTTERANCE_S:
            raise Problem(400, f"the take lasts {sound.duration:.0f} s: read at most {MAX_UTTERANCE_S:.0f} s at a time")
        who = consent.speaker_name(speaker)
        yield Take(sound=sound, phrase=" ".join(phrase.split()), speaker=who, language=code)


Taken = Annotated[Any, Depends(_take)]


@router.post("/takes/check", dependencies=LIMITED)
async def check(request: Request, client: Listener, take: Taken) -> dict[str, Any]:
    """What is wrong with a take, while it can be read again: its sound, and the words that the model heard.

    Nothing is kept. `pieces` align the phrase with what was heard, normalised as in evaluations; `unheard` says why the
    model was not asked.
    """
    served: Served = request.app.state.served
    served.batches.admit(Urgency.REQUEST)
    told: dict[str, Any] = {"seconds": round(take.sound.duration, 3)}
    told["warnings"], soundless = await to_thread.run_sync(_warnings, take.sound)
    if soundless:
        return told | {"unheard": "there is nothing to hear"}
    try:
        heard, model = await _heard(served, take, client)
    except UsageError as error:  # such as a language that the model does not know
        return told | {"unheard": str(error)}
    compared = differences(take.phrase, heard, take.language, served.ws.settings.normaliser)
    return told | {
        "heard": heard,
        "pieces": plain(compared.pieces),
        "wrong_words": compared.words.errors,
        "words": compared.words.units,
        "model": _named(model),
    }


@router.post("/takes", dependencies=LIMITED)
async def keep(request: Request, client: Listener, take: Taken) -> JSONResponse:
    """Keep a take as a recording with the phrase as its text. The same take again is answered with 200, not 201."""
    served: Served = request.app.state.served
    new, entry = await to_thread.run_sync(_kept, served.ws, take, client)
    return JSONResponse(entry, status_code=201 if new else 200)


def _warnings(sound: Sound) -> tuple[list[str], bool]:
    """What is wrong with the sound of a take, and whether there is none."""
    waveform = sound.read(0, sound.samples)
    converted = of_waveform(waveform, sound.encoding)
    found = captures.warnings_of(converted.quality, converted.samples)
    soundless = converted.quality.soundless
    return (found if soundless else [*found, *captures.cut_off(waveform)]), soundless


async def _heard(served: Served, take: Take, client: Client) -> tuple[str, Model]:
    """What the model in use hears in a take. Raises UsageError where it cannot hear that language."""
    with served.models.using() as (model, recogniser):
        decoding = decoding_for(served.ws, model, take.language)
        recogniser.transcribe([], decoding)  # says what it cannot do
        context = recogniser.context(decoding.audio_context, decoding.untuned)
        parts = await to_thread.run_sync(files.parts, served.ws, take.sound, context)
        hearing = files.hear(served.batches, parts, decoding, model=model, client=client.name, urgency=Urgency.REQUEST)
        said = [part.segment(heard).text async for part, heard in hearing]
        AUDIO.labels(model.id).inc(take.sound.duration)
        return " ".join(one for one in said if one), model


def _named(model: Model) -> dict[str, str]:
    return {"id": model.id, "name": model.name or model.base}


def _kept(ws: Workspace, take: Take, client: Client) -> tuple[bool, dict[str, Any]]:
    with ws.read() as reader:
        standing = consent.of(reader, take.speaker)
    if standing.version is None or "train" not in standing.permits:
        raise Problem(403, f"{take.speaker} has not agreed to being recorded: nothing is kept", code="consent_needed")
    kept = captures.keep(
        ws,
        of_waveform(take.sound.read(0, take.sound.samples), take.sound.encoding),
        place=Path("record") / f"{captures.file_name(take.phrase.translate(NO_PATH))}.wav",
        speaker=take.speaker,
        language=take.language,
        text=captures.Text(text=take.phrase, by=take.speaker, reviewed=client.may("review")),
        source=captures.Source(client=client.name, token=client.token, phrase=take.phrase),
    )
    return kept.new, shown(ws, kept.recording)
