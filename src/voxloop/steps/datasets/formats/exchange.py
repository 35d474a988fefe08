"""Export datasets to files for other programs, and import them: JSONL with WAV, Parquet, Lhotse Shar.

An export is written part by part and marked complete at the end. If it is
interrupted, it is marked incomplete, and the same command continues it.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from hashlib import sha256
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from voxloop.errors import BlobError, ConflictError, UsageError, counted, nearest
from voxloop.records import Dataset, Progress, Quality, Recording, Split, Transcript, Utterance, utterance_id
from voxloop.speech.audio import pcm_id
from voxloop.speech.quality import measure
from voxloop.steps import consent
from voxloop.steps.datasets.formats import audiofolder, jsonl, parquet, places, shar
from voxloop.steps.datasets.formats.entries import Entry, parts, row_of
from voxloop.steps.datasets.freezing import freeze
from voxloop.steps.datasets.rows import DatasetRow, manifest_key, rows
from voxloop.steps.datasets.splits import strictest
from voxloop.steps.recordings import audio_key
from voxloop.steps.utterances import read_span
from voxloop.stores import tables
from voxloop.stores.catalog import chunks

if TYPE_CHECKING:
    from voxloop.stores.blobs import Blobs
    from voxloop.workspace import Workspace

FORMATS: dict[str, ModuleType] = {"jsonl": jsonl, "audiofolder": audiofolder, "parquet": parquet, "shar": shar}
ITEMS = 1000  # clips per part: a Shar shard, a Parquet file


@dataclass(frozen=True, kw_only=True, slots=True)
class Exported:
    """The result of an export."""

    dataset: str
    format: str
    place: str  # URL
    clips: int
    files: int
    known: bool  # it was already complete


def export_dataset(
    ws: Workspace,
    dataset: str,
    to: str | Path,
    *,
    format: str = "jsonl",
    items: int = ITEMS,
    file_names: bool = True,
    publish: bool = False,
    progress: Progress | None = None,
) -> Exported:
    """Write a dataset to a folder or a blob URL (file://, s3://, gs://, az://), with `items` clips per part.

    Each row names its source file unless `file_names=False`, since file names may identify speakers.

    With `publish`, every speaker has to have consented to the publication of audio; in any case, none may have
    withdrawn consent to training.

    Continues an interrupted export. Raises UsageError if the place has other
    contents, or the format is unknown.
    """
    if format not in FORMATS:
        raise UsageError(f"there is no format {format!r}{nearest(format, FORMATS)}")
    if items < 1:
        raise UsageError(f"the number of clips per part is {items}: give 1 or more")
    if format == "parquet":
        parquet.schema()  # reports a missing package before anything is written
    with ws.read() as reader:
        frozen = reader.get(Dataset, dataset)
    listed = rows(ws, frozen.id)
    _check_consent(ws, listed, publish=publish)
    # After forgetting, a dataset keeps its id but has another manifest.
    what = {"dataset": frozen.id, "manifest": manifest_key(ws, frozen.id), "format": format, "items": items}
    what |= {"file_names": file_names}
    with places.opened(to, create=True) as place:
        if place.exists(places.ABOUT):
            found = places.about(place)
            places.check_same(place, places.ABOUT, what | {"dataset": {**found["dataset"], "id": frozen.id}})
            clips = sum(frozen.clips.values())
            return Exported(
                dataset=frozen.id, format=format, place=place.url, clips=clips, files=len(found["files"]), known=True
            )
        present = places.begin(place, what)
        files: list[str] = []
        done = 0
        with tempfile.TemporaryDirectory(prefix="voxloop-export-") as folder:
            for written, keys in FORMATS[format].write(
                ws, place, parts(listed, items), present, Path(folder), file_names=file_names
            ):
                files += keys
                done += written
                if progress:
                    progress(done, len(listed))
        places.end(place, {"version": places.VERSION, **what, "dataset": asdict(frozen), "files": files})
        return Exported(
            dataset=frozen.id, format=format, place=place.url, clips=len(listed), files=len(files), known=False
        )


def _check_consent(ws: Workspace, listed: Sequence[DatasetRow], *, publish: bool) -> None:
    """Refuse to give away what speakers do not permit. Raises UsageError."""
    with ws.read() as reader:
        speakers = [row.speaker for row in listed]
        gone = consent.withdrawn(reader, "train") & {one for one in speakers if one}
        lacking = consent.lacking(reader, speakers, "publish") if publish else []
    if gone:
        raise UsageError(
            f"consent was withdrawn since this dataset was built: {_names(sorted(gone))}. "
            "Build it again, and export that."
        )
    if lacking:
        raise UsageError(
            f"{counted(len(lacking), 'speaker has', 'speakers have')} not consented to the publication of audio: "
            f"{_names(lacking)}. Note consent with `voxloop consent give SPEAKER`, or build a dataset without them."
        )


def _names(speakers: Sequence[str | None]) -> str:
    named = ", ".join(one or "(unknown)" for one in speakers[:5])
    return f"{named} and {len(speakers) - 5:,} more" if len(speakers) > 5 else named


def import_dataset(
    ws: Workspace, source: str | Path, *, name: str | None = None, progress: Progress | None = None
) -> Dataset:
    """Import the clips, texts and splits that `export_dataset` has written.

    The dataset keeps its id if its clips are whole recordings, or parts of recordings
    in this workspace; a part of any other recording becomes a separate recording, and
    the id changes. Importing again changes nothing. Raises UsageError if the export is
    incomplete or was modified, and ConflictError if a clip is in another split here.
    """
    with places.opened(source, create=False) as place:
        about = places.about(place)
        format = FORMATS.get(about["format"])
        if format is None:
            raise UsageError(f"{place.url} has the format {about['format']!r}{nearest(about['format'], FORMATS)}")
        _check_splits(ws, format.read_values(place, about["files"]))
        wanted = sum(about["dataset"]["clips"].values())
        read = 0
        taken: dict[str, _Taken] = {}
        for one in _stored(ws, place, format.read(place, about["files"])):
            read += 1
            twin = taken.setdefault(one.row.utterance, one)
            # Parts of different recordings with the same samples become one recording here, in the strictest split.
            if strictest({twin.row.split, one.row.split}) != twin.row.split:
                taken[one.row.utterance] = one
            if progress:
                progress(read, wanted)
        if read != wanted:
            raise UsageError(f"{place.url} has {read:,} of {wanted:,} clips: export the dataset again")
    found = _kept(ws, list(taken.values()))
    return freeze(
        ws,
        name or about["dataset"]["name"],
        sorted((one.row for one in found), key=lambda row: row.utterance),
        None,
        new_splits=((one.row.utterance, one.row.split) for one in found),
        filters={**about["dataset"]["filters"], "imported": about["dataset"]["id"]},
        excluded=about["dataset"]["excluded"],
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class _Taken:
    """A row as imported, with the records that it needs."""

    row: DatasetRow
    recording: Recording
    utterance: Utterance
    transcript: Transcript


def _check_splits(ws: Workspace, values: Iterator[dict[str, Any]]) -> None:
    """Check that no clip in this workspace would move to another split. Raises ConflictError."""
    u = tables.utterance.c
    here: dict[str, set[Split]] = {}
    with ws.read() as reader:
        for row in reader.connection.execute(sa.select(u.recording, u.split).where(u.split.is_not(None)).distinct()):
            here.setdefault(row.recording, set()).add(row.split)
    moved = []
    for one in values:
        given = row_of(one)
        # As part of its recording, or as a separate recording from an earlier import.
        ids = {given.recording, str(one["pcm"])}
        moved += [given for id in ids if here.get(id, {given.split}) != {given.split}]
    if moved:
        first = moved[0]
        raise ConflictError(
            f"{len(moved):,} {'clip' if len(moved) == 1 else 'clips'} of the export, such as {first.utterance} "
            f"({first.split} in the export), would change split in this workspace: import it into another workspace"
        )


def _stored(ws: Workspace, place: Blobs, entries: Iterator[Entry]) -> Iterator[_Taken]:
    """Store the audio of each row and yield the row."""
    for entry in entries:
        row = row_of(entry.values)
        clip = pcm_id(entry.pcm)
        samples = len(entry.pcm) // 2
        if clip != entry.values["pcm"] or samples != row.end - row.start:
            raise UsageError(f"the audio of {row.utterance} in {place.url} was modified: export the dataset again")
        whole = row.start == 0 and row.recording == clip
        if not whole and not _is_here(ws, row, clip):
            id = utterance_id(clip, 0, samples)
            row, whole = replace(row, utterance=id, recording=clip, start=0, end=samples), True
        if whole:
            ws.blobs.put(audio_key(row.recording), entry.wav)
        yield _taken(row, entry.values, place.url, measure(entry.waveform))


def _is_here(ws: Workspace, row: DatasetRow, clip: str) -> bool:
    """Whether this workspace has the clip's recording, with the same samples in that span."""
    from voxloop.speech.audio import to_pcm16

    with ws.read() as reader:
        known = reader.find(Recording, row.recording)
    if known is None or known.samples < row.end:
        return False
    try:
        return pcm_id(to_pcm16(read_span(ws, row.recording, row.start, row.end))) == clip
    except BlobError:
        return False


def _taken(row: DatasetRow, values: dict[str, Any], place: str, quality: Quality) -> _Taken:
    return _Taken(
        row=row,
        recording=Recording(
            id=row.recording,
            source=place,
            name=values.get("original_file") or values["id"],
            samples=row.end - row.start,
            speaker=row.speaker,
            language=row.language,
            session=values["session"],
            consent=values["consent"],
            quality=quality,
        ),
        utterance=Utterance(
            id=row.utterance,
            recording=row.recording,
            start=row.start,
            end=row.end,
            speaker=row.speaker,
            language=row.language,
            split=row.split,
            status="reviewed" if row.kind == "reference" else "transcribed",
            quality=quality,
        ),
        transcript=Transcript(
            id=row.transcript,
            utterance=row.utterance,
            kind=row.kind,
            text=row.text,
            by=values["by"] or "import",
            confidence=values["confidence"],
            created=values["created"] or 0.0,
        ),
    )


def _kept(ws: Workspace, found: list[_Taken]) -> list[_Taken]:
    """Write the records that the rows need. Return the rows with their transcript ids in this workspace."""
    found = _with_free_names(ws, found)
    u = tables.utterance
    references = [{"utterance_id": one.row.utterance} for one in found if one.row.kind == "reference"]
    reviewed = (
        sa.update(u)
        .where(u.c.id == sa.bindparam("utterance_id"), sa.or_(u.c.status == "new", u.c.status == "transcribed"))
        .values(status="reviewed")
    )
    with ws.transaction() as tx:
        tx.add(*(one.recording for one in found))
        tx.add(*(one.utterance for one in found))
        tx.add(*(one.transcript for one in found))
        if references:
            tx.connection.execute(reviewed, references)
    return found


def _with_free_names(ws: Workspace, found: list[_Taken]) -> list[_Taken]:
    """Give an imported transcript a new id if another text in this workspace already has its id."""
    t = tables.transcript.c
    here: dict[str, tuple[str, str]] = {}
    ids = [one.transcript.id for one in found]
    with ws.read() as reader:
        for part in chunks(ids):
            statement = sa.select(t.id, t.utterance, t.text).where(t.id.in_(part))
            here |= {row.id: (row.utterance, row.text) for row in reader.connection.execute(statement)}
    kept = []
    for one in found:
        said = (one.row.utterance, one.row.text)
        if here.get(one.transcript.id, said) != said:
            id = f"imported-{sha256(' '.join(said).encode()).hexdigest()[:26]}"
            one = replace(one, row=replace(one.row, transcript=id), transcript=replace(one.transcript, id=id))
        kept.append(one)
    return kept
