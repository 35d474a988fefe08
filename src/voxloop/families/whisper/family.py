"""Whisper (arXiv:2212.04356): loaded, fed at a clip's own length, decoded, trained and saved.

Stock Whisper pads every clip to 30 s. Here the encoder takes the clip's own
length plus a margin; padding inside a batch is masked, in the encoder's
self-attention and in cross-attention. Fed 3,000 frames without a mask, the
model computes what stock transformers computes, and what is saved is a plain
Whisper folder that stock transformers loads.

    features.py    log-mel of a batch of clips
    network.py     encoder and decoder at any length, loading
    output.py      the loss behind the output layer
    reading.py     prompt, batches, guards, words: what both engines do alike
    words.py       words and their times, of tokens with theirs
    recogniser.py  the torch engine, with timing.py: when each token was said
    ctranslate.py  the CTranslate2 engine, and conversion for it
    ctranslate_folder.py  a CTranslate2 folder as a base: weights, tokenizer and settings read back

What reads with CTranslate2 imports neither PyTorch nor transformers, which take longer than the text of a short file.

Letters in shapes: `B` batch, `F` mel channels, `T` mel frames, `U` label tokens.
"""

from __future__ import annotations

import importlib.util
import json
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from voxloop.errors import ModelError, TrainingError
from voxloop.families.contract import Capability, Labels, Part, Trainable
from voxloop.families.whisper import ctranslate, ctranslate_folder
from voxloop.families.whisper.cost import cost as cost_of
from voxloop.families.whisper.features import (
    CONTEXT_KEY,
    HOP,
    POSITION_SAMPLES,
    AudioContext,
    features_of,
    mel_filters,
    padded_frames,
)
from voxloop.families.whisper.reading import Vocabulary, vocabulary
from voxloop.records import MAX_UTTERANCE_S, SAMPLE_RATE

if TYPE_CHECKING:
    import torch

    from voxloop.families.contract import Cost, Waveform
    from voxloop.families.whisper.ctranslate import CTranslateRecogniser
    from voxloop.families.whisper.recogniser import WhisperRecogniser


STATE_BYTES = 4  # of a number in float32
LABEL_TOKENS = 448  # arXiv:2212.04356, table 1 and openai/whisper, model.py: n_text_ctx
AROUND_TEXT = 5  # start, language, task, no timestamps, end: arXiv:2212.04356, figure 1


@dataclass(kw_only=True, slots=True)
class WhisperTrainable(Trainable):
    """A Whisper model opened for training."""

    vocabulary: Vocabulary
    filters: torch.Tensor  # of mel channels, (F, 201)


class Whisper:
    """The Whisper family: any size, English-only or multilingual."""

    name = "whisper"
    capabilities: frozenset[Capability] = frozenset(
        (
            *("word times", "no-speech", "language detection", "guards"),
            *("short context", "ctranslate2", "embeddings", "encoder states", "cost estimate"),
        )
    )
    lora_targets: tuple[str, ...] = ("q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2")

    def engines(self) -> tuple[str, ...]:
        """What can run Whisper here, the fastest first."""
        return ("ctranslate2", "torch") if importlib.util.find_spec("ctranslate2") else ("torch",)

    def holds(self, folder: Path) -> bool:
        """Whether a folder holds Whisper in CTranslate2's form."""
        return ctranslate_folder.recognised(folder)

    def check_base(self, folder: Path) -> None:
        """Raises ModelError where the weights of such a folder were rounded."""
        ctranslate_folder.check(folder)

    def restore(self, folder: Path, target: Path) -> None:
        """Write the transformers form of such a folder into `target`. Raises ModelError."""
        ctranslate_folder.restore(folder, target)

    def cost(self, folder: Path) -> Cost:
        """What a model folder costs. Raises ModelError."""
        return cost_of(folder)

    def convert(self, folder: str | Path, target: Path, compute_type: str) -> None:
        """Write the CTranslate2 form of a saved model into `target`. Raises ModelError."""
        ctranslate.convert(folder, target, compute_type)

    def intact(self, converted: Path) -> bool:
        """Whether what `convert` wrote is whole."""
        return ctranslate.intact(converted)

    def load_converted(self, converted: Path, *, device: str = "cpu", threads: int = 0) -> CTranslateRecogniser:
        """Open what `convert` made of a saved model. Raises ModelError with the remedy."""
        return ctranslate.load(converted, device, threads)

    def load(self, folder: str | Path, *, device: str = "cpu", dtype: str = "float32") -> WhisperRecogniser:
        """Open a folder or Hub id. Raises ModelError with the remedy."""
        import torch

        from voxloop.families.folders import on_device
        from voxloop.families.whisper.network import load
        from voxloop.families.whisper.recogniser import WhisperRecogniser

        model, processor = load(folder, getattr(torch, dtype))
        return WhisperRecogniser(on_device(model, device).eval(), processor)

    def open_for_training(self, folder: str | Path, *, audio_context: AudioContext) -> Trainable:
        """Open a folder or Hub id for training, float32 on the CPU; its config remembers the audio context."""
        import torch

        from voxloop.families.whisper.network import load

        model, processor = load(folder, torch.float32)
        base_context: Literal["trimmed", "full"] = getattr(model.config, CONTEXT_KEY, "full")
        setattr(model.config, CONTEXT_KEY, audio_context)
        model.config.apply_spec_augment = False  # the recipe augments
        return WhisperTrainable(
            model=model,
            processor=processor,
            base_context=base_context,
            vocabulary=vocabulary(model.config, model.generation_config, processor),
            filters=mel_filters(processor),
        )

    def labels(self, folder: str | Path) -> Labels:
        """How long the texts of Whisper may be, counted by the tokenizer of a saved model."""
        from tokenizers import Tokenizer

        file = Path(folder, "tokenizer.json")
        if not file.is_file():
            raise ModelError(f"{folder} holds no tokenizer.json: copy that of the model it was made from there")

        @cache
        def tokenizer() -> Tokenizer:  # most texts are so short that nobody asks
            return Tokenizer.from_file(str(file))

        def tokens(text: str) -> int:
            return len(tokenizer().encode(text, add_special_tokens=False).ids)

        return Labels(limit=LABEL_TOKENS, around=AROUND_TEXT, tokens=tokens)

    def freeze(self, trainable: Trainable, parts: Collection[Part]) -> None:
        """Leave the encoder, or the embedding of tokens (the output layer too), as it is."""
        if "encoder" in parts:
            trainable.model.freeze_encoder()
        if "embeddings" in parts:
            trainable.model.get_input_embeddings().weight.requires_grad_(False)

    def without_adapters(self, frozen: Collection[Part]) -> str | None:
        """The encoder, where it is frozen."""
        return r".*\bencoder\..*" if "encoder" in frozen else None

    def recogniser(self, trainable: Trainable, model: torch.nn.Module) -> WhisperRecogniser:
        """The model as it is now, half-way through training; LoRA adapters stay in it."""
        from voxloop.families.folders import without_adapters
        from voxloop.families.whisper.recogniser import WhisperRecogniser

        return WhisperRecogniser(without_adapters(model), trainable.processor)

    def collate(
        self,
        trainable: Trainable,
        waveforms: Sequence[Waveform],
        texts: Sequence[str],
        languages: Sequence[str | None],
        *,
        full_length: bool = False,
    ) -> dict[str, torch.Tensor]:
        """A batch for the model's forward: input_features (B, F, T), attention_mask (B, T), labels (B, U)."""
        import torch

        context: AudioContext = "full" if full_length else "trimmed"
        own = _own(trainable)
        features, mask = features_of(waveforms, context, own.filters, "cpu")
        limit = self.label_limit(trainable)
        labels = [self._label(trainable, text, code) for text, code in zip(texts, languages, strict=True)]
        for label, text in zip(labels, texts, strict=True):
            if len(label) > limit:
                raise TrainingError(
                    f"a text has {len(label)} tokens and the model writes at most {limit}: {text[:60]!r}…; "
                    "leave it out of the dataset or cut its recording into shorter utterances"
                )
        padded = torch.full((len(labels), max(map(len, labels))), trainable.label_pad)
        for row, label in zip(padded, labels, strict=True):
            row[: len(label)] = torch.tensor(label)
        start = torch.full((len(labels), 1), own.vocabulary.start)
        given = torch.cat([start, padded[:, :-1]], dim=1)
        # Past its end a text is padded with the end token, which is not learnt from.
        given = given.masked_fill(given == trainable.label_pad, own.vocabulary.end)
        batch = {"input_features": features, "decoder_input_ids": given, "labels": padded}
        return batch if mask is None else batch | {"attention_mask": mask}

    def masked(
        self,
        inputs: Mapping[str, Any],
        samples: Sequence[int],
        hide: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
    ) -> dict[str, Any]:
        """The batch with its features (B, F, T) as `hide` changes them; a clip's frames are 10 ms each."""
        from voxloop.families.folders import hide_frames

        return hide_frames(inputs, samples, HOP, hide)

    def loss(
        self, trainable: Trainable, model: torch.nn.Module, inputs: Mapping[str, Any], *, smoothing: float = 0.0
    ) -> tuple[torch.Tensor, Any]:
        """The summed loss of a batch that `collate` or `encode` made, and the model's outputs."""
        given = {name: value for name, value in inputs.items() if name != "labels"}
        # Nothing is generated here, and gradient checkpointing could keep no cache.
        outputs = model(**given, answers=inputs["labels"], smoothing=smoothing, use_cache=False)
        return outputs.loss, outputs

    def encode(self, trainable: Trainable, inputs: Mapping[str, Any]) -> dict[str, Any]:
        """A batch of `collate` with the encoder's states (B, E, D) as `encoder_outputs` in the place of its sound."""
        import torch

        encoder = trainable.model.get_encoder().eval()
        with torch.no_grad():
            states = encoder(inputs["input_features"], attention_mask=inputs.get("attention_mask")).last_hidden_state
        return {name: given for name, given in inputs.items() if name != "input_features"} | {"encoder_outputs": states}

    def padded_seconds(self, seconds: float, context: AudioContext = "trimmed") -> float:
        """Seconds that a clip takes up in a batch, its margin included."""
        if context == "full":
            return MAX_UTTERANCE_S
        return padded_frames(round(seconds * SAMPLE_RATE)) * HOP / SAMPLE_RATE

    def label_limit(self, trainable: Trainable) -> int:
        """Tokens that the model can write, prompt and end included."""
        limit: int = trainable.model.config.max_target_positions
        return limit

    def label_length(self, trainable: Trainable, text: str, language: str | None) -> int:
        """Tokens of the label of a text, prompt and end included."""
        return len(self._label(trainable, text, language))

    def _label(self, trainable: Trainable, text: str, language: str | None) -> list[int]:
        """What the decoder is to write after its start token: the rest of the prompt, the text, the end.

        So do transformers' own fine-tuning examples (run_speech_recognition_seq2seq.py), which learn the prompt too.
        """
        known = _own(trainable).vocabulary
        language = language or trainable.language
        return [*known.prompt(language)[1:], *self.text_tokens(trainable, text), known.end]

    def text_tokens(self, trainable: Trainable, text: str) -> list[int]:
        """Tokens of a text alone, without prompt and end."""
        written: list[int] = trainable.processor.tokenizer(text, add_special_tokens=False).input_ids
        return written

    def encoder_positions(self, inputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Encoder positions of each clip (B,): one for every second mel frame."""
        import torch

        features = inputs["input_features"]
        mask = inputs.get("attention_mask")
        if mask is None:
            return torch.full((len(features),), features.shape[-1] // 2)
        return mask[:, ::2].sum(dim=1)

    def encoder_width(self, trainable: Trainable) -> int:
        """Width of the encoder's states."""
        width: int = trainable.model.config.d_model
        return width

    def encoder_bytes(self, folder: Path, seconds: float) -> int:
        """Bytes of the encoder's states for so many padded seconds: one position for every 20 ms."""
        width: int = json.loads((folder / "config.json").read_text())["d_model"]
        return round(seconds * SAMPLE_RATE / POSITION_SAMPLES) * width * STATE_BYTES

    def layers_above(self, trainable: Trainable, weight: str) -> int:
        """Layers between a weight and the output of the encoder or decoder that it is in.

        Convolutions and embeddings lie below all layers; the embedding of tokens too, though it is the output as well.
        """
        config = trainable.model.config
        layers: int = config.encoder_layers if ".encoder." in f".{weight}" else config.decoder_layers
        numbered = re.search(r"\.layers\.(\d+)\.", weight)
        if numbered:
            return layers - 1 - int(numbered.group(1))
        return layers if re.search(r"\.(conv\d|embed_\w+)\.", weight) else 0

    def save(self, trainable: Trainable, model: torch.nn.Module, folder: Path) -> None:
        """Write a complete folder that `load` and stock transformers open; LoRA is merged, `adapter/` kept beside."""
        from voxloop.families.folders import save_folder

        save_folder(model, trainable.processor, folder)


def _own(trainable: Trainable) -> WhisperTrainable:
    if not isinstance(trainable, WhisperTrainable):
        raise TypeError(f"a model that was opened by {type(trainable).__name__} is no Whisper model")
    return trainable


WHISPER = Whisper()
