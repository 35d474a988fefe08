"""Consent: what speakers agreed to, by purpose, and what they withdrew.

A text is versioned and never changes. What a speaker gives or withdraws is added with its time and author; the newest
word about a purpose counts. A speaker of whom nothing is known may be trained on, as may recordings with a consent
in free words from before there were texts; sharing a model or publishing audio always needs a consent that says so.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, get_args

import sqlalchemy as sa

from voxloop.errors import ConflictError, UnknownRecord, UsageError, nearest
from voxloop.stores import tables

if TYPE_CHECKING:
    from voxloop.stores.catalog import Reader
    from voxloop.workspace import Transaction, Workspace

Purpose = Literal["train", "share", "publish"]
"""train: models learn from it; share: such models are given to others; publish: the audio itself is."""
PURPOSES: tuple[Purpose, ...] = get_args(Purpose)

STANDARD = (
    "I agree that the recordings of my voice, and the texts that belong to them, are kept in this workspace and used "
    "to train speech recognition models here. I can withdraw this at any time; what is recorded can be removed at my "
    "request."
)
"""The text for workspaces that have added none of their own; it is about training alone."""

consent_text, consent = tables.consent_text, tables.consent


@dataclass(frozen=True, kw_only=True, slots=True)
class Text:
    """A version of what speakers are asked to agree to."""

    version: int
    text: str
    purposes: tuple[Purpose, ...]
    by: str
    created: float  # seconds since the epoch


@dataclass(frozen=True, kw_only=True, slots=True)
class Word:
    """What a speaker gave or withdrew, once."""

    given: bool  # False: withdrawn
    purposes: tuple[Purpose, ...]
    version: int | None
    by: str
    created: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Standing:
    """What a speaker permits now, and how that came about."""

    speaker: str
    history: tuple[Word, ...]  # oldest first; empty: nothing is known

    @property
    def permits(self) -> tuple[Purpose, ...]:
        """The purposes that are permitted now."""
        newest = {purpose: word.given for word in self.history for purpose in word.purposes}
        return tuple(purpose for purpose in PURPOSES if newest.get(purpose, purpose == "train"))

    @property
    def version(self) -> int | None:
        """The newest text that the speaker agreed to."""
        return next((word.version for word in reversed(self.history) if word.given), None)

    def as_dict(self) -> dict[str, Any]:
        """The fields, and what follows from them."""
        return {"speaker": self.speaker, "permits": self.permits, "version": self.version, "history": self.history}


def standard(ws: Workspace, *, by: str) -> Text:
    """Make STANDARD the first version of the text. Raises ConflictError where there is another text."""
    with ws.completion() as tx:
        tx.connection.execute(sa.select(consent_text.c.version).with_for_update()).all()
        row = tx.connection.execute(sa.select(consent_text).order_by(consent_text.c.version.desc()).limit(1)).first()
        if row is None:
            values = {"version": 1, "created": tx.now(), "text": STANDARD, "purposes": ["train"], "by": by}
            tx.connection.execute(sa.insert(consent_text).values(values))
            return text_of(tx, 1)
        if row.text != STANDARD:
            raise ConflictError(f"the consent text has changed to version {row.version}: read it first")
        return _text(row)


def add_text(ws: Workspace, text: str, purposes: Collection[str], *, by: str) -> Text:
    """Add the next version of the text. Raises UsageError for no text, or purposes that do not exist."""
    if not text.strip():
        raise UsageError("the consent text is empty")
    asked = _purposes(purposes)
    with ws.completion() as tx:
        tx.connection.execute(sa.select(consent_text.c.version).with_for_update()).all()
        version = (tx.connection.execute(sa.select(sa.func.max(consent_text.c.version))).scalar() or 0) + 1
        row = {"version": version, "created": tx.now(), "text": text.strip(), "purposes": list(asked), "by": by}
        tx.connection.execute(sa.insert(consent_text).values(row))
        return text_of(tx, version)


def texts(ws: Workspace) -> list[Text]:
    """All versions, oldest first."""
    with ws.read() as reader:
        rows = reader.connection.execute(sa.select(consent_text).order_by(consent_text.c.version))
        return [_text(row) for row in rows]


def text_of(reader: Reader, version: int | None = None) -> Text:
    """One version of the text (None: the newest). Raises UnknownRecord."""
    query = sa.select(consent_text).order_by(consent_text.c.version.desc()).limit(1)
    row = reader.connection.execute(
        query if version is None else query.where(consent_text.c.version == version)
    ).first()
    if row is None:
        which = f"no version {version} of the consent text" if version is not None else "no consent text"
        raise UnknownRecord(f"there is {which}. Add one with `voxloop consent text FILE --purpose train`.")
    return _text(row)


def give(
    ws: Workspace, speaker: str, *, by: str, version: int | None = None, purposes: Collection[str] = ()
) -> Standing:
    """Note that a speaker agreed to a text (None: the newest), to some of its purposes (none named: all).

    Saying it again changes nothing. Raises UnknownRecord without such a text, and UsageError for purposes that the
    text does not name.
    """
    who = speaker_name(speaker)
    with ws.completion() as tx:
        text = text_of(tx, version)
        asked = _purposes(purposes) if purposes else text.purposes
        if beyond := [purpose for purpose in asked if purpose not in text.purposes]:
            raise UsageError(
                f"version {text.version} of the consent text is about {', '.join(text.purposes)}, "
                f"not {', '.join(beyond)}: a speaker cannot agree to what it does not say"
            )
        before = of(tx, who)
        if before.version != text.version or not set(asked) <= set(before.permits):
            _note(tx, who, given=True, purposes=asked, version=text.version, by=by)
        return of(tx, who)


def withdraw(ws: Workspace, speaker: str, *, by: str, purposes: Collection[str] = ()) -> Standing:
    """Note that a speaker withdrew consent to some purposes (none named: all). It takes effect for what comes next.

    Frozen datasets and trained models do not change: `voxloop forget` removes the recordings themselves.
    """
    who = speaker_name(speaker)
    asked = _purposes(purposes) if purposes else PURPOSES
    with ws.completion() as tx:
        _note(tx, who, given=False, purposes=asked, version=None, by=by)
        return of(tx, who)


def _note(
    tx: Transaction, speaker: str, *, given: bool, purposes: Sequence[Purpose], version: int | None, by: str
) -> None:
    row = {"created": tx.now(), "speaker": speaker, "given": given, "purposes": list(purposes), "version": version}
    seq = tx.connection.execute(sa.insert(consent).values(**row, by=by).returning(consent.c.seq)).scalar_one()
    # The subject is no name: events outlive a speaker who is forgotten.
    payload = {"purposes": list(purposes), "version": version, "speaker": speaker}
    if given:
        tx.emit("consent.given", str(seq), payload=payload)
    else:
        tx.emit("consent.withdrawn", str(seq), payload=payload)


def of(reader: Reader, speaker: str) -> Standing:
    """What a speaker permits."""
    who = speaker_name(speaker)
    query = sa.select(consent).where(consent.c.speaker == who).order_by(consent.c.seq)
    return Standing(speaker=who, history=tuple(_word(row) for row in reader.connection.execute(query)))


def standings(ws: Workspace) -> list[Standing]:
    """Every speaker of whom something is known, by name."""
    with ws.read() as reader:
        return list(_all(reader).values())


def withdrawn(reader: Reader, purpose: Purpose) -> frozenset[str]:
    """The speakers whose newest word on a purpose is that they withdrew it."""
    found = set()
    for speaker, standing in _all(reader).items():
        words = [word.given for word in standing.history if purpose in word.purposes]
        if words and not words[-1]:
            found.add(speaker)
    return frozenset(found)


def lacking(reader: Reader, speakers: Collection[str | None], purpose: Purpose) -> list[str | None]:
    """Those of the speakers (None: unknown) who do not permit a purpose."""
    known = _all(reader)
    by_default = purpose == "train"
    return [
        speaker
        for speaker in sorted(set(speakers), key=lambda one: one or "")
        if not (purpose in known[speaker].permits if speaker in known else by_default)
    ]


def _all(reader: Reader) -> dict[str, Standing]:
    words: dict[str, list[Word]] = {}
    for row in reader.connection.execute(sa.select(consent).order_by(consent.c.speaker, consent.c.seq)):
        words.setdefault(row.speaker, []).append(_word(row))
    return {speaker: Standing(speaker=speaker, history=tuple(said)) for speaker, said in words.items()}


def speaker_name(speaker: str) -> str:
    """A speaker's name as recordings bear it. Raises UsageError for an empty one."""
    name = unicodedata.normalize("NFC", speaker).strip()
    if not name or not name.isprintable():
        raise UsageError(f"{speaker!r} is not the name of a speaker")
    return name


def _purposes(given: Collection[str]) -> tuple[Purpose, ...]:
    for one in given:
        if one not in PURPOSES:
            raise UsageError(f"there is no purpose {one!r}{nearest(one, PURPOSES)}")
    if not given:
        raise UsageError(f"a consent text needs a purpose: one or more of {', '.join(PURPOSES)}")
    return tuple(purpose for purpose in PURPOSES if purpose in given)


def _text(row: Any) -> Text:
    return Text(version=row.version, text=row.text, purposes=tuple(row.purposes), by=row.by, created=row.created)


def _word(row: Any) -> Word:
    return Word(given=row.given, purposes=tuple(row.purposes), version=row.version, by=row.by, created=row.created)
