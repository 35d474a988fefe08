"""What decoders print themselves becomes a note of the file that they were reading."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import soundfile

from voxloop.speech.decoder_messages import caught
from voxloop.steps.recordings import ingest
from voxloop.workspace import Workspace

RATE = 48_000
# A comment frame whose text encoding does not exist: libmpg123 complains about it.
ODD_TAG = b"ID3\x04\x00\x00\x00\x00\x00\x20" + b"COMM" + bytes([0, 0, 0, 5, 0, 0]) + b"\x09abc\xff" + bytes(17)


def mp3(path: Path, *, before: bytes = b"", seed: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(seed).normal(0, 0.1, 3 * RATE).astype(np.float32)
    soundfile.write(path, noise, RATE, format="MP3")
    path.write_bytes(before + path.read_bytes())
    return path


@pytest.mark.parametrize("processes", [1, 2])
def test_it_is_a_note_with_the_files_name_and_nothing_on_the_terminal(
    workspace: Workspace, tmp_path: Path, capfd: pytest.CaptureFixture[str], processes: int
) -> None:
    odd = mp3(tmp_path / "in" / "odd.mp3", before=ODD_TAG)
    mp3(tmp_path / "in" / "plain.mp3", seed=1)
    report = ingest(workspace, tmp_path / "in", processes=processes)
    assert len(report.taken) == 2
    (note,) = report.notes
    assert note.startswith(str(odd))
    assert "encoding" in note
    assert capfd.readouterr() == ("", "")


def test_python_and_other_threads_still_reach_the_terminal(capfd: pytest.CaptureFixture[str]) -> None:
    code = (
        "import os, sys, threading\n"
        "from voxloop.speech.decoder_messages import caught\n"
        "with caught() as first:\n"
        "    os.write(2, b'from a library\\n')\n"
        "    print('from Python', file=sys.stderr)\n"
        "with caught() as second:\n"
        "    pass\n"
        "print(first, second)\n"
        "print('after', file=sys.stderr)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "['from a library'] []\n"
    assert done.stderr == "from Python\nafter\n"


def test_one_message_of_each_kind(capfd: pytest.CaptureFixture[str]) -> None:
    with caught() as messages:
        for place in range(100):
            os.write(2, f"[src/libmpg123/parse.c:12] error: lost at {place}\n".encode())
        for kind in "abcde":
            os.write(2, f"{kind} went wrong\n".encode())
    assert messages[0].startswith("error: lost at ")
    assert len(messages) == 4
    assert "3 other" in messages[-1]


def test_a_second_thread_does_not_wait() -> None:
    done = threading.Event()

    def decode() -> None:
        with caught():
            done.set()

    with caught():
        thread = threading.Thread(target=decode)
        thread.start()
        assert done.wait(10)
    thread.join()


def test_a_damaged_stretch_of_an_mp3_is_silence_and_a_note(workspace: Workspace, tmp_path: Path) -> None:
    path = mp3(tmp_path / "a.mp3")
    data = bytearray(path.read_bytes())
    middle = len(data) // 2
    data[middle : middle + len(data) // 6] = b"\x55" * (len(data) // 6)
    path.write_bytes(data)
    report = ingest(workspace, path)
    (note,) = report.notes
    assert "s of sound are missing at 1.5" in note or "s of sound are missing at 1.4" in note
    assert report.seconds_of_audio == pytest.approx(3.0, abs=0.1)
