"""What is counted of one utterance, and the numbers that follow for a whole test set. Pure functions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from voxloop.speech import text
from voxloop.steps.evaluation import significance
from voxloop.steps.evaluation.written import style, written

if TYPE_CHECKING:
    from voxloop.steps.datasets import DatasetRow

SHORT_S, LONG_S = 2.0, 10.0  # bounds of the length slices
NOISY_DB, CLEAR_DB = 10.0, 20.0  # bounds of the slices by signal-to-noise ratio


@dataclass(frozen=True, kw_only=True, slots=True)
class Scored:
    """One test utterance with what one model heard; texts as they are, counts after normalising."""

    utterance: str
    recording: str
    speaker: str | None
    language: str | None
    duration: float  # seconds
    reference: str
    hypothesis: str
    confidence: float | None
    words: int  # of the normalised reference
    errors: int
    substitutions: int
    deletions: int
    insertions: int
    characters: int
    character_errors: int
    orthographic_words: int
    orthographic_errors: int
    # Evaluations of earlier versions kept none of what follows.
    orthographic_characters: int = 0
    orthographic_character_errors: int = 0
    session: str | None = None
    snr_db: float | None = None
    timed_words: int = 0  # words heard right whose times both the reference and the model know
    start_error_s: float = 0.0  # sum over these words of how far their beginnings lie apart
    end_error_s: float = 0.0
    words_in_time: int = 0  # of these: begun and ended within `word_times.COLLAR_S`
    edge_error_s: float | None = None  # how far the words' outer ends lie from the speech's; None: not measured
    detected: str | None = None  # language that the model took it for, where it was not told; None: not measured


def score(
    rows: Sequence[DatasetRow],
    heard: Sequence[tuple[str, float | None]],
    language: str | None,
    changes: text.Changes | None = None,
) -> list[Scored]:
    """Count the errors in texts heard (with their confidence) against the rows' references.

    `changes` is the setting `normaliser`.
    """
    sides = [row.text for row in rows], [hypothesis for hypothesis, _ in heard]
    normalised = [[text.normalise(one, language, changes) for one in side] for side in sides]
    words = text.word_errors_each(*normalised)
    letters = text.character_errors_each(*([text.letters(t, language, changes) for t in side] for side in normalised))
    written = [[text.as_written(one, language, changes) for one in side] for side in sides]
    spelled = text.word_errors_each(*written)
    spelled_letters = text.character_errors_each(
        *([text.letters(t, language, changes) for t in side] for side in written)
    )
    return [
        Scored(
            utterance=row.utterance,
            recording=row.recording,
            speaker=row.speaker,
            language=row.language,
            duration=row.duration,
            reference=row.text,
            hypothesis=hypothesis,
            confidence=confidence,
            words=word.units,
            errors=word.errors,
            substitutions=word.substitutions,
            deletions=word.deletions,
            insertions=word.insertions,
            characters=letter.units,
            character_errors=letter.errors,
            orthographic_words=spelling.units,
            orthographic_errors=spelling.errors,
            orthographic_characters=spelled_letter.units,
            orthographic_character_errors=spelled_letter.errors,
        )
        for row, (hypothesis, confidence), word, letter, spelling, spelled_letter in zip(
            rows, heard, words, letters, spelled, spelled_letters, strict=True
        )
    ]


def scores_of(rows: Sequence[Scored]) -> dict[str, Any]:
    """The numbers of an evaluation, each a sum over utterances."""
    low, high = interval(rows)
    return {
        "wer": wer(rows),
        "wer_low": low,
        "wer_high": high,
        "cer": _rate(rows, "character_errors", "characters"),
        "orthographic_wer": _rate(rows, "orthographic_errors", "orthographic_words"),
        "orthographic_cer": _rate(rows, "orthographic_character_errors", "orthographic_characters"),
        "errors": sum(row.errors for row in rows),
        "substitutions": sum(row.substitutions for row in rows),
        "deletions": sum(row.deletions for row in rows),
        "insertions": sum(row.insertions for row in rows),
        "words": sum(row.words for row in rows),
        "characters": sum(row.characters for row in rows),
        "utterances": len(rows),
        "recordings": len({row.recording for row in rows}),
        "seconds": sum(row.duration for row in rows),
        "slices": [slice_of(by, name, part) for (by, name), part in slices(rows).items()],
        "word_times": _word_times(rows),
        "edges": _edges(rows),
        "language": _language(rows),
        "written": _written(rows),
    }


def _rate(rows: Sequence[Scored], errors: str, units: str) -> float:
    return float(sum(getattr(row, errors) for row in rows) / max(sum(getattr(row, units) for row in rows), 1))


def wer(rows: Sequence[Scored]) -> float:
    """Word errors by word of the references."""
    return _rate(rows, "errors", "words")


def interval(rows: Sequence[Scored]) -> tuple[float, float]:
    """The 95 % interval of the word error rate, by a bootstrap over recordings."""
    return significance.interval(
        [row.errors for row in rows], [row.words for row in rows], [row.recording for row in rows]
    )


def slice_of(by: str, name: str, part: Sequence[Scored]) -> dict[str, Any]:
    """The numbers of a part of a test set, named by what it was parted by."""
    low, high = interval(part)
    return {
        "by": by,
        "name": name,
        "wer": wer(part),
        "wer_low": low,
        "wer_high": high,
        "words": sum(row.words for row in part),
        "utterances": len(part),
        "recordings": len({row.recording for row in part}),
    }


def _word_times(rows: Sequence[Scored]) -> dict[str, Any] | None:
    """How far the words' times lie from the references'; None where nothing can be compared."""
    words = sum(row.timed_words for row in rows)
    if not words:
        return None
    return {
        "words": words,
        "start_error_s": sum(row.start_error_s for row in rows) / words,
        "end_error_s": sum(row.end_error_s for row in rows) / words,
        "in_time": sum(row.words_in_time for row in rows) / words,
    }


def _edges(rows: Sequence[Scored]) -> dict[str, Any] | None:
    """How far the outer words lie from the ends of the speech; None where it was not measured."""
    known = [row.edge_error_s for row in rows if row.edge_error_s is not None]
    return {"utterances": len(known), "error_s": sum(known) / len(known) / 2} if known else None


def _language(rows: Sequence[Scored]) -> dict[str, Any] | None:
    """Whether a model that is not told the language finds it; None where it was not measured."""
    asked = [row for row in rows if row.detected and row.language]
    return {"utterances": len(asked), "right": sum(row.detected == row.language for row in asked)} if asked else None


def _written(rows: Sequence[Scored]) -> dict[str, Any] | None:
    """Whether words heard right are written as in the references; None where these have neither capitals nor marks."""
    asked = style([row.reference for row in rows])
    if not asked:
        return None
    found = [
        as_there for row in rows for as_there in written(row.reference, row.hypothesis, row.language, asked).values()
    ]
    return {
        "words": len(found),
        "right": sum(found),
        "capitals": asked.capitals,
        "punctuation": asked.punctuation,
    }


def slices(rows: Sequence[Scored]) -> dict[tuple[str, str], list[Scored]]:
    """Rows by speaker, language, length, signal-to-noise ratio and session.

    A slice by anything but speaker and language that holds everything says nothing and is left out.
    """
    slices: dict[tuple[str, str], list[Scored]] = {}
    for row in rows:
        for by, name in (
            ("speaker", row.speaker),
            ("language", row.language),
            ("length", _band(row.duration, SHORT_S, LONG_S, "s")),
            ("SNR", None if row.snr_db is None else _band(row.snr_db, NOISY_DB, CLEAR_DB, "dB")),
            ("session", row.session),
        ):
            if name is not None:
                slices.setdefault((by, name), []).append(row)
    return {
        key: part for key, part in sorted(slices.items()) if key[0] in ("speaker", "language") or len(part) < len(rows)
    }


def _band(value: float, low: float, high: float, unit: str) -> str:
    if value < low:
        return f"below {low:g} {unit}"
    return f"{low:g} to {high:g} {unit}" if value < high else f"{high:g} {unit} and more"
