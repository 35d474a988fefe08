"""Export datasets to files for other programs, and import them: JSONL with WAV, Parquet, Lhotse Shar."""

from voxloop.steps.datasets.formats.exchange import FORMATS, Exported, export_dataset, import_dataset

__all__ = ["FORMATS", "Exported", "export_dataset", "import_dataset"]
