"""Import what the S2S application collected: the table `s2s_training_data` of its SQLite database.

Its columns are `transcript`, `audio_blob` (zlib-compressed int16 samples at 16 kHz), `is_reviewed`, `is_trained` and
`timestamp` (UTC). A reviewed text becomes a reference; any other is one to review. What a model was trained on before
never enters a test split. Importing again takes what is new; an interrupted import goes on.
"""

from __future__ import annotations

import sqlite3
import zlib
from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from voxloop.errors import UsageError
from voxloop.records import SAMPLE_RATE
from voxloop.speech.audio import SAMPLE_BYTES, from_pcm16
from voxloop.steps import captures
from voxloop.steps.recordings.conversion import of_waveform
from voxloop.steps.recordings.keeping import Read, Tally
from voxloop.steps.recordings.sources import Item, Refusal
from voxloop.stores import tables

if TYPE_CHECKING:
    from voxloop.records import Progress
    from voxloop.workspace import Workspace

TABLE = "s2s_training_data"
BY = "s2s"  # the author of its texts
COLUMNS = ("id", "transcript", "audio_blob", "is_reviewed", "is_trained", "timestamp")
AT_ONCE = 200  # ids looked up together


@dataclass(frozen=True, kw_only=True, slots=True)
class Imported:
    """What became of the rows."""

    taken: int
    known: int  # imported before, or audio that was there already
    refused: tuple[Refusal, ...]  # each names its row


def import_s2s(
    ws: Workspace,
    file: Path,
    *,
    speaker: str | None = None,
    language: str | None = None,
    progress: Progress | None = None,
) -> Imported:
    """Import a database row by row. Raises UsageError if it is none, or lacks the table."""
    file = file.absolute()
    taken = known = done = 0
    refused: list[Refusal] = []
    with closing(_opened(file)) as database:
        total = int(database.execute(f"SELECT count(*) FROM {TABLE}").fetchone()[0])
        for ids in _ids(database):
            before = _imported(ws, file, ids)
            _note_trained(ws, database, before)
            for id in ids:
                done += 1
                if id in before:
                    known += 1
                else:
                    outcome = _row(ws, database, file, id, speaker=speaker, language=language)
                    if isinstance(outcome, Refusal):
                        refused.append(outcome)
                    else:
                        taken += outcome
                        known += not outcome
                if progress:
                    progress(done, total)
    return Imported(taken=taken, known=known, refused=tuple(refused))


def _opened(file: Path) -> sqlite3.Connection:
    if not file.is_file():
        raise UsageError(f"no such file: {file}")
    database = sqlite3.connect(f"{file.as_uri()}?mode=ro", uri=True)
    database.text_factory = lambda raw: raw.decode("utf-8", "replace")
    try:
        found = {row[1] for row in database.execute(f"PRAGMA table_info({TABLE})")}
    except sqlite3.DatabaseError as error:
        database.close()
        raise UsageError(f"{file} is no SQLite database that can be read: {error}") from error
    if lacking := [column for column in COLUMNS if column not in found]:
        database.close()
        what = f"lacks {', '.join(lacking)}" if found else "does not exist"
        raise UsageError(f"{file} is no database of the S2S application: its table {TABLE} {what}")
    return database


def _ids(database: sqlite3.Connection) -> Iterator[list[int]]:
    last = None
    while True:
        after = "" if last is None else "WHERE id > ?"
        query = f"SELECT id FROM {TABLE} {after} ORDER BY id LIMIT {AT_ONCE}"
        found = [row[0] for row in database.execute(query, () if last is None else (last,))]
        if not found:
            return
        yield found
        last = found[-1]


def _place(file: Path, id: int) -> Path:
    return file.with_name(f"{file.name}#{id}")


def _imported(ws: Workspace, file: Path, ids: list[int]) -> dict[int, str]:
    """The rows that were imported before, with their recordings."""
    recording = tables.recording.c
    places = {str(_place(file, id)): id for id in ids}
    with ws.read() as reader:
        query = sa.select(recording.source, recording.id).where(recording.source.in_(list(places)))
        return {places[source]: id for source, id in reader.connection.execute(query)}


def _note_trained(ws: Workspace, database: sqlite3.Connection, imported: Mapping[int, str]) -> None:
    """Note what a model has been trained on since the import, or what an earlier release did not note."""
    marks = ", ".join("?" * len(imported))
    query = f"SELECT id FROM {TABLE} WHERE is_trained AND id IN ({marks})"
    trained = [imported[row[0]] for row in database.execute(query, list(imported))]
    if trained:
        with ws.transaction() as tx:
            captures.note_trained(tx, trained)


def _row(
    ws: Workspace, database: sqlite3.Connection, file: Path, id: int, *, speaker: str | None, language: str | None
) -> Refusal | bool:
    """Import a row. Return whether its audio is new, or why it is refused."""
    place = _place(file, id)
    try:
        row: tuple[Any, ...] = database.execute(
            f"SELECT transcript, audio_blob, is_reviewed, is_trained, timestamp FROM {TABLE} WHERE id = ?", (id,)
        ).fetchone()
        transcript, blob, reviewed, trained, timestamp = row
        pcm = _pcm(blob, round(ws.settings.max_recording_hours * 3600 * SAMPLE_RATE))
    except (ValueError, zlib.error, sqlite3.DatabaseError) as error:
        message = f"row {id} of {file}: {error}"
        refusal = Refusal(path=str(place), reason="bad-row", message=message)
        Tally(ws, split=False, told=None).commit([Read(item=Item(path=place), outcome=refusal)], last=True)
        return refusal
    words = str(transcript or "").replace("\0", "").strip()
    kept = captures.keep(
        ws,
        of_waveform(from_pcm16(pcm)),
        place=place,
        speaker=speaker,
        language=language,
        text=captures.Text(text=words, by=BY, reviewed=bool(reviewed)) if words else None,
        created=_time(timestamp),
        trained=bool(trained),
    )
    return kept.new


def _pcm(blob: object, most: int) -> bytes:
    """The samples of a row, at most `most`. Raises ValueError and zlib.error."""
    if not isinstance(blob, bytes) or not blob:
        raise ValueError("it has no audio")
    unpacking = zlib.decompressobj()
    pcm = unpacking.decompress(blob, most * SAMPLE_BYTES + 1)  # a small blob may swell to gigabytes
    if len(pcm) > most * SAMPLE_BYTES:
        raise ValueError("its audio is longer than max_recording_hours allows")
    if not unpacking.eof:
        raise ValueError("its audio is cut off")
    if not pcm or len(pcm) % SAMPLE_BYTES:
        raise ValueError(f"its audio has {len(pcm):,} bytes, which are no int16 samples")
    return pcm


def _time(timestamp: object) -> float:
    """Seconds since the epoch; 0 where the row has no time that can be read."""
    try:
        when = datetime.fromisoformat(str(timestamp))
    except ValueError:
        return 0.0
    return max(0.0, (when if when.tzinfo else when.replace(tzinfo=UTC)).timestamp())
