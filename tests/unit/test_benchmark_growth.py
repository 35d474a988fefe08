"""The benchmarks of ingest and growth run at a small size, and their parts come together in one section."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from benchmarks import growth, growth_page, ingest
from benchmarks.side_by_side import Row, write

from voxloop.pipeline import open_loop
from voxloop.records import Utterance
from voxloop.steps import datasets


def test_every_question_is_answered(tmp_path: Path) -> None:
    with open_loop(tmp_path / "w", create=True) as ws:
        growth.fill(ws, 200)
        answers = {name: call() for name, call in growth.questions(ws).items()}
        with ws.read() as reader:
            assert reader.count(Utterance) == 200
        assert sum(answers["counts of the status page"].utterances.values()) == 200
        assert len(answers["page of 50"].items) == 50
        assert answers["page of 50"].items != answers["next page"].items
        assert {item.utterance.language for item in answers["page, one language"].items} == {"vi"}
        assert sum(datasets.build(ws, name="all").clips.values()) == answers["counts of the status page"].references


def test_small_files_are_short_and_unlike(tmp_path: Path) -> None:
    ingest.small_files(tmp_path / "small", 40)
    found = ingest.run_small(tmp_path / "small", tmp_path / "w", 1)  # which refuses to go on if one were known
    assert len(found["rates"]) == len(found["memory_mb"])
    with open_loop(tmp_path / "w") as ws:
        assert len(ingest.ingest(ws, tmp_path / "small").known) == 40


def test_parts_measured_apart_are_one_section(tmp_path: Path) -> None:
    for part in ("long", "mixed"):
        row = Row(
            name=f"the {part} part",
            ours=2.0,
            peer=1.0,
            unit="files/s",
            ratio_median=2.0,
            ratio_min=1.5,
            ratio_max=2.5,
            quality_ours="",
            quality_peer="",
        )
        path = write(tmp_path / f"ingest-{part}.json", [row])
        path.write_text(json.dumps({**json.loads(path.read_text()), "note": f"A note on {part}."}))
    text = ingest.section(tmp_path)
    assert text.index("the mixed part") < text.index("the long part") < text.index("A note on mixed.")
    assert [row["name"] for row in json.loads((tmp_path / "ingest.json").read_text())["rows"]] == [
        "the mixed part",
        "the long part",
    ]


def test_the_page_of_growth_is_written_between_its_marks(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    known = [
        {"size": size, "found": {name: [1.0 * n] for name in (*growth_page.DRAWN, "memory of the build")}}
        for n, size in ((1, 10), (2000, 1000))
    ]
    (tmp_path / "growth.md").write_text("before\n<!-- table -->\nold\n<!-- end of table -->\nafter\n")
    for _ in range(2):
        growth_page.write(tmp_path, known)
    text = (tmp_path / "growth.md").read_text()
    assert text.startswith("before\n")
    assert text.endswith("\nafter\n")
    assert "old" not in text
    assert "| page of 50 | 1.0 ms | 2.0 s |" in text
    assert "| memory of the build | 1 MB | 2000 MB |" in text
    assert (tmp_path / "growth.svg").read_text().startswith("<?xml")


def test_a_part_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        ingest.main(["--part", "nothing"])
    assert "invalid choice: 'nothing'" in capsys.readouterr().err
