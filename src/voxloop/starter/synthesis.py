"""Synthetic speech from espeak-ng, and simulated microphones, rooms and telephone lines.

Waveforms are float32 arrays of shape (N,) at 16 kHz, full scale 1.0. espeak-ng is a program, called once per text;
none of it ends up in the package.
"""

import io
import random
import shutil
import subprocess
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt
import soundfile
import soxr

Wave = npt.NDArray[np.float32]

SAMPLE_RATE: Final = 16_000  # Hz

ACCENTS: Final = ("en-us", "en-gb", "en-gb-x-rp", "en-gb-x-gbclan", "en-gb-scotland", "en-us-nyc")
RESERVED_ACCENTS: Final = ("en-029", "en-gb-x-gbcwmd")
"""Caribbean and West Midlands English: the starter never hears them, so the demo can be an honest newcomer."""

VARIANTS: Final = (
    *("m1", "m2", "m3", "m4", "m5", "m6", "m7", "m8", "f1", "f2", "f3", "f4", "f5", "klatt", "klatt2", "klatt4"),
    *("adam", "Alicia", "Andy", "aunty", "belinda", "benjamin", "boris", "caleb", "david", "Denis", "Diogo", "edward"),
    *("Gene", "grandma", "grandpa", "Henrique", "Hugo", "iven", "Jacky", "John", "Lee", "linda", "marcelo", "Marco"),
    *("max", "michael", "michel", "miguel", "mike", "pablo", "paul", "pedro", "quincy", "rob", "robert", "sandro"),
    *("shelby", "steph", "travis", "victor", "Zac", "anika", "croak"),
)
RESERVED_VARIANTS: Final = ("Andrea", "Annie", "ed", "norbert")
"""Timbres left to the demo and to the check on unheard synthetic voices."""


class SynthesisUnavailable(RuntimeError):
    """espeak-ng is not installed, or it refused a voice."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Voice:
    """One setting of espeak-ng's controls. Not a person: two voices may share an accent and differ in pitch alone."""

    accent: str
    variant: str
    speed_wpm: int = 160
    pitch: int = 50
    """0 to 99, as espeak-ng counts it."""

    @property
    def name(self) -> str:
        return f"{self.accent}+{self.variant}"


def random_voice(rng: random.Random) -> Voice:
    """A random voice for training the starter."""
    return Voice(
        accent=rng.choices(ACCENTS, (6, 4, 2, 1, 1, 2))[0],
        variant=rng.choice(VARIANTS),
        speed_wpm=rng.randint(110, 230),
        pitch=rng.randint(15, 85),
    )


def speak(text: str, *, voice: Voice) -> Wave:
    """`text` in `voice`: (N,) at 16 kHz, with the silence at both ends cut to at most 30 ms."""
    program = shutil.which("espeak-ng")
    if program is None:
        raise SynthesisUnavailable("espeak-ng was not found; install it (Debian: apt-get install espeak-ng)")
    command = [program, "-v", voice.name, "-s", str(voice.speed_wpm), "-p", str(voice.pitch)]
    command += ["--stdout", text]
    made = subprocess.run(command, capture_output=True, check=False, timeout=60)
    if made.returncode != 0 or len(made.stdout) < 100:
        reason = made.stderr.decode(errors="replace").strip() or "no sound came out"
        raise SynthesisUnavailable(f"espeak-ng could not say {text!r} as {voice.name}: {reason}")
    # The header of a piped WAV claims a length that espeak-ng did not know yet: read the samples after it.
    rate = int.from_bytes(made.stdout[24:28], "little")
    wave = np.frombuffer(made.stdout[44 : len(made.stdout) // 2 * 2], dtype="<i2").astype(np.float32) / np.float32(
        32768
    )
    return trim(resample(wave, rate=rate), keep_s=0.03)


def read_wave(path_or_bytes: str | bytes) -> Wave:
    """A sound file as (N,) at 16 kHz, channels averaged."""
    source = io.BytesIO(path_or_bytes) if isinstance(path_or_bytes, bytes) else path_or_bytes
    samples, rate = soundfile.read(source, dtype="float32", always_2d=True)
    return resample(samples.mean(axis=1), rate=rate)


def resample(wave: Wave, *, rate: int) -> Wave:
    """From `rate` Hz to 16 kHz."""
    if rate == SAMPLE_RATE:
        return wave
    return np.asarray(soxr.resample(wave, rate, SAMPLE_RATE, quality="HQ"), dtype=np.float32)


def trim(wave: Wave, *, keep_s: float, floor: float = 0.01) -> Wave:
    """Cut both ends to `keep_s` seconds before and after the first and last sample above `floor` of the peak."""
    loud = np.flatnonzero(np.abs(wave) > floor * max(1e-6, float(np.abs(wave).max(initial=0.0))))
    if loud.size == 0:
        return wave
    keep = round(keep_s * SAMPLE_RATE)
    return wave[max(0, int(loud[0]) - keep) : int(loud[-1]) + keep + 1]


def change_speed(wave: Wave, *, factor: float) -> Wave:
    """Faster and higher (`factor` > 1) or slower and lower, as a tape would; linear interpolation suffices here."""
    count = max(1, round(len(wave) / factor))
    return np.asarray(np.interp(np.arange(count) * factor, np.arange(len(wave)), wave), dtype=np.float32)


def telephone(wave: Wave, *, mu_law: bool) -> Wave:
    """300 to 3,400 Hz, and with `mu_law` the 8-bit companding of ITU-T G.711 (its curve, not its codec)."""
    size = _fast_length(len(wave))
    spectrum = np.fft.rfft(wave, size)
    hertz = np.fft.rfftfreq(size, 1 / SAMPLE_RATE)
    low, high = 1 / (1 + (300 / np.maximum(hertz, 1)) ** 8), 1 / (1 + (hertz / 3_400) ** 16)
    narrow = np.fft.irfft(spectrum * np.sqrt(low * high), size)[: len(wave)].astype(np.float32)
    if not mu_law:
        return narrow
    peak = max(1e-6, float(np.abs(narrow).max()))
    unit = np.clip(narrow / peak, -1, 1)
    coded = np.round(np.sign(unit) * np.log1p(255 * np.abs(unit)) / np.log(256) * 127) / 127
    return np.asarray(np.sign(coded) * np.expm1(np.abs(coded) * np.log(256)) / 255 * peak, dtype=np.float32)


def coloured_noise(count: int, *, slope: float, rng: np.random.Generator) -> Wave:
    """`count` samples of noise of RMS 1 whose power falls with frequency to the `slope` (0 white, 1 pink, 2 brown)."""
    if slope == 0:
        return rng.standard_normal(count, dtype=np.float32)
    size = _fast_length(count)
    spectrum = np.fft.rfft(rng.standard_normal(size, dtype=np.float32))
    hertz = np.maximum(np.fft.rfftfreq(size, 1 / SAMPLE_RATE), 30)
    noise = np.fft.irfft(spectrum * hertz ** (-slope / 2), size)[:count]
    return np.asarray(noise / max(1e-9, float(np.sqrt(np.mean(noise**2)))), dtype=np.float32)


def add_noise(wave: Wave, *, snr_db: float, slope: float, rng: np.random.Generator) -> Wave:
    """Noise at `snr_db` below the RMS of the wave."""
    level = float(np.sqrt(np.mean(wave**2))) * 10 ** (-snr_db / 20)
    return np.asarray(wave + level * coloured_noise(len(wave), slope=slope, rng=rng), dtype=np.float32)


def reverberate(wave: Wave, *, decay_s: float, wet: float, rng: np.random.Generator) -> Wave:
    """A simple room: the wave plus an exponentially decaying noise tail (60 dB down after `decay_s`) at level `wet`."""
    count = max(2, round(decay_s * SAMPLE_RATE))
    tail = rng.standard_normal(count, dtype=np.float32) * np.exp(-6.9 * np.arange(count) / count)
    tail /= max(1e-9, float(np.sqrt(np.sum(tail**2))))
    size = _fast_length(len(wave) + count)
    echo = np.fft.irfft(np.fft.rfft(wave, size) * np.fft.rfft(tail, size), size)[: len(wave)]
    return np.asarray(wave + wet * echo, dtype=np.float32)


def _fast_length(count: int) -> int:
    """The least 2^n or 3 * 2^n that holds `count` samples: transforms of arbitrary lengths cost several times more."""
    power = 1 << max(1, count - 1).bit_length()
    return power * 3 // 4 if power * 3 // 4 >= count else power
