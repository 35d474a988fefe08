"""Which utterances may enter a dataset, and with which text. Pure functions over what is known of each.

Two kinds of rules. Bounds judge an utterance by itself. Suspicions judge it by its
neighbours: its speed beside the others of its language, its text beside what a
recogniser heard that hears the others well. A suspicion is never held against what a
person wrote or accepted, nor against what is frozen for validation or test already:
otherwise the newest model would choose what it is measured on.
"""

from __future__ import annotations

import math
from array import array
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import NamedTuple

from voxloop.errors import SettingError
from voxloop.families.contract import Labels
from voxloop.records import MAX_UTTERANCE_S, Split, Transcript, TranscriptKind, Utterance
from voxloop.settings import Settings
from voxloop.speech import text as _text
from voxloop.steps.alignment import is_aligned
from voxloop.steps.review.decisions import METADATA
from voxloop.steps.transcripts import latest

SHORTEST_SPEECH_S = 0.5  # below, the VAD's margins are most of the audio and the rate says nothing
FEW = 30  # clips of a language below which they say nothing about what is usual
LEAST_FACTOR = 3.0  # a rate within a third and three times of what is usual is no outlier, however alike the others are
SPREAD = 1.4826  # the median absolute deviation of a normal distribution times this is its standard deviation
AGREEING = 0.3  # character error rate up to which a hypothesis is the same text, but for some errors
TRUSTED = 0.9  # share of a model's confident texts that agree with references, from which its doubt counts
FEW_HEARD = 20  # confident texts in a language below which a model is not trusted
TOLD = 10  # characters: shorter texts are misheard as a whole even by a good model


@dataclass(frozen=True, kw_only=True)
class Filters:
    """What is asked of an utterance before it may be learnt from or tested on."""

    min_seconds: float = 0.5
    """Shorter utterances stay out: they are mostly margins, and cut words."""
    max_seconds: float = MAX_UTTERANCE_S
    """Longer utterances stay out; no model hears more than 30 s at once."""
    min_snr_db: float = 5.0
    """Utterances measured noisier than this stay out."""
    max_characters_per_second: float = 40.0
    """Faster than anybody speaks: text and audio do not belong together."""
    max_label_tokens: int | None = None
    """Longer texts stay out, counted with prompt and end by the base model's tokenizer; None: as many as models of its
    family can write."""
    keep_outliers: bool = False
    """Keep texts that are far too long or too short for their audio beside the others of their language."""
    outlier_deviations: float = 5.0
    """Robust standard deviations of the logarithm of characters per second from which a text is an outlier."""
    keep_mismatched: bool = False
    """Keep given texts that a confident and otherwise reliable model heard quite differently."""
    mismatch: float = 0.8
    """Character error rate from which a given text and what was heard hardly agree."""
    mismatch_confidence: float = 0.8
    """Confidence from which a hypothesis is evidence."""

    def __post_init__(self) -> None:
        if not 0 <= self.min_seconds < self.max_seconds:
            raise SettingError(
                f"the shortest clip is {self.min_seconds:g} s and the longest {self.max_seconds:g} s: "
                "the shortest must be 0 or more and below the longest"
            )
        for name in ("max_characters_per_second", "max_label_tokens", "outlier_deviations", "mismatch"):
            value = getattr(self, name)
            if value is not None and value <= 0:
                raise SettingError(f"{name} is {getattr(self, name)}: it must be above 0")
        if not 0 <= self.mismatch_confidence <= 1:
            raise SettingError(f"mismatch_confidence is {self.mismatch_confidence}: it must be from 0 to 1")

    @classmethod
    def of(cls, settings: Settings) -> Filters:
        """The filters that a workspace's settings ask for."""
        return cls(min_seconds=settings.min_clip_s, max_seconds=settings.max_clip_s, min_snr_db=settings.min_snr_db)


@dataclass(frozen=True, kw_only=True)
class Choice:
    """Whose speech, and which texts, are asked for."""

    machine_text: float | None = None
    """Confidence from which machine text trains; None: none does."""
    speakers: tuple[str, ...] = ()
    """Only these; empty: all."""
    languages: tuple[str, ...] = ()
    """Only these; empty: all."""


class Candidate(NamedTuple):
    """An utterance with the text that it would enter with; flat, since there may be millions of them."""

    utterance: str
    recording: str
    start: int  # samples
    end: int  # samples, exclusive
    speaker: str | None
    language: str | None
    split: Split | None  # that it has already
    transcript: str
    kind: TranscriptKind
    text: str
    reviewed: bool  # a person wrote or accepted the text
    rate: float  # characters a second of speech
    distance: float | None  # character error rate between the text and what a confident model heard
    model: str  # which model heard it

    @property
    def settled(self) -> bool:
        """Frozen for validation or test already: judged then."""
        return self.split in ("val", "test")


def by_person(transcript: Transcript) -> bool:
    """Whether a person wrote or accepted it here, rather than a model or a file that came with the audio."""
    return transcript.kind == "reference" and transcript.by != METADATA


def may_enter(split: Split, candidate: Candidate) -> str:
    """Why a text may not be in a split; empty where it may. Tests are measured against what people wrote alone."""
    if split == "train":
        return ""
    if candidate.kind != "reference":
        return f"machine text may not be in {split}"
    if is_aligned(candidate.transcript):
        return f"aligned text may not be in {split} until a person accepts it"
    return ""


@dataclass
class Judge:
    """Judges utterances one by one, and remembers what is needed to judge them by each other."""

    filters: Filters
    choice: Choice
    labels: Labels | None
    """How long texts the base model can write; None where nobody can say."""
    heard: dict[tuple[str, str | None], list[int]] = field(default_factory=dict)
    """Confident texts in agreement with references, and confident texts in all, by model and language."""
    rates: dict[str | None, array[float]] = field(default_factory=dict)
    """Logarithms of the candidates' characters a second, by language."""

    def judge(self, utterance: Utterance, transcripts: Sequence[Transcript]) -> Candidate | tuple[str, str, bool]:
        """A candidate, or (reason, detail, whether a person wrote its text)."""
        reason, text = self._text(utterance, transcripts)
        if text is None:
            return reason, "", False
        reason, detail = self._bounds(utterance, text)
        if reason:
            return reason, detail, by_person(text)
        rate = _rate(utterance, text.text)
        self.rates.setdefault(utterance.language, array("d")).append(math.log(rate))
        heard = latest(transcripts, "hypothesis")
        distance = self._distance(utterance, text, heard)
        return Candidate(
            utterance=utterance.id,
            recording=utterance.recording,
            start=utterance.start,
            end=utterance.end,
            speaker=utterance.speaker,
            language=utterance.language,
            split=utterance.split,
            transcript=text.id,
            kind=text.kind,
            text=text.text,
            reviewed=by_person(text),
            rate=rate,
            distance=distance,
            model=heard.by if heard and distance is not None else "",
        )

    def _text(self, utterance: Utterance, transcripts: Sequence[Transcript]) -> tuple[str, Transcript | None]:
        choice = self.choice
        if choice.speakers and utterance.speaker not in choice.speakers:
            return "another speaker", None
        if choice.languages and utterance.language not in choice.languages:
            return "another language", None
        if utterance.status == "rejected":
            return "rejected by a reviewer", None
        text = latest(transcripts, "reference")
        if text is not None:
            return "", text
        text = latest(transcripts, "clean") or latest(transcripts, "hypothesis")
        if text is None:
            return "not transcribed yet", None
        if choice.machine_text is None:
            return "machine text only, not reviewed", None
        if (text.confidence or 0.0) < choice.machine_text:
            return f"machine text below confidence {choice.machine_text:g}", None
        return "", text

    def _bounds(self, utterance: Utterance, text: Transcript) -> tuple[str, str]:
        filters = self.filters
        if not text.text.strip():
            return "empty text", ""
        length = f"{utterance.duration:.2f} s"
        if utterance.duration < filters.min_seconds:
            return f"shorter than {filters.min_seconds:g} s (--min-seconds)", length
        if utterance.duration > filters.max_seconds:
            return f"longer than {filters.max_seconds:g} s (--max-seconds)", length
        speed = len(text.text) / utterance.duration
        if speed > filters.max_characters_per_second:
            bound = filters.max_characters_per_second
            return f"more than {bound:g} characters a second (--max-characters-per-second)", f"{speed:.0f} a second"
        quality = utterance.quality
        if quality and quality.soundless:
            return "nothing to hear (digital silence, or a constant level)", ""
        if quality and quality.snr_db is not None and quality.snr_db < filters.min_snr_db:
            return f"SNR below {filters.min_snr_db:g} dB (--min-snr-db)", f"{quality.snr_db:.1f} dB"
        labels, most = self.labels, filters.max_label_tokens
        # Counting takes longer than looking at the bytes, of which a token has one at least.
        if labels and most and len(text.text.encode()) + labels.around > most:
            tokens = labels.tokens(text.text) + labels.around
            if tokens > most:
                return f"text longer than {most} tokens (--max-label-tokens)", f"{tokens} tokens"
        return "", ""

    def _distance(self, utterance: Utterance, text: Transcript, hypothesis: Transcript | None) -> float | None:
        """How far a reference is from what was heard, where that is evidence; what it says of the model is noted."""
        if text.kind != "reference" or hypothesis is None or self.filters.keep_mismatched:
            return None
        if (hypothesis.confidence or 0.0) < self.filters.mismatch_confidence or is_aligned(text.id):
            return None
        if max(len(text.text), len(hypothesis.text)) < TOLD:
            return None
        given, heard = (_text.normalise(one, utterance.language) for one in (text.text, hypothesis.text))
        distance = _text.character_errors(given, heard).rate
        agreed = self.heard.setdefault((hypothesis.by, utterance.language), [0, 0])
        agreed[0] += distance <= AGREEING
        agreed[1] += 1
        return distance

    def suspicions(self) -> Callable[[Candidate], tuple[str, str]]:
        """What tells (reason, detail) of one that differs from all that were judged; empty reasons for the rest."""
        usual = {} if self.filters.keep_outliers else _usual(self.rates)
        trusted = {
            key
            for key, (agreed, all) in self.heard.items()
            if all >= FEW_HEARD and agreed / all >= TRUSTED and not self.filters.keep_mismatched
        }

        def suspicion(candidate: Candidate) -> tuple[str, str]:
            if candidate.reviewed or candidate.settled:
                return "", ""
            language = candidate.language
            if language in usual:
                middle, spread = usual[language]
                far = max(self.filters.outlier_deviations * spread, math.log(LEAST_FACTOR))
                if abs(math.log(candidate.rate) - middle) > far:
                    told = f"{candidate.rate:.1f} characters a second of speech, usual are {math.exp(middle):.1f}"
                    return "characters a second far from the others' (--keep-outliers)", told
            distance = candidate.distance
            if distance is not None and distance >= self.filters.mismatch and (candidate.model, language) in trusted:
                told = f"character error rate {distance:.2f}"
                return "the text given and what was heard hardly agree (--keep-mismatched)", told
            return "", ""

        return suspicion


def _rate(utterance: Utterance, text: str) -> float:
    """Characters a second of speech: pauses and margins do not count."""
    silence = utterance.quality.silence if utterance.quality else 0.0
    speech_s = max(utterance.duration * (1 - silence), min(SHORTEST_SPEECH_S, utterance.duration))
    return len("".join(text.split())) / speech_s


def _usual(rates: Mapping[str | None, Sequence[float]]) -> dict[str | None, tuple[float, float]]:
    """The middle and the spread of the logarithm of characters per second, by language.

    Median and median absolute deviation, which outliers hardly move: Iglewicz and
    Hoaglin, "How to Detect and Handle Outliers" (1993), chapter 3. The logarithm
    since rates are skewed: half the speed is as far from usual as twice the speed.
    """
    found = {}
    for language, logs in rates.items():
        if len(logs) >= FEW:
            middle = median(logs)
            found[language] = (middle, SPREAD * median(abs(one - middle) for one in logs))
    return found
