"""The command line starts quickly, is documented as it is, and answers wrong use in one line."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len
from typer.testing import CliRunner

from tests.unit.speech import add_utterance
from voxloop.cli import app
from voxloop.cli.screen import aligned_lines
from voxloop.pipeline import open_loop
from voxloop.records import Evaluation, Model
from voxloop.speech.text import align

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
    modules = "voxloop, voxloop.pipeline, voxloop.steps.gate.promotion, voxloop.steps.training"
    code = f"import sys, {modules}; assert 'torch' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("page", ["commands", "settings", "events", "architecture"])
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
        (["dataset", "build", "--ratios", "1/1"], 2, "add up to 1"),
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


def test_a_difference_is_drawn_word_under_word(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with open_loop(tmp_path, create=True) as ws:
        (id,) = add_utterance(ws, "r", reference="open the big red door", heard="hope the red door now", language="en")
    code, said = run("-C", str(tmp_path), "review", "diff", id)
    assert code == 0
    assert said.splitlines()[2:] == [
        "ref  open the big red door ***",
        "hyp  hope the *** red door now",
        "     S        D            I",
        "3 errors in 5 words: 1 substituted, 1 deleted, 1 inserted; WER 60.0 %, CER 47.6 %",
    ]
    assert run("-C", str(tmp_path), "review", "diff", "--worst", "3") == (0, said)
    assert json.loads(run("-C", str(tmp_path), "review", "diff", id, "--json")[1])["wer"] == 0.6
    assert [
        one["utterance"] for one in json.loads(run("-C", str(tmp_path), "review", "diff", "--worst", "3", "--json")[1])
    ] == [id]
    monkeypatch.setenv("COLUMNS", "18")
    assert run("-C", str(tmp_path), "review", "diff", id)[1].splitlines()[2:9] == [
        "ref  open the big",
        "hyp  hope the ***",
        "     S        D",
        "ref  red door ***",
        "hyp  red door now",
        "              I",
        "3 errors in 5 words: 1 substituted, 1 deleted, 1 inserted; WER 60.0 %, CER 47.6 %",
    ]
    for wrong in ([], [id, "--worst", "2"], [id, "--speaker", "s"], ["--worst", "2", "--version", "1"]):
        assert run("-C", str(tmp_path), "review", "diff", *wrong)[0] == 2


TEXTS = st.lists(st.sampled_from(["a", "bb", "再见", "ก็", "extraordinarily", "é"]), max_size=9).map(" ".join)


@given(TEXTS, TEXTS, st.integers(9, 40))
def test_wide_characters_stand_under_each_other(reference: str, hypothesis: str, width: int) -> None:
    lines = [line.plain for line in aligned_lines(align(reference, hypothesis), width)]
    assert all(cell_len(line) <= width for line in lines)
    both = (
        [line[5:] for line in lines if line.startswith("ref")],
        [line[5:] for line in lines if line.startswith("hyp")],
    )
    for drawn, text in zip(both, (reference, hypothesis), strict=True):
        assert "".join(drawn).replace("*", "").replace(" ", "") == text.replace(" ", "")
    if width == 40 and reference == hypothesis:
        assert not any(line.startswith("     ") for line in lines)


def test_differences_have_colours_and_signs() -> None:
    reference, hypothesis, signs = aligned_lines(align("a b c", "a x c d"), 80)
    assert [str(span.style) for span in reference.spans] == ["dim", "bold yellow", "bold green"]
    assert [str(span.style) for span in hypothesis.spans] == ["dim", "bold yellow", "bold green"]
    assert signs.plain == "       S   I"


@pytest.mark.usefixtures("ordinary_user")
def test_what_may_not_be_read_is_said_in_a_line(tmp_path: Path) -> None:
    with open_loop(tmp_path / "w", create=True):
        pass
    closed = tmp_path / "closed"
    closed.mkdir()
    for path in (closed / "in.wav", tmp_path / "shut.wav", tmp_path / "open.wav"):
        soundfile.write(path, np.random.default_rng(1).normal(0, 0.05, 8_000), 16_000)
    (tmp_path / "shut.wav").chmod(0)
    closed.chmod(0)
    paths = [str(path) for path in (tmp_path / "shut.wav", closed, closed / "in.wav", tmp_path / "open.wav")]
    code, said = run("-C", str(tmp_path / "w"), "ingest", *paths, "--json")
    closed.chmod(0o755)
    found = json.loads(said)
    assert (code, found["taken"]) == (0, 1)
    assert [(one["path"], one["reason"]) for one in found["refusals"]] == [(path, "unreadable") for path in paths[:3]]
    for name, remedy in (("catalog.db", "mind the permissions"), ("voxloop.toml", "cannot be read")):
        (tmp_path / "w" / name).chmod(0)
        code, said = run("-C", str(tmp_path / "w"), "status")
        assert code in (1, 2)
        assert remedy in said
        assert "Traceback" not in said
        (tmp_path / "w" / name).chmod(0o644)


def test_scores_by_different_normalisers_are_told_apart(tmp_path: Path) -> None:
    scores = {"wer": 0.1, "utterances": 3}
    for name, normaliser in (("a", "whisper-english/1"), ("b", "en:whisper-english/1,numbers=whole")):
        with open_loop(tmp_path, create=True) as ws, ws.transaction() as tx:
            tx.add(Model(id=f"sha256-{name}", family="whisper", base="starter", kind="full", where="x", run=name))
            tx.add(
                Evaluation(
                    id=f"sha256-e{name}",
                    model=f"sha256-{name}",
                    dataset="d",
                    split="test",
                    decoding={},
                    normaliser=normaliser,
                    scores=scores,
                    hypotheses="h",
                )
            )
        assert ("different normalisers" in run("-C", str(tmp_path), "model", "list")[1]) == (name == "b")


def test_a_damaged_catalog_is_said_in_a_line(tmp_path: Path) -> None:
    with open_loop(tmp_path, create=True):
        pass
    (tmp_path / "catalog.db").write_bytes(b"no database at all" * 500)
    code, said = run("-C", str(tmp_path), "status")
    assert code == 1
    assert "is damaged (file is not a database): keep the file, and restore a backup" in said
