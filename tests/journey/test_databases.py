"""The same speech through the loop on each database: the same records, and the same frozen dataset."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from voxloop.automation.worker import work
from voxloop.records import Transcript
from voxloop.status import status
from voxloop.steps import datasets, review
from voxloop.steps.recordings import ingest
from voxloop.steps.review import Filters
from voxloop.workspace import Workspace

CLIPS = 12


def run(ws: Workspace, speech: Path) -> dict[str, Any]:
    """What there is to see after ingest, the worker, a correction and a frozen dataset."""
    ingest(ws, speech, processes=1)
    work(ws, until_idle=True)
    first = review.page(ws, where=Filters(status="transcribed"), limit=1).items[0]
    review.save(ws, first.utterance.id, "corrected by a person", by="ann")
    frozen = datasets.build(ws, name="frozen", ratios=(0.5, 0.2, 0.3), machine_text=0.0)
    with ws.read() as reader:
        texts = sorted((one.utterance, one.kind, one.text) for one in reader.all(Transcript))
    said = status(ws)
    return {
        "texts": texts,
        "listed": [item.utterance.id for item in review.page(ws).items],
        "found": [item.text for item in review.page(ws, where=Filters(contains="CORRECTED")).items],
        "rows": [(row.utterance, row.split, row.text) for row in datasets.rows(ws, frozen.id)],
        "clips": frozen.clips,
        "hours": frozen.hours,
        "status": (said.recordings, said.hours, said.utterances, said.references, said.datasets, said.jobs, said.dead),
    }


def test_databases_make_no_difference(
    sqlite_workspace: Workspace, postgresql_workspace: Workspace, tmp_path: Path, demo_speech: Path
) -> None:
    speech = tmp_path / "speech"
    speech.mkdir()
    lines = (demo_speech / "metadata.jsonl").read_text().splitlines()[:CLIPS]
    for line in lines:
        shutil.copy(demo_speech / json.loads(line)["file"], speech)
    (speech / "metadata.jsonl").write_text("\n".join(lines[: CLIPS // 2]) + "\n")
    expected, found = (run(ws, speech) for ws in (sqlite_workspace, postgresql_workspace))
    assert len(expected["rows"]) > CLIPS // 2
    assert expected["found"] == ["corrected by a person"]
    for what in expected:
        assert found[what] == expected[what], what
