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
    bias.py        a personal vocabulary: texts that hold its terms are preferred
    words.py       words and their times, of tokens with theirs
    recogniser.py  the torch engine, with timing.py: when each token was said
    ctranslate.py  the CTranslate2 engine, and conversion for it
    portable.py    what other programs take for granted: time stamp tokens, positions, files
    ggml.py        whisper.cpp's model file
    elsewhere.py   what other programs make of an exported model
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
from voxloop.families.contract import Capability, Labels, Part, Segment, Trainable, words_alone
from voxloop.families.whisper import ctranslate, ctranslate_folder
from voxloop.families.whisper.cost import cost as cost_of
from voxloop.families.whisper.features import (
    CONTEXT_KEY,
    HOP,
    POSITION_SAMPLES,
    AudioContext,
    frame_mask,
    frames_of_at_least,
    log_mel,
    mel_filters,
)
from voxloop.families.whisper.reading import Vocabulary, vocabulary
from voxloop.records import SAMPLE_RATE
from voxloop.speech.text import CHARACTER_LANGUAGES

if TYPE_CHECKING:
    import torch

    from voxloop.families.contract import Cost, ExportFormat, Reading, Waveform
    from voxloop.families.whisper.adapters import AdaptedRecogniser
    from voxloop.families.whisper.ctranslate import CTranslateRecogniser
    from voxloop.families.whisper.recogniser import WhisperRecogniser


STATE_BYTES = 4  # of a number in float32
LABEL_TOKENS = 448  # arXiv:2212.04356, table 1 and openai/whisper, model.py: n_text_ctx
AROUND_TEXT = 5  # start, language, task, no timestamps, end: arXiv:2212.04356, figure 1
TIME_STEP_S = 0.02  # between two time stamp tokens: arXiv:2212.04356, section 2.3
TIME_STAMPS = 1501  # from <|0.00|> to <|30.00|>


@dataclass(kw_only=True, slots=True)
class WhisperTrainable(Trainable):
    """A Whisper model opened for training."""

    vocabulary: Vocabulary
    filters: torch.Tensor  # of mel channels, (F, 201)
    spaced: bool
    """Whether a text begins with a space, as Whisper's own texts do: else a published model has to unlearn it."""

    def time_stamp(self, seconds: float) -> int:
        """The token of a time from the window's beginning."""
        step = min(TIME_STAMPS - 1, max(0, round(seconds / TIME_STEP_S)))
        return self.vocabulary.no_timestamps + 1 + step


class Whisper:
    """The Whisper family: any size, English-only or multilingual."""

    name = "whisper"
    capabilities: frozenset[Capability] = frozenset(
        (
            *("word times", "no-speech", "language detection", "guards", "prompt", "translation"),
            *("sampling", "biased decoding"),
            *("short context", "ctranslate2", "adapters", "embeddings", "encoder states", "cost estimate"),
            "other programs",
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

    def complete(self, folder: Path, target: Path) -> bool:
        """Write a folder with the time stamp tokens and files that other programs look for. Raises ModelError."""
        from voxloop.families.whisper.portable import complete

        return complete(folder, target)

    def write_ggml(self, folder: Path, target: Path) -> None:
        """Write whisper.cpp's model file of a completed folder into `target`. Raises ModelError."""
        from voxloop.families.whisper import ggml

        target.mkdir(parents=True, exist_ok=True)
        ggml.write(folder, target / ggml.FILE)

    def read_elsewhere(
        self, format: ExportFormat, folder: Path, clips: Sequence[Waveform], language: str | None, base: Path | None
    ) -> list[Reading]:
        """What transformers, PEFT, faster-whisper or whisper.cpp read in clips (S,)."""
        from voxloop.families.whisper import elsewhere

        return elsewhere.read(format, folder, clips, language, base)

    def load(self, folder: str | Path, *, device: str = "cpu", dtype: str = "float32") -> WhisperRecogniser:
        """Open a folder or Hub id. Raises ModelError with the remedy."""
        import torch

        from voxloop.families.folders import on_device
        from voxloop.families.whisper.network import load
        from voxloop.families.whisper.recogniser import WhisperRecogniser

        model, processor = load(folder, getattr(torch, dtype))
        return WhisperRecogniser(on_device(model, device).eval(), processor)

    def load_adapted(self, folder: str | Path, *, device: str = "cpu") -> AdaptedRecogniser:
        """Open a base to be heard with several adapters. Raises ModelError with the remedy."""
        from voxloop.families.whisper.adapters import AdaptedRecogniser

        return AdaptedRecogniser(self.load(folder, device=device))

    def open_for_training(self, folder: str | Path, *, audio_context: AudioContext) -> Trainable:
        """Open a folder or Hub id for training, float32 on the CPU; its config remembers the audio context."""
        import torch

        from voxloop.families.whisper.network import load

        model, processor = load(folder, torch.float32)
        base_context: Literal["trimmed", "full"] = getattr(model.config, CONTEXT_KEY, "full")
        setattr(model.config, CONTEXT_KEY, audio_context)
        model.config.apply_spec_augment = False  # the recipe augments
        known = vocabulary(model.config, model.generation_config, processor)
        return WhisperTrainable(
            model=model,
            processor=processor,
            base_context=base_context,
            # The time stamps are the last tokens of Whisper's vocabularies; not every tokenizer names them.
            time_stamps=model.config.vocab_size >= known.no_timestamps + 1 + TIME_STAMPS,
            vocabulary=known,
            filters=mel_filters(processor),
            spaced=base_context == "full",
        )

    def tuned_context(self, folder: str | Path) -> AudioContext:
        """What config.json says; `full` where it says nothing, or is on the Hub still."""
        file = Path(folder, "config.json")
        told = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
        context: AudioContext = told.get(CONTEXT_KEY, "full")
        return context

    def labels(self, folder: str | Path) -> Labels:
        """How long the texts of Whisper may be, counted by the tokenizer of a saved model."""
        from tokenizers import Tokenizer

        file = Path(folder, "tokenizer.json")
        if not file.is_file():
            raise ModelError(f"{folder} contains no tokenizer.json: copy it from the model it was trained from")

        @cache
        def tokenizer() -> Tokenizer:  # most texts are so short that nobody asks
            opened = Tokenizer.from_file(str(file))
            opened.encode_special_tokens = True
            return opened

        def tokens(text: str) -> int:
            return sum(len(tokenizer().encode(part, add_special_tokens=False).ids) for part in _as_letters(text))

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
        texts: Sequence[str | Sequence[Segment]],
        languages: Sequence[str | None],
        *,
        at_least_s: float = 0.0,
    ) -> dict[str, torch.Tensor]:
        """A batch for the model's forward: input_features (B, F, T), attention_mask (B, T), labels (B, U)."""
        import torch

        own = _own(trainable)
        frames = [frames_of_at_least(len(clip), at_least_s) for clip in waveforms]
        features = log_mel(waveforms, frames, own.filters)
        limit = self.label_limit(trainable)
        labels = [self._label(trainable, text, code) for text, code in zip(texts, languages, strict=True)]
        for (prompt, said), text in zip(labels, texts, strict=True):
            if len(prompt) + len(said) > limit:
                raise TrainingError(
                    f"a text has {len(prompt) + len(said)} tokens, and the model writes at most {limit}: "
                    f"{words_alone(text)[:60]!r}…; remove it from the dataset or split it into shorter utterances"
                )
        longest = max(len(prompt) + len(said) for prompt, said in labels)
        # Past its end a text is padded with the end token, which is not learnt from.
        given = torch.full((len(labels), longest), own.vocabulary.end)
        learnt = torch.full((len(labels), longest), trainable.label_pad)
        for row, (prompt, said) in enumerate(labels):
            before = [own.vocabulary.start, *prompt, *said[:-1]]
            given[row, : len(before)] = torch.tensor(before)
            learnt[row, len(prompt) : len(prompt) + len(said)] = torch.tensor(said)
        batch = {"input_features": features, "decoder_input_ids": given, "labels": learnt}
        if min(frames) == max(frames):
            return batch
        return batch | {"attention_mask": frame_mask(torch.tensor(frames), max(frames)).long()}

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

    def padded_seconds(self, seconds: float, at_least_s: float = 0.0) -> float:
        """Seconds that a clip takes up in a batch, its margin included."""
        return frames_of_at_least(round(seconds * SAMPLE_RATE), at_least_s) * HOP / SAMPLE_RATE

    def label_limit(self, trainable: Trainable) -> int:
        """Tokens that the model can write, prompt and end included."""
        limit: int = trainable.model.config.max_target_positions
        return limit

    def label_length(self, trainable: Trainable, text: str | Sequence[Segment], language: str | None) -> int:
        """Tokens of the label of a text, prompt, times and end included."""
        return sum(map(len, self._label(trainable, text, language)))

    def _label(
        self, trainable: Trainable, text: str | Sequence[Segment], language: str | None
    ) -> tuple[list[int], list[int]]:
        """What follows the start token: the rest of the prompt, and what the decoder is to write after it.

        Only the latter is learnt. Learning the prompt as well, as transformers' fine-tuning examples do, teaches a
        model that is tuned in one language to hear it everywhere.
        """
        own = _own(trainable)
        language = language or trainable.language
        prompt = own.vocabulary.prompt(language)[1:]
        spaced = own.spaced and language not in CHARACTER_LANGUAGES
        if isinstance(text, str):
            return prompt, [*self._written(trainable, text, spaced), own.vocabulary.end]
        said: list[int] = []
        for part in text:
            words = self._written(trainable, part.text, spaced)
            said += [own.time_stamp(part.start), *words, own.time_stamp(part.end)]
        return prompt[:-1], [*said, own.vocabulary.end]

    def _written(self, trainable: Trainable, text: str, spaced: bool) -> list[int]:
        return self.text_tokens(trainable, f" {text}" if spaced and text else text)

    def text_tokens(self, trainable: Trainable, text: str) -> list[int]:
        """Tokens of a text alone, without prompt and end."""
        tokenizer = trainable.processor.tokenizer
        return [
            token
            for part in _as_letters(text)
            for token in tokenizer(part, add_special_tokens=False, split_special_tokens=True).input_ids
        ]

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


def _as_letters(text: str) -> list[str]:
    """A text in parts that are tokenized one by one, so that `<|0.00|>` in it is what was said, not a time.

    Tokenizers can be told to spell special tokens out. Time stamps are added tokens that are not special, and those
    are found whatever they are told.
    """
    return re.split(r"(?<=<)(?=\|)", text)


def _own(trainable: Trainable) -> WhisperTrainable:
    if not isinstance(trainable, WhisperTrainable):
        raise TypeError(f"{type(trainable).__name__} is not an opened Whisper model")
    return trainable


WHISPER = Whisper()
