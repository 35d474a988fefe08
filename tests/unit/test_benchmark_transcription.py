"""The benchmark of transcription: parts are measured apart and shown together; long audio says what it is made of."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import soundfile
from benchmarks import apart, long_audio, results, side_by_side, transcription


def test_a_peer_works_in_a_process_of_its_own() -> None:
    with apart.apart(_peer, 20) as peer:
        first, process = peer(1)
        assert (first, process) == (21, peer(1)[1])
        assert process != os.getpid()
        with pytest.raises(ZeroDivisionError):
            peer(0)
        assert peer(2, twice=True)[0] == 24  # it goes on


def _peer(more: int) -> Callable[..., tuple[int, int]]:
    def work(number: int, *, twice: bool = False) -> tuple[int, int]:
        return more + number // number * number * (2 if twice else 1), os.getpid()

    return work


def test_parts_that_are_not_measured_stay_as_they_were(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(results, "PATH", tmp_path / "RESULTS.md")
    rows = [
        side_by_side.Row(
            name=f"clips of {part}",
            ours=2.0,
            peer=1.0,
            unit="clips/s",
            ratio_median=2.0,
            ratio_min=1.5,
            ratio_max=2.5,
            quality_ours="",
            quality_peer="",
        )
        for part in ("short", "starter")
    ]
    for row, part in zip(rows, ("short", "starter"), strict=True):
        side_by_side.write(tmp_path / "out" / "transcription" / f"{part}.json", [row])
    # Without recorded speech the long part has no rows, and the two others are shown as they were measured.
    transcription.main(["--part", "long", "--data", str(tmp_path / "none"), "--out", str(tmp_path / "out")])
    told = (tmp_path / "RESULTS.md").read_text()
    assert "| clips of short | 2.00 | 1.00 |" in told
    assert "\nstarter: 20" in told
    assert "\nlong: 20" not in told
    kept = json.loads((tmp_path / "out" / "transcription.json").read_text())["rows"]
    assert [row["name"] for row in kept] == ["clips of short", "clips of starter"]


def test_speech_is_joined_to_the_length_wanted(tmp_path: Path, demo_speech: Path) -> None:
    rows = long_audio._rows(demo_speech)[:5]
    said = long_audio._joined(tmp_path / "a.flac", rows, (0.1, 0.3), 20)
    assert soundfile.info(tmp_path / "a.flac").duration == pytest.approx(20, abs=6)
    assert set(said.split()) == {word for row in rows for word in row["text"].split()}
    assert said == long_audio._joined(tmp_path / "b.flac", rows, (0.1, 0.3), 20)
    assert (tmp_path / "a.flac").read_bytes() == (tmp_path / "b.flac").read_bytes()
