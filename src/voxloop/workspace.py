"""The open workspace: the stores named in the settings. The only place that chooses a backend."""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from voxloop import settings as _settings
from voxloop.errors import SettingError, WorkspaceError
from voxloop.settings import Settings
from voxloop.stores.blobs import PATIENCE_S, Blobs
from voxloop.stores.bus import Bus, LocalBus
from voxloop.stores.catalog import Catalog, Reader, Writer
from voxloop.stores.jobs import Claim, Jobs, Listeners, News
from voxloop.stores.nats_bus import NatsBus
from voxloop.stores.qdrant import QdrantVectors
from voxloop.stores.vectors import CatalogVectors, Vectors


class Transaction(Writer):
    """A write to the catalog that can emit events. `woken` holds the steps that have new jobs after the commit."""

    def __init__(self, writer: Writer, jobs: Jobs, claim: Claim | None) -> None:
        super().__init__(writer.connection)
        self._jobs = jobs
        self._claim = claim
        self.woken: set[str] = set()

    def emit(
        self,
        type: str,
        subject: str,
        *,
        key: str | None = None,
        payload: dict[str, Any] | None = None,
        seconds: float = 0.0,
        priority: int | None = None,
    ) -> bool:
        """Emit an event; it and the jobs it causes are committed with this transaction. Return True if it is new.

        `seconds` is the amount of audio behind each of these jobs. Unless `priority` is given, the jobs inherit the
        priority of the job that is running, or else get the priority of the event type.
        """
        return bool(self.emit_all(type, [News(subject, key, payload, seconds)], priority=priority))

    def emit_all(self, type: str, news: Sequence[News], *, priority: int | None = None) -> int:
        """Like `emit`, for many subjects at once. Return the number of new events."""
        if priority is None and self._claim:
            priority = self._claim.priority
        new = self._jobs.emit_all(self, type, news, priority=priority)
        if new:
            self.woken.update(self._jobs.listeners.get(type, ()))
        return new

    def redo(self, step: str, subjects: Iterable[str]) -> int:
        """Queue a step again for subjects that it has already processed. Return the number of jobs."""
        again = self._jobs.redo(self, step, subjects)
        if again:
            self.woken.add(step)
        return again


@dataclass(frozen=True, kw_only=True)
class Workspace:
    """The first argument of every step. `claim` and `stop` are set while a worker runs a step."""

    folder: Path
    settings: Settings
    catalog: Catalog
    blobs: Blobs
    vectors: Vectors
    jobs: Jobs
    bus: Bus
    claim: Claim | None = None
    stop: threading.Event | None = None  # set to make the worker stop; long steps check it
    told: Callable[[float], None] | None = None  # called by long steps with the seconds of audio just finished
    within: bool = False  # a larger step is running: completing a part of it must not complete its job
    before_run: Callable[[Workspace], None] | None = None  # called before a training run starts; may raise

    @contextmanager
    def read(self) -> Iterator[Reader]:
        """A consistent view of the catalog."""
        with self.catalog.read() as reader:
            yield reader

    @contextmanager
    def transaction(self) -> Iterator[Transaction]:
        """An intermediate write, committed at the end of the block. Raises LeaseLost if the worker lost its lease."""
        with self.catalog.write() as writer:
            if self.claim:
                self.jobs.fence(writer, self.claim)
            tx = Transaction(writer, self.jobs, self.claim)
            yield tx
        self._wake(tx)

    @contextmanager
    def completion(self, *subjects: str) -> Iterator[Transaction]:
        """The write of a step's result: the result, its events and the job's `done` state are committed together.

        A step that processes many subjects completes each one separately, so that a crash loses only the current one.
        Without `subjects`, the rest of the claim is completed. Raises LeaseLost if another worker took over.
        """
        if self.within:
            with self.transaction() as tx:
                yield tx
            return
        with self.catalog.write() as writer:
            tx = Transaction(writer, self.jobs, self.claim)
            yield tx
            if self.claim:
                self.jobs.finish(writer, self.claim, subjects)
        self._wake(tx)

    def _wake(self, tx: Transaction) -> None:
        if tx.woken:
            self.bus.wake(tx.woken)

    def under(self, claim: Claim) -> Workspace:
        """This workspace for the worker that holds `claim`."""
        return replace(self, claim=claim)

    def part(self) -> Workspace:
        """This workspace for a step called by a larger one: its writes are fenced, and the job stays open."""
        return replace(self, within=True)

    @property
    def runs(self) -> Path:
        """The folder that contains the training runs' folders."""
        return self.folder / "runs"

    def close(self) -> None:
        self.bus.close()
        self.vectors.close()
        self.catalog.close()

    def __enter__(self) -> Workspace:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def open_workspace(
    folder: Path,
    *,
    listeners: Listeners,
    priorities: Mapping[str, int] | None = None,
    coalesced: Collection[str] = (),
    create: bool = False,
    environ: Mapping[str, str] | None = None,
    before_run: Callable[[Workspace], None] | None = None,
    **overrides: Any,
) -> Workspace:
    """Open the workspace in `folder` and upgrade its schema if needed.

    `listeners`, `priorities` and `coalesced` come from `pipeline`; `overrides` are settings by name. Raises
    WorkspaceError if there is no workspace and `create` is false.
    """
    folder = folder.absolute()
    marker = folder / _settings.CONFIG_NAME
    if not marker.exists():
        if not create:
            raise WorkspaceError(
                f"there is no workspace at {folder}. Create one with `voxloop -C {folder} init`, "
                "or pass another folder with -C."
            )
        try:
            folder.mkdir(parents=True, exist_ok=True)
            marker.write_text(_settings.template())
        except OSError as error:
            raise WorkspaceError(f"cannot create a workspace at {folder}: {error}") from error
    settings = _settings.resolve(folder, environ=environ, overrides=overrides)
    blobs, bus = open_blobs(folder, settings), open_bus(settings, environ)
    catalog = open_catalog(folder, settings)
    catalog.migrate()
    return Workspace(
        folder=folder,
        settings=settings,
        catalog=catalog,
        blobs=blobs,
        vectors=open_vectors(settings, catalog, environ),
        jobs=Jobs(
            catalog,
            listeners,
            lease_s=settings.lease_s,
            max_attempts=settings.max_attempts,
            priorities=priorities,
            coalesced=coalesced,
        ),
        bus=bus,
        before_run=before_run,
    )


def open_catalog(folder: Path, settings: Settings) -> Catalog:
    """The catalog that the settings name."""
    return Catalog(settings.catalog or f"sqlite:///{folder / 'catalog.db'}")


def open_blobs(folder: Path, settings: Settings, *, patience_s: float = PATIENCE_S) -> Blobs:
    """The object store that the settings name. A remote one is given up after `patience_s` without an answer."""
    return Blobs(
        settings.blobs or (folder / "blobs").as_uri(),
        cache=folder / "cache",
        cache_bytes=int(settings.blob_cache_gb * 1e9),
        patience_s=patience_s,
    )


def open_vectors(settings: Settings, catalog: Catalog, environ: Mapping[str, str] | None = None) -> Vectors:
    """The vector store that the settings name."""
    if not settings.vectors:
        return CatalogVectors(catalog)
    if settings.vectors.startswith("qdrant+"):
        return QdrantVectors.open(settings.vectors.removeprefix("qdrant+"), key=_settings.qdrant_key(environ))
    raise SettingError(
        f"vectors is {settings.vectors!r}. Leave it empty for the catalog, or give qdrant+http://HOST:6333."
    )


def open_bus(settings: Settings, environ: Mapping[str, str] | None = None) -> Bus:
    """The bus that the settings name. It connects when it is first needed."""
    if settings.bus == "local":
        return LocalBus()
    if settings.bus.startswith(("nats://", "tls://")):
        return NatsBus(settings.bus, _settings.nats_secrets(environ))
    raise SettingError(f"bus is {settings.bus!r}. It must be `local`, nats://HOST:4222 or tls://HOST:4222.")
