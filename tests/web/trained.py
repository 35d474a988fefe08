"""Workspaces with something to train on, and with models that were judged."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from tests.unit import frozen_speech
from voxloop import models
from voxloop.pipeline import open_loop
from voxloop.records import Recording
from voxloop.settings import template
from voxloop.steps.gate.promotion import promote
from voxloop.steps.recordings import ingest
from voxloop.steps.utterances import segment
from voxloop.workspace import Workspace

DEMO = Path(__file__).parents[2] / "demo" / "speech"


def copied(made: Path, folder: Path) -> Workspace:
    """A workspace of its own with what another one (its folder) holds."""
    return open_loop(Path(shutil.copytree(made, folder / "workspace")))


def spoken(folder: Path, *, clips: int = 50) -> Workspace:
    """A workspace whose clips are the demo's, each with its text."""
    speech = folder / "speech"
    speech.mkdir(parents=True)
    rows = [json.loads(line) for line in (DEMO / "metadata.jsonl").read_text().splitlines()][:clips]
    lines = []
    for row in rows:
        (speech / row["file"]).symlink_to(DEMO / row["file"])
        lines.append(json.dumps({name: row[name] for name in ("file", "text", "speaker", "language")}))
    (speech / "metadata.jsonl").write_text("\n".join(lines))
    ws = open_loop(_with(folder, threads=1), create=True)
    ingest(ws, speech, processes=1)
    with ws.read() as reader:
        segment(ws, [recording.id for recording in reader.all(Recording)])
    return ws


def judged(folder: Path, *, clips: int = 24) -> tuple[Workspace, str, str]:
    """A workspace with two tiny models of which the second was promoted, and their ids.

    What they heard is made up: the first errs in three of four clips, the second in one of eight.
    """
    first, second = frozen_speech.models(folder)
    ws = open_loop(
        _with(folder, threads=1, min_snr_db=-99.0, base_model=str(first), guards=False, device="cpu"), create=True
    )
    dataset = frozen_speech.freeze(ws, folder / "speech", clips=clips)
    known = [models.base_model(ws, str(one)) for one in (first, second)]
    for model, share in zip(known, (0.75, 0.125), strict=True):
        frozen_speech.remember(ws, model, dataset, frozen_speech.wrong_in(share))
    promote(ws, known[1].id, by="bob")
    return ws, known[0].id, known[1].id


def _with(folder: Path, **settings: str | float) -> Path:
    """A workspace's folder whose settings child processes read as well."""
    made = folder / "workspace"
    made.mkdir(parents=True)
    lines = [f"{name} = {json.dumps(value)}" for name, value in settings.items()]
    (made / "voxloop.toml").write_text("\n".join([*lines, template()]))
    return made
