"""Watching: ingest audio that arrives at a source, and put each file where it belongs when it is done.

A `Source` says which files have arrived completely, and moves them away; `HotFolder` (`inbox.py`) is one. `take_in`
ingests them, with manifests and texts as `voxloop ingest` does. A kill at any moment repeats some of this work, which
changes nothing: what was ingested is known, and a file is moved only afterwards.
"""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

from voxloop.errors import VoxloopError
from voxloop.speech.languages import UnknownLanguage, language_code
from voxloop.steps.recordings import IngestReport, ingest
from voxloop.steps.recordings.sources import Item, Refusal
from voxloop.workspace import Workspace

log = logging.getLogger(__name__)

PASSING = ("unreadable", "not-stored", "missing")  # reasons that may go away by themselves: the file is tried again
SIDECAR = ".json"  # of metadata next to an audio file: text, speaker, language, session, consent
SIDECAR_BYTES = 1 << 20
FIELDS = ("text", "speaker", "language", "session", "consent")


@dataclass(frozen=True, kw_only=True, slots=True)
class Arrived:
    """Files that have arrived completely, as paths relative to a local folder that holds them."""

    root: Path
    audio: frozenset[str]
    listings: frozenset[str] = frozenset()  # manifests, which stay until all that they name has come


class Source(Protocol):
    """A place where audio arrives: a folder, a bucket."""

    @property
    def name(self) -> str:
        """What messages call it."""
        ...

    def look(self) -> Arrived:
        """What has arrived completely and is not put off. Raises OSError or VoxloopError if it cannot be reached."""
        ...

    def finish(self, file: str) -> None:
        """Move a file that was ingested out of the way."""
        ...

    def refuse(self, file: str, refusal: Refusal) -> None:
        """Move a file that cannot be ingested out of the way, and leave the reason with it."""
        ...

    def put_off(self, file: str) -> None:
        """Try a file again later."""
        ...

    def late(self) -> Sequence[tuple[Path, Callable[[], None]]]:
        """Metadata of files that were ingested before: what to ingest again, and what to do after that."""
        ...

    def wait(self, timeout_s: float, stop: threading.Event) -> None:
        """Return when something may have arrived, or after `timeout_s`."""
        ...


@dataclass(slots=True)
class Troubles:
    """What does not work at the moment. Each trouble is told once, and its end as well."""

    told: Callable[[str], None] = log.warning
    known: dict[str, str] = field(default_factory=dict)

    def tell(self, what: str, message: str) -> None:
        """Tell of a trouble, unless it was told of already."""
        new = what not in self.known
        self.known[what] = message
        if new:
            self.told(message)

    def over(self, what: str) -> None:
        """Tell that a trouble is over, if there was one."""
        if self.known.pop(what, None) is not None:
            self.told(f"{what}: works again")


@dataclass(slots=True)
class Watched:
    """What a watcher has done since it started."""

    taken: int = 0  # files ingested
    known: int = 0  # files that held known audio
    refused: int = 0


def watch(
    ws: Workspace,
    source: Source,
    *,
    stop: threading.Event,
    processes: int | None = None,
    troubles: Troubles | None = None,
    told: Callable[[str], None] = log.info,
) -> Watched:
    """Ingest what arrives at a source until `stop` is set. Troubles are told once and tried again, for ever."""
    troubles = troubles or Troubles()
    done = Watched()
    while not stop.is_set():
        found = 0
        try:
            found = take_in(ws, source, done, troubles, processes=processes)
            troubles.over(source.name)
        except (VoxloopError, OSError) as error:
            troubles.tell(source.name, f"{source.name}: {error}. It is tried again until it works.")
        if found:
            told(f"{source.name}: {done.taken} ingested, {done.known} known, {done.refused} refused")
        else:
            source.wait(ws.settings.inbox_scan_s, stop)
    return done


def take_in(ws: Workspace, source: Source, done: Watched, troubles: Troubles, *, processes: int | None = None) -> int:
    """Ingest what has arrived. Return the number of files that were moved out of the way."""
    arrived = source.look()
    moved = 0
    if arrived.audio:
        chosen = _Chosen(ws, arrived, troubles)
        # Manifests are read with their folder. Without any, the files alone are looked at, however many others wait.
        files = [arrived.root / file for file in sorted(arrived.audio)]
        report = ingest(ws, [arrived.root] if arrived.listings else files, select=chosen.complete, processes=processes)
        done.known += len(report.known)
        moved = _put_away(source, chosen, report, done, troubles)
    for path, after in source.late():
        ingest(ws, path, processes=processes)
        after()
        moved += 1
    return moved


def _put_away(source: Source, chosen: _Chosen, report: IngestReport, done: Watched, troubles: Troubles) -> int:
    refusals = {one.path: one for one in report.refused}
    moved = 0
    for file, path in sorted(chosen.seen.items()):
        refusal = refusals.get(str(path))
        try:
            if refusal is None:
                source.finish(file)
                done.taken += 1
            elif refusal.reason in PASSING:
                source.put_off(file)
                troubles.tell(file, f"{refusal.message}. It is tried again.")
                continue
            else:
                source.refuse(file, refusal)
                done.refused += 1
                log.warning("%s", refusal.message, extra={"action": "file_refused", "path": str(path)})
            troubles.over(file)
            moved += 1
        except OSError as error:
            source.put_off(file)
            troubles.tell(
                file, f"{path} was handled, but cannot be moved ({error.strerror or error}). It is tried again."
            )
    for file in chosen.arrived.audio - chosen.seen.keys():
        if not (chosen.arrived.root / file).exists():
            continue
        source.put_off(file)  # a manifest that lists all audio does not list it
        troubles.tell(file, f"{chosen.arrived.root / file} is left where it is: the manifest there does not list it.")
    return moved


class _Chosen:
    """Chooses the files that have arrived from all that `ingest` finds, and completes their metadata."""

    def __init__(self, ws: Workspace, arrived: Arrived, troubles: Troubles) -> None:
        self.arrived = arrived
        self.seen: dict[str, Path] = {}
        self._levels = ws.settings.inbox_levels
        self._troubles = troubles

    def complete(self, item: Item) -> Item | None:
        """The item with the metadata of its folders and its sidecar; None if it is not to be ingested now."""
        try:
            file = item.path.relative_to(self.arrived.root).as_posix()
        except ValueError:
            return None
        if file not in self.arrived.audio:
            listing = file.rpartition(":")[0]
            return item if item.refusal and listing in self.arrived.listings else None
        if not item.path.exists():  # another watcher was faster
            return None
        self.seen[file] = item.path
        if item.refusal:
            return item
        try:
            given = {**self._of_folders(file), **_of_sidecar(item.path)}
        except (OSError, ValueError, UnknownLanguage) as error:
            message = f"cannot read the metadata of {item.path}: {error}. Correct it, and put both back into the inbox"
            return replace(item, refusal=Refusal(path=str(item.path), reason="bad-metadata", message=message))
        missing: dict[str, Any] = {name: value for name, value in given.items() if not getattr(item, name)}
        return replace(item, **missing)

    def _of_folders(self, file: str) -> dict[str, str]:
        folders = Path(file).parts[:-1]
        found = dict(zip(self._levels, folders, strict=False))
        if "language" in found:
            found["language"] = language_code(found["language"]) or ""
        return found


def _of_sidecar(audio: Path) -> dict[str, str]:
    """The metadata in a JSON file next to an audio file (`a.json` or `a.wav.json`); empty if there is none."""
    for path in (audio.with_suffix(SIDECAR), audio.with_name(audio.name + SIDECAR)):
        if not path.is_file():
            continue
        if path.stat().st_size > SIDECAR_BYTES:
            raise ValueError(f"{path.name} has more than {SIDECAR_BYTES:,} bytes")
        values = json.loads(path.read_text(encoding="utf-8-sig"))
        if not isinstance(values, dict):
            raise ValueError(f"{path.name} is not a JSON object")
        found = {name: str(values[name]) for name in FIELDS if values.get(name)}
        if "language" in found:
            found["language"] = language_code(found["language"]) or ""
        return found
    return {}
