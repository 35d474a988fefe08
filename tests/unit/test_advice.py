"""What to do after a verdict: which larger base this machine could tune."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from tests.unit import tiny_whisper
from tests.unit.test_ctranslate_folder import hub, in_hub_cache  # noqa: F401
from voxloop import bases, models
from voxloop.advice import spelled_out
from voxloop.families.whisper.cost import cost
from voxloop.pipeline import open_loop
from voxloop.records import Run
from voxloop.steps.gate.comparison import NO_BETTER


def test_the_next_larger_base_that_is_here_and_fits_is_named(
    tmp_path: Path,
    hub: Path,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    mine = tiny_whisper.make(tmp_path / "mine", width=32)
    in_hub_cache(hub, "somebody/same", tiny_whisper.make(tmp_path / "same", width=32))
    wider = tiny_whisper.make(tmp_path / "wider", width=64)
    weights = cost(wider).parameters
    in_hub_cache(hub, "somebody/wider", wider)
    in_hub_cache(hub, "somebody/widest", tiny_whisper.make(tmp_path / "widest", width=96))
    with open_loop(tmp_path / "workspace", create=True, base_model=str(mine), device="cpu") as ws:
        found = bases.larger(ws, mine)
        assert found == ("somebody/wider", weights)
        model = models.base_model(ws)
        said = spelled_out(ws, f"{NO_BETTER} And more.", model.id)
        assert "`voxloop train --base somebody/wider`" in said
        assert said.endswith("And more.")
        assert spelled_out(ws, "Review more.", model.id) == "Review more."
        monkeypatch.setattr(bases, "memory", lambda where: 1)
        assert bases.larger(ws, mine) is None
        assert "no known larger base fits this machine" in spelled_out(ws, NO_BETTER, model.id)


def test_where_none_is_here_one_of_the_hub_is_named(tmp_path: Path, hub: Path, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    with open_loop(tmp_path / "workspace", create=True, device="cpu") as ws:
        monkeypatch.setattr(bases, "memory", lambda where: 8 << 30)
        found = bases.larger(ws, Path(models.model_folder(ws, models.base_model(ws))))
    assert found == ("openai/whisper-tiny", 37_800_000)


@pytest.mark.parametrize(("best", "expected"), [({"step": 0}, True), ({"step": 3}, False), (None, False)])
def test_a_run_whose_best_weights_are_its_base_made_nothing_better(best: dict[str, int] | None, expected: bool) -> None:
    run = Run(id="r", dataset="d", base="b", family="whisper", method="full", recipe={})
    assert dataclasses.replace(run, progress={"best": best} if best else {}).no_better == expected
