"""Reviews out and in: JSONL, CSV and Label Studio's JSON. What goes out comes back the same."""

from __future__ import annotations

import csv
import json
import math
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from voxloop.errors import ExportError, UnknownRecord, UsageError
from voxloop.files import replaced
from voxloop.records import Transcript, Utterance
from voxloop.speech import separated
from voxloop.speech.audio import to_pcm16, wav_bytes
from voxloop.steps.review import labelstudio
from voxloop.steps.review.decisions import METADATA, Decision, history_of, locked, write_reference, write_rejection
from voxloop.steps.review.items import BATCH, EVERYTHING, Filters, Item, walk
from voxloop.steps.review.queue import reviewer
from voxloop.steps.review.rows import Incoming, ReviewRow
from voxloop.steps.utterances import utterance_audio

if TYPE_CHECKING:
    from voxloop.workspace import Transaction, Workspace

Format = Literal["jsonl", "csv", "label-studio"]
FORMATS: dict[str, Format] = {".jsonl": "jsonl", ".csv": "csv", ".json": "label-studio"}

ImportOutcome = Literal["new", "same", "conflicting", "unknown", "refused"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Exported:
    """What an export wrote."""

    path: Path
    format: Format
    utterances: int
    references: int
    clips: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Notice:
    """One utterance or row that an import did not take, and why."""

    outcome: ImportOutcome
    utterance: str
    message: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Imported:
    """What an import found, in utterances; with `dry_run` nothing was written."""

    new: int  # taken
    same: int  # here already
    conflicting: int  # somebody wrote something else here meanwhile: left as it is
    unknown: int  # no such utterance here
    refused: int  # rows that could not be read
    without: int  # rows that say nothing: not reviewed there either
    dry_run: bool
    notices: tuple[Notice, ...]  # of what is conflicting, unknown and refused


def export(
    ws: Workspace,
    path: Path,
    *,
    format: Format | None = None,
    where: Filters = EVERYTHING,
    clips: Path | None = None,
    audio_url: str | None = None,
    all_versions: bool = False,
    progress: Callable[[float, float | None], None] | None = None,
) -> Exported:
    """Write utterances with their texts, authors, times and ids to one file.

    The format follows from the name (.jsonl, .csv, .json for Label Studio). `clips`
    is a folder to write each utterance's audio to as WAV; Label Studio, which needs
    audio, gets one beside the file unless `audio_url` is given. `audio_url` is put
    before a clip's name, such as `/data/local-files/?d=clips/`. With `all_versions`
    every reference goes out, not only the one that counts. The file appears whole or
    not at all; a device or a pipe is written to, and of a link what it leads to. For
    Label Studio its labelling configuration is written beside it. Raises ExportError.
    """
    format = _format(path, format)
    if format == "label-studio" and clips is None and audio_url is None:
        clips = path.with_name(f"{path.stem}-audio")
    if audio_url is None and clips is not None:
        audio_url = f"{os.path.relpath(clips, path.parent)}/".replace(os.sep, "/")
    counted = {"utterances": 0, "references": 0, "clips": 0}

    def groups() -> Iterator[list[ReviewRow]]:
        for item, decisions in _everything(ws, where):
            name = f"{item.utterance.id.replace(':', '_')}.wav"
            if clips is not None:
                counted["clips"] += _write_clip(ws, item.utterance, clips / name)
            rows = _rows(item, decisions, audio=f"{audio_url}{name}" if audio_url is not None else "", all=all_versions)
            counted["utterances"] += 1
            counted["references"] += sum(row.reference is not None for row in rows)
            if progress:
                progress(counted["utterances"], None)
            yield rows

    try:
        with replaced(path) as unfinished:
            _write(unfinished, format, groups())
        if format == "label-studio":
            with replaced(path.with_suffix(".xml")) as unfinished:
                unfinished.write_text(labelstudio.LABELLING_CONFIG)
    except OSError as error:
        raise ExportError(
            f"{path} cannot be written ({error.strerror or error}): what was there is as it was"
        ) from error
    return Exported(path=path, format=format, **counted)


def import_reviews(
    ws: Workspace,
    path: Path,
    *,
    by: str,
    format: Format | None = None,
    overwrite: bool = False,
    dry_run: bool = False,
    progress: Callable[[float, float | None], None] | None = None,
) -> Imported:
    """Take texts and rejections from a file by `export` or Label Studio, or any with `utterance` and `text`.

    Authors, times and ids are kept; where a row names no author it is `by`. A text
    is new where there is none here yet, or where it was made knowing the one that
    counts here; otherwise it is conflicting and left, or with `overwrite` added on
    top. Written in batches: stopped in between, the same call goes on.
    """
    by = reviewer(by)
    groups, notices, without = _read(path, _format(path, format))
    counts: dict[ImportOutcome, int] = {"new": 0, "same": 0, "conflicting": 0, "unknown": 0, "refused": len(notices)}
    waiting = list(groups.items())
    for begin in range(0, len(waiting), BATCH):
        # A dry run does all that an import does, and then takes it back.
        with _rehearsal(ws) if dry_run else ws.transaction() as tx:
            for utterance, texts in waiting[begin : begin + BATCH]:
                outcome, message = _take(tx, utterance, texts, by=by, overwrite=overwrite)
                counts[outcome] += 1
                if outcome in ("conflicting", "unknown"):
                    notices.append(Notice(outcome=outcome, utterance=utterance, message=message))
        if progress:
            progress(min(begin + BATCH, len(waiting)), len(waiting))
    return Imported(**counts, without=without, dry_run=dry_run, notices=tuple(notices))


# Out -----------------------------------------------------------------------------------------------------------------


def _format(path: Path, format: Format | None) -> Format:
    found = format or FORMATS.get(path.suffix.lower())
    if found is None:
        known = ", ".join(f"{suffix} ({name})" for suffix, name in FORMATS.items())
        raise UsageError(f"{path}: the format does not follow from the name; known are {known}, or name it")
    return found


def _everything(ws: Workspace, where: Filters) -> Iterator[tuple[Item, list[Decision]]]:
    """All that match, with the decisions on them; a view of one moment."""
    with ws.read() as reader:
        for item in walk(reader, where):
            yield item, history_of(reader, item.utterance.id)


def _rows(item: Item, decisions: Sequence[Decision], *, audio: str, all: bool) -> list[ReviewRow]:
    """An utterance's references as rows, oldest first; one row without a text where there is none."""
    references = sorted((t for t in item.versions if t.kind == "reference"), key=lambda t: (t.created, t.id))
    texts: list[Transcript | None] = [*references] if all and references else [item.reference]
    spent = {decision.transcript: decision.seconds for decision in decisions if decision.transcript}
    rejection = next((one for one in reversed(decisions) if one.kind == "reject"), None)
    if item.utterance.status != "rejected":
        rejection = None
    machine = item.hypothesis
    return [
        ReviewRow(
            utterance=item.utterance.id,
            text=text.text if text else "",
            machine_text=machine.text if machine else "",
            confidence=machine.confidence if machine else None,
            audio=audio,
            status=item.utterance.status,
            by=text.by if text else None,
            created=text.created if text else None,
            reference=text.id if text else None,
            earlier=" ".join(t.id for t in references[: references.index(text)]) if text else "",
            seconds=spent.get(text.id) if text else None,
            reason=rejection.reason if rejection else None,
            rejected_by=rejection.by if rejection else None,
            recording=item.utterance.recording,
            start=item.utterance.start,
            end=item.utterance.end,
            duration=item.utterance.duration,
            speaker=item.utterance.speaker,
            language=item.utterance.language,
            machine=machine.by if machine else None,
        )
        for text in texts
    ]


def _write_clip(ws: Workspace, utterance: Utterance, path: Path) -> int:
    """Write an utterance's WAV unless it is there; its name tells its content. The number written."""
    if path.exists():
        return 0
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}")
    unfinished.write_bytes(wav_bytes(to_pcm16(utterance_audio(ws, utterance))))
    unfinished.replace(path)
    return 1


def _write(path: Path, format: Format, groups: Iterable[list[ReviewRow]]) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        if format == "csv":
            writer = csv.DictWriter(file, [field.name for field in fields(ReviewRow)])
            writer.writeheader()
            for rows in groups:
                # Python's shortest form of a float is the same float when read again.
                writer.writerows({k: "" if v is None else v for k, v in asdict(row).items()} for row in rows)
        elif format == "jsonl":
            for rows in groups:
                file.writelines(json.dumps(asdict(row), ensure_ascii=False) + "\n" for row in rows)
        else:
            file.write("[")
            for number, rows in enumerate(groups):
                file.write(",\n" if number else "\n")
                json.dump(labelstudio.task(rows), file, ensure_ascii=False)
            file.write("\n]\n")


# In ------------------------------------------------------------------------------------------------------------------


def _read(path: Path, format: Format) -> tuple[dict[str, list[Incoming]], list[Notice], int]:
    """The texts by utterance, what could not be read, and how many rows say nothing."""
    groups: dict[str, list[Incoming]] = {}
    refused: list[Notice] = []
    without = 0
    for place, made in _lines(path, format):
        try:
            if isinstance(made, ValueError):
                raise made
            found = labelstudio.incoming(made) if format == "label-studio" else _of_row(made)
            for one in found:
                _check(one)
        except (ValueError, TypeError) as error:
            refused.append(Notice(outcome="refused", utterance="", message=f"{place}: {error}"))
            continue
        without += not found
        for one in found:
            groups.setdefault(one.utterance, []).append(one)
    return groups, refused, without


def _lines(path: Path, format: Format) -> Iterator[tuple[str, Any]]:
    """Rows or tasks of a file with their place in it. Raises UsageError where the file cannot be read at all."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:  # spreadsheets put a byte order mark first
            if format == "csv":
                columns, _ = separated.header(next((line for line in file if line.strip()), ""))
                missing = {"utterance", "text"} - set(columns)
                if missing:
                    raise UsageError(f"{path}: no column {', '.join(sorted(missing))} in its first line")
                file.seek(0)
                for number, row in separated.rows(file):
                    # A line that cannot be read right is refused: a text cut at a comma is no new text.
                    yield (
                        f"line {number}",
                        ValueError(row) if isinstance(row, str) else {k: v or None for k, v in row.items()},
                    )
            elif format == "jsonl":
                for number, line in enumerate(file, 1):
                    if line.strip():
                        yield f"line {number}", _json_or_text(line)
            else:
                tasks = json.load(file)
                for number, task in enumerate(tasks if isinstance(tasks, list) else [tasks], 1):
                    yield f"task {number}", task
    except (OSError, UnicodeDecodeError, csv.Error, json.JSONDecodeError, RecursionError) as error:
        raise UsageError(f"{path} cannot be read as {format}: {error}") from error


def _json_or_text(line: str) -> Any:
    try:
        return json.loads(line)
    except (json.JSONDecodeError, RecursionError):
        return line  # refused by itself, with its place, and not the whole file


class _Rehearsed(Exception):
    """Takes a rehearsed transaction back."""


@contextmanager
def _rehearsal(ws: Workspace) -> Iterator[Transaction]:
    """A transaction of which nothing stays."""
    try:
        with ws.transaction() as tx:
            yield tx
            raise _Rehearsed
    except _Rehearsed:
        return


def _of_row(row: Any) -> list[Incoming]:
    """The text or rejection that a JSONL or CSV row tells of. Raises ValueError."""
    if not isinstance(row, dict):
        raise ValueError("needed is a JSON object with `utterance` and `text`")
    told = {
        key: row.get(key)
        for key in ("utterance", "text", "by", "reference", "earlier", "status", "reason", "rejected_by")
    }
    for key, value in told.items():
        if value is not None and not isinstance(value, str):
            raise ValueError(f"`{key}` is {value!r}: needed is a text")
    utterance = told["utterance"]
    if not utterance:
        raise ValueError("`utterance` is missing: it says which utterance the text is of")
    numbers = {key: None if row.get(key) in (None, "") else float(row[key]) for key in ("created", "seconds")}
    found = []
    text = told["text"] or ""
    if text.strip():
        found.append(
            Incoming(
                utterance=utterance,
                # A text that went out from here comes back to the letter; another is as if it had been typed.
                text=text if told["reference"] else " ".join(text.split()),
                by=told["by"],
                created=numbers["created"],
                reference=told["reference"],
                knows=tuple((told["earlier"] or "").split()),
                seconds=numbers["seconds"],
            )
        )
    if told["status"] == "rejected":
        found.append(Incoming(utterance=utterance, rejected=told["reason"] or "", by=told["rejected_by"]))
    return found


def _take(
    tx: Transaction, utterance: str, texts: Sequence[Incoming], *, by: str, overwrite: bool
) -> tuple[ImportOutcome, str]:
    """Write what is new of an utterance's texts; what came of it and, where it was left, why."""
    try:
        item = locked(tx, tx.get(Utterance, utterance).id)
    except UnknownRecord as error:
        return "unknown", str(error)
    texts = [_corrected(item, one) for one in texts]
    here = [version for version in item.versions if version.kind == "reference"]
    missing = _news(item, here, texts)
    rejection = next((one for one in texts if one.rejected is not None), None)
    if item.utterance.status == "rejected" and rejection:
        rejection = None
    elif item.utterance.status == "rejected" and missing and not overwrite:
        return "conflicting", "here it was rejected"
    if not missing and not rejection:
        return "same", ""
    if not overwrite and item.reference and not _known(item.reference, texts, missing):
        return "conflicting", f"here {item.reference.by!r} saved {item.reference.text!r}"
    for one in missing:
        write_reference(
            tx,
            item,
            one.text,
            by=one.by or by,
            kind="import",
            id=_free_id(tx, one, by),
            created=one.created or 0.0,
            seconds=one.seconds,
        )
        item = locked(tx, item.utterance.id)
    if rejection:
        write_rejection(tx, item, reason=rejection.rejected or "not said", by=rejection.by or by)
    return "new", ""


def _news(item: Item, here: Sequence[Transcript], texts: Sequence[Incoming]) -> list[Incoming]:
    """The texts after the last one that is here, oldest first; none where they end in what counts here."""
    ordered = sorted((one for one in texts if one.text), key=lambda one: (one.created is None, one.created or 0.0))
    if ordered and item.reference and ordered[-1].text.split() == item.reference.text.split():
        return []
    for place in range(len(ordered), 0, -1):
        if _is_here(here, ordered[place - 1]):
            return ordered[place:]
    return ordered


def _known(current: Transcript, texts: Sequence[Incoming], missing: Sequence[Incoming]) -> bool:
    """Whether whoever wrote the texts had seen what counts here, or nobody's work is lost with it."""
    if current.by == METADATA or any(current.id in (*one.knows, one.reference) for one in texts):
        return True
    if any(_is_here([current], one) for one in texts):
        return True
    # The same hand later: an annotation that was edited after it had been imported.
    return bool(missing) and all(one.by == current.by and (one.created or 0.0) > current.created for one in missing)


def _check(one: Incoming) -> None:
    """What the catalog could not hold. Raises ValueError."""
    for text in (one.utterance, one.text, one.by or "", one.reference or "", one.rejected or ""):
        text.encode()  # half of a surrogate pair is no text
        if "\x00" in text:
            raise ValueError("a text holds the character NUL")
    for number in (one.created, one.seconds):
        if number is not None and not (math.isfinite(number) and number >= 0):
            raise ValueError(f"{number} is no time: needed are seconds, 0 or more")


def _corrected(item: Item, one: Incoming) -> Incoming:
    """A text that stands under the id of one here but differs is a correction of it, by whoever imports it."""
    known = next((version for version in item.versions if version.id == one.reference), None)
    if known is None or known.text.split() == one.text.split():
        return one
    return Incoming(utterance=one.utterance, text=" ".join(one.text.split()), knows=(known.id,))


def _is_here(references: Iterable[Transcript], one: Incoming) -> bool:
    """Whether a text is here: under its id, from the same hand and time, or from nobody in particular."""
    for reference in references:
        if reference.text.split() != one.text.split():
            continue
        if reference.id == one.reference or one.by is None:
            return True
        if reference.by == one.by and one.created in (None, reference.created):
            return True
    return False


def _free_id(tx: Transaction, one: Incoming, by: str) -> str | None:
    """The id to keep a text under: its own, or one that the same text gets each time; None: a fresh one."""
    own = one.reference
    if own is None and one.created is not None:
        told = json.dumps([one.utterance, one.text, one.by or by, one.created])
        own = f"reference-{sha256(told.encode()).hexdigest()[:26]}"
    return own if own and tx.find(Transcript, own) is None else None
