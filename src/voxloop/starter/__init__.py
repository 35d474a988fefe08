"""The starter: a tiny Whisper-architecture recogniser that ships in the package, so that everything works offline.

`model/` holds the weights, the tokenizer and the model card; `build.py` makes them anew. Importing this module
loads no torch.
"""

from pathlib import Path
from typing import Final

STARTER_DIR: Final[Path] = Path(__file__).resolve().parent / "model"
"""Folder for `WhisperForConditionalGeneration.from_pretrained` and `WhisperProcessor.from_pretrained`."""
