"""Which bases this machine has, and what they would need."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Literal

import pytest
from transformers import WhisperForConditionalGeneration
from typer.testing import CliRunner

from tests.unit import tiny_whisper
from tests.unit.test_ctranslate_folder import as_faster_whisper_has_it, hub, in_hub_cache  # noqa: F401
from voxloop import bases
from voxloop.cli import app
from voxloop.families.contract import Cost
from voxloop.families.whisper.cost import cost
from voxloop.pipeline import open_loop
from voxloop.starter import STARTER_DIR
from voxloop.workspace import Workspace

UNUSED = {"window_operations": 0, "token_weights": 0, "token_states": 0}


@pytest.mark.parametrize("form", ["transformers", "ctranslate2"])
def test_weights_are_counted_from_the_shape(form: str, tmp_path: Path) -> None:
    source = tiny_whisper.make(tmp_path / "m", width=48)
    folder = source if form == "transformers" else as_faster_whisper_has_it(source, tmp_path / "ct2")
    model = WhisperForConditionalGeneration.from_pretrained(source)
    assert cost(folder).parameters == sum(weight.numel() for weight in model.parameters())


def test_every_form_is_found_once(tmp_path: Path, hub: Path) -> None:  # noqa: F811
    kept = tiny_whisper.make(tmp_path / "mine")
    in_hub_cache(hub, "openai/whisper-tiny", tiny_whisper.make(tmp_path / "a"))
    in_hub_cache(hub, "Systran/faster-whisper-base", as_faster_whisper_has_it(kept, tmp_path / "b"))
    in_hub_cache(hub, "somebody/rounded", as_faster_whisper_has_it(kept, tmp_path / "c", "int8"))
    other = tiny_whisper.make(tmp_path / "d")
    (other / "config.json").write_text(json.dumps({"model_type": "bert"}))
    in_hub_cache(hub, "somebody/bert", other)
    pickled = tiny_whisper.make(tmp_path / "e")
    (pickled / "model.safetensors").rename(pickled / "pytorch_model.bin")
    in_hub_cache(hub, "somebody/pickled", pickled)
    with open_loop(tmp_path / "workspace", create=True, base_model=str(kept)) as ws:
        found = {base.name: base for base in bases.here(ws)[1]}
    assert {name: base.form for name, base in found.items()} == {
        "starter": "starter",
        str(kept): "transformers",
        "openai/whisper-tiny": "transformers",
        "base": "ctranslate2",
        "somebody/rounded": "ctranslate2",
        "somebody/pickled": "transformers",
    }
    assert "int8" in (found["somebody/rounded"].refused or "")
    assert "pickled" in (found["somebody/pickled"].refused or "")
    assert all(base.int8 and base.full for name, base in found.items() if not name.startswith("somebody"))


def test_a_larger_model_needs_more_and_a_faster_machine_less_time(workspace: Workspace) -> None:
    slow = bases.Machine(device="cpu", operations_per_s=1e10, bytes_per_s=1e9)
    fast = replace(slow, operations_per_s=1e11, bytes_per_s=1e10)
    shape = cost(STARTER_DIR)
    larger = replace(shape, parameters=10 * shape.parameters, window_operations=10 * shape.window_operations)
    for kind in ("int8", "fp32"):
        need = bases._heard(shape, slow, kind)
        assert bases._heard(shape, fast, kind).seconds == pytest.approx(need.seconds / 10)
        assert bases._heard(larger, slow, kind).memory_bytes > need.memory_bytes
        assert bases._heard(larger, slow, kind).seconds > need.seconds
    assert bases._trained(shape, slow, "lora").seconds < bases._trained(shape, slow, "full").seconds


# Peak resident memory of real runs with the published recipes (MB): voices of 100 clips, two steps, blending off; for
# all weights also with it. Measured in fp32 on a CPU.
PEAKS = [
    ("tiny.en", "full", 1505),
    ("tiny.en", "lora", 1912),
    ("base", "full", 2508),
    ("base", "full", 2814),
    ("base", "lora", 3208),
]


@pytest.mark.parametrize(("name", "kind", "peak_mb"), PEAKS)
def test_the_estimated_memory_is_what_real_runs_took(name: str, kind: Literal["lora", "full"], peak_mb: int) -> None:
    tiny, base = (
        Cost(parameters=37_760_256, multilingual=False, window_floats=64_512_000, **UNUSED),
        Cost(parameters=72_593_920, multilingual=True, window_floats=125_952_000, **UNUSED),
    )
    machine = bases.Machine(device="cpu", operations_per_s=1e10, bytes_per_s=1e9)
    need = bases._trained(tiny if name == "tiny.en" else base, machine, kind)
    assert need.memory_bytes / 2**20 == pytest.approx(peak_mb, rel=0.12)


def test_the_probe_is_short() -> None:
    bases.probe("cpu")  # the first one loads libraries
    began = time.perf_counter()
    machine = bases.probe("cpu")
    assert time.perf_counter() - began < 2.0  # 0.3 s where nothing else runs
    assert machine.operations_per_s > 1e8
    assert machine.bytes_per_s > 1e8


def test_the_table_fits_80_columns(tmp_path: Path, hub: Path) -> None:  # noqa: F811
    in_hub_cache(hub, "openai/whisper-large-v3-turbo", tiny_whisper.make(tmp_path / "a"))
    folder = str(tmp_path / "workspace")
    assert CliRunner().invoke(app, ["-C", folder, "init"]).exit_code == 0
    shown = CliRunner().invoke(app, ["-C", folder, "base", "list"])
    assert shown.exit_code == 0, shown.output
    assert "starter" in shown.output
    assert max(map(len, shown.output.splitlines())) <= 80
    told = json.loads(CliRunner().invoke(app, ["-C", folder, "base", "list", "--json"]).stdout)
    assert [base["name"] for base in told["bases"]] == ["openai/whisper-large-v3-turbo", "starter"]
    assert told["machine"]["device"] in ("cpu", "cuda")
