"""A stretch of a recording, played to whoever sits at this machine."""

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
    """Play a recording from second `start_s` to `end_s` (None: its end); the name of what played it.

    Raises BlobError, UsageError for a stretch that is none, and VoxloopError where nothing here can play.
    """
    end = None if end_s is None else round(end_s * SAMPLE_RATE)
    waveform = read_audio(ws, recording_id, round(start_s * SAMPLE_RATE), end)
    with tempfile.TemporaryDirectory(prefix="voxloop-") as folder:
        wav = Path(folder, "sound.wav")
        wav.write_bytes(audio.wav_bytes(audio.to_pcm16(waveform)))
        return playing.play(wav)
