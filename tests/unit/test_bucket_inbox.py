"""Audio that arrives in a bucket is ingested like audio that arrives in a folder."""

from __future__ import annotations

from pathlib import Path

import obstore
import pytest

from tests.unit.test_bucket import Clock, keys
from voxloop.automation.bucket_inbox import BucketInbox, sources
from voxloop.automation.inbox import HotFolder
from voxloop.automation.watching import Troubles, Watched, take_in
from voxloop.pipeline import open_loop
from voxloop.records import Recording
from voxloop.stores.blobs import open_store


@pytest.mark.parametrize("kind", ["file", "s3"])
def test_objects_are_ingested_with_what_lies_beside_them(
    kind: str, tmp_path: Path, request: pytest.FixtureRequest, demo_speech: Path
) -> None:
    place = str(request.getfixturevalue("s3")) if kind == "s3" else (tmp_path / "bucket").as_uri()
    store, _ = open_store(place)
    good, other = (one.read_bytes() for one in sorted(demo_speech.glob("*.ogg"))[:2])
    obstore.put(store, "inbox/ann/one.ogg", good)
    obstore.put(store, "inbox/ann/one.txt", b"what was said")
    obstore.put(store, "inbox/ann/one.json", b'{"language": "English"}')
    obstore.put(store, "inbox/broken.ogg", b"no sound")
    obstore.put(store, "inbox/page.html", b"left alone")
    clock = Clock()
    with open_loop(tmp_path / "ws", create=True, inbox_url=f"{place}/inbox", inbox_levels=("speaker",)) as ws:
        troubles, done = Troubles(), Watched()
        assert [type(one) for one in sources(ws, troubles)] == [HotFolder, BucketInbox]
        inbox = BucketInbox(ws, clock=clock)
        assert take_in(ws, inbox, done, troubles, processes=1) == 0  # nothing has settled
        obstore.put(store, "inbox/ann/two.ogg", other)  # comes later
        clock.now += 10
        assert take_in(ws, inbox, done, troubles, processes=1) == 2
        clock.now += 10
        assert take_in(ws, inbox, done, troubles, processes=1) == 1
        assert take_in(ws, inbox, done, troubles, processes=1) == 0
        with ws.read() as reader:
            found = {one.name: one for one in reader.all(Recording)}
        assert {name: (one.speaker, one.language, one.text) for name, one in found.items()} == {
            "one.ogg": ("ann", "en", "what was said"),
            "two.ogg": ("ann", None, None),
        }
        assert (done.taken, done.refused) == (2, 1)
    left = keys(place)
    assert set(left) == {
        *(f"processed/ann/{name}" for name in ("one.ogg", "one.txt", "one.json", "two.ogg")),
        "failed/broken.ogg",
        "failed/broken.ogg.reason.txt",
        "inbox/page.html",
    }
    assert b"broken.ogg" in left["failed/broken.ogg.reason.txt"]
