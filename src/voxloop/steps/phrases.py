"""Phrases to read aloud: the workspace's own list, bundled lists, and a choice of what a model would learn most from.

A bundled list is a text file in `speech/phrases`, named after its language: adding a language is adding a file. A
phrase counts as recorded once its speaker has read it and the recording is still there, neither rejected nor deleted.
"""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import sqlalchemy as sa
from ulid import ULID

from voxloop import speech
from voxloop.errors import UsageError
from voxloop.records import LEFT_OUT, Utterance, seconds
from voxloop.speech import text
from voxloop.speech.languages import language_code
from voxloop.steps import vocabulary
from voxloop.steps.consent import speaker_name
from voxloop.steps.review.items import BATCH, items_of
from voxloop.stores import tables

if TYPE_CHECKING:
    from voxloop.stores.catalog import Reader
    from voxloop.workspace import Workspace

BUNDLED = Path(speech.__file__).parent / "phrases"
Source = Literal["own", "bundled", "chosen"]
"""own: the workspace's list; bundled: the one that comes along; chosen: what a model would learn most from."""

LONGEST = 300  # characters: more is hard to read in one breath, and may be longer than 30 s
MOST = 10_000  # phrases of a language
LOOKED_AT = 400  # reviewed utterances, the newest, in which words that the model gets wrong are counted
CONSIDERED = 2000  # phrases of which the next ones are chosen
OFTEN = 2  # times that a word has to be got wrong before it is chosen for that

# What a phrase is worth. A phrase of ten words that are all new has about 20, so that the vocabulary and misheard words
# come before it, but a second time about with it. A take costs as much as reading its words and three more.
IN_VOCABULARY, MISHEARD, NEW_WORD, NEW_LETTERS = 40.0, 25.0, 1.0, 0.25
TAKE_WORDS = 3


@dataclass(frozen=True, kw_only=True, slots=True)
class Phrase:
    """A phrase to read, and why it was chosen."""

    text: str
    reason: str = ""  # empty: it is the next one of a list


@dataclass(frozen=True, kw_only=True, slots=True)
class Selection:
    """The next phrases for a speaker, and how far they are."""

    phrases: tuple[Phrase, ...]
    recorded: int  # of the phrases in question
    total: int
    seconds: float  # of all phrases that this speaker has read in this language


@dataclass(frozen=True, slots=True)
class Bundled:
    """The phrases that come along for one language."""

    phrases: tuple[str, ...] = ()
    carriers: tuple[str, ...] = ("{}",)  # sentences with a gap for a word


def languages() -> list[str]:
    """The languages that have a bundled list."""
    return sorted(file.stem for file in BUNDLED.glob("*.txt"))


@cache
def bundled(language: str) -> Bundled:
    """The bundled list of a language; empty where there is none."""
    if language not in languages():
        return Bundled()
    lines = vocabulary.read_terms(BUNDLED / f"{language}.txt")
    carriers = tuple(line for line in lines if "{}" in line)
    return Bundled(tuple(line for line in lines if "{}" not in line), carriers or ("{}",))


def own(ws: Workspace, language: str) -> list[str]:
    """The workspace's own list for a language, in order."""
    with ws.read() as reader:
        return _own(reader, _code(language))


def _own(reader: Reader, language: str) -> list[str]:
    phrase = tables.phrase.c
    query = sa.select(phrase.text).where(phrase.language == language).order_by(phrase.place)
    return list(reader.connection.execute(query).scalars())


def own_languages(ws: Workspace) -> list[str]:
    """The languages for which the workspace has a list of its own."""
    with ws.read() as reader:
        query = sa.select(tables.phrase.c.language).distinct().order_by(tables.phrase.c.language)
        return list(reader.connection.execute(query).scalars())


def keep_list(ws: Workspace, phrases: Iterable[str], *, language: str, by: str) -> list[str]:
    """Replace the workspace's list for a language; an empty one removes it. Return what is kept: tidied, each once.

    Raises UsageError for a phrase that is too long, and for too many.
    """
    code = _code(language)
    kept = list(dict.fromkeys(tidy for one in phrases if (tidy := _tidied(one))))
    if len(kept) > MOST:
        raise UsageError(f"{len(kept):,} phrases are too many: a list holds at most {MOST:,}")
    with ws.transaction() as tx:
        tx.connection.execute(sa.delete(tables.phrase).where(tables.phrase.c.language == code))
        now = tx.now()
        rows = [
            {"language": code, "place": place, "text": one, "created": now, "by": by} for place, one in enumerate(kept)
        ]
        if rows:
            tx.connection.execute(sa.insert(tables.phrase), rows)
        tx.emit("phrases.changed", code, key=str(ULID()), payload={"phrases": len(kept), "by": by})
    return kept


def _tidied(phrase: str) -> str:
    tidy = unicodedata.normalize("NFC", " ".join(phrase.split()))
    if len(tidy) > LONGEST or not tidy.isprintable():
        raise UsageError(f"{tidy[:60]!r}… is no phrase to read: give one line of at most {LONGEST} characters")
    return tidy


def _code(language: str) -> str:
    code = language_code(language)
    if not code:
        raise UsageError("phrases have a language: give its code, such as en")
    return code


def next_phrases(
    ws: Workspace, *, speaker: str, language: str, source: Source, count: int = 10, without: Collection[str] = ()
) -> Selection:
    """The next phrases that a speaker has not recorded yet, `without` those that are put off or on their way."""
    who, code = speaker_name(speaker), _code(language)
    with ws.read() as reader:
        mine = _own(reader, code)
        offered = {"own": mine, "bundled": bundled(code).phrases, "chosen": [*mine, *bundled(code).phrases]}[source]
        offered = list(dict.fromkeys(offered))
        recorded, duration = _recorded(reader, who, code)
        left = [one for one in offered if one not in recorded and one not in without]
        if source == "chosen":
            phrases = _chosen(ws, reader, code, left, said=[*recorded, *without], count=count)
        else:
            phrases = [Phrase(text=one) for one in left[:count]]
    done = len(recorded) if source == "chosen" else sum(one in recorded for one in offered)
    total = done + len(left) if source == "chosen" else len(offered)
    return Selection(phrases=tuple(phrases), recorded=done, total=total, seconds=duration)


def _recorded(reader: Reader, speaker: str, language: str) -> tuple[list[str], float]:
    """The phrases that a speaker has read in a language, oldest first, and how long all of it is in seconds."""
    capture, recording, utterance = tables.capture.c, tables.recording.c, tables.utterance.c
    left_out = sa.exists().where(utterance.recording == recording.id, utterance.status.in_(LEFT_OUT))
    query = (
        sa.select(capture.phrase, recording.samples)
        .join_from(tables.capture, tables.recording)
        .where(capture.phrase.is_not(None), recording.speaker == speaker, recording.language == language, ~left_out)
        .order_by(capture.created)
    )
    rows = reader.connection.execute(query).all()
    return list(dict.fromkeys(row.phrase for row in rows)), seconds(sum(row.samples for row in rows))


# Choosing ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Parts:
    """What reading a phrase would teach: its words, the vocabulary's terms in it, and its neighbouring letters."""

    words: tuple[str, ...]  # normalised
    terms: tuple[str, ...]
    pairs: frozenset[str]  # of letters, which stand for sounds


def _chosen(
    ws: Workspace, reader: Reader, language: str, offered: Sequence[str], *, said: Sequence[str], count: int
) -> list[Phrase]:
    """Choose greedily what is worth most for the time that reading it takes, given what was said before."""
    terms = {_normal(ws, language, term.text): term.text for term in vocabulary.entries(ws, language)}
    terms.pop("", None)
    misheard = _misheard(ws, reader, language)
    candidates = {phrase: _parts(ws, language, phrase, terms) for phrase in offered[:CONSIDERED]}
    covered = {one for parts in candidates.values() for one in (*parts.words, *parts.terms)}
    wanted = {**terms, **{word: word for word in misheard if word not in terms}}
    carriers = bundled(language).carriers
    for place, (normal, written) in enumerate(list(wanted.items())[: 5 * count]):
        if normal not in covered:
            carried = carriers[place % len(carriers)].replace("{}", written)
            candidates[carried] = _parts(ws, language, carried, terms)
    heard: Counter[str] = Counter()  # how often each word, term and pair of letters was said
    for phrase in said:
        candidates.pop(phrase, None)
        _count(heard, _parts(ws, language, phrase, terms))
    found: list[Phrase] = []
    while candidates and len(found) < count:
        worth = {phrase: _worth(parts, heard, misheard) for phrase, parts in candidates.items()}
        best = max(worth, key=lambda phrase: worth[phrase])  # the first of equals: the list's own order
        found.append(Phrase(text=best, reason=_reason(candidates[best], terms, misheard)))
        _count(heard, candidates.pop(best))
    return found


def _normal(ws: Workspace, language: str, phrase: str) -> str:
    return text.normalise(phrase, language, ws.settings.normaliser)


def _parts(ws: Workspace, language: str, phrase: str, terms: Collection[str]) -> _Parts:
    words = tuple(_normal(ws, language, phrase).split())
    longest = max((term.count(" ") + 1 for term in terms), default=0)
    runs = (" ".join(words[at : at + length]) for length in range(1, longest + 1) for at in range(len(words)))
    pairs = frozenset(f"{first} {second}" for word in words for first, second in pairwise(f"^{word}$"))
    return _Parts(words, tuple(dict.fromkeys(run for run in runs if run in terms)), pairs)


def _misheard(ws: Workspace, reader: Reader, language: str) -> dict[str, int]:
    """Words of reviewed texts that the model got wrong at least twice, most often first, with how often."""
    utterance = tables.utterance
    newest = reader.all(
        Utterance,
        utterance.c.status == "reviewed",
        sa.or_(utterance.c.language == language, utterance.c.language.is_(None)),
        order=(utterance.c.ingested.desc(), utterance.c.id),
        limit=LOOKED_AT,
    )
    wrong: Counter[str] = Counter()
    for start in range(0, len(newest), BATCH):
        for item in items_of(reader, newest[start : start + BATCH]):
            if item.reference is None or item.hypothesis is None:
                continue
            said = _normal(ws, language, item.reference.text)
            pieces = text.align(said, _normal(ws, language, item.hypothesis.text)) if said else []
            wrong.update(one.reference for one in pieces if one.reference and one.operation != "equal")
    return {word: times for word, times in wrong.most_common() if times >= OFTEN and not word.isdigit()}


def _worth(parts: _Parts, heard: Counter[str], misheard: dict[str, int]) -> float:
    """What reading a phrase is worth for each word of it; what was said before is worth less."""
    most = max(misheard.values(), default=1)
    worth = sum(IN_VOCABULARY / (1 + heard[f"term {term}"]) ** 2 for term in parts.terms)
    for word in set(parts.words):
        worth += NEW_WORD * (not heard[word])
        if word in misheard:
            worth += MISHEARD * (0.5 + 0.5 * misheard[word] / most) / (1 + heard[word]) ** 2
    worth += NEW_LETTERS * sum(not heard[pair] for pair in parts.pairs)
    return worth / (len(parts.words) + TAKE_WORDS)


def _reason(parts: _Parts, terms: dict[str, str], misheard: dict[str, int]) -> str:
    if parts.terms:
        return f"“{terms[parts.terms[0]]}” is in your vocabulary"
    often = max(parts.words, key=lambda word: misheard.get(word, 0), default="")
    return f"“{often}” is often misheard" if often in misheard else "new words and sounds"


def _count(heard: Counter[str], parts: _Parts) -> None:
    heard.update(parts.words)
    heard.update(parts.pairs)
    heard.update(f"term {term}" for term in parts.terms)
