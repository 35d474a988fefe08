"""Families by name: where they come from, and that nothing else names one."""

from __future__ import annotations

import ast
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import voxloop
from voxloop.errors import ModelError
from voxloop.families import registry
from voxloop.families.registry import OURS, family, family_of

SOURCE = Path(voxloop.__file__).parent
FAMILY_NAMES = re.compile("|".join(OURS), re.IGNORECASE)
# Not the family: normalisers of text by Whisper's authors, their package, a table of language names that transformers
# keeps with Whisper, and in messages other programs, models of the Hub and an extra of the package.
OTHER_USES = re.compile(
    r"whisper_normalizer|whisper-(english|basic|characters)|Whisper's (English|basic) normaliser"
    r"|transformers\.models\.whisper\.tokenization_whisper|[Ff]aster[-_]whisper|FASTER_WHISPER|faster-distil-whisper[-.\w]*|distil-whisper/[-.\w]*|openai/whisper\b[-\w.]*"
    r"|whisper\.cpp|whisper-cli|WhisperModel|^whisper-1$|^gpt-realtime-whisper$|^voxtral$|^Voxtral models$"
)


def names_in_code(file: Path) -> Iterator[str]:
    """Identifiers, modules and texts of a file that name a family; docstrings and comments may."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    docstrings = {
        id(statement.value)
        for node in ast.walk(tree)
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef)
        for statement in node.body
        if isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant)
    }
    for node in ast.walk(tree):
        words = [getattr(node, name, None) for name in ("id", "attr", "arg", "name", "module", "asname")]
        if isinstance(node, ast.Constant) and id(node) not in docstrings:
            words.append(node.value)
        for word in words:
            if isinstance(word, str) and FAMILY_NAMES.search(OTHER_USES.sub("", word)):
                yield f"{file.relative_to(SOURCE)}:{getattr(node, 'lineno', 0)}: {word}"


def test_no_module_outside_the_families_names_one() -> None:
    at_home = ("families", "starter")  # the starter is built as a Whisper
    files = [file for file in SOURCE.rglob("*.py") if file.relative_to(SOURCE).parts[0] not in at_home]
    assert len(files) > 100
    assert [found for file in files for found in names_in_code(file)] == []


def test_the_search_finds_names(tmp_path: Path) -> None:
    file = SOURCE / "families" / "registry.py"
    assert any(found.endswith(": whisper") for found in names_in_code(file))


def test_the_contract_imports_no_family() -> None:
    trees = [ast.parse((SOURCE / "families" / f"{name}.py").read_text()) for name in ("contract", "decoding")]
    imported = {node.module for tree in trees for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    families = {module for module in imported if module and module.startswith("voxloop.families")}
    assert families == {"voxloop.families.decoding"}


@pytest.fixture
def another_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An installed package with families of its own, one of which has the name of one of ours."""
    (tmp_path / "echo_family.py").write_text('class Echo:\n    name = "echo"\n\n\nECHO = Echo()\n')
    info = tmp_path / "echo_family-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: echo-family\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(
        "[voxloop.families]\necho = echo_family:ECHO\nwhisper = echo_family:ECHO\ngone = echo_family:NOTHING\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    family.cache_clear()
    yield tmp_path
    family.cache_clear()
    sys.modules.pop("echo_family", None)


def test_another_package_adds_a_family(another_package: Path) -> None:
    assert family("echo").name == "echo"
    assert family("whisper").name == "whisper"
    (another_package / "config.json").write_text(json.dumps({"model_type": "echo"}))
    assert family_of(another_package) == "echo"
    with pytest.raises(ModelError, match="'gone' cannot be imported from echo_family:NOTHING"):
        family("gone")


def test_an_unknown_family_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="unknown model family 'wisper'; did you mean whisper"):
        family("wisper")
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama"}))
    with pytest.raises(ModelError, match=r"of type 'llama'.*the supported types are voxtral, whisper: choose"):
        family_of(tmp_path)


@pytest.mark.parametrize("config", [None, "", "[1]", "{"])
def test_a_folder_that_is_no_model_is_refused(tmp_path: Path, config: str | None) -> None:
    if config is not None:
        (tmp_path / "config.json").write_text(config)
    with pytest.raises(ModelError, match=r"no readable config\.json.*name a folder with"):
        family_of(tmp_path)


def test_a_family_is_imported_when_it_is_asked_for() -> None:
    import subprocess

    code = (
        "import sys; import voxloop.models, voxloop.families.registry as r; assert r.known();"
        "print([name for name in sys.modules if 'whisper' in name or 'voxtral' in name or name == 'torch'])"
    )
    found = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert found.stdout.strip() == "[]"


def test_ours_are_all_there() -> None:
    assert {name: family(name).name for name in OURS} == {name: name for name in OURS}
    assert set(registry.known()) >= set(OURS)
