"""Play a part of a recording on this machine."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from voxloop.records import SAMPLE_RATE
from voxloop.speech import audio, playing
from voxloop.steps.recordings.ingesting import read_audio

if TYPE_CHECKING:
    from voxloop.workspace import Workspace


def play(ws: Workspace, recording_id: str, start_s: float = 0.0, end_s: float | None = None) -> str:
    """Play a recording from `start_s` to `end_s` in seconds (None: its end). Return the player's name.

    Raises BlobError, UsageError for an invalid span, and VoxloopError if no player works.
    """
    end = None if end_s is None else round(end_s * SAMPLE_RATE)
    waveform = read_audio(ws, recording_id, round(start_s * SAMPLE_RATE), end)
    with tempfile.TemporaryDirectory(prefix="voxloop-") as folder:
        wav = Path(folder, "sound.wav")
        wav.write_bytes(audio.wav_bytes(audio.to_pcm16(waveform)))
        return playing.play(wav)
