"""Clients' files are decoded in child processes, which can be killed: a file that hangs a decoder, crashes it or swells
to gigabytes costs its own request and nothing else.

A few children wait for files, so that no request has to start a process. One of them never takes a long file, so that
short ones need not wait for those. A child that takes too long, or whose client is gone, is killed and replaced.

    python -m voxloop.serving.decoding BYTES    a child: reads a line of JSON for each file and writes one back
"""

from __future__ import annotations

import asyncio
import json
import os
import resource
import signal
import sys
import tempfile
import traceback
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from voxloop.errors import AudioError, VoxloopError, first_line
from voxloop.records import SAMPLE_RATE, Encoding
from voxloop.speech.audio import SAMPLE_BYTES, channel_count
from voxloop.speech.spooled import Sound, write

CHILDREN = 3
SHORT_BYTES = 1 << 20  # a longer file never takes the last child
MEMORY_BYTES = 1 << 30  # address space of a child, most of it libraries that are never touched
LEAST_S, S_PER_MIB, MOST_S = 20.0, 4.0, 600.0  # how long a file may take: at least, for each MiB, at most
ENVIRONMENT = ("PATH", "PYTHONPATH", "PYTHONHOME", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "LANG", "LC_ALL", "TMPDIR")
"""What children know of the environment: no secret is among it."""


class Decoders:
    """The children of one server. Made, used and closed in one event loop."""

    def __init__(self, count: int = CHILDREN, *, memory_bytes: int = MEMORY_BYTES, least_s: float = LEAST_S) -> None:
        self._memory_bytes = memory_bytes
        self._least_s = least_s
        self._idle = [self._starting() for _ in range(count)]
        self._turns = asyncio.Semaphore(count)
        self._turns_of_long = asyncio.Semaphore(max(1, count - 1))

    async def decode(
        self, file: Path, name: str, *, max_seconds: float, max_bytes: int, channel: int | None = None
    ) -> Sound:
        """The sound of a file that its client calls `name`. Cancelling this kills the child that decodes it.

        Raises AudioError as `audio.stream` does; also as too-slow where it takes longer than a file of its size may, as
        too-large where it takes too much memory, and as broken where the decoder crashes.
        """
        handle, kept = tempfile.mkstemp(prefix="voxloop-")
        try:
            given = {"kept": kept, "channel": channel, "max_seconds": max_seconds, "max_bytes": max_bytes}
            answer = await self._ask(file, name, given)
        except BaseException:
            os.close(handle)
            raise
        finally:
            Path(kept).unlink()
        return Sound.written(os.fdopen(handle, "rb"), answer["notes"], Encoding(**answer["encoding"]))

    async def channels(self, file: Path, name: str, *, max_bytes: int) -> int:
        """Channels by a file's header. Raises AudioError as `decode` does."""
        return int((await self._ask(file, name, {"max_bytes": max_bytes}))["channels"])

    async def close(self) -> None:
        """End the children."""
        for starting in self._idle:
            with suppress(OSError):
                await _ended(await starting)
        self._idle.clear()

    async def _ask(self, file: Path, name: str, given: dict[str, Any]) -> dict[str, Any]:
        size = file.stat().st_size
        limit_s = min(MOST_S, self._least_s + S_PER_MIB * size / 2**20)
        line = json.dumps(given | {"file": str(file), "limit_s": limit_s}).encode() + b"\n"
        slow = AudioError("too-slow", f"{name} takes more than {limit_s:.0f} s to decode: cut or convert it")
        async with self._child(long=size > SHORT_BYTES) as child:
            try:
                said = await asyncio.wait_for(_exchanged(child, line), limit_s)
            except TimeoutError:
                raise slow from None
            if not said:
                raise slow if await child.wait() == -signal.SIGXCPU else _crashed(name)
        answer: dict[str, Any] = json.loads(said)
        if "error" not in answer:
            return answer
        if answer["reason"] == "too-long":
            most_h = given["max_seconds"] / 3600
            raise AudioError("too-long", f"{name} lasts longer than the {most_h:g} h that serve_max_audio_hours allows")
        message = answer["error"].replace(str(file), name)  # clients do not know where it is kept
        raise AudioError(answer["reason"], message) if answer["reason"] else VoxloopError(message)

    @asynccontextmanager
    async def _child(self, *, long: bool) -> AsyncIterator[asyncio.subprocess.Process]:
        """A child for one file; it ends with the block where that fails."""
        async with AsyncExitStack() as turns:
            if long:
                await turns.enter_async_context(self._turns_of_long)
            await turns.enter_async_context(self._turns)
            starting = self._idle.pop()
            try:
                if starting.done() and (starting.exception() or starting.result().returncode is not None):
                    starting = self._starting()  # it could not start, or was killed from outside
                yield await asyncio.shield(starting)
            except BaseException:
                starting.add_done_callback(_kill)
                starting = self._starting()
                raise
            finally:
                self._idle.append(starting)

    def _starting(self) -> asyncio.Task[asyncio.subprocess.Process]:
        return asyncio.get_running_loop().create_task(self._start())

    async def _start(self) -> asyncio.subprocess.Process:
        known = {name: os.environ[name] for name in ENVIRONMENT if name in os.environ}
        return await asyncio.create_subprocess_exec(
            *(sys.executable, "-P", "-m", __spec__.name, str(self._memory_bytes)),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            env=known | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
            start_new_session=True,  # Ctrl-C in a terminal is for the server, which answers what is under way
        )


def _crashed(name: str) -> AudioError:
    return AudioError("broken", f"{name} made the decoder crash: it is damaged, or no audio")


async def _exchanged(child: asyncio.subprocess.Process, line: bytes) -> bytes:
    """What a child answers to a line; empty where it ended instead."""
    if child.stdin is None or child.stdout is None:
        raise TypeError("a child has to be started with pipes")
    with suppress(ConnectionError):
        child.stdin.write(line)
        await child.stdin.drain()
    return await child.stdout.readline()


def _kill(starting: asyncio.Task[asyncio.subprocess.Process]) -> None:
    if not starting.cancelled() and starting.exception() is None:
        with suppress(ProcessLookupError):
            starting.result().kill()


async def _ended(child: asyncio.subprocess.Process) -> None:
    with suppress(ProcessLookupError):
        child.kill()
    await child.wait()


# The child -----------------------------------------------------------------------------------------------------------


def main() -> None:
    """Decode one file after the other, until stdin ends."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print is no answer
    _limit(resource.RLIMIT_CORE, 0)
    _limit(resource.RLIMIT_AS, int(sys.argv[1]))
    import av  # noqa: F401 - so that the first file need not wait for them
    import soundfile  # noqa: F401
    import soxr  # noqa: F401

    for line in sys.stdin:
        print(json.dumps(_answer(**json.loads(line))), file=answers, flush=True)


def _answer(file: str, limit_s: float, kept: str | None = None, **bounds: Any) -> dict[str, Any]:
    used = resource.getrusage(resource.RUSAGE_SELF)
    # A child that hangs ends by itself, too, where its server was killed.
    _limit(resource.RLIMIT_CPU, int(used.ru_utime + used.ru_stime + limit_s) + 1)
    try:
        if kept is None:
            return {"channels": channel_count(file, **bounds)}
        _limit(resource.RLIMIT_FSIZE, int(bounds["max_seconds"] + 60) * SAMPLE_RATE * SAMPLE_BYTES)
        with Path(kept).open("r+b") as pcm:
            notes, encoding = write(pcm, Path(file), **bounds)
            return {"notes": notes, "encoding": asdict(encoding)}
    except AudioError as error:
        return {"reason": error.reason, "error": str(error)}
    except MemoryError:
        return {"reason": "too-large", "error": f"{file} takes too much memory to decode"}
    except OSError as error:
        return {"reason": "", "error": f"decoded audio cannot be kept: {error.strerror or error}"}
    except Exception as error:  # noqa: BLE001 - whatever a library makes of a hostile file is that file's fault
        traceback.print_exc()
        return {"reason": "broken", "error": f"{file} cannot be decoded: {first_line(error)}"}


def _limit(what: int, most: int) -> None:
    """Bound a resource of this process. Not every system has every limit."""
    with suppress(OSError, ValueError):
        _, hard = resource.getrlimit(what)
        resource.setrlimit(what, (most, hard))


if __name__ == "__main__":
    main()
