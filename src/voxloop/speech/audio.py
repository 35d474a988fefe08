"""Audio in and out: decode, resample, mix, measure, and the one form in which it is stored.

What is stored is 16 kHz mono little-endian int16 PCM behind a 44-byte WAV
header, so samples [a, b) of a recording are bytes [44 + 2a, 44 + 2b) of its blob.
Letters in shapes: `S` samples, `C` channels.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import math
import stat
import struct
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from voxloop.errors import AudioError
from voxloop.records import SAMPLE_RATE, Quality
from voxloop.speech.containers import Pcm16, check_mp3, check_ogg, check_wav

Waveform = np.ndarray[tuple[int], np.dtype[np.float32]]  # (S,), 16 kHz, -1 to 1

WAV_HEADER_BYTES = 44
SAMPLE_BYTES = 2
FULL_SCALE = 32_768  # int16 value of 1.0

MAX_SECONDS = 24 * 3600.0  # 24 h of stored audio are 2.8 GB, below the 4 GiB a WAV header can tell
MAX_BYTES = 4 << 30
MIN_RATE = 4_000  # Hz
MAX_RATE = 768_000  # Hz: the highest that converters sell; a header above it is damaged or hostile
MAX_CHANNELS = 64
BLOCK_S = 10  # seconds decoded at once
BLOCK_VALUES = 4 << 20  # samples times channels decoded at once, at most (16 MB of float32)

# FFmpeg's demuxers that hold audio in the file itself. Playlists (hls, concat, dash) are not among them:
# they make the library open other files and addresses.
CONTAINERS = (
    "aac,ac3,aiff,amr,amrnb,amrwb,ape,asf,au,avi,caf,dts,eac3,flac,flv,gsm,loas,matroska,webm,mov,mp4,m4a,3gp,3g2,mj2,"
    "mp3,mpc,mpc8,mpeg,mpegts,nistsphere,ogg,rm,rso,sox,tta,voc,w64,wav,wsd,wv,xwma,g722,g729,ilbc,qcp"
)
# libsndfile's formats that count their frames exactly, so that fewer mean a truncated file.
_EXACT = frozenset({"WAV", "WAVEX", "AIFF", "FLAC", "CAF", "AU", "W64", "RF64", "NIST"})
_UNKNOWN_FRAMES = 1 << 62  # libsndfile says SF_COUNT_MAX where the header does not know
# Containers whose time stamps say when the sound begins; those of others are counted from the bytes.
_TIMED = ("mov", "matroska", "ogg")
GAP_S = 0.05  # a jump of the time stamps beyond it is a gap; codecs and rounding move them by less
MAX_GAP_S = 600.0  # a jump beyond it is a clock that was set, not sound that is missing
CANCELLED = 0.01  # of a channel's power: what is left in the mean of two channels that cancel each other out
NOTES = 3  # gaps told one by one


@dataclass(kw_only=True, slots=True)
class Source:
    """What a file turned out to be while `stream` read it."""

    codec: str = ""  # opus, mp3, flac, pcm_16, …
    rate: int = 0  # Hz
    channels: int = 0
    notes: list[str] = field(default_factory=list)  # what was not as it should be, a sentence each
    gaps: int = 0
    power: float = 0.0  # summed squares of the first of two channels
    mixed_power: float = 0.0  # and of their mean

    @property
    def cancels(self) -> bool:
        """Whether two channels cancel each other out, so that their mean is (nearly) silent and one alone is not."""
        return self.power > 0 and self.mixed_power < CANCELLED * self.power

    def gap(self, at_s: float, gap_s: float) -> None:
        """Sound is missing, and silence stands for it."""
        self.gaps += 1
        if self.gaps <= NOTES:
            self.notes.append(f"{gap_s:.2f} s of sound are missing at {at_s:.2f} s: silence stands in their place")
        elif self.gaps == NOTES + 1:
            self.notes.append("more stretches are missing after that, each filled with silence")


def decode(path: Path | str, *, max_seconds: float = MAX_SECONDS, max_bytes: int = MAX_BYTES) -> Waveform:
    """The whole of an audio file as (S,) float32 at 16 kHz, channels mixed by their mean.

    Raises AudioError as `stream` does.
    """
    blocks = list(stream(path, max_seconds=max_seconds, max_bytes=max_bytes))
    return blocks[0] if len(blocks) == 1 else np.concatenate(blocks)


def stream(
    path: Path | str,
    *,
    max_seconds: float = MAX_SECONDS,
    max_bytes: int = MAX_BYTES,
    channel: int | None = None,
    track: int | None = None,
    source: Source | None = None,
) -> Iterator[Waveform]:
    """An audio file in blocks of (S,) float32 at 16 kHz; memory stays bounded.

    Channels are mixed by their mean, or `channel`, counted from 0, is taken alone. Of several audio tracks the
    default one is read, or `track`, counted from 0. `source` is told what the file is and what is wrong with it.

    WAV of int16 is read here; libsndfile reads other WAV, FLAC, Vorbis, AIFF and SPHERE; FFmpeg's libraries MP3, Opus,
    and what libsndfile refuses, stumbles over or finds empty. The length is what decodes, whatever a header claims.
    Where the time stamps of a file leave a gap, at its beginning or where a stretch is damaged, silence takes its
    place, so that times are those of any player.

    Raises AudioError with one of the reasons missing, unreadable, empty (no samples), too-large, too-long, bad-rate,
    too-many-channels, no-track, not-audio and broken (truncated, or damaged so that nothing can be read), before
    memory is taken for what a header claims.
    """
    path = Path(path)
    _check_file(path, max_bytes)
    samples = 0
    told = Source() if source is None else source
    for block in _resampled(_native(path, max_seconds, channel, track, told)):
        samples += len(block)
        if samples > max_seconds * SAMPLE_RATE:
            raise _too_long(path, samples / SAMPLE_RATE, max_seconds)
        if not np.isfinite(block).all():
            raise AudioError("broken", f"{path} holds samples that are no numbers near second {samples // SAMPLE_RATE}")
        yield block
    if not samples:
        raise AudioError("empty", f"{path} is an audio file without a single sample")


def channel_count(path: Path | str, *, max_bytes: int = MAX_BYTES) -> int:
    """How many channels a file has, by its header. Raises AudioError as `stream` does."""
    import av
    import soundfile

    path = Path(path)
    _check_file(path, max_bytes)
    try:
        return int(soundfile.info(path).channels)
    except (soundfile.LibsndfileError, OSError, ValueError, TypeError):
        pass  # FFmpeg is asked next
    try:
        with av.open(f"file:{path.absolute()}", options=dict(_FFMPEG_OPTIONS), metadata_errors="replace") as container:
            return int(container.streams.audio[0].channels) if container.streams.audio else 1
    except (av.error.FFmpegError, OSError):
        return 1  # decoding it will say what is wrong


def _check_file(path: Path, max_bytes: int) -> None:
    try:
        status = path.stat()
    except (OSError, ValueError) as error:
        raise _not_read(path, error) from error
    if not stat.S_ISREG(status.st_mode):
        raise AudioError("not-audio", f"{path} is not a regular file: give audio files or folders of them")
    size = status.st_size
    if size == 0:
        raise AudioError("empty", f"{path} has zero bytes")
    if size > max_bytes:
        raise AudioError(
            "too-large", f"{path} has {size / 2**20:,.0f} MB, more than the {max_bytes / 2**20:,.0f} MB of max_file_mb"
        )


def _not_read(path: Path, error: OSError | ValueError) -> AudioError:
    if isinstance(error, (FileNotFoundError, NotADirectoryError, ValueError)):
        return AudioError("missing", f"there is no file {path}")
    return AudioError("unreadable", f"{path} cannot be read: {error.strerror or error}")


def _too_long(path: Path, found_s: float, max_seconds: float) -> AudioError:
    return AudioError(
        "too-long",
        f"{path} lasts {found_s / 3600:,.1f} h or more, beyond the {max_seconds / 3600:,.1f} h of max_recording_hours: "
        "cut it, or raise the setting",
    )


def _check_claims(path: Path, rate: int, channels: int) -> None:
    """Refuse what a header claims before any memory is taken for it."""
    if not MIN_RATE <= rate <= MAX_RATE:
        raise AudioError("bad-rate", f"{path} claims {rate:,} Hz; taken is from {MIN_RATE:,} to {MAX_RATE:,} Hz")
    if not 1 <= channels <= MAX_CHANNELS:
        raise AudioError("too-many-channels", f"{path} claims {channels} channels; taken are 1 to {MAX_CHANNELS}")


def _mixed(block: Any, channel: int | None, source: Source) -> Waveform:
    """(S, C) as (S,): one channel, or the mean of all."""
    mixed: Waveform
    if channel is None and block.shape[1] == 2:
        # The same value as the mean, in a tenth of the time: NumPy is slow along an axis of two.
        first = np.ascontiguousarray(block[:, 0])
        mixed = (first + block[:, 1]) * np.float32(0.5)
        source.power += float(np.dot(first, first))
        source.mixed_power += float(np.dot(mixed, mixed))
    elif channel is None and block.shape[1] > 2:
        mixed = block.mean(axis=1, dtype=np.float32)
    else:
        mixed = block[:, channel or 0]
    return mixed


def _native(
    path: Path, max_seconds: float, channel: int | None, track: int | None, source: Source
) -> Iterator[tuple[int, Waveform]]:
    """(rate, (S,) block) at the file's own rate, by the first library that reads it."""
    import soundfile

    try:
        raw = path.open("rb")
    except OSError as error:
        raise _not_read(path, error) from error
    with raw:
        head = raw.read(36)
        pcm = check_wav(path, raw, head, _check_claims)
        if pcm is not None:
            yield from _plain(path, raw, pcm, max_seconds, channel, source)
            return
        ogg = check_ogg(path, raw, head)
        # libsndfile's decoder of Opus takes three times as long, for the same samples within -64 dB. It believes the
        # length that an MP3's header claims, and loses what an Ogg file with a hole has behind it.
        ffmpegs = check_mp3(path, raw, head) or (ogg is not None and (ogg.opus or not ogg.whole)) or bool(track)
    if ffmpegs:
        yield from _by_ffmpeg(path, None, channel, track, source)
        return

    try:
        file = soundfile.SoundFile(path)
    except (soundfile.LibsndfileError, OSError, ValueError, TypeError) as error:
        yield from _by_ffmpeg(path, error, channel, track, source)
        return
    file.seekable = lambda: False  # or it seeks after each read, which FLAC takes its time for
    with file:
        rate, claimed = file.samplerate, file.frames
        _check_claims(path, rate, file.channels)
        exact = claimed < _UNKNOWN_FRAMES and file.format in _EXACT
        if exact and claimed / rate > max_seconds:
            raise _too_long(path, claimed / rate, max_seconds)
        _tell(source, "flac" if file.format == "FLAC" else file.subtype.lower(), rate, file.channels)
        frames = max(1, min(BLOCK_S * rate, BLOCK_VALUES // file.channels))
        read = 0
        with contextlib.suppress(soundfile.LibsndfileError, RuntimeError):  # the other library goes on from there
            while len(block := file.read(frames, dtype="float32", always_2d=True)):  # (S, C)
                read += len(block)
                yield rate, _mixed(block, channel, source)
                if read == claimed:
                    return
        if read and not exact:
            return
    # Damaged or cut off behind `read` samples, or empty as far as this library can see.
    for rate_here, block in _behind(read, _by_ffmpeg(path, None, channel, track, source)):
        read += len(block)
        yield rate_here, block
    if read < claimed and exact:
        raise AudioError("broken", f"{path} is truncated: {read / rate:.2f} s of the {claimed / rate:.2f} s it claims")


def _behind(read: int, blocks: Iterator[tuple[int, Waveform]]) -> Iterator[tuple[int, Waveform]]:
    """What blocks hold behind the first samples; nothing more where they end in an error."""
    try:
        for rate, block in blocks:
            if len(block) > read:
                yield rate, block[read:]
            read = max(0, read - len(block))
    except AudioError as error:
        if error.reason not in ("broken", "not-audio"):
            raise


def _tell(source: Source, codec: str, rate: int, channels: int) -> None:
    source.codec, source.rate, source.channels = codec, rate, channels


def _plain(
    path: Path, file: BinaryIO, pcm: Pcm16, max_seconds: float, channel: int | None, source: Source
) -> Iterator[tuple[int, Waveform]]:
    """(rate, (S,) block) of a plain WAV, as libsndfile reads it: its calls take longer than a short file's samples."""
    if pcm.frames / pcm.rate > max_seconds:
        raise _too_long(path, pcm.frames / pcm.rate, max_seconds)
    _tell(source, "pcm_16", pcm.rate, pcm.channels)
    source.notes += [pcm.note] if pcm.note else []
    at_once = max(1, min(BLOCK_S * pcm.rate, BLOCK_VALUES // pcm.channels))
    file.seek(pcm.begin)
    for first in range(0, pcm.frames, at_once):
        wanted = SAMPLE_BYTES * pcm.channels * min(at_once, pcm.frames - first)
        data = file.read(wanted)
        if len(data) < wanted:
            raise AudioError("broken", f"{path} was cut off while it was read")
        yield pcm.rate, _mixed(from_pcm16(data).reshape(-1, pcm.channels), channel, source)


_FFMPEG_OPTIONS = {"protocol_whitelist": "file", "format_whitelist": CONTAINERS}


def _by_ffmpeg(
    path: Path, refused: Exception | None, channel: int | None, track: int | None, source: Source
) -> Iterator[tuple[int, Waveform]]:
    """(rate, (S,) block) from FFmpeg's libraries; `refused` is what libsndfile said, where it was asked."""
    import av

    read_s = 0.0
    damaged: list[float] = []  # where packets could not be decoded, in seconds
    lost_s = 0.0  # of sound in them
    try:
        with av.open(f"file:{path.absolute()}", options=dict(_FFMPEG_OPTIONS), metadata_errors="replace") as container:
            chosen = _track(path, container, track, source)
            clock: float | None = None if any(name in container.format.name for name in _TIMED) else math.nan
            held: list[Any] = []  # (C, S) float32 of frames of one form
            waiting = 0  # samples of them
            form: tuple[int, str, str] | None = None
            rate = channels = 0
            resampler: Any = None
            for packet in container.demux(chosen):
                try:
                    frames = packet.decode()
                except av.error.InvalidDataError:
                    damaged.append(read_s)
                    lost_s += float((packet.duration or 0) * (packet.time_base or 0))
                    continue
                for frame in frames:
                    found = (frame.sample_rate, frame.format.name, frame.layout.name)
                    if found != form:
                        if held:
                            yield rate, _joined(held, channel, source)
                            held, waiting = [], 0
                        form, rate, channels = found, frame.sample_rate, frame.layout.nb_channels
                        _check_claims(path, rate, channels)
                        resampler = None
                        if frame.format.name != "fltp":  # planar float, as AAC and Opus come
                            resampler = av.AudioResampler(format="fltp", layout=frame.layout, rate=rate)
                        if not source.codec:
                            _tell(source, chosen.codec_context.codec.canonical_name, rate, channels)
                    if frame.time is not None:
                        clock = 0.0 if clock is None else frame.time if math.isnan(clock) else clock
                        gap_s = frame.time - clock
                        if GAP_S < gap_s <= MAX_GAP_S:
                            source.gap(read_s, gap_s)
                            if held:
                                yield rate, _joined(held, channel, source)
                                held, waiting = [], 0
                            yield from _silence(rate, round(gap_s * rate))
                            read_s += gap_s
                        elif gap_s > MAX_GAP_S:
                            source.notes.append(f"its time stamps jump by {gap_s:,.0f} s at {read_s:.2f} s")
                        # Small steps are rounding, which must not add up; after a jump the clock begins anew.
                        clock = frame.time if abs(gap_s) > GAP_S else clock
                    clock = None if clock is None else clock + frame.samples / rate
                    read_s += frame.samples / rate
                    parts = [frame] if resampler is None else resampler.resample(frame)
                    held += [part.to_ndarray() for part in parts]
                    waiting += frame.samples
                    if waiting >= min(BLOCK_S * rate, BLOCK_VALUES // channels):
                        yield rate, _joined(held, channel, source)
                        held, waiting = [], 0
            if held:
                yield rate, _joined(held, channel, source)
            if damaged and not read_s:
                raise AudioError("broken", f"{path} is damaged: none of its {len(damaged)} packets can be decoded")
            # MP4 and its kin write how long the track is; elsewhere the length is a guess from the bit rate.
            track_s = float((chosen.duration or 0) * (chosen.time_base or 0)) if "mp4" in container.format.name else 0.0
            if read_s and read_s < track_s - max(0.5, 0.02 * track_s):
                raise AudioError("broken", f"{path} is truncated: {read_s:.2f} s of the {track_s:.2f} s it claims")
    except av.error.FFmpegError as error:
        if isinstance(error, OSError) and error.errno in (errno.ENOENT, errno.EACCES):
            raise AudioError("unreadable", f"{path} cannot be read: {error.strerror}") from error
        if read_s:
            raise AudioError("broken", f"{path} is damaged after {read_s:.1f} s: {error.strerror}") from error
        others = f"libsndfile ({refused}) or " if refused else ""
        raise AudioError(
            _not_opened(path), f"{path} is no audio that {others}FFmpeg ({error.strerror}) can read"
        ) from error
    if lost_s > GAP_S and not source.gaps:
        source.notes.append(f"it is damaged at {damaged[0]:.2f} s: {lost_s:.2f} s could not be decoded")


def _track(path: Path, container: Any, track: int | None, source: Source) -> Any:
    """The audio stream to read: the one asked for, else the default one, else the first."""
    tracks = container.streams.audio
    if not tracks:
        raise AudioError("not-audio", f"{path} holds no audio stream")
    if track is not None:
        if not 0 <= track < len(tracks):
            raise AudioError("no-track", f"{path} has {len(tracks)} audio tracks, counted from 0; there is no {track}")
        return tracks[track]
    default = next((index for index, one in enumerate(tracks) if one.disposition & 1), 0)
    if len(tracks) > 1:
        source.notes.append(f"it has {len(tracks)} audio tracks; {default} was taken, --track N takes another")
    return tracks[default]


def _silence(rate: int, samples: int) -> Iterator[tuple[int, Waveform]]:
    for first in range(0, samples, BLOCK_S * rate):
        yield rate, np.zeros(min(BLOCK_S * rate, samples - first), np.float32)


def _joined(frames: Sequence[Any], channel: int | None, source: Source) -> Waveform:
    """Decoded frames, each (C, S), as one (S,). A stream that loses channels on the way goes on with what it has."""
    joined = np.concatenate(frames, axis=1)
    return _mixed(joined.T, None if channel is None or channel >= len(joined) else channel, source)


_MAGIC = (b"RIFF", b"FORM", b"OggS", b"fLaC", b"ID3", b"NIST", b"caff", b".snd", b"\x1aE\xdf\xa3")


def _not_opened(path: Path) -> str:
    """`broken` for a file that begins as audio does, `not-audio` for anything else."""
    with path.open("rb") as file:
        head = file.read(12)
    return "broken" if head.startswith(_MAGIC) or head[4:8] == b"ftyp" else "not-audio"


def _resampled(blocks: Iterable[tuple[int, Waveform]]) -> Iterator[Waveform]:
    """Blocks at 16 kHz, by libsoxr's band-limited interpolation (https://sourceforge.net/projects/soxr/)."""
    import soxr

    current = 0
    resampler: Any = None
    for rate, block in blocks:
        if rate != current:
            if resampler is not None:
                yield from _some(resampler.resample_chunk(np.zeros(0, np.float32), last=True))
            current = rate
            resampler = None
            if rate != SAMPLE_RATE:
                resampler = soxr.ResampleStream(rate, SAMPLE_RATE, 1, dtype="float32")
        yield from _some(np.ascontiguousarray(block) if resampler is None else resampler.resample_chunk(block))
    if resampler is not None:
        yield from _some(resampler.resample_chunk(np.zeros(0, np.float32), last=True))


def _some(block: Waveform) -> Iterator[Waveform]:
    if len(block):
        yield block


def to_pcm16(waveform: Waveform) -> bytes:
    """(S,) float32 as little-endian int16: times 32,768, rounded half to even, clipped to -32,768 and 32,767."""
    scaled = np.rint(np.asarray(waveform, np.float32) * np.float32(FULL_SCALE))
    pcm: bytes = np.clip(scaled, -FULL_SCALE, FULL_SCALE - 1).astype("<i2").tobytes()
    return pcm


def from_pcm16(pcm: bytes) -> Waveform:
    """Little-endian int16 as (S,) float32; `to_pcm16` of it is the same bytes again."""
    return np.frombuffer(pcm, "<i2").astype(np.float32) / np.float32(FULL_SCALE)


def pcm_id(pcm: bytes) -> str:
    """`sha256-<hex>` of canonical PCM: a recording's id."""
    return f"sha256-{hashlib.sha256(pcm).hexdigest()}"


def wav_header(pcm_bytes: int) -> bytes:
    """The 44 bytes before so many bytes of 16 kHz mono int16 PCM."""
    return struct.pack(
        "<4sI4s4sIHHIIHH4sI",
        b"RIFF", 36 + pcm_bytes, b"WAVE",
        b"fmt ", 16, 1, 1, SAMPLE_RATE, SAMPLE_RATE * SAMPLE_BYTES, SAMPLE_BYTES, 8 * SAMPLE_BYTES,
        b"data", pcm_bytes,
    )  # fmt: skip


def wav_bytes(pcm: bytes) -> bytes:
    """Canonical PCM as a WAV file."""
    return wav_header(len(pcm)) + pcm


FLOOR_DBFS = -120.0  # said of digital silence, whose level in dB is minus infinity
FRAME = SAMPLE_RATE // 50  # samples: 20 ms, over which silence is judged
SILENCE_DB = 40.0  # below the loudest frame
CLIP_LEVEL = (FULL_SCALE - 2) / FULL_SCALE  # at or next to full scale
FFT = 512  # samples: 32 ms, for the bandwidth
FFT_AT_ONCE = 64  # windows: 128 kB, which stay in the processor's cache; more take twice the time
MIN_SNR_FRAMES = 10  # 0.2 s: with fewer there is no telling speech from noise
QUIET_SHARE = 0.1  # of the frames: the quietest, which hold the noise alone where speech pauses
# The quietest tenth of steady noise lies below its mean. The factor is that of frames with 100 degrees of freedom
# (chi-squared, SciPy: the mean below the 0.1 quantile is 0.767), between white noise and room noise.
QUIET_BIAS = 1 / 0.767
SNR_RANGE_DB = (-20.0, 80.0)


class Meter:
    """Measures audio that comes in blocks; its memory is one float per 20 ms."""

    def __init__(self) -> None:
        self._samples = 0
        self._square = 0.0
        self._clipped = 0
        self._peak = 0.0
        self._frames: list[np.ndarray[Any, np.dtype[np.float32]]] = []  # variance in each 20 ms
        self._power = np.zeros(FFT // 2 + 1)
        self._rest = np.zeros(0, np.float32)

    def add(self, block: Waveform) -> None:
        """Take the next (S,) at 16 kHz."""
        if not len(block):
            return
        magnitude = np.abs(block)
        self._samples += len(block)
        self._square += float(np.dot(block, block))
        self._peak = max(self._peak, float(magnitude.max()))
        self._clipped += int(np.count_nonzero(magnitude >= CLIP_LEVEL))
        # Whole frames of both lengths now, what is left over with the next block.
        joined = np.concatenate([self._rest, block]) if len(self._rest) else block
        whole = len(joined) // _STRIDE * _STRIDE
        self._take(joined[:whole])
        self._rest = joined[whole:]

    def _take(self, joined: Waveform) -> None:
        frames = joined[: len(joined) // FRAME * FRAME].reshape(-1, FRAME)
        if len(frames):
            self._frames.append(frames.var(axis=1))  # an offset or rumble below 25 Hz is no speech
        windows = joined[: len(joined) // FFT * FFT].reshape(-1, FFT)
        for start in range(0, len(windows), FFT_AT_ONCE):
            spectrum = np.fft.rfft(windows[start : start + FFT_AT_ONCE] * _WINDOW, axis=1)
            self._power += (spectrum.real**2 + spectrum.imag**2).sum(axis=0)

    def quality(self) -> Quality:
        """What all the blocks together measure."""
        if len(self._rest):
            whole = -(-len(self._rest) // FFT) * FFT
            self._take(np.pad(self._rest, (0, whole - len(self._rest))) if not self._frames else self._rest)
            self._rest = np.zeros(0, np.float32)
        samples = max(1, self._samples)
        frames = np.concatenate(self._frames) if self._frames else np.zeros(1, np.float32)
        loudest = float(frames.max())
        quiet = frames < loudest * 10 ** (-SILENCE_DB / 10) if loudest > 0 else np.ones(len(frames), bool)
        return Quality(
            level_dbfs=round(_db(self._square / samples), 2),
            peak_dbfs=round(_db(self._peak**2), 2),
            snr_db=_snr(frames),
            clipping=round(self._clipped / samples, 6),
            silence=round(float(quiet.mean()), 4),
            bandwidth_hz=self._bandwidth(),
        )

    def _bandwidth(self) -> float | None:
        power = self._power.copy()
        power[:2] = 0.0  # an offset (and its leakage) is no sound
        total = power.sum()
        if total <= 0:
            return None
        share = np.cumsum(power) / total
        return float(np.searchsorted(share, 0.99) * SAMPLE_RATE / FFT)


_STRIDE = math.lcm(FRAME, FFT)  # samples: 2,560
_WINDOW = np.hanning(FFT).astype(np.float32)


def _db(power: float) -> float:
    return 10 * math.log10(power) if power > 1e-12 else FLOOR_DBFS


def _snr(frames: np.ndarray[Any, np.dtype[np.float32]]) -> float | None:
    """Signal-to-noise ratio in dB from the powers of 20 ms frames; None where nothing can be said.

    The noise is what the quietest frames hold, as in NIST's stnr and in minimum
    statistics (R. Martin, IEEE Trans. Speech and Audio Processing 9(5), 2001,
    doi:10.1109/89.928915); speech is the rest of the mean power. Steady noise is
    measured within 3 dB from 0 to 20 dB; a clip cut tightly around a word has no pause and reads too low.
    WADA-SNR (Interspeech 2008) was tried and is 10 dB off on clips below one second.
    """
    audible = frames[frames > 0]  # digital silence is not the noise of the room
    if len(audible) < MIN_SNR_FRAMES:
        return None
    quiet = max(1, round(QUIET_SHARE * len(audible)))
    noise = float(np.partition(audible, quiet - 1)[:quiet].mean(dtype=np.float64)) * QUIET_BIAS
    power = float(audible.mean(dtype=np.float64))
    lowest, highest = SNR_RANGE_DB
    ratio = max(power / noise - 1, 10 ** (lowest / 10))
    return round(min(10 * math.log10(ratio), highest), 1)


def measure(waveform: Waveform) -> Quality:
    """Level, peak, SNR, clipping, silence and bandwidth of (S,) at 16 kHz."""
    meter = Meter()
    for start in range(0, len(waveform), 60 * SAMPLE_RATE):
        meter.add(waveform[start : start + 60 * SAMPLE_RATE])
    return meter.quality()
