"""Blobs: audio, manifests and model files under keys that never change their content.

obstore speaks to a folder (`file://`) and to S3, GCS and Azure alike. A blob is
written once (`mode="create"`), so two writers of the same content agree, and is
read by byte range.
"""

from __future__ import annotations

import glob
import hashlib
import uuid
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote, urlparse

import obstore
from obstore.exceptions import AlreadyExistsError, BaseError, NotFoundError
from obstore.store import LocalStore, ObjectStore, from_url

from voxloop.errors import BlobError

CHUNK = 1 << 20  # bytes hashed or copied at a time
COPIED = 8 << 20  # bytes of a remote blob held at a time while it is copied to a file: a request each
MULTIPART = 64 << 20  # bytes: larger files are written in parts


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


def _said(error: BaseError | OSError) -> str:
    """What went wrong, in a line: obstore adds a page of its own structures."""
    return " ".join(str(error).partition("\n\nDebug source:")[0].split())


@dataclass(frozen=True, slots=True)
class Entry:
    """A blob as a listing shows it."""

    key: str
    size: int  # bytes
    modified: float  # seconds since the epoch


class Blobs:
    """The open object store."""

    def __init__(self, url: str, *, cache: Path) -> None:
        self.url = url
        self._cache = cache  # where remote blobs are laid when a library wants a path
        parsed = urlparse(url)
        self._root: Path | None = None
        if parsed.scheme == "file":
            self._root = Path(unquote(parsed.path))
            try:
                self._store: ObjectStore = LocalStore(self._root, mkdir=True)
            except OSError as error:
                raise BlobError(f"{self._root} is no folder to keep files in ({_said(error)}): name another") from error
        elif parsed.scheme in ("s3", "gs", "az"):
            self._store = from_url(url)
        else:
            raise BlobError(f"blob store {url!r}: needed is a file://, s3://, gs:// or az:// URL")

    @property
    def root(self) -> Path | None:
        """The folder that holds the blobs; None where they are not in one."""
        return self._root

    def put(self, key: str, data: bytes | Path) -> bool:
        """Write a blob; False where it is there already (its content is then the same by name)."""
        try:
            if isinstance(data, Path) and data.stat().st_size > MULTIPART:
                # Creating takes the whole blob into memory; parts do not, and equal content may be written twice.
                if self.exists(key):
                    return False
                obstore.put(self._store, key, data, use_multipart=True)
                return True
            obstore.put(self._store, key, data, mode="create")
        except AlreadyExistsError:
            return False
        except BaseError as error:
            raise BlobError(f"writing blob {key} to {self.url} failed: {_said(error)}") from error
        return True

    def get(self, key: str, start: int | None = None, end: int | None = None) -> bytes:
        """The bytes of a blob, or those from `start` to `end` (exclusive)."""
        try:
            if start is None or end is None:
                return bytes(obstore.get(self._store, key).bytes())
            return bytes(obstore.get_range(self._store, key, start=start, end=end))
        except (NotFoundError, FileNotFoundError) as error:
            raise BlobError(f"blob {key} is not in {self.url}: it was removed or never written") from error
        except BaseError as error:
            raise BlobError(f"reading blob {key} from {self.url} failed: {_said(error)}") from error

    def parts(self, key: str, at_once: int, *, start: int = 0) -> Iterator[bytes]:
        """The bytes of a blob from `start` on, so many at a time. Raises BlobError where it is not there."""
        size = self.size(key)
        if size is None:
            raise BlobError(f"blob {key} is not in {self.url}: it was removed or never written")
        for begin in range(start, size, at_once):
            yield self.get(key, begin, min(begin + at_once, size))

    def exists(self, key: str) -> bool:
        return self.size(key) is not None

    def size(self, key: str) -> int | None:
        """Bytes of a blob; None where it is not there."""
        try:
            return int(obstore.head(self._store, key)["size"])
        except (NotFoundError, FileNotFoundError):
            return None
        except BaseError as error:
            raise BlobError(f"looking for blob {key} in {self.url} failed: {_said(error)}") from error

    def list(self, prefix: str) -> Iterator[str]:
        """Keys under a prefix."""
        for page in obstore.list(self._store, prefix):
            for entry in page:
                yield str(entry["path"])

    def entries(self, prefix: str) -> Iterator[Entry]:
        """As `list`, with size and age."""
        for page in obstore.list(self._store, prefix):
            for entry in page:
                yield Entry(
                    key=str(entry["path"]), size=int(entry["size"]), modified=entry["last_modified"].timestamp()
                )

    def delete(self, key: str) -> None:
        """Remove a blob, and its cached copy; removing what is not there is no error."""
        self.forget(key)
        try:
            obstore.delete(self._store, key)
        except (NotFoundError, FileNotFoundError):
            return
        except BaseError as error:
            raise BlobError(f"deleting blob {key} in {self.url} failed: {_said(error)}") from error

    def path(self, key: str) -> Path:
        """A local file with the blob's content: the blob itself where the store is a folder, else a cached copy."""
        if self._root is not None:
            found = self._root / key
            if not found.exists():
                raise BlobError(f"blob {key} is not in {self.url}: it was removed or never written")
            return found
        cached = self._cache / key
        if not cached.exists():
            self._lay(key, cached)
        return cached

    def _lay(self, key: str, target: Path) -> None:
        """Copy a blob to a file that others see only when it is whole.

        Each writer has a partial file of its own, so that several at once write the same content side by side and
        the last one's stays. Those of killed writers are found by `verify`.
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
                f"blob {key} cannot be copied to {target}: {error}; make room or free access there"
            ) from error
        finally:
            partial.unlink(missing_ok=True)

    def forget(self, key: str) -> None:
        """Drop the cached copy that `path` made, if there is one, and copies that were never finished."""
        cached = self._cache / key
        cached.unlink(missing_ok=True)
        for partial in cached.parent.glob(f"{glob.escape(cached.name)}.*.partial"):
            partial.unlink(missing_ok=True)

    def folder(self, prefix: str, names: Iterable[str]) -> Path:
        """A local folder with these blobs from under a prefix, for libraries that load folders. Raises BlobError."""
        for name in names:
            self.path(f"{prefix}/{name}")
        return (self._root or self._cache) / prefix
