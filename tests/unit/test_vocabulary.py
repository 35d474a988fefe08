"""The personal vocabulary of a workspace: kept in its catalog, part of the decoding and so of an evaluation's id."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import sqlalchemy as sa
from typer.testing import CliRunner

from voxloop.cli import app
from voxloop.errors import SettingError, UsageError
from voxloop.families.decoding import Decoding, PersonalVocabulary, Term
from voxloop.maintenance import backups
from voxloop.pipeline import open_loop
from voxloop.settings import resolve
from voxloop.steps import transcripts, vocabulary
from voxloop.stores import tables
from voxloop.workspace import Workspace


def run(*arguments: str) -> str:
    result = CliRunner().invoke(app, list(arguments))
    assert result.exit_code == 0, result.output
    return result.output


def test_terms_are_added_once_listed_by_language_and_removed(each_workspace: Workspace) -> None:
    ws = each_workspace
    assert vocabulary.add(ws, ["Zoë  Müller", "Karup", "Zoë Müller"]) == 2
    assert vocabulary.add(ws, ["Karup"], language="de") == 1
    assert vocabulary.add(ws, ["Karup"], language="de") == 0
    assert set(vocabulary.entries(ws)) == {Term("Zoë Müller"), Term("Karup"), Term("Karup", "de")}
    assert set(vocabulary.entries(ws, "en")) == {Term("Zoë Müller"), Term("Karup")}
    with pytest.raises(UsageError, match="'Aarhus' is not in the vocabulary"):
        vocabulary.remove(ws, ["Karup", "Aarhus"])
    assert len(vocabulary.entries(ws)) == 3  # nothing was removed
    assert vocabulary.remove(ws, ["Karup"], language="de") == 1
    assert vocabulary.remove(ws, ["Karup", "Zoë Müller"]) == 2
    assert vocabulary.entries(ws) == ()


@pytest.mark.parametrize("term", ["", "  ", "x" * 101, "a\0b"])
def test_what_is_no_term_is_refused(workspace: Workspace, term: str) -> None:
    with pytest.raises(UsageError, match="term"):
        vocabulary.add(workspace, ["Karup", term])
    assert vocabulary.entries(workspace) == ()


def test_the_newest_come_first(workspace: Workspace) -> None:
    vocabulary.add(workspace, ["a", "b", "c"])
    with workspace.transaction() as tx:
        for moment, term in enumerate(("b", "c", "a")):
            entry = tables.vocabulary
            tx.connection.execute(sa.update(entry).where(entry.c.term == term).values(created=moment))
    assert [term.text for term in vocabulary.entries(workspace)] == ["a", "c", "b"]


def test_a_decoding_holds_it_and_its_identity_a_hash(workspace: Workspace) -> None:
    ws = workspace
    bare = transcripts.decoding(ws)
    assert bare.vocabulary is None
    assert "vocabulary" not in bare.identity()
    vocabulary.add(ws, ["Karup"], language="da")
    one = transcripts.decoding(ws)
    vocabulary.add(ws, ["Aarhus"])
    two = transcripts.decoding(ws)
    assert one.vocabulary == PersonalVocabulary(terms=(Term("Karup", "da"),), bonus=ws.settings.vocabulary_bonus)
    assert len({json.dumps(each.identity(), sort_keys=True) for each in (bare, one, two)}) == 3
    assert "Karup" not in json.dumps(one.identity())
    assert Decoding.from_dict(json.loads(json.dumps(two.as_dict()))) == two
    vocabulary.remove(ws, ["Karup", "Aarhus"])
    assert transcripts.decoding(ws).identity() == bare.identity()


def test_a_language_has_its_own_terms_and_those_of_any() -> None:
    known = PersonalVocabulary(terms=(Term("Karup", "da"), Term("Minsk"), Term("Minsk", "de"), Term("Raoul", "en")))
    assert known.texts("de") == ("Minsk",)
    assert known.texts("da") == ("Karup", "Minsk")
    assert known.texts(None) == ("Karup", "Minsk", "Raoul")  # which language it is, is not known


def test_settings_say_how_texts_are_decoded(tmp_path: Path) -> None:
    given = {"beams": 5, "prompt": "Dear Zoë,", "vocabulary_bonus": 0.0, "vocabulary_prompt": True}
    with open_loop(tmp_path / "w", create=True, **given) as ws:
        vocabulary.add(ws, ["Karup"])
        asked = transcripts.decoding(ws)
        assert (asked.beams, asked.prompt) == (5, "Dear Zoë,")
        assert asked.vocabulary == PersonalVocabulary(terms=(Term("Karup"),), bonus=0.0, prompt=True)
        ws = replace(ws, settings=replace(ws.settings, vocabulary_prompt=False))
        assert transcripts.decoding(ws).vocabulary is None  # it would change nothing
    for name, value in (("beams", "0"), ("vocabulary_bonus", "-1"), ("vocabulary_bonus", "99")):
        with pytest.raises(SettingError, match=name):
            resolve(tmp_path, environ={f"VOXLOOP_{name.upper()}": value})


def test_commands(tmp_path: Path) -> None:
    folder = str(tmp_path / "w")
    run("-C", folder, "init")
    assert "vocabulary add" in run("-C", folder, "vocabulary", "list")
    assert "2 added, 0 already known; the vocabulary has 2 terms" in run(
        "-C", folder, "vocabulary", "add", "Karup", "Zoë Müller"
    )
    (tmp_path / "terms.txt").write_text("# towns\nAarhus\n\nKarup \n", encoding="utf-8")
    said = run("-C", folder, "vocabulary", "import", str(tmp_path / "terms.txt"), "--language", "da")
    assert "2 added, 0 already known; the vocabulary has 4 terms" in said
    assert "1 removed" in run("-C", folder, "vocabulary", "remove", "Karup", "--language", "da")
    listed = json.loads(run("-C", folder, "vocabulary", "list", "--json"))
    assert sorted((one["text"], one["language"]) for one in listed) == [
        ("Aarhus", "da"),
        ("Karup", ""),
        ("Zoë Müller", ""),
    ]
    (tmp_path / "latin.txt").write_bytes("Zoë".encode("latin-1"))
    refused = CliRunner().invoke(app, ["-C", folder, "vocabulary", "import", str(tmp_path / "latin.txt")])
    assert (refused.exit_code, "UTF-8" in refused.output) == (2, True)


def test_a_backup_holds_it(sqlite_workspace: Workspace, tmp_path: Path) -> None:
    vocabulary.add(sqlite_workspace, ["Karup"], language="da")
    backups.backup(sqlite_workspace, tmp_path / "copy")
    backups.restore(tmp_path / "copy", tmp_path / "again")
    with open_loop(tmp_path / "again") as ws:
        assert vocabulary.entries(ws) == (Term("Karup", "da"),)
