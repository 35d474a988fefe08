"""Voxtral recognition: greedy and beam decoding with transformers, and embeddings of clips.

Letters in shapes: `B` batch, `E` positions of the audio tower, `U` tokens, `V` vocabulary, `D` width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

import numpy as np

from voxloop.errors import UsageError
from voxloop.families.contract import Context, Hypothesis, Token, check, require
from voxloop.families.folders import evaluating
from voxloop.families.voxtral import prompts
from voxloop.records import MAX_UTTERANCE_S, MAX_UTTERANCE_SAMPLES, SAMPLE_RATE, seconds

if TYPE_CHECKING:
    from voxloop.families.contract import AudioContext, Decoding, Family, Waveform

POSITION_SAMPLES = 320  # samples per position of the audio tower: 20 ms, as Whisper's
# Nobody speaks faster than this, also where a token is one letter: what is longer is a loop.
TOKENS_PER_S = 25
SPARE_TOKENS = 16
SCORES_BYTES = 1 << 30  # of all steps of a batch: each token's probability is read off them


class VoxtralRecogniser:
    """A Voxtral model as transformers runs it; every clip is fed as 30 s."""

    def __init__(self, family: Family, model: Any, processor: Any) -> None:
        self.family = family
        self.model = model
        self.processor = processor

    def context(self, asked: AudioContext, untuned: Context = "full") -> Context:
        """Always `full`: the audio tower accepts nothing else. Raises UsageError for `trimmed`."""
        if asked == "trimmed":
            require(self.family, "short context")
        return "full"

    def transcribe(
        self,
        waveforms: Sequence[Waveform],
        decoding: Decoding,
        *,
        word_times: bool = False,
        heard: Callable[[float], None] | None = None,
    ) -> list[Hypothesis]:
        """Texts in the order given. Raises UsageError for what Voxtral lacks, and for a waveform longer than 30 s."""
        check(self.family, decoding, word_times=word_times)
        found = [Hypothesis(text="", confidence=None)] * len(waveforms)
        limits = [self._limit(len(clip), decoding.max_new_tokens) for clip in waveforms]
        with self._running():
            for batch in self._batches(waveforms, decoding, max(limits, default=1)):
                clips = [waveforms[index] for index in batch]
                hypotheses = self._decode(clips, decoding, [limits[index] for index in batch])
                for index, hypothesis in zip(batch, hypotheses, strict=True):
                    found[index] = hypothesis
                if heard:
                    heard(seconds(sum(map(len, clips))))
        return found

    def embed(self, waveforms: Sequence[Waveform]) -> np.ndarray[tuple[int, int], np.dtype[np.float32]]:
        """The mean of the audio tower's states over each clip as unit vectors (B, D)."""
        tower = self.model.model.audio_tower
        vectors = np.zeros((len(waveforms), tower.config.hidden_size), dtype=np.float32)
        with self._running():
            for index, clip in enumerate(waveforms):
                _check_clip(index, clip)
                if not len(clip):
                    continue
                features = prompts.request(self.processor, [clip], [None])["input_features"]
                states = tower(features.to(self.model.device, self.model.dtype)).last_hidden_state[0].float()
                mean = states[: max(1, len(clip) // POSITION_SAMPLES)].mean(dim=0)
                vectors[index] = (mean / mean.norm().clamp(min=1e-12)).cpu().numpy()
        return vectors

    def _running(self) -> AbstractContextManager[None]:
        return evaluating(self.model)

    def _limit(self, samples: int, most: int) -> int:
        """Tokens that a clip's text may have."""
        return min(most, int(TOKENS_PER_S * seconds(samples)) + SPARE_TOKENS)

    def _batches(self, waveforms: Sequence[Waveform], decoding: Decoding, limit: int) -> Iterator[list[int]]:
        """Indices of the waveforms that hold sound, the longest first, as many as fit at 30 s each."""
        for index, waveform in enumerate(waveforms):
            _check_clip(index, waveform)
        order = sorted((i for i, w in enumerate(waveforms) if len(w)), key=lambda i: (-len(waveforms[i]), i))
        scores = SCORES_BYTES // (4 * self.model.config.text_config.vocab_size * limit)
        at_once = max(1, min(int(decoding.batch_seconds // MAX_UTTERANCE_S), scores) // decoding.beams)
        for first in range(0, len(order), at_once):
            yield order[first : first + at_once]

    def _decode(self, clips: Sequence[Waveform], decoding: Decoding, limits: Sequence[int]) -> list[Hypothesis]:
        inputs = prompts.request(self.processor, clips, [decoding.language] * len(clips))
        features = inputs["input_features"].to(self.model.device, self.model.dtype)
        made = self.model.generate(
            input_ids=inputs["input_ids"].to(self.model.device),
            attention_mask=inputs["attention_mask"].to(self.model.device),
            input_features=features,
            max_new_tokens=max(limits),
            num_beams=decoding.beams,
            do_sample=False,
            output_scores=True,
            return_dict_in_generate=True,
        )
        written = made.sequences[:, inputs["input_ids"].shape[1] :]
        likely = self.model.compute_transition_scores(
            made.sequences, made.scores, getattr(made, "beam_indices", None), normalize_logits=True
        )
        return [
            self._hypothesis(tokens, logprobs, limit, decoding.language)
            for tokens, logprobs, limit in zip(written.tolist(), likely.tolist(), limits, strict=True)
        ]

    def _hypothesis(self, tokens: list[int], logprobs: list[float], limit: int, language: str | None) -> Hypothesis:
        end = self.processor.tokenizer.eos_token_id
        length = min(limit, tokens.index(end) + 1 if end in tokens else len(tokens))
        text = self.processor.tokenizer.decode(tokens[:length], skip_special_tokens=True).strip()
        kept = np.array(logprobs[:length])
        said = [(token, chance) for token, chance in zip(tokens[:length], logprobs, strict=False) if token != end]
        return Hypothesis(
            text=text,
            confidence=round(float(np.exp(kept).mean()), 6),
            mean_logprob=round(float(kept.mean()), 6),
            language=language,
            tokens=tuple(Token(token, self._spelled(token), round(chance, 6)) for token, chance in said),
        )

    def _spelled(self, token: int) -> bytes:
        """What a token spells; the tokenizer tells whole characters alone."""
        text: str = self.processor.tokenizer.decode([token], skip_special_tokens=True)
        return text.encode()


def _check_clip(index: int, waveform: Waveform) -> None:
    if waveform.ndim != 1 or len(waveform) > MAX_UTTERANCE_SAMPLES:
        raise UsageError(
            f"waveform {index} has shape {waveform.shape}, but the model takes mono audio of at most "
            f"{MAX_UTTERANCE_S:.0f} s at {SAMPLE_RATE} Hz: split it at pauses first"
        )
