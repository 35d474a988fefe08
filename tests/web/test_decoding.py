"""Files that hang, crash or swell a decoder cost their own request and nothing else."""

from __future__ import annotations

import asyncio
import os
import resource
import signal
import socket
import time
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import openai
import psutil
import pytest
import soundfile

from tests.web.conftest import Running
from voxloop.errors import AudioError
from voxloop.serving import decoding
from voxloop.serving.decoding import CHILDREN, Decoders
from voxloop.speech.audio import to_pcm16
from voxloop.speech.spooled import Sound

BOUNDS = {"max_seconds": 60.0, "max_bytes": 1 << 30}


@pytest.fixture(scope="module")
def bomb(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five hours of silence in less than a megabyte, whose header does not tell: 580 MB as it would be kept."""
    file = tmp_path_factory.mktemp("bomb") / "silence.flac"
    with soundfile.SoundFile(file, "w", 16_000, 1, "PCM_16") as out:
        for _ in range(5 * 60):
            out.write(np.zeros(60 * 16_000, dtype=np.int16))
    content = bytearray(file.read_bytes())
    # STREAMINFO: behind rate, channels and bits come 36 bits with the number of samples; 0: unknown.
    told = int.from_bytes(content[18:26]) & ~((1 << 36) - 1)
    content[18:26] = told.to_bytes(8)
    file.write_bytes(content)
    assert len(content) < 1 << 20
    return file


@pytest.fixture
def clip(demo_speech: Path) -> Path:
    return sorted(demo_speech.glob("*.ogg"))[0]


def children() -> list[psutil.Process]:
    """Decoders of this process."""
    return [one for one in psutil.Process().children() if decoding.__name__ in one.cmdline()]


def decoded(work: Callable[[Decoders], Awaitable[object]], **given: float) -> object:
    async def run() -> object:
        decoders = Decoders(**given)  # type: ignore[arg-type]
        try:
            return await work(decoders)
        finally:
            await decoders.close()
            assert not children()

    return asyncio.run(run())


@pytest.mark.parametrize("channel", [None, 1])
def test_a_child_decodes_as_this_process_does(awkward: Path, channel: int | None) -> None:
    async def work(decoders: Decoders) -> None:
        found = await decoders.decode(awkward, "name", channel=channel, **BOUNDS)
        with found, Sound(awkward, channel=channel, **BOUNDS) as expected:
            assert (found.samples, found.notes) == (expected.samples, expected.notes)
            assert to_pcm16(found.read(0, found.samples)) == to_pcm16(expected.read(0, expected.samples))
        assert await decoders.channels(awkward, "name", max_bytes=1 << 20) == 2

    decoded(work)


@pytest.fixture
def awkward(tmp_path: Path) -> Path:
    """Stereo at 22.05 kHz."""
    sound = 0.1 * np.random.default_rng(0).standard_normal((22_050, 2))
    soundfile.write(tmp_path / "stereo.flac", sound, 22_050)
    return tmp_path / "stereo.flac"


def test_a_refusal_names_the_file_as_its_client_does(tmp_path: Path) -> None:
    (tmp_path / "upload").write_bytes(b"no sound at all")

    async def work(decoders: Decoders) -> None:
        with pytest.raises(AudioError, match=r"song\.mp3") as refused:
            await decoders.decode(tmp_path / "upload", "song.mp3", **BOUNDS)
        assert str(tmp_path) not in str(refused.value)
        assert refused.value.reason == "not-audio"

    decoded(work)


def test_what_swells_is_refused_by_its_length_and_kept_nowhere(bomb: Path) -> None:
    async def work(decoders: Decoders) -> None:
        with pytest.raises(AudioError) as refused:
            await decoders.decode(bomb, "bomb", **BOUNDS)
        assert refused.value.reason == "too-long"
        assert "serve_max_audio_hours" in str(refused.value)

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    decoded(work)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50 << 10  # KiB


def test_what_takes_too_long_is_killed_and_the_next_file_is_heard(
    bomb: Path, clip: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decoding, "S_PER_MIB", 0.0)  # a fast machine decodes the bomb in the time for its size

    async def work(decoders: Decoders) -> None:
        with await decoders.decode(clip, "clip", **BOUNDS):
            before = {one.pid for one in children()}
        decoders._least_s = 0.05
        with pytest.raises(AudioError) as refused:
            await decoders.decode(bomb, "bomb", max_seconds=1e5, max_bytes=1 << 30)
        assert refused.value.reason == "too-slow"
        decoders._least_s = 20.0
        for _ in range(CHILDREN):
            (await decoders.decode(clip, "clip", **BOUNDS)).close()
        assert len({one.pid for one in children()} - before) == 1

    decoded(work)


def test_a_decoder_that_crashes_is_told_of_and_replaced(bomb: Path, clip: Path) -> None:
    async def work(decoders: Decoders) -> None:
        asked = asyncio.ensure_future(decoders.decode(bomb, "bomb", max_seconds=1e5, max_bytes=1 << 30))
        while not (busy := [one for one in children() if one.cpu_times().user > 0 and _reads(one, bomb)]):
            await asyncio.sleep(0.01)
        os.kill(busy[0].pid, signal.SIGSEGV)
        with pytest.raises(AudioError, match="bomb made the decoder crash"):
            await asked
        for one in children():  # and one that dies while it waits is no file's fault
            one.kill()
            one.wait()
        await asyncio.sleep(0.1)
        for _ in range(2 * CHILDREN):
            (await decoders.decode(clip, "clip", **BOUNDS)).close()

    decoded(work)


def test_memory_of_a_child_is_bounded(clip: Path, tmp_path: Path) -> None:
    """Sixty-four channels of numbers need more than a child without room to breathe."""
    wide = tmp_path / "wide.flac.wav"
    with soundfile.SoundFile(wide, "w", 48_000, 64, "FLOAT") as out:
        for _ in range(3):
            out.write(np.zeros((48_000, 64), dtype=np.float32))

    async def work(decoders: Decoders) -> None:
        (await decoders.decode(clip, "clip", **BOUNDS)).close()
        (child,) = children()
        room = child.memory_info().vms + (8 << 20)
        resource.prlimit(child.pid, resource.RLIMIT_AS, (room, room))
        with pytest.raises(AudioError) as refused:
            await decoders.decode(wide, "wide", **BOUNDS)
        assert refused.value.reason in ("too-large", "broken")
        (await decoders.decode(clip, "clip", **BOUNDS)).close()

    decoded(work, count=1)


def test_a_child_knows_no_secret(clip: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")

    async def work(decoders: Decoders) -> None:
        (await decoders.decode(clip, "clip", **BOUNDS)).close()
        assert all("HF_TOKEN" not in one.environ() for one in children())

    decoded(work)


def _reads(process: psutil.Process, file: Path) -> bool:
    return any(Path(one.path) == file for one in process.open_files())


# In the server -------------------------------------------------------------------------------------------------------


@pytest.fixture
def client(server: Running) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key=server.token, max_retries=0)


def test_short_files_are_heard_while_long_ones_are_decoded(
    server: Running, client: openai.OpenAI, clip: Path, monkeypatch: pytest.MonkeyPatch, bomb: Path
) -> None:
    expected = client.audio.transcriptions.create(model="whisper-1", file=clip).text
    monkeypatch.setattr(decoding, "SHORT_BYTES", 100_000)
    assert bomb.stat().st_size > 100_000
    with ThreadPoolExecutor(3) as pool:
        long = [pool.submit(_refused, client, bomb) for _ in range(3)]
        texts = [client.audio.transcriptions.create(model="whisper-1", file=clip).text for _ in range(3)]
        assert not all(one.done() for one in long)
        assert texts == [expected] * 3
        assert {one.result() for one in long} == {"too-long"}


def _refused(client: openai.OpenAI, file: Path) -> str | None:
    with pytest.raises(openai.BadRequestError) as refused:
        client.audio.transcriptions.create(model="whisper-1", file=file)
    return refused.value.code


def test_a_client_that_hangs_up_ends_the_decoding(server: Running, bomb: Path) -> None:
    part = b'--cut\r\ncontent-disposition: form-data; name="file"; filename="a.flac"\r\n\r\n'
    body = part + bomb.read_bytes() + b"\r\n--cut--\r\n"
    address = server.url.removeprefix("http://")
    host, _, port = address.partition(":")
    head = (
        f"POST /v1/audio/transcriptions HTTP/1.1\r\nhost: {address}\r\nauthorization: Bearer {server.token}\r\n"
        f"content-type: multipart/form-data; boundary=cut\r\ncontent-length: {len(body)}\r\n\r\n"
    )
    with socket.create_connection((host, int(port))) as connection:
        connection.sendall(head.encode() + body)
        busy = _wait_for(lambda: [one for one in children() if any("upload" in f.path for f in one.open_files())])
    began = time.monotonic()
    _wait_for(lambda: not busy[0].is_running() or busy[0].status() == psutil.STATUS_ZOMBIE)
    assert time.monotonic() - began < 2.0
    assert len(children()) == CHILDREN or _wait_for(lambda: len(children()) == CHILDREN)


def _wait_for(condition: Callable[[], object]) -> list[psutil.Process]:
    end = time.monotonic() + 30
    while not (found := condition()):
        assert time.monotonic() < end
        time.sleep(0.01)
    return found  # type: ignore[return-value]


@pytest.fixture(autouse=True)
def _none_left() -> Iterator[None]:
    yield
    assert not children()
