"""Subtitles, read back by FFmpeg's own readers."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import av
import pytest
from hypothesis import given
from hypothesis import strategies as st

from voxloop.errors import UsageError
from voxloop.records import Word
from voxloop.speech.subtitles import (
    DEFAULT,
    LETTER_S,
    LONGEST_S,
    SHORTEST_S,
    WORD_S,
    Cue,
    Layout,
    cues,
    srt,
    timed,
    tsv,
    vtt,
)

TEXT = "one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen"


def words(text: str, *, step: float = 0.4, pause_after: int = -1) -> list[Word]:
    found = []
    at = 0.0
    for number, one in enumerate(text.split()):
        found.append(Word(text=one, start=round(at, 3), end=round(at + step - 0.1, 3), probability=0.9))
        at += step + (2.0 if number == pause_after else 0.0)
    return found


def test_without_word_times_a_segment_is_cut_as_if_all_letters_took_equally_long() -> None:
    found = list(cues(TEXT, 1.0, 9.0))
    assert len(found) == 2
    assert (found[0].start, round(found[-1].end, 3)) == (1.0, 9.0)
    assert " ".join(" ".join(cue.text.split()) for cue in found) == TEXT
    assert all(len(line) <= DEFAULT.width for cue in found for line in cue.text.splitlines())
    assert list(cues(" ", 0.0, 1.0)) == []


def test_with_word_times_it_is_cut_to_what_can_be_read() -> None:
    spoken = words(TEXT, pause_after=2)
    found = list(cues(TEXT, 0.0, 12.0, spoken))
    assert " ".join(" ".join(cue.text.split()) for cue in found) == TEXT
    assert found[0].text == "one two three"
    for cue in found:
        assert len(cue.text.splitlines()) <= DEFAULT.lines
        assert cue.end - cue.start <= LONGEST_S
    assert [cue.start for cue in found] == sorted(cue.start for cue in found)
    assert {cue.start for cue in found} <= {word.start for word in spoken}


def test_characters_are_put_together_without_spaces() -> None:
    (cue,) = cues("今日は", 0.0, 1.0, words("今 日 は"))
    assert cue.text == "今日は"


def test_words_of_two_scripts_keep_the_spaces_that_the_text_has() -> None:
    (cue,) = cues("OpenAI の音声 API", 0.0, 2.0, words("OpenAI の 音 声 API"))
    assert cue.text == "OpenAI の音声 API"


def test_a_word_of_ten_seconds_is_parted_from_its_silence() -> None:
    spoken = [Word(text=text, start=start, end=end, probability=1.0) for text, start, end in
              [("well", 0.0, 10.0), ("yes", 10.0, 10.3), ("sir", 10.3, 20.0)]]  # fmt: skip
    found = list(cues("well yes sir", 0.0, 20.0, spoken))
    assert [cue.text for cue in found] == ["well yes sir"]
    assert found[0].start == pytest.approx(10.0 - WORD_S - 4 * LETTER_S)  # the silence before the first word
    assert found[0].end == pytest.approx(10.3 + WORD_S + 3 * LETTER_S)  # and that behind the last


def test_a_short_cue_is_shown_as_long_as_it_takes_to_read_where_there_is_room() -> None:
    quick = [
        Cue(start=1.0, end=1.2, text="a" * 34),
        Cue(start=10.0, end=10.1, text="b"),
        Cue(start=10.3, end=11, text="c"),
    ]
    assert [(cue.start, round(cue.end, 3)) for cue in timed(quick)] == [(1.0, 3.0), (10.0, 10.3), (10.3, 11.133)]


def test_the_table_is_that_of_whisper() -> None:
    assert tsv([Cue(start=0.5, end=1.25, text="two\nlines")]) == "start\tend\ttext\n500\t1250\ttwo lines"


def test_lines_of_no_width_are_refused() -> None:
    with pytest.raises(UsageError, match="width"):
        Layout(width=0)


spoken_words = st.lists(
    st.tuples(
        st.text(st.characters(codec="utf-8", categories=("L", "N", "P")), min_size=1, max_size=60),
        st.floats(0, 3),
        st.floats(0, 12),
    ),
    max_size=30,
)
layouts = st.builds(
    Layout, width=st.integers(1, 60), lines=st.integers(1, 3), words=st.one_of(st.none(), st.integers(1, 6))
)


@given(st.lists(spoken_words, max_size=4), layouts, st.booleans(), st.sampled_from(["", " "]))
def test_cues_never_overlap_nor_lose_a_word(
    segments: list[list[tuple[str, float, float]]], layout: Layout, with_times: bool, space: str
) -> None:
    at = 0.0
    found: list[Cue] = []
    for segment in segments:
        spoken, start = [], at
        for text, pause, length in segment:
            spoken.append(Word(text=text, start=at + pause, end=at + pause + length, probability=1.0))
            at += pause + length
        text = space.join(word.text for word in spoken)
        found += cues(text, start, at, spoken if with_times else (), layout)
    made = timed(found)
    said = "".join(text for segment in segments for text, _, _ in segment)
    assert "".join("".join(cue.text.split()) for cue in made) == said
    for cue in made:
        lines = cue.text.splitlines()
        assert len(lines) <= layout.lines
        assert all(len(line) <= layout.width for line in lines)
        assert cue.end >= cue.start + SHORTEST_S - 1e-9
        assert layout.words is None or all(len(line.split()) <= layout.words for line in lines)
    for one, other in pairwise(made):
        assert one.end <= other.start + 1e-9


@pytest.mark.parametrize(("write", "name"), [(srt, "a.srt"), (vtt, "a.vtt")])
def test_ffmpeg_reads_what_was_written(tmp_path: Path, write: object, name: str) -> None:
    written = [
        Cue(start=0.5, end=1.25, text="Zwei < drei & mehr"),
        Cue(start=3_661.001, end=3_662.0, text="two\nlines"),
    ]
    (tmp_path / name).write_text(write(written), encoding="utf-8")  # type: ignore[operator]
    with av.open(str(tmp_path / name)) as container:
        packets = [packet for packet in container.demux() if packet.size]
        assert [round(float(packet.pts * packet.time_base), 3) for packet in packets] == [0.5, 3661.001]
        assert [round(float(packet.duration * packet.time_base), 3) for packet in packets] == [0.75, 0.999]
        texts = [bytes(packet).decode() for packet in packets]
    assert texts[1].splitlines() == ["two", "lines"]
    assert texts[0].replace("&lt;", "<").replace("&amp;", "&") == "Zwei < drei & mehr"
    assert "<" not in texts[0] or name == "a.srt"
