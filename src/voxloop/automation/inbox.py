"""A hot folder: audio that is put into it is ingested, and moves to `processed` or `failed` under the same path.

A file counts as arrived when its size and time have stayed the same for `inbox_settle_s` and no process on this machine
has it open for writing. What is neither audio nor metadata of audio is left alone.
"""

from __future__ import annotations

import filecmp
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import watchfiles

from voxloop.automation.watching import SIDECAR, Arrived, Troubles
from voxloop.steps.recordings import manifests
from voxloop.steps.recordings.keeping import move_source
from voxloop.steps.recordings.sources import AUDIO_SUFFIXES, SUBTITLE_SUFFIXES, TEXT_SUFFIXES, Refusal
from voxloop.workspace import Workspace

AT_ONCE = 200  # audio files ingested before they are moved away
BESIDE = (*TEXT_SUFFIXES, *SUBTITLE_SUFFIXES, SIDECAR)  # of files that belong to the audio file of the same name
TEXTS = (*TEXT_SUFFIXES, SIDECAR)  # of those, what ingest reads
REASON = ".reason.txt"


@dataclass(frozen=True, slots=True)
class _Look:
    """How a file looked, and since when it has looked like that."""

    size: int
    mtime_ns: int
    since: float  # monotonic


class HotFolder:
    """The inbox of a workspace."""

    def __init__(self, ws: Workspace, *, troubles: Troubles, clock: Callable[[], float] = time.monotonic) -> None:
        settings = ws.settings
        self._ws = ws
        self._clock = clock
        self._troubles = troubles
        self.inbox = Path(settings.inbox).absolute() if settings.inbox else ws.folder / "inbox"
        self.processed = _beside(self.inbox, settings.processed, "processed")
        self.failed = _beside(self.inbox, settings.failed, "failed")
        if not settings.inbox:  # a folder that is named may be a disk that is not mounted yet: it is waited for
            self.inbox.mkdir(parents=True, exist_ok=True)
        self._looks: dict[str, _Look] = {}
        self._put_off: dict[str, float] = {}  # until when
        self._settling = False
        self._manifests: dict[str, tuple[_Look, bool]] = {}  # whether a file is a manifest, by how it looked
        self._changes: Iterator[Any] | None = None
        self._watched: int | None = None  # inode of the folder that `_changes` is about

    @property
    def name(self) -> str:
        return f"inbox {self.inbox}"

    # Looking ---------------------------------------------------------------------------------------------------------

    def look(self) -> Arrived:
        """What has arrived. Raises OSError if the inbox is not there."""
        with os.scandir(self.inbox):  # os.walk would take a missing folder for an empty one
            pass
        now = self._clock()
        looks: dict[str, _Look] = {}
        for file, path in self._files():
            try:
                status = path.stat()
            except OSError:
                continue  # gone meanwhile, or not to be read: ingest says so
            before = self._looks.get(file)
            same = before and (before.size, before.mtime_ns) == (status.st_size, status.st_mtime_ns)
            looks[file] = before if before and same else _Look(status.st_size, status.st_mtime_ns, now)
        self._looks = looks
        settle_s = self._ws.settings.inbox_settle_s
        self._put_off = {file: until for file, until in self._put_off.items() if file in looks and until > now}
        empty_s = max(settle_s, self._ws.settings.inbox_scan_s)  # a file that will be written to is empty at first
        old = {file for file, one in looks.items() if now - one.since >= (settle_s if one.size else empty_s)}
        self._settling = len(old) < len(looks)
        audio = sorted(file for file in old if is_audio(file) and file not in self._put_off)
        writing = _open_for_writing(self.inbox) if audio else frozenset()
        unsettled = {str(self.inbox / file) for file in looks.keys() - old} | writing
        # Audio waits for a manifest above it that is still being written.
        unlisted = {Path(file).parent for file in looks.keys() - old if file.endswith(manifests.LISTINGS)}
        ready = [file for file in audio if not self._waits(file, unsettled, unlisted)]
        if len(ready) < len(audio):
            self._settling = True
        listings = frozenset(file for file in old if self._is_manifest(file, looks[file]))
        return Arrived(root=self.inbox, audio=frozenset(ready[:AT_ONCE]), listings=listings)

    def _is_manifest(self, file: str, look: _Look) -> bool:
        if not file.endswith(manifests.LISTINGS):
            return False
        known = self._manifests.get(file)
        if known is None or known[0] != look:
            known = look, manifests.recognised(self.inbox / file) is not None
            self._manifests[file] = known
        return known[1]

    def _files(self) -> Iterator[tuple[str, Path]]:
        """Audio and what may be its metadata, with paths relative to the inbox."""

        def told(error: OSError) -> None:
            self._troubles.tell(str(error.filename), f"{error.filename}: {error.strerror}. It is tried again.")

        for root, folders, names in os.walk(self.inbox, onerror=told):
            # A folder for what is done may lie in the inbox.
            folders[:] = sorted(one for one in folders if Path(root, one) not in (self.processed, self.failed))
            self._troubles.over(root)
            for name in sorted(names):
                if name.startswith("."):  # of a program that is still writing
                    continue
                path = Path(root, name)
                if is_audio(name) or name.endswith((*manifests.LISTINGS, *BESIDE)):
                    yield path.relative_to(self.inbox).as_posix(), path

    def _waits(self, file: str, unsettled: set[str], unlisted: set[Path]) -> bool:
        """Whether an audio file, a text beside it or a manifest above it is still being written."""
        path = self.inbox / file
        if str(path) in unsettled or not unlisted.isdisjoint(Path(file).parents):
            return True
        return any(str(one) in unsettled for one in companions_of(path))

    def wait(self, timeout_s: float, stop: threading.Event) -> None:
        """Wait for a change in the folder; shorter if files have still to settle or were put off."""
        if self._settling:
            timeout_s = min(timeout_s, self._ws.settings.inbox_settle_s / 2)
        until = time.monotonic() + timeout_s
        while not stop.is_set() and time.monotonic() < until:
            if self._changed(min(1.0, max(until - time.monotonic(), 0.01)), stop):
                return

    def _changed(self, timeout_s: float, stop: threading.Event) -> bool:
        try:
            inode = self.inbox.stat().st_ino
            if self._changes is None or inode != self._watched:  # the folder is another one
                self._changes = watchfiles.watch(
                    self.inbox,
                    watch_filter=None,
                    step=50,
                    debounce=200,
                    rust_timeout=500,
                    yield_on_timeout=True,
                    stop_event=stop,
                    raise_interrupt=False,
                )
                self._watched = inode
            changes = next(self._changes, None)
            if changes is None:  # it ended: with the watcher, or because the folder went
                self._changes = None
                stop.wait(timeout_s)
            return bool(changes)
        except (OSError, RuntimeError):  # the folder is gone, or the system has no more watches: scans go on
            self._changes = None
            stop.wait(timeout_s)
            return False

    # Putting away ----------------------------------------------------------------------------------------------------

    def finish(self, file: str) -> None:
        """Move a file and what belongs to it to `processed`."""
        source = self.inbox / file
        companions = companions_of(source)
        target = _move(source, self.processed / file)
        with self._ws.transaction() as tx:
            move_source(tx, source, target)
        for one in companions:
            _move(one, target.with_name(target.stem + one.name.removeprefix(source.stem)))

    def refuse(self, file: str, refusal: Refusal) -> None:
        """Move a file and what belongs to it to `failed`, with the reason beside it."""
        source = self.inbox / file
        target = _free(source, self.failed / file)
        target.parent.mkdir(parents=True, exist_ok=True)
        reason = target.with_name(target.name + REASON)
        partial = reason.with_name(f".{reason.name}.partial")
        partial.write_text(f"{refusal.reason}: {refusal.message}\n", encoding="utf-8")
        partial.replace(reason)
        companions = companions_of(source)
        target = _move(source, target)
        for one in companions:
            _move(one, target.with_name(target.stem + one.name.removeprefix(source.stem)))

    def put_off(self, file: str) -> None:
        """Leave a file for the time between two scans."""
        self._put_off[file] = self._clock() + self._ws.settings.inbox_scan_s

    # Metadata that comes after its audio -----------------------------------------------------------------------------

    def late(self) -> Sequence[tuple[Path, Callable[[], None]]]:
        """Texts whose audio was ingested before they came, and manifests of which every file was handled."""
        now = self._clock()
        settle_s = self._ws.settings.inbox_settle_s
        waiting = [Path(file) for file in self._looks if is_audio(file) and (self.inbox / file).exists()]
        named = {one.with_suffix("") for one in waiting} | set(waiting)
        folders = {folder for one in waiting for folder in one.parents}
        found: list[tuple[Path, Callable[[], None]]] = []
        for file, look in list(self._looks.items()):
            path, place = self.inbox / file, Path(file)
            if is_audio(file) or now - look.since < settle_s or place.with_suffix("") in named or not path.is_file():
                continue
            kept = self.processed / file
            wanted = self._audio_of(place)
            if wanted is None and place.parent not in folders and self._is_handled(path):
                wanted = kept
            if wanted is not None and self._lay_beside(path, kept):
                found.append((wanted, path.unlink))
        return found

    def _audio_of(self, text: Path) -> Path | None:
        """The processed audio file that a text belongs to: `a.wav` for `a.txt` and for `a.wav.txt`."""
        if not text.name.endswith(TEXTS):
            return None
        stem = (self.processed / text).with_suffix("")
        names = [stem] if is_audio(stem.name) else [stem.with_name(stem.name + end) for end in sorted(AUDIO_SUFFIXES)]
        return next((path for path in names if path.is_file()), None)

    def _is_handled(self, listing: Path) -> bool:
        """Whether every file that a manifest names has been processed or has failed."""
        if not listing.name.endswith(manifests.LISTINGS):
            return False
        manifest = manifests.recognised(listing)
        if manifest is None:
            return False
        named = 0
        for row in manifest.rows():
            if row.problem:
                continue
            path = Path(os.path.normpath(manifest.base / row.file))
            if not path.is_relative_to(self.inbox):
                return False
            place = path.relative_to(self.inbox)
            if path.exists() or not ((self.processed / place).exists() or (self.failed / place).exists()):
                return False
            named += 1
        return named > 0

    def _lay_beside(self, source: Path, target: Path) -> bool:
        """Copy a text or manifest to where its audio is. Return False if another one is there."""
        if target.exists():
            if filecmp.cmp(source, target, shallow=False):
                return True
            self._troubles.tell(str(source), f"{source} stays where it is: {target} exists and differs from it.")
            return False
        target.parent.mkdir(parents=True, exist_ok=True)
        partial = target.with_name(f".{target.name}.partial")
        shutil.copy2(source, partial)
        partial.replace(target)
        return True


def _beside(inbox: Path, given: str, name: str) -> Path:
    return Path(given).absolute() if given else inbox.parent / name


def is_audio(file: str) -> bool:
    return Path(file).suffix.lower() in AUDIO_SUFFIXES


def companion_names(audio: Path) -> list[Path]:
    """Where texts, subtitles and metadata of an audio file may lie."""
    names = [audio.with_suffix(end) for suffix in BESIDE for end in (suffix, suffix.upper())]
    names += [audio.with_name(audio.name + end) for suffix in BESIDE for end in (suffix, suffix.upper())]
    return list(dict.fromkeys(names))


def companions_of(audio: Path) -> list[Path]:
    """The texts, subtitles and metadata next to an audio file."""
    return [path for path in companion_names(audio) if path.is_file()]


def _free(source: Path, target: Path) -> Path:
    """`target`, or the first name like it that is free or holds the same content already."""
    number = 1
    free = target
    while free.exists() and not filecmp.cmp(source, free, shallow=False):
        number += 1
        free = target.with_name(f"{target.stem} ({number}){target.suffix}")
    return free


def _move(source: Path, target: Path) -> Path:
    """Move a file without overwriting another one. Return where it is now.

    Repeating a move that was interrupted finishes it: the file is at its target before it is gone from its source.
    """
    if not source.exists():  # another watcher was faster
        return target
    target = _free(source, target)
    target.parent.mkdir(parents=True, exist_ok=True)
    if not target.exists():
        try:
            os.link(source, target)  # unlike a rename, this never replaces what another process put there just now
        except OSError:  # another disk, or one without hard links
            partial = target.with_name(f".{target.name}.partial")
            shutil.copy2(source, partial)
            with partial.open("rb") as written:
                os.fsync(written.fileno())
            partial.replace(target)
    source.unlink(missing_ok=True)
    return target


def _open_for_writing(folder: Path) -> frozenset[str]:
    """Files below a folder that this user's processes write to, where the system tells (Linux)."""
    found = set()
    inside = f"{folder}{os.sep}"
    for process in _listed(Path("/proc")):
        if not process.name.isdecimal():
            continue
        for descriptor in _listed(process / "fd"):
            try:
                path = str(descriptor.readlink())
                if path.startswith(inside):
                    flags = (process / "fdinfo" / descriptor.name).read_text().split("flags:")[1].split()[0]
                    if int(flags, 8) & os.O_ACCMODE != os.O_RDONLY:
                        found.add(path)
            except (OSError, IndexError, ValueError):
                continue  # closed meanwhile, or another user's
    return frozenset(found)


def _listed(folder: Path) -> list[Path]:
    try:
        return list(folder.iterdir())
    except OSError:
        return []
