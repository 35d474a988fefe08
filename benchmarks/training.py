"""Full fine-tuning steps on Whisper-tiny's shapes: clips at their own length, against 30 s of padding, batch for batch.

Both sides run the same forward, backward and fused AdamW on the same clips; only what the encoder is fed differs, which
is what separates Voxloop's training from the usual recipe (Seq2SeqTrainer with WhisperFeatureExtractor's padding).
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.side_by_side import Row, compare
from voxloop.families.contract import family
from voxloop.starter import STARTER_DIR

BATCH = 8
LENGTHS_S = (0.5, 4.0, 12.0)


def _tiny(folder: Path) -> None:
    """Whisper-tiny's shapes with random weights and the starter's tokenizer; speed does not depend on the values."""
    from transformers import WhisperConfig, WhisperForConditionalGeneration, WhisperProcessor

    processor: Any = WhisperProcessor.from_pretrained(STARTER_DIR)
    tokenizer = processor.tokenizer
    config = WhisperConfig(
        vocab_size=51_865,
        d_model=384,
        encoder_layers=4,
        decoder_layers=4,
        encoder_attention_heads=6,
        decoder_attention_heads=6,
        encoder_ffn_dim=1536,
        decoder_ffn_dim=1536,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        decoder_start_token_id=tokenizer.convert_tokens_to_ids("<|startoftranscript|>"),
    )
    model = WhisperForConditionalGeneration(config)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)


def measure(rounds: int) -> list[Row]:
    with tempfile.TemporaryDirectory() as temporary:
        _tiny(Path(temporary))
        return [_row(Path(temporary), seconds, rounds) for seconds in LENGTHS_S]


def _row(folder: Path, seconds: float, rounds: int) -> Row:
    whisper = family("whisper")
    chance = np.random.default_rng(0)
    waveforms = [chance.standard_normal(int(seconds * 16_000)).astype(np.float32) * 0.1 for _ in range(BATCH)]
    texts = ["seven four nine one two"] * BATCH
    losses: dict[str, float] = {}

    def steps(who: str, *, full_length: bool, count: int) -> Any:
        import torch

        trainable = whisper.open_for_training(folder, audio_context="full" if full_length else "trimmed")
        optimiser = torch.optim.AdamW(trainable.model.parameters(), lr=1e-5, fused=True)

        def work() -> float:
            for _ in range(count):
                batch = whisper.collate(trainable, waveforms, texts, ["en"] * BATCH, full_length=full_length)
                loss = trainable.model(**batch).loss
                loss.backward()
                optimiser.step()
                optimiser.zero_grad()
                losses[who] = float(loss)
            return float(count * BATCH)

        return work

    ours = steps("ours", full_length=False, count=4)
    peer = steps("peer", full_length=True, count=1)
    ours()
    peer()
    return compare(
        f"full fine-tune, {seconds:g} s clips, batch {BATCH}",
        ours=ours,
        peer=peer,
        unit="clips/s",
        rounds=rounds,
        quality_ours=f"loss {losses['ours']:.2f}",
        quality_peer=f"loss {losses['peer']:.2f}",
    )
