"""The contract of blobs: written once, read by range, found by prefix."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.servers import free_ports
from voxloop.errors import BlobError
from voxloop.stores.blobs import Blobs, sha256_bytes, sha256_file


def test_what_was_written_is_read(blobs: Blobs) -> None:
    assert blobs.put("audio/sha256-1.wav", b"0123456789")
    assert blobs.get("audio/sha256-1.wav") == b"0123456789"
    assert blobs.get("audio/sha256-1.wav", 2, 5) == b"234"
    assert blobs.exists("audio/sha256-1.wav")
    assert blobs.path("audio/sha256-1.wav").read_bytes() == b"0123456789"


def test_a_blob_is_written_once(blobs: Blobs) -> None:
    assert blobs.put("a", b"first")
    assert not blobs.put("a", b"second")
    assert blobs.get("a") == b"first"


def test_of_many_writers_one_wins(blobs: Blobs) -> None:
    won: list[bool] = []
    threads = [threading.Thread(target=lambda: won.append(blobs.put("k", b"same"))) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(won) == [False] * 15 + [True]


def test_a_file_is_put_by_its_path(blobs: Blobs, tmp_path: Path) -> None:
    file = tmp_path / "weights"
    file.write_bytes(b"w" * 3_000_000)
    assert blobs.put("models/weights", file)
    assert sha256_file(blobs.path("models/weights")) == sha256_bytes(b"w" * 3_000_000)


def test_a_large_file_is_put_in_parts(blobs: Blobs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("voxloop.stores.blobs.MULTIPART", 1 << 20)
    file = tmp_path / "weights"
    file.write_bytes(bytes(range(256)) * 45_000)  # two parts of 5 MiB and a rest
    assert blobs.put("models/weights", file)
    assert not blobs.put("models/weights", file)
    assert sha256_file(blobs.path("models/weights")) == sha256_file(file)


def test_what_is_missing_is_said(blobs: Blobs) -> None:
    with pytest.raises(BlobError, match="nothing-here is not in"):
        blobs.get("nothing-here")
    with pytest.raises(BlobError):
        blobs.get("nothing-here", 0, 4)
    with pytest.raises(BlobError):
        blobs.path("nothing-here")
    with pytest.raises(BlobError):
        blobs.folder("no/such", ["config.json"])
    assert not blobs.exists("nothing-here")
    blobs.delete("nothing-here")


def test_prefixes_list_and_lie_together(blobs: Blobs) -> None:
    blobs.put("models/asr/r1/config.json", b"{}")
    blobs.put("models/asr/r1/adapter/a.json", b"{}")
    blobs.put("models/asr/r2/config.json", b"{}")
    assert sorted(blobs.list("models/asr/r1")) == ["models/asr/r1/adapter/a.json", "models/asr/r1/config.json"]
    folder = blobs.folder("models/asr/r1", ["config.json", "adapter/a.json"])
    assert (folder / "adapter" / "a.json").read_bytes() == (folder / "config.json").read_bytes() == b"{}"
    blobs.delete("models/asr/r2/config.json")
    assert not blobs.exists("models/asr/r2/config.json")


def test_a_wrong_key_is_said_in_a_line(s3: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "another")
    with pytest.raises(BlobError, match=r"^writing blob k to s3://.* failed: .*(403|SignatureDoesNotMatch)") as caught:
        Blobs(s3, cache=tmp_path / "cache").put("k", b"x")
    assert "\n" not in str(caught.value)


def test_a_store_without_conditional_writes_is_written_once(
    s3: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_CONDITIONAL_PUT", "disabled")
    blobs = Blobs(s3, cache=tmp_path / "cache")
    assert blobs.put("a", b"first")
    assert not blobs.put("a", b"second")
    assert blobs.get("a") == b"first"


def test_a_key_in_the_url_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BlobError, match="contains a key") as caught:
        Blobs("s3://me:hidden@bucket/prefix", cache=tmp_path)
    assert "hidden" not in str(caught.value)


def test_a_server_that_is_gone_is_said_when_patience_ends(
    s3: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT", f"http://127.0.0.1:{free_ports(1)[0]}")
    blobs = Blobs(s3, cache=tmp_path / "cache", patience_s=0.5)
    began = time.monotonic()
    for ask in (lambda: blobs.put("k", b"x"), lambda: list(blobs.list("")), lambda: blobs.exists("k")):
        with pytest.raises(BlobError, match="failed"):
            ask()
    assert time.monotonic() - began < 20


def test_the_cache_keeps_what_was_asked_for_last(s3: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    blobs = Blobs(s3, cache=tmp_path / "cache", cache_bytes=3_000)
    keys = [f"models/{number}" for number in range(5)]
    for key in keys:
        blobs.put(key, key.encode() * 100)
    for number, key in enumerate(keys):  # each copy an hour older than the next
        path = blobs.path(key)
        hours = 5 - number
        os.utime(path, (time.time() - 3600 * hours,) * 2)
    assert blobs.path(keys[0]).read_bytes() == keys[0].encode() * 100  # in use again, whatever its age
    blobs.put("new", b"n" * 900)
    assert blobs.path("new").exists()
    left = sorted(path.name for path in (tmp_path / "cache").rglob("*") if path.is_file())
    assert left == ["0", "4", "new"]
    assert blobs.path(keys[1]).read_bytes() == keys[1].encode() * 100  # a copy that is gone is made again


def test_copies_in_use_stay_however_full_the_cache_is(s3: str, tmp_path: Path) -> None:
    blobs = Blobs(s3, cache=tmp_path / "cache", cache_bytes=10)
    for key in ("a", "b"):
        blobs.put(key, b"0123456789")
    assert [blobs.path(key).exists() for key in ("a", "b")] == [True, True]
    assert blobs.path("a").exists()


def test_an_unknown_store_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BlobError, match="file://"):
        Blobs("ftp://somewhere", cache=tmp_path)


def bounded(key: str) -> bytes:
    """8 MB that no two keys share."""
    return hashlib.sha256(key.encode()).digest() * 262_144


def test_threads_never_see_a_part_of_a_copy(s3: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each asks a store object of its own, as processes do; a copy is whole as soon as it is there."""
    monkeypatch.setattr("voxloop.stores.blobs.COPIED", 512 << 10)
    keys = [f"models/{number}" for number in range(3)]
    stores = [Blobs(s3, cache=tmp_path / "cache") for _ in range(8)]
    for key in keys:
        stores[0].put(key, bounded(key))
    seen: set[int] = set()
    ended = threading.Event()

    def watch() -> None:
        while not ended.is_set():
            seen.update(path.stat().st_size for path in map((tmp_path / "cache").joinpath, keys) if path.exists())

    watcher = threading.Thread(target=watch)
    watcher.start()
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda store: [sha256_file(store.path(key)) for key in keys], stores))
    ended.set()
    watcher.join()
    assert found == [[sha256_bytes(bounded(key)) for key in keys]] * 8
    assert seen <= {8 << 20}
    assert sorted(path.name for path in (tmp_path / "cache" / "models").iterdir()) == ["0", "1", "2"]


def test_a_large_blob_is_copied_in_little_memory(s3: str, tmp_path: Path) -> None:
    file = tmp_path / "weights"
    file.write_bytes(bytes(range(256)) * (1 << 18))  # 64 MiB
    Blobs(s3, cache=tmp_path / "cache").put("models/weights", file)
    code = (
        "import resource, sys\n"
        "from pathlib import Path\n"
        "from voxloop.stores.blobs import Blobs\n"
        "blobs = Blobs(sys.argv[1], cache=Path(sys.argv[2]))\n"
        "blobs.get('models/weights', 0, 1000)\n"
        "peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024\n"
        "before = peak()\n"
        "blobs.path('models/weights')\n"
        "print(peak() - before)\n"
    )
    command = [sys.executable, "-c", code, s3, str(tmp_path / "cache")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    assert sha256_file(tmp_path / "cache" / "models" / "weights") == sha256_file(file)
    assert int(done.stdout) < 48  # MiB


def test_a_killed_writer_leaves_no_copy_that_is_taken_for_the_blob(s3: str, tmp_path: Path) -> None:
    blobs = Blobs(s3, cache=tmp_path / "cache")
    blobs.put("models/weights", bounded("x"))
    code = (
        "import os, signal, sys\n"
        "from pathlib import Path\n"
        "from voxloop.stores import blobs\n"
        "blobs.COPIED = 1 << 20\n"
        "class Dying(blobs.Blobs):\n"
        "    def get(self, key, start=None, end=None):\n"
        "        if start == 4 << 20:\n"
        "            os.kill(os.getpid(), signal.SIGKILL)\n"
        "        return super().get(key, start, end)\n"
        "Dying(sys.argv[1], cache=Path(sys.argv[2])).path('models/weights')\n"
    )
    command = [sys.executable, "-c", code, s3, str(tmp_path / "cache")]
    assert subprocess.run(command, timeout=120, check=False).returncode == -signal.SIGKILL
    (left,) = (tmp_path / "cache" / "models").iterdir()
    assert left.name.endswith(".partial")
    assert blobs.path("models/weights").read_bytes() == bounded("x")
    blobs.delete("models/weights")
    assert list((tmp_path / "cache" / "models").iterdir()) == []


def test_a_disk_without_room_for_a_copy_is_said(s3: str, small_disk: Path) -> None:
    blobs = Blobs(s3, cache=small_disk / "cache")
    blobs.put("models/weights", bounded("x"))
    with pytest.raises(BlobError, match=r"cannot be copied to .*No space left"):
        blobs.path("models/weights")
    assert list((small_disk / "cache" / "models").iterdir()) == []
