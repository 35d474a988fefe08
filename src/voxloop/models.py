"""Models: which one is meant, where its files are, its converted forms, and loading."""

from __future__ import annotations

import hashlib
import shutil
import uuid
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import sqlalchemy as sa

from voxloop.errors import ModelError, UnknownRecord
from voxloop.families.contract import Recogniser, require
from voxloop.families.registry import family, family_of
from voxloop.records import Model
from voxloop.starter import STARTER_DIR
from voxloop.stores import tables
from voxloop.stores.blobs import sha256_file

if TYPE_CHECKING:
    from voxloop.workspace import Workspace

CHAMPION = "champion"
STARTER = "starter"
MODEL_FILES = (".safetensors", ".json", ".txt", ".model")  # what a model folder's identity covers


def base_model(ws: Workspace, name: str | None = None) -> Model:
    """The model that `name` means, registered in the catalog.

    `name` is an alias (`champion`), a model's id, `starter`, a local folder or a
    Hub id such as `openai/whisper-small`; None means the champion or, before
    there is one, the setting `base_model`. Raises ModelError or UnknownRecord.
    """
    with ws.read() as reader:
        aliased = reader.connection.execute(
            sa.select(tables.alias.c.model).where(tables.alias.c.name == (name or CHAMPION))
        ).scalar()
        if aliased:
            return reader.get(Model, aliased)
        if name == CHAMPION:
            raise UnknownRecord("no model is champion yet: `voxloop model promote MODEL` makes one, on evidence")
        name = name or ws.settings.base_model
        if name != STARTER and not Path(name).is_dir() and "/" not in name:
            return reader.get(Model, name)
    return _register(ws, name)


def _register(ws: Workspace, name: str) -> Model:
    """A model that did not come from a run: the starter, a folder or a Hub id."""
    if name == STARTER:
        folder = STARTER_DIR
    elif Path(name).is_dir():
        folder = Path(name).absolute()
    else:
        folder = _hub_folder(name)
    files = _hash_files(folder)
    if not any(file.endswith(".safetensors") for file in files):
        raise ModelError(
            f"{folder} holds no .safetensors weights: needed is a folder with config.json, tokenizer and safetensors"
        )
    where = name if folder != Path(name).absolute() else str(folder)
    model = Model(id=model_id(files), family=family_of(folder), base=where, kind="full", where=where, files=files)
    with ws.read() as reader:
        known = reader.find(Model, model.id)
    if known:
        return known
    with ws.catalog.write() as tx:  # true whatever becomes of the job in hand, so not fenced by its claim
        tx.add(model)
        return tx.get(Model, model.id)


@lru_cache(maxsize=32)
def _hash_files(folder: Path) -> dict[str, str]:
    """Hashes of a model's files by name; a folder is not expected to change while it is used."""
    return {
        path.relative_to(folder).as_posix(): sha256_file(path)
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.suffix in MODEL_FILES
    }


def model_id(files: dict[str, str]) -> str:
    """`sha256-<hex>` over the files' names and hashes."""
    lines = "".join(f"{name} {files[name]}\n" for name in sorted(files))
    return f"sha256-{hashlib.sha256(lines.encode()).hexdigest()}"


def _hub_folder(name: str) -> Path:
    """The local copy of a Hub repository, downloaded once; safetensors only."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        patterns = ["*.json", "*.txt", "*.safetensors", "*.model"]
        return Path(snapshot_download(name, allow_patterns=patterns, ignore_patterns=["*.fp32*", "flax*", "tf*"]))
    except (HfHubHTTPError, LocalEntryNotFoundError, HFValidationError, OSError) as error:
        raise ModelError(
            f"model {name!r} is neither a folder here nor could it be had from the Hugging Face Hub "
            f"({type(error).__name__}): check the name and the network, or give a local folder, or use `starter`"
        ) from error


def model_folder(ws: Workspace, model: Model) -> str:
    """The local folder that a model is loaded from."""
    if model.where == STARTER:
        return str(STARTER_DIR)
    if model.run is not None:
        return str(ws.blobs.folder(model.where))
    return model.where if Path(model.where).is_dir() else str(_hub_folder(model.where))


def device(ws: Workspace) -> str:
    """`cuda` or `cpu`, as set or as found."""
    if ws.settings.device:
        return ws.settings.device
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def engine(ws: Workspace, model: Model | None = None) -> str:
    """What runs a model here (None: the one that is used by default), as `Decoding.engine` names it.

    `torch`, or ctranslate2 with what it computes in. Raises UsageError for an engine that the model's family lacks.
    """
    asked = ws.settings.engine
    if asked == "torch":
        return asked
    kind = family((model or base_model(ws)).family)
    if asked == "auto":
        asked = kind.engines()[0]
        if asked == "torch":
            return asked
    else:
        require(kind, "ctranslate2")
    return f"{asked}-{ws.settings.compute_type or ('float16' if device(ws).startswith('cuda') else 'int8')}"


def converted(ws: Workspace, model: Model, compute_type: str) -> Path:
    """The model's CTranslate2 form in the workspace's cache: made once, and anew where it is damaged."""
    target = ws.folder / "cache" / "ctranslate2" / f"{model.id}-{compute_type}"
    kind = require(family(model.family), "ctranslate2")
    if kind.intact(target):
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f"{target.name}.{uuid.uuid4().hex[:8]}.partial")
    try:
        kind.convert(model_folder(ws, model), partial, compute_type)
        if not kind.intact(target):  # meanwhile another process may have made it
            shutil.rmtree(target, ignore_errors=True)
            partial.replace(target)
    except OSError as error:
        if not kind.intact(target):
            raise ModelError(f"the conversion of model {model.id} cannot be kept in {target}: {error}") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return target


_LOADED: dict[tuple[str, str, str], Recogniser] = {}


def recogniser(ws: Workspace, model: Model, engine_name: str | None = None) -> Recogniser:
    """The loaded model on an engine (None: the one set).

    The two last used stay in memory, as evaluation needs champion and challenger.
    """
    import torch

    if ws.settings.threads:
        torch.set_num_threads(ws.settings.threads)
    key = (model.id, device(ws), engine_name or engine(ws, model))
    if key not in _LOADED:
        while len(_LOADED) > 1:
            _LOADED.pop(next(iter(_LOADED)))
        kind = family(model.family)
        name, _, compute_type = key[2].partition("-")
        if name == "torch":
            _LOADED[key] = kind.load(model_folder(ws, model), device=key[1])
        else:
            _LOADED[key] = require(kind, "ctranslate2").load_converted(
                converted(ws, model, compute_type), device=key[1]
            )
    _LOADED[key] = _LOADED.pop(key)
    return _LOADED[key]
