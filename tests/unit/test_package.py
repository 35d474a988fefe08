"""The wheel holds what the program reads at run time: pages and their libraries with licences, phrases, the starter."""

from __future__ import annotations

import re
from pathlib import Path

from hatchling.builders.wheel import WheelBuilder

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "src" / "voxloop"


def packaged() -> set[str]:
    """Files of the package that a wheel built now would hold, by their paths below `voxloop/`."""
    files = WheelBuilder(str(ROOT)).recurse_included_files()
    return {Path(file.distribution_path).relative_to("voxloop").as_posix() for file in files}


def test_a_wheel_holds_every_file_of_the_package() -> None:
    there = {file.relative_to(PACKAGE).as_posix() for file in PACKAGE.rglob("*") if file.is_file()}
    assert {file for file in there if "__pycache__" not in file} == packaged()


def test_pages_find_their_files_and_libraries_their_licences() -> None:
    files = packaged()
    static = {name.removeprefix("web/static/") for name in files if name.startswith("web/static/")}
    pages = [name for name in static if name.endswith(".html")]
    assert {"review.html", "record.html", "listen.html"} <= set(pages)
    for page in pages:
        text = (PACKAGE / "web" / "static" / page).read_text()
        assert set(re.findall(r'(?:href|src)="static/([^"]+)"', text)) <= static, page
    for script in (name for name in static if name.endswith(".js") and "/" not in name):
        text = (PACKAGE / "web" / "static" / script).read_text()
        assert set(re.findall(r'(?:from|import) "\./([^"]+)"', text)) <= static, script
    assert {f"vendor/LICENSE.{library}" for library in ("preact", "htm", "wavesurfer")} <= static
    assert {"speech/phrases/en.txt", "starter/model/model.safetensors", "steps/report/page.html.j2"} <= files
