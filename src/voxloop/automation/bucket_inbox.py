"""A bucket as a source of audio (`inbox_url`): objects are copied here, ingested, and moved away in the bucket.

Texts, subtitles and metadata beside an object go with it, as in a folder. A manifest stays where it is, and is read
with every object that arrives.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from voxloop.automation.bucket import Bucket
from voxloop.automation.inbox import AT_ONCE, BESIDE, HotFolder, companion_names, is_audio
from voxloop.automation.watching import Arrived, Source, Troubles
from voxloop.steps.recordings import manifests
from voxloop.steps.recordings.sources import Refusal
from voxloop.workspace import Workspace

FOLDER = Path("cache", "inbox")  # of the workspace, for objects while they are ingested


class BucketInbox:
    """The objects under the setting `inbox_url`."""

    def __init__(self, ws: Workspace, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._settings = ws.settings
        self._folder = ws.folder / FOLDER
        self._clock = clock
        self._bucket = Bucket(
            ws.catalog,
            ws.settings.inbox_url,
            self._folder,
            wanted=lambda key: is_audio(key) or key.lower().endswith((*BESIDE, *manifests.LISTINGS)),
            settled_s=ws.settings.inbox_settle_s,
            clock=clock,
        )
        self._put_off: dict[str, float] = {}  # until when
        self._beside: dict[str, list[str]] = {}  # keys of what belongs to an object

    @property
    def name(self) -> str:
        return f"inbox {self._bucket.url}"

    def look(self) -> Arrived:
        """Copy what has arrived, and return it. Raises BlobError if the bucket cannot be reached."""
        now = self._clock()
        keys = self._bucket.look()
        known = set(keys)
        audio = [key for key in keys if is_audio(key) and self._put_off.get(key, now) <= now][:AT_ONCE]
        self._beside = {key: [str(one) for one in companion_names(Path(key)) if str(one) in known] for key in audio}
        listings = [key for key in keys if key.endswith(manifests.LISTINGS) and not is_audio(key)] if audio else []
        for key in [*audio, *(one for beside in self._beside.values() for one in beside), *listings]:
            self._bucket.fetch(key)
        return Arrived(root=self._folder, audio=frozenset(audio), listings=frozenset(listings))

    def finish(self, file: str) -> None:
        """Move an object and what belongs to it to `processed/`."""
        for key in (*self._beside.pop(file, ()), file):
            self._bucket.done(key)

    def refuse(self, file: str, refusal: Refusal) -> None:
        """Move an object and what belongs to it to `failed/`, with the reason beside it."""
        for key in self._beside.pop(file, ()):
            self._bucket.done(key)
        self._bucket.failed(file, f"{refusal.reason}: {refusal.message}")

    def put_off(self, file: str) -> None:
        """Leave an object for the time between two scans."""
        self._put_off[file] = self._clock() + self._settings.inbox_scan_s

    def late(self) -> Sequence[tuple[Path, Callable[[], None]]]:
        """Nothing: metadata has to be in the bucket before its audio, or to go to `voxloop ingest`."""
        return ()

    def wait(self, timeout_s: float, stop: threading.Event) -> None:
        """Wait for the next listing: no store tells of changes. Shorter while objects settle."""
        stop.wait(min(timeout_s, self._settings.inbox_settle_s) if self._bucket.settling else timeout_s)


def sources(ws: Workspace, troubles: Troubles) -> list[Source]:
    """Every place that the settings name for audio to arrive at."""
    return [HotFolder(ws, troubles=troubles), *([BucketInbox(ws)] if ws.settings.inbox_url else [])]
