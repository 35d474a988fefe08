"""The torch engine: greedy and beam decoding, embeddings, word times.

Letters in shapes: `B` batch, `T` mel frames, `E` encoder positions, `V` vocabulary, `D` width.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from transformers import WhisperForConditionalGeneration, WhisperProcessor
from transformers.generation.utils import GenerationMixin
from transformers.modeling_outputs import BaseModelOutput

from voxloop.families.folders import evaluating
from voxloop.families.whisper.bias import Reading
from voxloop.families.whisper.features import AudioContext, features_of, frame_mask, mel_filters
from voxloop.families.whisper.reading import Draft, Reader, vocabulary
from voxloop.families.whisper.timing import let_listen, word_times

if TYPE_CHECKING:
    from voxloop.families.contract import Waveform


class WhisperRecogniser(Reader):
    """A Whisper model as transformers runs it, at any length, with padding masked."""

    def __init__(self, model: WhisperForConditionalGeneration, processor: WhisperProcessor) -> None:
        known = vocabulary(model.config, model.generation_config, processor)
        super().__init__(model.config, known, processor.tokenizer, mel_filters(processor))
        self.model = model
        let_listen(model)

    def _running(self) -> AbstractContextManager[None]:
        return evaluating(self.model)

    def _encode(self, clips: Sequence[Waveform], context: AudioContext) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Encoder states (B, E, D) and the mask of mel frames (B, T), None where nothing is padded."""
        features, mask = features_of(clips, context, self.filters, self.model.device)
        outputs = self.model.model.encoder(features.to(self.model.dtype), attention_mask=mask)
        return outputs.last_hidden_state, mask

    def _means(
        self, states: torch.Tensor, positions: Sequence[int]
    ) -> np.ndarray[tuple[int, int], np.dtype[np.float32]]:
        counts = torch.tensor(positions, device=states.device)
        inside = frame_mask(counts, states.shape[1])[..., None]
        return ((states.float() * inside).sum(dim=1) / counts[:, None]).cpu().numpy()

    def _detect(self, states: torch.Tensor, mask: torch.Tensor | None, codes: Sequence[str]) -> list[tuple[str, float]]:
        start = torch.full((len(states), 1), self.vocabulary.start, device=states.device)
        logits = self.model(
            encoder_outputs=BaseModelOutput(last_hidden_state=states),
            attention_mask=mask,
            decoder_input_ids=start,
            use_cache=False,
        ).logits[:, -1]
        among = logits[:, [self.vocabulary.languages[code] for code in codes]].float().softmax(dim=-1)
        chances, best = among.max(dim=-1)
        return [(codes[index], chance) for index, chance in zip(best.tolist(), chances.tolist(), strict=True)]

    def _likeliest(
        self,
        states: torch.Tensor,
        mask: torch.Tensor | None,
        prompts: Sequence[Sequence[int]],
        limits: Sequence[int],
        beams: int,
        keep: bool,
    ) -> list[Draft]:
        given, most = self._tensors(prompts, limits)
        found = self._greedy(states, mask, given, most) if beams == 1 else self._beams(states, mask, given, most, beams)
        if keep:
            texts = [draft.tokens for draft in found]
            readings = self._read_on(states, mask, range(len(found)), prompts, texts, [0] * len(found))
            for draft, reading in zip(found, readings, strict=True):
                draft.logprobs = reading.logprobs
        return found

    def _drawn(
        self,
        states: torch.Tensor,
        mask: torch.Tensor | None,
        rows: Sequence[int],
        prompts: Sequence[Sequence[int]],
        limits: Sequence[int],
        temperature: float,
        draws: Sequence[np.ndarray[tuple[int], np.dtype[np.float64]]],
    ) -> list[Draft]:
        numbers = torch.from_numpy(np.stack(draws)).to(states.device)
        part, masked = self._rows(states, mask, rows)
        return self._greedy(part, masked, *self._tensors(prompts, limits), temperature, numbers)

    def _read_on(
        self,
        states: torch.Tensor,
        mask: torch.Tensor | None,
        rows: Sequence[int],
        prompts: Sequence[Sequence[int]],
        texts: Sequence[Sequence[int]],
        more: Sequence[int],
    ) -> list[Reading]:
        whole = [list(text) for text in texts]
        # Beginnings of one length go on together; one more token is the likeliest at the last place that is read.
        for length in sorted({len(text) for text, further in zip(texts, more, strict=True) if further > 1}):
            mine = [index for index, text in enumerate(texts) if len(text) == length and more[index] > 1]
            given, most = self._tensors(
                [[*prompts[index], *texts[index]] for index in mine], [more[index] for index in mine]
            )
            part, masked = self._rows(states, mask, [rows[index] for index in mine])
            for index, draft in zip(mine, self._greedy(part, masked, given, most, begun=True), strict=True):
                whole[index] += draft.tokens
        part, masked = self._rows(states, mask, rows)
        longest = max(map(len, whole))
        filled = [
            [*prompt, *text, *[self.vocabulary.end] * (longest - len(text))]
            for prompt, text in zip(prompts, whole, strict=True)
        ]
        logits = self.model(
            encoder_outputs=BaseModelOutput(last_hidden_state=part),
            attention_mask=masked,
            decoder_input_ids=torch.tensor(filled, device=states.device),
            use_cache=False,
        ).logits[:, len(prompts[0]) - 1 :]
        suppressed, _ = self._suppressed(states.device)
        found = []
        for text, further, places in zip(whole, more, logits, strict=True):
            first = len(text) if further == 1 else 0
            likely = places[first : len(text) + (further == 1)].float()
            likely[:, suppressed] = -torch.inf
            likely = likely.log_softmax(dim=-1)
            tokens = [*text, int(likely[-1].argmax())] if further == 1 else text
            found.append(Reading(tokens, likely.cpu().numpy()))
        return found

    def _token_times(
        self,
        states: torch.Tensor,
        mask: torch.Tensor | None,
        rows: Sequence[int],
        prompts: Sequence[Sequence[int]],
        texts: Sequence[Sequence[int]],
        samples: Sequence[int],
    ) -> list[list[float]]:
        given = torch.tensor(prompts, device=states.device)
        return word_times(self.model, *self._rows(states, mask, rows), given, texts, samples)

    def _tensors(self, prompts: Sequence[Sequence[int]], limits: Sequence[int]) -> tuple[torch.Tensor, torch.Tensor]:
        device = self.model.device
        return torch.tensor(prompts, device=device), torch.tensor(limits, device=device)

    @staticmethod
    def _rows(
        states: torch.Tensor, mask: torch.Tensor | None, rows: Sequence[int]
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        chosen = torch.tensor(rows, device=states.device)
        return states[chosen], None if mask is None else mask[chosen]

    def _greedy(
        self,
        states: torch.Tensor,
        mask: torch.Tensor | None,
        prompts: torch.Tensor,
        limits: torch.Tensor,
        temperature: float = 0.0,
        draws: torch.Tensor | None = None,
        *,
        begun: bool = False,
    ) -> list[Draft]:
        """The likeliest token, one after the other; or tokens drawn at a temperature, by `draws` (B, U) from 0 to 1.

        Where it is `begun`, the prompts end with the beginnings of texts, which are gone on with.

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
                no_speech = self._no_speech(output.logits, prompts)
            logits[:, suppressed] = -torch.inf
            if step == 0 and not begun:
                logits[:, first_suppressed] = -torch.inf
            # The probability is the model's own, also of a token drawn at a temperature (whisper/decoding.py).
            likely = logits.softmax(dim=-1)
            if draws is None:
                chance, best = likely.max(dim=-1)
            else:
                best = pick(logits / temperature, draws[:, step])
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
            Draft(row[: len(chance)], chance, silent, temperature)
            for row, chance, silent in zip(rows, kept, no_speech, strict=True)
        ]

    def _beams(
        self, states: torch.Tensor, mask: torch.Tensor | None, prompts: torch.Tensor, limits: torch.Tensor, beams: int
    ) -> list[Draft]:
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
        no_speech = self._no_speech(everywhere, prompts)
        logits[..., suppressed] = -torch.inf
        chosen = sequences[:, start:]
        chances = logits.softmax(dim=-1).gather(-1, chosen[..., None])[..., 0]
        ends = (chosen == self.vocabulary.end).int()
        lengths = torch.where(ends.any(dim=1), ends.argmax(dim=1) + 1, chosen.shape[1]).minimum(limits).tolist()
        rows = zip(chosen.tolist(), chances.tolist(), lengths, no_speech, strict=True)
        return [Draft(tokens[:length], chance[:length], silent) for tokens, chance, length, silent in rows]

    def _no_speech(self, logits: torch.Tensor, prompts: torch.Tensor) -> list[float | None]:
        """The probability of `<|nospeech|>` right after the start token, from logits (B, U, V) of the prompts on."""
        if self.vocabulary.no_speech is None:
            return [None] * len(logits)
        start = prompts[0].tolist().index(self.vocabulary.start)  # at the same place of all prompts
        likely = logits[:, start].float().softmax(dim=-1)
        return [round(chance, 6) for chance in likely[:, self.vocabulary.no_speech].tolist()]

    def _suppressed(self, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
        """Tokens that are never generated, and tokens never generated first, as set by the model's authors."""
        generation = self.model.generation_config
        always = torch.tensor(generation.suppress_tokens or [], dtype=torch.long, device=device)
        first = torch.tensor(generation.begin_suppress_tokens or [], dtype=torch.long, device=device)
        return always, first


def pick(logits: torch.Tensor, draws: torch.Tensor) -> torch.Tensor:
    """Tokens (B,) of logits (B, V), by the inverse of their cumulative distribution."""
    summed = logits.softmax(dim=-1).double().cumsum(dim=-1)
    return (summed < draws[:, None] * summed[:, -1:]).sum(dim=-1)
