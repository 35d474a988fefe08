"""Decide which utterances may enter a dataset, and with which text. Pure functions.

There are two kinds of rules. Bounds judge each utterance on its own. Doubts concern texts
whose length does not fit the duration of the speech: nobody speaks that fast, or the speaker's
other clips have far more or far fewer characters per second. A doubtful text is excluded
and goes to review; it enters the dataset once a person has confirmed it. The recogniser's
output is not a reason for doubt: clips that it gets wrong are the ones to learn from.
Utterances already frozen for validation or test are never doubted.
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
from voxloop.records import MAX_UTTERANCE_S, Split, Transcript, TranscriptKind, Utterance, seconds
from voxloop.settings import Settings
from voxloop.steps.alignment import is_aligned
from voxloop.steps.datasets.style import Styles, restored
from voxloop.steps.review.decisions import METADATA
from voxloop.steps.transcripts import latest

SHORTEST_SPEECH_S = 0.5  # in shorter clips the VAD's margins are most of the audio, so the rate says nothing
SHORT_SHARE = 0.25  # of the median length: the default minimum clip length
SHORTEST_S, SHORT_ENOUGH_S = (
    0.1,
    0.5,
)  # limits of that default: a spoken vowel, and a short word with its margins
SNR_FROM_S = 1.0  # a clip cut tightly around a word has no pause in which to measure its noise
FEW_OF_SPEAKER, FEW = 10, 30  # clips of a speaker, and of a language, needed to estimate the usual rate
LEAST_FACTOR = 3.0  # a rate from a third to three times the usual one is never an outlier
SPREAD = 1.4826  # ratio of standard deviation to median absolute deviation in a normal distribution


@dataclass(frozen=True, kw_only=True)
class Filters:
    """The conditions that an utterance must meet to enter a dataset."""

    min_seconds: float | None = None
    """Minimum length in seconds: shorter clips are mostly margins and cut words. None: a quarter of the median length
    of clips that have a text, but at least 0.1 s and at most 0.5 s."""
    max_seconds: float = MAX_UTTERANCE_S
    """Maximum length in seconds; no model processes more than 30 s at once."""
    min_snr_db: float = 5.0
    """Minimum SNR in dB, for utterances of 1 s and more."""
    max_characters_per_second: float = 40.0
    """Maximum characters per second: nobody speaks faster, so text and audio do not match unless a person confirms."""
    max_label_tokens: int | None = None
    """Maximum tokens of a text, counted with prompt and end by the base model's tokenizer; None: the limit of the
    model's family."""
    keep_outliers: bool = False
    """Keep texts that are far too long or too short for their audio, compared with the speaker's other clips."""
    outlier_deviations: float = 5.0
    """Robust standard deviations of log characters per second beyond which a text is an outlier."""

    def __post_init__(self) -> None:
        if not 0 <= (self.min_seconds or 0.0) < self.max_seconds:
            raise SettingError(
                f"the minimum clip length is {self.min_seconds or 0.0:g} s and the maximum {self.max_seconds:g} s: "
                "give a minimum of 0 or more and below the maximum"
            )
        for name in ("max_characters_per_second", "max_label_tokens", "outlier_deviations"):
            value = getattr(self, name)
            if value is not None and value <= 0:
                raise SettingError(f"{name} is {getattr(self, name)}: give a value above 0")

    @classmethod
    def of(cls, settings: Settings) -> Filters:
        """Return the filters in a workspace's settings."""
        return cls(
            min_seconds=settings.min_clip_s or None, max_seconds=settings.max_clip_s, min_snr_db=settings.min_snr_db
        )


@dataclass(frozen=True, kw_only=True)
class Choice:
    """The requested speakers, languages and kinds of text."""

    machine_text: float | None = None
    """Minimum confidence of machine text in train; None: no machine text."""
    confirmed: bool = False
    """Machine text in train where a second decoding agreed with it (`usable`), whatever `machine_text` says."""
    speakers: tuple[str, ...] = ()
    """Only these speakers; empty: all."""
    languages: tuple[str, ...] = ()
    """Only these languages; empty: all."""


class Candidate(NamedTuple):
    """An utterance with its text for the dataset; flat, since there may be millions."""

    utterance: str
    recording: str
    start: int  # samples
    end: int  # samples, exclusive
    speaker: str | None
    language: str | None
    split: Split | None  # its existing split
    transcript: str
    kind: TranscriptKind
    text: str
    reviewed: bool  # a person wrote or accepted the text
    rate: float  # characters per second of speech
    styled: str = ""  # the text with the hypothesis's case and punctuation, if requested
    confidence: float = 0.0  # of machine text

    @property
    def settled(self) -> bool:
        """Whether it is already frozen for validation or test, and was judged then."""
        return self.split in ("val", "test")

    @property
    def seconds(self) -> float:
        return seconds(self.end - self.start)


def by_person(transcript: Transcript) -> bool:
    """Whether a person wrote or accepted it in Voxloop; not a model, and not a file that came with the audio."""
    return transcript.kind == "reference" and transcript.by != METADATA


def may_enter(split: Split, candidate: Candidate) -> str:
    """Return why a text may not enter a split; empty if it may. Val and test contain only human references."""
    if split == "train":
        return ""
    if candidate.kind != "reference":
        return f"machine text may not be in {split}"
    if is_aligned(candidate.transcript):
        return f"aligned text may not be in {split} until a person accepts it"
    return ""


@dataclass
class Judge:
    """Judges utterances one by one, and collects the statistics to compare them with each other."""

    filters: Filters
    choice: Choice
    labels: Labels | None
    """The base model's limits on text length; None if unknown."""
    withdrawn: frozenset[str] = frozenset()
    """Speakers who withdrew their consent to training."""
    restore_style: bool = False
    """Also compute each text with the hypothesis's case and punctuation."""
    rates: dict[tuple[str | None, str | None], array[float]] = field(default_factory=dict)
    """Logarithms of the candidates' characters per second, by speaker and language."""
    lengths_s: array[float] = field(default_factory=lambda: array("d"))
    """Lengths of the candidates."""
    styles: Styles = field(default_factory=Styles)
    """Style of the candidates' references."""

    def judge(
        self, utterance: Utterance, transcripts: Sequence[Transcript], confirmed: str | None = None
    ) -> Candidate | tuple[str, str, bool]:
        """Return a candidate, or (reason, detail, whether a person wrote its text).

        `confirmed` is the id of the machine text with which a second decoding agreed.
        """
        reason, text = self._text(utterance, transcripts, confirmed)
        if text is None:
            return reason, "", False
        reason, detail = self._bounds(utterance, text)
        if reason:
            return reason, detail, by_person(text)
        rate = _rate(utterance, text.text)
        self.rates.setdefault((utterance.speaker, utterance.language), array("d")).append(math.log(rate))
        self.lengths_s.append(utterance.duration)
        styled = ""
        if text.kind == "reference":
            self.styles.add(text.text, utterance.language)
            heard = (latest(transcripts, "clean") or latest(transcripts, "hypothesis")) if self.restore_style else None
            styled = restored(text.text, heard.text, utterance.language) if heard else ""
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
            styled=styled,
            confidence=text.confidence or 0.0,
        )

    def _text(
        self, utterance: Utterance, transcripts: Sequence[Transcript], confirmed: str | None
    ) -> tuple[str, Transcript | None]:
        choice = self.choice
        if utterance.speaker in self.withdrawn:
            return "consent withdrawn", None
        if choice.speakers and utterance.speaker not in choice.speakers:
            return "another speaker", None
        if choice.languages and utterance.language not in choice.languages:
            return "another language", None
        if utterance.status == "rejected":
            return "rejected by a reviewer", None
        if utterance.status == "deleted":
            return "deleted by a reviewer", None
        text = latest(transcripts, "reference")
        if text is not None:
            return "", text
        text = latest(transcripts, "clean") or latest(transcripts, "hypothesis")
        if text is None:
            return "not transcribed yet", None
        if choice.confirmed:
            return ("", text) if text.id == confirmed else ("machine text not confirmed by a second decoding", None)
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
        if filters.min_seconds is not None and utterance.duration < filters.min_seconds:
            return _too_short(filters.min_seconds), length
        if utterance.duration > filters.max_seconds:
            return f"longer than {filters.max_seconds:g} s (--max-seconds)", length
        quality = utterance.quality
        if quality and quality.soundless:
            return "nothing to hear (digital silence, or a constant level)", ""
        snr_db = quality.snr_db if quality and utterance.duration >= SNR_FROM_S else None
        if snr_db is not None and snr_db < filters.min_snr_db:
            return f"SNR below {filters.min_snr_db:g} dB (--min-snr-db)", f"{snr_db:.1f} dB"
        labels, most = self.labels, filters.max_label_tokens
        # Counting tokens takes longer than counting bytes, and a token has at least one byte.
        if labels and most and len(text.text.encode()) + labels.around > most:
            tokens = labels.tokens(text.text) + labels.around
            if tokens > most:
                return f"text longer than {most} tokens (--max-label-tokens)", f"{tokens} tokens"
        return "", ""

    def shortest_s(self) -> float:
        """Return the minimum clip length in seconds: as requested, or derived from the candidates."""
        if self.filters.min_seconds is not None:
            return self.filters.min_seconds
        derived = SHORT_SHARE * median(self.lengths_s) if self.lengths_s else SHORT_ENOUGH_S
        return round(min(max(derived, SHORTEST_S), SHORT_ENOUGH_S), 2)

    def too_short(self) -> Callable[[Candidate], tuple[str, str]]:
        """Return a function that gives (reason, detail) for a clip below the derived bound; empty for others.

        Since the bound depends on the clips, it does not apply to clips already frozen for validation or test.
        """
        shortest = self.shortest_s()

        def short(candidate: Candidate) -> tuple[str, str]:
            if candidate.settled or candidate.seconds >= shortest:
                return "", ""
            return _too_short(shortest), f"{candidate.seconds:.2f} s"

        return short

    def doubts(self) -> Callable[[Candidate], tuple[str, str]]:
        """What tells (reason, detail) of a text that does not fit its audio; empty reasons for the rest."""
        usual = {} if self.filters.keep_outliers else _usual(self.rates)
        fastest = self.filters.max_characters_per_second

        def doubt(candidate: Candidate) -> tuple[str, str]:
            if candidate.reviewed or candidate.settled:
                return "", ""
            speed = len(candidate.text) / candidate.seconds
            if speed > fastest:
                reason = f"more than {fastest:g} characters a second (--max-characters-per-second)"
                return reason, f"{speed:.0f} characters per second: nobody speaks that fast"
            own = (candidate.speaker, candidate.language)
            whose, key = (
                ("this speaker", own)
                if candidate.speaker and own in usual
                else ("this language", (None, candidate.language))
            )
            if key in usual:
                middle, spread = usual[key]
                far = max(self.filters.outlier_deviations * spread, math.log(LEAST_FACTOR))
                if abs(math.log(candidate.rate) - middle) > far:
                    told = (
                        f"{candidate.rate:.1f} characters per second of speech; usual for {whose}: "
                        f"{math.exp(middle):.1f}"
                    )
                    return "text far too long or too short for its audio (--keep-outliers)", told
            return "", ""

        return doubt


def _too_short(bound: float) -> str:
    return f"shorter than {bound:g} s (--min-seconds)"


def _rate(utterance: Utterance, text: str) -> float:
    """Return characters per second of speech, without pauses and margins."""
    silence = utterance.quality.silence if utterance.quality else 0.0
    speech_s = max(utterance.duration * (1 - silence), min(SHORTEST_SPEECH_S, utterance.duration))
    return len("".join(text.split())) / speech_s


Usual = dict[tuple[str | None, str | None], tuple[float, float]]


def _usual(rates: Mapping[tuple[str | None, str | None], Sequence[float]]) -> Usual:
    """Return the center and spread of log characters per second.

    Keys are speaker and language if there are enough clips, and also the language alone under
    the speaker None. Median and median absolute deviation are robust to outliers: Iglewicz and
    Hoaglin, "How to Detect and Handle Outliers" (1993), chapter 3. Rates are skewed, hence the
    logarithm: half the speed is as unusual as twice the speed.
    """
    by_language: dict[str | None, array[float]] = {}
    for (_, language), logs in rates.items():
        by_language.setdefault(language, array("d")).extend(logs)
    groups: list[tuple[tuple[str | None, str | None], Sequence[float], int]] = [
        (key, logs, FEW_OF_SPEAKER) for key, logs in rates.items() if key[0] is not None
    ]
    groups += [((None, language), logs, FEW) for language, logs in by_language.items()]
    found = {}
    for key, logs, few in groups:
        if len(logs) >= few:
            middle = median(logs)
            found[key] = (middle, SPREAD * median(abs(one - middle) for one in logs))
    return found
