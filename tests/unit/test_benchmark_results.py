"""The results file: a benchmark writes its own section and no other."""

from __future__ import annotations

from pathlib import Path

from benchmarks import results


def test_a_section_is_written_anew_in_its_place(tmp_path: Path) -> None:
    path = tmp_path / "RESULTS.md"
    for title, body in (
        ("first", "one"),
        ("second", "two"),
        ("third", "three"),
        ("second", "2\n\n### by voice\n\nmore"),
    ):
        results.put(path, title, body)
    assert path.read_text() == (
        results.HEAD + "\n## first\n\none\n\n## second\n\n2\n\n### by voice\n\nmore\n\n## third\n\nthree\n"
    )
    results.put(path, "third", "3")
    assert path.read_text().endswith("more\n\n## third\n\n3\n")
