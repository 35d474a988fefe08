"""How a model reads text off speech: what callers ask of every family, and what decides a text."""

from __future__ import annotations

import hashlib
import json
import zlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal

from voxloop.records import Guard

AudioContext = Literal["auto", "adaptive", "packed", "trimmed", "full"]
Context = Literal["adaptive", "packed", "trimmed", "full"]
Task = Literal["transcribe", "translate"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Guards:
    """Thresholds at which a text is suspicious and its clip is decoded again: arXiv:2212.04356, section 4.5."""

    max_compression: float = 2.4
    """A text that zlib makes smaller by more than this repeats itself."""
    min_logprob: float = -1.0
    """A text whose tokens have a lower mean log-probability is a guess."""
    max_no_speech: float = 0.6
    """Above this probability of `<|nospeech|>`, a text that is a guess too is none at all."""
    temperatures: tuple[float, ...] = (0.2, 0.4, 0.6, 0.8, 1.0)
    """Tried in turn on the clips that fail, until one passes; sampled from a seed made of the clip, so it repeats."""

    def fired(self, text: str, mean_logprob: float, no_speech: float | None) -> tuple[Guard, ...]:
        """What is suspicious about a text; only `no speech` if it should be dropped, empty if it passes."""
        doubtful = mean_logprob < self.min_logprob
        if doubtful and no_speech is not None and no_speech > self.max_no_speech:
            return ("no speech",)
        found: list[Guard] = []
        if compression(text) > self.max_compression:
            found.append("repetition")
        if doubtful:
            found.append("low probability")
        return tuple(found)


def compression(text: str) -> float:
    """The zlib compression ratio of a text: 1 or less for ordinary short texts, more for repetitive ones."""
    encoded = text.encode()
    return len(encoded) / len(zlib.compress(encoded)) if encoded else 0.0


@dataclass(frozen=True, slots=True)
class Term:
    """A name or technical term, spelled as it should be written."""

    text: str
    language: str = ""
    """ISO 639-1 code of the speech that it is said in; empty: any."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PersonalVocabulary:
    """Words that are more likely than the model expects."""

    terms: tuple[Term, ...]
    bonus: float = 0.0
    """Added to a text's log-probability for each token of a whole term that it holds; 0: none."""
    bonus_limit: float = 8.0
    """The most that one term may add."""
    prompt: bool = False
    """Put as many terms as fit in front of the text, as if they had been said just before."""

    def texts(self, language: str | None) -> tuple[str, ...]:
        """The terms for a language; all of them if it is unknown (None)."""
        return tuple(dict.fromkeys(term.text for term in self.terms if not language or term.language in ("", language)))

    def identity(self) -> dict[str, Any]:
        """What decides the text: how the terms are used, and a hash in the place of the terms."""
        listed = json.dumps(sorted((term.text, term.language) for term in self.terms), ensure_ascii=False)
        found = {name: value for name, value in asdict(self).items() if name != "terms"}
        return found | {"terms": f"sha256-{hashlib.sha256(listed.encode()).hexdigest()}"}


@dataclass(frozen=True, kw_only=True, slots=True)
class Decoding:
    """Decoding settings. `identity` is part of an evaluation's id."""

    language: str | None = None
    """ISO 639-1 code; None lets a multilingual model detect it."""
    beams: int = 1
    """1 is greedy."""
    max_new_tokens: int = 224
    """Longest text, in tokens; 224 is half of Whisper's context, as its authors decode."""
    audio_context: AudioContext = "auto"
    """auto: as the model was tuned (its config says), else `untuned`; full: padded to 30 s; adaptive: padded to twice
    its length and at least 10 s, and to 30 s where the text is doubtful; packed: several clips share a window of 30 s,
    and a clip is heard alone where its text is doubtful; trimmed: own length plus margin."""
    untuned: Context = "full"
    """What auto means for a model whose config does not say how it was tuned."""
    batch_seconds: float = 120.0
    """Padded seconds of audio decoded at once."""
    engine: str = "torch"
    """What runs the model: `torch`, or `ctranslate2-` and the type that it computes in, such as ctranslate2-int8."""
    guards: Guards | None = None
    """None: the likeliest text is taken as it is, and silence is decoded like speech."""
    hearing: str = ""
    """What of the sound the model was given, as an evaluation names it (`steps.hearing.identity`): detector, margins
    and spans. Empty: the bare spans. A recogniser hears what it is given, so this changes nothing there."""
    prompt: str = ""
    """Text that the model takes for what was said just before: its spelling and style carry over."""
    vocabulary: PersonalVocabulary | None = None
    task: Task = "transcribe"
    """translate: write in English what is said in any other language; `language` is the language spoken."""
    languages: tuple[str, ...] = ()
    """ISO 639-1 codes among which a language is detected; empty: all that the model knows."""
    temperature: float = 0.0
    """At which texts are sampled from the start, from a seed made of the clip; 0: the likeliest text."""

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    def identity(self) -> dict[str, Any]:
        """What decides the text, without what is at its default, so that a new field leaves old identities as they are.

        Hence a default, once released, must not change its meaning.
        """
        found = {
            field.name: getattr(self, field.name)
            for field in fields(self)
            if field.name not in NO_TEXT and getattr(self, field.name) != field.default
        }
        if self.guards:
            given = {field.name: (getattr(self.guards, field.name), field.default) for field in fields(self.guards)}
            found["guards"] = {name: value for name, (value, default) in given.items() if value != default}
        if self.vocabulary:
            found["vocabulary"] = self.vocabulary.identity()
        return found

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Decoding:
        """Restore a decoding from `as_dict`, also after a JSON round trip."""
        guards = values.get("guards")
        made = Guards(**guards | {"temperatures": tuple(guards["temperatures"])}) if guards else None
        known = values.get("vocabulary")
        terms = {"terms": tuple(Term(**term) for term in known["terms"])} if known else {}
        vocabulary = PersonalVocabulary(**known | terms) if known else None
        languages = tuple(values.get("languages", ()))
        return cls(**{**values, "guards": made, "vocabulary": vocabulary, "languages": languages})


NO_TEXT = ("batch_seconds",)  # fields of `Decoding` that say how fast, not what
