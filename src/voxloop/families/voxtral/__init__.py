"""Voxtral (arXiv:2507.13264): a Whisper encoder in front of a language model, loaded, trained, decoded and saved."""

from voxloop.families.voxtral.family import VOXTRAL, Voxtral

__all__ = ["VOXTRAL", "Voxtral"]
