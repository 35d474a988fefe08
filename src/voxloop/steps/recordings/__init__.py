"""Ingest: turn audio files, folders and metadata into Recordings, stored once under the hash of their samples."""

from voxloop.steps.recordings.conversion import audio_key
from voxloop.steps.recordings.ingesting import IngestProgress, IngestReport, ingest, read_audio
from voxloop.steps.recordings.sources import Refusal

__all__ = ["IngestProgress", "IngestReport", "Refusal", "audio_key", "ingest", "read_audio"]
