"""Names of languages, and texts that are hardly in theirs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from transformers.models.whisper.tokenization_whisper import LANGUAGES as WHISPER
from transformers.models.whisper.tokenization_whisper import TO_LANGUAGE_CODE

from tests.unit.test_recordings import make, recordings, write_metadata
from voxloop.errors import SettingError, UsageError
from voxloop.settings import Settings
from voxloop.speech.languages import LANGUAGES, contradiction, language_code
from voxloop.steps.recordings import ingest
from voxloop.steps.review import Filters
from voxloop.workspace import Workspace


def test_the_languages_are_those_of_whisper_by_all_names_that_it_has() -> None:
    assert set(LANGUAGES) == set(WHISPER)
    assert {name: language_code(name) for name in TO_LANGUAGE_CODE} == TO_LANGUAGE_CODE


@pytest.mark.parametrize(
    ("written", "code"),
    [
        *(("eng", "en"), ("en-US", "en"), ("EN", "en"), ("English", "en"), (" english ", "en"), ("ger", "de")),
        *(("nb_no", "no"), ("nb-NO", "no"), ("nn-NO", "nn"), ("cmn_hans_cn", "zh"), ("yue_hant_hk", "yue")),
        *(("zh-CN", "zh"), ("fil_ph", "tl"), ("jv_id", "jw"), ("iw", "he"), ("sv-SE", "sv"), ("es_419", "es")),
        *(("Deutsch", "de"), ("français", "fr"), ("Tiếng Việt", "vi"), ("tiếng_việt", "vi"), ("русский", "ru")),
        *(("日本語", "ja"), ("Chinese (China)", "zh"), ("zh-yue", "yue"), ("", None), (None, None)),
    ],
)
def test_a_language_goes_by_many_names(written: str | None, code: str | None) -> None:
    assert language_code(written) == code


@pytest.mark.parametrize(
    ("written", "nearest"), [("enlgish", "en (English)"), ("vn", "vi (Vietnamese)"), ("jp", "ja (Japanese)")]
)
def test_what_is_none_is_refused_with_the_nearest(written: str, nearest: str) -> None:
    with pytest.raises(UsageError) as refused:
        language_code(written)
    assert nearest in str(refused.value)


def test_it_is_so_wherever_a_language_is_named(workspace: Workspace, tmp_path: Path) -> None:
    for number, name in enumerate(("a.wav", "b.wav")):
        make(tmp_path / "in" / name, seed=number)
    write_metadata(tmp_path / "in", [{"file": "a.wav", "lang": "eng"}, {"file": "b.wav", "locale": "xx-YY"}])
    report = ingest(workspace, tmp_path / "in")
    assert recordings(workspace)["a.wav"].language == "en"
    assert [(refusal.reason, "xx-YY" in refusal.message) for refusal in report.refused] == [("bad-metadata", True)]
    assert Settings(language="english").language == Filters(language="en-GB").language == "en"
    with pytest.raises(SettingError, match="klingon"):
        Settings(language="klingon")
    with pytest.raises(UsageError, match="klingon"):
        ingest(workspace, tmp_path / "in", language="klingon")


@pytest.mark.parametrize(
    ("text", "language", "odd"),
    [
        *(("privet, kak dela", "ru", True), ("Привет, как дела", "ru", False), ("Windows и Linux у нас", "ru", False)),
        *(("Привет", "en", True), ("hello", "en", False), ("你好", "en", True), ("OK", "ru", False)),
        *(("dobar dan svima", "sr", False), ("добар дан свима", "sr", False), ("東京タワー", "ja", False)),
        *(("xin chao cac ban", "vi", True), ("xin chào các bạn", "vi", False), ("xin chao", "vi", False)),
        *(("12 345", "ru", False), ("", "vi", False), ("anything at all", None, False)),
    ],
)
def test_a_text_in_another_script_than_its_language(text: str, language: str | None, odd: bool) -> None:
    assert bool(contradiction(text, language)) is odd


def test_it_is_told_of_when_the_text_comes_in(workspace: Workspace, tmp_path: Path) -> None:
    make(tmp_path / "in" / "a.wav")
    (tmp_path / "in" / "a.txt").write_text("privet kak dela")
    notes = ingest(workspace, tmp_path / "in", language="ru").notes
    assert any("Cyrillic" in note for note in notes), json.dumps(notes)
