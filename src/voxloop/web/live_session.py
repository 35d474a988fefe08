"""The configuration of a live session in OpenAI's shape: its defaults, how updates merge, and what they ask for.

What only tunes OpenAI's own models, such as `noise_reduction`, is kept and has no effect: clients take every error for
the end of a session.
"""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, cast

from voxloop.errors import UnknownRecord, UsageError
from voxloop.serving.incoming import Codec, Format
from voxloop.serving.live import Detection, Wanted
from voxloop.speech.languages import UnknownLanguage, language_code
from voxloop.web.openai_audio import ALIASES
from voxloop.web.problems import Problem

if TYPE_CHECKING:
    from voxloop.serving.models import ServedModels

LOGPROBS = "item.input_audio_transcription.logprobs"
UNSTABLE = "voxloop.unstable"  # our own: what was heard and may still change, as an event of its own

# OpenAI's names of models for live speech, which stand for the champion as `ALIASES` do.
LIVE_ALIASES = (*ALIASES, "gpt-realtime", "gpt-realtime-mini", "gpt-realtime-whisper")
MANUAL = ("gpt-live-transcribe", "gpt-realtime-whisper")  # whose clients end utterances themselves
RATES = {"audio/pcm": 24_000, "audio/pcmu": 8_000, "audio/pcma": 8_000}
CODECS: Mapping[str, Codec] = {"audio/pcm": "pcm", "audio/pcmu": "pcmu", "audio/pcma": "pcma"}

SERVER_VAD = {"type": "server_vad", "threshold": 0.5, "prefix_padding_ms": 300, "silence_duration_ms": 500}
EAGERNESS_MS = {"low": 1000, "medium": 700, "auto": 700, "high": 400}  # of semantic_vad, as pauses
BOUNDS = {"threshold": (0.0, 1.0), "prefix_padding_ms": (0, 5_000), "silence_duration_ms": (64, 10_000)}


@dataclass(frozen=True, kw_only=True, slots=True)
class Asked:
    """What a configuration asks for."""

    wanted: Wanted
    format: Format
    unstable: bool
    logprobs: bool


class LiveSession:
    """A session's configuration; updates merge deeply."""

    def __init__(self, config: Mapping[str, Any] | None = None) -> None:
        self.config: dict[str, Any] = deepcopy(dict(config)) if config else {}

    def updated(self, update: Any) -> LiveSession:
        """Return the session with an update. Raises Problem for what no transcription session can be."""
        if not isinstance(update, dict):
            raise Problem(400, "session has to be an object", code="invalid_type", param="session")
        if update.get("type", "transcription") != "transcription":
            raise Problem(
                400,
                f"session.type is {update['type']!r}: this server holds transcription sessions",
                code="invalid_value",
                param="session.type",
            )
        return LiveSession(_merged(self.config, update))

    def asked(self, models: ServedModels) -> Asked:
        """Read the configuration. Raises Problem for an invalid value; asks the catalog for a named model."""
        given = _table(_table(self.config, "audio", "session.audio"), "input", "session.audio.input")
        transcription = _table(given, "transcription", "session.audio.input.transcription")
        include = self.config.get("include") or []
        if not isinstance(include, list):
            raise _invalid("session.include", include, "a list")
        named = str(transcription.get("model") or "")
        try:
            model = None if named in LIVE_ALIASES else models.find(named)
        except UnknownRecord as error:
            raise Problem(
                404,
                f"there is no model {named!r}: /v1/models lists them",
                code="model_not_found",
                param="session.audio.input.transcription.model",
            ) from error
        wanted = Wanted(
            model=model,
            language=_language(transcription),
            prompt=str(transcription.get("prompt") or ""),
            keywords=tuple(str(word) for word in transcription.get("keywords") or ()),
            detection=_detection(given, manual=named in MANUAL),
            words=LOGPROBS in include,
        )
        return Asked(
            wanted=wanted,
            format=_format(given),
            unstable=UNSTABLE in include,
            logprobs=LOGPROBS in include,
        )

    def shown(self, id: str, asked: Asked) -> dict[str, Any]:
        """The session as clients are told of it."""
        given = (self.config.get("audio") or {}).get("input") or {}
        kind = next(name for name, codec in CODECS.items() if codec == asked.format.codec)
        format = {"type": kind, "rate": asked.format.rate} if kind == "audio/pcm" else {"type": kind}
        detection = asked.wanted.detection
        turns = None
        if detection is not None:
            turns = {
                "type": "server_vad",
                "threshold": detection.threshold,
                "prefix_padding_ms": detection.prefix_ms,
                "silence_duration_ms": detection.silence_ms,
            }
        named = given.get("transcription") or {}
        transcription = {"model": named.get("model") or "champion", "language": asked.wanted.language} | {
            name: named[name] for name in ("prompt", "keywords", "languages", "delay") if name in named
        }
        return {
            "id": id,
            "object": "realtime.transcription_session",
            "type": "transcription",
            "audio": {
                "input": {
                    "format": format,
                    "noise_reduction": given.get("noise_reduction"),
                    "transcription": transcription,
                    "turn_detection": turns,
                }
            },
            "include": self.config.get("include") or None,
        }


def _merged(base: dict[str, Any], update: dict[str, Any]) -> dict[str, Any]:
    found = dict(base)
    for name, value in update.items():
        before = found.get(name)
        found[name] = _merged(before, value) if isinstance(before, dict) and isinstance(value, dict) else value
    return found


def _table(values: Mapping[str, Any], name: str, param: str) -> dict[str, Any]:
    found = values.get(name)
    if found is not None and not isinstance(found, dict):
        raise _invalid(param, found, "an object")
    return found or {}


def _invalid(param: str, found: Any, needed: str) -> Problem:
    return Problem(400, f"{param} is {str(found)[:80]!r}: it must be {needed}", code="invalid_value", param=param)


def _language(transcription: Mapping[str, Any]) -> str | None:
    """The language asked for; of several that may be spoken, none: the model finds out which."""
    several = transcription.get("languages") or []
    one = several[0] if isinstance(several, list) and len(several) == 1 else ""
    try:
        return language_code(str(transcription.get("language") or one))
    except UnknownLanguage as error:
        param = "session.audio.input.transcription.language"
        raise Problem(400, str(error), code="invalid_value", param=param) from error


def _format(given: Mapping[str, Any]) -> Format:
    """`audio/pcm` at 24 kHz, as OpenAI has it, or at another `rate`, which is our own; G.711 at 8 kHz."""
    found = _table(given, "format", "session.audio.input.format")
    kind = found.get("type") or "audio/pcm"
    if kind not in CODECS:
        raise _invalid("session.audio.input.format.type", kind, f"one of {', '.join(CODECS)}")
    rate = found.get("rate") or RATES[kind]
    if not isinstance(rate, int) or (kind != "audio/pcm" and rate != RATES[kind]):
        raise _invalid("session.audio.input.format.rate", rate, str(RATES[kind]))
    try:
        return Format(codec=CODECS[kind], rate=rate)
    except UsageError as error:
        raise Problem(400, str(error), code="invalid_value", param="session.audio.input.format.rate") from error


def _detection(given: Mapping[str, Any], *, manual: bool) -> Detection | None:
    if "turn_detection" not in given:
        return None if manual else Detection()
    asked = given["turn_detection"]
    if asked is None:
        return None
    param = "session.audio.input.turn_detection"
    if not isinstance(asked, dict):
        raise _invalid(param, asked, "an object or null")
    kind = cast("Literal['server_vad', 'semantic_vad']", asked.get("type") or "server_vad")
    if kind == "semantic_vad":
        eagerness = asked.get("eagerness") or "auto"
        if eagerness not in EAGERNESS_MS:
            raise _invalid(f"{param}.eagerness", eagerness, f"one of {', '.join(EAGERNESS_MS)}")
        return Detection(silence_ms=EAGERNESS_MS[eagerness])
    if kind != "server_vad":
        raise _invalid(f"{param}.type", kind, "server_vad or semantic_vad")
    values = SERVER_VAD | {name: value for name, value in asked.items() if value is not None}
    for name, (least, most) in BOUNDS.items():
        value = values[name]
        if isinstance(value, bool) or not isinstance(value, int | float) or not least <= value <= most:
            raise _invalid(f"{param}.{name}", value, f"from {least} to {most}")
    return Detection(
        threshold=float(cast("float", values["threshold"])),
        prefix_ms=int(cast("int", values["prefix_padding_ms"])),
        silence_ms=int(cast("int", values["silence_duration_ms"])),
    )
