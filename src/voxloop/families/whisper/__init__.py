"""Whisper (arXiv:2212.04356): loaded, fed at a clip's own length, decoded, trained and saved."""

from voxloop.families.whisper.family import WHISPER, Whisper

__all__ = ["WHISPER", "Whisper"]
