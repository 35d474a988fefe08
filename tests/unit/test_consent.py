"""What speakers give and withdraw decides what their speech is used for."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import Result
from typer.testing import CliRunner

from voxloop.automation.worker import work
from voxloop.cli.app import app
from voxloop.errors import UnknownRecord, UsageError
from voxloop.maintenance.removal import forget
from voxloop.steps import consent
from voxloop.steps.datasets import build, export_dataset, rows
from voxloop.steps.recordings import ingest
from voxloop.stores import tables
from voxloop.workspace import Workspace


def test_the_newest_word_about_a_purpose_counts(each_workspace: Workspace) -> None:
    ws = each_workspace
    with pytest.raises(UnknownRecord, match="there is no consent text"):
        consent.give(ws, "ann", by="bob")
    with pytest.raises(UsageError, match=r"no purpose .trian."):
        consent.add_text(ws, "I agree.", ["trian"], by="bob")
    assert consent.add_text(ws, "I agree.", ["publish", "train"], by="bob").purposes == ("train", "publish")
    assert consent.add_text(ws, "I agree to all.", consent.PURPOSES, by="bob").version == 2
    assert consent.give(ws, " ann ", by="bob", version=1).permits == ("train", "publish")
    with pytest.raises(UsageError, match="not share"):
        consent.give(ws, "ann", by="bob", version=1, purposes=["share"])
    assert len(consent.give(ws, "ann", by="bob", version=1).history) == 1
    now = consent.withdraw(ws, "ann", by="ann", purposes=["publish"])
    assert (now.permits, now.version) == (("train",), 1)
    assert consent.give(ws, "ann", by="bob", purposes=["share"]).permits == ("train", "share")
    assert consent.withdraw(ws, "ann", by="ann").permits == ()
    with ws.read() as reader:
        assert consent.of(reader, "theo").permits == ("train",)
        assert consent.withdrawn(reader, "train") == {"ann"}
        assert consent.lacking(reader, ["ann", "theo", None], "train") == ["ann"]
        assert consent.lacking(reader, ["ann", "theo", None], "publish") == [None, "ann", "theo"]


def test_datasets_and_exports_follow(workspace: Workspace, demo_speech: Path, tmp_path: Path) -> None:
    ws = workspace
    clips = sorted(demo_speech.glob("*.ogg"))[:4]
    for number, clip in enumerate(clips):
        metadata = tmp_path / f"{number}.csv"
        metadata.write_text(f"file_name,text\n{clip},said {number}\n")
        ingest(ws, metadata, speaker="ann" if number % 2 else "theo", consent="in free words")
    work(ws, ["segment"], until_idle=True)
    both = build(ws, name="both")
    assert {row.speaker for row in rows(ws, both.id)} == {"ann", "theo"}
    with pytest.raises(UsageError, match="2 speakers have not consented to the publication of audio: ann, theo"):
        export_dataset(ws, both.id, tmp_path / "published", publish=True)
    consent.add_text(ws, "Publish it.", consent.PURPOSES, by="bob")
    for speaker in ("ann", "theo"):
        consent.give(ws, speaker, by="bob")
    assert export_dataset(ws, both.id, tmp_path / "published", publish=True).clips == 4
    consent.withdraw(ws, "ann", by="ann")
    with pytest.raises(UsageError, match="withdrawn since this dataset was built: ann"):
        export_dataset(ws, both.id, tmp_path / "more")
    after = build(ws, name="after")
    assert {row.speaker for row in rows(ws, after.id)} == {"theo"}
    assert after.excluded["consent withdrawn"] == 2
    gone = forget(ws, speaker="ann")
    assert any("consented to (now: nothing)" in note for note in gone.notes)
    with ws.read() as reader:
        assert {row.speaker for row in reader.connection.execute(tables.consent.select())} == {"theo"}
        payloads = [row.payload for row in reader.connection.execute(tables.event.select())]
    assert "ann" not in str([one.get("speaker") for one in payloads])


def test_the_commands_note_show_and_withdraw(tmp_path: Path) -> None:
    def run(*arguments: str) -> Result:
        return CliRunner().invoke(app, ["-C", str(tmp_path / "ws"), *arguments])

    assert run("init").exit_code == 0
    assert "next: voxloop consent text FILE" in run("consent", "text").stdout
    file = tmp_path / "text.txt"
    file.write_text("You may train on my voice and share the model.", encoding="utf-8")
    assert "Version 1" in run("consent", "text", str(file), "--purpose", "train", "--purpose", "share").stdout
    assert "ann permits: train, share (text 1)" in run("consent", "give", "ann", "--by", "bob").stdout
    assert "ann permits: train" in run("consent", "withdraw", "ann", "--purpose", "share").stdout
    assert "forget --speaker" in run("consent", "withdraw", "ann").stdout
    (shown,) = json.loads(run("consent", "show", "--json").stdout)
    assert (shown["permits"], len(shown["history"])) == ([], 3)
    assert "only training is permitted" in run("consent", "show", "cara").stdout
    file.write_bytes(b"\xff\xfe")
    refused = run("consent", "text", str(file))
    assert refused.exit_code == 2
    assert "is not UTF-8 text" in refused.stderr
