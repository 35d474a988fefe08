"""`voxloop listen` against a running server, with a file as the microphone."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile

from tests.web.conftest import Running
from tests.web.live import said, silence
from voxloop.errors import UsageError
from voxloop.web import listening


@pytest.fixture
def spoken(real_speech: Path, tmp_path: Path) -> Path:
    file = tmp_path / "spoken.wav"
    soundfile.write(file, np.concatenate([said(real_speech, 3), silence(0.8), said(real_speech, 4, seed=2)]), 16_000)
    return file


def test_a_file_is_heard_as_if_it_were_spoken(server: Running, spoken: Path, tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text(server.token + "\n")

    def listened(*options: str) -> list[str]:
        program = "from voxloop.cli import main; main()"
        command = ["-C", str(tmp_path / "other"), "listen", "--file", str(spoken), "--url", server.url, *options]
        done = subprocess.run(
            [sys.executable, "-c", program, *command, "--token-file", str(token)], capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        return done.stdout.splitlines()

    lines = listened()
    assert len(lines) == 2  # two utterances, with a pause between them
    assert all(len(line.split()) >= 2 for line in lines)
    kinds = [json.loads(line)["type"] for line in listened("--language", "en", "--json")]
    assert kinds.count(listening.COMPLETED) == 2
    assert "voxloop.input_audio_transcription.unstable" in kinds


def test_what_does_not_answer_is_said(server: Running, spoken: Path) -> None:
    source = listening.FileSource(spoken)
    with pytest.raises(UsageError, match=r"refuses \(401\): a valid token is needed"):
        next(listening.listen(source, url=server.url, token="wrong"))
    with pytest.raises(UsageError, match="does not answer"):
        next(listening.listen(source, url="http://127.0.0.1:9", token=None))
    with pytest.raises(UsageError, match="no server's address"):
        next(listening.listen(source, url="localhost", token=None))
