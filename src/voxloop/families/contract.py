"""The contract between the steps and a model family: what every family does, and optional capabilities.

A family is an object that has `Family`, found by name in `registry.py`; steps see nothing else of it. What only some
families support is a capability: a caller asks for it with `require`, which raises an error if the family lacks it.

Letters in shapes: `B` batch, `S` samples, `F` mel channels, `T` mel frames, `E` encoder positions, `U` label tokens,
`D` width.
"""

from __future__ import annotations

import hashlib
import json
import zlib
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol, overload

from voxloop.errors import UsageError
from voxloop.records import Guard, Word

if TYPE_CHECKING:
    import numpy as np
    import torch

    Waveform = np.ndarray[tuple[int], np.dtype[np.float32]]  # (S,), 16 kHz, -1 to 1

AudioContext = Literal["auto", "adaptive", "trimmed", "full"]
Context = Literal["adaptive", "trimmed", "full"]
Task = Literal["transcribe", "translate"]
Part = Literal["encoder", "embeddings"]
"""A part of a model that training can freeze: the encoder or the token embedding."""

Capability = Literal[
    "word times",
    "no-speech",
    "language detection",
    "guards",
    "prompt",
    "translation",
    "sampling",
    "biased decoding",
    "n-best",
    "prefix",
    "cancelling",
    "short context",
    "ctranslate2",
    "adapters",
    "embeddings",
    "encoder states",
    "cost estimate",
    "other programs",
]
REMEDIES: Mapping[Capability, str] = {
    "word times": "set `word_times` to false",
    "no-speech": "remove silence with voice detection before transcribing",
    "language detection": "name the language",
    "guards": "set `guards` to false",
    "prompt": "leave `prompt` empty and set `vocabulary_prompt` to false",
    "translation": "name a multilingual Whisper model",
    "sampling": "leave the temperature at 0",
    "biased decoding": "set `vocabulary_bonus` to 0",
    "n-best": "ask for one text",
    "prefix": "transcribe from the beginning of the clip",
    "cancelling": "wait for the batch to end",
    "short context": "set audio_context=full",
    "ctranslate2": "set `engine` to torch",
    "adapters": "load the model itself, which its adapter is merged into",
    "embeddings": "name another embedding model, such as `starter`",
    "encoder states": "set ctc_weight=0 and encoder_copies=0",
    "cost estimate": "try it on a few clips",
    "other programs": "export it with --format transformers",
}
"""For each capability: what to do if a family lacks it."""


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
    its length and at least 10 s, and to 30 s where the text is doubtful; trimmed: own length plus margin."""
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


class Token(NamedTuple):
    """A token of a text as a model wrote it."""

    id: int
    text: bytes
    """UTF-8; a character may be spread over several tokens."""
    logprob: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Hypothesis:
    """A model's hypothesis for one waveform."""

    text: str
    confidence: float | None  # mean probability of the tokens, 0 to 1
    words: tuple[Word, ...] = ()  # where asked for; in seconds from the waveform's beginning
    language: str | None = None
    language_probability: float | None = None  # among the model's languages; None where it was given
    mean_logprob: float | None = None  # of the tokens, the end included
    no_speech: float | None = None  # the model's own probability; None where it has no token for it
    guards: tuple[Guard, ...] = ()  # what fired, whether or not another temperature helped
    temperature: float = 0.0  # at which the text was sampled; 0: the likeliest
    tokens: tuple[Token, ...] = ()  # of the text alone, where the family tells them


class Recogniser(Protocol):
    """A loaded model that turns speech into text."""

    def transcribe(
        self,
        waveforms: Sequence[Waveform],
        decoding: Decoding,
        *,
        word_times: bool = False,
        heard: Callable[[float], None] | None = None,
    ) -> list[Hypothesis]:
        """Texts of waveforms of (S,) samples at 16 kHz, at most 30 s each, in the order given.

        `word_times` finds each word's place as well; it changes no text. `heard` is told the
        seconds of audio of every batch that is done. Raises UsageError for what the family lacks.
        """
        ...

    def context(self, asked: AudioContext, untuned: Context = "full") -> Context:
        """The context for a requested one; `untuned` is what `auto` means if the model's config does not say."""
        ...

    def embed(self, waveforms: Sequence[Waveform]) -> np.ndarray[tuple[int, int], np.dtype[np.float32]]:
        """Unit vectors (B, D), close to each other for similar sounds. A capability: `embeddings`."""
        ...


@dataclass(frozen=True, kw_only=True, slots=True)
class Segment:
    """The text of a part of a waveform, with its times."""

    text: str
    start: float
    """Seconds from the waveform's beginning."""
    end: float


def words_alone(text: str | Sequence[Segment]) -> str:
    """A text without the times of its parts."""
    return text if isinstance(text, str) else " ".join(segment.text for segment in text)


@dataclass(kw_only=True, slots=True)
class Trainable:
    """A model opened for training, with what a trainer needs to feed it; families may add fields."""

    model: Any  # transformers PreTrainedModel
    processor: Any
    label_pad: int = -100  # of labels that are not learnt from
    base_context: Literal["trimmed", "full"] = "full"
    """How the base was tuned to be fed."""
    language: str | None = None
    """Of clips that name none."""
    time_stamps: bool = False
    """Whether the model writes when each part of a text begins and ends, so that `collate` takes segments."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Labels:
    """The longest texts that a model can write, computed without its weights."""

    limit: int  # tokens at most that its published models write, `around` included
    around: int  # tokens before and after a text
    tokens: Callable[[str], int]  # of a text alone; never more than its bytes in UTF-8


class Family(Protocol):
    """One model family: how it is loaded, fed, trained and saved."""

    name: str  # the `model_type` of its config.json
    capabilities: frozenset[Capability]
    lora_targets: tuple[str, ...]
    """Names of the layers that get adapters where a recipe names none."""

    def engines(self) -> tuple[str, ...]:
        """The engines that can run the family's models here, fastest first: `torch`, and `ctranslate2` if installed."""
        ...

    def load(self, folder: str | Path, *, device: str = "cpu", dtype: str = "float32") -> Recogniser:
        """Open a folder or Hub id for recognition. Raises ModelError with the remedy."""
        ...

    def labels(self, folder: str | Path) -> Labels:
        """The longest texts, counted by the tokenizer of a saved model. Raises ModelError if it has none."""
        ...

    def open_for_training(self, folder: str | Path, *, audio_context: Context) -> Trainable:
        """Open a folder or Hub id for training, float32 on the CPU.

        Raises UsageError for a trimmed context if the family lacks `short context`.
        """
        ...

    def freeze(self, trainable: Trainable, parts: Collection[Part]) -> None:
        """Freeze these parts of the model while the rest is trained."""
        ...

    def without_adapters(self, frozen: Collection[Part]) -> str | None:
        """A regular expression for modules that get no adapters; None: all matching modules get one."""
        ...

    def recogniser(self, trainable: Trainable, model: torch.nn.Module) -> Recogniser:
        """The model in its current training state, wrapped for transcription."""
        ...

    def collate(
        self,
        trainable: Trainable,
        waveforms: Sequence[Waveform],
        texts: Sequence[str | Sequence[Segment]],
        languages: Sequence[str | None],
        *,
        at_least_s: float = 0.0,
    ) -> dict[str, torch.Tensor]:
        """A batch for `loss`, with `labels` (B, U): what the model should say at each place, or `label_pad`.

        A text given as segments is learnt with the times of its parts, where `Trainable.time_stamps` says so. Nothing
        is learnt of the prompt. All other keys are the family's own. A shorter clip is heard with silence behind it
        that fills `at_least_s` seconds; 30 fills the whole window. Raises TrainingError for a text longer than the
        model can write.
        """
        ...

    def masked(
        self,
        inputs: Mapping[str, Any],
        samples: Sequence[int],
        hide: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
    ) -> dict[str, Any]:
        """The batch with its features (B, F, T) as `hide` changes them.

        `hide` is told the features, and how many frames (B,) of each belong to its clip of so many `samples`.
        """
        ...

    def loss(
        self, trainable: Trainable, model: torch.nn.Module, inputs: Mapping[str, Any], *, smoothing: float = 0.0
    ) -> tuple[torch.Tensor, Any]:
        """The summed loss of a batch that `collate` or `encode` made, and the model's outputs.

        `model` is the trainable's, with adapters where it has any; `smoothing` is the share of the probability that
        is spread over all tokens. With `encoder states` the outputs hold `encoder_last_hidden_state` (B, E, D).
        """
        ...

    def tuned_context(self, folder: str | Path) -> Context:
        """The audio context that a saved model was trained for, read without loading it."""
        ...

    def padded_seconds(self, seconds: float, at_least_s: float = 0.0) -> float:
        """Seconds that a clip takes up in a batch, including padding."""
        ...

    def label_limit(self, trainable: Trainable) -> int:
        """Most tokens that the model can write, including prompt and end."""
        ...

    def label_length(self, trainable: Trainable, text: str | Sequence[Segment], language: str | None) -> int:
        """Number of label tokens of a text, including prompt, times and end."""
        ...

    def text_tokens(self, trainable: Trainable, text: str) -> list[int]:
        """Tokens of a text, without prompt and end."""
        ...

    def layers_above(self, trainable: Trainable, weight: str) -> int:
        """Number of layers between a weight, by its name, and the output of its encoder or decoder."""
        ...

    def save(self, trainable: Trainable, model: torch.nn.Module, folder: Path) -> None:
        """Write a complete folder that `load` opens: safetensors, config, tokenizer, generation config."""
        ...


class Conversion(Family, Protocol):
    """The capability `ctranslate2`: converting a saved model to CTranslate2, and loading it."""

    def convert(self, folder: str | Path, target: Path, compute_type: str) -> None:
        """Convert a saved model to CTranslate2's format in the folder `target`. Raises ModelError."""
        ...

    def intact(self, converted: Path) -> bool:
        """Whether a folder is a complete and undamaged result of `convert`."""
        ...

    def load_converted(self, converted: Path, *, device: str = "cpu", threads: int = 0) -> Recogniser:
        """Load a converted model; 0 threads: all cores. Raises ModelError."""
        ...

    def holds(self, folder: Path) -> bool:
        """Whether a folder contains a CTranslate2 model of this family, converted by any program."""
        ...

    def check_base(self, folder: Path) -> None:
        """Raises ModelError with a remedy if such a folder cannot be a base because its weights were rounded."""
        ...

    def restore(self, folder: Path, target: Path) -> None:
        """Convert such a folder back to transformers' format in `target`, bit for bit. Raises ModelError."""
        ...


class AdaptedRecogniser(Protocol):
    """A base with several LoRA adapters by name, whose clips are decoded in one batch. Not safe for threads."""

    def add(self, name: str, folder: Path) -> None:
        """Load an adapter from a PEFT folder. Raises ModelError for one that does not fit the base."""
        ...

    def remove(self, name: str) -> None:
        """Forget an adapter."""
        ...

    def transcribe_with(
        self, adapters: Sequence[str], waveforms: Sequence[Waveform], decoding: Decoding, *, word_times: bool = False
    ) -> list[Hypothesis]:
        """As `Recogniser.transcribe`, each waveform with its own adapter."""
        ...


class Adapted(Family, Protocol):
    """The capability `adapters`: one base in memory for many models that were trained from it with LoRA."""

    def load_adapted(self, folder: str | Path, *, device: str = "cpu") -> AdaptedRecogniser:
        """Open a base, with no adapters yet. Raises ModelError with the remedy."""
        ...


@dataclass(frozen=True, kw_only=True, slots=True)
class Cost:
    """What one model needs; a multiplication with its addition counts as two operations."""

    parameters: int
    multilingual: bool
    window_operations: int
    """Of the encoder for 30 s, and of the decoder's look at all of it."""
    token_weights: int
    """Weights that are read for each token written: two operations each."""
    token_states: int
    """Numbers of the encoder's states, as keys and values, that are read for each token as well."""
    window_floats: int
    """Numbers that training keeps of 30 s for the way back."""


ExportFormat = Literal["transformers", "ctranslate2", "ggml", "peft"]


@dataclass(frozen=True, slots=True)
class Heard:
    """Another program's transcript of a clip."""

    text: str
    end: float | None = None  # of the last segment, seconds; None where it tells no times, or heard nothing


@dataclass(frozen=True, kw_only=True, slots=True)
class Reading:
    """The result of trying an exported model in another program."""

    format: ExportFormat
    program: str  # and how it was called
    version: str | None  # of its package; None: it is not installed
    heard: tuple[Heard, ...] | None = None  # by clip; None where it read nothing
    missing: str | None = None  # why not


class Portable(Family, Protocol):
    """The capability `other programs`: exporting a saved model for other programs, and trying it there."""

    def complete(self, folder: Path, target: Path) -> bool:
        """Write a saved folder into `target`, completed for other programs; True if anything was missing.

        Raises ModelError or OSError.
        """
        ...

    def write_ggml(self, folder: Path, target: Path) -> None:
        """Convert a completed folder to whisper.cpp's format in `target`. Raises ModelError or OSError."""
        ...

    def read_elsewhere(
        self, format: ExportFormat, folder: Path, clips: Sequence[Waveform], language: str | None, base: Path | None
    ) -> list[Reading]:
        """The transcripts of clips (S,) by every program that reads the format, called as its users call it.

        `base` is the adapter's base folder. Programs that are not installed, or fail, are reported.
        """
        ...


class Costed(Family, Protocol):
    """The capability `cost estimate`: what a model needs, without loading it."""

    def cost(self, folder: Path) -> Cost:
        """The cost of a model folder in any format that the family loads. Raises ModelError."""
        ...


class EncoderStates(Family, Protocol):
    """The capability `encoder states`: the encoder's outputs, for caching or for a CTC loss."""

    def encode(self, trainable: Trainable, inputs: Mapping[str, Any]) -> dict[str, Any]:
        """The batch with the frozen encoder's outputs instead of the audio features.

        `loss` accepts it too. There is no dropout, so that repeated epochs get the same outputs.
        """
        ...

    def encoder_positions(self, inputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Number of encoder positions of each clip in a batch from `collate`: (B,)."""
        ...

    def encoder_width(self, trainable: Trainable) -> int:
        """Width of the encoder's states (`encoder_last_hidden_state` in the model's output)."""
        ...

    def encoder_bytes(self, folder: Path, seconds: float) -> int:
        """Bytes of a saved model's encoder states in float32 for the given seconds of padded audio."""
        ...


@overload
def require(family: Family, capability: Literal["ctranslate2"]) -> Conversion: ...
@overload
def require(family: Family, capability: Literal["adapters"]) -> Adapted: ...
@overload
def require(family: Family, capability: Literal["encoder states"]) -> EncoderStates: ...
@overload
def require(family: Family, capability: Literal["cost estimate"]) -> Costed: ...
@overload
def require(family: Family, capability: Literal["other programs"]) -> Portable: ...
@overload
def require(family: Family, capability: Capability) -> Family: ...
def require(family: Family, capability: Capability) -> Any:
    """Return the family if it has the capability; otherwise raise UsageError with a remedy."""
    if capability not in family.capabilities:
        raise UsageError(f"{family.name} models do not support {capability}: {REMEDIES[capability]}")
    return family


def check(family: Family, decoding: Decoding, *, word_times: bool = False) -> None:
    """Raises UsageError if a decoding needs a capability that the family lacks."""
    asked: dict[Capability, bool] = {
        "word times": word_times,
        "guards": decoding.guards is not None,
        "short context": decoding.audio_context == "trimmed",
        "translation": decoding.task == "translate",
        "sampling": decoding.temperature > 0,
        "prompt": bool(decoding.prompt or (decoding.vocabulary and decoding.vocabulary.prompt)),
        "biased decoding": bool(decoding.vocabulary and decoding.vocabulary.bonus),
    }
    for capability, wanted in asked.items():
        if wanted:
            require(family, capability)
