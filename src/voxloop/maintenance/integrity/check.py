"""A verification under way: what is wanted of it, what it found."""

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
    """Something that is not as it should be."""

    kind: str  # a short stable word for counting
    subject: str  # id, key or path
    message: str  # what was found
    remedy: str  # what to do
    repaired: bool = False


@dataclass(kw_only=True)
class Check:
    """A verification under way."""

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
        """Keep a finding; `mend` is tried where repairs are wanted and says whether it helped."""
        repaired = bool(self.repair and mend and mend())
        if mend and not self.repair:
            remedy = f"`voxloop verify --repair`: {remedy}"
        found = Finding(kind=kind, subject=subject, message=message, remedy=remedy, repaired=repaired)
        self.findings.append(found)

    def tick(self, kind: str) -> None:
        self.checked[kind] += 1
        if kind in ("recordings", "datasets", "models", "evaluations"):
            self.done += 1
            if self.progress:
                self.progress(self.done, self.total)


def still(ws: Workspace, kind: type[R], id: str) -> bool:
    """Whether a record is there now, which may have been removed since it was read."""
    with ws.read() as reader:
        return reader.find(kind, id) is not None
