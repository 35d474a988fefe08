"""`RESULTS.md`: one section for each benchmark; writing one leaves the others as they are."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

PATH: Final = Path(__file__).parent / "RESULTS.md"
HEAD: Final = """# Results

A section for each benchmark, with its date, machine and versions. Ratios and error rates count; absolute rates of a
shared machine do not.
"""


def put(path: Path, title: str, body: str) -> None:
    """Write the section `## title` anew, in its place or at the end."""
    text = path.read_text(encoding="utf-8") if path.exists() else HEAD
    section = f"## {title}\n\n{body.strip()}\n"
    found = re.search(rf"^## {re.escape(title)}\n.*?(?=^## |\Z)", text, flags=re.MULTILINE | re.DOTALL)
    if found:
        rest = text[found.end() :]
        text = text[: found.start()] + section + ("\n" + rest if rest else "")
    else:
        text = text.rstrip() + "\n\n" + section
    path.write_text(text, encoding="utf-8")
