"""A cache of a frozen encoder's outputs, batch by batch, so that each is computed only once.

In a file and not in memory: an hour of speech and a model of width 384 make 280 MB, of width 1,280 0.9 GB, for each
epoch that is kept.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch


class EncodedBatches:
    """A file without a name in the run's folder: it is gone when the process ends, however it ends.

    A resumed run computes the outputs again, from the same speech with the same augmentation.
    """

    def __init__(self, folder: Path) -> None:
        self._file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 - open as long as the run goes on
        self._places: dict[tuple[int, int], tuple[int, int]] = {}  # epoch and index -> offset and length in bytes

    def __contains__(self, drawn: tuple[int, int]) -> bool:
        return drawn in self._places

    def write(self, drawn: tuple[int, int], tensors: Mapping[str, Any]) -> None:
        """Keep the tensors of a batch by when it was drawn."""
        from safetensors.torch import save

        written = save({name: tensor.cpu().contiguous() for name, tensor in tensors.items()})
        offset = self._file.seek(0, 2)
        self._file.write(written)
        self._places[drawn] = offset, len(written)

    def read(self, drawn: tuple[int, int]) -> dict[str, torch.Tensor]:
        """The tensors of a batch that was written."""
        from safetensors.torch import load

        offset, length = self._places[drawn]
        self._file.seek(offset)
        found: dict[str, torch.Tensor] = load(self._file.read(length))
        return found
