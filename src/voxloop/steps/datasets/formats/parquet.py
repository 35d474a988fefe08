"""Parquet files whose `audio` column the `datasets` library knows as audio, by `load_dataset("parquet", …)`.

The column is a struct of the file's bytes and its name, and the schema's metadata
names the features, as the library itself writes them
(https://huggingface.co/docs/datasets/main/en/about_arrow and `datasets.Audio`).
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from voxloop.errors import UsageError, install_command
from voxloop.records import SAMPLE_RATE
from voxloop.steps.datasets.formats.entries import COLUMNS, WAV_HEADER, Entry, Part, entries

if TYPE_CHECKING:
    from voxloop.stores.blobs import Blobs
    from voxloop.workspace import Workspace

ROWS_IN_GROUP = 100  # what a reader has to take into memory at once; the Hub's own choice for audio


def _pyarrow() -> Any:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise UsageError(
            f"Parquet needs pyarrow, which is not installed: install it with `{install_command('parquet')}`"
        ) from error
    return pyarrow


def schema() -> Any:
    """The columns, with what the `datasets` library reads off the metadata."""
    arrow = _pyarrow()
    features: dict[str, Any] = {"audio": {"sampling_rate": SAMPLE_RATE, "_type": "Audio"}}
    features |= {name: {"dtype": dtype, "_type": "Value"} for name, dtype in COLUMNS.items()}
    types = {"string": arrow.string(), "float64": arrow.float64(), "int64": arrow.int64(), "bool": arrow.bool_()}
    audio = arrow.struct({"bytes": arrow.binary(), "path": arrow.string()})
    fields = [("audio", audio), *((name, types[dtype]) for name, dtype in COLUMNS.items())]
    return arrow.schema(fields, metadata={"huggingface": json.dumps({"info": {"features": features}})})


def write(
    ws: Workspace, place: Blobs, parts: Sequence[Part], present: set[str], folder: Path, *, file_names: bool
) -> Iterator[tuple[int, list[str]]]:
    """Write the files that are not present yet; after each, its rows and its key."""
    arrow = _pyarrow()
    names = schema()
    for part in parts:
        key = f"data/{part.split}-{part.index:05}-of-{part.of:05}.parquet"
        if key not in present:
            file = folder / "part.parquet"
            with arrow.parquet.ParquetWriter(file, names) as writer:
                for start in range(0, len(part.rows), ROWS_IN_GROUP):
                    chosen = part.rows[start : start + ROWS_IN_GROUP]
                    found = [
                        {"audio": {"bytes": entry.wav, "path": f"{entry.name}.wav"}, **entry.values}
                        for entry in entries(ws, chosen, file_names=file_names)
                    ]
                    writer.write_table(arrow.Table.from_pylist(found, schema=names))
            place.put(key, file)
        yield len(part.rows), [key]


def read_values(place: Blobs, files: Sequence[str]) -> Iterator[dict[str, Any]]:
    """The rows without their audio."""
    yield from _read(place, files, list(COLUMNS))


def read(place: Blobs, files: Sequence[str]) -> Iterator[Entry]:
    """The rows with their audio."""
    for values in _read(place, files, ["audio", *COLUMNS]):
        audio = values.pop("audio")
        yield Entry(values=values, pcm=audio["bytes"][WAV_HEADER:])


def _read(place: Blobs, files: Sequence[str], columns: list[str]) -> Iterator[dict[str, Any]]:
    arrow = _pyarrow()
    for file in files:
        with arrow.parquet.ParquetFile(place.path(file)) as opened:
            for batch in opened.iter_batches(batch_size=ROWS_IN_GROUP, columns=columns):
                yield from batch.to_pylist()
        place.forget(file)
