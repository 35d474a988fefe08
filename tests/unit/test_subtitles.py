"""Subtitles, read back by FFmpeg's own readers."""

from __future__ import annotations

from pathlib import Path

import av
import pytest

from voxloop.records import Word
from voxloop.speech.subtitles import LINE, LINES, LONGEST_S, Cue, cues, srt, vtt

TEXT = "one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen"


def words(text: str, *, step: float = 0.4, pause_after: int = -1) -> list[Word]:
    found = []
    at = 0.0
    for number, one in enumerate(text.split()):
        found.append(Word(text=one, start=round(at, 3), end=round(at + step - 0.1, 3), probability=0.9))
        at += step + (2.0 if number == pause_after else 0.0)
    return found


def test_without_word_times_a_segment_is_one_cue() -> None:
    (cue,) = cues(TEXT, 1.0, 9.0)
    assert (cue.start, cue.end) == (1.0, 9.0)
    assert " ".join(cue.text.split()) == TEXT
    assert all(len(line) <= LINE for line in cue.text.splitlines())
    assert list(cues(" ", 0.0, 1.0)) == []


def test_with_word_times_it_is_cut_to_what_can_be_read() -> None:
    timed = words(TEXT, pause_after=2)
    found = list(cues(TEXT, 0.0, 12.0, timed))
    assert " ".join(" ".join(cue.text.split()) for cue in found) == TEXT
    assert found[0].text == "one two three"
    for cue in found:
        assert len(cue.text.splitlines()) <= LINES
        assert cue.end - cue.start <= LONGEST_S
    assert [cue.start for cue in found] == sorted(cue.start for cue in found)
    assert {cue.start for cue in found} <= {word.start for word in timed}


def test_characters_are_put_together_without_spaces() -> None:
    (cue,) = cues("今日は", 0.0, 1.0, words("今 日 は"))
    assert cue.text == "今日は"


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
