"""Which words are taken for which, and what changed between two models."""

from __future__ import annotations

from voxloop.steps.datasets import DatasetRow
from voxloop.steps.evaluation import Scored, score
from voxloop.steps.evaluation.words import changes, confusions, differences, slice_changes, worst


def heard(*pairs: tuple[str, str], speakers: tuple[str, ...] = ("ann", "bob")) -> list[Scored]:
    rows = [
        DatasetRow(
            utterance=f"r{number}:0-16000", recording=f"r{number}", start=0, end=16_000, split="test", text=said,
            kind="reference", transcript=f"t{number}", speaker=speakers[number % len(speakers)], language="en",
        )
        for number, (said, _) in enumerate(pairs)
    ]  # fmt: skip
    return score(rows, [(text, None) for _, text in pairs], "en")


def test_confusions_add_up_to_the_errors_counted() -> None:
    rows = heard(
        ("the cat sat", "the bat sat"), ("The cat, again.", "the bat again"), ("sit down", "sit"), ("go", "go go on")
    )
    found = confusions(rows, None)
    assert [(c.said, c.heard, c.count) for c in found.substitutions] == [("cat", "bat", 2)]
    assert [(c.said, c.heard, c.count) for c in found.deletions] == [("down", None, 1)]
    assert {(c.said, c.heard, c.count) for c in found.insertions} == {(None, "go", 1), (None, "on", 1)}
    every = [*found.substitutions, *found.deletions, *found.insertions]
    assert sum(c.count for c in every) == sum(row.errors for row in rows)
    assert len(confusions(rows, None, most=1).insertions) == 1


def test_differences_are_of_what_was_counted() -> None:
    row = heard(("Twenty-three, please!", "23 peas"))[0]
    assert [p.operation for p in differences(row, None)] == ["equal", "equal", "substitute"]
    assert row.errors == 1


def test_the_worst_come_first_and_the_right_not_at_all() -> None:
    rows = heard(("a b c", "a b c"), ("a b c", "x y c"), ("b", "x y"), ("d", "e"))
    assert [row.utterance[:2] for row in worst(rows, most=2)] == ["r2", "r1"]  # of equals the shorter
    assert len(worst(rows, most=9)) == 3


def test_better_and_worse_are_told_apart() -> None:
    before = heard(("a b c", "a b c"), ("d e f", "x y z"), ("g", "g"), ("h", "x"))
    after = heard(("a b c", "a x c"), ("d e f", "d e f"), ("g", "g"), ("h", "y"))
    better, worse = changes(before, after)
    assert [(one.before.utterance[:2], one.errors) for one in better] == [("r1", -3)]
    assert [(one.before.utterance[:2], one.errors) for one in worse] == [("r0", 1)]
    sliced = {(one.by, one.name): one for one in slice_changes(before, after)}
    ann, bob = sliced["speaker", "ann"], sliced["speaker", "bob"]
    assert (ann.wer_before, ann.wer_after, ann.words) == (0.0, 0.25, 4)
    assert bob.difference == -0.75
    assert bob.low <= bob.difference <= bob.high
