"""Sound for a person at this machine: by a player that the system has, or by the library sounddevice."""

from __future__ import annotations

import importlib
import importlib.util
import shutil
import subprocess
from pathlib import Path

from voxloop.errors import VoxloopError, first_line

# With the options that make each play one file, quietly and without a window, and end.
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
    """Play a WAV file to its end; the name of what played it. Raises VoxloopError where nothing can."""
    failed = []
    for name, *options in PLAYERS:
        program = shutil.which(name)
        if program is None:
            continue
        done = subprocess.run([program, *options, str(wav)], stdin=subprocess.DEVNULL, capture_output=True, check=False)
        # ffplay ends well where there is no sound card, and says so.
        if done.returncode == 0 and not done.stderr.strip():
            return name
        said = done.stderr.decode("utf-8", "replace").strip().splitlines()
        failed.append(f"{name} ({said[-1].strip()[:100] if said else f'exit status {done.returncode}'})")
    if importlib.util.find_spec("sounddevice"):
        try:
            _by_sounddevice(wav)
        except Exception as error:  # noqa: BLE001  # PortAudio's own kinds, and OSError where it is not installed
            failed.append(f"sounddevice ({first_line(error)})")
        else:
            return "sounddevice"
    if failed:
        raise VoxloopError(f"nothing here could play the sound: {'; '.join(failed)}")
    names = ", ".join(name for name, *_ in PLAYERS)
    raise VoxloopError(
        f"there is no program here that plays sound: install one of {names}, or `pip install sounddevice`"
    )


def _by_sounddevice(wav: Path) -> None:
    import soundfile

    sounddevice = importlib.import_module("sounddevice")
    samples, rate = soundfile.read(wav, dtype="float32")
    sounddevice.play(samples, rate, blocking=True)
