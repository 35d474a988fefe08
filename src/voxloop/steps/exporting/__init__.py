"""Export models in the formats of other programs, with a model card, and test them in each program."""

from voxloop.steps.exporting.trial import Trial
from voxloop.steps.exporting.writing import FORMATS, ExportedModel, export_model

__all__ = ["FORMATS", "ExportedModel", "Trial", "export_model"]
