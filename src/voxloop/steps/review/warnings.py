"""What looks wrong with an utterance and its text, before anyone listens. Pure functions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from voxloop.errors import counted
from voxloop.families.decoding import Guards, compression
from voxloop.records import Transcript, Utterance
from voxloop.speech.languages import contradiction, language_name
from voxloop.speech.text import CHARACTER_LANGUAGES
from voxloop.steps.transcripts import latest

WarningKind = Literal[
    "no text",
    "text too long",
    "text too short",
    "repeated words",
    "low confidence",
    "uncertain words",
    "second try",
    "cut off",
    "clipped",
    "noisy",
    "too quiet",
    "doubtful text",
    "other language",
]
WARNINGS: dict[WarningKind, str] = {
    "no text": "the text is empty",
    "text too long": "too many characters per second for speech",
    "text too short": "too few characters per second for speech",
    "repeated words": "the text repeats itself, a typical recognition error",
    "low confidence": "the recogniser was unsure of the text",
    "uncertain words": "the recogniser was very unsure of some words",
    "second try": "the first text repeated itself or was improbable, so the clip was decoded again",
    "cut off": "the text has the model's maximum length, so its end may be missing",
    "clipped": "some samples are at full scale",
    "noisy": "speech is hardly louder than the background",
    "too quiet": "much quieter than normal speech",
    "doubtful text": "`dataset build` left the given text out because its length does not fit the audio",
    "other language": "the text or the speech is probably not in the given language",
}

ADVICE: dict[WarningKind, str] = {
    "no text": "Type what is said, or reject the clip if nobody speaks.",
    "text too long": "Check for words that nobody says, at the end above all.",
    "text too short": "Listen to the end: words may be missing.",
    "repeated words": "Delete what is not repeated in the audio.",
    "low confidence": "Listen to all of it before you accept.",
    "uncertain words": "Listen to the marked words; Tab goes from one to the next.",
    "second try": "Compare the text with the audio word by word.",
    "cut off": "Listen to the end and add what is missing.",
    "clipped": "Keep it if you understand it; otherwise reject it and record again at a lower level.",
    "noisy": "Reject it if you cannot tell what is said.",
    "too quiet": "Raise the volume; reject it if you cannot tell what is said.",
    "doubtful text": "Compare the text with the audio: one of them may belong to another clip.",
    "other language": "Correct the language, or the text if it is a translation.",
}
"""What a reviewer can do about each warning."""

# Characters per second of speech. Reading aloud is 10 to 18 in alphabetic languages (Trauzettel-Klosinski et al. 2012,
# doi:10.1167/iovs.11-8284, characters per minute); the bounds allow for slow dictation and fast speech. Scripts with a
# syllable or a word per character have about a third.
FASTEST = 25.0
SLOWEST = 3.0
CHARACTER_SCRIPT = 1 / 3
SHORTEST_SPEECH_S = 0.5  # in shorter clips, the VAD's padding dominates and the rate means nothing
SLOW_FROM_S = 2.0  # a single "yes" with a second of breath around it is not a missing text

MAX_COMPRESSION = Guards().max_compression
REPEATS = 4  # consecutive repeats of a word; people do say "no no no", and dictate digits
PHRASE_REPEATS = 3  # consecutive repeats of a phrase of 2 to 8 words

LOW_CONFIDENCE = 0.6  # mean token probability
LOW_WORD = 0.3  # word probability
CLIPPED = 0.001  # fraction of samples
NOISY_DB = 10.0  # SNR
SURE_LANGUAGE = 0.8  # lowest probability at which a detected language counts
QUIET_DBFS = -45.0  # RMS level; conversational speech close to a microphone has -30 to -20


@dataclass(frozen=True, kw_only=True, slots=True)
class ReviewWarning:
    """Something that looks wrong with an utterance. A person decides whether it is."""

    kind: WarningKind
    detail: str  # the measurement, in words


def warnings_of(utterance: Utterance, transcripts: Sequence[Transcript]) -> tuple[ReviewWarning, ...]:
    """Warnings about an utterance, from its measurements and its texts in any order.

    The text is the reference if there is one, or else the newest machine text. Warnings about
    recognition (repetition, low confidence) apply only to machine text.
    """
    reference = latest(transcripts, "reference")
    machine = latest(transcripts, "clean") or latest(transcripts, "hypothesis")
    text = reference or machine
    found: list[ReviewWarning] = []
    if text is not None:
        found += _about_length(utterance, text)
        found += _about_language(utterance, text, machine)
    if utterance.doubt and utterance.status == "transcribed":  # nobody has confirmed the text since
        found.append(ReviewWarning(kind="doubtful text", detail=utterance.doubt))
    if machine is not None and reference is None:
        found += _about_recognition(machine)
    return (*found, *_about_sound(utterance))


def _about_length(utterance: Utterance, transcript: Transcript) -> list[ReviewWarning]:
    characters = len("".join(transcript.text.split()))
    if not characters:
        return [ReviewWarning(kind="no text", detail=_why_empty(transcript))]
    silence = utterance.quality.silence if utterance.quality else 0.0
    speech_s = max(utterance.duration * (1 - silence), SHORTEST_SPEECH_S)
    rate = characters / speech_s
    share = CHARACTER_SCRIPT if utterance.language in CHARACTER_LANGUAGES else 1.0
    detail = f"{counted(characters, 'character')} in {speech_s:.1f} s of speech: {rate:.1f} per second"
    if rate > FASTEST * share:
        return [ReviewWarning(kind="text too long", detail=detail)]
    if rate < SLOWEST * share and speech_s >= SLOW_FROM_S:
        return [ReviewWarning(kind="text too short", detail=detail)]
    return []


def _about_language(utterance: Utterance, text: Transcript, machine: Transcript | None) -> list[ReviewWarning]:
    """Check whether the text, or the language that the model detected, contradicts the given language."""
    given = utterance.language
    why = contradiction(text.text, given)
    if not why and machine is not None and given and machine.language and machine.language != given:
        chance = machine.language_probability
        if chance is not None and chance >= SURE_LANGUAGE:
            why = (
                f"the model detected {language_name(machine.language)} (probability {chance:.2f}) "
                f"instead of {language_name(given)}"
            )
    return [ReviewWarning(kind="other language", detail=why)] if why else []


def _why_empty(transcript: Transcript) -> str:
    if "silence" in transcript.guards:
        return "the clip is silent"
    if "no speech" in transcript.guards:
        return f"the model detected no speech (probability {transcript.no_speech or 0:.2f})"
    return "the text is empty"


def _about_recognition(machine: Transcript) -> list[ReviewWarning]:
    found = []
    repeated = repetition(machine.text)
    if repeated:
        found.append(ReviewWarning(kind="repeated words", detail=repeated))
    tried = [guard for guard in machine.guards if guard in ("repetition", "low probability")]
    if tried:
        detail = f"{' and '.join(tried)}; this text was decoded at temperature {machine.temperature or 0:g}"
        found.append(ReviewWarning(kind="second try", detail=detail))
    if "cut off" in machine.guards:
        found.append(ReviewWarning(kind="cut off", detail=f"maximum length reached ({len(machine.text)} characters)"))
    if machine.confidence is not None and machine.confidence < LOW_CONFIDENCE:
        detail = f"confidence {machine.confidence:.2f}, below {LOW_CONFIDENCE:g}"
        found.append(ReviewWarning(kind="low confidence", detail=detail))
    doubtful = [word.text.strip() for word in machine.words if word.probability < LOW_WORD]
    if doubtful:
        found.append(ReviewWarning(kind="uncertain words", detail=", ".join(doubtful)))
    return found


def _about_sound(utterance: Utterance) -> list[ReviewWarning]:
    quality = utterance.quality
    if quality is None:
        return []
    found = []
    if quality.clipping > CLIPPED:
        found.append(
            ReviewWarning(kind="clipped", detail=f"{100 * quality.clipping:.1f} % of the samples are at full scale")
        )
    if quality.snr_db is not None and quality.snr_db < NOISY_DB:
        found.append(ReviewWarning(kind="noisy", detail=f"SNR {quality.snr_db:.0f} dB, below {NOISY_DB:g}"))
    if quality.level_dbfs < QUIET_DBFS:
        found.append(ReviewWarning(kind="too quiet", detail=f"level {quality.level_dbfs:.0f} dBFS"))
    return found


def repetition(text: str) -> str:
    """What a text repeats, in words; empty if nothing."""
    words = text.casefold().split()
    repeats = len(words) - len(set(words)) >= PHRASE_REPEATS - 1  # otherwise no phrase can occur that often
    for width in range(1, 9) if repeats else ():
        times = REPEATS if width == 1 else PHRASE_REPEATS
        for start in range(len(words) - width * times + 1):
            phrase = words[start : start + width]
            # People do repeat a digit, for instance in telephone numbers.
            if width == 1 and (phrase[0].isdigit() or phrase[0] in _DIGITS):
                continue
            if all(words[start + width * n : start + width * (n + 1)] == phrase for n in range(1, times)):
                return f"{' '.join(phrase)!r} at least {times} times"
    ratio = compression(text)
    return f"compression ratio {ratio:.1f}" if ratio > MAX_COMPRESSION else ""


_DIGITS = frozenset({"zero", "oh", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"})
