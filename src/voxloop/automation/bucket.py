"""A bucket as inbox: objects under a prefix are fetched, and moved away once they are taken in or refused.

    inbox/anna/note.wav  ──►  processed/anna/note.wav
                         └─►  failed/anna/note.wav  and  failed/anna/note.wav.reason.txt

`processed/` and `failed/` lie beside the inbox's prefix. Where the key may only read, objects stay and the catalog
remembers them; one whose content changes is taken in again. A move is a copy and a deletion: after a kill between the
two, the object is offered once more, which changes nothing, since audio is known by its hash.
"""

from __future__ import annotations

import hashlib
import logging
import posixpath
import shutil
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

import obstore
import sqlalchemy as sa
from obstore.exceptions import BaseError, NotFoundError, PermissionDeniedError, UnauthenticatedError

from voxloop.errors import BlobError
from voxloop.stores import tables
from voxloop.stores.blobs import COPIED, one_line, open_store
from voxloop.stores.catalog import Catalog, insert_new

log = logging.getLogger(__name__)

PROCESSED, FAILED = "processed", "failed"
REASON = ".reason.txt"
SETTLED_S = 2.0  # for which an object has to be the same; what belongs to it may still be on its way

inbox_object = tables.inbox_object


class Bucket:
    """The objects under `url` (s3://BUCKET/PREFIX, gs:// or az://; file:// for a folder as if it were a bucket).

    Keys are relative to `url`. Objects are fetched into `folder`. `wanted` says by its key whether an object is of
    interest; the others are left alone.
    """

    def __init__(
        self,
        catalog: Catalog,
        url: str,
        folder: Path,
        *,
        wanted: Callable[[str], bool] = lambda _: True,
        settled_s: float = SETTLED_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.url = url.rstrip("/")
        self._catalog = catalog
        self._folder = folder
        self._wanted = wanted
        self._settled_s = settled_s
        self._clock = clock
        place, self._inbox = _split(self.url)
        self._store, _ = open_store(place)
        self._seen: dict[str, tuple[str, float]] = {}  # version, and when it was first seen, by key
        self._may_move = True
        self.settling = False  # whether the last look found objects that may still change

    def look(self) -> list[str]:
        """The keys of new objects whose content did not change for a moment, in order. Raises BlobError."""
        now = self._clock()
        seen: dict[str, tuple[str, float]] = {}
        with self._told("listing"):
            for page in obstore.list(self._store, f"{self._inbox}/" if self._inbox else None):
                for entry in page:
                    key = posixpath.relpath(str(entry["path"]), self._inbox or ".")
                    if int(entry["size"]) == 0 or not self._is_new(key):
                        continue
                    version = str(entry["e_tag"] or f"{entry['size']}-{entry['last_modified'].timestamp()}")
                    before, since = self._seen.get(key, (version, now))
                    seen[key] = (version, since if before == version else now)
        self._seen = seen
        known = self._remembered()
        new = {key: since for key, (version, since) in seen.items() if known.get(key) != version}
        settled = sorted(key for key, since in new.items() if now - since >= self._settled_s)
        self.settling = len(settled) < len(new)
        return settled

    def _is_new(self, key: str) -> bool:
        own = not self._inbox and PurePosixPath(key).parts[0] in (PROCESSED, FAILED)
        return not own and not key.endswith("/") and ".." not in PurePosixPath(key).parts and self._wanted(key)

    def fetch(self, key: str) -> Path:
        """Download an object to the folder, below the same path. Raises BlobError if it is gone or there is no room."""
        target = self._folder / key
        partial = target.with_name(f".{target.name}.{uuid.uuid4().hex[:8]}")
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            with self._told(f"reading {key}"), partial.open("xb") as file:
                for part in obstore.get(self._store, self._path(key)).stream(min_chunk_size=COPIED):
                    file.write(part)
            partial.replace(target)
        except OSError as error:
            raise BlobError(
                f"{key} of {self.url} cannot be copied to {target}: {error}. Free some space or check the permissions."
            ) from error
        finally:
            partial.unlink(missing_ok=True)
        return target

    def done(self, key: str) -> None:
        """Move an object to `processed/`, or remember it where this is not allowed. Raises BlobError."""
        self._leave(key, PROCESSED, None)

    def failed(self, key: str, reason: str) -> None:
        """Move an object to `failed/`, with the reason beside it, or remember both. Raises BlobError."""
        self._leave(key, FAILED, reason)

    def _leave(self, key: str, place: str, reason: str | None) -> None:
        with self._told(f"moving {key}"):
            if not (self._may_move and self._move(key, place, reason)):
                self._remember(key, reason)
        (self._folder / key).unlink(missing_ok=True)
        self._seen.pop(key, None)

    def _move(self, key: str, place: str, reason: str | None) -> bool:
        """Move an object. Return False if this key may not."""
        source = self._path(key)
        try:
            target = self._free(source, posixpath.join(posixpath.dirname(self._inbox), place, key))
            if target is not None:
                obstore.copy(self._store, source, target, overwrite=True)
                if reason is not None:
                    obstore.put(self._store, f"{target}{REASON}", f"{reason}\n".encode())
            obstore.delete(self._store, source)
        except (NotFoundError, FileNotFoundError):
            return True  # another process moved it, or its owner took it away
        except (PermissionDeniedError, UnauthenticatedError, PermissionError) as error:
            self._may_move = False
            log.warning(
                "objects in %s cannot be moved away and are remembered instead: %s",
                self.url,
                one_line(error),
                extra={"action": "inbox_read_only"},
            )
            return False
        return True

    def _free(self, source: str, target: str) -> str | None:
        """A key to move to that holds no other object; None if the same content is there already."""
        try:
            there = obstore.head(self._store, target)
        except (NotFoundError, FileNotFoundError):
            return target
        digest = self._digest(source)
        if there["size"] == obstore.head(self._store, source)["size"] and self._digest(target) == digest:
            return None
        head, dot, suffix = target.rpartition(".")
        return f"{head}-{digest[:8]}.{suffix}" if dot and "/" not in suffix else f"{target}-{digest[:8]}"

    def _digest(self, path: str) -> str:
        digest = hashlib.sha256()
        for part in obstore.get(self._store, path).stream(min_chunk_size=COPIED):
            digest.update(part)
        return digest.hexdigest()

    def _remember(self, key: str, reason: str | None) -> None:
        version = self._seen[key][0] if key in self._seen else ""
        mine = sa.and_(inbox_object.c.url == self.url, inbox_object.c.key == key)
        with self._catalog.write() as tx:
            tx.connection.execute(sa.delete(inbox_object).where(mine))
            row = {"url": self.url, "key": key, "created": tx.now(), "version": version, "reason": reason}
            insert_new(tx.connection, inbox_object, [row])

    def _remembered(self) -> dict[str, str]:
        mine = sa.select(inbox_object.c.key, inbox_object.c.version).where(inbox_object.c.url == self.url)
        with self._catalog.read() as reader:
            return {row.key: row.version for row in reader.connection.execute(mine)}

    def _path(self, key: str) -> str:
        return posixpath.join(self._inbox, key)

    def clear(self) -> None:
        """Delete what an earlier process fetched and did not finish: it is offered again."""
        shutil.rmtree(self._folder, ignore_errors=True)

    @contextmanager
    def _told(self, doing: str) -> Iterator[None]:
        try:
            yield
        except (NotFoundError, FileNotFoundError) as error:
            raise BlobError(f"{doing} in {self.url} failed: it is not there any more.") from error
        except BaseError as error:
            raise BlobError(
                f"{doing} in {self.url} failed: {one_line(error)}. Check the setting `inbox_url`, the server and the "
                "credentials in the environment."
            ) from error


def _split(url: str) -> tuple[str, str]:
    """A URL's bucket, and the prefix in it."""
    scheme, _, rest = url.partition("://")
    if scheme == "file":
        head, _, name = rest.rpartition("/")
        return f"file://{head or '/'}", name
    bucket, _, prefix = rest.partition("/")
    return f"{scheme}://{bucket}", prefix
