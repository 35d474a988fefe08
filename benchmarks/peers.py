"""How faster-whisper is asked in the transcription benchmarks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

RATE = 16_000
THREADS = 2
LONGEST = 100  # tokens that each side may write of the starter's strings; its positions end at 224
UNHEARD = "theo"  # the speaker that the shipped starter was made without

Sound = np.ndarray[tuple[int], np.dtype[np.float32]]


def whisper_model(folder: Path) -> Any:
    from faster_whisper import WhisperModel

    return WhisperModel(str(folder), device="cpu", compute_type="int8", cpu_threads=THREADS)


def bounded_options(longest: int = LONGEST) -> dict[str, Any]:
    """Greedy, without time stamps and fall-backs, and so many tokens at most, as the starter has to be asked."""
    return {
        "language": "en",
        "beam_size": 1,
        "best_of": 1,
        "temperature": 0.0,
        "without_timestamps": True,
        "condition_on_previous_text": False,
        "compression_ratio_threshold": None,
        "log_prob_threshold": None,
        "no_speech_threshold": None,
        "suppress_blank": False,
        "suppress_tokens": [],
        # CTranslate2 writes half of max_length, and faster-whisper adds the prompt of 2 to what it is given.
        "max_new_tokens": 2 * longest - 2,
    }
