"""Play audio on this machine, with an installed player or the sounddevice library."""

from __future__ import annotations

import importlib
import importlib.util
import shutil
import subprocess
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


def play(wav: Path) -> str:
    """Play a WAV file to its end. Return the name of the player. Raises VoxloopError if no player works."""
    failed = []
    for name, *options in PLAYERS:
        program = shutil.which(name)
        if program is None:
            continue
        done = subprocess.run([program, *options, str(wav)], stdin=subprocess.DEVNULL, capture_output=True, check=False)
        # Without a sound card ffplay exits with 0 and prints an error.
        if done.returncode == 0 and not done.stderr.strip():
            return name
        said = done.stderr.decode("utf-8", "replace").strip().splitlines()
        failed.append(f"{name} ({said[-1].strip()[:100] if said else f'exit status {done.returncode}'})")
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


def _by_sounddevice(wav: Path) -> None:
    import soundfile

    sounddevice = importlib.import_module("sounddevice")
    samples, rate = soundfile.read(wav, dtype="float32")
    sounddevice.play(samples, rate, blocking=True)
