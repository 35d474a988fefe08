"""Play a part of a recording on this machine."""

from __future__ import annotations

import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from voxloop.errors import VoxloopError
from voxloop.records import SAMPLE_RATE
from voxloop.speech import audio, playing
from voxloop.steps.recordings.ingesting import read_audio

if TYPE_CHECKING:
    from voxloop.workspace import Workspace


def play(
    ws: Workspace,
    recording_id: str,
    start_s: float = 0.0,
    end_s: float | None = None,
    stop: threading.Event | None = None,
) -> str:
    """Play a recording from `start_s` to `end_s` in seconds (None: its end). Return the player's name.

    Setting `stop` ends it early. Raises BlobError, UsageError for an invalid span, and VoxloopError if no player works.
    """
    end = None if end_s is None else round(end_s * SAMPLE_RATE)
    waveform = read_audio(ws, recording_id, round(start_s * SAMPLE_RATE), end)
    with tempfile.TemporaryDirectory(prefix="voxloop-") as folder:
        wav = Path(folder, "sound.wav")
        wav.write_bytes(audio.wav_bytes(audio.to_pcm16(waveform)))
        return playing.play(wav, stop)


@contextmanager
def playing_beside(
    ws: Workspace, recording_id: str, start_s: float, end_s: float, failed: Callable[[VoxloopError], None]
) -> Iterator[None]:
    """Play a part of a recording while the block runs; leaving it ends the sound. `failed` is called in a thread."""
    stop = threading.Event()

    def sound() -> None:
        try:
            play(ws, recording_id, start_s, end_s, stop)
        except VoxloopError as error:
            failed(error)

    thread = threading.Thread(target=sound, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
