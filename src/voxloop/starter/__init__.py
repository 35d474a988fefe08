"""The starter: a tiny Whisper-architecture recogniser that ships in the package, so that everything works offline.

`model/` contains the weights, the tokenizer and the model card; `build.py` rebuilds them. Importing this module does
not load torch.
"""

from pathlib import Path
from typing import Final

STARTER_DIR: Final[Path] = Path(__file__).resolve().parent / "model"
"""Folder for `WhisperForConditionalGeneration.from_pretrained` and `WhisperProcessor.from_pretrained`."""
