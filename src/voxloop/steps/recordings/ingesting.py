"""Ingest: turn audio files, folders and metadata into Recordings, stored once under the hash of their samples.

A file is measured and then taken, known (the workspace already has the same samples)
or refused with a reason; a bad file never aborts a batch. The blob is written
before the row, so a row always has its audio.
"""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from voxloop.errors import UsageError
from voxloop.records import Recording
from voxloop.speech import audio
from voxloop.speech.languages import language_code
from voxloop.steps.recordings.conversion import Bounds, audio_key, convert_all, spool_folder
from voxloop.steps.recordings.sources import Item, Refusal, find_items

if TYPE_CHECKING:
    from voxloop.speech.audio import Waveform
    from voxloop.steps.recordings.conversion import Waiting
    from voxloop.steps.recordings.keeping import Tally
    from voxloop.workspace import Workspace

LOOK = 2000  # files looked up at a time among those read before
BATCH = 64  # files committed together
BATCH_BYTES = 256 << 20  # of audio, in memory or in the spool, committed together


@dataclass(frozen=True, kw_only=True, slots=True)
class IngestReport:
    """The outcome for every file."""

    taken: tuple[str, ...] = ()  # ids of new recordings
    known: tuple[str, ...] = ()  # ids of recordings that already existed, one for each file
    refused: tuple[Refusal, ...] = ()
    notes: tuple[str, ...] = ()  # problems, and metadata that was changed or ignored
    seconds_of_audio: float = 0.0  # of the new recordings
    elapsed: float = 0.0  # seconds

    @property
    def reasons(self) -> dict[str, int]:
        """Number of refused files by reason, most frequent first."""
        return dict(Counter(refusal.reason for refusal in self.refused).most_common())

    def as_dict(self) -> dict[str, Any]:
        """Return the counts, then ids, refusals and notes."""
        return {
            "taken": len(self.taken),
            "known": len(self.known),
            "refused": len(self.refused),
            "hours": self.seconds_of_audio / 3600,
            "elapsed_s": self.elapsed,
            "recordings": self.taken,
            "refusals": self.refused,
            "notes": self.notes,
        }


@dataclass(frozen=True, kw_only=True, slots=True)
class IngestProgress:
    """Progress of an ingest."""

    done: int  # files
    total: int
    taken: int
    known: int
    refused: int
    seconds_of_audio: float


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
    channels: str | None = None,
    track: int | None = None,
    processes: int | None = None,
    limit: int | None = None,
    select: Callable[[Item], Item | None] | None = None,
    progress: Callable[[IngestProgress], None] | None = None,
) -> IngestReport:
    """Add audio files and folders to the workspace.

    Transcripts come from `metadata` or from a manifest in the folder: `metadata.jsonl`
    or `.csv`, any JSONL or CSV with one of `file`, `file_name`, `audio_path`,
    `audio_filepath`, `path` (such as NeMo's), Kaldi's `wav.scp`, Lhotse's recordings or cuts,
    Common Voice's TSV, or LibriSpeech's `*.trans.txt`; `docs/importing.md` lists them all. A
    line with `start` and `end` (seconds) describes that span. A file that no line names gets the
    text of the `.txt` file next to it, if there is one.

    `speaker`, `language`, `session` and `consent` apply to lines that lack them.
    `speakers` selects only lines of these speakers. `track` is the audio track to read from files with several,
    counted from 0; None: the default one. `channels` is `mix` or `split` (each
    channel becomes a recording); None: the setting. `processes` None means one per
    core if the work is worth it. `select` may complete each file's metadata, or leave the file out
    (None). A file with unchanged size and modification time
    is not read again. Raises UsageError if the source does not exist.
    """
    # Imported here: every decoding process imports this package, and needs no database.
    from voxloop.steps.recordings.keeping import Read, Tally, look

    began = time.monotonic()
    channels = channels or ws.settings.channels
    if channels not in ("mix", "split"):
        raise UsageError(f"channels is {channels!r}: set it to mix or split")
    split = channels == "split"
    sources = [source] if isinstance(source, (str, Path)) else list(source)
    given = Item(path=Path(), speaker=speaker, language=language_code(language), session=session, consent=consent)
    manifests: list[Path] = []
    found = find_items([Path(one) for one in sources], metadata, given, speakers, manifests)
    chosen = found if select is None else (one for one in map(select, found) if one is not None)
    items = deque(islice(chosen, limit))
    total = len(items)

    def tell(tally: Tally) -> None:
        if progress:
            progress(
                IngestProgress(
                    done=tally.files,
                    total=total,
                    taken=len(tally.taken),
                    known=len(tally.known),
                    refused=len(tally.refused),
                    seconds_of_audio=tally.seconds_of_audio,
                )
            )

    tally = Tally(ws, split=split, told=tell)
    to_read: deque[Waiting] = deque()
    while items:
        with ws.read() as reader:
            looked = look(reader, [items.popleft() for _ in range(min(LOOK, len(items)))], split=split)
        if looked.known:
            tally.count_known(looked.known)
        for first in range(0, len(looked.unchanged), BATCH):
            tally.commit(looked.unchanged[first : first + BATCH])
        to_read += looked.to_read
    bounds = Bounds(
        max_seconds=ws.settings.max_recording_hours * 3600,
        max_bytes=ws.settings.max_file_mb << 20,
        split=split,
        track=track,
    )
    batch: list[Read] = []
    held = 0
    with spool_folder(ws.folder) as spool:
        for item, stamp, outcome in convert_all(to_read, spool, bounds, processes):
            batch.append(Read(item=item, outcome=outcome, stamp=stamp))
            held += sum(one.held for one in outcome) if isinstance(outcome, tuple) else 0
            if len(batch) == BATCH or held > BATCH_BYTES:
                tally.commit(batch)
                batch, held = [], 0
        tally.commit(batch, last=True, manifests=manifests if limit is None and select is None else ())
    return IngestReport(
        taken=tuple(tally.taken),
        known=tuple(tally.known),
        refused=tuple(tally.refused),
        notes=tuple(tally.notes),
        seconds_of_audio=tally.seconds_of_audio,
        elapsed=time.monotonic() - began,
    )


def read_audio(ws: Workspace, recording_id: str, start: int | None = None, end: int | None = None) -> Waveform:
    """Read samples `start` to `end` (exclusive) of a recording, or all of it, as (S,) float32. Raises BlobError."""
    if start is None and end is None:
        return audio.from_pcm16(ws.blobs.get(audio_key(recording_id))[audio.WAV_HEADER_BYTES :])
    first = start or 0
    if end is None:
        with ws.read() as reader:
            end = reader.get(Recording, recording_id).samples
    if first < 0 or end < first:
        raise UsageError(f"cannot read samples {first} to {end} of {recording_id}: the end must be after the start")
    if first == end:
        return audio.from_pcm16(b"")
    head = audio.WAV_HEADER_BYTES
    data = ws.blobs.get(audio_key(recording_id), head + audio.SAMPLE_BYTES * first, head + audio.SAMPLE_BYTES * end)
    return audio.from_pcm16(data)
