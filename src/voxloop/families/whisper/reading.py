"""What both engines do alike: prompts, batches, guards, words. How a model is run is left to the engine.

Letters in shapes: `B` batch, `T` mel frames, `E` encoder positions, `V` vocabulary, `D` width.
"""

from __future__ import annotations

import hashlib
import logging
import math
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeVar

import numpy as np

from voxloop.errors import ModelError, UsageError, nearest
from voxloop.families.contract import REMEDIES, Decoding, Guards, Hypothesis, Token
from voxloop.families.whisper.bias import Logprobs, Preference, Reading, trie
from voxloop.families.whisper.features import CONTEXT_KEY, FULL_FRAMES, HOP, AudioContext, frames_in
from voxloop.families.whisper.words import spelled, without_silence, words_of
from voxloop.records import MAX_UTTERANCE_SAMPLES, SAMPLE_RATE, Guard, Word, seconds
from voxloop.speech.text import CHARACTER_LANGUAGES

if TYPE_CHECKING:
    from transformers import GenerationConfig, WhisperConfig, WhisperProcessor

    from voxloop.families.contract import Waveform

log = logging.getLogger(__name__)
T = TypeVar("T")

# Nobody speaks faster than this, also where a token is one letter: what is longer is a loop.
TOKENS_PER_S = 25
SPARE_TOKENS = 16
# -70 dBFS, ten steps of 16 bits: a clip that never gets louder holds nothing to hear, whatever the model makes of it.
SILENT_PEAK = 10 ** (-70 / 20)
PREVIOUS = "<|startofprev|>"  # begins what was said before: arXiv:2212.04356, section 2.3
TRANSLATE = "<|translate|>"


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """The special tokens of one model: what it is told before the text."""

    start: int
    end: int
    no_timestamps: int
    transcribe: int
    languages: dict[str, int]  # ISO 639-1 code -> token; empty for English-only models
    no_speech: int | None  # None where the tokenizer has no such token

    def prompt(self, language: str | None, task: int | None = None) -> list[int]:
        """The tokens before the text; None: transcribe. Raises ModelError for a language that the model lacks."""
        if not self.languages:
            return [self.start, self.no_timestamps]
        return [self.start, self.language(language or "en"), task or self.transcribe, self.no_timestamps]

    def language(self, code: str) -> int:
        if code not in self.languages:
            raise ModelError(f"the model has no language {code!r}{nearest(code, self.languages)}")
        return self.languages[code]


def vocabulary(config: WhisperConfig, generation: GenerationConfig, processor: WhisperProcessor) -> Vocabulary:
    """The special tokens, from the generation config or, where that is bare, from the tokenizer."""
    tokenizer = processor.tokenizer

    def token(text: str) -> int:
        found: int = tokenizer.convert_tokens_to_ids(text)
        return found

    # 51,865 tokens and more are multilingual vocabularies (openai/whisper, model.py: is_multilingual).
    multilingual = getattr(generation, "is_multilingual", None)
    if multilingual is None:
        multilingual = config.vocab_size >= 51_865
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
        start=config.decoder_start_token_id,
        end=config.eos_token_id,
        no_timestamps=token("<|notimestamps|>") if no_timestamps is None else no_timestamps,
        transcribe=token("<|transcribe|>"),
        languages=languages,
        no_speech=no_speech,
    )


@dataclass(slots=True)
class Draft:
    """A text as it was read: its tokens and their probabilities, the end among them where it was reached."""

    tokens: list[int]
    chances: list[float]
    no_speech: float | None
    temperature: float = 0.0
    text: str = ""
    logprobs: Logprobs | None = None  # of all places, where they were kept
    fired: tuple[Guard, ...] = ()
    history: tuple[Guard, ...] = field(default=())  # what fired on this clip's earlier drafts as well

    @property
    def confidence(self) -> float | None:
        return round(sum(self.chances) / len(self.chances), 6) if self.chances else None

    @property
    def mean_logprob(self) -> float:
        return sum(math.log(max(chance, 1e-30)) for chance in self.chances) / max(1, len(self.chances))


class Config(Protocol):
    """What is to be known of a model's config.json; `voxloop_audio_context` may be there as well."""

    d_model: int
    max_target_positions: int
    median_filter_width: int
    num_mel_bins: int
    vocab_size: int


class Tokenizer(Protocol):
    """What turns tokens into text: transformers' tokenizer can."""

    added_tokens_decoder: Any
    """The tokens that are no text, and perhaps others that were added."""

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]: ...

    def batch_decode(self, texts: Any, *, skip_special_tokens: bool) -> list[str]: ...

    def convert_ids_to_tokens(self, token: int) -> Any: ...


class Reader(ABC):
    """A Whisper model that turns speech into text, on some engine. Deterministic: the same batch gives the same text.

    What the encoder made of a batch, `states`, is the engine's own; its `mask` (B, T) is None where nothing is padded.
    """

    def __init__(self, config: Config, vocabulary: Vocabulary, tokenizer: Tokenizer, filters: Any) -> None:
        self.config = config
        self.vocabulary = vocabulary
        self.tokenizer = tokenizer
        self.filters = filters
        self._warned = False

    # What an engine does ---------------------------------------------------------------------------------------------

    @abstractmethod
    def _encode(self, clips: Sequence[Waveform], context: AudioContext) -> tuple[Any, Any]:
        """Encoder states (B, E, D) and the mask of mel frames (B, T), None where nothing is padded."""

    @abstractmethod
    def _means(self, states: Any, positions: Sequence[int]) -> np.ndarray[tuple[int, int], np.dtype[np.float32]]:
        """Means (B, D) of each clip's first positions."""

    @abstractmethod
    def _detect(self, states: Any, mask: Any, codes: Sequence[str]) -> list[tuple[str, float]]:
        """The likeliest of some languages for each clip, and its probability among them."""

    @abstractmethod
    def _likeliest(
        self, states: Any, mask: Any, prompts: Sequence[Sequence[int]], limits: Sequence[int], beams: int, keep: bool
    ) -> list[Draft]:
        """The likeliest text of each clip, of at most so many tokens, without `text`; `logprobs` only to `keep`."""

    @abstractmethod
    def _drawn(
        self,
        states: Any,
        mask: Any,
        rows: Sequence[int],
        prompts: Sequence[Sequence[int]],
        limits: Sequence[int],
        temperature: float,
        draws: Sequence[np.ndarray[tuple[int], np.dtype[np.float64]]],
    ) -> list[Draft]:
        """Texts of some rows of a batch, drawn at a temperature by numbers from 0 to 1 for each token.

        A token is the first at which the cumulative distribution reaches the number.
        """

    @abstractmethod
    def _read_on(
        self,
        states: Any,
        mask: Any,
        rows: Sequence[int],
        prompts: Sequence[Sequence[int]],
        texts: Sequence[Sequence[int]],
        more: Sequence[int],
    ) -> list[Reading]:
        """Texts of some rows that begin with the tokens given, and go on with the likeliest: so many more at most."""

    @abstractmethod
    def _token_times(
        self,
        states: Any,
        mask: Any,
        rows: Sequence[int],
        prompts: Sequence[Sequence[int]],
        texts: Sequence[Sequence[int]],
        samples: Sequence[int],
    ) -> list[list[float]]:
        """For some rows of a batch, when each token begins, and last when the text ends: seconds."""

    def _running(self) -> AbstractContextManager[Any]:
        """What the engine needs around its work."""
        return nullcontext()

    @property
    def _at_once(self) -> int:
        """Batches that the engine decodes side by side; they share the budget of padded seconds."""
        return 1

    def _same_batch(self, first: int, next: int, count: int, context: AudioContext) -> bool:
        """Whether a clip of `next` samples may join `count` clips whose first, longest has `first` samples."""
        return True

    # What all engines do ---------------------------------------------------------------------------------------------

    def transcribe(
        self,
        waveforms: Sequence[Waveform],
        decoding: Decoding,
        *,
        word_times: bool = False,
        heard: Callable[[float], None] | None = None,
    ) -> list[Hypothesis]:
        """Texts in the order given. Raises UsageError for a waveform longer than 30 s."""
        context = self.context(decoding.audio_context, decoding.untuned)
        task = self._task(decoding)
        found = [Hypothesis(text="", confidence=None)] * len(waveforms)
        clips = list(waveforms)
        if decoding.guards:
            for index, waveform in enumerate(waveforms):
                if np.abs(waveform).max(initial=0.0) < SILENT_PEAK:
                    found[index] = Hypothesis(text="", confidence=None, language=decoding.language, guards=("silence",))
                    clips[index] = waveform[:0]
        before = self._before(decoding)
        preference = self._preference(decoding)
        with self._running():
            budget_s = decoding.batch_seconds / max(1, decoding.beams) / self._at_once

            def hear(clips: Sequence[Waveform], context: AudioContext) -> list[int]:
                """Fill `found`; the clips that are to be heard at 30 s instead."""

                def decoded(batch: list[int]) -> list[Hypothesis | None]:
                    chosen = [clips[index] for index in batch]
                    return self._decode(chosen, context, decoding, word_times, task, before, preference)

                doubtful = []
                batches = list(self._batches(clips, context, budget_s))
                for batch, hypotheses in zip(batches, self._each(decoded, batches), strict=True):
                    for index, hypothesis in zip(batch, hypotheses, strict=True):
                        if hypothesis is None:
                            doubtful.append(index)
                        else:
                            found[index] = hypothesis
                    if heard and (done := set(batch) - set(doubtful)):
                        heard(seconds(sum(len(clips[index]) for index in done)))
                return doubtful

            again = set(hear(clips, context))
            if again:
                hear([clip if index in again else clip[:0] for index, clip in enumerate(clips)], "full")
        return found

    def _each(self, work: Callable[[list[int]], T], batches: Sequence[list[int]]) -> Iterator[T]:
        """What becomes of each batch, in their order."""
        if min(self._at_once, len(batches)) <= 1:
            yield from map(work, batches)
            return
        with ThreadPoolExecutor(self._at_once) as pool:
            yield from pool.map(work, batches)

    def embed(self, waveforms: Sequence[Waveform]) -> np.ndarray[tuple[int, int], np.dtype[np.float32]]:
        """The mean of the encoder's states over each clip, its margin left out, as unit vectors (B, D)."""
        context = self.context("auto")
        vectors = np.zeros((len(waveforms), self.config.d_model), dtype=np.float32)

        def heard(batch: list[int]) -> np.ndarray[tuple[int, int], np.dtype[np.float32]]:
            clips = [waveforms[index] for index in batch]
            states, _ = self._encode(clips, context)
            return self._means(states, [max(1, len(clip) // (2 * HOP)) for clip in clips])

        with self._running():
            batches = list(self._batches(waveforms, context, Decoding().batch_seconds / self._at_once))
            for batch, means in zip(batches, self._each(heard, batches), strict=True):
                vectors[batch] = means / np.maximum(np.linalg.norm(means, axis=1, keepdims=True), 1e-12)
        return vectors

    def context(self, asked: AudioContext | Literal["auto"], untuned: AudioContext = "full") -> AudioContext:
        """The context for a requested one; warns once if it is trimmed and the model was not trained for that."""
        tuned: AudioContext | None = getattr(self.config, CONTEXT_KEY, None)
        if asked == "auto":
            return tuned or untuned
        if asked == "trimmed" and tuned != "trimmed" and not self._warned:
            self._warned = True
            log.warning(
                "this model was not trained on trimmed audio, so its texts may repeat or lose words: "
                "use audio_context=auto, or fine-tune it first"
            )
        return asked

    def _batches(self, waveforms: Sequence[Waveform], context: AudioContext, budget_s: float) -> Iterator[list[int]]:
        """Indices of the waveforms that hold sound, similar lengths together, up to the budget of padded seconds."""
        for index, waveform in enumerate(waveforms):
            if waveform.ndim != 1 or len(waveform) > MAX_UTTERANCE_SAMPLES:
                raise UsageError(
                    f"waveform {index} has shape {waveform.shape}, but the model takes mono audio of at most "
                    f"{seconds(MAX_UTTERANCE_SAMPLES):.0f} s at 16 kHz: split it at pauses first"
                )
        order = sorted((i for i, w in enumerate(waveforms) if len(w)), key=lambda i: (-len(waveforms[i]), i))
        batch: list[int] = []
        for index in order:
            # Longest first: the first of a batch says how long all of it is padded.
            first = len(waveforms[batch[0] if batch else index])
            full = frames_in(first, context) * (len(batch) + 1) * HOP > budget_s * SAMPLE_RATE
            if batch and (full or not self._same_batch(first, len(waveforms[index]), len(batch), context)):
                yield batch
                batch = []
            batch.append(index)
        if batch:
            yield batch

    def _decode(
        self,
        clips: Sequence[Waveform],
        context: AudioContext,
        decoding: Decoding,
        timed: bool,
        task: int,
        before: list[int],
        preference: Preference | None,
    ) -> list[Hypothesis | None]:
        """Texts of a batch; with the adaptive context None for a clip that should be heard at 30 s."""
        states, mask = self._encode(clips, context)
        tasks, languages = self._prompts(states, mask, len(clips), decoding, task)
        prompts = [[*before, *task] for task in tasks]
        limits = [self._limit(len(clip), decoding.max_new_tokens, len(prompts[0])) for clip in clips]
        if decoding.temperature:
            draws = [_draws(clip, decoding.temperature, max(limits)) for clip in clips]
            rows = range(len(clips))
            drafts = self._drawn(states, mask, rows, prompts, limits, decoding.temperature, draws)
        else:
            drafts = self._likeliest(states, mask, prompts, limits, decoding.beams, preference is not None)
        if preference and not decoding.temperature:
            drafts = self._preferred(drafts, states, mask, prompts, limits, preference)
        drafts = self._worded(drafts)
        again: set[int] = set()
        if context == "adaptive":
            again = {
                index
                for index, (draft, clip, limit) in enumerate(zip(drafts, clips, limits, strict=True))
                if frames_in(len(clip), context) < FULL_FRAMES and self._doubtful(draft, limit, decoding.guards)
            }
        if decoding.guards:
            drafts = self._guarded(drafts, clips, states, mask, prompts, limits, decoding.guards, but=again)
        written = {code: "en" if decoding.task == "translate" else code for code, _ in languages}
        # Words are placed without what was said before, so that it has no part in where they are.
        times = self._times(drafts, clips, states, mask, tasks, but=again) if timed else {}
        return [
            None
            if index in again
            else Hypothesis(
                text=draft.text,
                confidence=draft.confidence,
                words=self._words(draft, times[index], clips[index], written[code]) if index in times else (),
                language=code,
                language_probability=chance,
                mean_logprob=round(draft.mean_logprob, 6),
                no_speech=draft.no_speech,
                guards=draft.history,
                temperature=draft.temperature,
                tokens=self._tokens_of(draft),
            )
            for index, (draft, (code, chance)) in enumerate(zip(drafts, languages, strict=True))
        ]

    def _task(self, decoding: Decoding) -> int:
        """The token of what is asked for. Raises UsageError where the model cannot translate."""
        if decoding.task == "transcribe":
            return self.vocabulary.transcribe
        token = self._special(TRANSLATE)
        if token is None or not self.vocabulary.languages:
            raise UsageError(
                "this model knows English alone and cannot translate: name a multilingual model, such as Whisper's "
                "`base`, or one that was tuned from it"
            )
        return token

    def _special(self, name: str) -> int | None:
        """The token of a name such as `<|startofprev|>`; None where the model has none."""
        added = self.tokenizer.added_tokens_decoder
        return next((id for id, token in added.items() if str(token) == name), None)

    def _before(self, decoding: Decoding) -> list[int]:
        """The tokens in front of the task: what the model is to take for the text so far. Raises UsageError.

        Of a text that is too long the end counts, as in Whisper's own code; of a vocabulary, the terms that fit.
        """
        most = self.config.max_target_positions // 2 - 1
        tokens = self._tokens(decoding.prompt)
        if decoding.vocabulary and decoding.vocabulary.prompt:
            listed: list[int] = []
            for term in decoding.vocabulary.texts(decoding.language):
                more = self._tokens(f", {term}" if listed else term)
                if len(listed) + len(more) + len(tokens) >= most:
                    break
                listed += more
            tokens = [*listed, *(self._tokens(".") if listed else []), *tokens]
        if not tokens:
            return []
        start = self._special(PREVIOUS)
        if start is None:
            raise UsageError(f"this model has no {PREVIOUS}: {REMEDIES['prompt']}")
        return [start, *tokens[-most:]]

    def _tokens(self, text: str) -> list[int]:
        """Tokens of a text behind others; special tokens that are written out in it are letters like others."""
        text = text.strip()
        if text and text[0] not in ",.":
            text = f" {text}"
        # The tokenizer takes "<|" for the beginning of a special token; in two pieces it cannot.
        pieces = re.split(r"(?<=<)(?=\|)", text) if text else []
        return [token for piece in pieces for token in self.tokenizer.encode(piece, add_special_tokens=False)]

    def _preference(self, decoding: Decoding) -> Preference | None:
        """What the vocabulary of a decoding prefers, by this model's tokens."""
        known = decoding.vocabulary
        if known is None or known.bonus <= 0:
            return None
        spaced = decoding.task == "translate" or decoding.language not in CHARACTER_LANGUAGES
        terms = [self._tokens(term) for term in known.texts(decoding.language)]
        if not spaced:  # a word begins without a space there
            terms = [self.tokenizer.encode(term, add_special_tokens=False) for term in known.texts(decoding.language)]
        root = trie([tokens for tokens in terms if tokens], known.bonus, known.bonus_limit)
        return Preference(root, self.vocabulary.end, lambda token: spelled(self.tokenizer, token), spaced=spaced)

    def _preferred(
        self,
        drafts: list[Draft],
        states: Any,
        mask: Any,
        prompts: Sequence[Sequence[int]],
        limits: Sequence[int],
        preference: Preference,
    ) -> list[Draft]:
        def read(rows: Sequence[int], texts: Sequence[list[int]], more: Sequence[int]) -> list[Reading]:
            return self._read_on(states, mask, rows, [prompts[row] for row in rows], texts, more)

        readings = [Reading(draft.tokens, draft.logprobs) for draft in drafts if draft.logprobs is not None]
        for draft, reading in zip(drafts, preference.prefer(readings, limits, read), strict=True):
            draft.logprobs = None
            if reading:
                draft.tokens, draft.chances = reading.tokens, reading.chances
        return drafts

    def _doubtful(self, draft: Draft, limit: int, guards: Guards | None) -> bool:
        """Whether a text read at less than 30 s is to be read again at 30 s: empty, cut off, or going round in circles.

        A low probability alone does not count. It marks speech that is hard at any length: reading it again took half
        of the gain in speed and made as many words wrong as right.
        """
        fired = (guards or Guards()).fired(draft.text, draft.mean_logprob, draft.no_speech)
        return not draft.text or len(draft.tokens) == limit or "repetition" in fired or "no speech" in fired

    def _limit(self, samples: int, most: int, before: int) -> int:
        """Tokens that a clip's text may have, behind a prompt of so many."""
        room: int = self.config.max_target_positions - before
        return min(most, room, int(TOKENS_PER_S * seconds(samples)) + SPARE_TOKENS)

    def _words(self, draft: Draft, times: Sequence[float], clip: Waveform, language: str) -> tuple[Word, ...]:
        return without_silence(words_of(self.tokenizer, *self._written(draft), times, language), clip)

    def _worded(self, drafts: list[Draft]) -> list[Draft]:
        texts = self.tokenizer.batch_decode([draft.tokens for draft in drafts], skip_special_tokens=True)
        for draft, text in zip(drafts, texts, strict=True):
            draft.text = text.strip()
        return drafts

    def _guarded(
        self,
        drafts: list[Draft],
        clips: Sequence[Waveform],
        states: Any,
        mask: Any,
        prompts: Sequence[Sequence[int]],
        limits: Sequence[int],
        guards: Guards,
        but: Collection[int] = (),
    ) -> list[Draft]:
        """The drafts that pass, decoded again at rising temperatures where they fail; `but` some are left as they are.

        Where none passes, the likeliest of a clip's drafts is taken, one that does not repeat itself
        before one that does (so does faster-whisper; Whisper itself takes the last).
        """
        tried = [[self._check(draft, guards)] for draft in drafts]
        for temperature in (higher for higher in guards.temperatures if higher > drafts[0].temperature):
            failing = [index for index, mine in enumerate(tried) if set(mine[-1].fired) - {"no speech"}]
            failing = [index for index in failing if index not in but]
            if not failing:
                break
            again = self._drawn(
                states,
                mask,
                failing,
                [prompts[index] for index in failing],
                [limits[index] for index in failing],
                temperature,
                [_draws(clips[index], temperature, max(limits)) for index in failing],
            )
            for index, draft in zip(failing, self._worded(again), strict=True):
                tried[index].append(self._check(draft, guards))
        chosen = []
        for mine, limit in zip(tried, limits, strict=True):
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

    def _check(self, draft: Draft, guards: Guards) -> Draft:
        draft.fired = guards.fired(draft.text, draft.mean_logprob, draft.no_speech)
        return draft

    def _written(self, draft: Draft) -> tuple[list[int], list[float]]:
        """The tokens of the text alone, with their probabilities."""
        count = len(draft.tokens) - (draft.tokens[-1:] == [self.vocabulary.end])
        return draft.tokens[:count], draft.chances[:count]

    def _tokens_of(self, draft: Draft) -> tuple[Token, ...]:
        """The text's tokens with their log-probabilities; none where the text was dropped."""
        if not draft.text:
            return ()
        return tuple(
            Token(id, spelled(self.tokenizer, id), round(math.log(max(chance, 1e-30)), 6))
            for id, chance in zip(*self._written(draft), strict=False)
        )

    def _times(
        self,
        drafts: Sequence[Draft],
        clips: Sequence[Waveform],
        states: Any,
        mask: Any,
        prompts: Sequence[Sequence[int]],
        but: Collection[int] = (),
    ) -> dict[int, list[float]]:
        """When the tokens of each clip with a text begin, and when it ends; `but` of some."""
        spoken = [index for index, draft in enumerate(drafts) if draft.text and index not in but]
        if not spoken:
            return {}
        found = self._token_times(
            states,
            mask,
            spoken,
            [prompts[index] for index in spoken],
            [self._written(drafts[index])[0] for index in spoken],
            [len(clips[index]) for index in spoken],
        )
        return dict(zip(spoken, found, strict=True))

    def _prompts(
        self, states: Any, mask: Any, count: int, decoding: Decoding, task: int
    ) -> tuple[list[list[int]], list[tuple[str, float | None]]]:
        """Prompt tokens (B, P) and the language of each clip, detected (with its probability) where none is given."""
        known, language = self.vocabulary, decoding.language
        languages: list[tuple[str, float | None]]
        if not known.languages:
            # English-only models are tuned to other languages as well; what is told wins.
            languages = [(language or "en", None)] * count
        elif language is not None:
            languages = [(language, None)] * count
        else:
            codes = [code for code in decoding.languages if known.language(code)] or list(known.languages)
            languages = [(code, round(chance, 6)) for code, chance in self._detect(states, mask, codes)]
        return [known.prompt(code, task) for code, _ in languages], languages


def _draws(clip: Waveform, temperature: float, count: int) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    """Numbers above 0 to 1 that only the clip and the temperature decide: a text is drawn the same in any batch."""
    seed = hashlib.sha256(np.ascontiguousarray(clip).tobytes() + f"{temperature:g}".encode()).digest()
    return 1.0 - np.random.default_rng(list(seed)).random(count)
