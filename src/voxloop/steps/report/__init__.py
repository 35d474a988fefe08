"""An evaluation as one HTML page: charts, confusions, and the worst utterances with audio."""

from voxloop.steps.report.page import Written, check_place, write

__all__ = ["Written", "check_place", "write"]
