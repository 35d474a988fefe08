"""Which utterances are usable for training, and how many hours of them are new: the only place that decides.

An utterance is usable if it meets the bounds of datasets (`filters`) and has

- a reference, which a person wrote or which came with the audio (kind `reference`); or
- confident machine text (kind `machine`): its confidence is at least `usable_confidence`, it lasts at least
  `usable_min_s`, no guard fired, and a second decoding, of the same audio played a little faster, agrees on at least
  `usable_agreement` of the words. Agreement under a change that does not matter tells correct texts
  from wrong ones: Khurana et al. (arXiv:2011.13439) perturb the model, here the audio is perturbed.

Machine text that meets all but the last condition is a `candidate` until the second decoding, which only the
orchestrator asks for; if the two differ it is `unsure`. An automatic run takes every reference and the most confident
machine text, up to `usable_machine_share` of the hours of usable speech.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import sqlalchemy as sa

from voxloop.models import base_model, loaded
from voxloop.records import Transcript, Utterance
from voxloop.speech import text as _text
from voxloop.steps import consent, hearing, transcripts
from voxloop.steps.datasets.filters import Candidate, Choice, Filters, Judge
from voxloop.stores import tables
from voxloop.stores.catalog import chunks, insert_new
from voxloop.stores.jobs import News

if TYPE_CHECKING:
    from voxloop.settings import Settings
    from voxloop.stores.catalog import Reader
    from voxloop.workspace import Transaction, Workspace

Kind = Literal["reference", "machine", "candidate", "unsure"]
USABLE: tuple[Kind, ...] = ("reference", "machine")

SPEED = 1.05  # of the audio in the second decoding
ASKED_AT_ONCE = 200  # recordings whose candidates are decoded again, before more are asked for
LOOKED = "usable speech"  # in `upkeep`: what was there before this table has been looked at

table = tables.sample


@dataclass(frozen=True, kw_only=True, slots=True)
class Standing:
    """How far one utterance is usable, by which text."""

    utterance: str
    recording: str
    kind: Kind
    transcript: str
    seconds: float


@dataclass(frozen=True, kw_only=True, slots=True)
class UsableHours:
    """Hours of speech by how far they are usable; `new` ones were there for no automatic run yet."""

    new_reference: float
    new_machine: float
    reference: float  # in all
    machine: float
    candidate: float  # waiting for their second decoding
    unsure: float  # the two decodings differ

    @property
    def new(self) -> float:
        """Hours that count towards `train_hours`."""
        return self.new_reference + self.new_machine

    def as_dict(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in self.__slots__} | {"new": self.new}


def hours(reader: Reader) -> UsableHours:
    """Sum the usable speech, from an index alone."""
    s = table.c
    new = s.cycle.is_(None)
    rows = reader.connection.execute(
        sa.select(s.kind, new.label("new"), sa.func.sum(s.seconds)).group_by(s.kind, new)
    ).all()
    total: dict[tuple[str, bool], float] = {(kind, bool(is_new)): seconds / 3600 for kind, is_new, seconds in rows}

    def of(kind: str) -> float:
        return total.get((kind, True), 0.0) + total.get((kind, False), 0.0)

    return UsableHours(
        new_reference=total.get(("reference", True), 0.0),
        new_machine=total.get(("machine", True), 0.0),
        reference=of("reference"),
        machine=of("machine"),
        candidate=of("candidate"),
        unsure=of("unsure"),
    )


# The step `sample` ---------------------------------------------------------------------------------------------------


def sample(ws: Workspace, subjects: Sequence[str]) -> None:
    """Find out again which utterances are usable, of recordings or of utterances given by their ids.

    `dataset.new_sample` tells once of each utterance that becomes usable, however it got its text.
    """
    of_recording: dict[str, list[str]] = {}
    for subject in subjects:
        of_recording.setdefault(subject.partition(":")[0], []).append(subject)
    for recordings in chunks(of_recording):
        with ws.completion(*(subject for id in recordings for subject in of_recording[id])) as tx:
            judge = _judge(ws, tx)
            found = [one for id in recordings for one in _standings(tx, judge, id, ws.settings)]
            before = _stored(tx, recordings)
            _write(tx, found, before)


def catch_up(ws: Workspace) -> int:
    """Look at the utterances that were there before their usability was kept. Return the number of recordings."""
    with ws.read() as reader:
        upkeep = tables.upkeep.c
        if reader.connection.execute(sa.select(upkeep.name).where(upkeep.name == LOOKED)).first():
            return 0
        ids = list(reader.connection.execute(sa.select(tables.utterance.c.recording).distinct()).scalars())
    for part in chunks(ids):
        sample(ws, part)
    with ws.transaction() as tx:
        insert_new(tx.connection, tables.upkeep, [{"name": LOOKED}])
    return len(ids)


def _judge(ws: Workspace, reader: Reader) -> Judge:
    return Judge(
        Filters.of(ws.settings),
        Choice(machine_text=ws.settings.usable_confidence if ws.settings.usable_machine_share else None),
        labels=None,
        withdrawn=consent.withdrawn(reader, "train"),
    )


def _standings(reader: Reader, judge: Judge, recording: str, settings: Settings) -> Iterator[Standing]:
    utterances = reader.all(Utterance, tables.utterance.c.recording == recording)
    texts: dict[str, list[Transcript]] = {one.id: [] for one in utterances}
    for part in chunks(texts):
        for transcript in reader.all(Transcript, tables.transcript.c.utterance.in_(part)):
            texts[transcript.utterance].append(transcript)
    for utterance in utterances:
        found = judge.judge(utterance, texts[utterance.id])
        if not isinstance(found, Candidate):
            continue
        kind: Kind = "reference"
        if found.kind != "reference":
            text = next(one for one in texts[utterance.id] if one.id == found.transcript)
            if text.guards or utterance.duration < settings.usable_min_s:
                continue
            kind = "candidate"
        yield Standing(
            utterance=utterance.id,
            recording=recording,
            kind=kind,
            transcript=found.transcript,
            seconds=utterance.duration,
        )


def _stored(reader: Reader, recordings: Sequence[str]) -> dict[str, Any]:
    u = tables.utterance.c
    rows = reader.connection.execute(
        sa.select(table).join(tables.utterance, u.id == table.c.utterance).where(u.recording.in_(recordings))
    )
    return {row.utterance: row for row in rows}


def _write(tx: Transaction, found: Sequence[Standing], before: dict[str, Any]) -> None:
    now = tx.now()
    gone = before.keys() - {one.utterance for one in found}
    for part in chunks(gone):
        tx.connection.execute(sa.delete(table).where(table.c.utterance.in_(part)))
    new = []
    for one in found:
        was = before.get(one.utterance)
        if was is None:
            new.append({name: getattr(one, name) for name in one.__slots__} | {"changed": now, "cycle": None})
            continue
        decided = one.kind == "candidate" and was.kind in ("machine", "unsure")
        if was.transcript == one.transcript and (decided or was.kind == one.kind):
            continue
        values = {"kind": one.kind, "transcript": one.transcript, "seconds": one.seconds, "changed": now}
        if one.kind == "reference" and was.kind != "reference":
            values["cycle"] = None  # a person's text for what had a machine's: new speech to learn from
        tx.connection.execute(sa.update(table).where(table.c.utterance == one.utterance).values(**values))
    insert_new(tx.connection, table, new)
    _tell(tx, [one for one in found if one.kind == "reference"])


def _tell(tx: Transaction, usable: Sequence[Standing]) -> None:
    news = [News(one.utterance, None, {"text": one.kind, "seconds": round(one.seconds, 3)}) for one in usable]
    tx.emit_all("dataset.new_sample", news)


# The step `agree` ----------------------------------------------------------------------------------------------------


def ask_for_agreement(ws: Workspace) -> int:
    """Ask for the second decoding of candidates, a limited number at a time. Return the number of recordings."""
    s = table.c
    with ws.read() as reader:
        if ws.jobs.open(reader, ("agree",), limit=1):
            return 0
        found = (
            sa.select(s.recording, sa.func.sum(s.seconds), sa.func.max(s.changed))
            .where(s.kind == "candidate")
            .group_by(s.recording)
            .limit(ASKED_AT_ONCE)
        )
        rows = reader.connection.execute(found).all()
        if not rows:
            return 0
        dead = {row.subject for row in ws.jobs.dead(reader, limit=1000) if row.step == "agree"}
    news = [News(id, f"{id}:{changed}", None, seconds) for id, seconds, changed in rows if id not in dead]
    if not news:
        return 0
    with ws.transaction() as tx:
        return tx.emit_all("agreement.asked", news)


def agree(ws: Workspace, recordings: Sequence[str]) -> None:
    """Decode the candidates of recordings a second time; where both decodings agree, their text is usable."""
    s = table.c
    with ws.read() as reader:
        rows = reader.connection.execute(
            sa.select(s.utterance, s.transcript).where(s.kind == "candidate", s.recording.in_(recordings))
        ).all()
        judged = {row.utterance: row.transcript for row in rows}
        utterances = list(reader.find_all(Utterance, judged).values())
        texts = reader.find_all(Transcript, judged.values())
    model = base_model(ws)
    verdicts: dict[str, list[tuple[str, str, Kind]]] = {id: [] for id in recordings}
    by_language: dict[str | None, list[Utterance]] = {}
    for utterance in utterances:
        by_language.setdefault(utterance.language or texts[judged[utterance.id]].language, []).append(utterance)
    for language, group in by_language.items():
        group.sort(key=lambda one: -one.samples)
        for part in transcripts.blocks(group, [one.samples for one in group]):
            asked = transcripts.decoding(ws, language, model=model)
            with loaded(ws, model) as recogniser:
                again = hearing.hear(ws, recogniser, part, asked, told=ws.told, speed=SPEED)
            for one, heard in zip(part, again, strict=True):
                first = texts[judged[one.id]]
                changes = ws.settings.normaliser
                before, after = (
                    _text.normalise(said, language, changes) for said in (first.text, heard.hypothesis.text)
                )
                disagreement = _text.word_errors(before, after).rate
                sure = disagreement <= 1 - ws.settings.usable_agreement + 1e-9 and not heard.hypothesis.guards
                verdicts[one.recording].append((one.id, first.id, "machine" if sure else "unsure"))
    for id, found in verdicts.items():
        with ws.completion(id) as tx:
            _settle(tx, found)


def _settle(tx: Transaction, found: Sequence[tuple[str, str, Kind]]) -> None:
    """Store the verdicts on candidates whose text is still the one that was judged."""
    usable = []
    for utterance, transcript, kind in found:
        still = sa.and_(table.c.utterance == utterance, table.c.transcript == transcript, table.c.kind == "candidate")
        row = tx.connection.execute(
            sa.update(table)
            .where(still)
            .values(kind=kind, changed=tx.now())
            .returning(table.c.recording, table.c.seconds)
        ).first()
        if row and kind == "machine":
            usable.append(
                Standing(
                    utterance=utterance, recording=row.recording, kind=kind, transcript=transcript, seconds=row.seconds
                )
            )
    _tell(tx, usable)


# For an automatic run ------------------------------------------------------------------------------------------------


def take(tx: Transaction, cycle: str, until: float) -> int:
    """Note that the usable speech up to a time was there for an automatic run. Return the number of utterances."""
    s = table.c
    there = sa.update(table).where(s.cycle.is_(None), s.kind.in_(USABLE), s.changed <= until)
    return int(tx.connection.execute(there.values(cycle=cycle)).rowcount)
