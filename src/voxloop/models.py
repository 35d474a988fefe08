"""Models: which one is meant, where its files are, its converted forms, and loading."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import shutil
import uuid
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import sqlalchemy as sa

from voxloop import hubcache
from voxloop.errors import ModelError, UnknownRecord
from voxloop.families.contract import Recogniser, family
from voxloop.records import Model
from voxloop.starter import STARTER_DIR
from voxloop.stores import tables
from voxloop.stores.blobs import sha256_file

if TYPE_CHECKING:
    from voxloop.workspace import Workspace

CHAMPION = "champion"
STARTER = "starter"
MODEL_FILES = (".safetensors", ".json", ".txt", ".model")  # what a model folder's identity covers
CTRANSLATE_WEIGHTS = "model.bin"  # that of a CTranslate2 folder covers these as well; other .bin files are pickles


def base_model(ws: Workspace, name: str | None = None) -> Model:
    """The model that `name` means, registered in the catalog.

    `name` is an alias (`champion`), a model's id, `starter`, a local folder (transformers'
    form or CTranslate2's), a Hub id such as `openai/whisper-small`, or what faster-whisper
    calls a model that it has in the Hub's cache (`base`, `tiny.en`); None means the champion
    or, before there is one, the setting `base_model`. Raises ModelError or UnknownRecord.
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
        if name in hubcache.FASTER_WHISPER and not Path(name).is_dir() and not reader.find(Model, name):
            name = _of_faster_whisper(name)
        if name != STARTER and not Path(name).is_dir() and "/" not in name:
            return reader.get(Model, name)
    return _register(ws, name)


def _of_faster_whisper(size: str) -> str:
    """The repository that a name of faster-whisper's stands for, where this machine has it. Raises ModelError."""
    repository = hubcache.FASTER_WHISPER[size]
    if hubcache.converted(repository) is None:
        raise ModelError(
            f"{size!r} is faster-whisper's name for {repository}, which is not in {hubcache.place()}: "
            f"give {repository} to fetch it from the Hub, or a local folder; `voxloop base list` says what is here"
        )
    return repository


def _register(ws: Workspace, name: str) -> Model:
    """A model that did not come from a run: the starter, a folder or a Hub id."""
    if name == STARTER:
        folder = STARTER_DIR
    elif Path(name).is_dir():
        folder = Path(name).absolute()
    else:
        folder = _hub_folder(name)
    found = _family_of(folder)
    files = _hash_files(folder)
    if not any(file.endswith((".safetensors", CTRANSLATE_WEIGHTS)) for file in files):
        raise ModelError(
            f"{folder} holds no .safetensors weights: needed is a folder with config.json, tokenizer and safetensors, "
            "or one in CTranslate2's form"
        )
    where = name if folder != Path(name).absolute() else str(folder)
    model = Model(id=model_id(files), family=found, base=where, kind="full", where=where, files=files)
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
    weights = {folder / CTRANSLATE_WEIGHTS} if _is_ctranslate(folder) else set()
    return {
        path.relative_to(folder).as_posix(): sha256_file(path)
        for path in sorted(folder.rglob("*"))
        if path.is_file() and (path.suffix in MODEL_FILES or path in weights)
    }


def model_id(files: dict[str, str]) -> str:
    """`sha256-<hex>` over the files' names and hashes."""
    lines = "".join(f"{name} {files[name]}\n" for name in sorted(files))
    return f"sha256-{hashlib.sha256(lines.encode()).hexdigest()}"


def _is_ctranslate(folder: Path) -> bool:
    from voxloop.families.whisper import ctranslate_folder

    return ctranslate_folder.recognised(folder)


def _family_of(folder: Path) -> str:
    """The family of a model folder. Raises ModelError where none knows it, or where its weights cannot be a base."""
    if _is_ctranslate(folder):
        from voxloop.families.whisper import ctranslate_folder

        ctranslate_folder.check(folder)
        return "whisper"
    try:
        found = json.loads((folder / "config.json").read_text()).get("model_type")
    except (OSError, ValueError) as error:
        raise ModelError(f"{folder} holds no readable config.json, so it is no model folder: {error}") from error
    if found != "whisper":
        raise ModelError(f"{folder} holds a model of type {found!r}; this version knows Whisper")
    return "whisper"


def _hub_folder(name: str) -> Path:
    """The local copy of a Hub repository, downloaded once; safetensors or CTranslate2's form only."""
    cached = hubcache.converted(name)
    if cached is not None:  # nothing newer is asked for: what faster-whisper has is what its user hears
        return cached
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        patterns = ["*.json", "*.txt", "*.safetensors", "*.model", CTRANSLATE_WEIGHTS]
        return Path(snapshot_download(name, allow_patterns=patterns, ignore_patterns=["*.fp32*", "flax*", "tf*"]))
    except (HfHubHTTPError, LocalEntryNotFoundError, HFValidationError, OSError) as error:
        raise ModelError(
            f"model {name!r} is neither a folder here nor could it be had from the Hugging Face Hub "
            f"({type(error).__name__}): check the name and the network, or give a local folder, or use `starter`"
        ) from error


def model_folder(ws: Workspace, model: Model) -> str:
    """The local folder that transformers loads a model from; of a CTranslate2 base, a copy in the workspace's cache."""
    folder = _own_folder(ws, model)
    if not _is_ctranslate(Path(folder)):
        return folder
    target = ws.folder / "cache" / "transformers" / model.id
    if not target.is_dir():
        from voxloop.families.whisper import ctranslate_folder

        _keep(target, lambda partial: ctranslate_folder.restore(folder, partial), Path.is_dir)
    return str(target)


def _own_folder(ws: Workspace, model: Model) -> str:
    """The local folder of a model, in whichever form it came."""
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


def engine(ws: Workspace) -> str:
    """What runs models here, as `Decoding.engine` names it: `torch`, or ctranslate2 with what it computes in."""
    asked = ws.settings.engine
    if asked == "auto":
        asked = "ctranslate2" if importlib.util.find_spec("ctranslate2") else "torch"
    if asked == "torch":
        return asked
    return f"{asked}-{ws.settings.compute_type or ('float16' if device(ws).startswith('cuda') else 'int8')}"


def converted(ws: Workspace, model: Model, compute_type: str) -> Path:
    """The model's CTranslate2 form in the workspace's cache: made once, and anew where it is damaged."""
    target = ws.folder / "cache" / "ctranslate2" / f"{model.id}-{compute_type}"
    kind = family(model.family)
    if not kind.intact(target):
        folder = _own_folder(ws, model)
        _keep(target, lambda partial: kind.convert(folder, partial, compute_type), kind.intact)
    return target


def _keep(target: Path, write: Callable[[Path], None], whole: Callable[[Path], bool]) -> None:
    """Have a folder written that is at `target` whole or not at all, whoever else writes it meanwhile."""
    partial = target.with_name(f"{target.name}.{uuid.uuid4().hex[:8]}.partial")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        write(partial)
        if not whole(target):  # meanwhile another process may have made it
            shutil.rmtree(target, ignore_errors=True)
            partial.replace(target)
    except OSError as error:
        if not whole(target):
            raise ModelError(f"the model's other form cannot be kept in {target}: {error}") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


_LOADED: dict[tuple[str, str, str], Recogniser] = {}


def recogniser(ws: Workspace, model: Model, engine_name: str | None = None) -> Recogniser:
    """The loaded model on an engine (None: the one set).

    The two last used stay in memory, as evaluation needs champion and challenger.
    """
    import torch

    if ws.settings.threads:
        torch.set_num_threads(ws.settings.threads)
    key = (model.id, device(ws), engine_name or engine(ws))
    if key not in _LOADED:
        while len(_LOADED) > 1:
            _LOADED.pop(next(iter(_LOADED)))
        kind = family(model.family)
        name, _, compute_type = key[2].partition("-")
        if name == "torch":
            _LOADED[key] = kind.load(model_folder(ws, model), device=key[1])
        else:
            _LOADED[key] = kind.load_converted(converted(ws, model, compute_type), device=key[1])
    _LOADED[key] = _LOADED.pop(key)
    return _LOADED[key]
