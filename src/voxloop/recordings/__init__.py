"""Ingest: audio files, folders and their metadata become Recordings, each stored once under the hash of its samples.

A file is measured and then taken, known (the same samples are there already) or
refused with its reason; one bad file never ends a batch. The blob is written
first and the row after it, so a row without audio cannot be.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, cast

import sqlalchemy as sa

from voxloop import audio
from voxloop.errors import BlobError, UsageError
from voxloop.recordings.conversion import Converted, convert_all, spool_folder
from voxloop.recordings.sources import Item, Refusal, find_items, language_code
from voxloop.records import SAMPLE_RATE, Recording
from voxloop.stores import catalog as tables
from voxloop.stores.catalog import insert_new

if TYPE_CHECKING:
    from voxloop.audio import Waveform
    from voxloop.workspace import Transaction, Workspace

__all__ = ["IngestProgress", "IngestReport", "Refusal", "audio_key", "ingest", "read_audio"]

BATCH = 64  # files whose rows are committed together


@dataclass(frozen=True, kw_only=True, slots=True)
class IngestReport:
    """What became of every file."""

    taken: tuple[str, ...] = ()  # ids of new recordings
    known: tuple[str, ...] = ()  # ids of recordings that were there, one for each file
    refused: tuple[Refusal, ...] = ()
    notes: tuple[str, ...] = ()  # what was taken differently from what was given
    seconds_of_audio: float = 0.0  # of the recordings taken
    elapsed: float = 0.0  # seconds

    @property
    def reasons(self) -> dict[str, int]:
        """Refused files by reason, the most frequent first."""
        return dict(Counter(refusal.reason for refusal in self.refused).most_common())


@dataclass(frozen=True, kw_only=True, slots=True)
class IngestProgress:
    """How far a batch has come."""

    done: int  # files
    total: int
    taken: int
    known: int
    refused: int
    seconds_of_audio: float


def audio_key(recording_id: str) -> str:
    """Where a recording's WAV lies among the blobs."""
    return f"audio/{recording_id}.wav"


def ingest(
    ws: Workspace,
    source: str | Path | Sequence[str | Path],
    *,
    metadata: Path | None = None,
    speaker: str | None = None,
    language: str | None = None,
    session: str | None = None,
    consent: str | None = None,
    speakers: Sequence[str] | None = None,
    processes: int | None = None,
    limit: int | None = None,
    progress: Callable[[IngestProgress], None] | None = None,
) -> IngestReport:
    """Take audio files and folders into the workspace.

    A folder's `metadata.jsonl` or `metadata.csv` (or `metadata`) says by line what each file holds:
    `file`, `file_name`, `audio_path` or `audio_filepath`, and `text`, `speaker`,
    `language`, `session`, `consent`; a file that no line names is taken with the
    text of the `.txt` beside it, if there is one. `speaker`, `language`, `session`
    and `consent` stand for what a line leaves open. `speakers` takes only the lines
    of these speakers. `processes` None is as many as there are cores where the work is worth it. Other files
    of a folder are left alone. Raises UsageError where the source does not exist.
    """
    began = time.monotonic()
    sources = [source] if isinstance(source, (str, Path)) else list(source)
    given = Item(path=Path(), speaker=speaker, language=language_code(language), session=session, consent=consent)
    items = list(find_items([Path(one) for one in sources], metadata, given, speakers))[:limit]
    tally = _Tally(ws, len(items), progress)
    batch: list[tuple[Item, Converted | Refusal]] = []
    with spool_folder(ws.folder) as spool:
        max_seconds = ws.settings.max_recording_hours * 3600
        for item, result in convert_all(items, spool, max_seconds, ws.settings.max_file_mb << 20, processes):
            batch.append((item, result))
            if len(batch) == BATCH or (isinstance(result, Converted) and isinstance(result.wav, Path)):
                tally.commit(batch)
                batch = []
        tally.commit(batch, last=True)
    return tally.report(time.monotonic() - began)


def read_audio(ws: Workspace, recording_id: str, start: int | None = None, end: int | None = None) -> Waveform:
    """Samples `start` to `end` (exclusive) of a recording, or all of it, as (S,) float32. Raises BlobError."""
    if start is None and end is None:
        return audio.from_pcm16(ws.blobs.get(audio_key(recording_id))[audio.WAV_HEADER_BYTES :])
    first = start or 0
    if end is None:
        with ws.read() as reader:
            end = reader.get(Recording, recording_id).samples
    if first < 0 or end < first:
        raise UsageError(f"samples {first} to {end} of {recording_id} were asked for: the end must follow the start")
    if first == end:
        return audio.from_pcm16(b"")
    head = audio.WAV_HEADER_BYTES
    data = ws.blobs.get(audio_key(recording_id), head + audio.SAMPLE_BYTES * first, head + audio.SAMPLE_BYTES * end)
    return audio.from_pcm16(data)


class _Tally:
    """Commits batches and counts what became of them."""

    def __init__(self, ws: Workspace, total: int, progress: Callable[[IngestProgress], None] | None) -> None:
        self._ws = ws
        self._total = total
        self._progress = progress
        self._taken: list[str] = []
        self._known: list[str] = []
        self._refused: list[Refusal] = []
        self._notes: list[str] = []
        self._samples = 0

    def commit(self, batch: Sequence[tuple[Item, Converted | Refusal]], *, last: bool = False) -> None:
        """Blobs first, then the rows and their events in one transaction."""
        settled = self._stored(batch)
        taken: list[str] = []
        known: list[str] = []
        notes: list[str] = []
        refused = [result for _, result in settled if isinstance(result, Refusal)]
        samples = 0
        with self._ws.completion() if last else self._ws.transaction() as tx:
            for item, result in settled:
                if isinstance(result, Refusal):
                    continue
                recording = _recording(item, result)
                if tx.add(recording):
                    tx.emit("recording.ingested", recording.id, payload={"source": recording.source})
                    taken.append(recording.id)
                    samples += recording.samples
                else:
                    known.append(recording.id)
                    notes += _fill_in(tx, recording)
            _keep_refusals(tx, refused, [str(item.path) for item, result in settled if isinstance(result, Converted)])
        self._taken += taken
        self._known += known
        self._notes += notes
        self._refused += refused
        self._samples += samples
        if self._progress:
            self._progress(
                IngestProgress(
                    done=len(self._taken) + len(self._known) + len(self._refused),
                    total=self._total,
                    taken=len(self._taken),
                    known=len(self._known),
                    refused=len(self._refused),
                    seconds_of_audio=self._samples / SAMPLE_RATE,
                )
            )

    def _stored(self, batch: Sequence[tuple[Item, Converted | Refusal]]) -> list[tuple[Item, Converted | Refusal]]:
        """The batch with its audio among the blobs; what could not be written there is refused."""
        ids = [result.id for _, result in batch if isinstance(result, Converted)]
        column = tables.recording.c.id
        with self._ws.read() as reader:
            there = set(reader.connection.execute(sa.select(column).where(column.in_(ids))).scalars())
        settled: list[tuple[Item, Converted | Refusal]] = []
        for item, result in batch:
            outcome = result
            if isinstance(result, Converted):
                try:
                    if result.id not in there:
                        self._ws.blobs.put(audio_key(result.id), result.wav)
                except BlobError as error:
                    message = f"{item.path} could not be stored: {error}"
                    outcome = Refusal(path=str(item.path), reason="not-stored", message=message)
                finally:
                    if isinstance(result.wav, Path):
                        result.wav.unlink(missing_ok=True)
            settled.append((item, outcome))
        return settled

    def report(self, elapsed: float) -> IngestReport:
        return IngestReport(
            taken=tuple(self._taken),
            known=tuple(self._known),
            refused=tuple(self._refused),
            notes=tuple(self._notes),
            seconds_of_audio=self._samples / SAMPLE_RATE,
            elapsed=elapsed,
        )


def _recording(item: Item, converted: Converted) -> Recording:
    return Recording(
        id=converted.id,
        source=str(item.path),
        name=item.path.name,
        samples=converted.samples,
        speaker=item.speaker,
        language=item.language,
        consent=item.consent,
        session=item.session,
        text=item.text,
        quality=converted.quality,
    )


def _fill_in(tx: Transaction, given: Recording) -> list[str]:
    """Give a known recording what it lacks; what it has is kept, and a difference is told."""
    kept = tx.get(Recording, given.id)
    missing: dict[str, str] = {}
    notes: list[str] = []
    for name in ("text", "speaker", "language", "session", "consent"):
        old, new = cast("str | None", getattr(kept, name)), cast("str | None", getattr(given, name))
        if new and old is None:
            missing[name] = new
        elif new and old != new:
            notes.append(f"{given.source}: the same audio is known with {name} {old!r}; {new!r} was not taken over")
    if missing:
        tx.change(Recording, given.id, **missing)
    return notes


def _keep_refusals(tx: Transaction, refused: Sequence[Refusal], accepted: Sequence[str]) -> None:
    table = tables.refusal
    paths = [refusal.path for refusal in refused]
    tx.connection.execute(sa.delete(table).where(table.c.path.in_([*paths, *accepted])))
    now = tx.now()
    for refusal in refused:
        row = {"path": refusal.path, "created": now, "reason": refusal.reason, "message": refusal.message}
        insert_new(tx.connection, table, [row])
        tx.emit(
            "recording.rejected",
            refusal.path,
            key=f"{refusal.path}:{refusal.reason}",
            payload={"reason": refusal.reason, "message": refusal.message},
        )
