"""What is said of a recording that is known already: what it lacked is added, and what was wrong is corrected.

A correction changes the recording and the utterances that had it from the recording. Texts that a person has decided
on stay, and so does what a dataset froze: it has its own copy. Each correction is told of as an event.
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

METADATA = "metadata"  # who wrote the references that came with the audio
SHOWN = 80  # characters of a text in a message
FIELDS = ("text", "segments", "speaker", "language", "session", "consent")
CORRECTED = ("text", "speaker", "language")  # what counts anew when the same file says otherwise


@dataclass(frozen=True, kw_only=True, slots=True)
class Description:
    """A recording as it is after something was said of it."""

    recording: Recording
    corrected: Mapping[str, tuple[Any, Any]]  # by field, what it was and what it is
    notes: tuple[str, ...] = ()


def shown(text: str) -> str:
    """A text in a message."""
    return repr(shorten(text, SHOWN, placeholder=" …"))


def described(kept: Recording, given: Recording, *, decided: bool) -> Description:
    """A known recording with what `given` says of it.

    Of the file that it came from, a new language, speaker or text is a correction, unless a person has `decided` on a
    text; so are the texts, speakers and languages of segments whose bounds are the same. What another file with the
    same sound says is told of and not taken.
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
                what = "a text" if field == "text" else f"{len(new)} segments"
                notes.append(f"{given.source}: known audio got {what}; `segment` gives it to utterances where it can")
        elif field == "segments":
            if same_file and [(one.start, one.end) for one in old] == [(one.start, one.end) for one in new]:
                merged = tuple(_segment(one, other, decided) for one, other in zip(old, new, strict=True))
                if merged != old:
                    changed[field] = merged
                    corrected[field] = (old, merged)
                    notes.append(f"{given.source}: what is said of its segments was corrected")
            else:
                notes.append(
                    f"{given.source}: the same audio is known{_where(kept, given)} with {len(old)} given segments; "
                    f"{len(new)} were not taken over"
                )
        elif field in CORRECTED and same_file and not (field == "text" and decided):
            changed[field] = new
            corrected[field] = (old, new)
            notes.append(f"{given.source}: {field} {shown(old)} was corrected to {shown(new)}")
        elif field == "text" and same_file:
            notes.append(
                f"{given.source}: a person has reviewed its text, so {shown(new)} was not taken over; "
                "`voxloop review save` changes it"
            )
        else:
            notes.append(
                f"{given.source}: the same audio is known{_where(kept, given)} with {field} {shown(old)}; "
                f"{shown(new)} was not taken over"
            )
    return Description(recording=replace(kept, **changed), corrected=corrected, notes=tuple(notes))


def odd_texts(recording: Recording) -> list[str]:
    """Where texts are written otherwise than their language is."""
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
    """Those recordings of which a person has decided on a text, or a text was aligned with what was heard."""
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
    """Write what has changed of a recording; what `recording.described` is to tell of."""
    after = description.recording
    changed = {one: getattr(after, one) for one in FIELDS if getattr(after, one) != getattr(before, one)}
    if not changed:
        return []
    stored = changed | ({"segments": plain(after.segments)} if "segments" in changed else {})
    tx.change(Recording, before.id, **stored)
    if description.corrected:
        _correct(tx, before, after, by=by)
        # Neither names nor texts: who is forgotten must not stay in the audit trail.
        payload = {"by": by, "fields": sorted(description.corrected)}
        if "language" in description.corrected:
            payload["language"] = list(description.corrected["language"])
        # The same correction may be made twice, with another one between: the moment tells them apart.
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
    """Give utterances what was corrected, where they had the old of it from the recording or its segments."""
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
    """Put a corrected text in the place of the reference that came with the audio, which is kept as withdrawn."""
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
    """The recording of this id, or of this file name where one alone has it. Raises UnknownRecord or UsageError."""
    table = tables.recording
    named = reader.all(Recording, sa.or_(table.c.name == given, table.c.source == given), limit=2)
    if len(named) > 1:
        ids = ", ".join(one.id.removeprefix("sha256-")[:12] for one in named)
        raise UsageError(
            f"several recordings are named {given!r} ({ids}, …): give its path or an id of `voxloop recordings list`"
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
    """Correct what is said of a recording; None leaves a field as it is, an empty speaker or language clears it.

    Utterances follow where they had it from the recording. Raises UnknownRecord, and UsageError for a language that no
    model has, for an empty text, and for a text where a person has decided on one or the recording has segments.
    """
    given: dict[str, Any] = {}
    if language is not None:
        given["language"] = language_code(language)
    if speaker is not None:
        given["speaker"] = name(speaker)
    if text is not None:
        given["text"] = plain_text(text)
        if not given["text"]:
            raise UsageError("the text is empty: `voxloop review reject` leaves an utterance out of datasets")
    if not given:
        raise UsageError("nothing is to be changed: give --language, --speaker or --text")
    with ws.completion() as tx:
        before = tx.get(Recording, find(tx, recording).id)
        if text is not None:
            if decided_on(tx, [before.id]):
                raise UsageError(
                    f"a person has decided on texts of {before.name}: change them with `voxloop review save`"
                )
            if before.segments:
                raise UsageError(
                    f"{before.name} has {len(before.segments)} segments with texts of their own: correct those in its "
                    "manifest and ingest it again, or with `voxloop review save`"
                )
        after = replace(before, **given)
        corrected = {
            field: (getattr(before, field), value) for field, value in given.items() if getattr(before, field) != value
        }
        # A text where there was none goes the way of any text that comes later: `segment` gives it to utterances.
        added = corrected.pop("text", None) if before.text is None else None
        description = Description(recording=after, corrected=corrected)
        tx.emit_all("recording.described", write(tx, before, description, by=by))
        shown_changes = corrected | ({"text": added} if added else {})
    return replace(description, corrected=shown_changes)
