"""A verification in progress: its options and findings."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from voxloop.records import Progress
from voxloop.stores.blobs import CHUNK

if TYPE_CHECKING:
    from voxloop.stores.catalog import R
    from voxloop.workspace import Workspace

READ = 16 * CHUNK  # bytes of a blob hashed at a time


@dataclass(frozen=True, kw_only=True, slots=True)
class Finding:
    """A problem in the workspace."""

    kind: str  # short and stable, for counting
    subject: str  # id, key or path
    message: str  # the problem
    remedy: str  # what to do about it
    repaired: bool = False


@dataclass(kw_only=True)
class Check:
    """A verification in progress."""

    ws: Workspace
    repair: bool
    min_age_s: float
    progress: Progress | None
    total: int = 0
    done: int = 0
    checked: Counter[str] = field(default_factory=Counter)
    findings: list[Finding] = field(default_factory=list)

    def report(
        self, kind: str, subject: str, message: str, remedy: str, mend: Callable[[], bool] | None = None
    ) -> None:
        """Record a finding. If repairs are wanted, call `mend`, which returns whether it succeeded."""
        repaired = bool(self.repair and mend and mend())
        if mend:
            remedy = f"`voxloop verify --repair` {remedy}"
        found = Finding(kind=kind, subject=subject, message=message, remedy=remedy, repaired=repaired)
        self.findings.append(found)

    def tick(self, kind: str) -> None:
        self.checked[kind] += 1
        if kind in ("recordings", "datasets", "models", "evaluations"):
            self.done += 1
            if self.progress:
                self.progress(self.done, self.total)


def still(ws: Workspace, kind: type[R], id: str) -> bool:
    """Whether a record still exists; it may have been removed since it was read."""
    with ws.read() as reader:
        return reader.find(kind, id) is not None
