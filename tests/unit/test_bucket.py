"""A bucket as inbox: settled objects are offered, fetched, and moved away or remembered."""

from __future__ import annotations

import time
from pathlib import Path

import obstore
import pytest

from tests.servers import READER
from voxloop.automation.bucket import Bucket
from voxloop.errors import BlobError
from voxloop.stores.blobs import open_store
from voxloop.workspace import Workspace


class Clock:
    """A clock that goes when it is told to."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture(params=["file", "s3"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Where `inbox/`, `processed/` and `failed/` are."""
    if request.param == "s3":
        return str(request.getfixturevalue("s3"))
    return (tmp_path / "bucket").as_uri()


def put(place: str, **objects: bytes) -> None:
    store, _ = open_store(place)
    for key, content in objects.items():
        obstore.put(store, key, content)


def keys(place: str) -> dict[str, bytes]:
    store, _ = open_store(place)
    names = [str(entry["path"]) for page in obstore.list(store) for entry in page]
    return {name: bytes(obstore.get(store, name).bytes()) for name in sorted(names)}


@pytest.fixture
def opened(workspace: Workspace, place: str, tmp_path: Path) -> tuple[Bucket, Clock]:
    clock = Clock()
    bucket = Bucket(workspace.catalog, f"{place}/inbox", tmp_path / "fetched", clock=clock)
    return bucket, clock


def settled(bucket: Bucket, clock: Clock) -> list[str]:
    bucket.look()
    clock.now += 10
    return bucket.look()


def test_objects_are_offered_when_they_no_longer_change(opened: tuple[Bucket, Clock], place: str) -> None:
    bucket, clock = opened
    assert bucket.look() == []
    put(place, **{"inbox/anna/a.wav": b"one", "inbox/b.wav": b"two", "inbox/empty": b"", "else/c.wav": b"c"})
    assert bucket.look() == []
    clock.now += 1.9
    assert bucket.look() == []
    put(place, **{"inbox/b.wav": b"two and more"})
    clock.now += 0.2
    assert bucket.look() == ["anna/a.wav"]
    clock.now += 2.1
    assert bucket.look() == ["anna/a.wav", "b.wav"]


def test_what_is_done_or_failed_is_moved_away(opened: tuple[Bucket, Clock], place: str, tmp_path: Path) -> None:
    bucket, clock = opened
    put(place, **{"inbox/anna/a.wav": b"one", "inbox/b.wav": b"two"})
    assert settled(bucket, clock) == ["anna/a.wav", "b.wav"]
    path = bucket.fetch("anna/a.wav")
    assert path == tmp_path / "fetched" / "anna" / "a.wav"
    assert path.read_bytes() == b"one"
    bucket.done("anna/a.wav")
    assert not path.exists()
    bucket.failed("b.wav", "this is no audio")
    bucket.done("gone.wav")  # which somebody took away meanwhile
    assert settled(bucket, clock) == []
    assert keys(place) == {
        "failed/b.wav": b"two",
        "failed/b.wav.reason.txt": b"this is no audio\n",
        "processed/anna/a.wav": b"one",
    }


def test_a_name_that_comes_again_overwrites_nothing(opened: tuple[Bucket, Clock], place: str) -> None:
    bucket, clock = opened
    for content in (b"one", b"one", b"other", b"longer"):
        put(place, **{"inbox/a.wav": content})
        assert settled(bucket, clock) == ["a.wav"]
        bucket.done("a.wav")
    found = keys(place)
    assert sorted(found.values()) == [b"longer", b"one", b"other"]
    assert found["processed/a.wav"] == b"one"
    assert all(name.startswith("processed/a") and name.endswith(".wav") for name in found)


def test_a_whole_bucket_can_be_the_inbox(workspace: Workspace, s3: str, tmp_path: Path) -> None:
    place, clock = f"s3://inbox-{time.monotonic_ns()}", Clock()
    bucket = Bucket(workspace.catalog, place, tmp_path / "fetched", clock=clock)
    put(place, **{"anna/a.wav": b"one", "processed/b.wav": b"b", "failed/c.wav": b"c"})
    assert settled(bucket, clock) == ["anna/a.wav"]
    bucket.done("anna/a.wav")
    assert sorted(keys(place)) == ["failed/c.wav", "processed/anna/a.wav", "processed/b.wav"]


def test_what_nobody_wants_is_left_alone(workspace: Workspace, place: str, tmp_path: Path) -> None:
    clock = Clock()

    def wanted(key: str) -> bool:
        return key.endswith(".wav")

    bucket = Bucket(workspace.catalog, f"{place}/inbox/", tmp_path / "fetched", wanted=wanted, clock=clock)
    put(place, **{"inbox/a.wav": b"a", "inbox/notes.pdf": b"p"})
    assert settled(bucket, clock) == ["a.wav"]
    assert "inbox/notes.pdf" in keys(place)


def test_a_key_that_may_only_read_leaves_objects_and_remembers_them(
    workspace: Workspace, s3: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(s3, **{"inbox/a.wav": b"a", "inbox/b.wav": b"b"})
    with monkeypatch.context() as patch:
        patch.setenv("AWS_ACCESS_KEY_ID", READER[0])
        patch.setenv("AWS_SECRET_ACCESS_KEY", READER[1])
        clock = Clock()
        bucket = Bucket(workspace.catalog, f"{s3}/inbox", tmp_path / "fetched", clock=clock)
        assert settled(bucket, clock) == ["a.wav", "b.wav"]
        assert bucket.fetch("a.wav").read_bytes() == b"a"
        bucket.done("a.wav")
        bucket.failed("b.wav", "this is no audio")
        assert settled(bucket, clock) == []
        later = Bucket(workspace.catalog, f"{s3}/inbox", tmp_path / "fetched", clock=clock)  # another process
        assert settled(later, clock) == []
    assert sorted(keys(s3)) == ["inbox/a.wav", "inbox/b.wav"]
    put(s3, **{"inbox/a.wav": b"a new take"})
    assert settled(later, clock) == ["a.wav"]


def test_what_was_fetched_and_not_finished_is_cleared(opened: tuple[Bucket, Clock], place: str) -> None:
    bucket, clock = opened
    put(place, **{"inbox/a.wav": b"a"})
    assert settled(bucket, clock) == ["a.wav"]
    path = bucket.fetch("a.wav")
    bucket.clear()
    assert not path.exists()
    assert bucket.look() == ["a.wav"]


def test_faults_are_said(opened: tuple[Bucket, Clock], place: str, tmp_path: Path) -> None:
    bucket, _ = opened
    with pytest.raises(BlobError, match="not there any more"):
        bucket.fetch("nothing.wav")
    put(place, **{"inbox/a.wav": b"a"})
    (tmp_path / "fetched").mkdir(exist_ok=True)
    (tmp_path / "fetched" / "sub").symlink_to("/proc/nowhere")
    put(place, **{"inbox/sub/a.wav": b"a"})
    with pytest.raises(BlobError, match="cannot be copied"):
        bucket.fetch("sub/a.wav")
