"""Compare two frozen datasets."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from voxloop.errors import UsageError, nearest
from voxloop.records import Split
from voxloop.steps.datasets.rows import DatasetRow, find, rows

if TYPE_CHECKING:
    from voxloop.workspace import Workspace

Change = Literal["added", "removed", "text", "moved"]
CHANGES: tuple[Change, ...] = ("added", "removed", "text", "moved")


@dataclass(frozen=True, kw_only=True, slots=True)
class Difference:
    """An utterance that is missing from one dataset, or that differs."""

    change: Change  # text: another text; moved: another split, which only imports of different origins have
    utterance: str
    before: str | None = None  # the text, or the split if that changed
    after: str | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Diff:
    """The differences from dataset `before` to dataset `after`."""

    before: str
    after: str
    counts: dict[Change, int]
    added: dict[Split, int]  # by split
    removed: dict[Split, int]
    differences: tuple[Difference, ...]  # in the order of the utterances


def diff(ws: Workspace, before: str, after: str | None = None, *, change: str | None = None) -> Diff:
    """Compare two datasets, each a name or an id; without `after`, compare the parent of `before` with it.

    `change` lists only differences of that kind; the counts cover all. Raises UsageError for an unknown kind or a
    dataset without a parent, UnknownRecord, and BlobError if a manifest is lost.
    """
    if change is not None and change not in CHANGES:
        raise UsageError(f"there is no kind of change {change!r}{nearest(change, CHANGES)}")
    first = find(ws, before)
    if after is not None:
        second = find(ws, after)
    elif first.parent is not None:
        first, second = find(ws, first.parent), first
    else:
        raise UsageError(f"{first.name} ({first.id[7:19]}) has no previous version: name two datasets")
    old = {row.utterance: row for row in rows(ws, first.id)}
    new = {row.utterance: row for row in rows(ws, second.id)}
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
    return Diff(
        before=first.id,
        after=second.id,
        counts={kind: sum(one.change == kind for one in found) for kind in CHANGES},
        added=added,
        removed=removed,
        differences=tuple(one for one in found if change in (None, one.change)),
    )


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
