"""What a command prints comes from a step's records, and review commands choose utterances by the same options."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import typer.main
from typer.testing import CliRunner

from tests.unit.speech import add_utterance
from voxloop.cli import app
from voxloop.cli.filters import filters
from voxloop.errors import UsageError
from voxloop.pipeline import open_loop
from voxloop.records import Dataset, Evaluation, Model, Promotion, Run, plain
from voxloop.steps import datasets, review
from voxloop.steps.gate import overview
from voxloop.stores import tables
from voxloop.workspace import Workspace

FILTERED = ("list", "next", "diff", "bulk-accept", "export")


def run(*arguments: str) -> tuple[int, str]:
    result = CliRunner().invoke(app, list(arguments))
    return result.exit_code, result.output


def printed(*arguments: str) -> Any:
    code, said = run(*arguments, "--json")
    assert code == 0, said
    return json.loads(said)


def stored(value: Any) -> Any:
    """A step's result as it looks after a way through JSON."""
    return json.loads(json.dumps(plain(value)))


@pytest.fixture
def reviewed(workspace: Workspace) -> Workspace:
    """Three utterances, one of them with a reference."""
    add_utterance(workspace, "sure", heard="turn the lamp off", confidence=0.9, speaker="ann", language="en")
    add_utterance(workspace, "unsure", heard="it is late", confidence=0.2, speaker="bob", language="en")
    add_utterance(workspace, "done", heard="open doors", reference="open the door", speaker="ann", language="en")
    return workspace


def test_the_filters_are_the_same_options_everywhere() -> None:
    commands = typer.main.get_command(app).commands["review"].commands  # type: ignore[attr-defined]
    names = list(filters.__annotations__)[:-1]
    assert len(names) == 10

    def options(command: str) -> list[tuple[Any, ...]]:
        known = {one.name: one for one in commands[command].params}
        return [(one.opts, one.help, one.default, one.type_descriptor.annotation) for one in map(known.get, names)]

    for command in FILTERED:
        assert options(command) == options("list"), command
        order = [one.name for one in commands[command].params]
        assert order[order.index(names[0]) :][: len(names)] == names


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ([], {"sure", "unsure", "done"}),
        (["--status", "transcribed"], {"sure", "unsure"}),
        (["--speaker", "ann"], {"sure", "done"}),
        (["--language", "vi"], set()),
        (["--min-confidence", "0.5"], {"sure", "done"}),
        (["--max-confidence", "0.5"], {"unsure"}),
        (["--contains", "LAMP"], {"sure"}),
        (["--since", "2020-01-01"], {"sure", "unsure", "done"}),
        (["--until", "2020-01-01T12:00"], set()),
        (["--warning", "low confidence"], {"unsure"}),
        (["--warning", "any", "--speaker", "bob"], {"unsure"}),
    ],
)
def test_options_become_filters(reviewed: Workspace, tmp_path: Path, options: list[str], expected: set[str]) -> None:
    folder = str(reviewed.folder)
    listed = printed("-C", folder, "review", "list", *options)
    assert {one["utterance"]["recording"].removeprefix("sha256-") for one in listed} == expected
    run("-C", folder, "review", "export", str(tmp_path / "out.jsonl"), *options)
    rows = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert {row["utterance"].partition(":")[0].removeprefix("sha256-") for row in rows} == expected


@pytest.mark.parametrize("command", [["next"], ["bulk-accept", "--above", "0.5"]])
def test_only_what_waits_can_be_asked_for_where_something_is_taken(reviewed: Workspace, command: list[str]) -> None:
    code, said = run("-C", str(reviewed.folder), "review", *command, "--status", "reviewed")
    assert (code, "Only utterances with status `transcribed` wait for review" in said) == (2, True)
    assert run("-C", str(reviewed.folder), "review", *command, "--status", "transcribed", "--speaker", "bob")[0] == 0


def test_reviews_are_printed_as_the_step_returns_them(reviewed: Workspace) -> None:
    folder = str(reviewed.folder)
    items = review.page(reviewed).items
    assert printed("-C", folder, "review", "list") == stored(items)
    assert list(plain(items[0])) == [
        "utterance",
        "number",
        "file",
        "text",
        "reference",
        "hypothesis",
        "versions",
        "warnings",
        "version",
        "cursor",
    ]
    turn = printed("-C", folder, "review", "next", "--by", "ann", "--speaker", "bob")
    assert turn == stored(review.held(reviewed)[0])
    assert turn["by"] == "ann"
    id = turn["utterance"]["id"]
    review.save(reviewed, id, "it was late", by="ann")
    shown = printed("-C", folder, "review", "show", id)
    assert shown == stored(review.item_history(reviewed, id))
    assert (shown["text"], [one["kind"] for one in shown["decisions"]]) == ("it was late", ["save"])
    differs = printed("-C", folder, "review", "diff", id)
    assert differs == stored(review.diff(reviewed, id))
    assert differs["wer"] == pytest.approx(1 / 3)


def test_datasets_are_printed_as_the_step_returns_them(reviewed: Workspace) -> None:
    folder = str(reviewed.folder)
    first = datasets.build(reviewed, ratios=(1, 0, 0))
    with pytest.raises(UsageError, match="has no previous version"):
        datasets.diff(reviewed, first.id)
    review.save(reviewed, review.page(reviewed, where=review.Filters(speaker="bob")).items[0].utterance.id, "x", by="b")
    second = datasets.build(reviewed, ratios=(1, 0, 0))
    assert printed("-C", folder, "dataset", "list") == stored(datasets.all_datasets(reviewed))
    shown = printed("-C", folder, "dataset", "show", first.id)
    assert shown == stored(datasets.details(reviewed, first.id))
    assert shown["id"] == first.id
    assert shown["summary"]["words"] == 3
    changed = datasets.diff(reviewed, second.id)
    assert printed("-C", folder, "dataset", "diff", "default") == stored(changed)
    assert changed == datasets.diff(reviewed, first.id, second.id)
    assert changed.counts["added"] == len(changed.differences) == 1
    only = datasets.diff(reviewed, second.id, change="removed")
    assert (only.counts, only.differences) == (changed.counts, ())
    with pytest.raises(UsageError, match="did you mean added"):
        datasets.diff(reviewed, second.id, change="aded")


def test_exclusions_can_be_those_that_cost_a_review(reviewed: Workspace) -> None:
    add_utterance(reviewed, "short", reference="no", heard="no", duration=0.2)
    made = datasets.build(reviewed, ratios=(1, 0, 0), filters=datasets.Filters(min_seconds=0.5))
    every, lost = datasets.exclusions(reviewed, made.id), datasets.exclusions(reviewed, made.id, reviewed=True)
    assert len(every) == 3
    assert [one.utterance.partition(":")[0] for one in lost] == ["sha256-short"]
    assert datasets.details(reviewed).reviewed == 1


def test_models_are_printed_as_the_step_returns_them(tmp_path: Path) -> None:
    with open_loop(tmp_path, create=True) as ws:
        with ws.transaction() as tx:
            tx.add(Dataset(id="sha256-d", name="default", filters={}, clips={"train": 4}, hours={"train": 0.01}))
            tx.add(Run(id="r", dataset="sha256-d", base="sha256-b", family="whisper", method="full", recipe={}))
            base = Model(id="sha256-b", family="whisper", base="starter", kind="full", where="starter")
            tuned = Model(id="sha256-t", family="whisper", base="sha256-b", kind="full", where="models/t", run="r")
            tx.add(base, tuned)
            for split, wer in (("val", 0.5), ("test", 0.25)):
                tx.add(
                    Evaluation(
                        id=f"sha256-e{split}",
                        model=tuned.id,
                        dataset="sha256-d",
                        split=split,  # type: ignore[arg-type]
                        decoding={},
                        normaliser="n",
                        scores={"wer": wer, "utterances": 3},
                        hypotheses="h",
                    )
                )
            tx.add(
                Promotion(
                    id="p", alias="champion", model=tuned.id, previous=base.id, verdict="promote", evidence={}, by="ann"
                )
            )
            alias = {"name": "champion", "model": tuned.id, "promotion": "p"}
            tx.connection.execute(tables.alias.insert().values(**alias))
        listed = {one.model.id: one for one in overview.overview(ws)}
        assert printed("-C", str(tmp_path), "model", "list") == stored(list(listed.values()))
        one = listed[tuned.id]
        assert one.evaluation
        assert (one.aliases, one.evaluation.scores["wer"]) == (("champion",), 0.25)
        assert (one.run, one.dataset) == (ws_run(ws), datasets.find(ws))
        assert (listed[base.id].run, listed[base.id].dataset, listed[base.id].aliases) == (None, None, ())
        shown = overview.details(ws, "sha256-b")
        assert (shown.evaluations, [move.id for move in shown.promotions]) == ((), ["p"])
        assert printed("-C", str(tmp_path), "model", "show", base.id) == stored(shown)
    said = run("-C", str(tmp_path), "model", "list")[1]
    for part in ("starter", "champion", "25.0 %", "starter  full    default      4 "):
        assert part in said


def ws_run(ws: Workspace) -> Run:
    with ws.read() as reader:
        return reader.get(Run, "r")
