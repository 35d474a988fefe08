"""The weights of Silero's voice detector, read from its package without importing that, since it imports PyTorch.

What the package loads is a TorchScript archive: a ZIP file with a pickle that says which tensor lies where, and a file
for each tensor's numbers. Of the pickle only tensors and their names are made; nothing in it is run.
"""

from __future__ import annotations

import importlib.util
import pickle
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

Array = np.ndarray[Any, np.dtype[np.float32]]

NETWORK = "_model"  # the one for 16 kHz, beside `_model_8k`


class _Module:
    """A module of the network: its attributes are tensors, other modules and settings."""

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.members = state


def weights() -> dict[str, Array]:
    """The tensors of the network for 16 kHz by the names that PyTorch gives them."""
    package = importlib.util.find_spec("silero_vad")
    if package is None or package.origin is None:
        raise ModuleNotFoundError("No module named 'silero_vad'", name="silero_vad")
    with zipfile.ZipFile(Path(package.origin).parent / "data" / "silero_vad.jit") as archive:
        names = archive.namelist()
        (listing,) = [name for name in names if name.endswith("/data.pkl")]
        place = listing.removesuffix(".pkl")

        def tensor(storage: str, offset: int, shape: tuple[int, ...], strides: tuple[int, ...], *_: Any) -> Array:
            numbers = np.frombuffer(archive.read(f"{place}/{storage}"), "<f4")[offset:].astype(np.float32)
            return np.ascontiguousarray(np.lib.stride_tricks.as_strided(numbers, shape, [4 * step for step in strides]))

        class Unpickler(pickle.Unpickler):
            def find_class(self, module: str, name: str) -> Any:
                if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
                    return tensor
                if (module, name) == ("torch.jit._pickle", "build_intlist"):
                    return list
                return dict if module == "collections" else _Module

            def persistent_load(self, found: tuple[Any, ...]) -> str:
                return str(found[2])

        with archive.open(listing) as file:
            whole: _Module = Unpickler(file).load()
    return dict(_tensors(whole.members[NETWORK], ""))


def _tensors(module: _Module, before: str) -> list[tuple[str, Array]]:
    found: list[tuple[str, Array]] = []
    for name, member in module.members.items():
        if isinstance(member, np.ndarray):
            found.append((before + name, member))
        elif isinstance(member, _Module):
            found += _tensors(member, f"{before}{name}.")
    return found
