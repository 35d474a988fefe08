"""Whisper taught by itself: what it makes of a clip at 30 s is what it is to make of the clip at its own length.

No labels are needed. The idea is FUTO's (github.com/futo-org/whisper-acft): the squared error between the states of
the short and the full context, here those of the encoder over the speech, and beside it the cross-entropy between the
decoder's distributions, whose likeliest tokens are kept.

Letters in shapes: `B` batch, `T` mel frames, `E` encoder positions, `D` width, `U` text tokens, `K` kept tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch

from voxloop.families.contract import Lesson
from voxloop.families.decoding import Decoding, Guards
from voxloop.families.folders import evaluating, without_adapters
from voxloop.families.whisper.features import POSITION_SAMPLES, frame_mask, frames_of_at_least, log_mel

if TYPE_CHECKING:
    from voxloop.families.contract import Waveform
    from voxloop.families.whisper.family import WhisperTrainable
    from voxloop.families.whisper.recogniser import WhisperRecogniser

KEPT = 32  # tokens at each place, by their probability; the rest is one more
TEXT_TOKENS = 224  # as many as Whisper's authors decode


def lessons(recogniser: WhisperRecogniser, clips: Sequence[Waveform], language: str | None) -> list[Lesson | None]:
    """What a model makes of clips (S,) at 30 s; None where it is in doubt itself, or hears nothing."""
    with evaluating(recogniser.model):
        states, mask = recogniser._encode(clips, "full")
        task = recogniser.vocabulary.transcribe
        prompts, _ = recogniser._prompts(states, mask, len(clips), Decoding(language=language), task)
        limits = [recogniser._limit(len(clip), TEXT_TOKENS, len(prompts[0])) for clip in clips]
        drafts = recogniser._worded(recogniser._likeliest(states, mask, prompts, limits, 1, True))
        kept = states.half().cpu()
    found: list[Lesson | None] = []
    for draft, clip, prompt, state in zip(drafts, clips, prompts, kept, strict=True):
        ended = draft.tokens[-1:] == [recogniser.vocabulary.end]
        doubtful = Guards().fired(draft.text, draft.mean_logprob, draft.no_speech)
        if not draft.text or not ended or doubtful or draft.logprobs is None:
            found.append(None)
            continue
        likely, tokens = torch.from_numpy(draft.logprobs).topk(KEPT, dim=-1)
        found.append(
            Lesson(
                states=state[: max(1, len(clip) // POSITION_SAMPLES)].clone(),
                prompt=list(prompt),
                text=list(draft.tokens),
                tokens=tokens.int(),
                logprobs=likely.half(),
            )
        )
    return found


def loss(
    trainable: WhisperTrainable,
    model: torch.nn.Module,
    clips: Sequence[Waveform],
    given: Sequence[Lesson],
    least_s: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Error of the encoder's states, as a share of their variance, and the decoder's cross-entropy by token.

    Clips are fed at their own length with a margin, or with silence up to `least_s` seconds.
    """
    whole: Any = without_adapters(model)
    device = whole.device
    frames = [frames_of_at_least(len(clip), least_s) for clip in clips]
    mask = None if min(frames) == max(frames) else frame_mask(torch.tensor(frames, device=device), max(frames)).long()
    longest = max(len(one.prompt) + len(one.text) for one in given) - 1
    inputs = torch.full((len(given), longest), trainable.vocabulary.end)
    for row, one in zip(inputs, given, strict=True):
        before = [*one.prompt, *one.text[:-1]]
        row[: len(before)] = torch.tensor(before)
    outputs = whole.model(
        input_features=log_mel(clips, frames, trainable.filters).to(device),
        attention_mask=mask,
        decoder_input_ids=inputs.to(device),
        use_cache=False,
    )
    states = outputs.encoder_last_hidden_state
    wrong = torch.zeros((), device=device)
    entropy = torch.zeros((), device=device)
    tokens = 0
    for index, one in enumerate(given):
        target = one.states.to(device).float()
        heard = states[index, : len(target)].float()
        wrong = wrong + (heard - target).square().mean() / target.var().clamp(min=1e-6)
        first = len(one.prompt) - 1
        said = outputs.last_hidden_state[index, first : first + len(one.text)]
        entropy = entropy + _cross_entropy(whole.proj_out(said).float(), one.tokens.to(device), one.logprobs.to(device))
        tokens += len(one.text)
    return wrong / len(given), entropy / tokens


def _cross_entropy(logits: torch.Tensor, tokens: torch.Tensor, likely: torch.Tensor) -> torch.Tensor:
    """Sum over places of the cross-entropy of logits (U, V) with tokens (U, K) of known log-probability (U, K).

    All other tokens count as one, whose probability is what is left.
    """
    known = logits.log_softmax(dim=-1).gather(1, tokens.long())
    wanted = likely.float().exp()
    rest = (1 - wanted.sum(dim=-1)).clamp(min=0.0)
    others = (1 - known.exp().sum(dim=-1)).clamp(min=1e-6).log()
    return -(wanted * known).sum() - (rest * others).sum()
