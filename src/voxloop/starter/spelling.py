"""How byte-level vocabularies write bytes: the starter's, Whisper's, GPT-2's. Importing this module loads no torch."""

from __future__ import annotations


def byte_symbols() -> list[str]:
    """GPT-2's printable stand-ins for the 256 bytes, in its order (openai/gpt-2, src/encoder.py)."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    shifted = iter(range(256, 512))
    return [chr(byte) if byte in printable else chr(next(shifted)) for byte in range(256)]
