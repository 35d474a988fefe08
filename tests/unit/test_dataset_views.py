"""What is told of a dataset agrees with its rows: the summary, the difference, the picture."""

from __future__ import annotations

import json
import sys
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from tests.unit.speech import add_utterance
from voxloop.cli import app
from voxloop.errors import UsageError
from voxloop.pipeline import open_loop
from voxloop.records import SPLITS, Dataset, Utterance
from voxloop.steps import datasets, review
from voxloop.steps.datasets.picture import draw
from voxloop.steps.datasets.rows import DatasetRow
from voxloop.steps.datasets.style import restored, styles_of
from voxloop.steps.datasets.summary import LENGTHS_S, summary_of
from voxloop.workspace import Workspace


def row(number: int, split: str, text: str, speaker: str | None, samples: int) -> DatasetRow:
    return DatasetRow(
        utterance=f"u{number}",
        recording=f"r{number // 2}",
        start=0,
        end=samples,
        split=split,  # type: ignore[arg-type]
        text=text,
        kind="reference",
        transcript=f"t{number}",
        speaker=speaker,
        language="xx",
    )


@given(
    st.lists(
        st.tuples(
            st.sampled_from(SPLITS),
            st.lists(st.sampled_from(["ja", "nein", "doch"]), min_size=1, max_size=5),
            st.sampled_from([None, "ann", "bob"]),
            st.integers(1, 31 * 16_000),
        ),
        max_size=30,
    )
)
def test_a_summary_counts_what_is_there(clips: list[tuple[str, list[str], str | None, int]]) -> None:
    rows = [row(number, split, " ".join(words), *rest) for number, (split, words, *rest) in enumerate(clips)]
    told = summary_of(rows)
    everything = [word for _, words, _, _ in clips for word in words]
    assert (told.words, told.vocabulary) == (len(everything), len(set(everything)))
    assert dict(told.frequent) == Counter(everything)
    assert told.hours * 3600 == pytest.approx(sum(samples for *_, samples in clips) / 16_000)
    learnt = {word for split, words, _, _ in clips if split == "train" for word in words}
    for split, one in told.splits.items():
        mine = [clip for clip in clips if clip[0] == split]
        assert one.clips == len(mine) == sum(one.lengths)
        assert one.unseen == sum(word not in learnt for _, words, _, _ in mine for word in words)
        learnt_texts = {" ".join(words) for other, words, *_ in clips if other == "train"}
        heard = sum(" ".join(words) in learnt_texts for _, words, *_ in mine)
        assert one.heard == (0 if split == "train" else heard)
        assert one.speakers == len({speaker for _, _, speaker, _ in mine} - {None})
        assert one.lengths[-1] == sum(samples >= LENGTHS_S[-1] * 16_000 for *_, samples in mine)
    for hours in (told.speakers, told.languages):
        assert sum(sum(each.values()) for each in hours.values()) == pytest.approx(told.hours)


def test_a_difference_names_what_came_went_and_changed(workspace: Workspace) -> None:
    ids = [add_utterance(workspace, f"r{i}", reference="yes")[0] for i in range(8)]
    first = datasets.build(workspace, ratios=(1, 0, 0))
    review.save(workspace, ids[0], "no", by="ann")
    review.reject(workspace, ids[1], reason="noise", by="ann")
    (new,) = add_utterance(workspace, "new", reference="maybe")
    second = datasets.build(workspace, ratios=(1, 0, 0))
    assert second.parent == first.id
    found = datasets.diff(workspace, first.id, second.id)
    assert found.counts == {"added": 1, "removed": 1, "text": 1, "moved": 0}
    assert (found.added, found.removed) == ({"train": 1}, {"train": 1})
    told = {(one.change, one.utterance, one.before, one.after) for one in found.differences}
    assert told == {
        ("text", ids[0], "yes", "no"),
        ("removed", ids[1], "yes", None),
        ("added", new, None, "maybe"),
    }
    assert datasets.diff(workspace, first.id, first.id).differences == ()
    back = datasets.diff(workspace, second.id, first.id)
    assert {(one.after, one.before) for one in back.differences} == {(b, a) for _, _, b, a in told}


# How texts are written -----------------------------------------------------------------------------------------------


def test_the_style_of_texts_is_told_by_language() -> None:
    texts = [("it's a well-known voice", "en"), ("Good morning.", "en"), ("I see", "en"), ("STOP", "en")]
    found = styles_of([*texts, ("今日は", "ja"), ("これは、本です。", "ja"), ("xin chào", "vi")])
    assert (found["en"].clips, found["en"].cased, found["en"].punctuated) == (4, 0.5, 0.25)
    assert (found["ja"].cased, found["ja"].punctuated) == (None, 0.5)
    assert found["vi"].plain
    assert not found["en"].plain


@pytest.mark.parametrize(
    ("text", "heard", "language", "expected"),
    [
        ("good morning everybody", "Good morning, everybody.", "en", "Good morning, everybody."),
        ("the cat sat down", "The dog sat down!", "en", "The cat sat down!"),
        ("the the cat", "The cat.", "en", "the The cat."),
        ("yes", "No.", "en", ""),
        ("xin chào", "Xin chao.", "vi", "Xin chào"),
        ("so they said", "- So they said", "en", "So they said"),
        ("今日は", "今日は。", "ja", ""),
        ("", "Hello.", "en", ""),
    ],
)
def test_style_is_taken_over_where_the_words_agree(text: str, heard: str, language: str, expected: str) -> None:
    assert restored(text, heard, language) == expected


@given(st.text(max_size=60), st.text(max_size=60))
def test_restoring_style_changes_no_word(text: str, heard: str) -> None:
    found = restored(text, heard, "en")
    assert not found or datasets.sentence(found) == datasets.sentence(text)


def test_a_dataset_says_what_it_lacks(workspace: Workspace) -> None:
    for i in range(12):
        add_utterance(workspace, f"en{i}", reference=f"text {i}", language="en", speaker="ann")
    datasets.build(workspace, ratios=(1, 0, 0))
    found = {one.kind: one for one in datasets.advise(workspace).warnings}
    assert found.keys() == {"small test", "no validation"}
    assert found["small test"].message == "The test split has 0 clips; a promotion needs at least 20."
    assert found["small test"].remedy == "review about 38 clips more, then build again"
    for i in range(40):
        add_utterance(workspace, f"x{i}", reference=f"other text {i}", language="en", speaker="ann")
    for i in range(60):
        add_utterance(workspace, f"de{i}", reference=f"noch ein Text {i}", language="de", speaker="bob")
    made = datasets.build(workspace)
    assert made.clips["test"] >= 20
    assert made.clips["val"] > 0
    assert not datasets.advise(workspace).warnings
    with workspace.transaction() as tx:
        held = [row.utterance for row in datasets.rows(workspace, made.id) if row.split == "val"]
        tx.change(Utterance, held, language="en")
    datasets.build(workspace)
    (told,) = datasets.advise(workspace).warnings
    assert (told.kind, told.message) == (
        "languages",
        "val has no clip in de, which training has: there, nothing is measured.",
    )


def test_build_and_show_say_what_a_dataset_lacks_at_80_columns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    with open_loop(tmp_path / "w", create=True) as ws:
        for i in range(12):
            add_utterance(ws, f"r{i}", reference=f"text {i}", language="en", speaker="a speaker with a long name")
        add_utterance(ws, "short", reference="a", language="en", duration=0.04, by="metadata")

    def said(*arguments: str) -> str:
        done = CliRunner().invoke(app, ["-C", str(tmp_path / "w"), "dataset", *arguments])
        assert done.exit_code == 0, done.output
        return done.stdout

    built = said("build", "--name", "my-first-voice", "--ratios", "1/0/0")
    assert "Shortest clip taken: 0.25 s, by the length of the others (--min-seconds sets it)" in built
    assert "Texts in en: 0% with capitals, 0% with punctuation (--restore-style takes them from" in built
    assert "Warning: The test split has 0 clips; a promotion needs at least 20." in built
    assert "Warning: The val split is empty: training cannot tell which of its checkpoints is best." in built
    assert "What helps: `voxloop dataset build --fresh-test` (draws from 12 clips that no model" in built
    fresh = said("build", "--name", "my-first-voice", "--fresh-test")
    assert [line.split()[:2] for line in fresh.splitlines()[2:5]] == [["train", "6"], ["val", "1"], ["test", "5"]]
    shown = said("show")
    assert "a promotion needs at least 20" in shown
    # Tables keep to 80 columns; sentences are for the terminal to wrap.
    tables = [line for line in (shown + said("list")).splitlines() if "  " in line.strip() and "Warning" not in line]
    assert tables
    assert max(len(line.rstrip()) for line in tables if not line.startswith("  ")) <= 80
    assert said("exclusions").splitlines()[1].split()[:3] == ["13", "short", "0.0"]
    as_json = json.loads(said("show", "--json"))
    assert {one["kind"] for one in as_json["advice"]["warnings"]} == {"small test"}


@pytest.fixture
def frozen() -> Dataset:
    return Dataset(id="sha256-0123456789abcdef", name="a $name$", filters={}, clips={}, hours={})


@pytest.mark.parametrize("count", [0, 1, 60])
def test_a_picture_is_drawn_of_any_dataset(tmp_path: Path, frozen: Dataset, count: int) -> None:
    rows = [
        row(i, SPLITS[i % 3], f"$x_{i}$ 日本 {i}", f"a very long name of a speaker {i}", 16_000) for i in range(count)
    ]
    draw(summary_of(rows), frozen, tmp_path / "picture.png")
    assert (tmp_path / "picture.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    with pytest.raises(UsageError, match="cannot be written"):
        draw(summary_of(rows), frozen, tmp_path / "missing" / "picture.png")


def test_what_is_not_installed_is_named(
    tmp_path: Path, frozen: Dataset, workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("matplotlib.figure", "pyarrow"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(UsageError, match=r"voxloop\[plot\]"):
        draw(summary_of([]), frozen, tmp_path / "picture.png")
    add_utterance(workspace, "r", reference="yes")
    made = datasets.build(workspace, ratios=(1, 0, 0))
    with pytest.raises(UsageError, match=r"voxloop\[parquet\]"):
        datasets.export_dataset(workspace, made.id, tmp_path / "out", format="parquet")
    assert not (tmp_path / "out").exists()
