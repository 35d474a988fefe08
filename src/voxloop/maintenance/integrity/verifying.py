"""Verify: every hash recomputed, catalog and blobs held against each other; what can be mended is, the rest is listed.

It runs beside other work. What is younger than `min_age_s` may be about to be
named by a row, so it is no orphan yet; what a step removed meanwhile is looked up
again before it is called lost.
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

STALE_S = 3600.0  # younger files may belong to work under way


@dataclass(frozen=True, kw_only=True, slots=True)
class Verification:
    """What was checked, and what was found."""

    checked: dict[str, int]  # by kind of thing
    findings: tuple[Finding, ...]
    elapsed: float  # seconds

    @property
    def sound(self) -> bool:
        """Nothing is wrong, or nothing is any more."""
        return all(finding.repaired for finding in self.findings)

    def as_dict(self) -> dict[str, Any]:
        """The answer, and what it rests on."""
        return {"sound": self.sound, "checked": self.checked, "findings": self.findings}


def verify(
    ws: Workspace, *, repair: bool = False, min_age_s: float = STALE_S, progress: Progress | None = None
) -> Verification:
    """Recompute every hash and cross-check catalog, blobs and files. Nothing is written without `repair`.

    Repaired are: audio that is lost or damaged, from its source file where that
    still decodes to the same samples; audio that no row names, taken back as a
    recording; other blobs that no row names, removed; jobs that an event lacks;
    the catalog's list of a dataset's rows; vectors; rows of forgotten speech in
    manifests; removals cut off; leftovers of killed processes; runs that nobody
    attends to any more; damaged copies of checkpoints, given up. `min_age_s`: younger leftovers are left alone.
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
