"""What changed from one frozen dataset to another."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from voxloop.records import Split
from voxloop.steps.datasets.rows import DatasetRow, rows

if TYPE_CHECKING:
    from voxloop.workspace import Workspace

Change = Literal["added", "removed", "text", "moved"]
CHANGES: tuple[Change, ...] = ("added", "removed", "text", "moved")


@dataclass(frozen=True, kw_only=True, slots=True)
class Difference:
    """One utterance that is not in both, or not as it was."""

    change: Change  # text: another text; moved: another split, as only imports of different origins have
    utterance: str
    before: str | None = None  # the text, or the split where that moved
    after: str | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Diff:
    """From dataset `before` to dataset `after`."""

    before: str
    after: str
    counts: dict[Change, int]
    added: dict[Split, int]  # by split
    removed: dict[Split, int]
    differences: tuple[Difference, ...]  # in the order of the utterances


def diff(ws: Workspace, before: str, after: str) -> Diff:
    """The rows that differ between two datasets. Raises BlobError where a manifest is lost."""
    old = {row.utterance: row for row in rows(ws, before)}
    new = {row.utterance: row for row in rows(ws, after)}
    found: list[Difference] = []
    for id in sorted(old.keys() | new.keys()):
        found += _differences(id, old.get(id), new.get(id))
    added: dict[Split, int] = {}
    removed: dict[Split, int] = {}
    for one in found:
        if one.change == "added":
            added[new[one.utterance].split] = added.get(new[one.utterance].split, 0) + 1
        elif one.change == "removed":
            removed[old[one.utterance].split] = removed.get(old[one.utterance].split, 0) + 1
    counts = {change: sum(one.change == change for one in found) for change in CHANGES}
    return Diff(before=before, after=after, counts=counts, added=added, removed=removed, differences=tuple(found))


def _differences(id: str, old: DatasetRow | None, new: DatasetRow | None) -> list[Difference]:
    if old is None or new is None:
        if new is not None:
            return [Difference(change="added", utterance=id, after=new.text)]
        return [Difference(change="removed", utterance=id, before=old.text if old else None)]
    found = []
    if old.text != new.text:
        found.append(Difference(change="text", utterance=id, before=old.text, after=new.text))
    if old.split != new.split:
        found.append(Difference(change="moved", utterance=id, before=old.split, after=new.split))
    return found
