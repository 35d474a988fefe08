"""Audio input and output: decode, resample, mix, and encode in the stored format.

Stored audio is 16 kHz mono little-endian int16 PCM behind a 44-byte WAV
header, so samples [a, b) of a recording are bytes [44 + 2a, 44 + 2b) of its blob.
Letters in shapes: `S` samples, `C` channels.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import stat
import struct
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from voxloop.errors import AudioError
from voxloop.records import SAMPLE_RATE
from voxloop.speech.containers import Pcm16, check_mp3, check_ogg, check_wav

Waveform = np.ndarray[tuple[int], np.dtype[np.float32]]  # (S,), 16 kHz, -1 to 1

WAV_HEADER_BYTES = 44
SAMPLE_BYTES = 2
FULL_SCALE = 32_768  # int16 value of 1.0

MAX_SECONDS = 24 * 3600.0  # 24 h of stored audio are 2.8 GB, below the 4 GiB limit of a WAV header
MAX_BYTES = 4 << 30
MIN_RATE = 4_000  # Hz
MAX_RATE = 768_000  # Hz: the highest rate of commercial converters; a higher one is damaged or hostile
MAX_CHANNELS = 64
BLOCK_S = 10  # seconds decoded at a time
BLOCK_VALUES = 4 << 20  # maximum samples times channels decoded at a time (16 MB of float32)

# FFmpeg's demuxers for formats that hold the audio in the file itself. Playlists (hls, concat, dash) are excluded,
# because they make the library open other files and addresses.
CONTAINERS = (
    "aac,ac3,aiff,amr,amrnb,amrwb,ape,asf,au,avi,caf,dts,eac3,flac,flv,gsm,loas,matroska,webm,mov,mp4,m4a,3gp,3g2,mj2,"
    "mp3,mpc,mpc8,mpeg,mpegts,nistsphere,ogg,rm,rso,sox,tta,voc,w64,wav,wsd,wv,xwma,g722,g729,ilbc,qcp"
)
# libsndfile's formats with an exact frame count: fewer frames mean a truncated file.
_EXACT = frozenset({"WAV", "WAVEX", "AIFF", "FLAC", "CAF", "AU", "W64", "RF64", "NIST"})
_CODECS = {"FLAC": "flac", "MP3": "mp3"}  # other formats name it in the subtype
_UNKNOWN_FRAMES = 1 << 62  # libsndfile returns SF_COUNT_MAX if the header has no length
# Containers whose time stamps say when the audio begins; in others they are derived from the byte position.
_TIMED = ("mov", "matroska", "ogg")
GAP_S = 0.05  # a longer jump of the time stamps is a gap; codecs and rounding move them by less
MAX_GAP_S = 600.0  # a longer jump means that the clock was set, not that audio is missing
CANCELLED = 0.01  # share of a channel's power left in the mean of two channels that cancel each other out
NOTES = 3  # gaps reported one by one


@dataclass(kw_only=True, slots=True)
class Source:
    """Properties of a file that `stream` found while reading it."""

    codec: str = ""  # opus, mp3, flac, pcm_16, …
    rate: int = 0  # Hz
    channels: int = 0
    notes: list[str] = field(default_factory=list)  # problems, a sentence each
    gaps: int = 0
    power: float = 0.0  # sum of squares of the first of two channels
    mixed_power: float = 0.0  # sum of squares of their mean

    @property
    def cancels(self) -> bool:
        """Whether two channels cancel each other out: their mean is (nearly) silent, but one alone is not."""
        return self.power > 0 and self.mixed_power < CANCELLED * self.power

    def gap(self, at_s: float, gap_s: float) -> None:
        """Note a gap that is filled with silence."""
        self.gaps += 1
        if self.gaps <= NOTES:
            self.notes.append(f"{gap_s:.2f} s of audio are missing at {at_s:.2f} s; the gap was filled with silence")
        elif self.gaps == NOTES + 1:
            self.notes.append("there are more gaps after that, also filled with silence")


def decode(path: Path | str, *, max_seconds: float = MAX_SECONDS, max_bytes: int = MAX_BYTES) -> Waveform:
    """Decode a whole audio file to (S,) float32 at 16 kHz, channels mixed by their mean.

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
    """Decode an audio file in blocks of (S,) float32 at 16 kHz; memory stays bounded.

    Channels are mixed by their mean, unless `channel` (counted from 0) selects one. The default audio track is read,
    unless `track` (counted from 0) selects another. `source` receives the file's properties and problems.

    WAV with int16 samples is read here. libsndfile reads other WAV, FLAC, Vorbis, MP3, AIFF and SPHERE. FFmpeg's
    libraries read Opus, and every file that libsndfile refuses, fails on, finds empty or would trust a wrong header
    of. The length is that of the decoded audio, whatever the header claims.
    If the time stamps leave a gap, at the beginning or at a damaged part, silence fills it, so that times match those
    of any player.

    Raises AudioError with one of the reasons missing, unreadable, empty (no samples), too-large, too-long, bad-rate,
    too-many-channels, no-track, not-audio and broken (truncated, or too damaged to read), before allocating memory
    for a size that a header claims.
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
            raise AudioError("broken", f"{path} has NaN or infinite samples near {samples // SAMPLE_RATE} s")
        yield block
    if not samples:
        raise AudioError("empty", f"{path} is an audio file without samples")


def channel_count(path: Path | str, *, max_bytes: int = MAX_BYTES) -> int:
    """Return the number of channels in a file's header. Raises AudioError as `stream` does."""
    import av
    import soundfile

    path = Path(path)
    _check_file(path, max_bytes)
    try:
        return int(soundfile.info(path).channels)
    except (soundfile.LibsndfileError, OSError, ValueError, TypeError):
        pass  # try FFmpeg next
    try:
        with av.open(f"file:{path.absolute()}", options=dict(_FFMPEG_OPTIONS), metadata_errors="replace") as container:
            return int(container.streams.audio[0].channels) if container.streams.audio else 1
    except (av.error.FFmpegError, OSError):
        return 1  # decoding will report the error


def _check_file(path: Path, max_bytes: int) -> None:
    try:
        status = path.stat()
    except (OSError, ValueError) as error:
        raise _not_read(path, error) from error
    if not stat.S_ISREG(status.st_mode):
        raise AudioError("not-audio", f"{path} is not a regular file: give audio files or folders")
    size = status.st_size
    if size == 0:
        raise AudioError("empty", f"{path} is empty (0 bytes)")
    if size > max_bytes:
        raise AudioError(
            "too-large",
            f"{path} has {size / 2**20:,.0f} MB, more than max_file_mb ({max_bytes / 2**20:,.0f} MB): "
            "cut the file, or raise the setting",
        )


def _not_read(path: Path, error: OSError | ValueError) -> AudioError:
    if isinstance(error, (FileNotFoundError, NotADirectoryError, ValueError)):
        return AudioError("missing", f"there is no file {path}")
    return AudioError("unreadable", f"cannot read {path}: {error.strerror or error}")


def _too_long(path: Path, found_s: float, max_seconds: float) -> AudioError:
    return AudioError(
        "too-long",
        f"{path} lasts {found_s / 3600:,.1f} h or more, above max_recording_hours ({max_seconds / 3600:,.1f} h): "
        "cut the file, or raise the setting",
    )


def _check_claims(path: Path, rate: int, channels: int) -> None:
    """Refuse implausible headers before allocating memory for them."""
    if not MIN_RATE <= rate <= MAX_RATE:
        raise AudioError(
            "bad-rate",
            f"{path} has a sample rate of {rate:,} Hz: convert it to a rate from {MIN_RATE:,} to {MAX_RATE:,} Hz",
        )
    if not 1 <= channels <= MAX_CHANNELS:
        raise AudioError(
            "too-many-channels", f"{path} has {channels:,} channels: convert it to a file with 1 to {MAX_CHANNELS}"
        )


def _mixed(block: Any, channel: int | None, source: Source) -> Waveform:
    """(S, C) as (S,): one channel, or the mean of all."""
    mixed: Waveform
    if channel is None and block.shape[1] == 2:
        # Equals the mean, in a tenth of the time: NumPy is slow along an axis of length 2.
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
    """Yield (rate, (S,) block) at the file's own rate, from the first library that can read it."""
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
        # libsndfile's Opus decoder takes three times as long, for the same samples within -64 dB. It also trusts the
        # length in an MP3's header, and loses everything after a hole in an Ogg file.
        mp3 = check_mp3(path, raw, head)
        ffmpegs = bool(track) or (mp3 is not None and not mp3.true) or (ogg is not None and (ogg.opus or not ogg.whole))
    if ffmpegs:
        yield from _by_ffmpeg(path, None, channel, track, source, mp3.holes if mp3 is not None else ())
        return

    try:
        file = soundfile.SoundFile(path)
    except (soundfile.LibsndfileError, OSError, ValueError, TypeError) as error:
        yield from _by_ffmpeg(path, error, channel, track, source)
        return
    file.seekable = lambda: False  # otherwise it seeks after each read, which is slow in MP3 and FLAC
    with file:
        rate, claimed = file.samplerate, file.frames
        _check_claims(path, rate, file.channels)
        exact = claimed < _UNKNOWN_FRAMES and file.format in _EXACT
        if exact and claimed / rate > max_seconds:
            raise _too_long(path, claimed / rate, max_seconds)
        _tell(source, _CODECS.get(file.format, file.subtype.lower()), rate, file.channels)
        frames = max(1, min(BLOCK_S * rate, BLOCK_VALUES // file.channels))
        read = 0
        with contextlib.suppress(soundfile.LibsndfileError, RuntimeError):  # FFmpeg continues from there
            while len(block := file.read(frames, dtype="float32", always_2d=True)):  # (S, C)
                read += len(block)
                yield rate, _mixed(block, channel, source)
                if read == claimed:
                    return
        if read and not exact:
            return
    # Damaged or cut off after `read` samples, or empty according to libsndfile.
    for rate_here, block in _behind(read, _by_ffmpeg(path, None, channel, track, source)):
        read += len(block)
        yield rate_here, block
    if read < claimed and exact:
        raise AudioError(
            "broken", f"{path} is truncated: it has {read / rate:.2f} s of the {claimed / rate:.2f} s in its header"
        )


def _behind(read: int, blocks: Iterator[tuple[int, Waveform]]) -> Iterator[tuple[int, Waveform]]:
    """Yield the blocks without their first `read` samples; end at an error that means damage."""
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
    """Yield (rate, (S,) block) of a plain WAV: for short files libsndfile's calls cost more than the samples."""
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
            raise AudioError("broken", f"{path} was truncated while it was being read: ingest it again")
        yield pcm.rate, _mixed(from_pcm16(data).reshape(-1, pcm.channels), channel, source)


_FFMPEG_OPTIONS = {"protocol_whitelist": "file", "format_whitelist": CONTAINERS}


class _Timeline:
    """The times of a stream's frames, the gaps between them, and the packets that could not be decoded."""

    def __init__(self, source: Source, *, timed: bool, holes: Sequence[tuple[float, float]] = ()) -> None:
        self.source = source
        self.read_s = 0.0  # including the silence in gaps
        self.damaged_s: float | None = None  # time of the first packet that could not be decoded
        self.lost_s = 0.0  # seconds of audio in such packets
        self._due: float | None = 0.0 if timed else None  # expected time stamp of the next frame
        self._holes = list(holes)
        self._decoded_s = 0.0

    def lose(self, packet: Any) -> None:
        """Note a packet that could not be decoded."""
        self.damaged_s = self.read_s if self.damaged_s is None else self.damaged_s
        self.lost_s += float((packet.duration or 0) * (packet.time_base or 0))

    def take(self, frame: Any) -> float:
        """Advance by a frame. Return the seconds of silence to insert before it."""
        gap_s = 0.0
        lasts_s = frame.samples / frame.sample_rate
        if self._holes and self._decoded_s + lasts_s / 2 >= self._holes[0][0]:
            gap_s = self._holes.pop(0)[1]
            self.source.gap(self.read_s, gap_s)
        elif frame.time is not None:
            due = frame.time if self._due is None else self._due
            jump_s = frame.time - due
            # Small steps are rounding errors, which must not add up; a jump resets the clock.
            self._due = frame.time if abs(jump_s) > GAP_S else due
            if jump_s > MAX_GAP_S:
                self.source.notes.append(f"the time stamps jump by {jump_s:,.0f} s at {self.read_s:.2f} s")
            elif jump_s > GAP_S:
                gap_s = jump_s
                self.source.gap(self.read_s, gap_s)
        self._decoded_s += lasts_s
        self._due = None if self._due is None else self._due + lasts_s
        self.read_s += gap_s + lasts_s
        return gap_s


def _by_ffmpeg(
    path: Path,
    refused: Exception | None,
    channel: int | None,
    track: int | None,
    source: Source,
    holes: Sequence[tuple[float, float]] = (),
) -> Iterator[tuple[int, Waveform]]:
    """Yield (rate, (S,) block) from FFmpeg's libraries; `refused` is libsndfile's error, if it was tried first.

    `holes` are damaged parts (start in seconds, seconds missing) of a file without time stamps: FFmpeg skips to the
    next frame without reporting them.
    """
    import av

    timeline = _Timeline(source, timed=False)
    try:
        with av.open(f"file:{path.absolute()}", options=dict(_FFMPEG_OPTIONS), metadata_errors="replace") as container:
            chosen = _track(path, container, track, source)
            source.codec = source.codec or chosen.codec_context.codec.canonical_name
            timed = any(name in container.format.name for name in _TIMED)
            timeline = _Timeline(source, timed=timed, holes=holes)
            yield from _blocks(path, _frames(container, chosen, timeline), channel, timeline, source)
            if timeline.damaged_s is not None and not timeline.read_s:
                raise AudioError("broken", f"{path} is damaged: none of its packets can be decoded")
            # Only MP4 and related formats store the track's length; elsewhere it is estimated from the bit rate.
            track_s = float((chosen.duration or 0) * (chosen.time_base or 0)) if "mp4" in container.format.name else 0.0
            read_s = timeline.read_s
            if read_s and read_s < track_s - max(0.5, 0.02 * track_s):
                raise AudioError(
                    "broken", f"{path} is truncated: it has {read_s:.2f} s of the {track_s:.2f} s in its header"
                )
    except av.error.FFmpegError as error:
        if isinstance(error, OSError) and error.errno in (errno.ENOENT, errno.EACCES):
            raise AudioError("unreadable", f"cannot read {path}: {error.strerror}") from error
        if timeline.read_s:
            raise AudioError("broken", f"{path} is damaged after {timeline.read_s:.1f} s: {error.strerror}") from error
        cannot = f"FFmpeg ({error.strerror}) cannot"
        if refused:
            cannot = f"neither libsndfile ({refused}) nor FFmpeg ({error.strerror}) can"
        raise AudioError(_not_opened(path), f"{cannot} read {path} as audio") from error
    if timeline.lost_s > GAP_S and not source.gaps:
        source.notes.append(f"the file is damaged at {timeline.damaged_s:.2f} s: {timeline.lost_s:.2f} s are lost")


def _frames(container: Any, chosen: Any, timeline: _Timeline) -> Iterator[Any]:
    """Yield the decoded frames of a stream; skip packets that cannot be decoded."""
    import av

    for packet in container.demux(chosen):
        try:
            frames = packet.decode()
        except av.error.InvalidDataError:
            timeline.lose(packet)
            continue
        yield from frames


def _blocks(
    path: Path, frames: Iterator[Any], channel: int | None, timeline: _Timeline, source: Source
) -> Iterator[tuple[int, Waveform]]:
    """Yield (rate, (S,) block), each from frames of one format, with silence in the gaps."""
    import av

    held: list[Any] = []  # (C, S) float32, frames of one format
    waiting = 0  # their samples
    form: tuple[int, str, str] | None = None
    rate = channels = 0
    resampler: Any = None
    for frame in frames:
        found = (frame.sample_rate, frame.format.name, frame.layout.name)
        if found != form:
            _check_claims(path, frame.sample_rate, frame.layout.nb_channels)
        gap_s = timeline.take(frame)
        if held and (found != form or gap_s or waiting >= min(BLOCK_S * rate, BLOCK_VALUES // channels)):
            yield rate, _joined(held, channel, source)
            held, waiting = [], 0
        if found != form:
            form, rate, channels = found, frame.sample_rate, frame.layout.nb_channels
            resampler = None
            if frame.format.name != "fltp":  # planar float, which AAC and Opus decode to
                resampler = av.AudioResampler(format="fltp", layout=frame.layout, rate=rate)
            if not source.rate:
                _tell(source, source.codec, rate, channels)
        yield from _silence(rate, round(gap_s * rate))
        held += [part.to_ndarray() for part in ([frame] if resampler is None else resampler.resample(frame))]
        waiting += frame.samples
    if held:
        yield rate, _joined(held, channel, source)


def _track(path: Path, container: Any, track: int | None, source: Source) -> Any:
    """Return the audio stream to read: the selected one, else the default one, else the first."""
    tracks = container.streams.audio
    if not tracks:
        raise AudioError("not-audio", f"{path} has no audio stream")
    if track is not None:
        if not 0 <= track < len(tracks):
            last = len(tracks) - 1
            raise AudioError("no-track", f"{path} has no audio track {track}: its last track is {last}, counted from 0")
        return tracks[track]
    default = next((index for index, one in enumerate(tracks) if one.disposition & 1), 0)
    if len(tracks) > 1:
        source.notes.append(f"the file has {len(tracks)} audio tracks; read track {default} (--track N reads another)")
    return tracks[default]


def _silence(rate: int, samples: int) -> Iterator[tuple[int, Waveform]]:
    for first in range(0, samples, BLOCK_S * rate):
        yield rate, np.zeros(min(BLOCK_S * rate, samples - first), np.float32)


def _joined(frames: Sequence[Any], channel: int | None, source: Source) -> Waveform:
    """Join decoded frames, each (C, S), into one (S,). If a stream loses channels midway, use those that remain."""
    joined = np.concatenate(frames, axis=1)
    return _mixed(joined.T, None if channel is None or channel >= len(joined) else channel, source)


_MAGIC = (b"RIFF", b"FORM", b"OggS", b"fLaC", b"ID3", b"NIST", b"caff", b".snd", b"\x1aE\xdf\xa3")


def _not_opened(path: Path) -> str:
    """Return `broken` if the file begins like an audio file, else `not-audio`."""
    with path.open("rb") as file:
        head = file.read(12)
    return "broken" if head.startswith(_MAGIC) or head[4:8] == b"ftyp" else "not-audio"


def _resampled(blocks: Iterable[tuple[int, Waveform]]) -> Iterator[Waveform]:
    """Resample blocks to 16 kHz with libsoxr's band-limited interpolation (https://sourceforge.net/projects/soxr/)."""
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


def at_speed(waveform: Waveform, speed: float) -> Waveform:
    """Play samples (S,) at `speed` times their own, as a tape would: faster is also higher. Returns (S / speed,)."""
    import soxr

    faster: Waveform = soxr.resample(waveform, SAMPLE_RATE * speed, SAMPLE_RATE).astype(np.float32)
    return faster


def to_pcm16(waveform: Waveform) -> bytes:
    """Convert (S,) float32 to little-endian int16: scale by 32,768, round half to even, clip to -32,768 and 32,767."""
    scaled = np.rint(np.asarray(waveform, np.float32) * np.float32(FULL_SCALE))
    pcm: bytes = np.clip(scaled, -FULL_SCALE, FULL_SCALE - 1).astype("<i2").tobytes()
    return pcm


def from_pcm16(pcm: bytes) -> Waveform:
    """Convert little-endian int16 to (S,) float32; `to_pcm16` reverses it exactly."""
    return np.frombuffer(pcm, "<i2").astype(np.float32) / np.float32(FULL_SCALE)


def pcm_id(pcm: bytes) -> str:
    """Return a recording's id: `sha256-<hex>` of its canonical PCM."""
    return f"sha256-{hashlib.sha256(pcm).hexdigest()}"


def wav_header(pcm_bytes: int) -> bytes:
    """Return the 44-byte WAV header for `pcm_bytes` bytes of 16 kHz mono int16 PCM."""
    return struct.pack(
        "<4sI4s4sIHHIIHH4sI",
        b"RIFF", 36 + pcm_bytes, b"WAVE",
        b"fmt ", 16, 1, 1, SAMPLE_RATE, SAMPLE_RATE * SAMPLE_BYTES, SAMPLE_BYTES, 8 * SAMPLE_BYTES,
        b"data", pcm_bytes,
    )  # fmt: skip


def wav_bytes(pcm: bytes) -> bytes:
    """Return canonical PCM as a WAV file."""
    return wav_header(len(pcm)) + pcm
