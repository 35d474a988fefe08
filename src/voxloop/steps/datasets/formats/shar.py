"""Lhotse Shar: shards of cuts (`cuts.000000.jsonl.gz`) and of their audio (`recording.000000.tar`), by split.

`lhotse.CutSet.from_shar(in_dir="…/train")` reads them; the rest of a row is in the cut's `custom`. The tar is
written as Lhotse's `AudioTarWriter` does, with the stored samples as they are:
its own way is through floating point and back.
"""

from __future__ import annotations

import gzip
import json
import tarfile
from collections.abc import Iterator, Sequence
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

from voxloop.errors import UsageError
from voxloop.steps.datasets.clips import lhotse_cut
from voxloop.steps.datasets.formats.entries import COLUMNS, LATER, WAV_HEADER, Entry, Part, entries

if TYPE_CHECKING:
    from voxloop.stores.blobs import Blobs
    from voxloop.workspace import Workspace

IN_SUPERVISION = ("text", "speaker", "language")  # what Lhotse has a field for; the rest is custom


def write(
    ws: Workspace, place: Blobs, parts: Sequence[Part], present: set[str], folder: Path, *, file_names: bool
) -> Iterator[tuple[int, list[str]]]:
    """Write the shards that are not present yet, audio first; after each, its rows and its keys."""
    for part in parts:
        cuts_key = f"{part.split}/cuts.{part.index:06}.jsonl.gz"
        audio_key = f"{part.split}/recording.{part.index:06}.tar"
        if cuts_key not in present or audio_key not in present:
            cuts, audio = folder / "cuts.jsonl.gz", folder / "recording.tar"
            _write_shard(ws, part, cuts, audio, file_names=file_names)
            for key, file in ((audio_key, audio), (cuts_key, cuts)):
                if key not in present:
                    place.put(key, file)
        yield len(part.rows), [cuts_key, audio_key]


def _write_shard(ws: Workspace, part: Part, cuts: Path, audio: Path, *, file_names: bool) -> None:
    # Without a name and a time inside, the same shard is the same bytes.
    with (
        cuts.open("wb") as raw,
        gzip.GzipFile("", "wb", fileobj=raw, mtime=0) as lines,
        tarfile.open(audio, "w", format=tarfile.GNU_FORMAT) as tar,
    ):
        for entry in entries(ws, part.rows, file_names=file_names):
            cut, recording = _cut(entry)
            _add(tar, f"{cut['id']}.wav", entry.wav)
            _add(tar, f"{cut['id']}.json", json.dumps(recording).encode())
            lines.write((json.dumps(cut, ensure_ascii=False) + "\n").encode())


def _cut(entry: Entry) -> tuple[dict[str, Any], dict[str, Any]]:
    """A row's cut, and the manifest of its recording, as they stand in a shard."""
    from lhotse.shar.utils import to_shar_placeholder

    values = entry.values
    known = {name: values[name] for name in ("duration", *IN_SUPERVISION)}
    cut = lhotse_cut(values["id"], Path(), **known)
    recording = to_shar_placeholder(cut.recording)
    cut.recording = recording
    cut.custom = {name: values[name] for name in COLUMNS if name not in ("id", "duration", *IN_SUPERVISION)}
    return cut.to_dict(), recording.to_dict()


def _add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(data)
    tar.addfile(member, BytesIO(data))


def _values(cut: dict[str, Any]) -> dict[str, Any]:
    said = cut["supervisions"][0]
    values = {"id": cut["id"], "duration": cut["duration"], **cut["custom"]}
    values |= {name: said.get(name) for name in IN_SUPERVISION}
    return {name: values.get(name) if name in LATER else values[name] for name in COLUMNS}


def read_values(place: Blobs, files: Sequence[str]) -> Iterator[dict[str, Any]]:
    """The rows without their audio."""
    for file in files:
        if file.endswith(".jsonl.gz"):
            for text in gzip.decompress(place.get(file)).splitlines():
                yield _values(json.loads(text))


def read(place: Blobs, files: Sequence[str]) -> Iterator[Entry]:
    """The rows with their audio."""
    for file in files:
        if not file.endswith(".jsonl.gz"):
            continue
        audio = file.replace("/cuts.", "/recording.").replace(".jsonl.gz", ".tar")
        with tarfile.open(place.path(audio)) as tar:
            for values in read_values(place, [file]):
                member = tar.next()
                manifest = tar.next()
                data = tar.extractfile(member) if member and manifest else None
                if member is None or data is None or member.name != f"{values['id']}.wav":
                    raise UsageError(f"{place.url}/{audio} does not hold {values['id']} in its place: export it again")
                yield Entry(values=values, pcm=data.read()[WAV_HEADER:])
        place.forget(audio)
