"""What every model family offers: recognise speech now, and be trained.

A family module (`whisper.py`) implements these protocols; steps see nothing else of it.
Letters in shapes: `B` batch, `S` samples, `F` mel channels, `T` mel frames, `U` label tokens, `D` width.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

from voxloop.errors import ModelError
from voxloop.records import Guard, Word

if TYPE_CHECKING:
    import numpy as np
    import torch

    Waveform = np.ndarray[tuple[int], np.dtype[np.float32]]  # (S,), 16 kHz, -1 to 1

AudioContext = Literal["auto", "trimmed", "full"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Guards:
    """What makes a text suspicious, so that its clip is decoded again: arXiv:2212.04356, section 4.5."""

    max_compression: float = 2.4
    """A text that zlib makes smaller by more than this repeats itself."""
    min_logprob: float = -1.0
    """A text whose tokens have a lower mean log-probability is a guess."""
    max_no_speech: float = 0.6
    """Above this probability of `<|nospeech|>`, a text that is a guess too is none at all."""
    temperatures: tuple[float, ...] = (0.2, 0.4, 0.6, 0.8, 1.0)
    """Tried in turn on the clips that fail, until one passes; sampled from a seed made of the clip, so it repeats."""

    def fired(self, text: str, mean_logprob: float, no_speech: float | None) -> tuple[Guard, ...]:
        """What is wrong with a text; `no speech` alone where it is to be dropped, nothing where it passes."""
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
    """How many times zlib makes a text smaller: 1 or less for ordinary short texts, more where it repeats itself."""
    encoded = text.encode()
    return len(encoded) / len(zlib.compress(encoded)) if encoded else 0.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Decoding:
    """How text is read off a model. Part of an evaluation's identity, so complete and comparable."""

    language: str | None = None
    """ISO 639-1 code; None lets a multilingual model detect it."""
    beams: int = 1
    """1 is greedy."""
    max_new_tokens: int = 224
    """Longest text, in tokens; half of Whisper's context, as its authors decode."""
    audio_context: AudioContext = "auto"
    """auto: as the model was tuned (its config says); full: padded to 30 s; trimmed: own length plus margin."""
    batch_seconds: float = 120.0
    """Padded seconds of audio decoded at once."""
    engine: str = "torch"
    """What runs the model: `torch`, or `ctranslate2-` and the type that it computes in, such as ctranslate2-int8."""
    guards: Guards | None = None
    """None: the likeliest text is taken as it is, and silence is decoded like speech."""

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Decoding:
        """The decoding that `as_dict` made a dictionary of, also after a way through JSON."""
        guards = values.get("guards")
        made = Guards(**guards | {"temperatures": tuple(guards["temperatures"])}) if guards else None
        return cls(**{**values, "guards": made})


@dataclass(frozen=True, kw_only=True, slots=True)
class Hypothesis:
    """What a model heard in one waveform."""

    text: str
    confidence: float | None  # mean probability of the tokens, 0 to 1
    words: tuple[Word, ...] = ()  # where asked for; in seconds from the waveform's beginning
    language: str | None = None
    language_probability: float | None = None  # among the model's languages; None where it was given
    mean_logprob: float | None = None  # of the tokens, the end included
    no_speech: float | None = None  # the model's own probability; None where it has no token for it
    guards: tuple[Guard, ...] = ()  # what fired, whether or not another temperature helped
    temperature: float = 0.0  # at which the text was sampled; 0: the likeliest


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
        seconds of audio of every batch that is done.
        """
        ...

    def context(self, asked: AudioContext) -> Literal["trimmed", "full"]:
        """How clips are fed when that is asked for: at their own length, or filled to 30 s."""
        ...

    def embed(self, waveforms: Sequence[Waveform]) -> np.ndarray[tuple[int, int], np.dtype[np.float32]]:
        """Unit vectors (B, D) that lie near each other where the sound is alike."""
        ...


@dataclass(kw_only=True, slots=True)
class Trainable:
    """A model opened for training, with what a trainer needs to feed it."""

    model: Any  # transformers PreTrainedModel
    processor: Any
    label_pad: int = -100
    extra: dict[str, Any] = field(default_factory=dict)
    """What the family keeps by it; `base_context`: how the base was tuned; `language`: of clips that name none."""


class Family(Protocol):
    """One model family: how it is loaded, fed, trained and exported."""

    name: str

    def load(self, folder: str | Path, *, device: str = "cpu", dtype: str = "float32") -> Recogniser:
        """Open a folder or Hub id for recognition. Raises ModelError with the remedy."""
        ...

    def convert(self, folder: str | Path, target: Path, compute_type: str) -> None:
        """Write the form of a saved model that CTranslate2 runs into the folder `target`. Raises ModelError."""
        ...

    def intact(self, converted: Path) -> bool:
        """Whether a folder is what `convert` once wrote: all of it, and nothing damaged."""
        ...

    def load_converted(self, converted: Path, *, device: str = "cpu") -> Recogniser:
        """Open what `convert` made of a saved model. Raises ModelError with the remedy."""
        ...

    def open_for_training(self, folder: str | Path, *, audio_context: Literal["trimmed", "full"]) -> Trainable:
        """Open a folder or Hub id for training, float32 on the CPU."""
        ...

    def recogniser(self, trainable: Trainable, model: torch.nn.Module) -> Recogniser:
        """The model as it is now, half-way through training, behind the code that serves it."""
        ...

    def collate(
        self,
        trainable: Trainable,
        waveforms: Sequence[Waveform],
        texts: Sequence[str],
        languages: Sequence[str | None],
        *,
        full_length: bool = False,
    ) -> dict[str, torch.Tensor]:
        """A batch for the model's forward, and `labels` (B, U): what its logits at each place should say.

        For Whisper: input_features (B, F, T), attention_mask (B, T) where clips differ, decoder_input_ids (B, U).
        `full_length` pads to 30 s, without a mask. Raises TrainingError for a text longer than the model can write.
        """
        ...

    def loss(
        self, trainable: Trainable, model: torch.nn.Module, inputs: Mapping[str, Any], *, smoothing: float = 0.0
    ) -> tuple[torch.Tensor, Any]:
        """The summed loss of a batch that `collate` or `encode` made, and the model's outputs.

        `model` is the trainable's, with adapters where it has any; `smoothing` is the share of the probability that
        is spread over all tokens. The outputs hold `encoder_last_hidden_state` (B, E, D).
        """
        ...

    def encode(self, trainable: Trainable, inputs: Mapping[str, Any]) -> dict[str, Any]:
        """The batch with what the encoder, which is not trained, makes of its sound in the place of the sound.

        `loss` takes it instead. Without dropout: what is heard again is the same.
        """
        ...

    def padded_seconds(self, seconds: float) -> float:
        """Seconds that a clip takes up in a trimmed batch, its margin included."""
        ...

    def label_limit(self, trainable: Trainable) -> int:
        """Tokens that the model can write, prompt and end included."""
        ...

    def label_length(self, trainable: Trainable, text: str, language: str | None) -> int:
        """Tokens of the label of a text, prompt included."""
        ...

    def text_tokens(self, trainable: Trainable, text: str) -> list[int]:
        """Tokens of a text alone, without prompt and end."""
        ...

    def encoder_positions(self, inputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """How many of the encoder's positions belong to each clip of a batch that `collate` made: (B,)."""
        ...

    def encoder_width(self, trainable: Trainable) -> int:
        """Width of the encoder's states, which the model's output holds as `encoder_last_hidden_state`."""
        ...

    def layers_above(self, trainable: Trainable, weight: str) -> int:
        """Layers between a weight, by its name, and the output of the part that it is in; 0: there is none."""
        ...

    def save(self, trainable: Trainable, model: torch.nn.Module, folder: Path) -> None:
        """Write a complete folder that `load` opens: safetensors, config, tokenizer, generation config."""
        ...


def family(name: str) -> Family:
    """The family of that name. Raises ModelError for one that is not built yet."""
    if name == "whisper":
        from voxloop.families import whisper

        return whisper.WHISPER
    raise ModelError(f"model family {name!r} is not known; known: whisper")
