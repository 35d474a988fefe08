"""Real multilingual Whisper writes in English what is said in German, over HTTP."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import openai
import pytest

from tests.conftest import SHARED_DATA
from tests.real.conftest import THREADS, checkpoint
from tests.web.conftest import served
from voxloop.pipeline import open_loop

SAID = "Das Wetter ist heute schön, und die Kinder spielen im Garten."


@pytest.fixture
def german(tmp_path: Path) -> tuple[Path, set[str]]:
    """A sentence, and words of which its translation has some."""
    folder = SHARED_DATA / "kerstin_de"
    if folder.is_dir():
        rows = [json.loads(row) for row in (folder / "metadata.jsonl").read_text(encoding="utf-8").splitlines()]
        file = next(row["file"] for row in rows if row["text"].startswith("Beide ziehen zurück in den Dschungel"))
        return folder / file, {"both", "back", "jungle", "rich", "happy"}
    subprocess.run(["espeak-ng", "-v", "de", "-s", "130", "-w", str(tmp_path / "said.wav"), SAID], check=True)
    return tmp_path / "said.wav", {"weather", "today", "children", "play", "garden"}


def test_german_becomes_english(german: tuple[Path, set[str]], tmp_path: Path) -> None:
    file, expected = german
    given = {"base_model": str(checkpoint("base")), "device": "cpu", "threads": THREADS}
    with open_loop(tmp_path / "workspace", create=True, **given) as ws, served(ws) as running:
        audio = openai.OpenAI(base_url=f"{running.url}/v1", api_key=running.token, max_retries=0).audio
        heard = audio.transcriptions.create(model="whisper-1", file=file, response_format="verbose_json")
        translated = audio.translations.create(model="whisper-1", file=file, response_format="verbose_json")
    assert heard.language == "german"
    assert (translated.language, translated.duration) == ("english", heard.duration)
    words = {word.strip(".,").lower() for word in translated.text.split()}
    assert len(words & expected) >= 2, (heard.text, translated.text)
