"""Convert files to the stored format, in one process or several: decode, measure, encode, hash."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import multiprocessing
import os
import shutil
import signal
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from voxloop.errors import AudioError
from voxloop.records import SAMPLE_RATE, Encoding, Quality
from voxloop.speech import audio, decoder_messages, quality
from voxloop.steps.recordings.sources import Item, Refusal

CHUNK = 8  # files sent to a worker process at a time
FORK_BYTES = 64 << 20  # of audio files: with less, starting processes takes longer than the work
SPOOL_SAMPLES = 60 * SAMPLE_RATE  # longer audio goes to a file on disk, since many files are held at once
STALE_S = 3600.0  # a spool folder without a lock is being created, unless it is older


@dataclass(frozen=True, kw_only=True, slots=True)
class Converted:
    """The audio of a file, or of one of its channels, in the stored format."""

    id: str
    samples: int
    quality: Quality
    wav: bytes | Path  # Path: a spooled file
    channel: int | None = None  # None: all channels, mixed
    encoding: Encoding | None = None
    notes: tuple[str, ...] = ()  # problems found in the file, a sentence each

    @property
    def held(self) -> int:
        """Bytes in memory or on disk until it is stored."""
        return audio.WAV_HEADER_BYTES + audio.SAMPLE_BYTES * self.samples


def audio_key(recording_id: str) -> str:
    """Return the blob key of a recording's WAV."""
    return f"audio/{recording_id}.wav"


ConversionResult = tuple[Converted, ...] | Refusal
"""A file's channels (one if they are mixed), or the reason why it was refused."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Stamp:
    """Size and modification time: they reveal a changed file without reading it."""

    size: int
    mtime_ns: int


Waiting = tuple[Item, Stamp | None]
"""A file to read, with its stamp from before reading."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Bounds:
    """Limits on files, and how to read them."""

    max_seconds: float
    max_bytes: int
    split: bool = False  # each channel becomes a separate recording
    track: int | None = None  # audio track, counted from 0; None: the default one


@contextmanager
def spool_folder(workspace: Path) -> Iterator[Path]:
    """Create a folder in the workspace for audio that is too long for memory, and delete it afterwards.

    Also deletes the folders of killed processes, whose locks nobody holds.
    """
    parent = workspace / "spool"
    parent.mkdir(exist_ok=True)
    for folder in parent.glob("ingest-*"):
        if _is_stale(folder):
            shutil.rmtree(folder, ignore_errors=True)  # another process may be removing it too
    with tempfile.TemporaryDirectory(dir=parent, prefix="ingest-") as made, (Path(made) / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield Path(made)


def _is_stale(folder: Path) -> bool:
    try:
        with (folder / "lock").open() as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        try:
            return folder.stat().st_mtime < time.time() - STALE_S
        except OSError:
            return False  # deleted in the meantime
    return True


def _convert(path: Path, spool: Path, bounds: Bounds) -> ConversionResult:
    """Decode, measure and encode one file. Runs in a worker process; a bad file never raises."""
    with decoder_messages.caught() as messages:
        outcome = _converted_or_refused(path, spool, bounds)
    if messages and not isinstance(outcome, Refusal):
        first, *others = outcome
        return (replace(first, notes=(*first.notes, *decoder_messages.as_notes(messages))), *others)
    return outcome


def _converted_or_refused(path: Path, spool: Path, bounds: Bounds) -> ConversionResult:
    made: list[Converted] = []
    try:
        channels: Sequence[int | None] = (None,)
        if bounds.split:
            count = audio.channel_count(path, max_bytes=bounds.max_bytes)
            if 1 < count <= audio.MAX_CHANNELS:
                channels = range(count)
        for channel in channels:
            made.append(_convert_channel(path, spool, bounds, channel))
    except AudioError as error:
        _discard(made)
        return Refusal(path=str(path), reason=error.reason, message=str(error))
    except OSError as error:
        _discard(made)
        full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
        reason = "no-space" if full else "missing" if isinstance(error, FileNotFoundError) else "unreadable"
        return Refusal(path=str(path), reason=reason, message=f"cannot convert {path}: {error}")
    return tuple(made)


def _discard(made: Sequence[Converted]) -> None:
    for one in made:
        if isinstance(one.wav, Path):
            one.wav.unlink(missing_ok=True)


def _convert_channel(path: Path, spool: Path, bounds: Bounds, channel: int | None) -> Converted:
    """Convert all of a file, or one of its channels. Raises AudioError and OSError.

    If two channels cancel each other out, as from a wrongly wired balanced line, mixing would give silence: only the
    first one is used.
    """
    source = audio.Source()
    mixed = _converted(path, spool, bounds, channel, source)
    if not source.cancels:
        return mixed
    _discard([mixed])
    note = "the two channels cancel each other out; only the first was used"
    alone = _converted(path, spool, bounds, 0, audio.Source())
    return replace(alone, channel=None, notes=(*mixed.notes, note))


def _converted(path: Path, spool: Path, bounds: Bounds, channel: int | None, source: audio.Source) -> Converted:
    digest = hashlib.sha256()
    meter = quality.Meter()
    parts: list[bytes] = []
    spooled: Path | None = None
    samples = 0
    try:
        blocks = audio.stream(
            path,
            max_seconds=bounds.max_seconds,
            max_bytes=bounds.max_bytes,
            channel=channel,
            track=bounds.track,
            source=source,
        )
        for block in blocks:
            pcm = audio.to_pcm16(block)
            digest.update(pcm)
            meter.add(audio.from_pcm16(pcm))  # measure the stored samples, so that measuring can be repeated
            samples += len(block)
            parts.append(pcm)
            if samples > SPOOL_SAMPLES:
                if spooled is None:
                    handle, name = tempfile.mkstemp(dir=spool, suffix=".wav")
                    os.close(handle)
                    spooled = Path(name)
                    spooled.write_bytes(audio.wav_header(0))
                with spooled.open("ab") as file:
                    file.writelines(parts)
                parts = []
        wav: bytes | Path
        if spooled is None:
            wav = audio.wav_bytes(b"".join(parts))
        else:
            with spooled.open("r+b") as file:
                file.write(audio.wav_header(samples * audio.SAMPLE_BYTES))
            wav = spooled
    except (AudioError, OSError):
        if spooled is not None:
            spooled.unlink(missing_ok=True)
        raise
    return Converted(
        id=f"sha256-{digest.hexdigest()}",
        samples=samples,
        quality=meter.quality(),
        wav=wav,
        channel=channel,
        encoding=Encoding(codec=source.codec, rate=source.rate, channels=source.channels),
        notes=tuple(source.notes),
    )


def of_waveform(waveform: audio.Waveform, encoding: Encoding | None = None) -> Converted:
    """Make of (S,) at 16 kHz what a file with these samples would give; `encoding` is what they were sent in."""
    pcm = audio.to_pcm16(waveform)
    return Converted(
        id=audio.pcm_id(pcm),
        samples=len(waveform),
        quality=quality.measure(audio.from_pcm16(pcm)),
        wav=audio.wav_bytes(pcm),
        encoding=encoding,
    )


def _convert_chunk(paths: Sequence[Path], spool: Path, bounds: Bounds) -> list[ConversionResult]:
    return [_convert(path, spool, bounds) for path in paths]


def convert_all(
    waiting: deque[Waiting], spool: Path, bounds: Bounds, processes: int | None
) -> Iterator[tuple[Item, Stamp | None, ConversionResult]]:
    """Yield every file with its audio or its refusal, in the given order.

    `waiting` is emptied on the way: with many small files, their metadata takes most of the memory.
    """
    convert = partial(_convert_chunk, spool=spool, bounds=bounds)
    wanted = processes or os.cpu_count() or 1
    if processes is None and sum(stamp.size for _, stamp in waiting if stamp) < FORK_BYTES:
        wanted = 1
    chunks = _chunks(waiting)
    results = (
        ((chunk, convert(_paths(chunk))) for chunk in chunks) if wanted == 1 else in_processes(convert, chunks, wanted)
    )
    for chunk, converted in results:
        found = iter(converted)
        for item, stamp in chunk:
            yield item, stamp, item.refusal or next(found)


def _chunks(waiting: deque[Waiting]) -> Iterator[Sequence[Waiting]]:
    while waiting:
        yield [waiting.popleft() for _ in range(min(CHUNK, len(waiting)))]


def _paths(chunk: Sequence[Waiting]) -> list[Path]:
    return [item.path for item, _ in chunk if not item.refusal]


def in_processes(
    convert: Callable[[list[Path]], list[ConversionResult]], chunks: Iterator[Sequence[Waiting]], wanted: int
) -> Iterator[tuple[Sequence[Waiting], list[ConversionResult]]]:
    """Yield each chunk with its results; a few chunks are processed ahead.

    If a decoder crashes its process, the chunks in progress are repeated file by
    file, each in a separate process, and the file that causes the crash is refused.
    """
    following = next(chunks, None)
    while following is not None:
        ahead: deque[tuple[Sequence[Waiting], Future[list[ConversionResult]]]] = deque()
        pool = _pool(wanted)
        try:
            while following is not None or ahead:
                while following is not None and len(ahead) < 3 * wanted:
                    ahead.append((following, pool.submit(convert, _paths(following))))
                    following = next(chunks, None)  # only after submitting: a broken pool accepts nothing
                chunk, future = ahead[0]
                yield chunk, future.result()
                ahead.popleft()
        except BrokenProcessPool:
            for chunk, _ in ahead:
                yield chunk, [_alone(convert, path) for path in _paths(chunk)]
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def _alone(convert: Callable[[list[Path]], list[ConversionResult]], path: Path) -> ConversionResult:
    with _pool(1) as pool:
        try:
            return pool.submit(convert, [path]).result()[0]
        except BrokenProcessPool as error:
            message = f"decoding {path} crashed the process (out of memory, or a bug in a decoder): {error}"
            return Refusal(path=str(path), reason="crashed", message=message)


def _pool(processes: int) -> ProcessPoolExecutor:
    # Forked processes would inherit locks from the threads of the database and the object store.
    return ProcessPoolExecutor(processes, mp_context=multiprocessing.get_context("spawn"), initializer=_quiet)


def _quiet() -> None:
    """Ignore Ctrl-C: the parent handles it and stops the workers."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
