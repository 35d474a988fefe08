"""Models: which one is meant, where its files are, its converted forms, and loading.

A name is turned into a row of the catalog once. What a row says of its files is held against them whenever they are
to be used; a file is read for that once, and again only after it has changed.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
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
from voxloop.errors import BlobError, ModelError, UnknownRecord
from voxloop.families.contract import Recogniser, require
from voxloop.families.registry import converted_of, family, family_of
from voxloop.records import Model
from voxloop.starter import STARTER_DIR
from voxloop.stores import tables
from voxloop.stores.blobs import sha256_file

if TYPE_CHECKING:
    from voxloop.workspace import Workspace

CHAMPION = "champion"
STARTER = "starter"
BASE = "base"  # as `embedding_model`: what the setting `base_model` names
CONVERSIONS = "cache/ctranslate2"  # folder of a workspace
RESTORED = "cache/transformers"  # CTranslate2 bases in the form that transformers loads
MODEL_FILES = (".safetensors", ".json", ".txt", ".model")  # what a model folder's identity covers
CTRANSLATE_WEIGHTS = "model.bin"  # that of a CTranslate2 folder covers these as well; other .bin files are pickles
KEPT = 2  # loaded models that stay in memory while nobody uses them: an evaluation needs champion and challenger


# Which one is meant --------------------------------------------------------------------------------------------------


def base_model(ws: Workspace, name: str | None = None) -> Model:
    """The model that `name` means, registered in the catalog.

    `name` is an alias (`champion`), a model's name or id, `starter`, a local folder (transformers' form or
    CTranslate2's), a Hub id such as `openai/whisper-small`, or what faster-whisper calls a model that it has in the
    Hub's cache (`base`, `tiny.en`); None means the champion or, before there is one, the setting `base_model`. The Hub
    is asked about a name once in a workspace. Raises ModelError or UnknownRecord.
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
        raise UnknownRecord("no model is champion yet: `voxloop model promote MODEL` makes one, on evidence")
    return _named(ws, name or ws.settings.base_model)


def embedding_model(ws: Workspace) -> Model:
    """The model that gives utterances their vectors, as the setting `embedding_model` names it.

    Never an alias: vectors of different models do not compare, and an alias moves.
    """
    name = ws.settings.embedding_model
    return _named(ws, ws.settings.base_model if name == BASE else name)


def _named(ws: Workspace, name: str) -> Model:
    """The model of a name that is no alias."""
    if name == STARTER:
        return _registered(ws, STARTER_DIR, _model_files(STARTER_DIR), base=STARTER, where=STARTER)
    if Path(name).is_dir():
        folder = Path(name).absolute()
        return _registered(ws, folder, _model_files(folder), base=str(folder), where=str(folder))
    if "/" not in name:
        with ws.read() as reader:
            if name not in hub.FASTER_WHISPER or reader.find(Model, name):
                return reader.get(Model, name)
        name = _of_faster_whisper(name)
    return _known_by(ws, name) or _from_hub(ws, name)


def _of_faster_whisper(size: str) -> str:
    """The repository that a name of faster-whisper's stands for, where this machine has it. Raises ModelError."""
    repository = hub.FASTER_WHISPER[size]
    if hub.converted(repository) is None:
        raise ModelError(
            f"{size!r} is faster-whisper's name for {repository}, which is not in {hub.place()}: "
            f"give {repository} to fetch it from the Hub, or a local folder; `voxloop base list` says what is here"
        )
    return repository


_RESOLVING = threading.Lock()
_ALSO: dict[tuple[str, str], str] = {}  # (catalog, name) -> id of a model whose row bears another name


def _known_by(ws: Workspace, name: str) -> Model | None:
    """The model that a Hub id or a folder, which may be gone by now, was registered as."""
    with ws.read() as reader:
        found = reader.all(Model, tables.model.c.base == name, tables.model.c.run.is_(None))
        if found:
            return found[-1]
        other = _ALSO.get((str(ws.catalog.engine.url), name))
        return reader.find(Model, other) if other else None


def _from_hub(ws: Workspace, name: str) -> Model:
    """Download a repository and register it under its name, pinned to the commit that it was at."""
    with _RESOLVING:
        known = _known_by(ws, name)  # another thread may have been first
        if known:
            return known
        here = hub.converted(name)  # nothing newer is asked for: what faster-whisper has is what its user hears
        folder, commit = (here, here.name) if here else hub.download(name)
        where = f"{hub.repository(name)}@{commit}"
        model = _registered(ws, folder, hub.wanted(_model_files(folder)), base=name, where=where)
        if model.base != name:
            _ALSO[str(ws.catalog.engine.url), name] = model.id
        return model


def _registered(ws: Workspace, folder: Path, names: Iterable[str], *, base: str, where: str) -> Model:
    """The row of a model that did not come from a run, written where there is none yet."""
    files = {name: _hash(folder / name) for name in names}
    id = model_id(files)
    with ws.read() as reader:
        known = reader.find(Model, id)
    if known and not _moved(known):
        return known
    if not any(file.endswith((".safetensors", CTRANSLATE_WEIGHTS)) for file in files):
        raise ModelError(
            f"{folder} holds no .safetensors weights: a model is a folder with config.json, tokenizer and safetensors, "
            "or one in CTranslate2's form"
        )
    kind = family_of(folder)
    with ws.catalog.write() as tx:  # true whatever becomes of the job in hand, so not fenced by its claim
        if known:
            tx.change(Model, id, base=base, where=where)
        else:
            tx.add(Model(id=id, family=kind, base=base, kind="full", where=where, files=files))
        return tx.get(Model, id)


def _moved(model: Model) -> bool:
    """Whether the folder that a model was registered from is gone."""
    return model.run is None and Path(model.where).is_absolute() and not Path(model.where).is_dir()


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
_HASHES: dict[Path, tuple[tuple[int, ...], str]] = {}  # of a file: what stat(2) said of it when it was hashed


def _hash(path: Path) -> str:
    """`sha256-<hex>` of a file, read again only where it is another one or was written to."""
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
    """What is wrong with a model's files in a folder, by its row; None: nothing."""
    for name, needed in sorted(model.files.items()):
        if not (folder / name).is_file():
            return f"{name} is missing"
        found = _hash(folder / name)
        if found != needed:
            return f"{name} has {found}, and its row needs {needed}"
    return None


def model_folder(ws: Workspace, model: Model, *, checked: bool = True) -> str:
    """The local folder that transformers loads a model from: its own, or of a CTranslate2 base a copy made of it.

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
    """The local folder of a model in the form that it came in, brought here where it is elsewhere.

    Its files are held against the row, each once as long as it does not change.
    Raises ModelError where they differ; where not `checked`, only what cannot be
    brought here does.
    """
    if model.run is not None:
        return str(_from_blobs(ws, model, checked))
    if model.where != STARTER and not Path(model.where).is_absolute():
        return str(_from_cache(model, checked))
    folder = STARTER_DIR if model.where == STARTER else Path(model.where)
    wrong = checked and _fault(folder, model)
    if wrong:
        raise ModelError(
            f"model {model.id} is not in {folder} any more: {wrong}; put its files back there, "
            f"or name what is there now as a model of its own (`{model.base}`)"
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
        raise ModelError(f"model {model.id} lacks a file: {error}; `voxloop verify --repair` looks for it") from error
    if wrong:
        raise ModelError(
            f"model {model.id} is damaged: {wrong}, in {ws.blobs.url}/{model.where}; `voxloop verify --repair` takes "
            "it from its run's folder where that is whole, else restore a backup"
        )
    return folder


def _from_cache(model: Model, checked: bool) -> Path:
    """The Hub's files, downloaded again where they are not on this machine any more, or are damaged."""
    folder = hub.cached(model.where)
    if folder and not (checked and _fault(folder, model)):
        return folder
    # Files that are only missing are fetched alone; one that is there and wrong would be taken as it is.
    missing = folder is None or any(not (folder / name).is_file() for name in model.files)
    folder, _ = hub.download(model.where, again=not missing)
    wrong = _fault(folder, model)
    if wrong:
        raise ModelError(
            f"model {model.id} is not what the Hugging Face Hub has as {model.where} now: {wrong}; its files were "
            "changed there: put the old ones into a folder and name that, or another revision as OWNER/NAME@REVISION"
        )
    return folder


# What runs it --------------------------------------------------------------------------------------------------------


def device(ws: Workspace, engine: str = "torch") -> str:
    """`cuda` or `cpu`, as set or as an engine finds it."""
    if ws.settings.device:
        return ws.settings.device
    if engine.startswith("ctranslate2") and find_spec("ctranslate2"):
        import ctranslate2

        return "cuda" if ctranslate2.get_cuda_device_count() else "cpu"
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def engine(ws: Workspace, model: Model | None = None, *, asked: str = "") -> str:
    """What runs a model here (None: the one that is used by default), as `Decoding.engine` names it.

    `torch`, or ctranslate2 with what it computes in. `asked` is an engine, with or without a number format; empty: the
    setting. Raises UsageError for an engine that the model's family lacks.
    """
    asked, _, compute_type = (asked or ws.settings.engine).partition("-")
    if asked == "torch":
        return asked
    kind = family((model or base_model(ws)).family)
    if asked == "auto":
        asked = kind.engines()[0]
        if asked == "torch":
            return asked
    else:
        require(kind, "ctranslate2")
    compute_type = compute_type or ws.settings.compute_type
    return f"{asked}-{compute_type or ('float16' if device(ws, asked).startswith('cuda') else 'int8')}"


def converted(ws: Workspace, model: Model, compute_type: str) -> Path:
    """The model's CTranslate2 form in the workspace's cache: made once, and anew where it is damaged.

    Processes that want the same one wait for the first to make it. Raises ModelError.
    """
    target = ws.folder / CONVERSIONS / f"{model.id}-{compute_type}"
    kind = require(family(model.family), "ctranslate2")
    folder = own_folder(ws, model) if not kind.intact(target) else ""
    _keep(ws, target, lambda partial: kind.convert(folder, partial, compute_type), kind.intact)
    os.utime(target)  # when it was used last: what is not used goes one day
    return target


def _keep(ws: Workspace, target: Path, write: Callable[[Path], None], whole: Callable[[Path], bool]) -> None:
    """Have a folder in the cache that is `whole`: as it is there, or as `write` makes it, in one process at a time."""
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
            f"the conversion of a model cannot be kept in {target}: {error}; make room or free access there, "
            "or set `engine` to torch"
        ) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


@dataclass(frozen=True, slots=True)
class ConvertedForm:
    """A converted form of a model in the workspace's cache."""

    model: str
    folder: Path


def conversions(ws: Workspace) -> list[ConvertedForm]:
    """The converted forms in the cache, the one used last first."""
    folders = [path for path in (ws.folder / CONVERSIONS).glob("sha256-*") if not path.name.endswith(".partial")]
    folders.sort(key=lambda path: path.stat().st_mtime, reverse=True)
    return [ConvertedForm("-".join(path.name.split("-")[:2]), path) for path in folders]


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Hold a lock that one thread of one process has at a time, and that is dropped with it (flock(2))."""
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
    """A model in memory, and how many use it right now. One that is in use is never freed."""

    recogniser: Recogniser | None = None  # None until it is loaded
    users: int = 0


_LOADED: dict[tuple[str, str, str], LoadedModel] = {}  # by model, device and engine; the last used at the end
_COUNTING = threading.Lock()  # held while `_LOADED` or a count of users changes, never while a model is loaded
_LOADING = threading.Lock()  # one at a time: transformers replaces functions of PyTorch while it loads a model


@contextmanager
def loaded(ws: Workspace, model: Model, engine_name: str | None = None) -> Iterator[Recogniser]:
    """The model on an engine (None: the one set), loaded and kept in memory at least until the block ends.

    Threads that ask for the same one share it, and it is loaded once. The `KEPT` that
    were used last stay loaded; those in use count, and are never among those that go.
    This makes loading safe for threads, not the recogniser: whether two may transcribe
    with it at the same moment is for its family to say.
    """
    engine_name = engine_name or engine(ws, model)
    key = (model.id, device(ws, engine_name), engine_name)
    with _COUNTING:
        held = _LOADED[key] = _LOADED.pop(key) if key in _LOADED else LoadedModel()
        held.users += 1
        _free(KEPT)  # before loading: memory never holds one more than it must
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
            _free(KEPT)


def free() -> None:
    """Drop every loaded model that nobody uses."""
    with _COUNTING:
        _free(0)
    torch = sys.modules.get("torch")
    if torch and torch.cuda.is_initialized():
        torch.cuda.empty_cache()  # what PyTorch keeps of the memory, others may want


def _free(stay: int) -> None:
    """Drop models without users, the longest unused first, until so many are left in all."""
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
