"""An evaluation as one page: charts, confusions, the worst utterances with their sound."""

from voxloop.steps.report.page import Written, check_place, write

__all__ = ["Written", "check_place", "write"]
