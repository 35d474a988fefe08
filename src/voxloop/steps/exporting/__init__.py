"""Export: a model leaves the workspace in the forms that other programs read, tried in each of them, with its card."""

from voxloop.steps.exporting.trial import Trial
from voxloop.steps.exporting.writing import FORMATS, ExportedModel, export_model

__all__ = ["FORMATS", "ExportedModel", "Trial", "export_model"]
