"""Frozen datasets: what is in, which text counts, and which split an utterance belongs to for ever."""

from voxloop.datasets.clips import cuts, export, lhotse_cut, write_split
from voxloop.datasets.filters import Filters
from voxloop.datasets.freezing import build
from voxloop.datasets.rows import DatasetRow, Exclusion, excluded_key, exclusions, find, manifest_key, rows
from voxloop.datasets.splits import assign_splits, position, split_at

__all__ = [
    "DatasetRow",
    "Exclusion",
    "Filters",
    "assign_splits",
    "build",
    "cuts",
    "excluded_key",
    "exclusions",
    "export",
    "find",
    "lhotse_cut",
    "manifest_key",
    "position",
    "rows",
    "split_at",
    "write_split",
]
