"""A folder for each split with its WAV files and a `metadata.jsonl` whose `file_name` names them.

`datasets.load_dataset("audiofolder", data_dir=…)` reads it, with the splits `train`, `validation` (from `val`) and
`test` (https://huggingface.co/docs/datasets/audio_dataset#audiofolder).
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from voxloop.steps.datasets.formats.entries import WAV_HEADER, Entry, Part, entries
from voxloop.steps.datasets.rows import line

if TYPE_CHECKING:
    from voxloop.stores.blobs import Blobs
    from voxloop.workspace import Workspace

LIST = "metadata.jsonl"


def write(
    ws: Workspace, place: Blobs, parts: Sequence[Part], present: set[str], folder: Path, *, file_names: bool
) -> Iterator[tuple[int, list[str]]]:
    """Write what is not present yet; after each part, the rows written and their keys. The lists come last."""
    splits = list(dict.fromkeys(part.split for part in parts))  # a split without clips has no folder
    with ExitStack() as stack:
        lists = {split: stack.enter_context((folder / f"{split}.jsonl").open("wb")) for split in splits}
        for part in parts:
            keys = []
            for entry in entries(ws, part.rows, file_names=file_names):
                keys.append(f"{part.split}/{entry.name}.wav")
                if keys[-1] not in present:
                    place.put(keys[-1], entry.wav)
                lists[part.split].write(line({"file_name": f"{entry.name}.wav", **entry.values}))
            yield len(part.rows), keys
    for split in splits:
        place.put(f"{split}/{LIST}", folder / f"{split}.jsonl")
    yield 0, [f"{split}/{LIST}" for split in splits]


def read_values(place: Blobs, files: Sequence[str]) -> Iterator[dict[str, Any]]:
    """The rows without their audio."""
    for file in files:
        if file.endswith(LIST):
            yield from map(json.loads, place.get(file).splitlines())


def read(place: Blobs, files: Sequence[str]) -> Iterator[Entry]:
    """The rows with their audio."""
    for values in read_values(place, files):
        yield Entry(values=values, pcm=place.get(f"{values['split']}/{values['file_name']}")[WAV_HEADER:])
