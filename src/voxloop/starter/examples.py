"""Training examples: clips are joined, augmented, padded and turned into features, in batches of similar length.

Shapes: B batch, N samples, T mel frames (100 per second), F mel bands.
"""

import math
import random
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional
from transformers import WhisperFeatureExtractor

from voxloop.starter import synthesis
from voxloop.starter.corpus import Clip
from voxloop.starter.synthesis import SAMPLE_RATE, Wave

HOP: Final = 160  # samples per mel frame
FRAME_STEP: Final = 16  # clips are padded to a multiple of this many frames
MARGIN_S: Final = 0.64  # silence after every clip: 32 encoder positions (see futo-org/whisper-acft#5)
WINDOW_FRAMES: Final = 3_000  # the 30 s that stock Whisper pads to


@dataclass(frozen=True, slots=True)
class Example:
    wave: Wave
    text: str


@dataclass(frozen=True, slots=True)
class Batch:
    features: Tensor
    """(B, F, T), each clip's own frames first, zeros behind."""
    frames: Tensor
    """(B,) mel frames of each clip, margin included."""
    texts: list[str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """The mix of examples in a part of training. It starts short, easy and clean, which speeds up the rest."""

    easy: bool
    """Single digits and short words alone."""
    strength: float
    """Of every disturbance, 0 (none) to 1."""
    margin_s: tuple[float, float]
    """Silence behind each clip, drawn once per batch."""
    frame_budget: int
    """Mel frames in a batch, margins included."""
    uneven: float = 0.0
    """Share of the examples at an uneven pace: pauses, gaps and tempo vary so much that the length of a clip says
    little about how many words are in it."""


def with_margin(wave: Wave, *, margin_s: float = MARGIN_S) -> Wave:
    """Silence of `margin_s` behind the wave, then up to a multiple of `FRAME_STEP` frames."""
    count = len(wave) + round(margin_s * SAMPLE_RATE)
    step = HOP * FRAME_STEP
    return np.pad(wave, (0, math.ceil(count / step) * step - len(wave)))


class LogMel:
    """The features of WhisperFeatureExtractor for clips of any length, a batch at a time."""

    def __init__(self) -> None:
        filters = WhisperFeatureExtractor(feature_size=80).mel_filters
        self.filters = torch.tensor(np.asarray(filters).T, dtype=torch.float32)  # (F, 201)
        self.window = torch.hann_window(400)

    def power(self, waves: Sequence[Wave]) -> tuple[Tensor, Tensor]:
        """log10 mel power (B, F, T) and the frames of each wave (B,)."""
        longest = max(len(wave) for wave in waves)
        stacked = torch.from_numpy(np.stack([np.pad(wave, (0, longest - len(wave))) for wave in waves]))
        spectrum = torch.stft(stacked, 400, HOP, window=self.window, return_complex=True)[..., :-1]
        power = self.filters @ spectrum.abs().square()
        return power.clamp_(min=1e-10).log10_(), torch.tensor([len(wave) // HOP for wave in waves])

    @staticmethod
    def scale(log_power: Tensor, frames: Tensor) -> Tensor:
        """Whisper's range: at most 8 decades below the clip's own maximum, then (x + 4) / 4; zeros behind the clip."""
        inside = torch.arange(log_power.shape[2])[None] < frames[:, None]
        peak = log_power.masked_fill(~inside[:, None], -10).amax(dim=(1, 2), keepdim=True)
        return ((torch.maximum(log_power, peak - 8) + 4) / 4).masked_fill_(~inside[:, None], 0)

    def __call__(self, waves: Sequence[Wave]) -> tuple[Tensor, Tensor]:
        """Features (B, F, T) and frames (B,)."""
        log_power, frames = self.power(waves)
        return self.scale(log_power, frames), frames


class Mixer:
    """Draws training examples from clips: digits joined into strings, phrases, key words, and noise without words."""

    def __init__(self, clips: Sequence[Clip], *, seed: int) -> None:
        self.rng = random.Random(seed)
        self.noise = np.random.default_rng(seed)
        self.real_digits: dict[str, list[Clip]] = defaultdict(list)
        self.others: dict[str, list[Clip]] = defaultdict(list)
        for clip in clips:
            if clip.kind == "digit" and clip.real:
                self.real_digits[clip.speaker].append(clip)
            else:
                self.others[f"{'real' if clip.real else 'synthetic'} {clip.kind}"].append(clip)
        shares = {
            "real digits": 0.54 if self.real_digits else 0.0,
            "synthetic digit": 0.10,
            "synthetic digits": 0.10,
            "synthetic phrase": 0.14,
            "real phrase": 0.07,
            "real keyword": 0.02,
            "quiet": 0.03,
        }
        self.shares = {
            name: share for name, share in shares.items() if name in ("real digits", "quiet") or self.others.get(name)
        }

    def example(self, *, easy: bool = False, strength: float = 1.0, uneven: float = 0.0) -> Example:
        """One example augmented with `strength`, before its margin; an `easy` one is a single digit or a short word."""
        rng = self.rng
        source = rng.choices(list(self.shares), list(self.shares.values()))[0]
        if easy and source not in ("quiet", "synthetic phrase"):
            real = self.real_digits and (rng.random() < 0.6 or not self.others.get("synthetic digit"))
            source = "real digits" if real else "synthetic digit"
        if source == "quiet":
            return Example(self._quiet(rng.uniform(0.2, 3.0)), "")
        if source == "real digits":
            speaker = rng.choice(sorted(self.real_digits))
            count = 1 if easy else rng.choices(range(1, 11), (30, 9, 16, 17, 15, 6, 3, 1.5, 1.5, 1))[0]
            clips = [rng.choice(self.real_digits[speaker]) for _ in range(count)]
        elif source == "synthetic digit":
            pool = self.others[source]
            count = 1 if easy else rng.choices((1, 2, 3, 4), (70, 10, 10, 10))[0]
            clips = [rng.choice(pool) for _ in range(count)]
        elif easy:
            clips = [min((rng.choice(self.others[source]) for _ in range(6)), key=lambda clip: len(clip.samples))]
        else:
            clips = [rng.choice(self.others[source])]
        wave = self._join(clips, strength, rng.random() < uneven)
        return Example(self._disturb(wave, strength), " ".join(clip.text for clip in clips))

    def long_example(self, *, seconds: float) -> Example:
        """Speech somewhere in up to `seconds` of audio, like the stock 30 s window."""
        parts = [self.example()]
        while self.rng.random() < 0.35 and sum(len(part.wave) for part in parts) < seconds * SAMPLE_RATE / 3:
            parts.append(Example(np.zeros(self.rng.randint(1_000, 24_000), np.float32), ""))
            parts.append(self.example())
        wave = np.concatenate([part.wave for part in parts])[: round(seconds * SAMPLE_RATE)]
        return Example(wave, " ".join(part.text for part in parts if part.text))

    def _join(self, clips: Sequence[Clip], strength: float, uneven: bool) -> Wave:
        """The clips joined at one speed, with pauses of up to 0.35 s (0.9 s if `uneven`)."""
        rng = self.rng
        speed = 1 + strength * rng.uniform(-0.2, 0.25)
        pauses = rng.choice((0.05, 0.15, 0.35))
        parts = [np.zeros(rng.randint(0, 4_800) if rng.random() < 0.6 * strength else 0, np.float32)]
        for clip in clips:
            factor = speed * rng.uniform(0.97, 1.03) if clip.real and len(clips) > 1 else speed
            wave = synthesis.change_speed(clip.wave, factor=factor) if factor != 1 else clip.wave
            if uneven and rng.random() < 0.3:
                wave = self._gap(wave)
            parts.append(wave * np.float32(10 ** rng.uniform(-0.15, 0.15)))
            pause_s = rng.uniform(0, pauses)
            if uneven and rng.random() < 0.6:
                pause_s = rng.uniform(0, rng.choice((0.1, 0.4, 0.9)))
            pause = np.zeros(round(pause_s * SAMPLE_RATE), np.float32)
            parts.append(self._click(pause) if uneven and rng.random() < 0.25 else pause)
        return np.concatenate(parts)

    def _gap(self, wave: Wave) -> Wave:
        """The wave with the quietest moment inside it made 20 to 150 ms longer, as slow speakers hold a stop.

        A wave that is nowhere 20 dB below its loudest moment stays as it is: silence there would be a cut.
        """
        frames = wave[: len(wave) // HOP * HOP].reshape(-1, HOP)
        level = np.sqrt(np.mean(frames**2, axis=1))
        first, last = len(level) // 5, len(level) * 17 // 20
        if last <= first:
            return wave
        quietest = first + int(np.argmin(level[first:last]))
        if level[quietest] > 0.1 * level.max():
            return wave
        place = quietest * HOP + HOP // 2
        silence = np.zeros(round(self.rng.uniform(0.02, 0.15) * SAMPLE_RATE), np.float32)
        return np.concatenate([wave[:place], silence, wave[place:]])

    def _click(self, pause: Wave) -> Wave:
        """The pause with a breath, a click or a knock of 10 to 150 ms somewhere in it: a sound that is not a word."""
        count = min(len(pause), round(self.rng.uniform(0.01, 0.15) * SAMPLE_RATE))
        if count < 16:
            return pause
        sound = synthesis.coloured_noise(count, slope=self.rng.choice((0.0, 1.0)), rng=self.noise) * np.hanning(count)
        start = self.rng.randint(0, len(pause) - count)
        pause[start : start + count] = sound * 10 ** self.rng.uniform(-2.2, -1)
        return pause

    def _disturb(self, wave: Wave, strength: float) -> Wave:
        rng = self.rng
        wave = wave / max(1e-4, float(np.abs(wave).max()))
        if rng.random() < 0.2 * strength:
            wave = synthesis.reverberate(
                wave, decay_s=rng.uniform(0.05, 0.4), wet=rng.uniform(0.1, 0.7), rng=self.noise
            )
        if rng.random() < 0.1 * strength:
            wave = synthesis.telephone(wave, mu_law=rng.random() < 0.5)
        if rng.random() < 0.6 * strength:
            wave = synthesis.add_noise(
                wave, snr_db=rng.uniform(8, 45), slope=rng.choice((0.0, 1.0, 2.0)), rng=self.noise
            )
        return (wave * 10 ** rng.uniform(-1.5, 0)).astype(np.float32)

    def _quiet(self, seconds: float) -> Wave:
        count = round(seconds * SAMPLE_RATE)
        if self.rng.random() < 0.3:
            return np.zeros(count, np.float32)
        noise = synthesis.coloured_noise(count, slope=self.rng.choice((0.0, 1.0, 2.0)), rng=self.noise)
        return (noise * 10 ** self.rng.uniform(-4, -1)).astype(np.float32)


class Batches:
    """A stream of batches: examples of similar length together, the cost of each batch about the same."""

    def __init__(self, mixer: Mixer, *, stage: Stage, largest: int, pool_batches: int = 16) -> None:
        self.mixer = mixer
        self.stage = stage
        self.mel = LogMel()
        self.largest, self.pool_batches = largest, pool_batches
        self.generator = torch.Generator().manual_seed(mixer.rng.getrandbits(32))
        self.ready: list[list[Example]] = []

    def draw(self) -> Batch:
        """The next batch of the current stage."""
        if not self.ready:
            self.ready = self._groups()
        group = self.ready.pop()
        margin_s = self.mixer.rng.uniform(*self.stage.margin_s)
        waves = [with_margin(example.wave, margin_s=margin_s) for example in group]
        return self._batch(waves, [example.text for example in group])

    def _groups(self) -> list[list[Example]]:
        """About `pool_batches` batches' worth of examples, cut by length, in random order."""
        margin = round(max(self.stage.margin_s) * SAMPLE_RATE)
        drawn, frames = [], 0
        while frames < self.stage.frame_budget * self.pool_batches:
            drawn.append(
                self.mixer.example(easy=self.stage.easy, strength=self.stage.strength, uneven=self.stage.uneven)
            )
            frames += (len(drawn[-1].wave) + margin) // HOP
        drawn.sort(key=lambda example: len(example.wave))
        groups, group = [], list[Example]()
        for example in drawn:
            cost = (len(example.wave) + margin) // HOP * (len(group) + 1)
            if group and (cost > self.stage.frame_budget or len(group) == self.largest):
                groups.append(group)
                group = []
            group.append(example)
        groups.append(group)
        self.mixer.rng.shuffle(groups)
        return groups

    def full_window(self, *, count: int) -> Batch:
        """`count` examples padded to 30 s, as stock Whisper gets them."""
        drawn = [self.mixer.long_example(seconds=28.0) for _ in range(count)]
        waves = [np.pad(example.wave, (0, WINDOW_FRAMES * HOP - len(example.wave))) for example in drawn]
        return self._batch(waves, [example.text for example in drawn], stretch=False)

    def _batch(self, waves: Sequence[Wave], words: list[str], *, stretch: bool = True) -> Batch:
        log_power, frames = self.mel.power(waves)
        log_power = self._colour(self._warp(log_power))
        uneven = self._uniform(1).item() < self.stage.uneven
        if uneven:
            log_power = self._contrast(log_power)
        if stretch and self._uniform(1).item() < 0.5 * self.stage.strength:
            # Slower or faster without a change of pitch; one factor for the batch keeps it one operation.
            fastest, spread = (0.8, 0.8) if uneven else (0.85, 0.4)
            steps = round(log_power.shape[2] * (fastest + spread * self._uniform(1).item()) / FRAME_STEP)
            factor = steps * FRAME_STEP / log_power.shape[2]
            log_power = functional.interpolate(log_power, size=steps * FRAME_STEP, mode="linear")
            frames = ((frames * factor) // FRAME_STEP).long().clamp(min=4) * FRAME_STEP
            frames = frames.clamp(max=log_power.shape[2])
        features = self.mel.scale(log_power, frames)
        return Batch(self._mask(features, frames), frames, words)

    def _uniform(self, *shape: int) -> Tensor:
        return torch.rand(*shape, generator=self.generator)

    def _warp(self, log_power: Tensor) -> Tensor:
        """Stretch the mel axis by up to 10 %, as a vocal tract of another length would (VTLP, Jaitly 2013)."""
        batch, bands, _ = log_power.shape
        factor = 1 + self.stage.strength * 0.2 * (self._uniform(batch, 1) - 0.5)
        place = (torch.arange(bands)[None] * factor).clamp(max=bands - 1)
        low = place.floor().long().clamp(max=bands - 2)
        weight = (place - low)[..., None]
        index = low[..., None].expand(-1, -1, log_power.shape[2])
        return log_power.gather(1, index) * (1 - weight) + log_power.gather(1, index + 1) * weight

    def _colour(self, log_power: Tensor) -> Tensor:
        """A smooth random equaliser (a few decibels), and for a third of the clips a telephone's band."""
        batch, bands, _ = log_power.shape
        place = torch.linspace(0, math.pi, bands)[None]
        curve = torch.zeros(batch, bands)
        for order in (1, 2, 3):
            curve += (self._uniform(batch, 1) - 0.5) * 0.9 / order * torch.cos(order * place)
        cut = torch.where(self._uniform(batch, 1) < 0.35, 56 + 8 * self._uniform(batch, 1), torch.tensor(1e3))
        curve -= 3.5 * (torch.arange(bands)[None] > cut)
        start = torch.where(self._uniform(batch, 1) < 0.2, 2 + 4 * self._uniform(batch, 1), torch.tensor(-1.0))
        curve -= 1.5 * (torch.arange(bands)[None] < start)
        return log_power + curve[..., None] * (self._uniform(batch, 1, 1) < self.stage.strength)

    def _contrast(self, log_power: Tensor) -> Tensor:
        """Quiet parts quieter (up to 1.5 times as many decibels below the peak) or louder (0.8 times)."""
        peak = log_power.amax(dim=(1, 2), keepdim=True)
        factor = 0.8 + 0.7 * self._uniform(len(log_power), 1, 1)
        return torch.where(self._uniform(len(log_power), 1, 1) < 0.7, peak + (log_power - peak) * factor, log_power)

    def _mask(self, features: Tensor, frames: Tensor) -> Tensor:
        """SpecAugment (arXiv:1904.08779): up to two bands of mels and one stretch of time set to the clip's mean."""
        batch, bands, length = features.shape
        mean = features.sum(dim=(1, 2), keepdim=True) / (frames[:, None, None] * bands)
        mel = torch.arange(bands)[None]
        time = torch.arange(length)[None]
        hidden = torch.zeros(batch, bands, length, dtype=torch.bool)
        for chance in (0.6 * self.stage.strength, 0.3 * self.stage.strength):
            width = self._uniform(batch, 1) * 14 * (self._uniform(batch, 1) < chance)
            start = self._uniform(batch, 1) * (bands - width)
            hidden |= ((mel >= start) & (mel < start + width))[:, :, None]
        width = self._uniform(batch, 1) * 12 * (self._uniform(batch, 1) < 0.5 * self.stage.strength)
        start = self._uniform(batch, 1) * (frames[:, None] - 64).clamp(min=16)
        hidden |= ((time >= start) & (time < start + width))[:, None, :]
        return torch.where(hidden & (time < frames[:, None])[:, None], mean, features)
