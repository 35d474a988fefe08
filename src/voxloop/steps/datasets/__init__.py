"""Frozen datasets: which utterances they contain, with which text, and in which permanent split."""

from voxloop.steps.datasets.advice import Advice, DatasetWarning, advise
from voxloop.steps.datasets.clips import lhotse_cut, write_rows, write_split
from voxloop.steps.datasets.contributors import Contributor, Member, contributors, members
from voxloop.steps.datasets.diffing import Diff, Difference, diff
from voxloop.steps.datasets.filters import Filters
from voxloop.steps.datasets.formats import Exported, export_dataset, import_dataset
from voxloop.steps.datasets.freezing import build
from voxloop.steps.datasets.rows import (
    DatasetRow,
    Exclusion,
    all_datasets,
    excluded_key,
    exclusions,
    find,
    manifest_key,
    origins,
    rows,
)
from voxloop.steps.datasets.splits import assign_splits, position, sentence, split_at, usual_ratios
from voxloop.steps.datasets.style import Style
from voxloop.steps.datasets.summary import DatasetDetails, Summary, details, summarise

__all__ = [
    "Advice",
    "Contributor",
    "DatasetDetails",
    "DatasetRow",
    "DatasetWarning",
    "Diff",
    "Difference",
    "Exclusion",
    "Exported",
    "Filters",
    "Member",
    "Style",
    "Summary",
    "advise",
    "all_datasets",
    "assign_splits",
    "build",
    "contributors",
    "details",
    "diff",
    "excluded_key",
    "exclusions",
    "export_dataset",
    "find",
    "import_dataset",
    "lhotse_cut",
    "manifest_key",
    "members",
    "origins",
    "position",
    "rows",
    "sentence",
    "split_at",
    "summarise",
    "usual_ratios",
    "write_rows",
    "write_split",
]
