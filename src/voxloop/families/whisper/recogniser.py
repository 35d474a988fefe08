"""Whisper as a recogniser: the prompt, greedy and beam decoding, embeddings.

Letters in shapes: `B` batch, `T` mel frames, `E` encoder positions, `V` vocabulary, `D` width.
"""

from __future__ import annotations

import copy
import hashlib
import logging
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.nn import functional
from transformers import WhisperForConditionalGeneration, WhisperProcessor
from transformers.generation.utils import GenerationMixin
from transformers.modeling_outputs import BaseModelOutput

from voxloop.errors import ModelError, UsageError, nearest
from voxloop.families.contract import Decoding, Guards, Hypothesis
from voxloop.families.whisper.features import HOP, AudioContext, features_of, frame_mask, frames_of, mel_filters
from voxloop.families.whisper.network import CONTEXT_KEY
from voxloop.families.whisper.timing import without_silence, word_times, words_of
from voxloop.records import MAX_UTTERANCE_SAMPLES, SAMPLE_RATE, Guard, Word, seconds

if TYPE_CHECKING:
    from voxloop.families.contract import Waveform

log = logging.getLogger(__name__)

# Nobody speaks faster than this, also where a token is one letter: what is longer is a loop.
TOKENS_PER_S = 25
SPARE_TOKENS = 16
# -70 dBFS, ten steps of 16 bits: a clip that never gets louder holds nothing to hear, whatever the model makes of it.
SILENT_PEAK = 10 ** (-70 / 20)


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """The special tokens of one model: what it is told before the text."""

    start: int
    end: int
    no_timestamps: int
    transcribe: int
    languages: dict[str, int]  # ISO 639-1 code -> token; empty for English-only models
    no_speech: int | None  # None where the tokenizer has no such token

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
    added = tokenizer.get_added_vocab()
    # `<|nocaptions|>` is what the token is called in vocabularies before large-v3.
    no_speech = next((added[name] for name in ("<|nospeech|>", "<|nocaptions|>") if name in added), None)
    return Vocabulary(
        start=model.config.decoder_start_token_id,
        end=model.config.eos_token_id,
        no_timestamps=token("<|notimestamps|>") if no_timestamps is None else no_timestamps,
        transcribe=token("<|transcribe|>"),
        languages=languages,
        no_speech=no_speech,
    )


@dataclass(slots=True)
class _Draft:
    """A text as it was read: its tokens and their probabilities, the end among them where it was reached."""

    tokens: list[int]
    chances: list[float]
    no_speech: float | None
    temperature: float = 0.0
    text: str = ""
    fired: tuple[Guard, ...] = ()
    history: tuple[Guard, ...] = field(default=())  # what fired on this clip's earlier drafts as well

    @property
    def confidence(self) -> float | None:
        return round(sum(self.chances) / len(self.chances), 6) if self.chances else None

    @property
    def mean_logprob(self) -> float:
        return sum(math.log(max(chance, 1e-30)) for chance in self.chances) / max(1, len(self.chances))


class WhisperRecogniser:
    """A Whisper model that turns speech into text. Deterministic: the same batch gives the same text."""

    def __init__(self, model: WhisperForConditionalGeneration, processor: WhisperProcessor) -> None:
        self.model = model
        self.processor = processor
        self.filters = mel_filters(processor)
        self.vocabulary = vocabulary(model, processor)
        self._warned = False

    def transcribe(
        self, waveforms: Sequence[Waveform], decoding: Decoding, *, word_times: bool = False
    ) -> list[Hypothesis]:
        """Texts in the order given. Raises UsageError for a waveform longer than 30 s."""
        context = self._context(decoding.audio_context)
        found = [Hypothesis(text="", confidence=None)] * len(waveforms)
        heard = list(waveforms)
        if decoding.guards:
            for index, waveform in enumerate(waveforms):
                if np.abs(waveform).max(initial=0.0) < SILENT_PEAK:
                    found[index] = Hypothesis(text="", confidence=None, language=decoding.language, guards=("silence",))
                    heard[index] = waveform[:0]
        with self._evaluating(), torch.inference_mode():
            for batch in self._batches(heard, context, decoding.batch_seconds / max(1, decoding.beams)):
                hypotheses = self._decode([heard[index] for index in batch], context, decoding, word_times)
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
            longest = frames_of(waveforms[batch[0] if batch else index], context)
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

    def _decode(
        self, clips: Sequence[Waveform], context: AudioContext, decoding: Decoding, timed: bool
    ) -> list[Hypothesis]:
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
        read = self._greedy if decoding.beams == 1 else partial(self._beams, beams=decoding.beams)
        drafts = self._worded(read(states, mask, prompts, limits))
        if decoding.guards:
            drafts = self._guarded(drafts, clips, states, mask, prompts, limits, decoding.guards)
        times = self._times(drafts, clips, states, mask, prompts) if timed else {}
        return [
            Hypothesis(
                text=draft.text,
                confidence=draft.confidence,
                words=self._words(draft, times[index], clips[index], code) if index in times else (),
                language=code,
                language_probability=chance,
                mean_logprob=round(draft.mean_logprob, 6),
                no_speech=draft.no_speech,
                guards=draft.history,
                temperature=draft.temperature,
            )
            for index, (draft, (code, chance)) in enumerate(zip(drafts, languages, strict=True))
        ]

    def _words(self, draft: _Draft, times: Sequence[float], clip: Waveform, language: str) -> tuple[Word, ...]:
        return without_silence(words_of(self.processor.tokenizer, *self._written(draft), times, language), clip)

    def _worded(self, drafts: list[_Draft]) -> list[_Draft]:
        texts = self.processor.tokenizer.batch_decode([draft.tokens for draft in drafts], skip_special_tokens=True)
        for draft, text in zip(drafts, texts, strict=True):
            draft.text = text.strip()
        return drafts

    def _guarded(
        self,
        drafts: list[_Draft],
        clips: Sequence[Waveform],
        states: torch.Tensor,
        mask: torch.Tensor | None,
        prompts: torch.Tensor,
        limits: torch.Tensor,
        guards: Guards,
    ) -> list[_Draft]:
        """The drafts that pass, decoded again at rising temperatures where they fail.

        Where none passes, the likeliest of a clip's drafts is taken, one that does not repeat itself
        before one that does (so does faster-whisper; Whisper itself takes the last).
        """
        tried = [[self._check(draft, guards)] for draft in drafts]
        for temperature in guards.temperatures:
            failing = [index for index, mine in enumerate(tried) if set(mine[-1].fired) - {"no speech"}]
            if not failing:
                break
            rows = torch.tensor(failing, device=states.device)
            draws = np.stack([_draws(clips[index], temperature, int(limits.max())) for index in failing])
            again = self._greedy(
                states[rows],
                None if mask is None else mask[rows],
                prompts[rows],
                limits[rows],
                temperature,
                torch.from_numpy(draws).to(states.device),
            )
            for index, draft in zip(failing, self._worded(again), strict=True):
                tried[index].append(self._check(draft, guards))
        chosen = []
        for mine, limit in zip(tried, limits.tolist(), strict=True):
            best = mine[-1]
            if set(best.fired) - {"no speech"}:
                best = max(mine, key=lambda draft: ("repetition" not in draft.fired, draft.mean_logprob))
            cut = len(best.tokens) == limit and best.tokens[-1] != self.vocabulary.end and "no speech" not in best.fired
            seen = [guard for draft in mine for guard in draft.fired] + ["cut off"] * cut
            best.history = tuple(dict.fromkeys(seen))
            if "no speech" in best.fired:
                best.text, best.tokens = "", []
            chosen.append(best)
        return chosen

    def _check(self, draft: _Draft, guards: Guards) -> _Draft:
        draft.fired = guards.fired(draft.text, draft.mean_logprob, draft.no_speech)
        return draft

    def _written(self, draft: _Draft) -> tuple[list[int], list[float]]:
        """The tokens of the text alone, with their probabilities."""
        count = len(draft.tokens) - (draft.tokens[-1:] == [self.vocabulary.end])
        return draft.tokens[:count], draft.chances[:count]

    def _times(
        self,
        drafts: Sequence[_Draft],
        clips: Sequence[Waveform],
        states: torch.Tensor,
        mask: torch.Tensor | None,
        prompts: torch.Tensor,
    ) -> dict[int, list[float]]:
        """When the tokens of each clip with a text begin, and when it ends."""
        spoken = [index for index, draft in enumerate(drafts) if draft.text]
        if not spoken:
            return {}
        rows = torch.tensor(spoken, device=states.device)
        found = word_times(
            self.model,
            states[rows],
            None if mask is None else mask[rows],
            prompts[rows],
            [self._written(drafts[index])[0] for index in spoken],
            [len(clips[index]) for index in spoken],
        )
        return dict(zip(spoken, found, strict=True))

    def _prompts(
        self, states: torch.Tensor, mask: torch.Tensor | None, language: str | None
    ) -> tuple[torch.Tensor, list[tuple[str, float | None]]]:
        """Prompt tokens (B, P) and the language of each clip, detected (with its probability) where none is given."""
        known = self.vocabulary
        languages: list[tuple[str, float | None]]
        if not known.languages:
            # English-only models are tuned to other languages as well; what is told wins.
            languages = [(language or "en", None)] * len(states)
        elif language is not None:
            languages = [(language, None)] * len(states)
        else:
            start = torch.full((len(states), 1), known.start, device=states.device)
            logits = self.model(
                encoder_outputs=BaseModelOutput(last_hidden_state=states),
                attention_mask=mask,
                decoder_input_ids=start,
                use_cache=False,
            ).logits[:, -1]
            codes = list(known.languages)
            among = logits[:, [known.languages[code] for code in codes]].float().softmax(dim=-1)
            chances, best = among.max(dim=-1)
            languages = [
                (codes[index], round(chance, 6)) for index, chance in zip(best.tolist(), chances.tolist(), strict=True)
            ]
        prompts = [known.prompt(code) for code, _ in languages]
        return torch.tensor(prompts, device=states.device), languages

    def _greedy(
        self,
        states: torch.Tensor,
        mask: torch.Tensor | None,
        prompts: torch.Tensor,
        limits: torch.Tensor,
        temperature: float = 0.0,
        draws: torch.Tensor | None = None,
    ) -> list[_Draft]:
        """The likeliest token, one after the other; or tokens drawn at a temperature, by `draws` (B, U) from 0 to 1.

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
        no_speech: list[float | None] = [None] * len(states)
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
            if step == 0:
                no_speech = self._no_speech(output.logits)
            logits[:, suppressed] = -torch.inf
            if step == 0:
                logits[:, first_suppressed] = -torch.inf
            # The probability is the model's own, also of a token drawn at a temperature (whisper/decoding.py).
            likely = logits.softmax(dim=-1)
            if draws is None:
                chance, best = likely.max(dim=-1)
            else:
                best = _drawn(logits / temperature, draws[:, step])
                chance = likely.gather(1, best[:, None])[:, 0]
            tokens.append(torch.where(running, best, self.vocabulary.end))
            chances.append(torch.where(running, chance, -1.0))
            running = running & (best != self.vocabulary.end) & (step + 1 < limits)
            if not running.any():
                break
            given = tokens[-1][:, None]
        rows = torch.stack(tokens, dim=1).tolist()
        kept = [[chance for chance in row if chance >= 0] for row in torch.stack(chances, dim=1).tolist()]
        return [
            _Draft(row[: len(chance)], chance, silent, temperature)
            for row, chance, silent in zip(rows, kept, no_speech, strict=True)
        ]

    def _beams(
        self, states: torch.Tensor, mask: torch.Tensor | None, prompts: torch.Tensor, limits: torch.Tensor, beams: int
    ) -> list[_Draft]:
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
        everywhere = self.model(
            encoder_outputs=BaseModelOutput(last_hidden_state=states),
            attention_mask=mask,
            decoder_input_ids=sequences[:, :-1],
            use_cache=False,
        ).logits
        logits = everywhere[:, start - 1 :].float()
        no_speech = self._no_speech(everywhere)
        logits[..., suppressed] = -torch.inf
        chosen = sequences[:, start:]
        chances = logits.softmax(dim=-1).gather(-1, chosen[..., None])[..., 0]
        ends = (chosen == self.vocabulary.end).int()
        lengths = torch.where(ends.any(dim=1), ends.argmax(dim=1) + 1, chosen.shape[1]).minimum(limits).tolist()
        rows = zip(chosen.tolist(), chances.tolist(), lengths, no_speech, strict=True)
        return [_Draft(tokens[:length], chance[:length], silent) for tokens, chance, length, silent in rows]

    def _no_speech(self, logits: torch.Tensor) -> list[float | None]:
        """The probability of `<|nospeech|>` right after the start token, from logits (B, U, V) that begin there."""
        if self.vocabulary.no_speech is None:
            return [None] * len(logits)
        likely = logits[:, 0].float().softmax(dim=-1)
        return [round(chance, 6) for chance in likely[:, self.vocabulary.no_speech].tolist()]

    def _suppressed(self, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
        """Tokens that are never written, and those that are not written first, as the model's authors set."""
        generation = self.model.generation_config
        always = torch.tensor(generation.suppress_tokens or [], dtype=torch.long, device=device)
        first = torch.tensor(generation.begin_suppress_tokens or [], dtype=torch.long, device=device)
        return always, first


def _draws(clip: Waveform, temperature: float, count: int) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    """Numbers above 0 to 1 that only the clip and the temperature decide: a text is drawn the same in any batch."""
    seed = hashlib.sha256(np.ascontiguousarray(clip).tobytes() + f"{temperature:g}".encode()).digest()
    return 1.0 - np.random.default_rng(list(seed)).random(count)


def _drawn(logits: torch.Tensor, draws: torch.Tensor) -> torch.Tensor:
    """Tokens (B,) of logits (B, V), by the inverse of their cumulative distribution."""
    summed = logits.softmax(dim=-1).double().cumsum(dim=-1)
    return (summed < draws[:, None] * summed[:, -1:]).sum(dim=-1)


class _Evaluating:
    """The model in evaluation mode for a while: no dropout; afterwards as it was."""

    def __init__(self, model: torch.nn.Module) -> None:
        self.model = model
        self.training = model.training

    def __enter__(self) -> None:
        self.model.eval()

    def __exit__(self, *_: object) -> None:
        self.model.train(self.training)
