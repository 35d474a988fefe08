"""From a file to the stored form, in this process or in several: decode, measure, encode, hash."""

from __future__ import annotations

import errno
import hashlib
import multiprocessing
import os
import signal
import tempfile
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from voxloop import audio
from voxloop.errors import AudioError
from voxloop.recordings.sources import Item, Refusal
from voxloop.records import SAMPLE_RATE, Quality

CHUNK = 8  # files handed to a worker process at once
FORK_BYTES = 64 << 20  # of audio files: for less, starting processes takes longer than the work
SPOOL_SAMPLES = 600 * SAMPLE_RATE  # longer audio goes through a file on the disk instead of memory


@dataclass(frozen=True, kw_only=True, slots=True)
class Converted:
    """A file's audio in the stored form."""

    id: str
    samples: int
    quality: Quality
    wav: bytes | Path  # Path: a spooled file


@contextmanager
def spool_folder(workspace: Path) -> Iterator[Path]:
    """A folder in the workspace for audio too long to hold in memory; gone afterwards."""
    parent = workspace / "spool"
    parent.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=parent, prefix="ingest-") as folder:
        yield Path(folder)


def _convert(path: Path, spool: Path, max_seconds: float, max_bytes: int) -> Converted | Refusal:
    """Decode, measure and encode one file. Runs in a worker process; never raises for a file's sake."""
    digest = hashlib.sha256()
    meter = audio.Meter()
    parts: list[bytes] = []
    spooled: Path | None = None
    samples = 0
    try:
        for block in audio.stream(path, max_seconds=max_seconds, max_bytes=max_bytes):
            pcm = audio.to_pcm16(block)
            digest.update(pcm)
            meter.add(audio.from_pcm16(pcm))  # what is stored is measured, so that it can be measured again
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
    except AudioError as error:
        if spooled is not None:
            spooled.unlink(missing_ok=True)
        return Refusal(path=str(path), reason=error.reason, message=str(error))
    except OSError as error:
        if spooled is not None:
            spooled.unlink(missing_ok=True)
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        reason = "no-space" if full else "missing" if isinstance(error, FileNotFoundError) else "unreadable"
        return Refusal(path=str(path), reason=reason, message=f"{path} could not be converted: {error}")
    return Converted(id=f"sha256-{digest.hexdigest()}", samples=samples, quality=meter.quality(), wav=wav)


def _convert_chunk(paths: Sequence[Path], spool: Path, max_seconds: float, max_bytes: int) -> list[Converted | Refusal]:
    return [_convert(path, spool, max_seconds, max_bytes) for path in paths]


def convert_all(
    items: Sequence[Item], spool: Path, max_seconds: float, max_bytes: int, processes: int | None
) -> Iterator[tuple[Item, Converted | Refusal]]:
    """Every item with its audio or its refusal, in the order given."""
    convert = partial(_convert_chunk, spool=spool, max_seconds=max_seconds, max_bytes=max_bytes)
    wanted = processes or os.cpu_count() or 1
    if processes is None and sum(map(_size, items)) < FORK_BYTES:
        wanted = 1
    chunks = [items[start : start + CHUNK] for start in range(0, len(items), CHUNK)]
    results = map(convert, map(_paths, chunks)) if wanted == 1 else in_processes(convert, chunks, wanted)
    for chunk, converted in zip(chunks, results, strict=True):
        found = iter(converted)
        for item in chunk:
            yield item, item.refusal or next(found)


def _paths(chunk: Sequence[Item]) -> list[Path]:
    return [item.path for item in chunk if not item.refusal]


def _size(item: Item) -> int:
    try:
        return item.path.stat().st_size
    except OSError:
        return 0  # its conversion will say why


def in_processes(
    convert: Callable[[list[Path]], list[Converted | Refusal]], chunks: Sequence[Sequence[Item]], wanted: int
) -> Iterator[list[Converted | Refusal]]:
    """The results of each chunk, a few of which are ahead at any time.

    Where a decoder takes its process down with it, the chunks under way are done
    again file by file, each in a process of its own, and the culprit is refused.
    """
    waiting = deque(chunks)
    while waiting:
        ahead: deque[tuple[Sequence[Item], Future[list[Converted | Refusal]]]] = deque()
        pool = _pool(wanted)
        try:
            while waiting or ahead:
                while waiting and len(ahead) < 3 * wanted:
                    ahead.append((waiting[0], pool.submit(convert, _paths(waiting[0]))))
                    waiting.popleft()  # only now: a pool that broke takes nothing
                yield ahead[0][1].result()
                ahead.popleft()
        except BrokenProcessPool:
            for chunk, _ in ahead:
                yield [_alone(convert, path) for path in _paths(chunk)]
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def _alone(convert: Callable[[list[Path]], list[Converted | Refusal]], path: Path) -> Converted | Refusal:
    with _pool(1) as pool:
        try:
            return pool.submit(convert, [path]).result()[0]
        except BrokenProcessPool as error:
            message = f"{path} ended the process that decoded it (out of memory, or a fault in a decoder): {error}"
            return Refusal(path=str(path), reason="crashed", message=message)


def _pool(processes: int) -> ProcessPoolExecutor:
    # Forked processes would inherit the locks of the database's and the object store's threads.
    return ProcessPoolExecutor(processes, mp_context=multiprocessing.get_context("spawn"), initializer=_quiet)


def _quiet() -> None:
    """Ctrl-C is the parent's to handle: it stops the workers."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
