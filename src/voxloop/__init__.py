"""Voxloop: speech in, a better speech recogniser out."""

__version__ = "0.1.0"
