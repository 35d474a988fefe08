"""Update the metadata of known recordings: add missing fields, correct wrong ones.

A correction changes the recording and the utterances that inherited the value from it. Texts that a person has
reviewed do not change, and neither do frozen datasets, which have their own copies. Each correction emits an event.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from textwrap import shorten
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from voxloop.errors import UsageError
from voxloop.records import GivenSegment, Recording, Transcript, Utterance, plain, seconds, utterance_id
from voxloop.speech.languages import contradiction, language_code
from voxloop.steps.recordings.manifests import name, plain_text
from voxloop.stores import tables
from voxloop.stores.catalog import chunks
from voxloop.stores.jobs import News

if TYPE_CHECKING:
    from voxloop.stores.catalog import Reader
    from voxloop.workspace import Transaction, Workspace

METADATA = "metadata"  # author of the references that came with the audio
SHOWN = 80  # characters of a text in a message
FIELDS = ("text", "segments", "speaker", "language", "session", "consent")
CORRECTED = ("text", "speaker", "language")  # fields that a new value from the same file corrects


@dataclass(frozen=True, kw_only=True, slots=True)
class Description:
    """A recording with updated metadata."""

    recording: Recording
    corrected: Mapping[str, tuple[Any, Any]]  # by field: old and new value
    notes: tuple[str, ...] = ()


def shown(text: str) -> str:
    """Shorten and quote a text for a message."""
    return repr(shorten(text, SHOWN, placeholder=" …"))


def described(kept: Recording, given: Recording, *, decided: bool) -> Description:
    """Update a known recording with the metadata in `given`.

    If it comes from the same file, a new language, speaker or text is a correction, unless a person has `decided` on
    a text; the same holds for segments with unchanged bounds. If another file with the same audio says something
    else, the update is only reported.
    """
    same_file = os.path.abspath(kept.source) == os.path.abspath(given.source)  # noqa: PTH100
    changed: dict[str, Any] = {}
    corrected: dict[str, tuple[Any, Any]] = {}
    notes: list[str] = []
    for field in FIELDS:
        old, new = getattr(kept, field), getattr(given, field)
        if not new or old == new:
            continue
        if not old:
            changed[field] = new
            if field in ("text", "segments"):
                what = "a text" if field == "text" else f"{len(new):,} {'segment' if len(new) == 1 else 'segments'}"
                notes.append(f"{given.source}: added {what} to known audio; the worker assigns it to utterances")
        elif field == "segments":
            if same_file and [(one.start, one.end) for one in old] == [(one.start, one.end) for one in new]:
                merged = tuple(_segment(one, other, decided) for one, other in zip(old, new, strict=True))
                if merged != old:
                    changed[field] = merged
                    corrected[field] = (old, merged)
                    notes.append(f"{given.source}: corrected the metadata of its segments")
            else:
                notes.append(
                    f"{given.source}: ignored its segments ({len(new):,}), since the same audio{_where(kept, given)} "
                    f"already has segments ({len(old):,})"
                )
        elif field in CORRECTED and same_file and not (field == "text" and decided):
            changed[field] = new
            corrected[field] = (old, new)
            notes.append(f"{given.source}: corrected {field} {shown(old)} to {shown(new)}")
        elif field == "text" and same_file:
            notes.append(
                f"{given.source}: ignored the text {shown(new)}, since a person has reviewed this recording; change "
                "its text with `voxloop review save`"
            )
        else:
            notes.append(
                f"{given.source}: ignored {field} {shown(new)}, since the same audio{_where(kept, given)} already has "
                f"{field} {shown(old)}"
            )
    return Description(recording=replace(kept, **changed), corrected=corrected, notes=tuple(notes))


def odd_texts(recording: Recording) -> list[str]:
    """Report texts that are not written in the script of their language."""
    parts = [(recording.text, recording.language)]
    parts += [(one.text, one.language or recording.language) for one in recording.segments]
    found = dict.fromkeys(filter(None, (contradiction(text or "", language) for text, language in parts)))
    return list(found)


def _segment(old: GivenSegment, new: GivenSegment, decided: bool) -> GivenSegment:
    return replace(
        old,
        text=old.text if decided and old.text else new.text or old.text,
        speaker=new.speaker or old.speaker,
        language=new.language or old.language,
    )


def _where(kept: Recording, given: Recording) -> str:
    return f" from {kept.source}" if kept.source != given.source else ""


def decided_on(reader: Reader, recordings: Sequence[str]) -> set[str]:
    """Return the recordings with a text that a person has reviewed, or that was aligned with a hypothesis."""
    utterance, transcript, decision = tables.utterance, tables.transcript, tables.review_decision
    found: set[str] = set()
    for part in chunks(recordings):
        mine = utterance.c.recording.in_(part)
        by_others = transcript.c.kind == "reference", transcript.c.by != METADATA
        written = sa.select(utterance.c.recording).join(transcript).where(mine, *by_others)
        said = sa.select(utterance.c.recording).join(decision, decision.c.utterance == utterance.c.id).where(mine)
        for query in (written, said):
            found.update(reader.connection.execute(query.distinct()).scalars())
    return found


def write(tx: Transaction, before: Recording, description: Description, *, by: str = METADATA) -> list[News]:
    """Write the changes to a recording. Return the news for `recording.described`."""
    after = description.recording
    changed = {one: getattr(after, one) for one in FIELDS if getattr(after, one) != getattr(before, one)}
    if not changed:
        return []
    stored = changed | ({"segments": plain(after.segments)} if "segments" in changed else {})
    tx.change(Recording, before.id, **stored)
    if description.corrected:
        _correct(tx, before, after, by=by)
        # No names and no texts: a forgotten speaker must not stay in the audit trail.
        payload = {"by": by, "fields": sorted(description.corrected)}
        if "language" in description.corrected:
            payload["language"] = list(description.corrected["language"])
        # The same correction can be made twice, with another in between: the time tells them apart.
        key = f"{before.id}:{_hash([payload, tx.now()])}"
        tx.emit_all("recording.corrected", [News(before.id, key, payload)])
    added = [field for field in ("text", "segments") if field in changed and field not in description.corrected]
    if not added:
        return []
    key = f"{before.id}:{_hash([after.text, plain(after.segments)])}"
    return [News(before.id, key, seconds=seconds(after.samples))]


def _hash(value: Any) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()[:16]


def _correct(tx: Transaction, before: Recording, after: Recording, *, by: str) -> None:
    """Apply corrections to the utterances that inherited the old values from the recording or its segments."""
    utterances = tx.all(Utterance, tables.utterance.c.recording == before.id)
    segments = {
        utterance_id(before.id, old.start, old.end): (old, new)
        for old, new in zip(before.segments, after.segments, strict=False)
    }
    for one in utterances:
        old, new = segments.get(one.id, (None, None))
        for field in ("speaker", "language"):
            was = (getattr(old, field) if old else None) or getattr(before, field)
            becomes = (getattr(new, field) if new else None) or getattr(after, field)
            if becomes != was and getattr(one, field) == was:
                tx.change(Utterance, one.id, **{field: becomes})
        text = new.text if new else after.text if not after.segments else None
        if text and (old.text if old else before.text) != text:
            _replace_reference(tx, one, text, by=by)


def _replace_reference(tx: Transaction, utterance: Utterance, text: str, *, by: str) -> None:
    """Replace the reference that came with the audio by a corrected text; keep the old one as withdrawn."""
    table = tables.transcript
    mine = table.c.utterance == utterance.id
    given = tx.all(Transcript, mine, table.c.kind == "reference", table.c.by == METADATA)
    if not given:
        return
    withdrawn = sa.update(table).where(table.c.id.in_([one.id for one in given])).values(kind="withdrawn")
    tx.connection.execute(withdrawn)
    id = f"{utterance.id}:metadata:{_hash([text, tx.now()])}"
    tx.add(Transcript(id=id, utterance=utterance.id, kind="reference", text=text, by=by))


def find(reader: Reader, given: str) -> Recording:
    """Find a recording by id, or by a file name that only one has. Raises UnknownRecord or UsageError."""
    table = tables.recording
    named = reader.all(Recording, sa.or_(table.c.name == given, table.c.source == given), limit=2)
    if len(named) > 1:
        ids = ", ".join(one.id.removeprefix("sha256-")[:12] for one in named)
        raise UsageError(
            f"several recordings are named {given!r} ({ids}): give the path, or an id from `voxloop recordings list`"
        )
    return named[0] if named else reader.get(Recording, given)


def edit(
    ws: Workspace,
    recording: str,
    *,
    language: str | None = None,
    speaker: str | None = None,
    text: str | None = None,
    by: str = METADATA,
) -> Description:
    """Correct a recording's metadata; None keeps a field, and an empty speaker or language clears it.

    Utterances that inherited the old value change too. Raises UnknownRecord, and UsageError for a language that no
    model supports, for an empty text, and for a text if a person has reviewed one or the recording has segments.
    """
    given: dict[str, Any] = {}
    if language is not None:
        given["language"] = language_code(language)
    if speaker is not None:
        given["speaker"] = name(speaker)
    if text is not None:
        given["text"] = plain_text(text)
        if not given["text"]:
            raise UsageError("the text is empty: to keep an utterance out of datasets, use `voxloop review reject`")
    if not given:
        raise UsageError("no change was given: use --language, --speaker or --text")
    with ws.completion() as tx:
        before = tx.get(Recording, find(tx, recording).id)
        if text is not None:
            if decided_on(tx, [before.id]):
                raise UsageError(
                    f"a person has reviewed the text of {before.name}: change it with `voxloop review save`"
                )
            if before.segments:
                raise UsageError(
                    f"{before.name} has a text for each segment: correct them in its manifest and ingest it again, or "
                    "use `voxloop review save`"
                )
        after = replace(before, **given)
        corrected = {
            field: (getattr(before, field), value) for field, value in given.items() if getattr(before, field) != value
        }
        # A first text is handled like any text that arrives late: `segment` assigns it to utterances.
        added = corrected.pop("text", None) if before.text is None else None
        description = Description(recording=after, corrected=corrected)
        tx.emit_all("recording.described", write(tx, before, description, by=by))
        shown_changes = corrected | ({"text": added} if added else {})
    return replace(description, corrected=shown_changes)
