"""The contract of blobs: written once, read by range, found by prefix."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

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


def test_an_unknown_store_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BlobError, match="file://"):
        Blobs("ftp://somewhere", cache=tmp_path)
