"""Blobs: audio, manifests and model files. The content under a key never changes.

obstore supports local folders (`file://`), S3, GCS and Azure. A blob is written once
(`mode="create"`), so two writers of the same content do not conflict, and can be read by
byte range. Endpoint, region and credentials of a remote store come from the environment
(`AWS_ENDPOINT`, `AWS_ACCESS_KEY_ID`, … as in each vendor's own tools), never from the settings.
"""

from __future__ import annotations

import glob
import hashlib
import os
import time
import uuid
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlparse

import obstore
from obstore.exceptions import AlreadyExistsError, BaseError, NotFoundError, NotSupportedError
from obstore.store import LocalStore, ObjectStore, from_url

from voxloop.errors import BlobError

if TYPE_CHECKING:
    from obstore.store import RetryConfig

CHUNK = 1 << 20  # bytes hashed or copied at a time
COPIED = 8 << 20  # bytes per request while copying a remote blob to a file
MULTIPART = 64 << 20  # bytes; larger files are uploaded in parts
PATIENCE_S = 60.0  # for which a request to a remote store is repeated: longer than a server takes to restart
IN_USE_S = 600.0  # for which a cached copy stays after it was asked for, however full the cache is
REMOTE = ("s3", "gs", "az")


def sha256_file(path: Path) -> str:
    """`sha256-<hex>` of a file's bytes."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            digest.update(chunk)
    return f"sha256-{digest.hexdigest()}"


def sha256_bytes(data: bytes) -> str:
    """`sha256-<hex>` of bytes."""
    return f"sha256-{hashlib.sha256(data).hexdigest()}"


def one_line(error: BaseError | OSError) -> str:
    """An error's message on one line, without the debug output that obstore appends."""
    return " ".join(str(error).partition("\n\nDebug source:")[0].split())


def open_store(url: str, *, patience_s: float = PATIENCE_S) -> tuple[ObjectStore, Path | None]:
    """Open an object store, and its folder if it is a local one. Raises BlobError."""
    parsed = urlparse(url)
    if parsed.username or parsed.password:
        raise BlobError(
            f"the blob store's URL {parsed.scheme}://…@{parsed.hostname} contains a key. Settings are not secret: put "
            "the key into the environment (AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY for S3)."
        )
    if parsed.scheme == "file":
        root = Path(unquote(parsed.path))
        try:
            return LocalStore(root, mkdir=True), root
        except OSError as error:
            raise BlobError(f"cannot use {root} as a blob folder ({one_line(error)}). Choose another.") from error
    if parsed.scheme not in REMOTE:
        raise BlobError(f"blob store {url!r} is not supported. Give a file://, s3://, gs:// or az:// URL.")
    retry: RetryConfig = {"max_retries": 20, "retry_timeout": timedelta(seconds=patience_s)}
    try:
        return from_url(url, retry_config=retry), None
    except BaseError as error:
        raise BlobError(
            f"cannot use {url} as a blob store: {one_line(error)}. Check the URL, and the variables of the environment "
            "that belong to it."
        ) from error


@dataclass(frozen=True, slots=True)
class Entry:
    """A blob in a listing."""

    key: str
    size: int  # bytes
    modified: float  # seconds since the epoch


class Blobs:
    """The open object store.

    `cache` is the folder for local copies of remote blobs, for libraries that need a path. The copies that nobody
    asked for longest are removed when there are more than `cache_bytes`; None: they stay. A request to a remote store
    that is down is repeated for `patience_s` seconds.
    """

    def __init__(
        self, url: str, *, cache: Path, cache_bytes: int | None = None, patience_s: float = PATIENCE_S
    ) -> None:
        self.url = url
        self._cache = cache
        self._cache_bytes = cache_bytes
        self._cached: int | None = None  # bytes in the cache, as far as this process knows
        self._store, self._root = open_store(url, patience_s=patience_s)

    @property
    def root(self) -> Path | None:
        """The folder of the blobs; None if they are in a remote store."""
        return self._root

    def put(self, key: str, data: bytes | Path) -> bool:
        """Write a blob. Return False if it exists already, in which case its content is the same."""
        try:
            if isinstance(data, Path) and data.stat().st_size > MULTIPART:
                # `mode="create"` needs the whole blob in memory. Multipart does not, and writing the same content
                # twice is harmless.
                if self.exists(key):
                    return False
                obstore.put(self._store, key, data, use_multipart=True)
                return True
            return self._create(key, data)
        except AlreadyExistsError:
            return False
        except BaseError as error:
            raise BlobError(f"writing blob {key} to {self.url} failed: {one_line(error)}") from error

    def _create(self, key: str, data: bytes | Path) -> bool:
        try:
            obstore.put(self._store, key, data, mode="create")
        except (NotImplementedError, NotSupportedError):
            # The store has no conditional writes. Two writers that overlap then both write, and both the same.
            if self.exists(key):
                return False
            obstore.put(self._store, key, data)
        return True

    def get(self, key: str, start: int | None = None, end: int | None = None) -> bytes:
        """The bytes of a blob, or those from `start` to `end` (exclusive)."""
        try:
            if start is None or end is None:
                return bytes(obstore.get(self._store, key).bytes())
            return bytes(obstore.get_range(self._store, key, start=start, end=end))
        except (NotFoundError, FileNotFoundError) as error:
            raise BlobError(
                f"blob {key} is not in {self.url}: it was removed or never written. Run `voxloop verify`."
            ) from error
        except BaseError as error:
            raise BlobError(f"reading blob {key} from {self.url} failed: {one_line(error)}") from error

    def parts(self, key: str, at_once: int, *, start: int = 0) -> Iterator[bytes]:
        """Iterate over a blob from byte `start`, `at_once` bytes at a time. Raises BlobError if it is missing."""
        size = self.size(key)
        if size is None:
            raise BlobError(f"blob {key} is not in {self.url}: it was removed or never written. Run `voxloop verify`.")
        for begin in range(start, size, at_once):
            yield self.get(key, begin, min(begin + at_once, size))

    def exists(self, key: str) -> bool:
        return self.size(key) is not None

    def size(self, key: str) -> int | None:
        """The size of a blob in bytes; None if it is missing."""
        try:
            return int(obstore.head(self._store, key)["size"])
        except (NotFoundError, FileNotFoundError):
            return None
        except BaseError as error:
            raise BlobError(f"checking for blob {key} in {self.url} failed: {one_line(error)}") from error

    def list(self, prefix: str) -> Iterator[str]:
        """The keys under a prefix."""
        return (entry.key for entry in self.entries(prefix))

    def entries(self, prefix: str) -> Iterator[Entry]:
        """Like `list`, with sizes and modification times."""
        try:
            for page in obstore.list(self._store, prefix):
                for entry in page:
                    modified = entry["last_modified"].timestamp()
                    yield Entry(key=str(entry["path"]), size=int(entry["size"]), modified=modified)
        except BaseError as error:
            raise BlobError(f"listing the blobs under {prefix!r} in {self.url} failed: {one_line(error)}") from error

    def delete(self, key: str) -> None:
        """Delete a blob and its cached copy. Deleting a missing blob is not an error."""
        self.forget(key)
        try:
            obstore.delete(self._store, key)
        except (NotFoundError, FileNotFoundError):
            return
        except BaseError as error:
            raise BlobError(f"deleting blob {key} from {self.url} failed: {one_line(error)}") from error

    def path(self, key: str) -> Path:
        """A local file with the blob's content: the blob itself in a local store, otherwise a cached copy."""
        if self._root is not None:
            found = self._root / key
            if not found.exists():
                raise BlobError(
                    f"blob {key} is not in {self.url}: it was removed or never written. Run `voxloop verify`."
                )
            return found
        cached = self._cache / key
        try:
            os.utime(cached)  # which tells `_make_room` that it is in use
        except FileNotFoundError:
            self._lay(key, cached)
            self._make_room(cached.stat().st_size)
        return cached

    def _make_room(self, added: int) -> None:
        """Remove the copies that were not asked for longest, where the cache has grown beyond its bound.

        Other processes use the same folder, so the sizes are added up anew before anything is removed.
        """
        if self._cache_bytes is None:
            return
        self._cached = None if self._cached is None else self._cached + added
        if self._cached is not None and self._cached <= self._cache_bytes:
            return
        with suppress(FileNotFoundError):  # of a file that another process removed: it is making room as well
            files = [(path, path.stat()) for path in self._cache.rglob("*") if path.is_file()]
            self._cached = sum(found.st_size for _, found in files)
            unused = time.time() - IN_USE_S
            for path, found in sorted(files, key=lambda one: one[1].st_mtime):
                if self._cached <= self._cache_bytes or found.st_mtime > unused:
                    return
                path.unlink()
                self._cached -= found.st_size

    def _lay(self, key: str, target: Path) -> None:
        """Copy a blob to a file that becomes visible only when it is complete.

        Each writer uses its own partial file, so several can write the same content at once and the last one wins.
        `verify` finds the partial files of killed writers.
        """
        partial = target.with_name(f"{target.name}.{uuid.uuid4().hex[:8]}.partial")
        try:
            partial.parent.mkdir(parents=True, exist_ok=True)
            with partial.open("xb") as file:
                for part in self.parts(key, COPIED):
                    file.write(part)
            partial.replace(target)
        except OSError as error:
            raise BlobError(
                f"blob {key} cannot be copied to {target}: {error}. Free some space or check the permissions there."
            ) from error
        finally:
            partial.unlink(missing_ok=True)

    def forget(self, key: str) -> None:
        """Remove the cached copy of a blob, if any, and its unfinished copies."""
        cached = self._cache / key
        cached.unlink(missing_ok=True)
        for partial in cached.parent.glob(f"{glob.escape(cached.name)}.*.partial"):
            partial.unlink(missing_ok=True)

    def folder(self, prefix: str, names: Iterable[str]) -> Path:
        """A local folder with the named blobs under a prefix, for libraries that load folders. Raises BlobError."""
        for name in names:
            self.path(f"{prefix}/{name}")
        return (self._root or self._cache) / prefix
