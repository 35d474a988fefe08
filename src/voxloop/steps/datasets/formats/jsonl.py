"""`train.jsonl`, `val.jsonl` and `test.jsonl` beside a folder of WAV files; the lists come after their audio."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from voxloop.records import SPLITS
from voxloop.steps.datasets.formats.entries import WAV_HEADER, Entry, Part, entries, name_of
from voxloop.steps.datasets.rows import line

if TYPE_CHECKING:
    from voxloop.stores.blobs import Blobs
    from voxloop.workspace import Workspace


def write(
    ws: Workspace, place: Blobs, parts: Sequence[Part], present: set[str], folder: Path, *, file_names: bool
) -> Iterator[tuple[int, list[str]]]:
    """Write what is not present yet; after each part, the rows written and their keys."""
    with ExitStack() as stack:
        lists = {split: stack.enter_context((folder / f"{split}.jsonl").open("wb")) for split in SPLITS}
        for part in parts:
            keys = []
            for entry in entries(ws, part.rows, file_names=file_names):
                keys.append(f"audio/{entry.name}.wav")
                if keys[-1] not in present:
                    place.put(keys[-1], entry.wav)
                lists[part.split].write(line({"audio_path": keys[-1], **entry.values}))
            yield len(part.rows), keys
    for split in SPLITS:
        place.put(f"{split}.jsonl", folder / f"{split}.jsonl")
    yield 0, [f"{split}.jsonl" for split in SPLITS]


def read_values(place: Blobs, files: Sequence[str]) -> Iterator[dict[str, Any]]:
    """The rows without their audio."""
    for file in files:
        if file.endswith(".jsonl"):
            yield from map(json.loads, place.get(file).splitlines())


def read(place: Blobs, files: Sequence[str]) -> Iterator[Entry]:
    """The rows with their audio."""
    for values in read_values(place, files):
        yield Entry(values=values, pcm=place.get(f"audio/{name_of(values)}.wav")[WAV_HEADER:])
