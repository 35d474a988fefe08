"""Models: resolving names, finding and verifying files, converting, and loading.

A name is resolved to a row of the catalog once. The row's file hashes are checked before every use; a file is hashed
once, and again only after it has changed.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import shutil
import sys
import threading
import uuid
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import sqlalchemy as sa

from voxloop import hub
from voxloop.errors import BlobError, ConflictError, ModelError, UnknownRecord, UsageError
from voxloop.families.contract import Recogniser, require
from voxloop.families.registry import converted_of, family, family_of
from voxloop.records import Model
from voxloop.starter import STARTER_DIR
from voxloop.stores import tables
from voxloop.stores.blobs import sha256_file

if TYPE_CHECKING:
    from voxloop.stores.catalog import Reader
    from voxloop.workspace import Workspace

CHAMPION = "champion"
STARTER = "starter"
BASE = "base"  # value of `embedding_model`: the setting `base_model`
CONVERSIONS = "cache/ctranslate2"  # folder of a workspace
RESTORED = "cache/transformers"  # CTranslate2 bases in transformers' format
MODEL_FILES = (".safetensors", ".json", ".txt", ".model")  # files that a model's id covers
CTRANSLATE_WEIGHTS = "model.bin"  # of a CTranslate2 folder, covered too; other .bin files are pickles
KEPT = 2  # unused models that stay in memory: an evaluation needs champion and challenger


# Which one is meant --------------------------------------------------------------------------------------------------


def base_model(ws: Workspace, name: str | None = None) -> Model:
    """The model called `name`, registered in the catalog.

    `name` is an alias (`champion`), a model's name or id, `starter`, a local folder (in transformers' or CTranslate2's
    format), a Hub id such as `openai/whisper-small`, or faster-whisper's name for a model in the Hub's cache (`base`,
    `tiny.en`). None means the champion or, before there is one, the setting `base_model`. A workspace asks the Hub
    about a name only once. Raises ModelError or UnknownRecord.
    """
    with ws.read() as reader:
        aliased = reader.connection.execute(
            sa.select(tables.alias.c.model).where(tables.alias.c.name == (name or CHAMPION))
        ).scalar()
        if aliased:
            return reader.get(Model, aliased)
        named = reader.all(Model, tables.model.c.name == name) if name else []
        if named:
            return named[0]
    if name == CHAMPION:
        raise UnknownRecord("no champion yet: promote a model with `voxloop model promote MODEL`")
    return _named(ws, name or ws.settings.base_model)


def embedding_model(ws: Workspace) -> Model:
    """The model that computes utterance embeddings (setting `embedding_model`).

    Never an alias: an alias moves, and embeddings of different models cannot be compared.
    """
    name = ws.settings.embedding_model
    return _named(ws, ws.settings.base_model if name == BASE else name)


def _named(ws: Workspace, name: str) -> Model:
    """The model called `name`, which is not an alias."""
    if name == STARTER:
        return _registered(ws, STARTER_DIR, _model_files(STARTER_DIR), base=STARTER, where=STARTER)
    if Path(name).is_dir():
        folder = Path(name).absolute()
        return _registered(ws, folder, _model_files(folder), base=str(folder), where=str(folder))
    if "/" not in name:
        with ws.read() as reader:
            if called := reader.all(Model, tables.model.c.name == name):
                return called[0]
            if name not in hub.FASTER_WHISPER or reader.find(Model, name):
                return reader.get(Model, name)
        name = _of_faster_whisper(name)
    return _known_by(ws, name) or _from_hub(ws, name)


def _of_faster_whisper(size: str) -> str:
    """The repository behind a faster-whisper model name, if it is on this machine. Raises ModelError."""
    repository = hub.FASTER_WHISPER[size]
    if hub.converted(repository) is None:
        raise ModelError(
            f"{size!r} is faster-whisper's name for {repository}, which is not in {hub.place()}. "
            f"Name {repository} to download it, or a local folder; `voxloop base list` shows what is here"
        )
    return repository


_RESOLVING = threading.Lock()
_ALSO: dict[tuple[str, str], str] = {}  # (catalog, name) -> id of a model registered under another name


def _known_by(ws: Workspace, name: str) -> Model | None:
    """The model registered for a Hub id or a folder, even if the folder is gone by now."""
    with ws.read() as reader:
        found = reader.all(Model, tables.model.c.base == name, tables.model.c.run.is_(None))
        if found:
            return found[-1]
        other = _ALSO.get((str(ws.catalog.engine.url), name))
        return reader.find(Model, other) if other else None


def _from_hub(ws: Workspace, name: str) -> Model:
    """Download a repository and register it under its name, pinned to its current commit."""
    with _RESOLVING:
        known = _known_by(ws, name)  # another thread may have been first
        if known:
            return known
        here = hub.converted(name)  # no check for a newer one: use the model that faster-whisper uses
        folder, commit = (here, here.name) if here else hub.download(name)
        where = f"{hub.repository(name)}@{commit}"
        model = _registered(ws, folder, hub.wanted(_model_files(folder)), base=name, where=where)
        if model.base != name:
            _ALSO[str(ws.catalog.engine.url), name] = model.id
        return model


def _registered(ws: Workspace, folder: Path, names: Iterable[str], *, base: str, where: str) -> Model:
    """The row of a model that was not trained here, added if missing."""
    files = {name: _hash(folder / name) for name in names}
    id = model_id(files)
    with ws.read() as reader:
        known = reader.find(Model, id)
    if known and not _moved(known):
        return known
    if not any(file.endswith((".safetensors", CTRANSLATE_WEIGHTS)) for file in files):
        raise ModelError(
            f"{folder} contains no .safetensors weights: name a folder with config.json, tokenizer and .safetensors "
            "files, or a CTranslate2 folder"
        )
    kind = family_of(folder)
    with ws.catalog.write() as tx:  # valid whatever happens to the current job, so not fenced by its claim
        if known:
            tx.change(Model, id, base=base, where=where)
        else:
            tx.add(Model(id=id, family=kind, base=base, kind="full", where=where, files=files))
        return tx.get(Model, id)


def _moved(model: Model) -> bool:
    """Whether the folder that a model was registered from is gone."""
    return model.run is None and Path(model.where).is_absolute() and not Path(model.where).is_dir()


NAME = re.compile(r"[^\W_][\w.-]{0,63}")  # not a path, not an option, and nothing that a shell would split
RESERVED = (CHAMPION, STARTER, BASE, "previous")


def check_name(name: str) -> None:
    """Raise UsageError for something that cannot be a name."""
    if not NAME.fullmatch(name):
        raise UsageError(
            f"{name!r} is not a valid name: use up to 64 letters, digits, dots, hyphens and underscores, "
            "starting with a letter or a digit"
        )


def check_free(reader: Reader, name: str, id: str) -> None:
    """Raise UsageError or ConflictError if the name already means another model."""
    alias = reader.connection.execute(sa.select(tables.alias.c.model).where(tables.alias.c.name == name)).scalar()
    if alias or name in RESERVED or name in hub.FASTER_WHISPER:
        raise UsageError(f"{name!r} already has a meaning wherever a model is named: choose another name")
    other = reader.all(Model, tables.model.c.name == name)
    if other:
        raise ConflictError(
            f"model {other[0].id.removeprefix('sha256-')[:12]} is already called {name!r}: rename that model first"
        )
    try:
        taken = reader.get(Model, name).id
    except UnknownRecord:
        return
    if taken != id:
        raise UsageError(f"{name!r} is part of another model's id: choose another name")


def register(ws: Workspace, folder: Path, *, base: str, name: str) -> Model:
    """Register a folder of this workspace as a base called `name`, made from the model `base` with an adapter.

    An earlier one that it replaces gives the name up. Raises UsageError or ConflictError if the name is taken.
    """
    files = {file: _hash(folder / file) for file in _model_files(folder)}
    made = Model(
        id=model_id(files), family=family_of(folder), base=base, kind="adapter", where=str(folder), files=files
    )
    with ws.completion() as tx:
        for earlier in tx.all(Model, tables.model.c.name == name, tables.model.c.base == base):
            tx.change(Model, earlier.id, name=None)
        check_free(tx, name, made.id)
        tx.add(made)
        tx.change(Model, made.id, name=name)
        return tx.get(Model, made.id)


# Its files -----------------------------------------------------------------------------------------------------------


def model_id(files: dict[str, str]) -> str:
    """`sha256-<hex>` over the files' names and hashes."""
    lines = "".join(f"{name} {files[name]}\n" for name in sorted(files))
    return f"sha256-{hashlib.sha256(lines.encode()).hexdigest()}"


def _model_files(folder: Path) -> list[str]:
    """Names of the files that make up a model folder's identity."""
    weights = folder / CTRANSLATE_WEIGHTS if converted_of(folder) else None
    return [
        path.relative_to(folder).as_posix()
        for path in sorted(folder.rglob("*"))
        if (path.suffix in MODEL_FILES or path == weights) and path.is_file()
    ]


_HASHING = threading.Lock()
_HASHES: dict[Path, tuple[tuple[int, ...], str]] = {}  # by file: stat(2) at the time of hashing, and the hash


def _hash(path: Path) -> str:
    """`sha256-<hex>` of a file, read again only after it was replaced or modified."""
    stat = path.stat()
    seen = (stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns)
    kept = _HASHES.get(path)
    if kept is None or kept[0] != seen:
        with _HASHING:  # threads that ask for the same gigabytes read them once
            kept = _HASHES.get(path)
            if kept is None or kept[0] != seen:
                kept = _HASHES[path] = (seen, sha256_file(path))
    return kept[1]


def _fault(folder: Path, model: Model) -> str | None:
    """The first difference between a folder's files and a model's row; None: no difference."""
    for name, needed in sorted(model.files.items()):
        if not (folder / name).is_file():
            return f"{name} is missing"
        found = _hash(folder / name)
        if found != needed:
            return f"{name} has hash {found}, not {needed} as recorded"
    return None


def model_folder(ws: Workspace, model: Model, *, checked: bool = True) -> str:
    """The local folder that transformers loads a model from: its own, or a conversion of a CTranslate2 base.

    Raises ModelError as `own_folder` does.
    """
    folder = own_folder(ws, model, checked=checked)
    if converted_of(Path(folder)) is None:
        return folder
    kind = require(family(model.family), "ctranslate2")
    target = ws.folder / RESTORED / model.id
    _keep(ws, target, lambda partial: kind.restore(Path(folder), partial), Path.is_dir)
    return str(target)


def own_folder(ws: Workspace, model: Model, *, checked: bool = True) -> str:
    """The local folder of a model in its original format, downloaded if necessary.

    With `checked`, the files' hashes are compared with the row. Raises ModelError
    if they differ, or if the model cannot be downloaded.
    """
    if model.run is not None:
        return str(_from_blobs(ws, model, checked))
    if model.where != STARTER and not Path(model.where).is_absolute():
        return str(_from_cache(model, checked))
    folder = STARTER_DIR if model.where == STARTER else Path(model.where)
    wrong = checked and _fault(folder, model)
    if wrong:
        raise ModelError(
            f"the files of model {model.id} in {folder} have changed: {wrong}. Restore them, or use the new files as a "
            f"model of their own by naming `{model.base}`"
        )
    return str(folder)


def _from_blobs(ws: Workspace, model: Model, checked: bool) -> Path:
    try:
        folder = ws.blobs.folder(model.where, model.files)
        wrong = checked and _fault(folder, model)
        if wrong and ws.blobs.root is None:  # the copy may be what is damaged
            for name in model.files:
                ws.blobs.forget(f"{model.where}/{name}")
            wrong = _fault(ws.blobs.folder(model.where, model.files), model)
    except BlobError as error:
        raise ModelError(f"a file of model {model.id} is missing: {error}; try `voxloop verify --repair`") from error
    if wrong:
        raise ModelError(
            f"model {model.id} is damaged: {wrong}, in {ws.blobs.url}/{model.where}. Run `voxloop verify --repair`, "
            "which restores it from its run's folder if that is intact, or else restore a backup"
        )
    return folder


def _from_cache(model: Model, checked: bool) -> Path:
    """The folder of a Hub model, downloaded again if files are missing or damaged."""
    folder = hub.cached(model.where)
    if folder and not (checked and _fault(folder, model)):
        return folder
    # Only missing files are downloaded; a damaged one that exists would be kept, so then everything is.
    missing = folder is None or any(not (folder / name).is_file() for name in model.files)
    folder, _ = hub.download(model.where, again=not missing)
    wrong = _fault(folder, model)
    if wrong:
        raise ModelError(
            f"model {model.id} was changed on the Hugging Face Hub ({model.where}): {wrong}. Name another revision as "
            "OWNER/NAME@REVISION, or a folder with the old files"
        )
    return folder


# What runs it --------------------------------------------------------------------------------------------------------


def device(ws: Workspace, engine: str = "torch") -> str:
    """`cuda` or `cpu`: the setting `device`, or else what the engine can use."""
    if ws.settings.device:
        return ws.settings.device
    if engine.startswith("ctranslate2") and find_spec("ctranslate2"):
        import ctranslate2

        return "cuda" if ctranslate2.get_cuda_device_count() else "cpu"
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def engine(ws: Workspace, model: Model | None = None, *, asked: str = "") -> str:
    """The engine that runs a model here (None: the default model), as in `Decoding.engine`.

    `torch`, or ctranslate2 with its number format (`ctranslate2-int8`). `asked` is an engine, with or without a number
    format; empty: the setting `engine`. Raises UsageError if the model's family does not support the engine.
    """
    asked, _, compute_type = (asked or ws.settings.engine).partition("-")
    if asked == "torch":
        return asked
    kind = family((model or base_model(ws)).family)
    if asked == "auto":
        asked = kind.engines()[0]
        # On a GPU, PyTorch brings the CUDA libraries it needs; CTranslate2 needs those of the system.
        if asked == "torch" or (device(ws, asked).startswith("cuda") and device(ws).startswith("cuda")):
            return "torch"
    else:
        require(kind, "ctranslate2")
    compute_type = compute_type or ws.settings.compute_type
    return f"{asked}-{compute_type or ('float16' if device(ws, asked).startswith('cuda') else 'int8')}"


def converted(ws: Workspace, model: Model, compute_type: str) -> Path:
    """The model's CTranslate2 conversion in the workspace's cache: made once, and again if damaged.

    Other processes that need it wait for the first to finish. Raises ModelError.
    """
    target = ws.folder / CONVERSIONS / f"{model.id}-{compute_type}"
    kind = require(family(model.family), "ctranslate2")
    folder = own_folder(ws, model) if not kind.intact(target) else ""
    _keep(ws, target, lambda partial: kind.convert(folder, partial, compute_type), kind.intact)
    os.utime(target)  # time of last use, by which old conversions are pruned
    return target


def _keep(ws: Workspace, target: Path, write: Callable[[Path], None], whole: Callable[[Path], bool]) -> None:
    """Make sure that a cache folder is `whole`, calling `write` in one process at a time if it is not."""
    if whole(target):
        return
    partial = target.with_name(f"{target.name}.{uuid.uuid4().hex[:8]}.partial")
    try:
        with _alone(ws.folder / "locks" / f"{target.name}.lock"):
            if whole(target):
                return
            target.parent.mkdir(parents=True, exist_ok=True)
            write(partial)
            shutil.rmtree(target, ignore_errors=True)
            partial.replace(target)
    except OSError as error:
        raise ModelError(
            f"the converted model cannot be written to {target}: {error}. Free some space or allow access there, or "
            "set `engine` to torch"
        ) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


@dataclass(frozen=True, slots=True)
class ConvertedForm:
    """A converted model in the workspace's cache."""

    model: str
    folder: Path


def conversions(ws: Workspace) -> list[ConvertedForm]:
    """The converted models in the cache, most recently used first."""
    folders = [path for path in (ws.folder / CONVERSIONS).glob("sha256-*") if not path.name.endswith(".partial")]
    folders.sort(key=lambda path: path.stat().st_mtime, reverse=True)
    return [ConvertedForm("-".join(path.name.split("-")[:2]), path) for path in folders]


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Hold an exclusive file lock, which the kernel releases if the process dies (flock(2))."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


# Loading -------------------------------------------------------------------------------------------------------------


@dataclass(eq=False, kw_only=True, slots=True)
class LoadedModel:
    """A model in memory and its number of users. A model in use is never freed."""

    recogniser: Recogniser | None = None  # None until it is loaded
    users: int = 0


_LOADED: dict[tuple[str, str, str], LoadedModel] = {}  # by model, device and engine; most recently used last
_COUNTING = threading.Lock()  # held while `_LOADED` or a user count changes, never while loading
_LOADING = threading.Lock()  # one at a time: transformers replaces functions of PyTorch while it loads a model


@contextmanager
def loaded(ws: Workspace, model: Model, engine_name: str | None = None, *, kept: int = KEPT) -> Iterator[Recogniser]:
    """The model on an engine (None: the setting), loaded and kept in memory at least until the block ends.

    Threads share a loaded model. The `kept` most recently used models stay loaded,
    counting those in use, which are never freed. This makes loading thread-safe, not
    the recogniser: its family says whether two threads may transcribe with it at once.
    """
    engine_name = engine_name or engine(ws, model)
    key = (model.id, device(ws, engine_name), engine_name)
    with _COUNTING:
        held = _LOADED[key] = _LOADED.pop(key) if key in _LOADED else LoadedModel()
        held.users += 1
        _free(kept)  # before loading, so that memory never holds an extra model
    try:
        if held.recogniser is None:
            with _LOADING:
                held.recogniser = held.recogniser or _load(ws, model, *key[1:])
        yield held.recogniser
    finally:
        with _COUNTING:
            held.users -= 1
            if held.recogniser is None and not held.users:  # it could not be loaded
                del _LOADED[key]
            _free(kept)


def free() -> None:
    """Free every loaded model that is not in use."""
    with _COUNTING:
        _free(0)
    torch = sys.modules.get("torch")
    if torch and torch.cuda.is_initialized():
        torch.cuda.empty_cache()  # return PyTorch's cached memory to the device


def _free(stay: int) -> None:
    """Free unused models, least recently used first, until at most `stay` models are left."""
    for key in [key for key, held in _LOADED.items() if not held.users]:
        if len(_LOADED) <= stay:
            return
        del _LOADED[key]


def _load(ws: Workspace, model: Model, on: str, engine_name: str) -> Recogniser:
    kind = family(model.family)
    name, _, compute_type = engine_name.partition("-")
    if name == "torch":
        if ws.settings.threads:
            import torch

            torch.set_num_threads(ws.settings.threads)
        return kind.load(model_folder(ws, model), device=on)
    folder = converted(ws, model, compute_type)
    return require(kind, "ctranslate2").load_converted(folder, device=on, threads=ws.settings.threads)
