"""Verify: recompute every hash, cross-check catalog and blobs, repair what can be repaired and list the rest.

It runs while the workspace is in use. A file younger than `min_age_s` may be about to get its
catalog row, so it is not reported as an orphan. Before a file is reported as lost, its record
is looked up again, since a step may have removed both meanwhile.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from voxloop.maintenance.integrity import contents, leftovers
from voxloop.maintenance.integrity.check import Check, Finding
from voxloop.records import Dataset, Evaluation, Model, Progress, Recording
from voxloop.stores import tables

if TYPE_CHECKING:
    from voxloop.workspace import Workspace

STALE_S = 3600.0  # younger files may belong to work in progress


@dataclass(frozen=True, kw_only=True, slots=True)
class Verification:
    """The result of a verification."""

    checked: dict[str, int]  # number of objects checked, by kind
    findings: tuple[Finding, ...]
    elapsed: float  # seconds

    @property
    def sound(self) -> bool:
        """Whether no problems remain."""
        return all(finding.repaired for finding in self.findings)

    def as_dict(self) -> dict[str, Any]:
        """The verdict and its basis."""
        return {"sound": self.sound, "checked": self.checked, "findings": self.findings}


def verify(
    ws: Workspace, *, repair: bool = False, min_age_s: float = STALE_S, progress: Progress | None = None
) -> Verification:
    """Recompute every hash and cross-check catalog, blobs and files. Writes nothing without `repair`.

    Repairs: lost or damaged audio is restored from its source file if that still decodes to
    the same samples; unreferenced audio becomes a recording again; other unreferenced blobs
    are removed; missing jobs are queued; a dataset's rows in the catalog are rebuilt; vectors
    are removed or queued; rows of forgotten speech are removed from manifests; interrupted
    removals are finished; leftovers of killed processes are removed; dead runs are marked as
    interrupted; damaged checkpoint copies are dropped. Leftovers younger than `min_age_s`
    seconds are ignored.
    """
    began = time.monotonic()
    check = Check(ws=ws, repair=repair, min_age_s=min_age_s, progress=progress)
    with ws.read() as reader:
        check.total = reader.count(Recording) + reader.count(Dataset) + reader.count(Evaluation)
        check.total += reader.count(Model, tables.model.c.run.is_not(None))
    leftovers.check_removals(check)
    leftovers.check_database(check)
    contents.check_recordings(check)
    contents.check_utterances(check)
    contents.check_datasets(check)
    contents.check_models(check)
    contents.check_checkpoints(check)
    contents.check_evaluations(check)
    contents.check_aliases(check)
    leftovers.check_jobs(check)
    leftovers.check_vectors(check)
    leftovers.check_orphans(check)
    leftovers.check_runs(check)
    leftovers.check_leftovers(check)
    return Verification(checked=dict(check.checked), findings=tuple(check.findings), elapsed=time.monotonic() - began)
