"""Subtitles: text cut into cues that can be read, written as SubRip or WebVTT."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from voxloop.records import Word

# The BBC's Subtitle Guidelines ask for at most two lines of about 37 characters; 42 is what most others allow.
LINE = 42  # characters
LINES = 2
LONGEST_S = 7.0  # a cue is on the screen no longer than this
SHORTEST_S = 0.1  # players leave out what has no duration
PAUSE_S = 0.8  # a pause between words that ends a cue


@dataclass(frozen=True, kw_only=True, slots=True)
class Cue:
    """A text and when it is shown, in seconds."""

    start: float
    end: float
    text: str  # its lines


def cues(text: str, start: float, end: float, words: Sequence[Word] = ()) -> Iterator[Cue]:
    """The cues of one segment: cut between words where their times are known, one cue where they are not."""
    if not text.strip():
        return
    if not words:
        yield Cue(start=start, end=end, text="\n".join(_lines(text.split())))
        return
    # What the words are put together with again: nothing in languages that write no spaces.
    space = " " if " " in text.strip() or len(words) == 1 else ""
    held: list[Word] = []
    for word in words:
        longer = [*(one.text for one in held), word.text]
        if held and (
            word.start - held[-1].end > PAUSE_S
            or word.end - held[0].start > LONGEST_S
            or len(_lines(longer, space)) > LINES
        ):
            yield _cue(held, space)
            held = []
        held.append(word)
    yield _cue(held, space)


def _cue(words: Sequence[Word], space: str) -> Cue:
    text = "\n".join(_lines([word.text for word in words], space))
    return Cue(start=words[0].start, end=max(words[-1].end, words[0].start + SHORTEST_S), text=text)


def _lines(words: Sequence[str], space: str = " ") -> list[str]:
    """Words in lines of at most 42 characters; a longer word has a line of its own."""
    lines: list[str] = []
    for word in words:
        if lines and len(lines[-1]) + len(space) + len(word) <= LINE:
            lines[-1] += space + word
        else:
            lines.append(word)
    return lines


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


def _escaped(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def _clock(time_s: float, comma: str) -> str:
    """`hh:mm:ss,mmm`, as subtitles count time."""
    milliseconds = round(time_s * 1000)
    hours, rest = divmod(milliseconds, 3_600_000)
    minutes, rest = divmod(rest, 60_000)
    return f"{hours:02}:{minutes:02}:{rest // 1000:02}{comma}{rest % 1000:03}"
