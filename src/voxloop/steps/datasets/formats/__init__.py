"""Datasets as files that others read, and back: JSONL beside WAV, Parquet, and Lhotse Shar."""

from voxloop.steps.datasets.formats.exchange import FORMATS, Exported, export_dataset, import_dataset

__all__ = ["FORMATS", "Exported", "export_dataset", "import_dataset"]
