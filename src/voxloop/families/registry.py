"""Model families by the `model_type` of their config.json; each is imported on first use.

Another package can add one with an entry point in the group `voxloop.families`, named after the `model_type`, that
points to an object implementing `contract.Family`:

    [project.entry-points."voxloop.families"]
    moonshine = "voxloop_moonshine:MOONSHINE"
"""

from __future__ import annotations

import json
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path

from voxloop.errors import ModelError, first_line, nearest
from voxloop.families.contract import Family, require

GROUP = "voxloop.families"
OURS = {
    "whisper": "voxloop.families.whisper:WHISPER",
    "voxtral": "voxloop.families.voxtral:VOXTRAL",
}


def known() -> dict[str, EntryPoint]:
    """The location of each family, by name. Other packages cannot replace our families."""
    ours = {name: EntryPoint(name, place, GROUP) for name, place in OURS.items()}
    return {found.name: found for found in entry_points(group=GROUP)} | ours


@cache
def family(name: str) -> Family:
    """The family called `name`. Raises ModelError if it is unknown or cannot be imported."""
    places = known()
    if name not in places:
        raise ModelError(
            f"unknown model family {name!r}{nearest(name, places)}; "
            f"a package can add it with an entry point `{name}` in the group {GROUP}"
        )
    try:
        found: Family = places[name].load()
    except (ImportError, AttributeError) as error:
        raise ModelError(
            f"model family {name!r} cannot be imported from {places[name].value} ({first_line(error)}): "
            "reinstall its package with all dependencies"
        ) from error
    return found


def converted_of(folder: Path) -> str | None:
    """Name of the family of a CTranslate2 folder; None for any other folder."""
    if not (folder / "model.bin").is_file():
        return None
    for name in known():
        try:
            kind = family(name)
        except ModelError:
            continue  # a broken one of another package: its error appears when it is requested by name
        if "ctranslate2" in kind.capabilities and require(kind, "ctranslate2").holds(folder):
            return name
    return None


def family_of(folder: Path) -> str:
    """Name of a model folder's family, from its config.json or its CTranslate2 weights.

    Raises ModelError if no family supports it, or if rounded weights make it unsuitable as a base.
    """
    if name := converted_of(folder):
        require(family(name), "ctranslate2").check_base(folder)
        return name
    try:
        found = json.loads((folder / "config.json").read_text()).get("model_type")
    except (OSError, ValueError, AttributeError) as error:
        raise ModelError(
            f"{folder} is not a model folder, since it has no readable config.json ({first_line(error)}): "
            "name a folder with config.json, tokenizer and safetensors weights"
        ) from error
    if found not in known():
        raise ModelError(
            f"{folder} contains a model of type {found!r}, but the supported types are "
            f"{', '.join(sorted(known()))}: choose another base model, or install a package that adds its family"
        )
    return str(found)
