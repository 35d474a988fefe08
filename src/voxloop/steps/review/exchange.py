"""Export and import reviews as JSONL, CSV and Label Studio JSON, without loss."""

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
    """The result of an export."""

    path: Path
    format: Format
    utterances: int
    references: int
    clips: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Notice:
    """An utterance or row that was not imported, and why."""

    outcome: ImportOutcome
    utterance: str
    message: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Imported:
    """The result of an import, as numbers of utterances; with `dry_run`, nothing was written."""

    new: int  # imported
    same: int  # already in the workspace
    conflicting: int  # left unchanged, because somebody saved another text meanwhile
    unknown: int  # not in this workspace
    refused: int  # unreadable rows
    without: int  # rows without a text: not reviewed elsewhere either
    dry_run: bool
    notices: tuple[Notice, ...]  # for conflicting, unknown and refused ones


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
    """Export utterances with their texts, authors, times and ids to one file.

    The suffix determines the format (.jsonl, .csv, .json for Label Studio) unless `format` is
    given. `clips` is a folder for each utterance's audio as WAV; Label Studio needs audio, so by
    default it gets a folder next to the file, unless `audio_url` is given. `audio_url` is a
    prefix for a clip's name, such as `/data/local-files/?d=clips/`. With `all_versions`, every
    reference is exported instead of only the current one. The file appears only when complete;
    devices and pipes are written to directly, and links are followed. For Label Studio, the
    labelling configuration is written next to the file. Raises ExportError.
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
            f"{path} cannot be written ({error.strerror or error}). An existing file there is unchanged."
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
    """Import texts and rejections from an export, from Label Studio, or from any file with `utterance` and `text`.

    Authors, times and ids are kept; the author of a row without one is `by`. A text is new if
    the utterance has no reference yet, or if its author knew the current reference. Otherwise
    it conflicts and is left out, or with `overwrite` becomes the current one. Works in batches:
    if interrupted, the same call continues.
    """
    by = reviewer(by)
    groups, notices, without = _read(path, _format(path, format))
    counts: dict[ImportOutcome, int] = {"new": 0, "same": 0, "conflicting": 0, "unknown": 0, "refused": len(notices)}
    waiting = list(groups.items())
    for begin in range(0, len(waiting), BATCH):
        # A dry run does everything that an import does, then rolls back.
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
        raise UsageError(f"cannot tell the format of {path}. Use one of the suffixes {known}, or pass --format.")
    return found


def _everything(ws: Workspace, where: Filters) -> Iterator[tuple[Item, list[Decision]]]:
    """All matching items with their decisions, from one consistent snapshot."""
    with ws.read() as reader:
        for item in walk(reader, where):
            yield item, history_of(reader, item.utterance.id)


def _rows(item: Item, decisions: Sequence[Decision], *, audio: str, all: bool) -> list[ReviewRow]:
    """An utterance's references as rows, oldest first; one row without a text if there are none."""
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
    """Write an utterance's WAV unless it exists, since its name identifies its content. Return the number written."""
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
                # Python writes floats so that reading them gives the same value.
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
    """The texts by utterance, notices for unreadable rows, and the number of rows without a text."""
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
    """The rows or tasks of a file with their places in it. Raises UsageError if the file is unreadable."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:  # spreadsheets put a byte order mark first
            if format == "csv":
                columns, _ = separated.header(next((line for line in file if line.strip()), ""))
                missing = {"utterance", "text"} - set(columns)
                if missing:
                    names = " and ".join(sorted(missing))
                    raise UsageError(f"{path} has no column {names}. The first line must name utterance and text.")
                file.seek(0)
                for number, row in separated.rows(file):
                    # A malformed line is refused: a text cut off at a comma must not count as new.
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
        raise UsageError(f"cannot read {path} as {format}: {error}") from error


def _json_or_text(line: str) -> Any:
    try:
        return json.loads(line)
    except (json.JSONDecodeError, RecursionError):
        return line  # this line is refused with its place, instead of the whole file


class _Rehearsed(Exception):
    """Rolls back a dry run's transaction."""


@contextmanager
def _rehearsal(ws: Workspace) -> Iterator[Transaction]:
    """A transaction that is always rolled back."""
    try:
        with ws.transaction() as tx:
            yield tx
            raise _Rehearsed
    except _Rehearsed:
        return


def _of_row(row: Any) -> list[Incoming]:
    """The text or rejection in a JSONL or CSV row. Raises ValueError."""
    if not isinstance(row, dict):
        raise ValueError("not a JSON object with `utterance` and `text`")
    told = {
        key: row.get(key)
        for key in ("utterance", "text", "by", "reference", "earlier", "status", "reason", "rejected_by")
    }
    for key, value in told.items():
        if value is not None and not isinstance(value, str):
            raise ValueError(f"`{key}` is {value!r}, not a string")
    utterance = told["utterance"]
    if not utterance:
        raise ValueError("`utterance` is missing")
    numbers = {key: None if row.get(key) in (None, "") else float(row[key]) for key in ("created", "seconds")}
    found = []
    text = told["text"] or ""
    if text.strip():
        found.append(
            Incoming(
                utterance=utterance,
                # A text that was exported from here is kept exactly; any other is treated as if typed.
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
    """Import an utterance's new texts. Return the outcome and, if nothing was imported, the reason."""
    try:
        item = locked(tx, tx.get(Utterance, utterance).id)
    except UnknownRecord as error:
        return "unknown", str(error)
    if item.utterance.status == "deleted":
        return "conflicting", "deleted in this workspace"
    texts = [_corrected(item, one) for one in texts]
    here = [version for version in item.versions if version.kind == "reference"]
    missing = _news(item, here, texts)
    rejection = next((one for one in texts if one.rejected is not None), None)
    if item.utterance.status == "rejected" and rejection:
        rejection = None
    elif item.utterance.status == "rejected" and missing and not overwrite:
        return "conflicting", "rejected in this workspace"
    if not missing and not rejection:
        return "same", ""
    if not overwrite and item.reference and not _known(item.reference, texts, missing):
        return "conflicting", f"{item.reference.by!r} saved {item.reference.text!r} in this workspace"
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
        write_rejection(tx, item, reason=rejection.rejected or "no reason given", by=rejection.by or by)
    return "new", ""


def _news(item: Item, here: Sequence[Transcript], texts: Sequence[Incoming]) -> list[Incoming]:
    """The texts newer than the last one in the workspace, oldest first; none if they end in the current reference."""
    ordered = sorted((one for one in texts if one.text), key=lambda one: (one.created is None, one.created or 0.0))
    if ordered and item.reference and ordered[-1].text.split() == item.reference.text.split():
        return []
    for place in range(len(ordered), 0, -1):
        if _is_here(here, ordered[place - 1]):
            return ordered[place:]
    return ordered


def _known(current: Transcript, texts: Sequence[Incoming], missing: Sequence[Incoming]) -> bool:
    """Whether the author of the texts had seen the current reference, or replacing it loses nobody's work."""
    if current.by == METADATA or any(current.id in (*one.knows, one.reference) for one in texts):
        return True
    if any(_is_here([current], one) for one in texts):
        return True
    # The same author, later: an annotation edited after it was imported.
    return bool(missing) and all(one.by == current.by and (one.created or 0.0) > current.created for one in missing)


def _check(one: Incoming) -> None:
    """Raise ValueError for values that the catalog cannot store."""
    for text in (one.utterance, one.text, one.by or "", one.reference or "", one.rejected or ""):
        text.encode()  # fails on half of a surrogate pair
        if "\x00" in text:
            raise ValueError("a text contains the character NUL")
    for number in (one.created, one.seconds):
        if number is not None and not (math.isfinite(number) and number >= 0):
            raise ValueError(f"{number} is not a time in seconds (0 or more)")


def _corrected(item: Item, one: Incoming) -> Incoming:
    """Treat a text that has the id of an existing one but differs as a correction by the importing person."""
    known = next((version for version in item.versions if version.id == one.reference), None)
    if known is None or known.text.split() == one.text.split():
        return one
    return Incoming(utterance=one.utterance, text=" ".join(one.text.split()), knows=(known.id,))


def _is_here(references: Iterable[Transcript], one: Incoming) -> bool:
    """Whether a text is already here: with the same id, the same author and time, or without an author."""
    for reference in references:
        if reference.text.split() != one.text.split():
            continue
        if reference.id == one.reference or one.by is None:
            return True
        if reference.by == one.by and one.created in (None, reference.created):
            return True
    return False


def _free_id(tx: Transaction, one: Incoming, by: str) -> str | None:
    """The id for a text: its own, or one derived from its content; None: a new random one."""
    own = one.reference
    if own is None and one.created is not None:
        told = json.dumps([one.utterance, one.text, one.by or by, one.created])
        own = f"reference-{sha256(told.encode()).hexdigest()[:26]}"
    return own if own and tx.find(Transcript, own) is None else None
