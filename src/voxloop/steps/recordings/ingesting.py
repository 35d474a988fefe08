"""Ingest: audio files, folders and their metadata become Recordings, each stored once under the hash of its samples.

A file is measured and then taken, known (the same samples are there already) or
refused with its reason; one bad file never ends a batch. The blob is written
first and the row after it, so a row without audio cannot be.
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

LOOK = 2000  # files looked for at once among those that were read before
BATCH = 64  # files whose rows are committed together
BATCH_BYTES = 256 << 20  # of audio waiting in memory or in the spool to be committed together


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

    def as_dict(self) -> dict[str, Any]:
        """Counts first, then ids, refusals and notes."""
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
    """How far a batch has come."""

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
    progress: Callable[[IngestProgress], None] | None = None,
) -> IngestReport:
    """Take audio files and folders into the workspace.

    What was spoken is read from `metadata` or from what lies in a folder: `metadata.jsonl`
    or `.csv`, any JSONL or CSV with one of `file`, `file_name`, `audio_path`,
    `audio_filepath`, `path` (NeMo's among them), Kaldi's `wav.scp`, Lhotse's recordings or cuts,
    Common Voice's TSV, LibriSpeech's `*.trans.txt`; `docs/importing.md` has them all. A
    line with `start` and `end` (seconds) is about that span. A file that no line names is
    taken with the text of the `.txt` beside it, if there is one.

    `speaker`, `language`, `session` and `consent` stand for what a line leaves open.
    `speakers` takes only the lines of these speakers. `track` is the audio track to take of files that have several,
    counted from 0; None: the default one. `channels` is `mix` or `split` (each
    channel a recording of its own); None: as set. `processes` None is as many as there are
    cores where the work is worth it. A file that was read before and has the size
    and time of change that it had is not read again. Raises UsageError where the
    source does not exist.
    """
    # Here and not above: every process that decodes imports this package, and needs no database for it.
    from voxloop.steps.recordings.keeping import Read, Tally, look

    began = time.monotonic()
    channels = channels or ws.settings.channels
    if channels not in ("mix", "split"):
        raise UsageError(f"channels is {channels!r}: needed is mix or split")
    split = channels == "split"
    sources = [source] if isinstance(source, (str, Path)) else list(source)
    given = Item(path=Path(), speaker=speaker, language=language_code(language), session=session, consent=consent)
    manifests: list[Path] = []
    items = deque(islice(find_items([Path(one) for one in sources], metadata, given, speakers, manifests), limit))
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
        tally.commit(batch, last=True, manifests=manifests if limit is None else ())
    return IngestReport(
        taken=tuple(tally.taken),
        known=tuple(tally.known),
        refused=tuple(tally.refused),
        notes=tuple(tally.notes),
        seconds_of_audio=tally.seconds_of_audio,
        elapsed=time.monotonic() - began,
    )


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
