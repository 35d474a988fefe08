"""Ingest: audio files, folders and their metadata become Recordings, each stored once under the hash of its samples.

A file is measured and then taken, known (the same samples are there already) or
refused with its reason; one bad file never ends a batch. The blob is written
first and the row after it, so a row without audio cannot be.
"""

from __future__ import annotations

import hashlib
import json
import os
import signal
import tempfile
import time
import unicodedata
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import sqlalchemy as sa

from voxloop import audio
from voxloop.errors import AudioError, BlobError, UsageError
from voxloop.records import SAMPLE_RATE, Quality, Recording
from voxloop.stores import catalog as tables
from voxloop.stores.catalog import insert_new

if TYPE_CHECKING:
    from voxloop.audio import Waveform
    from voxloop.workspace import Transaction, Workspace

METADATA = "metadata.jsonl"
AUDIO_SUFFIXES = frozenset(
    [
        ".wav",
        ".flac",
        ".ogg",
        ".oga",
        ".opus",
        ".mp3",
        ".m4a",
        ".mp4",
        ".aac",
        ".aif",
        ".aiff",
        ".aifc",
        ".au",
        ".snd",
        ".caf",
        ".sph",
        ".nist",
        ".w64",
        ".rf64",
        ".wma",
        ".webm",
        ".mkv",
        ".mka",
        ".mov",
        ".amr",
        ".3gp",
        ".3g2",
        ".ac3",
        ".ape",
        ".wv",
        ".tta",
        ".gsm",
        ".ts",
        ".mpg",
        ".mpeg",
        ".avi",
        ".flv",
        ".voc",
        ".mp2",
        ".m4b",
    ]
)
FILE_KEYS = ("file", "file_name", "audio_path", "audio_filepath")
TEXT_KEYS = ("text", "sentence", "transcription", "transcript")
MAX_TEXT_BYTES = 1 << 20  # a sidecar text beyond it is no transcript
BATCH = 64  # files whose rows are committed together
CHUNK = 8  # files handed to a worker process at once
SPOOL_SAMPLES = 600 * SAMPLE_RATE  # longer audio goes through a file on the disk instead of memory


@dataclass(frozen=True, kw_only=True, slots=True)
class Refusal:
    """A file that was not taken, and why."""

    path: str
    reason: str  # a short stable word
    message: str


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


@dataclass(frozen=True, kw_only=True, slots=True)
class _Item:
    """A file to take, with what is said of it."""

    path: Path
    text: str | None = None
    speaker: str | None = None
    language: str | None = None
    session: str | None = None
    consent: str | None = None
    refusal: Refusal | None = None  # decided before the file was opened


@dataclass(frozen=True, kw_only=True, slots=True)
class _Converted:
    """A file's audio in the stored form."""

    id: str
    samples: int
    quality: Quality
    wav: bytes | Path  # Path: a spooled file


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

    A folder's `metadata.jsonl` (or `metadata`) says by line what each file holds:
    `file`, `file_name`, `audio_path` or `audio_filepath`, and `text`, `speaker`,
    `language`, `session`, `consent`; a file that no line names is taken with the
    text of the `.txt` beside it, if there is one. `speaker`, `language`, `session`
    and `consent` stand for what a line leaves open. `speakers` takes only the lines
    of these speakers. `processes` None is as many as there are cores. Other files
    of a folder are left alone. Raises UsageError where the source does not exist.
    """
    began = time.monotonic()
    sources = [source] if isinstance(source, (str, Path)) else list(source)
    given = _Item(path=Path(), speaker=speaker, language=_language(language), session=session, consent=consent)
    items = list(_items([Path(one) for one in sources], metadata, given, speakers))[:limit]
    tally = _Tally(ws, len(items), progress)
    batch: list[tuple[_Item, _Converted | Refusal]] = []
    with _spool(ws) as spool:
        max_seconds = ws.settings.max_recording_hours * 3600
        for item, result in _convert_all(items, spool, max_seconds, ws.settings.max_file_mb << 20, processes):
            batch.append((item, result))
            if len(batch) == BATCH or (isinstance(result, _Converted) and isinstance(result.wav, Path)):
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


# What there is to take


def _items(
    sources: Sequence[Path], metadata: Path | None, given: _Item, speakers: Sequence[str] | None
) -> Iterator[_Item]:
    seen: set[Path] = set()
    if metadata is not None:
        if not metadata.is_file():
            raise UsageError(f"there is no metadata file {metadata}")
        base = sources[0] if len(sources) == 1 and sources[0].is_dir() else metadata.parent
        for item in _from_metadata(metadata, base, given, speakers):
            if item.path not in seen:
                seen.add(item.path)
                yield item
    for source in sources:
        if source.is_dir():
            found = _in_folder(source, given, speakers, lines=metadata is None, bare=metadata is None and not speakers)
        elif source.exists() or len(sources) > 1:
            found = iter([_bare(source, given)] if not speakers else [])
        else:
            raise UsageError(f"there is nothing at {source}: give audio files or folders of them")
        for item in found:
            if item.path not in seen:
                seen.add(item.path)
                yield item


def _in_folder(
    folder: Path, given: _Item, speakers: Sequence[str] | None, *, lines: bool, bare: bool
) -> Iterator[_Item]:
    """The files that the folder's metadata names, then the audio files that it does not; sub-folders likewise."""
    refused: list[_Item] = []

    def unreadable(error: OSError) -> None:
        message = f"the folder {error.filename} cannot be read: {error.strerror}"
        path = Path(error.filename)
        refused.append(_Item(path=path, refusal=Refusal(path=str(path), reason="unreadable", message=message)))

    for root, folders, names in os.walk(folder, onerror=unreadable):
        folders.sort()
        here = Path(root)
        named: set[Path] = set()
        if lines and METADATA in names:
            for item in _from_metadata(here / METADATA, here, given, None):
                named.add(item.path)
                if not speakers or item.speaker in speakers or item.refusal:
                    yield item
        if bare:
            for name in sorted(names):
                path = here / name
                if path.suffix.lower() in AUDIO_SUFFIXES and path not in named:
                    yield _bare(path, given)
    yield from refused


def _from_metadata(file: Path, base: Path, given: _Item, speakers: Sequence[str] | None) -> Iterator[_Item]:
    """The lines of a `metadata.jsonl`; paths in it are relative to `base`."""

    def bad(number: int, message: str) -> _Item:
        path = f"{file}:{number}"
        return _Item(path=Path(path), refusal=Refusal(path=path, reason="bad-metadata", message=f"{path}: {message}"))

    with file.open("rb") as stream:
        for number, line in enumerate(stream, 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line.decode("utf-8-sig"))
            except ValueError as error:
                yield bad(number, f"the line is no JSON in UTF-8: {error}")
                continue
            if not isinstance(row, dict):
                yield bad(number, "the line is no JSON object")
                continue
            name = next((row[key] for key in FILE_KEYS if row.get(key)), None)
            if not isinstance(name, str) or "\0" in name:
                yield bad(number, f"the line names no file; needed is one of {', '.join(FILE_KEYS)}")
                continue
            item = replace(
                given,
                path=Path(os.path.normpath(base / name)),
                text=_text(next((row[key] for key in TEXT_KEYS if row.get(key)), None)),
                speaker=_name(row.get("speaker")) or given.speaker,
                language=_language(_name(row.get("language"))) or given.language,
                session=_name(row.get("session")) or given.session,
                consent=_name(row.get("consent")) or given.consent,
            )
            if not speakers or item.speaker in speakers:
                yield item


def _bare(path: Path, given: _Item) -> _Item:
    """A file that no metadata names, with the text beside it."""
    beside = path.with_suffix(".txt")
    try:
        if not beside.is_file() or beside == path:
            return replace(given, path=path)
        if beside.stat().st_size > MAX_TEXT_BYTES:
            raise ValueError(f"it has more than {MAX_TEXT_BYTES:,} bytes")
        return replace(given, path=path, text=_text(beside.read_bytes().decode("utf-8-sig")))
    except (OSError, ValueError) as error:
        message = f"the text {beside} beside {path.name} cannot be read as UTF-8: {error}; mend or remove it"
        return _Item(path=path, refusal=Refusal(path=str(path), reason="bad-text", message=message))


def _name(value: Any) -> str | None:
    """A speaker, session, language or consent as given; what says that it is not known is None."""
    if value is None or isinstance(value, (dict, list)):
        return None
    text = unicodedata.normalize("NFC", str(value)).strip()
    return None if text.lower() in ("", "unknown", "none", "null", "n/a") else text


def _text(value: Any) -> str | None:
    text = unicodedata.normalize("NFC", value).strip() if isinstance(value, str) else ""
    return " ".join(text.split()) or None


def _language(value: str | None) -> str | None:
    """`en-GB`, `EN` and `en_US` as `en`."""
    return value.strip().lower().replace("_", "-").split("-")[0] or None if value else None


# From a file to the stored form


@contextmanager
def _spool(ws: Workspace) -> Iterator[Path]:
    """A folder beside the blobs for audio too long to hold in memory; gone afterwards."""
    parent = ws.folder / "spool"
    parent.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=parent, prefix="ingest-") as folder:
        yield Path(folder)


def _convert(path: Path, spool: Path, max_seconds: float, max_bytes: int) -> _Converted | Refusal:
    """Decode, measure and encode one file. Runs in a worker process; never raises for a file's sake."""
    digest = hashlib.sha256()
    meter = audio.Meter()
    parts: list[bytes] = []
    spooled: Path | None = None
    samples = 0
    try:
        for block in audio.stream(path, max_seconds=max_seconds, max_bytes=max_bytes):
            pcm = audio.to_pcm16(block)
            digest.update(pcm)
            meter.add(audio.from_pcm16(pcm))  # what is stored is measured, so that it can be measured again
            samples += len(block)
            parts.append(pcm)
            if samples > SPOOL_SAMPLES:
                if spooled is None:
                    handle, name = tempfile.mkstemp(dir=spool, suffix=".wav")
                    os.close(handle)
                    spooled = Path(name)
                    spooled.write_bytes(audio.wav_header(0))
                with spooled.open("ab") as file:
                    file.writelines(parts)
                parts = []
        wav: bytes | Path
        if spooled is None:
            wav = audio.wav_bytes(b"".join(parts))
        else:
            with spooled.open("r+b") as file:
                file.write(audio.wav_header(samples * audio.SAMPLE_BYTES))
            wav = spooled
    except AudioError as error:
        if spooled is not None:
            spooled.unlink(missing_ok=True)
        return Refusal(path=str(path), reason=error.reason, message=str(error))
    except OSError as error:
        if spooled is not None:
            spooled.unlink(missing_ok=True)
        return Refusal(path=str(path), reason="unreadable", message=f"{path} could not be converted: {error}")
    return _Converted(id=f"sha256-{digest.hexdigest()}", samples=samples, quality=meter.quality(), wav=wav)


def _convert_chunk(
    paths: Sequence[Path], spool: Path, max_seconds: float, max_bytes: int
) -> list[_Converted | Refusal]:
    return [_convert(path, spool, max_seconds, max_bytes) for path in paths]


def _convert_all(
    items: Sequence[_Item], spool: Path, max_seconds: float, max_bytes: int, processes: int | None
) -> Iterator[tuple[_Item, _Converted | Refusal]]:
    """Every item with its audio or its refusal, in the order given; a few chunks are ahead at any time."""
    wanted = processes or os.cpu_count() or 1
    if processes is None and len(items) < 100:
        wanted = 1  # starting processes takes longer than the work
    if wanted == 1:
        for item in items:
            yield item, item.refusal or _convert(item.path, spool, max_seconds, max_bytes)
        return
    import multiprocessing

    chunks = deque(items[start : start + CHUNK] for start in range(0, len(items), CHUNK))
    ahead: deque[tuple[Sequence[_Item], Future[list[_Converted | Refusal]]]] = deque()
    pool = ProcessPoolExecutor(wanted, mp_context=multiprocessing.get_context("spawn"), initializer=_quiet)
    try:
        while chunks or ahead:
            while chunks and len(ahead) < 3 * wanted:
                chunk = chunks.popleft()
                paths = [item.path for item in chunk if not item.refusal]
                ahead.append((chunk, pool.submit(_convert_chunk, paths, spool, max_seconds, max_bytes)))
            chunk, future = ahead.popleft()
            results = iter(future.result())
            for item in chunk:
                yield item, item.refusal or next(results)
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _quiet() -> None:
    """Ctrl-C is the parent's to handle: it stops the workers."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


# Into the workspace


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

    def commit(self, batch: Sequence[tuple[_Item, _Converted | Refusal]], *, last: bool = False) -> None:
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
            _keep_refusals(tx, refused, [str(item.path) for item, result in settled if isinstance(result, _Converted)])
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

    def _stored(self, batch: Sequence[tuple[_Item, _Converted | Refusal]]) -> list[tuple[_Item, _Converted | Refusal]]:
        """The batch with its audio among the blobs; what could not be written there is refused."""
        ids = [result.id for _, result in batch if isinstance(result, _Converted)]
        column = tables.recording.c.id
        with self._ws.read() as reader:
            there = set(reader.connection.execute(sa.select(column).where(column.in_(ids))).scalars())
        settled: list[tuple[_Item, _Converted | Refusal]] = []
        for item, result in batch:
            outcome = result
            if isinstance(result, _Converted):
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


def _recording(item: _Item, converted: _Converted) -> Recording:
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
    for path in [*paths, *accepted]:
        tx.connection.execute(sa.delete(table).where(table.c.path == path))
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
