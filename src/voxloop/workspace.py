"""The open workspace: the stores that the settings name. The only place that chooses a backend."""

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
from voxloop.stores.blobs import Blobs
from voxloop.stores.bus import Bus, LocalBus
from voxloop.stores.catalog import Catalog, Reader, Writer
from voxloop.stores.jobs import Claim, Jobs, Listeners, News
from voxloop.stores.vectors import CatalogVectors, Vectors


class Transaction(Writer):
    """A write to the catalog that can tell of events. `woken` are the steps that have jobs once it is committed."""

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
        """Tell of an event: it and the jobs it causes are committed with this transaction. True where it is new.

        `seconds` of audio is what each of these jobs stands for. Unless `priority` is given, what follows from a job
        is as urgent as the job, and else as events of this type are.
        """
        return bool(self.emit_all(type, [News(subject, key, payload, seconds)], priority=priority))

    def emit_all(self, type: str, news: Sequence[News], *, priority: int | None = None) -> int:
        """As `emit`, for many subjects at once; the number of events that were new."""
        if priority is None and self._claim:
            priority = self._claim.priority
        new = self._jobs.emit_all(self, type, news, priority=priority)
        if new:
            self.woken.update(self._jobs.listeners.get(type, ()))
        return new

    def redo(self, step: str, subjects: Iterable[str]) -> int:
        """Have a step done once more of subjects of which it was done; the number of jobs."""
        again = self._jobs.redo(self, step, subjects)
        if again:
            self.woken.add(step)
        return again


@dataclass(frozen=True, kw_only=True)
class Workspace:
    """What every step takes first. `claim` and `stop` are set while a worker runs a step for the pipeline."""

    folder: Path
    settings: Settings
    catalog: Catalog
    blobs: Blobs
    vectors: Vectors
    jobs: Jobs
    bus: Bus
    claim: Claim | None = None
    stop: threading.Event | None = None  # set when the worker is asked to end: long steps look at it
    told: Callable[[float], None] | None = None  # told by long steps of each few seconds of audio that they are through

    @contextmanager
    def read(self) -> Iterator[Reader]:
        """A consistent view of the catalog."""
        with self.catalog.read() as reader:
            yield reader

    @contextmanager
    def transaction(self) -> Iterator[Transaction]:
        """An intermediate write: committed at the block's end, refused where the worker's lease was lost."""
        with self.catalog.write() as writer:
            if self.claim:
                self.jobs.fence(writer, self.claim)
            tx = Transaction(writer, self.jobs, self.claim)
            yield tx
        self._wake(tx)

    @contextmanager
    def completion(self, *subjects: str) -> Iterator[Transaction]:
        """The write that carries a step's result: it, its events and the job's done mark commit together.

        A step that takes many subjects completes each as soon as its own work is done, so that a kill costs only what
        is in hand; without `subjects` all that is left of the claim is done. Raises LeaseLost where another worker
        took over.
        """
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
        """This workspace, as the worker that holds `claim` uses it."""
        return replace(self, claim=claim)

    @property
    def runs(self) -> Path:
        """Where training runs keep their folders."""
        return self.folder / "runs"

    def close(self) -> None:
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
    **overrides: Any,
) -> Workspace:
    """Open the workspace in `folder`, bringing its schema up to date.

    `listeners`, `priorities` and `coalesced` are those of `pipeline`; `overrides` are settings by name. Raises
    WorkspaceError where there is none and `create` is false.
    """
    folder = folder.absolute()
    marker = folder / _settings.CONFIG_NAME
    if not marker.exists():
        if not create:
            raise WorkspaceError(
                f"no workspace at {folder}: make one with `voxloop -C {folder} init`, or name it with -C"
            )
        try:
            folder.mkdir(parents=True, exist_ok=True)
            marker.write_text(_settings.template())
        except OSError as error:
            raise WorkspaceError(f"a workspace cannot be made at {folder}: {error}") from error
    settings = _settings.resolve(folder, environ=environ, overrides=overrides)
    if settings.bus != "local":
        raise SettingError(f"bus is {settings.bus!r}: this version has `local` only")
    catalog = Catalog(settings.catalog or f"sqlite:///{folder / 'catalog.db'}")
    catalog.migrate()
    return Workspace(
        folder=folder,
        settings=settings,
        catalog=catalog,
        blobs=Blobs(settings.blobs or (folder / "blobs").as_uri(), cache=folder / "cache"),
        vectors=CatalogVectors(catalog),
        jobs=Jobs(
            catalog,
            listeners,
            lease_s=settings.lease_s,
            max_attempts=settings.max_attempts,
            priorities=priorities,
            coalesced=coalesced,
        ),
        bus=LocalBus(),
    )
