"""Subtitles: text cut into cues that can be read, written as SubRip or WebVTT."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from voxloop.errors import UsageError
from voxloop.records import Word

LONGEST_S = 7.0  # a cue stays on the screen no longer than this
SHOWN_S = 5 / 6  # and no shorter, where the next one leaves room (Netflix, Timed Text Style Guide: 20 frames)
SHORTEST_S = 0.1  # players leave out what has no duration
PAUSE_S = 0.8  # a pause between words that ends a cue
CHARACTERS_PER_S = 17.0  # as fast as adults read (Netflix, Timed Text Style Guide)
# The longest that a word is said: alignment gives a word the silence beside it, too. Numbers are long when spoken.
WORD_S = 1.0
LETTER_S = 0.2


@dataclass(frozen=True, kw_only=True, slots=True)
class Layout:
    """How much text a cue may hold. Raises UsageError for less than one of anything."""

    # The BBC's Subtitle Guidelines ask for at most two lines of about 37 characters; 42 is what most others allow.
    width: int = 42
    """Characters of a line."""
    lines: int = 2
    """Lines of a cue."""
    words: int | None = None
    """Words of a line; None: as many as fit."""

    def __post_init__(self) -> None:
        for name, value in (("width", self.width), ("count", self.lines), ("words", self.words)):
            if value is not None and value < 1:
                raise UsageError(f"the {name} of subtitle lines is {value}: it must be 1 or more")


@dataclass(frozen=True, kw_only=True, slots=True)
class Cue:
    """A text and when it is shown, in seconds."""

    start: float
    end: float
    text: str  # its lines


@dataclass(frozen=True, kw_only=True, slots=True)
class _Piece:
    """What is never cut: a word, or as much of a long one as fits a line."""

    text: str
    start: float
    end: float
    space: bool  # one stands before it


DEFAULT = Layout()


def cues(text: str, start: float, end: float, words: Sequence[Word] = (), layout: Layout = DEFAULT) -> Iterator[Cue]:
    """The cues of one segment, cut between words, by their times or as if all letters took equally long."""
    held: list[_Piece] = []
    for piece in _pieces(text, start, max(end, start + SHORTEST_S), words, layout.width):
        if held and (
            piece.start - held[-1].end > PAUSE_S
            or piece.end - held[0].start > LONGEST_S
            or len(_lines([*held, piece], layout)) > layout.lines
        ):
            yield _cue(held, layout)
            held = []
        held.append(piece)
    if held:
        yield _cue(held, layout)


def timed(cues: Iterable[Cue]) -> list[Cue]:
    """Cues in their order, none over the next, each shown long enough to be read where there is room for it."""
    found = sorted(cues, key=lambda cue: cue.start)
    made: list[Cue] = []
    for index, cue in enumerate(found):
        start = max(cue.start, made[-1].end if made else 0.0)
        following = found[index + 1].start if index + 1 < len(found) else float("inf")
        wanted = min(LONGEST_S, max(SHOWN_S, len(cue.text) / CHARACTERS_PER_S))
        end = max(cue.end, start + wanted)
        made.append(replace(cue, start=start, end=max(min(end, following), start + SHORTEST_S)))
    return made


def _cue(pieces: Sequence[_Piece], layout: Layout) -> Cue:
    text = "\n".join(_lines(pieces, layout))
    return Cue(start=pieces[0].start, end=max(pieces[-1].end, pieces[0].start + SHORTEST_S), text=text)


def _lines(pieces: Sequence[_Piece], layout: Layout) -> list[str]:
    lines: list[str] = []
    words = 0
    for piece in pieces:
        space = " " if piece.space else ""
        full = layout.words is not None and piece.space and words >= layout.words
        if lines and not full and len(lines[-1]) + len(space) + len(piece.text) <= layout.width:
            lines[-1] += space + piece.text
            words += piece.space
        else:
            lines.append(piece.text)
            words = 1
    return lines


def _pieces(text: str, start: float, end: float, words: Sequence[Word], width: int) -> Iterator[_Piece]:
    """The pieces of a text: its words with their times, or spread over the segment where no times are known."""
    given = list(_spaced(text, words)) if words else list(_spread(text, start, end))
    for index, piece in enumerate(given):
        longest = WORD_S + LETTER_S * len(piece.text)
        if words and piece.end - piece.start > longest:
            # A first word is given the silence before it, others that behind them.
            first = index == 0 and len(given) > 1
            piece = replace(piece, start=piece.end - longest) if first else replace(piece, end=piece.start + longest)
        yield from _cut(piece, width)


def _spaced(text: str, words: Sequence[Word]) -> Iterator[_Piece]:
    """Words as the text has them: with a space between them or not, as in Japanese or Thai."""
    place = 0
    apart = " " in text.strip()
    for word in words:
        written = word.text.strip()
        if not written:
            continue
        found = text.find(written, place)
        space = apart if found < 0 else text[max(0, found - 1) : found].isspace()
        place = place if found < 0 else found + len(written)
        yield _Piece(text=written, start=word.start, end=max(word.end, word.start), space=space)


def _spread(text: str, start: float, end: float) -> Iterator[_Piece]:
    written = text.split()
    letters = sum(map(len, written))
    before = 0
    for word in written:
        begin, stop = (start + (end - start) * count / letters for count in (before, before + len(word)))
        before += len(word)
        yield _Piece(text=word, start=begin, end=stop, space=True)


def _cut(piece: _Piece, width: int) -> Iterator[_Piece]:
    """A piece that is longer than a line, as those without spaces are, in parts."""
    length = len(piece.text)
    each = (piece.end - piece.start) / max(1, length)
    for first in range(0, length, width):
        last = min(length, first + width)
        yield _Piece(
            text=piece.text[first:last],
            start=piece.start + first * each,
            end=piece.start + last * each,
            space=piece.space and first == 0,
        )


def srt(cues: Sequence[Cue]) -> str:
    """As SubRip: numbered, with commas in the times."""
    return "\n".join(
        f"{number}\n{_clock(cue.start, ',')} --> {_clock(cue.end, ',')}\n{cue.text}\n"
        for number, cue in enumerate(cues, 1)
    )


def vtt(cues: Sequence[Cue]) -> str:
    """As WebVTT (https://www.w3.org/TR/webvtt1/): `&`, `<` and `>` are escaped, so that no text is taken for markup."""
    return "WEBVTT\n\n" + "\n".join(
        f"{_clock(cue.start, '.')} --> {_clock(cue.end, '.')}\n{_escaped(cue.text)}\n" for cue in cues
    )


def tsv(cues: Iterable[Cue]) -> str:
    """As openai/whisper's TSV: start and end in milliseconds and the text, parted by tabs."""
    rows = (f"{round(1000 * cue.start)}\t{round(1000 * cue.end)}\t{' '.join(cue.text.split())}" for cue in cues)
    return "\n".join(["start\tend\ttext", *rows])


def _escaped(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def _clock(time_s: float, comma: str) -> str:
    """`hh:mm:ss,mmm`, as subtitles count time."""
    milliseconds = round(time_s * 1000)
    hours, rest = divmod(milliseconds, 3_600_000)
    minutes, rest = divmod(rest, 60_000)
    return f"{hours:02}:{minutes:02}:{rest // 1000:02}{comma}{rest % 1000:03}"
