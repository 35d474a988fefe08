"""Audio in and out: decode, resample, mix, measure, and the one form in which it is stored.

What is stored is 16 kHz mono little-endian int16 PCM behind a 44-byte WAV
header, so samples [a, b) of a recording are bytes [44 + 2a, 44 + 2b) of its blob.
Letters in shapes: `S` samples, `C` channels.
"""

from __future__ import annotations

import errno
import hashlib
import math
import stat
import struct
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from voxloop.errors import AudioError
from voxloop.records import SAMPLE_RATE, Quality

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


def decode(path: Path | str, *, max_seconds: float = MAX_SECONDS, max_bytes: int = MAX_BYTES) -> Waveform:
    """The whole of an audio file as (S,) float32 at 16 kHz, channels mixed by their mean.

    Raises AudioError as `stream` does.
    """
    blocks = list(stream(path, max_seconds=max_seconds, max_bytes=max_bytes))
    return blocks[0] if len(blocks) == 1 else np.concatenate(blocks)


def stream(
    path: Path | str, *, max_seconds: float = MAX_SECONDS, max_bytes: int = MAX_BYTES, channel: int | None = None
) -> Iterator[Waveform]:
    """An audio file in blocks of (S,) float32 at 16 kHz; memory stays bounded.

    Channels are mixed by their mean, or `channel`, counted from 0, is taken alone.
    WAV of int16 is read here; libsndfile reads other WAV, FLAC, Vorbis, MP3, AIFF
    and SPHERE; FFmpeg's libraries Opus and what it refuses. Raises AudioError with
    one of the reasons missing, unreadable, empty (no samples), too-large, too-long,
    bad-rate, too-many-channels, not-audio and broken (damaged or truncated), before
    memory is taken for what a header claims.
    """
    path = Path(path)
    _check_file(path, max_bytes)
    samples = 0
    for block in _resampled(_native(path, max_seconds, channel)):
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


def _mixed(block: Any, channel: int | None) -> Waveform:
    """(S, C) as (S,): one channel, or the mean of all."""
    mixed: Waveform
    if channel is None and block.shape[1] == 2:
        # The same value as the mean, in a tenth of the time: NumPy is slow along an axis of two.
        mixed = (block[:, 0] + block[:, 1]) * np.float32(0.5)
    elif channel is None and block.shape[1] > 2:
        mixed = block.mean(axis=1, dtype=np.float32)
    else:
        mixed = block[:, channel or 0]
    return mixed


def _native(path: Path, max_seconds: float, channel: int | None) -> Iterator[tuple[int, Waveform]]:
    """(rate, (S,) block) at the file's own rate, by the first library that opens it."""
    import soundfile

    try:
        raw = path.open("rb")
    except OSError as error:
        raise _not_read(path, error) from error
    with raw:
        head = raw.read(36)
        pcm = _check_wav(path, raw, head)
        if pcm is not None:
            yield from _plain(path, raw, pcm, max_seconds, channel)
            return
        _check_ogg(path, raw, head)
        _check_mp3(path, raw, head)
    if head[28:] == b"OpusHead":  # RFC 7845, section 5.1; of an Ogg file's first page
        # libsndfile's decoder takes three times as long, for the same samples within -64 dB.
        yield from _by_ffmpeg(path, max_seconds, None, channel)
        return

    try:
        file = soundfile.SoundFile(path)
    except (soundfile.LibsndfileError, OSError, ValueError, TypeError) as error:
        yield from _by_ffmpeg(path, max_seconds, error, channel)
        return
    file.seekable = lambda: False  # or it seeks after each read, which MP3 and FLAC take their time for
    with file:
        _check_claims(path, file.samplerate, file.channels)
        claimed = file.frames
        if claimed < _UNKNOWN_FRAMES and claimed / file.samplerate > max_seconds:
            raise _too_long(path, claimed / file.samplerate, max_seconds)
        frames = max(1, min(BLOCK_S * file.samplerate, BLOCK_VALUES // file.channels))
        read = 0
        while True:
            try:
                block = file.read(frames, dtype="float32", always_2d=True)  # (S, C)
            except (soundfile.LibsndfileError, RuntimeError) as error:
                raise AudioError(
                    "broken", f"{path} is damaged after {read / file.samplerate:.1f} s: {error}"
                ) from error
            if not len(block):
                break
            read += len(block)
            yield file.samplerate, _mixed(block, channel)
            if read == claimed:
                break
        if read < claimed < _UNKNOWN_FRAMES and file.format in _EXACT:
            got_s, claimed_s = read / file.samplerate, claimed / file.samplerate
            raise AudioError("broken", f"{path} is truncated: {got_s:.2f} s of the {claimed_s:.2f} s it claims")


class _Pcm16(NamedTuple):
    """Where the samples of a plain WAV lie: little-endian int16."""

    rate: int  # Hz
    channels: int
    begin: int  # byte
    frames: int


def _check_wav(path: Path, file: BinaryIO, head: bytes) -> _Pcm16 | None:
    """Read the chunks of a RIFF WAV: libsndfile takes a truncated one without a word, and opens absurd headers.

    None for what is no WAV, and for a WAV that libsndfile is to read.
    """
    if len(head) < 12 or head[:4] != b"RIFF" or head[8:12] != b"WAVE":
        return None
    size = file.seek(0, 2)
    place = 12
    plain: tuple[int, int] | None = None
    while place + 8 <= size:
        file.seek(place)
        name, length = struct.unpack("<4sI", file.read(8))
        if name == b"fmt " and length >= 16 and place + 24 <= size:
            kind, channels, rate, _, step, bits = struct.unpack("<HHIIHH", file.read(16))
            _check_claims(path, rate, channels)
            plain = (rate, channels) if (kind, bits, step) == (1, 16, SAMPLE_BYTES * channels) else None
        if name == b"data":
            # 0 and the highest values stand for "not known yet" in streams that were never finished.
            known = 0 < length < 0x7FFF_0000
            if known and place + 8 + length > size:
                raise AudioError(
                    "broken",
                    f"{path} is truncated: {size - place - 8:,} bytes of the {length:,} bytes of audio it claims",
                )
            if not known or plain is None or length % (SAMPLE_BYTES * plain[1]):
                return None
            return _Pcm16(*plain, place + 8, length // (SAMPLE_BYTES * plain[1]))
        place += 8 + length + length % 2
    return None


def _plain(
    path: Path, file: BinaryIO, pcm: _Pcm16, max_seconds: float, channel: int | None
) -> Iterator[tuple[int, Waveform]]:
    """(rate, (S,) block) of a plain WAV, as libsndfile reads it: its calls take longer than a short file's samples."""
    if pcm.frames / pcm.rate > max_seconds:
        raise _too_long(path, pcm.frames / pcm.rate, max_seconds)
    at_once = max(1, min(BLOCK_S * pcm.rate, BLOCK_VALUES // pcm.channels))
    file.seek(pcm.begin)
    for first in range(0, pcm.frames, at_once):
        wanted = SAMPLE_BYTES * pcm.channels * min(at_once, pcm.frames - first)
        data = file.read(wanted)
        if len(data) < wanted:
            raise AudioError("broken", f"{path} was cut off while it was read")
        yield pcm.rate, _mixed(from_pcm16(data).reshape(-1, pcm.channels), channel)


def _check_ogg(path: Path, file: BinaryIO, head: bytes) -> None:
    """Whether the last page of an Ogg file (RFC 3533, section 6) is whole: libsndfile drops it without a word."""
    if head[:4] != b"OggS":
        return
    size = file.seek(0, 2)
    start = file.seek(max(0, size - (128 << 10)))  # a page has at most 65,307 bytes
    tail = file.read()
    place = tail.rfind(b"OggS")
    if place < 0:
        raise AudioError("broken", f"{path} is damaged: no Ogg page begins in its last {size - start:,} bytes")
    page = tail[place:]
    segments = page[26] if len(page) > 26 else 0
    needed = 27 + segments + sum(page[27 : 27 + segments])
    if len(page) < max(needed, 28):
        raise AudioError("broken", f"{path} is truncated: its last Ogg page is cut off after {len(page):,} bytes")


_XING_AT = {(True, True): 36, (True, False): 21, (False, True): 21, (False, False): 13}  # by MPEG-1, by stereo
_MISSING_MP3 = 2_048  # bytes: tags at the end are counted differently by different writers


def _check_mp3(path: Path, file: BinaryIO, head: bytes) -> None:
    """Compare an MP3's size with what its Xing or Info header claims; LAME and FFmpeg write one."""
    begin = 0
    if head[:3] == b"ID3" and len(head) >= 10:  # https://id3.org/id3v2.4.0-structure: 7 bits in each byte
        begin = 10 + (head[6] << 21 | head[7] << 14 | head[8] << 7 | head[9])
    elif len(head) < 4 or head[0] != 0xFF or head[1] & 0xE6 != 0xE2:
        return
    file.seek(begin)
    frame = file.read(64)
    size = file.seek(0, 2)
    if len(frame) < 64 or frame[0] != 0xFF or frame[1] & 0xE6 != 0xE2:
        return
    tag = _XING_AT[frame[1] & 0x18 == 0x18, frame[3] & 0xC0 != 0xC0]
    if frame[tag : tag + 4] not in (b"Xing", b"Info"):
        return
    flags = int.from_bytes(frame[tag + 4 : tag + 8], "big")
    if flags & 2:
        at = tag + (12 if flags & 1 else 8)
        claimed = int.from_bytes(frame[at : at + 4], "big")
        if size - begin < claimed - _MISSING_MP3:
            raise AudioError(
                "broken", f"{path} is truncated: {size - begin:,} bytes of the {claimed:,} bytes of audio it claims"
            )


_FFMPEG_OPTIONS = {"protocol_whitelist": "file", "format_whitelist": CONTAINERS}


def _by_ffmpeg(
    path: Path, max_seconds: float, refused: Exception | None, channel: int | None
) -> Iterator[tuple[int, Waveform]]:
    """(rate, (S,) block) from FFmpeg's libraries; `refused` is what libsndfile said, where it was asked."""
    import av

    read_s = 0.0
    try:
        with av.open(f"file:{path.absolute()}", options=dict(_FFMPEG_OPTIONS), metadata_errors="replace") as container:
            if not container.streams.audio:
                raise AudioError("not-audio", f"{path} holds no audio stream")
            source = container.streams.audio[0]
            claimed_s = float(container.duration or 0) / av.time_base
            if claimed_s > max_seconds:
                raise _too_long(path, claimed_s, max_seconds)
            held: list[Any] = []  # (C, S) float32 of frames of one form
            waiting = 0  # samples of them
            form: tuple[int, str, str] | None = None
            rate = channels = 0
            resampler: Any = None
            for frame in container.decode(source):
                found = (frame.sample_rate, frame.format.name, frame.layout.name)
                if found != form:
                    if held:
                        yield rate, _joined(held, channel)
                        held, waiting = [], 0
                    form, rate, channels = found, frame.sample_rate, frame.layout.nb_channels
                    _check_claims(path, rate, channels)
                    resampler = None
                    if frame.format.name != "fltp":  # planar float, as AAC and Opus come
                        resampler = av.AudioResampler(format="fltp", layout=frame.layout, rate=rate)
                read_s += frame.samples / rate
                held += [part.to_ndarray() for part in ([frame] if resampler is None else resampler.resample(frame))]
                waiting += frame.samples
                if waiting >= min(BLOCK_S * rate, BLOCK_VALUES // channels):
                    yield rate, _joined(held, channel)
                    held, waiting = [], 0
            if held:
                yield rate, _joined(held, channel)
            # MP4 and its kin write how long the track is; elsewhere the length is a guess from the bit rate.
            track_s = float((source.duration or 0) * (source.time_base or 0)) if "mp4" in container.format.name else 0.0
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


def _joined(frames: Sequence[Any], channel: int | None) -> Waveform:
    """Decoded frames, each (C, S), as one (S,). A stream that loses channels on the way goes on with what it has."""
    joined = np.concatenate(frames, axis=1)
    return _mixed(joined.T, None if channel is None or channel >= len(joined) else channel)


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
