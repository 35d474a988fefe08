"""Write an exported model into a new folder, completely or not at all.

transformers  the merged weights, extended for other programs (`families.whisper.portable`)
ctranslate2   converted from these, for faster-whisper
ggml          converted from these, for whisper.cpp
peft          only the adapter, for the base that it was trained on
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
from voxloop.records import Model, Progress, Run
from voxloop.steps import consent, datasets
from voxloop.steps.exporting import card, trial
from voxloop.steps.exporting.trial import Trial

if TYPE_CHECKING:
    from voxloop.families.contract import Family
    from voxloop.workspace import Workspace

FORMATS: tuple[ExportFormat, ...] = ("transformers", "ctranslate2", "ggml", "peft")
ALL = "all"
ADAPTER = "adapter"  # subfolder of a model trained with LoRA
BASE = "base"  # subfolder of an exported adapter, for a base that is not on the Hub


@dataclass(frozen=True, kw_only=True, slots=True)
class ExportedModel:
    """An exported model, with its results in other programs."""

    model: str
    folder: Path
    formats: tuple[ExportFormat, ...]
    trial: Trial | None  # None: not requested
    completed: bool  # whether time stamp tokens were added to its vocabulary
    not_to_share: tuple[str | None, ...]  # speakers (None: unknown) it learnt from who permit no sharing of models


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
    """Write a model and its card into a new folder, and test it on `clips` test clips in the target programs.

    `format` is one of `FORMATS`, written to the folder itself, or `all`, each in a subfolder of its name.
    `compute_type` is CTranslate2's. Raises UsageError for a format that the model does not support, and ExportError
    if the folder exists or cannot be written.
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
        lacking = not_to_share(ws, model)
        text = card.write(
            ws, model, formats, tried, nested=format == ALL, completed=completed, not_to_share=len(lacking)
        )
        (partial / "README.md").write_text(text, encoding="utf-8")
    return ExportedModel(
        model=model.id, folder=folder, formats=formats, trial=tried, completed=completed, not_to_share=tuple(lacking)
    )


def not_to_share(ws: Workspace, model: Model) -> list[str | None]:
    """Speakers (None: unknown) whom a model or its bases learnt from, and who do not permit sharing such models."""
    speakers: set[str | None] = set()
    with ws.read() as reader:
        at: Model | None = model
        while at is not None and at.run:
            run = reader.find(Run, at.run)
            if run is None:
                break
            speakers.update(row.speaker for row in datasets.rows(ws, run.dataset, "train"))
            at = reader.find(Model, run.base)
        return consent.lacking(reader, speakers, "share")


def _formats(model: Model, kind: Family, asked: str) -> tuple[ExportFormat, ...]:
    """Return the requested formats. Raises UsageError for one that the model does not support."""
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
        raise UsageError("this model was trained with all weights and has no adapter: export it as transformers")
    if not known[asked]:
        raise UsageError(f"models of the {kind.name} family do not support {asked}: export it as transformers")
    return tuple(one for one in FORMATS if one == asked)


@contextmanager
def new_folder(target: Path) -> Iterator[Path]:
    """Create a folder that becomes `target` at the end of the block; if the block fails, nothing remains.

    Raises ExportError if `target` exists (also as a file, a device or a link) or cannot be written.
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
        raise ExportError(f"cannot write {target} ({reason}): free space there, or choose another folder") from error
    except ModelError as error:
        if isinstance(error.__cause__, OSError):  # from CTranslate2's converter
            raise ExportError(f"cannot write {target} ({error.__cause__.strerror}): choose another folder") from error
        raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _check_absent(target: Path) -> None:
    if os.path.lexists(target):
        what = "a link" if target.is_symlink() else "a folder" if target.is_dir() else "a file or a device"
        raise ExportError(f"{target} already exists as {what}: choose a folder that does not exist yet")


# Adapters ------------------------------------------------------------------------------------------------------------


def _write_adapter(ws: Workspace, model: Model, source: Path, target: Path) -> Path:
    """Write a PEFT folder with the tokenizer, and with the base if that is not on the Hub. Return the base's folder."""
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
    # By default this is a path on this machine.
    config["base_model_name_or_path"] = hub_id or BASE
    (target / "adapter_config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    return base_folder


def hub_name(base: Model) -> str | None:
    """Return the Hub id of a base in transformers format; None if it did not come from the Hub."""
    if base.run is not None or base.where == models.STARTER or Path(base.where).is_absolute():
        return None
    return hub.original(hub.repository(base.where))
