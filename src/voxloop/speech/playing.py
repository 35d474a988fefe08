"""Play audio on this machine, with an installed player or the sounddevice library."""

from __future__ import annotations

import importlib
import importlib.util
import shutil
import subprocess
import tempfile
import threading
from collections.abc import Sequence
from pathlib import Path

from voxloop.errors import VoxloopError, first_line

# With the options that make each one play a file without output or window, and exit.
PLAYERS = (
    ("afplay",),  # macOS
    ("pw-play",),  # PipeWire
    ("paplay",),  # PulseAudio
    ("aplay", "-q"),  # ALSA
    ("ffplay", "-nodisp", "-autoexit", "-loglevel", "error"),
    ("play", "-q"),  # SoX
    ("mpv", "--no-video", "--really-quiet"),
)

LOOK_S = 0.05  # how often playback checks whether it should stop


def installed() -> list[str]:
    """The players on this machine, in the order in which `play` tries them."""
    return [name for name, *_ in PLAYERS if shutil.which(name)]


def play(wav: Path, stop: threading.Event | None = None) -> str:
    """Play a WAV file to its end, or until `stop` is set. Return the player's name, or raise VoxloopError."""
    failed = []
    for name, *options in PLAYERS:
        program = shutil.which(name)
        if program is None:
            continue
        status, errors = _run([program, *options, str(wav)], stop)
        # Without a sound card ffplay exits with 0 and prints an error.
        if (status == 0 and not errors) or (stop is not None and stop.is_set()):
            return name
        failed.append(f"{name} ({errors[-1].strip()[:100] if errors else f'exit status {status}'})")
    if importlib.util.find_spec("sounddevice"):
        try:
            _by_sounddevice(wav)
        except Exception as error:  # noqa: BLE001  # PortAudio's own types, or OSError if it is not installed
            failed.append(f"sounddevice ({first_line(error)})")
        else:
            return "sounddevice"
    if failed:
        raise VoxloopError(f"no player on this machine could play the audio: {'; '.join(failed)}")
    names = ", ".join(name for name, *_ in PLAYERS)
    raise VoxloopError(f"this machine has no audio player: install one of {names}, or run `pip install sounddevice`")


def _run(command: Sequence[str], stop: threading.Event | None) -> tuple[int, list[str]]:
    """Run a player; its exit status and its lines on stderr."""
    with tempfile.TemporaryFile() as errors:
        running = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=errors)
        try:
            while running.poll() is None:
                if stop is not None and stop.wait(LOOK_S):
                    break
                if stop is None:
                    running.wait()
        finally:
            if running.poll() is None:
                running.terminate()
            running.wait()
        errors.seek(0)
        return running.returncode, errors.read().decode("utf-8", "replace").strip().splitlines()


def _by_sounddevice(wav: Path) -> None:
    import soundfile

    sounddevice = importlib.import_module("sounddevice")
    samples, rate = soundfile.read(wav, dtype="float32")
    sounddevice.play(samples, rate, blocking=True)
