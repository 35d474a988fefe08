"""Where texts of files are written: mirrored, never over anything, none over another."""

from __future__ import annotations

from pathlib import Path

import pytest

from voxloop.errors import UsageError, VoxloopError
from voxloop.steps.transcript_files import audio_files, beside, planned, write


def touch(*paths: Path) -> list[Path]:
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return list(paths)


def names(plan: list[list[Path]], folder: Path) -> list[str]:
    return [str(target.relative_to(folder)) for targets in plan for target in targets]


def test_a_folder_is_mirrored(tmp_path: Path) -> None:
    touch(tmp_path / "in" / "a.wav", tmp_path / "in" / "deep" / "A.MP3", tmp_path / "in" / "notes.txt")
    plan = planned(audio_files([tmp_path / "in"]), tmp_path / "out", ["srt", "txt"], overwrite=False)
    assert names(plan, tmp_path / "out") == ["a.srt", "a.txt", "deep/A.srt", "deep/A.txt"]


def test_files_of_one_name_are_parted(tmp_path: Path) -> None:
    given = touch(tmp_path / "mon" / "a.wav", tmp_path / "tue" / "a.wav", tmp_path / "mon" / "a.mp3")
    plan = planned(audio_files([*given, given[0]]), tmp_path / "out", ["srt"], overwrite=False)
    assert names(plan, tmp_path / "out") == ["mon/a.wav.srt", "tue/a.srt", "mon/a.mp3.srt"]
    given = touch(tmp_path / "x" / "a.wav", tmp_path / "x" / "a.mp3", tmp_path / "x" / "a.wav.flac")
    plan = planned(audio_files(given), tmp_path / "out", ["txt"], overwrite=False)
    assert len(set(names(plan, tmp_path / "out"))) == 3


def test_nothing_is_overwritten_unless_it_is_asked_for(tmp_path: Path) -> None:
    (spoken,) = touch(tmp_path / "a.wav")
    mine = tmp_path / "a.txt"
    mine.write_text("a person's")
    sources = audio_files([spoken])
    with pytest.raises(UsageError, match="--overwrite"):
        planned(sources, tmp_path, ["txt"], overwrite=False)
    with pytest.raises(UsageError, match="left as it is"):  # it appeared after the plan
        write(mine, "a machine's", overwrite=False)
    assert mine.read_text() == "a person's"
    ((target,),) = planned(sources, tmp_path, ["txt"], overwrite=True)
    write(target, "a machine's", overwrite=True)
    assert mine.read_text() == "a machine's"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.txt", "a.wav"]
    assert beside(sources[0], [target])


def test_what_cannot_be_written_or_found(tmp_path: Path) -> None:
    (spoken,) = touch(tmp_path / "a.wav")
    with pytest.raises(UsageError, match="is a file"):
        planned(audio_files([spoken]), spoken, ["txt"], overwrite=True)
    with pytest.raises(VoxloopError, match="cannot be written"):
        write(spoken / "a.txt", "text", overwrite=False)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match="no audio files"):
        audio_files([tmp_path / "empty"])
    link = tmp_path / "link.txt"
    link.symlink_to(tmp_path / "nowhere")
    with pytest.raises(UsageError, match="overwritten"):
        planned(audio_files([tmp_path / "link.wav"]), tmp_path, ["txt"], overwrite=False)
