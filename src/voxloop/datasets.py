"""Frozen datasets: what is in, which text counts, and which split an utterance belongs to for ever.

The split comes from a hash of the speaker, so that no speaker is both learnt from
and tested on. Where there are too few speakers to fill the splits it comes from
the session's hash, else the recording's. It is decided once and stored: what was
test stays test.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from voxloop import utterances as _utterances
from voxloop.errors import UnknownRecord, UsageError
from voxloop.records import SPLITS, Dataset, Recording, Split, Transcript, TranscriptKind, Utterance, seconds
from voxloop.stores import catalog as tables
from voxloop.stores.blobs import sha256_bytes
from voxloop.transcripts import latest

if TYPE_CHECKING:
    from voxloop.workspace import Workspace

MANIFEST_FORMAT = 1
MAX_CHARACTERS_PER_SECOND = 40.0  # faster speech than anybody's: text and audio do not belong together


@dataclass(frozen=True, kw_only=True, slots=True)
class DatasetRow:
    """One utterance of a dataset as it was frozen."""

    utterance: str
    recording: str
    start: int  # samples
    end: int  # samples, exclusive
    split: Split
    text: str
    kind: TranscriptKind
    transcript: str
    speaker: str | None
    language: str | None

    @property
    def duration(self) -> float:
        """Seconds."""
        return seconds(self.end - self.start)


@dataclass(frozen=True, kw_only=True, slots=True)
class Exclusion:
    """An utterance that was left out, and why."""

    utterance: str
    reason: str


def build(
    ws: Workspace,
    *,
    name: str = "default",
    ratios: tuple[float, float, float] | None = None,
    machine_text: float | None = None,
    speakers: Sequence[str] | None = None,
    languages: Sequence[str] | None = None,
    train_limit: int | None = None,
) -> Dataset:
    """Freeze what the workspace holds now as a dataset.

    References come first. Machine text enters only the training split, only when
    `machine_text` is given, and only above that confidence; validation and test
    hold references alone. `train_limit` keeps at most so many training clips.
    Freezing the same content again gives the same dataset. Raises UsageError
    where nothing could be frozen.
    """
    ratios = ratios or ws.settings.ratios
    with ws.read() as reader:
        recordings = {recording.id: recording for recording in reader.iterate(Recording)}
        candidates = list(reader.iterate(Utterance))
        texts = _texts(reader.iterate(Transcript))
    chosen: list[tuple[Utterance, Transcript]] = []
    exclusions: list[Exclusion] = []
    for utterance in candidates:
        reason, transcript = _judge(ws, utterance, texts.get(utterance.id, ()), machine_text, speakers, languages)
        if transcript is None:
            exclusions.append(Exclusion(utterance=utterance.id, reason=reason))
        else:
            chosen.append((utterance, transcript))
    splits = assign_splits(
        [utterance for utterance, _ in chosen],
        ratios,
        sessions={id: recording.session for id, recording in recordings.items()},
    )
    rows: list[DatasetRow] = []
    for utterance, transcript in chosen:
        split = splits[utterance.id]
        if split != "train" and transcript.kind != "reference":
            exclusions.append(Exclusion(utterance=utterance.id, reason=f"machine text may not be in {split}"))
            continue
        rows.append(
            DatasetRow(
                utterance=utterance.id,
                recording=utterance.recording,
                start=utterance.start,
                end=utterance.end,
                split=split,
                text=transcript.text,
                kind=transcript.kind,
                transcript=transcript.id,
                speaker=utterance.speaker,
                language=utterance.language,
            )
        )
    rows, over = _limit(rows, train_limit)
    exclusions += over
    if not rows:
        raise UsageError(_nothing(candidates, exclusions))
    return _freeze(
        ws,
        name,
        rows,
        exclusions,
        splits,
        filters={
            "ratios": list(ratios),
            "machine_text": machine_text,
            "speakers": list(speakers) if speakers else None,
            "languages": list(languages) if languages else None,
            "train_limit": train_limit,
            "min_clip_s": ws.settings.min_clip_s,
            "min_snr_db": ws.settings.min_snr_db,
        },
    )


def _texts(transcripts: Iterable[Transcript]) -> dict[str, list[Transcript]]:
    by_utterance: dict[str, list[Transcript]] = {}
    for transcript in transcripts:
        by_utterance.setdefault(transcript.utterance, []).append(transcript)
    return by_utterance


def _judge(
    ws: Workspace,
    utterance: Utterance,
    transcripts: Sequence[Transcript],
    machine_text: float | None,
    speakers: Sequence[str] | None,
    languages: Sequence[str] | None,
) -> tuple[str, Transcript | None]:
    """The text an utterance enters with, or the reason that it does not."""
    if speakers and utterance.speaker not in speakers:
        return "another speaker", None
    if languages and utterance.language not in languages:
        return "another language", None
    if utterance.status == "rejected":
        return "rejected by a reviewer", None
    text = latest(transcripts, "reference")
    if text is None:
        text = latest(transcripts, "clean") or latest(transcripts, "hypothesis")
        if text is None:
            return "not transcribed yet", None
        if machine_text is None:
            return "machine text only, not reviewed", None
        if (text.confidence or 0.0) < machine_text:
            return f"machine text below confidence {machine_text:g}", None
    if not text.text.strip():
        return "empty text", None
    if utterance.duration < ws.settings.min_clip_s:
        return f"shorter than {ws.settings.min_clip_s:g} s", None
    if len(text.text) / utterance.duration > MAX_CHARACTERS_PER_SECOND:
        return f"more than {MAX_CHARACTERS_PER_SECOND:g} characters a second", None
    quality = utterance.quality
    if quality and quality.snr_db is not None and quality.snr_db < ws.settings.min_snr_db:
        return f"SNR below {ws.settings.min_snr_db:g} dB", None
    return "", text


# Splits --------------------------------------------------------------------------------------------------------------


def position(key: str) -> float:
    """A hash of `key` as a number in [0, 1), the same on every machine."""
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big") / 2**64


def split_at(place: float, ratios: tuple[float, float, float]) -> Split:
    """The split that a place in [0, 1) falls into."""
    train, val, _ = ratios
    return "train" if place < train else "val" if place < train + val else "test"


def assign_splits(
    utterances: Sequence[Utterance], ratios: tuple[float, float, float], *, sessions: dict[str, str | None]
) -> dict[str, Split]:
    """The split of each utterance, by its id.

    One that has a split keeps it, and what belongs to the same group follows it.
    Groups are speakers, where they fill every split that has a share; else
    sessions; else recordings.
    """
    wanted = {split for split, share in zip(SPLITS, ratios, strict=True) if share > 0}
    groupings: list[Callable[[Utterance], str]] = [
        lambda u: f"speaker {u.speaker}" if u.speaker else f"recording {u.recording}",
        lambda u: f"session {sessions.get(u.recording)}" if sessions.get(u.recording) else f"recording {u.recording}",
        lambda u: f"recording {u.recording}",
    ]
    assigned: dict[str, Split] = {}
    for group_of in groupings:
        assigned = _by_group(utterances, group_of, ratios)
        if set(assigned.values()) >= wanted:
            return assigned
    return _fill(utterances, assigned, ratios, wanted)


def _by_group(
    utterances: Sequence[Utterance], group_of: Callable[[Utterance], str], ratios: tuple[float, float, float]
) -> dict[str, Split]:
    settled: dict[str, set[Split]] = {}
    for utterance in utterances:
        if utterance.split:
            settled.setdefault(group_of(utterance), set()).add(utterance.split)
    assigned: dict[str, Split] = {}
    for utterance in utterances:
        if utterance.split:
            assigned[utterance.id] = utterance.split
            continue
        group = group_of(utterance)
        before = settled.get(group, set())
        if len(before) == 1:
            assigned[utterance.id] = next(iter(before))
        elif before:  # the group was divided by recording when it was all there was
            assigned[utterance.id] = split_at(position(f"recording {utterance.recording}"), ratios)
        else:
            assigned[utterance.id] = split_at(position(group), ratios)
    return assigned


def _fill(
    utterances: Sequence[Utterance],
    assigned: dict[str, Split],
    ratios: tuple[float, float, float],
    wanted: set[Split],
) -> dict[str, Split]:
    """Give each empty split the free recording that lies nearest to it: with few recordings chance leaves gaps."""
    free = sorted({u.recording for u in utterances if not u.split}, key=lambda id: position(f"recording {id}"))
    settled = {u.recording for u in utterances if u.split}
    free = [recording for recording in free if recording not in settled]
    middle = {"train": ratios[0] / 2, "val": ratios[0] + ratios[1] / 2, "test": 1 - ratios[2] / 2}
    for split in reversed(SPLITS):
        if split not in wanted or split in assigned.values():
            continue
        counts = Counter(assigned.values())
        # A split of one is not robbed to fill another.
        spare = [
            recording
            for recording in free
            if all(counts[assigned[u.id]] > 1 for u in utterances if u.recording == recording)
        ]
        if not spare:
            continue
        taken = min(spare, key=lambda id: abs(position(f"recording {id}") - middle[split]))
        free.remove(taken)
        for utterance in utterances:
            if utterance.recording == taken:
                assigned[utterance.id] = split
    return assigned


# Freezing ------------------------------------------------------------------------------------------------------------


def _limit(rows: list[DatasetRow], train_limit: int | None) -> tuple[list[DatasetRow], list[Exclusion]]:
    """At most `train_limit` training rows, chosen by hash so that a larger limit only adds."""
    if train_limit is None:
        return rows, []
    train = sorted((row for row in rows if row.split == "train"), key=lambda row: position(f"limit {row.utterance}"))
    over = {row.utterance for row in train[train_limit:]}
    reason = f"over the limit of {train_limit} training clips"
    exclusions = [Exclusion(utterance=id, reason=reason) for id in sorted(over)]
    return [row for row in rows if row.utterance not in over], exclusions


def _freeze(
    ws: Workspace,
    name: str,
    rows: list[DatasetRow],
    exclusions: list[Exclusion],
    splits: dict[str, Split],
    *,
    filters: dict[str, Any],
) -> Dataset:
    rows = sorted(rows, key=lambda row: row.utterance)
    manifest = b"".join(_line(asdict(row)) for row in rows)
    id = sha256_bytes(manifest)
    ws.blobs.put(f"datasets/{id}.jsonl", manifest)
    ws.blobs.put(f"datasets/{id}.excluded.jsonl", b"".join(_line(asdict(exclusion)) for exclusion in exclusions))
    with ws.read() as reader:
        parents = reader.all(Dataset, tables.dataset.c.name == name)
    parent = next((dataset.id for dataset in reversed(parents) if dataset.id != id), None)
    dataset = Dataset(
        id=id,
        name=name,
        filters=filters,
        clips={split: sum(row.split == split for row in rows) for split in SPLITS},
        hours={split: sum(row.duration for row in rows if row.split == split) / 3600 for split in SPLITS},
        excluded=dict(Counter(exclusion.reason for exclusion in exclusions)),
        parent=parent,
    )
    with ws.completion() as tx:
        if not tx.add(dataset) and tx.get(Dataset, id).forgotten:
            # What had been forgotten was taken in anew: the dataset is whole again.
            whole = {"manifest": None, "forgotten": 0, "clips": dataset.clips, "hours": dataset.hours}
            tx.change(Dataset, id, **whole, excluded=dataset.excluded)
        _keep_splits(tx.connection, splits)
        tables.insert_new(
            tx.connection,
            tables.dataset_utterance,
            [
                {"dataset": id, "utterance": row.utterance, "transcript": row.transcript, "split": row.split}
                for row in rows
            ],
        )
        tx.emit("dataset.ready", id, payload={"name": name, "clips": dataset.clips})
        return tx.get(Dataset, id)


def _keep_splits(connection: sa.Connection, splits: dict[str, Split]) -> None:
    """Write down where each utterance belongs; one that has a split is never moved, whoever wrote it first."""
    connection.execute(
        sa.update(tables.utterance)
        .where(tables.utterance.c.id == sa.bindparam("utterance_id"), tables.utterance.c.split.is_(None))
        .values(split=sa.bindparam("new_split")),
        [{"utterance_id": id, "new_split": split} for id, split in splits.items()],
    )


def _line(row: dict[str, Any]) -> bytes:
    return (json.dumps(row, ensure_ascii=False, sort_keys=True) + "\n").encode()


def _nothing(candidates: Sequence[Utterance], exclusions: Sequence[Exclusion]) -> str:
    if not candidates:
        return "there are no utterances yet: `voxloop ingest` takes audio in, `voxloop worker --until-idle` segments it"
    reasons = "; ".join(f"{count} {reason}" for reason, count in Counter(e.reason for e in exclusions).most_common())
    return (
        f"none of {len(candidates)} utterances can enter a dataset ({reasons}): correct some with "
        "`voxloop review save`, or take confident machine text with --machine-text 0.9"
    )


# Reading -------------------------------------------------------------------------------------------------------------


def find(ws: Workspace, name: str | None = None) -> Dataset:
    """The dataset of this id or the newest of this name; None means the newest of all. Raises UnknownRecord."""
    with ws.read() as reader:
        named = reader.all(
            Dataset,
            *([tables.dataset.c.name == name] if name else []),
            order=(tables.dataset.c.created.desc(), tables.dataset.c.id),
            limit=1,
        )
        if named:
            return named[0]
        if name:
            return reader.get(Dataset, name)
    raise UnknownRecord("there is no dataset yet: `voxloop dataset build` freezes one")


def manifest_key(ws: Workspace, dataset: str) -> str:
    """Where a dataset's manifest lies among the blobs: under its id or, where something was forgotten, elsewhere."""
    with ws.read() as reader:
        found = reader.find(Dataset, dataset)
    return (found and found.manifest) or f"datasets/{dataset}.jsonl"


def excluded_key(manifest: str) -> str:
    """Where the list of what was left out lies, beside the manifest."""
    return manifest.removesuffix(".jsonl") + ".excluded.jsonl"


def rows(ws: Workspace, dataset: str, split: Split | None = None) -> list[DatasetRow]:
    """The frozen rows of a dataset, of one split or of all, in the order of the manifest."""
    found = [DatasetRow(**json.loads(line)) for line in ws.blobs.get(manifest_key(ws, dataset)).splitlines()]
    return [row for row in found if split is None or row.split == split]


def exclusions(ws: Workspace, dataset: str) -> list[Exclusion]:
    """What was left out of a dataset, and why."""
    lines = ws.blobs.get(excluded_key(manifest_key(ws, dataset))).splitlines()
    return [Exclusion(**json.loads(line)) for line in lines]


def write_split(ws: Workspace, dataset: str, split: Split, folder: Path) -> Path:
    """Write `<split>.jsonl` and its audio below `folder/audio`; the manifest's path.

    A row holds audio_path (relative to the folder), text, duration (seconds),
    speaker, language and id.
    """
    from voxloop.audio import to_pcm16, wav_bytes

    (folder / "audio").mkdir(parents=True, exist_ok=True)
    lines = []
    for row in rows(ws, dataset, split):
        name = f"audio/{row.recording.removeprefix('sha256-')[:24]}-{row.start}-{row.end}.wav"
        target = folder / name
        if not target.exists():
            waveform = _utterances.read_span(ws, row.recording, row.start, row.end)
            partial = target.with_suffix(".partial")
            partial.write_bytes(wav_bytes(to_pcm16(waveform)))
            partial.replace(target)
        lines.append(
            _line(
                {
                    "audio_path": name,
                    "text": row.text,
                    "duration": row.duration,
                    "speaker": row.speaker,
                    "language": row.language,
                    "id": row.utterance,
                }
            )
        )
    manifest = folder / f"{split}.jsonl"
    manifest.write_bytes(b"".join(lines))
    return manifest


def cuts(manifest: Path) -> Any:
    """A written split as a Lhotse CutSet: the same rows, one recording and one supervision each."""
    from lhotse import CutSet, MonoCut, Recording, SupervisionSegment
    from lhotse.audio import AudioSource

    def each() -> Iterator[Any]:
        for line in manifest.read_text().splitlines():
            row = json.loads(line)
            samples = round(row["duration"] * 16_000)
            audio = Recording(
                id=row["id"],
                sources=[AudioSource(type="file", channels=[0], source=str(manifest.parent / row["audio_path"]))],
                sampling_rate=16_000,
                num_samples=samples,
                duration=row["duration"],
            )
            supervision = SupervisionSegment(
                id=row["id"],
                recording_id=row["id"],
                start=0.0,
                duration=row["duration"],
                text=row["text"],
                speaker=row["speaker"],
                language=row["language"],
            )
            yield MonoCut(
                id=row["id"],
                start=0.0,
                duration=row["duration"],
                channel=0,
                recording=audio,
                supervisions=[supervision],
            )

    return CutSet.from_cuts(each())


def export(ws: Workspace, dataset: str, folder: Path) -> list[Path]:
    """Write all splits as JSONL beside their audio, and Lhotse cuts of the same rows."""
    written = []
    for split in SPLITS:
        manifest = write_split(ws, dataset, split, folder)
        lhotse = folder / f"{split}_cuts.jsonl.gz"
        cuts(manifest).to_file(lhotse)
        written += [manifest, lhotse]
    return written
