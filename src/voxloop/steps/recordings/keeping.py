"""Store converted files: blobs first, then rows and events, many files per transaction."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import sqlalchemy as sa

from voxloop.errors import BlobError
from voxloop.records import SAMPLE_RATE, GivenSegment, Recording, seconds
from voxloop.steps.recordings import describing
from voxloop.steps.recordings.conversion import ConversionResult, Converted, Stamp, Waiting, audio_key
from voxloop.steps.recordings.sources import Item, Refusal, Said
from voxloop.stores import tables
from voxloop.stores.catalog import chunks, insert_new, to_record
from voxloop.stores.jobs import News

if TYPE_CHECKING:
    from voxloop.stores.catalog import Reader
    from voxloop.workspace import Transaction, Workspace

END_SLACK_S = 0.5  # a span may end this much after its audio: manifests round lengths, or use another decoder's
WHOLE_SLACK_S = 0.05  # a span that omits no more than this is the whole recording


@dataclass(frozen=True, kw_only=True, slots=True)
class Unchanged:
    """A file that has not changed since it was read: its recordings by channel (None: mixed)."""

    recordings: tuple[tuple[int | None, str], ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Read:
    """A file with its outcome."""

    item: Item
    outcome: ConversionResult | Unchanged
    stamp: Stamp | None = None  # from before it was read


@dataclass(frozen=True, kw_only=True, slots=True)
class Looked:
    """The result of looking up files without reading them."""

    known: tuple[str, ...]  # recordings of unchanged files without new metadata: nothing to do
    unchanged: tuple[Read, ...]  # with new metadata, or refused in the meantime
    to_read: tuple[Waiting, ...]


def look(reader: Reader, items: Sequence[Item], *, split: bool) -> Looked:
    """Separate unchanged files from those to read, by path, size and modification time.

    Most of a second run goes through here, so it makes one query and few objects.
    """
    placed = [(item, str(item.path.absolute()), None if item.refusal else stamp_of(item)) for item in items]
    stamps = {path: stamp for _, path, stamp in placed if stamp}
    fitting: dict[str, list[Any]] = {}  # rows
    file, recording = tables.source_file.c, tables.recording.c
    statement = sa.select(
        *(file.path, file.channel, file.size, file.mtime_ns, file.recording),
        *(recording.text, recording.speaker, recording.language, recording.session, recording.consent),
    ).join_from(tables.source_file, tables.recording)
    for paths in chunks(list(stamps)):
        for row in reader.connection.execute(statement.where(file.path.in_(paths))).all():
            now = stamps[row.path]
            # "mono": a file of one channel is the same recording either way.
            fits = row.channel == "mono" or (row.channel == "mix") != split
            if fits and now.size == row.size and now.mtime_ns == row.mtime_ns:
                fitting.setdefault(row.path, []).append(row)
    refused = _refused(reader, [str(item.path) for item, path, _ in placed if path in fitting])
    known: list[str] = []
    unchanged: list[Read] = []
    to_read: list[Waiting] = []
    for item, path, stamp in placed:
        rows = fitting.get(path) if stamp else None
        if not rows:
            to_read.append((item, stamp))
        elif str(item.path) not in refused and _says_nothing_new(item, rows):
            known.append(rows[0].recording)
        else:
            held = [(int(row.channel) if row.channel.isdigit() else None, row.recording) for row in rows]
            unchanged.append(Read(item=item, outcome=Unchanged(recordings=tuple(sorted(held, key=_by_channel)))))
    return Looked(known=tuple(known), unchanged=tuple(unchanged), to_read=tuple(to_read))


def _says_nothing_new(item: Item, rows: Sequence[sa.Row[Any]]) -> bool:
    """Whether `_Writing` would not change a recording of all channels, nor add a note."""
    if item.said or len(rows) > 1 or rows[0].channel.isdigit():
        return False
    (kept,) = rows
    return (
        (not item.text or item.text == kept.text)
        and (not item.speaker or item.speaker == kept.speaker)
        and (not item.language or item.language == kept.language)
        and (not item.session or item.session == kept.session)
        and (not item.consent or item.consent == kept.consent)
    )


def _refused(reader: Reader, paths: Sequence[str]) -> set[str]:
    """Return the paths that were refused the last time."""
    path = tables.refusal.c.path
    return {
        refused
        for part in chunks(paths)
        for refused in reader.connection.execute(sa.select(path).where(path.in_(part))).scalars()
    }


def stamp_of(item: Item) -> Stamp | None:
    """Return the file's stamp, or None if it cannot be accessed: reading it will report the error."""
    try:
        status = item.path.stat()
    except OSError:
        return None
    return Stamp(size=status.st_size, mtime_ns=status.st_mtime_ns)


def _by_channel(one: tuple[int | None, str]) -> int:
    return one[0] or 0


class Tally:
    """Commits batches and counts the outcomes."""

    def __init__(self, ws: Workspace, *, split: bool, told: Callable[[Tally], None] | None) -> None:
        self._ws = ws
        self._split = split
        self._told = told
        self.files = 0
        self.taken: list[str] = []
        self.known: list[str] = []
        self.refused: list[Refusal] = []
        self.notes: list[str] = []
        self.samples = 0

    @property
    def seconds_of_audio(self) -> float:
        """Of the new recordings."""
        return self.samples / SAMPLE_RATE

    def count_known(self, ids: Sequence[str]) -> None:
        """Count files that need no writing."""
        self.files += len(ids)
        self.known += ids
        if self._told:
            self._told(self)

    def commit(
        self,
        batch: Sequence[Read],
        *,
        last: bool = False,
        manifests: Sequence[Path] = (),
        also: Callable[[Transaction, set[str]], None] | None = None,
    ) -> None:
        """Write blobs first, then the rows and their events in one transaction.

        `also` writes more in the same transaction; it is given the ids of the new recordings.

        `manifests` were read completely: their lines that were refused before, but not this time, are now closed.
        """
        settled = [self._stored(read) for read in self._lacking(batch)]
        with self._ws.completion() if last else self._ws.transaction() as tx:
            writing = _Writing(tx, settled, split=self._split)
            writing.write()
            _close_lines(tx, manifests, {one.path for one in (*self.refused, *writing.refused)})
            if also:
                also(tx, set(writing.new))
        self.files += len(batch)
        self.taken += writing.new
        self.known += writing.known
        self.notes += writing.notes
        self.refused += writing.refused
        self.samples += sum(writing.there[id].samples for id in writing.new)
        if self._told:
            self._told(self)

    def _lacking(self, batch: Sequence[Read]) -> list[Read]:
        """Drop the audio that is already stored."""
        ids = [one.id for read in batch if isinstance(read.outcome, tuple) for one in read.outcome]
        with self._ws.read() as reader:
            there = set(_recordings(reader, ids))
        return [
            replace(read, outcome=tuple(_without_audio(one) if one.id in there else one for one in read.outcome))
            if isinstance(read.outcome, tuple)
            else read
            for read in batch
        ]

    def _stored(self, read: Read) -> Read:
        """Store a file's audio as blobs; refuse the file if that fails."""
        if not isinstance(read.outcome, tuple):
            return read
        try:
            for one in read.outcome:
                if one.wav:
                    self._ws.blobs.put(audio_key(one.id), one.wav)
        except BlobError as error:
            message = f"cannot store {read.item.path}: {error}"
            return replace(read, outcome=Refusal(path=str(read.item.path), reason="not-stored", message=message))
        finally:
            for one in read.outcome:
                _without_audio(one)
        return read


def _without_audio(one: Converted) -> Converted:
    if isinstance(one.wav, Path):
        one.wav.unlink(missing_ok=True)
    return replace(one, wav=b"")


class _Writing:
    """The rows of one batch."""

    def __init__(self, tx: Transaction, batch: Sequence[Read], *, split: bool) -> None:
        self._tx = tx
        self._batch = batch
        self._split = split
        ids = [id for read in batch for id in _ids(read)]
        self._before = _recordings(tx, ids, locked=True)
        self.there = dict(self._before)
        self._decided = describing.decided_on(tx, list(self._before))
        self._corrected: dict[str, set[str]] = {}  # fields by recording
        self.new: list[str] = []
        self.known: list[str] = []
        self.notes: list[str] = []
        self.refused: list[Refusal] = []

    def write(self) -> None:
        """Write new recordings, updates to known ones, their source files, and refusals."""
        sources: list[dict[str, Any]] = []
        accepted: list[str] = []
        for read in self._batch:
            if isinstance(read.outcome, Refusal):
                self.refused.append(read.outcome)
                continue
            accepted.append(str(read.item.path))
            self.notes += read.item.notes
            held = read.outcome.recordings if isinstance(read.outcome, Unchanged) else _channels(read.outcome)
            if not self._split and len({said.channel or 0 for said in read.item.said}) > 1:
                self.notes.append(
                    f"{read.item.path}: its metadata names channels, but the channels were mixed; use --channels split"
                )
            for index, (channel, id) in enumerate(held):
                found = read.outcome[index] if isinstance(read.outcome, tuple) else None
                self.notes += [f"{read.item.path}: {note}" for note in (found.notes if found else ())]
                self._take(read.item, id, channel, found)
            if isinstance(read.outcome, tuple) and read.stamp:
                sources += [_source_row(read, read.stamp, channel, id, split=self._split) for channel, id in held]
        self._tx.add(*(self.there[id] for id in self.new))
        new = [self.there[id] for id in self.new]
        told = [News(one.id, None, {"source": one.source}, seconds(one.samples)) for one in new]
        self._tx.emit_all("recording.ingested", told)
        self._describe()
        _remember(self._tx, sources)
        _keep_refusals(self._tx, self.refused, accepted)

    def _take(self, item: Item, id: str, channel: int | None, converted: Converted | None) -> None:
        kept = self.there.get(id)
        if kept is None and converted is None:
            return  # removed between lookup and write
        samples = converted.samples if converted else cast("Recording", kept).samples
        said, refused = _segments(item, channel, samples, split=self._split)
        self.refused += refused
        given = _recording(item, id, channel, samples, said, converted)
        if kept is None:
            self.there[id] = given
            self.new.append(id)
            self.notes += [f"{item.path}: {note}" for note in describing.odd_texts(given)]
            if given.text and given.quality and given.quality.soundless:
                self.notes.append(
                    f"{item.path}: the audio is digital silence or a constant level, so datasets exclude its text "
                    f"{describing.shown(given.text)}"
                )
            return
        self.known.append(id)
        description = describing.described(kept, given, decided=id in self._decided)
        self.there[id] = description.recording
        self._corrected.setdefault(id, set()).update(description.corrected)
        self.notes += description.notes

    def _describe(self) -> None:
        """Write updates to known recordings; a new text triggers the step that assigns it to utterances."""
        news = []
        for id, before in self._before.items():
            if self.there[id] != before:
                corrected = {
                    field: (getattr(before, field), getattr(self.there[id], field))
                    for field in self._corrected.get(id, ())
                }
                news += describing.write(
                    self._tx, before, describing.Description(recording=self.there[id], corrected=corrected)
                )
        self._tx.emit_all("recording.described", news)


def _channels(outcome: Sequence[Converted]) -> tuple[tuple[int | None, str], ...]:
    return tuple((one.channel, one.id) for one in outcome)


def _ids(read: Read) -> list[str]:
    if isinstance(read.outcome, Refusal):
        return []
    held = read.outcome.recordings if isinstance(read.outcome, Unchanged) else _channels(read.outcome)
    return [id for _, id in held]


def _recordings(reader: Reader, ids: Sequence[str], *, locked: bool = False) -> dict[str, Recording]:
    """Return the existing recordings by id; `locked` prevents other updates until the transaction ends."""
    table = tables.recording
    found: dict[str, Recording] = {}
    for part in chunks(sorted(set(ids))):
        statement = sa.select(table).where(table.c.id.in_(part)).order_by(table.c.id)
        for row in reader.connection.execute(statement.with_for_update(key_share=True) if locked else statement):
            found[row.id] = to_record(Recording, row)
    return found


def _recording(
    item: Item,
    id: str,
    channel: int | None,
    samples: int,
    said: Sequence[tuple[Said, GivenSegment]],
    converted: Converted | None,
) -> Recording:
    speaker, text, language = item.speaker, item.text, item.language
    if channel is not None:
        named = {one.speaker for one, _ in said if one.speaker}
        # Each channel has another speaker: a common name would be wrong for all but one.
        speaker = named.pop() if len(named) == 1 else f"{speaker}#{channel}" if speaker else None
        text = None if item.text and not said else text  # the text covers all channels: who said what is unknown
    segments = tuple(segment for _, segment in said)
    if len(segments) == 1 and text is None:
        (only,) = segments
        slack = int(WHOLE_SLACK_S * SAMPLE_RATE)
        if only.start <= slack and samples - only.end <= slack:
            text, speaker, language = only.text, only.speaker or speaker, only.language or language
            segments = () if text else segments
    return Recording(
        id=id,
        source=str(item.path),
        name=item.path.name if channel is None else f"{item.path.name}#{channel}",
        samples=samples,
        speaker=speaker,
        language=language,
        consent=item.consent,
        session=item.session or (str(item.path) if channel is not None else None),
        text=text,
        segments=segments,
        quality=converted.quality if converted else None,
        encoding=converted.encoding if converted else None,
    )


def _segments(
    item: Item, channel: int | None, samples: int, *, split: bool
) -> tuple[list[tuple[Said, GivenSegment]], list[Refusal]]:
    """Return the spans of a recording in samples, and refusals of lines whose span lies outside it."""
    found: dict[tuple[int, int], tuple[Said, GivenSegment]] = {}
    refused: list[Refusal] = []

    def refuse(said: Said, reason: str, why: str) -> None:
        refused.append(Refusal(path=said.where, reason=reason, message=f"{said.where}: {why}"))

    for said in sorted(item.said, key=lambda one: one.start):
        if channel is not None and (said.channel or 0) != channel:
            continue
        start = round(said.start * SAMPLE_RATE)
        end = samples if said.end is None else round(said.end * SAMPLE_RATE)
        if start >= samples or end > samples + END_SLACK_S * SAMPLE_RATE:
            until = "the end" if said.end is None else f"{said.end:g} s"
            why = (
                f"the span from {said.start:g} s to {until} exceeds {item.path}, which lasts "
                f"{samples / SAMPLE_RATE:.2f} s"
            )
            refuse(said, "bad-span", why)
            continue
        end = min(end, samples)
        if end <= start:
            until = f"{end / SAMPLE_RATE:g} s"
            refuse(said, "bad-span", f"the span from {said.start:g} s to {until} contains no samples")
            continue
        segment = GivenSegment(start=start, end=end, text=said.text, speaker=said.speaker, language=said.language)
        first = found.setdefault((start, end), (said, segment))
        if first[1].text != said.text:
            refuse(said, "contradiction", f"{first[0].where} has another text for the same span; that text is used")
    return list(found.values()), refused


def _source_row(read: Read, stamp: Stamp, channel: int | None, id: str, *, split: bool) -> dict[str, Any]:
    return {
        "path": str(read.item.path.absolute()),
        "channel": str(channel) if channel is not None else "mono" if split else "mix",
        "size": stamp.size,
        "mtime_ns": stamp.mtime_ns,
        "recording": id,
    }


def _remember(tx: Transaction, rows: Sequence[dict[str, Any]]) -> None:
    """Replace the stored contents of these source files."""
    table = tables.source_file
    for paths in chunks(sorted({row["path"] for row in rows})):
        tx.connection.execute(sa.delete(table).where(table.c.path.in_(paths)))
    insert_new(tx.connection, table, rows)


def move_source(tx: Transaction, before: Path, after: Path) -> None:
    """Note that a file which was ingested lies elsewhere now, where it is found again and need not be read again."""
    file, recording = tables.source_file, tables.recording
    old, new = str(before.absolute()), str(after.absolute())
    if tx.connection.execute(sa.select(file.c.path).where(file.c.path == old).limit(1)).first() is None:
        return
    ids = sa.select(file.c.recording).where(file.c.path == old)
    moved = sa.update(recording).where(recording.c.id.in_(ids), recording.c.source == str(before))
    tx.connection.execute(moved.values(source=str(after)))
    tx.connection.execute(sa.delete(file).where(file.c.path == new))
    tx.connection.execute(sa.update(file).where(file.c.path == old).values(path=new))


def _close_lines(tx: Transaction, manifests: Sequence[Path], refused: set[str]) -> None:
    path = tables.refusal.c.path
    for manifest in {name for one in manifests for name in _names(str(one))}:
        lines = path.startswith(f"{manifest}:", autoescape=True)
        earlier = set(tx.connection.execute(sa.select(path).where(lines)).scalars())
        for paths in chunks(sorted(earlier - refused)):
            tx.connection.execute(sa.delete(tables.refusal).where(path.in_(paths)))


def _names(path: str) -> set[str]:
    """Return the names under which a file may have been refused."""
    return {path, os.path.abspath(path), os.path.relpath(path)}  # noqa: PTH100


def _keep_refusals(tx: Transaction, refused: Sequence[Refusal], accepted: Iterable[str]) -> None:
    """Replace earlier refusals of the same files and lines; close those of accepted files."""
    table = tables.refusal
    latest = {refusal.path: refusal for refusal in refused}
    closed = {name for path in accepted for name in _names(path)}
    for paths in chunks(sorted({*latest, *closed})):
        tx.connection.execute(sa.delete(table).where(table.c.path.in_(paths)))
    now = tx.now() if latest else 0.0
    rows = [
        {"path": refusal.path, "created": now, "reason": refusal.reason, "message": refusal.message}
        for refusal in latest.values()
    ]
    insert_new(tx.connection, table, rows)
    tx.emit_all(
        "recording.rejected",
        [
            News(one.path, f"{one.path}:{one.reason}", {"reason": one.reason, "message": one.message})
            for one in latest.values()
        ],
    )
