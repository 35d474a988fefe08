"""Writing an exported model: a new folder that appears whole, or not at all.

transformers  the merged weights, completed for other programs (`families.whisper.portable`)
ctranslate2   converted from that, for faster-whisper
ggml          written from that, for whisper.cpp
peft          the adapter alone, for the base that it was trained on
"""

from __future__ import annotations

import json
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from voxloop import hub, models
from voxloop.errors import ExportError, ModelError, UsageError, nearest
from voxloop.families.contract import ExportFormat, require
from voxloop.families.registry import family
from voxloop.records import Progress
from voxloop.steps.exporting import card, trial
from voxloop.steps.exporting.trial import Trial

if TYPE_CHECKING:
    from voxloop.families.contract import Family
    from voxloop.records import Model
    from voxloop.workspace import Workspace

FORMATS: tuple[ExportFormat, ...] = ("transformers", "ctranslate2", "ggml", "peft")
ALL = "all"
ADAPTER = "adapter"  # folder of a model's files, where it was trained as LoRA
BASE = "base"  # of an exported adapter: the folder of a base that no Hub has


@dataclass(frozen=True, kw_only=True, slots=True)
class ExportedModel:
    """What was written, and what other programs made of it."""

    model: str
    folder: Path
    formats: tuple[ExportFormat, ...]
    trial: Trial | None  # None: it was not asked for
    completed: bool  # time stamp tokens were added to its vocabulary


def export_model(
    ws: Workspace,
    name: str,
    folder: Path,
    *,
    format: ExportFormat | str = "transformers",
    compute_type: str = "float16",
    clips: int = trial.CLIPS,
    progress: Progress | None = None,
) -> ExportedModel:
    """Write a model and its card into a new folder, and have the programs that it is for read `clips` test clips.

    `format` is one of `FORMATS`, whose files lie in the folder itself, or `all`: each in a folder of its name.
    `compute_type` is CTranslate2's. Raises UsageError for a format that the model lacks, ExportError where the
    folder exists or cannot be written.
    """
    model = models.base_model(ws, name)
    kind = family(model.family)
    formats = _formats(model, kind, format)
    source = Path(models.model_folder(ws, model))
    with new_folder(folder) as partial, TemporaryDirectory(prefix="voxloop-export-") as scratch:
        places = {one: partial / one if format == ALL else partial for one in formats}
        whole = places.get("transformers", Path(scratch) / "transformers")
        completed = False
        if "other programs" in kind.capabilities:
            completed = require(kind, "other programs").complete(source, whole)
        elif "transformers" in formats:
            shutil.copytree(source, whole, dirs_exist_ok=True, ignore=shutil.ignore_patterns(ADAPTER))
        base: Path | None = None
        for one, place in places.items():
            if one == "ctranslate2":
                require(kind, "ctranslate2").convert(whole, place, compute_type)
            elif one == "ggml":
                require(kind, "other programs").write_ggml(whole, place)
            elif one == "peft":
                base = _write_adapter(ws, model, source, place)
        tried = None
        if clips and "other programs" in kind.capabilities:
            tried = trial.run(ws, model, places, shape=whole, base=base, clips=clips, progress=progress)
        text = card.write(ws, model, formats, tried, nested=format == ALL, completed=completed)
        (partial / "README.md").write_text(text, encoding="utf-8")
    return ExportedModel(model=model.id, folder=folder, formats=formats, trial=tried, completed=completed)


def _formats(model: Model, kind: Family, asked: str) -> tuple[ExportFormat, ...]:
    """The formats that are meant. Raises UsageError for one that the model lacks."""
    known = {
        "transformers": True,
        "ctranslate2": "ctranslate2" in kind.capabilities,
        "ggml": "other programs" in kind.capabilities,
        "peft": model.kind == "adapter",
    }
    if asked == ALL:
        return tuple(one for one in FORMATS if known[one])
    if asked not in known:
        raise UsageError(f"there is no format {asked!r}{nearest(asked, (*FORMATS, ALL))}")
    if asked == "peft" and not known["peft"]:
        raise UsageError("all weights of this model were trained, so it has no adapter: export it as transformers")
    if not known[asked]:
        raise UsageError(f"models of the family {kind.name} have no form {asked}: export it as transformers")
    return tuple(one for one in FORMATS if one == asked)


@contextmanager
def new_folder(target: Path) -> Iterator[Path]:
    """A folder to write into, which becomes `target` at the block's end; where the block fails, nothing is left.

    Raises ExportError where `target` exists, as a file, a device or a link too, or cannot be written.
    """
    from safetensors import SafetensorError

    _check_absent(target)
    partial = target.absolute().parent / f".{target.name}.{uuid.uuid4().hex[:8]}.partial"
    try:
        partial.parent.mkdir(parents=True, exist_ok=True)
        partial.mkdir()
        yield partial
        _check_absent(target)
        partial.rename(target)
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise ExportError(f"{target} cannot be written ({reason}): make room there, or name another place") from error
    except ModelError as error:
        if isinstance(error.__cause__, OSError):  # CTranslate2's converter met it
            raise ExportError(f"{target} cannot be written ({error.__cause__.strerror})") from error
        raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _check_absent(target: Path) -> None:
    if os.path.lexists(target):
        what = "a link" if target.is_symlink() else "a folder" if target.is_dir() else "a file or a device"
        raise ExportError(f"{target} exists already, as {what}: name a folder that does not exist yet")


# Adapters ------------------------------------------------------------------------------------------------------------


def _write_adapter(ws: Workspace, model: Model, source: Path, target: Path) -> Path:
    """Write a PEFT folder with the tokenizer, and its base beside it where no Hub has that; the base's folder."""
    target.mkdir(parents=True, exist_ok=True)
    base = models.base_model(ws, model.base)
    base_folder = Path(models.model_folder(ws, base))
    for file in sorted((source / ADAPTER).iterdir()):
        if file.suffix in (".safetensors", ".json"):
            shutil.copyfile(file, target / file.name)
    for file in sorted(source.glob("*.json")):
        if file.name.startswith(("tokenizer", "processor", "preprocessor", "vocab", "added_tokens", "special_tokens")):
            shutil.copyfile(file, target / file.name)
    hub_id = hub_name(base)
    if hub_id is None:
        shutil.copytree(base_folder, target / BASE, ignore=shutil.ignore_patterns(ADAPTER, "README.md"))
    config = json.loads((target / "adapter_config.json").read_text(encoding="utf-8"))
    # What it holds otherwise is a folder of this machine.
    config["base_model_name_or_path"] = hub_id or BASE
    (target / "adapter_config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    return base_folder


def hub_name(base: Model) -> str | None:
    """The Hub id of a base in transformers' form; None where it did not come from the Hub."""
    if base.run is not None or base.where == models.STARTER or Path(base.where).is_absolute():
        return None
    return hub.original(hub.repository(base.where))
