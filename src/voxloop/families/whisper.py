"""Whisper (arXiv:2212.04356): loaded, fed at a clip's own length, decoded, trained and saved.

Stock Whisper pads every clip to 30 s. Here the encoder takes the clip's own
length plus a margin; padding inside a batch is masked, in the encoder's
self-attention and in cross-attention. Fed 3,000 frames without a mask, the
model computes what stock transformers computes, and what is saved is a plain
Whisper folder that stock transformers loads.

Letters in shapes: `B` batch, `S` samples, `F` mel channels, `T` mel frames,
`E` encoder positions (T / 2), `U` label tokens, `V` vocabulary, `D` width.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch.nn import functional
from transformers import WhisperForConditionalGeneration, WhisperProcessor
from transformers.generation.utils import GenerationMixin
from transformers.modeling_outputs import BaseModelOutput
from transformers.models.whisper.modeling_whisper import WhisperDecoderLayer, WhisperEncoder, WhisperModel

from voxloop.errors import ModelError, TrainingError, UsageError, nearest
from voxloop.families.contract import Decoding, Hypothesis, Trainable
from voxloop.records import MAX_UTTERANCE_SAMPLES, SAMPLE_RATE, seconds

if TYPE_CHECKING:
    from voxloop.families.contract import Waveform

log = logging.getLogger(__name__)

HOP = 160  # samples per mel frame: 10 ms
FFT = 400  # samples per window: 25 ms
FRAMES_STEP = 16  # clips end on a multiple of this many mel frames, which keeps the number of shapes small
FULL_FRAMES = MAX_UTTERANCE_SAMPLES // HOP  # 3,000 mel frames: the 30 s that stock Whisper is fed
# Silence after every clip: 32 encoder positions. With less, Whisper's decoder repeats itself; futo-org/whisper-acft
# issue 5 measured WER 318 without and 19 with a margin, and advises at least 32 positions.
MARGIN_S = 0.64
MARGIN_SAMPLES = round(MARGIN_S * SAMPLE_RATE)

# Nobody speaks faster than this, also where a token is one letter: what is longer is a loop.
TOKENS_PER_S = 25
SPARE_TOKENS = 16

AudioContext = Literal["trimmed", "full"]
CONTEXT_KEY = "voxloop_audio_context"  # in config.json: how the model was tuned; absent means full


# Audio to features ---------------------------------------------------------------------------------------------------


def padded_frames(samples: int) -> int:
    """Mel frames of a clip of `samples`, its margin included: a multiple of 16, at most 3,000."""
    step = HOP * FRAMES_STEP
    frames = -(-(samples + MARGIN_SAMPLES) // step) * FRAMES_STEP
    return min(frames, FULL_FRAMES)


def log_mel(
    waveforms: Sequence[Waveform], frames: Sequence[int], filters: torch.Tensor, device: str | torch.device = "cpu"
) -> torch.Tensor:
    """Log-mel features (B, F, T) of waveforms zero-padded to `frames` each; zeros behind a clip's frames.

    `filters` is (F, 201). Each clip's part equals what WhisperFeatureExtractor makes of it with that padding:
    25 ms Hann windows every 10 ms, log10 of the mel power, at most 8 decades below the clip's own maximum.
    """
    longest = max(frames)
    stacked = np.zeros((len(waveforms), longest * HOP), dtype=np.float32)
    for row, waveform in zip(stacked, waveforms, strict=True):
        cut = waveform[: len(row)]
        row[: len(cut)] = cut
    samples = torch.from_numpy(stacked).to(device)
    filters = filters.to(device)
    # The reflected edge of a row is that of its own clip as well: both lie in the zeros of the padding.
    spectrum = torch.stft(samples, FFT, HOP, window=torch.hann_window(FFT, device=device), return_complex=True)
    power = filters @ spectrum[..., :-1].abs().square().contiguous()
    levels = power.clamp_(min=1e-10).log10_()
    inside = frame_mask(torch.tensor(frames, device=levels.device), longest)[:, None]
    peak = levels.masked_fill(~inside, -10.0).amax(dim=(1, 2), keepdim=True)
    features: torch.Tensor = ((torch.maximum(levels, peak - 8.0) + 4.0) / 4.0).masked_fill(~inside, 0.0)
    return features


def frame_mask(frames: torch.Tensor, longest: int) -> torch.Tensor:
    """True where a frame belongs to the clip: (B, T) from lengths (B,)."""
    return torch.arange(longest, device=frames.device)[None] < frames[:, None]


# The network at any length -------------------------------------------------------------------------------------------


def position_mask(attention_mask: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """A mask of mel frames (B, T) as an additive mask (B, 1, 1, E) of encoder positions.

    Position e is computed from frames 2e - 1 to 2e + 1 (the second convolution has stride 2).
    """
    outside = attention_mask[:, ::2] == 0
    mask = torch.zeros(outside.shape, dtype=dtype, device=outside.device)
    return mask.masked_fill(outside, torch.finfo(dtype).min)[:, None, None, :]


class LengthAwareEncoder(WhisperEncoder):  # type: ignore[misc]
    """The encoder at any even number of frames up to 3,000, with padding masked."""

    def forward(
        self, input_features: torch.Tensor, attention_mask: torch.Tensor | None = None, **kwargs: Any
    ) -> BaseModelOutput:
        if attention_mask is None and input_features.shape[-1] == 2 * self.config.max_source_positions:
            return super().forward(input_features, **kwargs)
        states = functional.gelu(self.conv1(input_features))
        states = functional.gelu(self.conv2(states)).permute(0, 2, 1)
        states = states + self.embed_positions.weight[: states.shape[1]]
        states = functional.dropout(states, p=self.dropout, training=self.training)
        mask = None if attention_mask is None else position_mask(attention_mask, states.dtype)
        for layer in self.layers:
            if self.training and self.layerdrop > 0.0 and torch.rand([]) < self.layerdrop:
                continue
            states = layer(states, mask)
        return BaseModelOutput(last_hidden_state=self.layer_norm(states))


class LengthAwareDecoderLayer(WhisperDecoderLayer):  # type: ignore[misc]
    """A decoder layer that takes the cross-attention mask, for which the stock decoder passes None."""

    def forward(
        self,
        hidden_states: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        encoder_hidden_states: torch.Tensor | None = None,
        encoder_attention_mask: torch.Tensor | None = None,
        cross_attention_mask: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> torch.Tensor:
        mask = encoder_attention_mask if cross_attention_mask is None else cross_attention_mask
        return super().forward(hidden_states, attention_mask, encoder_hidden_states, mask, **kwargs)  # type: ignore[no-any-return]


class LengthAwareModel(WhisperModel):  # type: ignore[misc]
    """Encoder and decoder that share the mask of the audio: `attention_mask` (B, T) counts mel frames.

    The mask is an ordinary argument, so generation repeats it for beams like any other.
    """

    def forward(
        self,
        input_features: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        encoder_outputs: Any = None,
        **kwargs: Any,
    ) -> Any:
        if encoder_outputs is None:
            features = self._mask_input_features(input_features, attention_mask=attention_mask)
            encoder_outputs = self.encoder(features, attention_mask=attention_mask)
        if attention_mask is not None:
            kwargs["cross_attention_mask"] = position_mask(attention_mask, encoder_outputs[0].dtype)
        return super().forward(encoder_outputs=encoder_outputs, **kwargs)


def length_aware(model: WhisperForConditionalGeneration) -> WhisperForConditionalGeneration:
    """Teach a stock model to take clips of any length, in place.

    Only the classes of its parts change: weights, names and what is saved stay those of plain Whisper.
    """
    model.model.__class__ = LengthAwareModel
    model.model.encoder.__class__ = LengthAwareEncoder
    for layer in model.model.decoder.layers:
        layer.__class__ = LengthAwareDecoderLayer
    return model


# Loading -------------------------------------------------------------------------------------------------------------


def _load(folder: str | Path, dtype: torch.dtype) -> tuple[WhisperForConditionalGeneration, WhisperProcessor]:
    """Model and processor of a folder or Hub id. Raises ModelError with the remedy."""
    from transformers import AutoConfig
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()  # a bar for loading a few tensors is noise in every log
    name = str(folder)
    local = Path(name).is_dir()
    try:
        config = AutoConfig.from_pretrained(name)
    except (OSError, ValueError) as error:
        raise ModelError(_unreachable(name, local, error)) from error
    if config.model_type != "whisper":
        raise ModelError(
            f"{name} holds a model of type {config.model_type!r}: a Whisper model is needed, "
            "such as openai/whisper-small, or `starter`"
        )
    try:
        model = WhisperForConditionalGeneration.from_pretrained(name, config=config, dtype=dtype, use_safetensors=True)
    except (OSError, ValueError, RuntimeError) as error:
        if local and not any(Path(name).glob("*.safetensors")):
            raise ModelError(
                f"{name} holds no safetensors weights: pickled weights (.bin, .pt) are refused, since loading one "
                "can run code; convert them with save_pretrained of a trusted copy"
            ) from error
        if local:
            raise ModelError(f"the weights in {name} cannot be loaded: {_first_line(error)}") from error
        raise ModelError(_unreachable(name, local, error)) from error
    try:
        processor = WhisperProcessor.from_pretrained(name)
    except (OSError, ValueError, TypeError) as error:
        raise ModelError(
            f"{name} has no usable tokenizer and feature extractor ({_first_line(error)}): "
            "copy those of the model it was made from beside the weights"
        ) from error
    return length_aware(model), processor


def _unreachable(name: str, local: bool, error: BaseException) -> str:
    if local:
        return f"{name} is not a model folder ({_first_line(error)}): config.json, weights and tokenizer are needed"
    return (
        f"model {name!r} is neither a folder here nor could it be had from the Hugging Face Hub "
        f"({_first_line(error)}): check the name and the network, or give a local folder, or use `starter`"
    )


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


# The prompt ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """The special tokens of one model: what it is told before the text."""

    start: int
    end: int
    no_timestamps: int
    transcribe: int
    languages: dict[str, int]  # ISO 639-1 code -> token; empty for English-only models

    def prompt(self, language: str | None) -> list[int]:
        """The tokens before the text. Raises ModelError for a language that the model does not know."""
        if not self.languages:
            return [self.start, self.no_timestamps]
        return [self.start, self.language(language or "en"), self.transcribe, self.no_timestamps]

    def language(self, code: str) -> int:
        if code not in self.languages:
            raise ModelError(f"the model has no language {code!r}{nearest(code, self.languages)}")
        return self.languages[code]


def vocabulary(model: WhisperForConditionalGeneration, processor: WhisperProcessor) -> Vocabulary:
    """The special tokens, from the generation config or, where that is bare, from the tokenizer."""
    generation = model.generation_config
    tokenizer = processor.tokenizer

    def token(text: str) -> int:
        found: int = tokenizer.convert_tokens_to_ids(text)
        return found

    # 51,865 tokens and more are multilingual vocabularies (openai/whisper, model.py: is_multilingual).
    multilingual = getattr(generation, "is_multilingual", None)
    if multilingual is None:
        multilingual = model.config.vocab_size >= 51_865
    languages: dict[str, int] = {}
    if multilingual:
        by_token = getattr(generation, "lang_to_id", None) or {
            added: id for added, id in tokenizer.get_added_vocab().items() if 2 <= len(added.strip("<|>")) <= 3
        }
        languages = {added.strip("<|>"): id for added, id in by_token.items()}
    no_timestamps = getattr(generation, "no_timestamps_token_id", None)
    return Vocabulary(
        start=model.config.decoder_start_token_id,
        end=model.config.eos_token_id,
        no_timestamps=token("<|notimestamps|>") if no_timestamps is None else no_timestamps,
        transcribe=token("<|transcribe|>"),
        languages=languages,
    )


# Recognition ---------------------------------------------------------------------------------------------------------


class WhisperRecogniser:
    """A Whisper model that turns speech into text. Deterministic: the same batch gives the same text."""

    def __init__(self, model: WhisperForConditionalGeneration, processor: WhisperProcessor) -> None:
        self.model = model
        self.processor = processor
        self.filters = mel_filters(processor)
        self.vocabulary = vocabulary(model, processor)
        self._warned = False

    def transcribe(self, waveforms: Sequence[Waveform], decoding: Decoding) -> list[Hypothesis]:
        """Texts in the order given. Raises UsageError for a waveform longer than 30 s."""
        context = self._context(decoding.audio_context)
        found = [Hypothesis(text="", confidence=None)] * len(waveforms)
        with self._evaluating(), torch.inference_mode():
            for batch in self._batches(waveforms, context, decoding.batch_seconds / max(1, decoding.beams)):
                hypotheses = self._decode([waveforms[index] for index in batch], context, decoding)
                for index, hypothesis in zip(batch, hypotheses, strict=True):
                    found[index] = hypothesis
        return found

    def embed(self, waveforms: Sequence[Waveform]) -> np.ndarray[tuple[int, int], np.dtype[np.float32]]:
        """The mean of the encoder's states over each clip, its margin left out, as unit vectors (B, D)."""
        context = self._context("auto")
        vectors = np.zeros((len(waveforms), self.model.config.d_model), dtype=np.float32)
        with self._evaluating(), torch.inference_mode():
            for batch in self._batches(waveforms, context, Decoding().batch_seconds):
                clips = [waveforms[index] for index in batch]
                states, _ = self._encode(clips, context)
                positions = torch.tensor([max(1, len(clip) // (2 * HOP)) for clip in clips], device=states.device)
                inside = frame_mask(positions, states.shape[1])[..., None]
                mean = (states.float() * inside).sum(dim=1) / positions[:, None]
                vectors[batch] = functional.normalize(mean, dim=-1).cpu().numpy()
        return vectors

    def _context(self, asked: str) -> AudioContext:
        tuned: AudioContext = getattr(self.model.config, CONTEXT_KEY, "full")
        if asked == "auto":
            return tuned
        if asked == "trimmed" and tuned == "full" and not self._warned:
            self._warned = True
            log.warning(
                "this model was not tuned on trimmed audio: its texts may repeat or lose words; "
                "use audio_context=auto, or fine-tune it first"
            )
        return "trimmed" if asked == "trimmed" else "full"

    def _evaluating(self) -> _Evaluating:
        return _Evaluating(self.model)

    def _batches(self, waveforms: Sequence[Waveform], context: AudioContext, budget_s: float) -> Iterator[list[int]]:
        """Indices of the waveforms that hold sound, similar lengths together, up to the budget of padded seconds."""
        for index, waveform in enumerate(waveforms):
            if waveform.ndim != 1 or len(waveform) > MAX_UTTERANCE_SAMPLES:
                raise UsageError(
                    f"waveform {index} has shape {waveform.shape}: needed is mono sound of at most "
                    f"{seconds(MAX_UTTERANCE_SAMPLES):.0f} s at 16 kHz; cut it at pauses first"
                )
        order = sorted((i for i, w in enumerate(waveforms) if len(w)), key=lambda i: (-len(waveforms[i]), i))
        batch: list[int] = []
        for index in order:
            # Longest first: the first of a batch says how long all of it is padded.
            longest = _frames(waveforms[batch[0] if batch else index], context)
            if batch and longest * (len(batch) + 1) * HOP > budget_s * SAMPLE_RATE:
                yield batch
                batch = []
            batch.append(index)
        if batch:
            yield batch

    def _encode(self, clips: Sequence[Waveform], context: AudioContext) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Encoder states (B, E, D) and the mask of mel frames (B, T), None where nothing is padded."""
        features, mask = features_of(clips, context, self.filters, self.model.device)
        outputs = self.model.model.encoder(features.to(self.model.dtype), attention_mask=mask)
        return outputs.last_hidden_state, mask

    def _decode(self, clips: Sequence[Waveform], context: AudioContext, decoding: Decoding) -> list[Hypothesis]:
        states, mask = self._encode(clips, context)
        prompts, languages = self._prompts(states, mask, decoding.language)
        room = self.model.config.max_target_positions - prompts.shape[1]
        limits = torch.tensor(
            [
                min(decoding.max_new_tokens, room, int(TOKENS_PER_S * seconds(len(clip))) + SPARE_TOKENS)
                for clip in clips
            ],
            device=states.device,
        )
        if decoding.beams == 1:
            tokens, probabilities = self._greedy(states, mask, prompts, limits)
        else:
            tokens, probabilities = self._beams(states, mask, prompts, limits, decoding.beams)
        texts = self.processor.tokenizer.batch_decode(tokens, skip_special_tokens=True)
        return [
            Hypothesis(text=text.strip(), confidence=round(sum(p) / len(p), 6) if p else None, language=language)
            for text, p, language in zip(texts, probabilities, languages, strict=True)
        ]

    def _prompts(
        self, states: torch.Tensor, mask: torch.Tensor | None, language: str | None
    ) -> tuple[torch.Tensor, list[str | None]]:
        """Prompt tokens (B, P) and the language of each clip, detected where none is given."""
        known = self.vocabulary
        languages: list[str | None]
        if not known.languages:
            # English-only models are tuned to other languages as well; what is told wins.
            languages = [language or "en"] * len(states)
        elif language is not None:
            languages = [language] * len(states)
        else:
            start = torch.full((len(states), 1), known.start, device=states.device)
            logits = self.model(
                encoder_outputs=BaseModelOutput(last_hidden_state=states),
                attention_mask=mask,
                decoder_input_ids=start,
                use_cache=False,
            ).logits[:, -1]
            codes = list(known.languages)
            best = logits[:, [known.languages[code] for code in codes]].argmax(dim=-1)
            languages = [codes[index] for index in best.tolist()]
        prompts = [known.prompt(code) for code in languages]
        return torch.tensor(prompts, device=states.device), languages

    def _greedy(
        self, states: torch.Tensor, mask: torch.Tensor | None, prompts: torch.Tensor, limits: torch.Tensor
    ) -> tuple[list[list[int]], list[list[float]]]:
        """The likeliest token, one after the other; tokens and their probabilities, the end included.

        transformers' generate would keep every step's scores (B, V) for the probabilities: gigabytes for a
        batch of a large vocabulary. It is the oracle of this loop in the tests.
        """
        suppressed, first_suppressed = self._suppressed(states.device)
        encoder_outputs = BaseModelOutput(last_hidden_state=states)
        cache: Any = None
        given = prompts
        running = torch.ones(len(states), dtype=torch.bool, device=states.device)
        tokens: list[torch.Tensor] = []
        chances: list[torch.Tensor] = []
        for step in range(int(limits.max())):
            output = self.model(
                encoder_outputs=encoder_outputs,
                attention_mask=mask,
                decoder_input_ids=given,
                past_key_values=cache,
                use_cache=True,
            )
            cache = output.past_key_values
            logits = output.logits[:, -1].float()
            logits[:, suppressed] = -torch.inf
            if step == 0:
                logits[:, first_suppressed] = -torch.inf
            chance, best = logits.softmax(dim=-1).max(dim=-1)
            tokens.append(torch.where(running, best, self.vocabulary.end))
            chances.append(torch.where(running, chance, -1.0))
            running = running & (best != self.vocabulary.end) & (step + 1 < limits)
            if not running.any():
                break
            given = tokens[-1][:, None]
        rows = torch.stack(tokens, dim=1).tolist()
        kept = [[chance for chance in row if chance >= 0] for row in torch.stack(chances, dim=1).tolist()]
        return [row[: len(chance)] for row, chance in zip(rows, kept, strict=True)], kept

    def _beams(
        self, states: torch.Tensor, mask: torch.Tensor | None, prompts: torch.Tensor, limits: torch.Tensor, beams: int
    ) -> tuple[list[list[int]], list[list[float]]]:
        """Beam search by transformers; the probabilities come from reading the winner once more."""
        generation = copy.deepcopy(self.model.generation_config)
        generation.update(num_beams=beams, do_sample=False, max_new_tokens=int(limits.max()), max_length=None)
        generation.update(return_timestamps=False, begin_suppress_tokens=None, suppress_tokens=None)
        suppressed, first_suppressed = self._suppressed(states.device)
        start = prompts.shape[1]

        def suppress(tokens: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
            scores = scores.clone()
            scores[:, suppressed] = -torch.inf
            if tokens.shape[1] == start:
                scores[:, first_suppressed] = -torch.inf
            return scores

        arguments: dict[str, Any] = {} if mask is None else {"attention_mask": mask}
        # Whisper's own generate pads to 30 s and cuts into windows; the general one does neither.
        sequences = GenerationMixin.generate(
            self.model,
            generation_config=generation,
            encoder_outputs=BaseModelOutput(last_hidden_state=states),
            decoder_input_ids=prompts,
            logits_processor=[suppress],
            **arguments,
        )
        logits = (
            self.model(
                encoder_outputs=BaseModelOutput(last_hidden_state=states),
                attention_mask=mask,
                decoder_input_ids=sequences[:, :-1],
                use_cache=False,
            )
            .logits[:, start - 1 :]
            .float()
        )
        logits[..., suppressed] = -torch.inf
        chosen = sequences[:, start:]
        chances = logits.softmax(dim=-1).gather(-1, chosen[..., None])[..., 0]
        ends = (chosen == self.vocabulary.end).int()
        lengths = torch.where(ends.any(dim=1), ends.argmax(dim=1) + 1, chosen.shape[1]).minimum(limits).tolist()
        rows = zip(chosen.tolist(), chances.tolist(), lengths, strict=True)
        pairs = [(tokens[:length], chance[:length]) for tokens, chance, length in rows]
        return [tokens for tokens, _ in pairs], [chance for _, chance in pairs]

    def _suppressed(self, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
        """Tokens that are never written, and those that are not written first, as the model's authors set."""
        generation = self.model.generation_config
        always = torch.tensor(generation.suppress_tokens or [], dtype=torch.long, device=device)
        first = torch.tensor(generation.begin_suppress_tokens or [], dtype=torch.long, device=device)
        return always, first


class _Evaluating:
    """The model in evaluation mode for a while: no dropout; afterwards as it was."""

    def __init__(self, model: torch.nn.Module) -> None:
        self.model = model
        self.training = model.training

    def __enter__(self) -> None:
        self.model.eval()

    def __exit__(self, *_: object) -> None:
        self.model.train(self.training)


def mel_filters(processor: WhisperProcessor) -> torch.Tensor:
    """The processor's mel filters as (F, 201). Raises ModelError where its windows are not Whisper's."""
    extractor = processor.feature_extractor
    found = (extractor.sampling_rate, extractor.hop_length, extractor.n_fft)
    if found != (SAMPLE_RATE, HOP, FFT):
        raise ModelError(
            f"the feature extractor has rate, hop and window {found}; needed are {(SAMPLE_RATE, HOP, FFT)}"
        )
    return torch.tensor(np.asarray(extractor.mel_filters).T, dtype=torch.float32)


def _frames(clip: Waveform, context: AudioContext) -> int:
    return FULL_FRAMES if context == "full" else padded_frames(len(clip))


def features_of(
    clips: Sequence[Waveform], context: AudioContext, filters: torch.Tensor, device: str | torch.device
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Features (B, F, T) and the mask (B, T) of their frames, None where no clip is padded."""
    frames = [_frames(clip, context) for clip in clips]
    features = log_mel(clips, frames, filters, device)
    if min(frames) == max(frames):
        return features, None
    return features, frame_mask(torch.tensor(frames, device=features.device), max(frames)).long()


# The family ----------------------------------------------------------------------------------------------------------


class Whisper:
    """The Whisper family: any size, English-only or multilingual."""

    name = "whisper"

    def load(self, folder: str | Path, *, device: str = "cpu", dtype: str = "float32") -> WhisperRecogniser:
        """Open a folder or Hub id. Raises ModelError with the remedy."""
        model, processor = _load(folder, getattr(torch, dtype))
        try:
            model = model.to(device)
        except (RuntimeError, AssertionError) as error:
            raise ModelError(
                f"device {device!r} cannot be used ({_first_line(error)}): "
                "set `device` to cpu, or free memory on the GPU"
            ) from error
        return WhisperRecogniser(model.eval(), processor)

    def open_for_training(self, folder: str | Path, *, audio_context: AudioContext) -> Trainable:
        """Open a folder or Hub id for training, float32 on the CPU; its config remembers the audio context."""
        model, processor = _load(folder, torch.float32)
        setattr(model.config, CONTEXT_KEY, audio_context)
        model.config.apply_spec_augment = False  # the recipe augments
        extra = {"vocabulary": vocabulary(model, processor), "filters": mel_filters(processor)}
        return Trainable(model=model, processor=processor, extra=extra)

    def recogniser(self, trainable: Trainable, model: torch.nn.Module) -> WhisperRecogniser:
        """The model as it is now, half-way through training; LoRA adapters stay in it."""
        inner = model.get_base_model() if hasattr(model, "get_base_model") else model
        return WhisperRecogniser(inner, trainable.processor)

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
        context: AudioContext = "full" if full_length else "trimmed"
        features, mask = features_of(waveforms, context, trainable.extra["filters"], "cpu")
        limit = trainable.model.config.max_target_positions
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
        batch = {"input_features": features, "labels": padded}
        return batch if mask is None else batch | {"attention_mask": mask}

    def label_length(self, trainable: Trainable, text: str, language: str | None) -> int:
        """Tokens of the label of a text, prompt and end included."""
        return len(self._label(trainable, text, language))

    def _label(self, trainable: Trainable, text: str, language: str | None) -> list[int]:
        """What the decoder is to write after its start token: the rest of the prompt, the text, the end.

        So do transformers' own fine-tuning examples (run_speech_recognition_seq2seq.py), which learn the prompt too.
        """
        known: Vocabulary = trainable.extra["vocabulary"]
        language = language or trainable.extra.get("language")
        written = trainable.processor.tokenizer(text, add_special_tokens=False).input_ids
        return [*known.prompt(language)[1:], *written, known.end]

    def save(self, trainable: Trainable, model: torch.nn.Module, folder: Path) -> None:
        """Write a complete folder that `load` and stock transformers open; LoRA is merged, `adapter/` kept beside."""
        folder.mkdir(parents=True, exist_ok=True)
        if hasattr(model, "merge_and_unload"):
            model.save_pretrained(folder / "adapter")
            # A copy is merged, since un-merging leaves rounding in the weights that go on training.
            model = copy.deepcopy(model).merge_and_unload()
        model.save_pretrained(folder)
        trainable.processor.save_pretrained(folder)


WHISPER = Whisper()
