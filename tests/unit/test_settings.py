"""Settings come from the file, the environment and keywords, and wrong ones are named."""

from __future__ import annotations

from pathlib import Path

import pytest

from voxloop import settings
from voxloop.errors import SettingError
from voxloop.settings import Settings, parse_ratios, resolve


def test_later_wins(tmp_path: Path) -> None:
    (tmp_path / "voxloop.toml").write_text('language = "vi"\nlease_s = 5\nratios = [0.8, 0.1, 0.1]\n')
    found = resolve(
        tmp_path,
        environ={"VOXLOOP_LEASE_S": "7", "VOXLOOP_TOKEN": "a secret", "PATH": "x"},
        overrides={"device": "cpu"},
    )
    assert (found.language, found.lease_s, found.device, found.ratios) == ("vi", 7.0, "cpu", (0.8, 0.1, 0.1))


@pytest.mark.parametrize(
    ("toml", "environ", "said"),
    [
        ("languge = 'vi'", {}, "did you mean language"),
        ("lease_s = 'soon'", {}, "lease_s is 'soon'"),
        ("lease_s = 0", {}, "above 0"),
        ("promote_confidence = 1.0", {}, "at least 0.5 and below 1"),
        ("promote_general_margin = 2", {}, "promote_general_margin is 2.0. It must be at least 0"),
        ("promote_silence_words = -1", {}, "0 or more"),
        ("not toml", {}, "not valid TOML"),
        ("normaliser = 1", {}, "normaliser is 1. It must be a table"),
        ("threads = 'many'", {}, "toml: threads is 'many'. It must be an integer"),
        ("", {"VOXLOOP_GUARDS": "maybe"}, "VOXLOOP_GUARDS: guards is 'maybe'. It must be true or false"),
        ("[normaliser.vi]\ncase = 'upper'", {}, "normaliser.vi: case is 'upper'"),
        ("", {"VOXLOOP_NORMALISER": "{oops"}, "VOXLOOP_NORMALISER"),
        ("", {"VOXLOOP_DEVISE": "cpu"}, "did you mean device"),
        ("", {"VOXLOOP_RATIOS": "0.9/0.9/0.1"}, "0.8/0.1/0.1"),
        ("", {"VOXLOOP_MAX_ATTEMPTS": "0"}, "1 or more"),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, toml: str, environ: dict[str, str], said: str) -> None:
    (tmp_path / "voxloop.toml").write_text(toml)
    with pytest.raises(SettingError, match=said):
        resolve(tmp_path, environ=environ)


def test_urls_which_may_hold_passwords_are_not_shown(tmp_path: Path) -> None:
    names = ("CATALOG", "BLOBS", "BUS")
    found = resolve(tmp_path, environ={f"VOXLOOP_{name}": f"x://ann:secret@host/{name}" for name in names})
    assert found.catalog.endswith("secret@host/CATALOG")
    assert "secret" not in repr(found)


def test_ratios_may_be_percentages() -> None:
    assert parse_ratios("80/10/10") == (0.8, 0.1, 0.1)
    with pytest.raises(SettingError, match="add up to 1"):
        parse_ratios("80/10")


def test_every_setting_says_what_it_means() -> None:
    names = [name for name, _, _ in settings.described()]
    assert names == list(Settings.__dataclass_fields__)


def test_the_template_changes_nothing_until_a_line_is_opened(tmp_path: Path) -> None:
    config = tmp_path / "voxloop.toml"
    config.write_text(settings.template())
    assert resolve(tmp_path, environ={}) == Settings()
    config.write_text(settings.template().replace('# device = ""', 'device = "cpu"'))
    assert resolve(tmp_path, environ={}).device == "cpu"


def test_each_language_has_its_rules(tmp_path: Path) -> None:
    (tmp_path / "voxloop.toml").write_text(settings.template() + '[normaliser.vi]\ncase = "keep"\n')
    assert resolve(tmp_path, environ={}).normaliser == {"vi": {"case": "keep"}}
    found = resolve(tmp_path, environ={"VOXLOOP_NORMALISER": '{"en": {"numbers": "whole"}}'})
    assert found.normaliser == {"en": {"numbers": "whole"}}


def test_a_password_in_the_catalogs_url_is_not_shown(tmp_path: Path) -> None:
    (tmp_path / "voxloop.toml").write_text('catalog = "postgresql+psycopg://me:s3cr3t@127.0.0.1/db"')
    found = settings.resolve(tmp_path, environ={})
    assert found.catalog.endswith("me:s3cr3t@127.0.0.1/db")
    assert "s3cr3t" not in repr(found)
