"""Sounds in which nobody speaks: silence, noise, machines and music, made the same way each time. Pure functions.

A recogniser should write nothing for any of them. Waveforms (S,) float32 at 16 kHz, rounded to 16 bits as stored audio.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np

from voxloop.records import SAMPLE_RATE
from voxloop.speech.audio import from_pcm16, to_pcm16

if TYPE_CHECKING:
    from voxloop.families.contract import Waveform

    Array = np.ndarray[Any, np.dtype[Any]]
    Make = Callable[[np.random.Generator, int], Array]

HISS_DB = -60.0  # RMS level of a quiet room's hiss
SOFT_DB = -30.0  # as loud as soft speech


@lru_cache(maxsize=1)
def quiet_sounds() -> dict[str, Waveform]:
    """Silence and faint sounds by name."""
    return {
        **_made("digital silence", lambda rng, n: np.zeros(n), None, 2, 10),
        **_made("the last bit flickering", lambda rng, n: rng.integers(-1, 2, n) / 32_768, None, 5, 20),
        **_made("hiss", _white, HISS_DB, 2, 10),
        **_made("louder hiss", _white, -50.0, 6),
        **_made("pink noise", _pink, HISS_DB, 6),
        **_made("pink noise at -50 dBFS", _pink, -50.0, 12),
        **_made("rumble", _brown, -50.0, 6, 15),
        **_made("mains hum", _hum(50.0), -50.0, 5, 12),
        **_made("mains hum of 60 Hz", _hum(60.0), -45.0, 8),
        **_made("a room", _room, -45.0, 8, 20),
    }


@lru_cache(maxsize=1)
def loud_sounds() -> dict[str, Waveform]:
    """Sounds as loud as speech by name."""
    return {
        **_made("white noise", _white, SOFT_DB, 2, 10),
        **_made("pink noise", _pink, SOFT_DB, 2, 10),
        **_made("rumble", _brown, -25.0, 6, 15),
        **_made("mains hum", _hum(50.0), -25.0, 6),
        **_made("a fan", _fan, SOFT_DB, 6, 15),
        **_made("traffic", _traffic, -25.0, 8, 20),
        **_made("breath", _breath, SOFT_DB, 3, 5, 8, 12),
        **_made("knocks", _knocks(2.0, 0.05, 200.0), -25.0, 5, 12),
        **_made("a keyboard", _knocks(7.0, 0.008, 3000.0), SOFT_DB, 6, 12),
        **_made("beeps", _beeps, -25.0, 4, 10),
        **_made("chords", _chords, -22.0, 6, 12, 20),
        **_made("a melody", _melody, -22.0, 6, 12, 20),
        **_made("drums", _drums, -22.0, 8, 16),
        **_made("noise in the rhythm of speech", _syllables, -25.0, 4, 8, 16),
        **_made("coughs", _coughs, -25.0, 3, 6, 12, 20),
        **_made("humming", _humming, -22.0, 2, 3, 4, 6, 7),
        **_made("a voice without words", _vowels, -22.0, 1.5, 2.5, 4, 5, 6, 8, 9, 10, 12, 16),
    }


def _made(name: str, make: Make, level_db: float | None, *lengths_s: float) -> dict[str, Waveform]:
    """A sound in several lengths, each from a seed of its own; `level_db` is its RMS level, None: as it is made."""
    found = {}
    for length_s in lengths_s:
        named = f"{name}, {length_s:g} s"
        wave = make(np.random.default_rng(zlib.crc32(named.encode())), round(length_s * SAMPLE_RATE))
        if level_db is not None:
            wave = wave * 10 ** (level_db / 20) / np.sqrt(np.mean(np.square(wave)))
        found[named] = from_pcm16(to_pcm16(np.clip(wave, -0.99, 0.99).astype(np.float32)))
    return found


def _time(samples: int) -> Array:
    return np.arange(samples) / SAMPLE_RATE


def _shaped(rng: np.random.Generator, samples: int, gain: Callable[[Array], Array]) -> Array:
    """Noise whose amplitude at each frequency in Hz is `gain`."""
    spectrum = np.fft.rfft(rng.standard_normal(samples))
    return np.fft.irfft(spectrum * gain(np.fft.rfftfreq(samples, 1 / SAMPLE_RATE)), samples)


def _band(low: float, high: float) -> Callable[[Array], Array]:
    """About 1 between two frequencies, falling by 12 dB an octave outside."""
    return lambda f: 1 / (1 + (f / high) ** 2) / (1 + (low / np.maximum(f, 1.0)) ** 2)


def _white(rng: np.random.Generator, samples: int) -> Array:
    return rng.standard_normal(samples)


def _pink(rng: np.random.Generator, samples: int) -> Array:
    return _shaped(rng, samples, lambda f: 1 / np.sqrt(np.maximum(f, 1.0)))  # power as 1/f


def _brown(rng: np.random.Generator, samples: int) -> Array:
    return _shaped(rng, samples, lambda f: 1 / np.maximum(f, 20.0))


def _hum(mains: float) -> Make:
    """Mains and its harmonics, over a little hiss."""

    def make(rng: np.random.Generator, samples: int) -> Array:
        t = _time(samples)
        parts = [np.sin(2 * np.pi * mains * k * t + rng.uniform(0, 6)) / k for k in range(1, 9)]
        made: Array = np.sum(parts, axis=0) + 0.02 * rng.standard_normal(samples)
        return made

    return make


def _room(rng: np.random.Generator, samples: int) -> Array:
    """Pink noise that swells slowly, and a tick now and then."""
    t = _time(samples)
    bed = _pink(rng, samples) * (1 + 0.4 * np.sin(2 * np.pi * 0.2 * t + rng.uniform(0, 6)))
    made: Array = bed / bed.std() + _knocks(0.5, 0.01, 1500.0)(rng, samples)
    return made


def _fan(rng: np.random.Generator, samples: int) -> Array:
    blades = 1 + 0.3 * np.sin(2 * np.pi * 22 * _time(samples))
    return _shaped(rng, samples, _band(80, 900)) * blades


def _traffic(rng: np.random.Generator, samples: int) -> Array:
    t = _time(samples)
    swell = 0.2 + np.sin(np.pi * t / 7 + rng.uniform(0, 3)) ** 4
    return _shaped(rng, samples, _band(40, 400)) * swell


def _breath(rng: np.random.Generator, samples: int) -> Array:
    puffs = np.maximum(0, np.sin(2 * np.pi * 0.35 * _time(samples) + rng.uniform(0, 6))) ** 2
    made: Array = _shaped(rng, samples, _band(500, 3000)) * puffs
    return made


def _knocks(rate: float, decay_s: float, pitch: float) -> Make:
    """Bursts that decay, `rate` a second at irregular times."""

    def make(rng: np.random.Generator, samples: int) -> Array:
        wave = np.zeros(samples)
        for _ in range(max(1, round(rate * samples / SAMPLE_RATE))):
            start = int(rng.integers(0, samples))
            t = _time(min(samples - start, int(8 * decay_s * SAMPLE_RATE) + 1))
            ring = np.sin(2 * np.pi * pitch * rng.uniform(0.8, 1.25) * t) + 0.5 * rng.standard_normal(len(t))
            wave[start : start + len(t)] += rng.uniform(0.4, 1) * ring * np.exp(-t / decay_s)
        return wave + 1e-3 * rng.standard_normal(samples)

    return make


def _beeps(rng: np.random.Generator, samples: int) -> Array:
    """A telephone that rings out: 440 and 480 Hz, one second on, one off."""
    t = _time(samples)
    on: Array = (np.sin(2 * np.pi * 440 * t) + np.sin(2 * np.pi * 480 * t)) * (t % 2 < 1)
    return on + 1e-3 * rng.standard_normal(samples)


def _note(frequency: float, t: Array, decay_s: float) -> Array:
    parts = [np.sin(2 * np.pi * frequency * k * t) / k**1.5 for k in range(1, 7)]
    made: Array = np.sum(parts, axis=0) * np.exp(-t / decay_s)
    return made


def _played(samples: int, beat_s: float, notes: Callable[[int], list[float]], decay_s: float) -> Array:
    wave = np.zeros(samples)
    for beat in range(int(samples / SAMPLE_RATE / beat_s) + 1):
        start = int(beat * beat_s * SAMPLE_RATE)
        t = _time(max(0, min(samples - start, int(4 * decay_s * SAMPLE_RATE))))
        for frequency in notes(beat):
            wave[start : start + len(t)] += _note(frequency, t, decay_s)
    return wave


def _pitch(semitones: float) -> float:
    return float(220.0 * 2 ** (semitones / 12))


def _chords(rng: np.random.Generator, samples: int) -> Array:
    roots = rng.permutation([0, 5, 7, 9])
    chord = [0, 4, 7, 12]
    return _played(samples, 0.6, lambda beat: [_pitch(int(roots[beat // 2 % 4]) + step) for step in chord], 0.5)


def _melody(rng: np.random.Generator, samples: int) -> Array:
    steps = rng.choice([0, 2, 4, 5, 7, 9, 11, 12], 64)
    return _played(samples, 0.3, lambda beat: [_pitch(int(steps[beat % 64]) + 12)], 0.35)


def _drums(rng: np.random.Generator, samples: int) -> Array:
    wave = np.zeros(samples)
    for beat in range(int(samples / SAMPLE_RATE / 0.25) + 1):
        start = int(beat * 0.25 * SAMPLE_RATE)
        t = _time(max(0, min(samples - start, SAMPLE_RATE // 4)))
        kick = np.sin(2 * np.pi * 60 * t) * np.exp(-t / 0.08) if beat % 4 in (0, 2) else 0.0
        snare = rng.standard_normal(len(t)) * np.exp(-t / 0.04) * (0.6 if beat % 4 == 2 else 0.2)
        wave[start : start + len(t)] += kick + snare
    return wave + 1e-3 * rng.standard_normal(samples)


def _syllables(rng: np.random.Generator, samples: int) -> Array:
    """Noise with the long-term spectrum and the syllable rate of speech, as hearing tests use it, and no words."""
    t = _time(samples)
    rate = 4 + 0.5 * np.sin(2 * np.pi * 0.3 * t)
    envelope = np.maximum(0, np.sin(np.cumsum(2 * np.pi * rate) / SAMPLE_RATE)) ** 1.5
    pauses = np.sin(2 * np.pi * 0.25 * t + rng.uniform(0, 6)) > -0.6
    made: Array = _shaped(rng, samples, _band(150, 1200)) * envelope * pauses
    return made


def _voice(pitch: Array, formants: Array) -> Array:
    """A buzz of a pitch in Hz (S,) through two formants in Hz (2, S): a voice that says no words."""
    phase = np.cumsum(2 * np.pi * pitch) / SAMPLE_RATE
    wave = np.zeros(len(pitch))
    for k in range(1, 26):
        low, high = (1 / (1 + ((k * pitch - at) / 90) ** 2) for at in formants)
        wave += (low + 0.4 * high + 0.02) * np.sin(k * phase) * (k * pitch < 4000)
    return wave


def _glide(rng: np.random.Generator, t: Array, rate: float) -> Array:
    """Something that wanders between -1 and 1."""
    parts = [np.sin(2 * np.pi * rate * k * t + rng.uniform(0, 6)) / k for k in (1.0, 1.7, 2.9)]
    made: Array = np.sum(parts, axis=0) / 1.94
    return made


def _humming(rng: np.random.Generator, samples: int) -> Array:
    t = _time(samples)
    pitch = rng.uniform(110, 240) * 2 ** (0.3 * _glide(rng, t, 0.5) + 0.02 * np.sin(2 * np.pi * 5.5 * t))
    breaths = np.clip(2.5 * np.sin(np.pi * ((t / 3.0) % 1)), 0, 1)
    wave = _voice(pitch, np.stack([np.full(samples, 260.0), np.full(samples, 1100.0)]))
    return wave * breaths + 1e-3 * rng.standard_normal(samples)


def _vowels(rng: np.random.Generator, samples: int) -> Array:
    """A voice that glides through vowels, without a consonant."""
    t = _time(samples)
    pitch = rng.uniform(100, 220) * 2 ** (0.2 * _glide(rng, t, 0.6))
    wave = _voice(pitch, np.stack([550 + 250 * _glide(rng, t, 1.1), 1500 + 600 * _glide(rng, t, 0.9)]))
    made: Array = wave * np.clip(3 * np.sin(np.pi * ((t / 2.5) % 1)), 0, 1) + 1e-3 * rng.standard_normal(samples)
    return made


def _coughs(rng: np.random.Generator, samples: int) -> Array:
    wave = 1e-3 * rng.standard_normal(samples)
    at = 0.3
    while at < samples / SAMPLE_RATE - 0.5:
        start = int(at * SAMPLE_RATE)
        t = _time(min(samples - start, int(0.4 * SAMPLE_RATE)))
        voiced = _voice(180 * np.exp(-t), np.stack([np.full(len(t), 700.0), np.full(len(t), 1400.0)]))
        burst = _shaped(rng, len(t), _band(400, 2500))
        wave[start : start + len(t)] += (burst / burst.std() + 0.5 * voiced) * np.exp(-t / 0.09)
        at += rng.uniform(0.5, 2.5)
    return wave
