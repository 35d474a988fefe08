"""The command line starts quickly, is documented as it is, and answers wrong use in one line."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from voxloop.cli import app

ROOT = Path(__file__).parents[2]


def run(*arguments: str) -> tuple[int, str]:
    result = CliRunner().invoke(app, list(arguments))
    return result.exit_code, result.output


def test_help_loads_nothing_heavy() -> None:
    code = (
        "import sys\n"
        "from voxloop.cli import app\n"
        "from typer.testing import CliRunner\n"
        "assert CliRunner().invoke(app, ['--help']).exit_code == 0\n"
        "heavy = {'torch', 'transformers', 'numpy', 'sqlalchemy', 'lhotse', 'av', 'soundfile'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr


def test_the_package_and_its_data_half_load_no_torch() -> None:
    modules = "voxloop, voxloop.pipeline, voxloop.promotion, voxloop.training"
    code = f"import sys, {modules}; assert 'torch' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("page", ["commands", "settings", "architecture"])
def test_the_reference_pages_are_true(page: str) -> None:
    spec = importlib.util.spec_from_file_location("make_reference", ROOT / "docs" / "make_reference.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    written = (ROOT / "docs" / f"{page}.md").read_text()
    assert written == getattr(module, f"{page}_page")(), "run: python docs/make_reference.py"


def test_without_a_workspace_the_answer_says_how_to_make_one(tmp_path: Path) -> None:
    code, said = run("-C", str(tmp_path / "none"), "status")
    assert code == 1
    assert "init" in said


@pytest.mark.parametrize(
    ("arguments", "status", "said"),
    [
        (["review", "show", "nothing"], 2, "no utterance 'nothing'"),
        (["review", "save", "nothing", "text"], 2, "no utterance 'nothing'"),
        (["dataset", "build"], 2, "no utterances yet"),
        (["dataset", "build", "--ratios", "1/1"], 2, "sum to 1"),
        (["dataset", "show"], 2, "voxloop dataset build"),
        (["train"], 2, "voxloop dataset build"),
        (["run", "show", "nothing"], 2, "no run 'nothing'"),
        (["run", "logs", "nothing"], 2, "no run 'nothing'"),
        (["evaluate"], 2, "voxloop dataset build"),
        (["model", "show", "nothing"], 2, "no model 'nothing'"),
        (["model", "promote", "nothing"], 2, "no model 'nothing'"),
        (["model", "show", "champion"], 2, "no model is champion yet"),
        (["model", "rollback"], 2, "champion"),
        (["worker", "segmnet", "--until-idle"], 2, "did you mean segment"),
        (["ingest", "no/such/folder"], 2, "no/such/folder"),
        (["transcribe", "no/such/file.wav"], 1, "no/such/file.wav"),
    ],
)
def test_wrong_use_is_answered_in_one_line(tmp_path: Path, arguments: list[str], status: int, said: str) -> None:
    folder = str(tmp_path / "w")
    assert run("-C", folder, "init")[0] == 0
    code, answer = run("-C", folder, *arguments)
    assert said in answer
    assert code == status
    assert "Traceback" not in answer


def test_listings_of_a_new_workspace(tmp_path: Path) -> None:
    folder = str(tmp_path / "w")
    run("-C", folder, "init")
    for command in (["run", "list"], ["model", "list"], ["dataset", "list"], ["review", "list"]):
        assert run("-C", folder, *command)[0] == 0
        assert run("-C", folder, *command, "--json")[1].strip() == "[]"
    code, said = run("-C", folder, "status")
    assert code == 0
    assert "voxloop ingest" in said
    assert run("-C", folder, "events")[0] == 0
    assert run("-C", folder, "doctor")[0] == 0
