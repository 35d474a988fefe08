"""CSV and TSV: read right, or refused with the line."""

from __future__ import annotations

import csv
import io

import pytest
from hypothesis import given
from hypothesis import strategies as st

from voxloop.speech.separated import rows

HEAD = "file,text\n"


def read(text: str, *, tabs: bool = False) -> list[tuple[int, dict[str, str] | str]]:
    return list(rows(io.StringIO(text, newline=""), tabs=tabs))


def refused(text: str, *, tabs: bool = False) -> list[int]:
    return [number for number, found in read(text, tabs=tabs) if isinstance(found, str)]


def test_a_comma_outside_quotes_cuts_no_text() -> None:
    """https://github.com/pytorch/audio/issues/4161"""
    found = read(HEAD + 'a.wav,Call Stella, ask her\nb.wav,"quoted, fine"\n')
    assert "put texts that contain ',' in quotation marks" in str(found[0][1])
    assert found[1] == (3, {"file": "b.wav", "text": "quoted, fine"})


@pytest.mark.parametrize("behind", ["c,3\nd,4\n", 'c,3\ne,"five, quoted"\nf,6\n', 'c,3\nd,4"\ne,5\n', "c,3\n" * 5000])
def test_a_quote_that_is_never_closed_swallows_nothing(behind: str) -> None:
    """https://github.com/rhasspy/piper/issues/147"""
    text = HEAD + 'a,1\nb,"open here\n' + behind
    assert 3 in refused(text)
    taken = [found["file"] for _, found in read(text) if isinstance(found, dict)]
    assert taken[0] == "a"
    assert taken[1] == "c"
    assert "b" not in taken


def test_tabs_and_line_breaks_in_a_sentence_of_common_voice() -> None:
    """https://github.com/common-voice/common-voice/issues/4429"""
    text = "client_id\tpath\tsentence\tlocale\nc1\ta.mp3\tfirst\nsecond\ten\n"
    text += 'c2\tb.mp3\twith a\ttab\ten\nc3\tc.mp3\tsay "so"\ten\n'
    assert refused(text, tabs=True) == [2, 3, 4]
    assert read(text, tabs=True)[-1][1]["sentence"] == 'say "so"'  # type: ignore[index]


def test_a_break_inside_quotes_is_read() -> None:
    assert read(HEAD + 'a,"one\ntwo"\nb,2\n') == [
        (2, {"file": "a", "text": "one\ntwo"}),
        (4, {"file": "b", "text": "2"}),
    ]


def test_names_of_columns_may_have_capitals_and_spaces() -> None:
    assert read("File, Text\na, eins\n") == [(2, {"file": "a", "text": "eins"})]


@pytest.mark.parametrize("delimiter", [";", "\t", "|"])
def test_another_delimiter_is_found_in_the_header(delimiter: str) -> None:
    assert read(f"file{delimiter}text\na{delimiter}one, two\n") == [(2, {"file": "a", "text": "one, two"})]


def test_a_quote_within_a_word_is_a_letter() -> None:
    assert read(HEAD + 'a,a 5" pipe\nb,2\n') == [
        (2, {"file": "a", "text": 'a 5" pipe'}),
        (3, {"file": "b", "text": "2"}),
    ]


def test_a_text_of_any_length() -> None:
    long = "word " * 100_000 + "."
    assert read(HEAD + f"a,{long}\n")[0][1] == {"file": "a", "text": long}


CELL = st.text(
    st.characters(exclude_categories=("Cs",), exclude_characters="\0\r,", min_codepoint=33), min_size=1, max_size=20
)


@given(st.lists(st.tuples(CELL, CELL, CELL), max_size=8))
def test_what_csv_writes_is_read_or_refused_and_never_changed(written: list[tuple[str, str, str]]) -> None:
    out = io.StringIO(newline="")
    writer = csv.writer(out, quoting=csv.QUOTE_ALL)
    writer.writerow(["a", "b", "c"])
    writer.writerows(written)
    wanted = [tuple(row) for row in written]
    for _, found in read(out.getvalue()):
        if isinstance(found, dict):
            assert tuple(found[name] for name in "abc") in wanted
