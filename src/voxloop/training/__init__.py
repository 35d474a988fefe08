"""The train step: a dataset and a base model in, a registered model out; the work is done by a child process.

    train (here) ──► run folder: data/, training_config.json ──► child.py ──► trainer.py
      ▲                                                              │
      └── control.py follows metrics.jsonl and status.json ◄─────────┘

`recipes.py` says how, `batches.py` and `augment.py` what is heard. Importing this package loads no torch.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from voxloop import datasets, transcripts
from voxloop.errors import SettingError, TrainingError, UsageError
from voxloop.records import Dataset, Model, Run
from voxloop.stores.blobs import sha256_file
from voxloop.training import control, recipes
from voxloop.training.files import CONFIG, LOG, write_json
from voxloop.training.recipes import Recipe

if TYPE_CHECKING:
    from voxloop.workspace import Workspace

PROGRESS_S = 1.0  # the run's row is written at most this often


def train(
    ws: Workspace,
    *,
    dataset: str | None = None,
    base: str | None = None,
    method: str | None = None,
    recipe: str | None = None,
    overrides: Sequence[str] = (),
    max_seconds: float | None = None,
    progress: Callable[[dict[str, Any]], None] | None = None,
) -> Run:
    """Fine-tune a base model on a dataset's train split, and register the best model found.

    `dataset` is an id or a name (the newest one by default), `base` whatever
    `transcripts.base_model` knows, `recipe` a name (chosen by data and model by
    default), `overrides` are `key=value` settings of it. `progress` is told each
    line of metrics. Raises TrainingError where the run fails, with the reason and
    the log's path; after Ctrl-C the run is `stopped` and has a checkpoint.
    """
    frozen = datasets.find(ws, dataset)
    if not frozen.clips.get("train"):
        raise UsageError(
            f"dataset {frozen.name!r} has no clips in its train split ({_counts(frozen)}): "
            "correct more utterances, or give train a larger share with `voxloop dataset build --ratios`"
        )
    model = transcripts.base_model(ws, base)
    folder = transcripts.model_folder(ws, model)
    chosen = _recipe(frozen, folder, recipe, method, overrides, max_seconds)
    run = _create(ws, frozen, model, chosen)
    try:
        _materialise(ws, run, frozen, folder)
        return _drive(ws, run, progress)
    except KeyboardInterrupt:
        _end(ws, run, "stopped", "stopped by hand")
        raise
    except Exception as error:
        _end(ws, run, "failed", str(error))
        raise


def _counts(dataset: Dataset) -> str:
    return ", ".join(f"{number} {split}" for split, number in dataset.clips.items()) or "empty"


def _recipe(
    dataset: Dataset,
    folder: str,
    name: str | None,
    method: str | None,
    overrides: Sequence[str],
    max_seconds: float | None,
) -> Recipe:
    """The recipe asked for, or the one that suits data and model, with every setting given applied."""
    if name is not None:
        recipe = recipes.named(name)
    else:
        speech_s = dataset.hours.get("train", 0.0) * 3600
        recipe = recipes.choose(train_seconds=speech_s, parameters=parameters(Path(folder)))
    given = list(overrides)
    if method is not None:
        if method not in ("full", "lora"):
            raise SettingError(f"method is {method!r}; needed is full or lora")
        given.append(f"method={method}")
    if max_seconds is not None:
        given.append(f"max_seconds={max_seconds}")
    return recipes.override(recipe, given)


def parameters(folder: Path) -> int:
    """Weights of a model folder, read off the headers of its safetensors files."""
    total = 0
    for file in folder.glob("*.safetensors"):
        with file.open("rb") as opened:
            # https://github.com/huggingface/safetensors#format: the header's length, then JSON.
            header = json.loads(opened.read(int.from_bytes(opened.read(8), "little")))
        for name, tensor in header.items():
            if name != "__metadata__":
                count = 1
                for size in tensor["shape"]:
                    count *= size
                total += count
    return total


def _create(ws: Workspace, dataset: Dataset, model: Model, recipe: Recipe) -> Run:
    from ulid import ULID

    run = Run(
        id=str(ULID()),
        dataset=dataset.id,
        base=model.id,
        family=model.family,
        method=recipe.method,
        recipe=recipe.as_dict(),
        status="running",
    )
    with ws.transaction() as tx:
        tx.add(run)
        tx.emit("training.started", run.id, payload={"dataset": dataset.id, "base": model.id})
    return run


def _materialise(ws: Workspace, run: Run, dataset: Dataset, base: str) -> None:
    """Lay out the run's folder: data with its audio, and the complete settings."""
    folder = ws.runs / run.id
    manifests = {split: datasets.write_split(ws, dataset.id, split, folder / "data") for split in ("train", "val")}
    write_json(
        folder / CONFIG,
        {
            "run": run.id,
            "family": run.family,
            "base": base,
            "train": str(manifests["train"].relative_to(folder)),
            "val": str(manifests["val"].relative_to(folder)),
            "recipe": run.recipe,
            "device": ws.settings.device or "auto",
            "threads": ws.settings.threads,
            "normaliser": ws.settings.normaliser,
        },
    )


def _drive(ws: Workspace, run: Run, progress: Callable[[dict[str, Any]], None] | None) -> Run:
    """Run the child to its end and take over what it made."""
    folder = ws.runs / run.id
    process = control.start(folder, device=ws.settings.device, threads=ws.settings.threads)
    try:
        state = _follow(ws, run, control.follow(process, folder), progress)
    except BaseException:
        # Ctrl-C, a broken terminal, a lost database: the child must not go on alone.
        control.stop(process)
        raise
    ending = control.ending(process, folder)
    state |= {k: ending.values[k] for k in ("base", "best", "notes", "peak_memory_mb") if ending.values.get(k)}
    if ending.status == "completed":
        return _register(ws, run, state)
    if ending.status == "stopped":
        return _end(ws, run, "stopped", "the training process was asked to stop", state)
    raise TrainingError(f"run {run.id} failed: {ending.error}; its log is {folder / LOG}")


def _follow(ws: Workspace, run: Run, lines: Any, progress: Callable[[dict[str, Any]], None] | None) -> dict[str, Any]:
    """Tell of each line of metrics, and keep the run's row up to date."""
    state: dict[str, Any] = {}
    written = 0.0
    kept = True
    for line in lines:
        if line:
            state |= line
            kept = False
            if progress:
                progress(line)
        if not kept and time.monotonic() - written >= PROGRESS_S:
            with ws.transaction() as tx:
                tx.change(Run, run.id, progress=state)
                tx.emit("training.progress", run.id, key=f"{run.id}:{state.get('step')}", payload=state)
            written, kept = time.monotonic(), True
    return state


def _register(ws: Workspace, run: Run, state: dict[str, Any]) -> Run:
    """Put the best model's files into the blob store and tell of it; doing it again changes nothing."""
    best = ws.runs / run.id / "best"
    where = f"models/asr/{run.id}"
    files = {}
    for path in sorted(best.rglob("*")):
        if path.is_file():
            name = path.relative_to(best).as_posix()
            files[name] = sha256_file(path)
            ws.blobs.put(f"{where}/{name}", path)
    model = Model(
        id=transcripts.model_id(files),
        family=run.family,
        base=run.base,
        kind="adapter" if run.method == "lora" else "full",
        where=where,
        run=run.id,
        files=files,
    )
    with ws.completion() as tx:
        tx.add(model)
        tx.change(Run, run.id, status="completed", progress=state, model=model.id, finished=tx.now(), error=None)
        tx.emit("training.completed", run.id, payload={"model": model.id})
        return tx.get(Run, run.id)


def _end(ws: Workspace, run: Run, status: str, why: str, state: dict[str, Any] | None = None) -> Run:
    """Write down that a run ended without a model."""
    with ws.completion() as tx:
        values: dict[str, Any] = {} if state is None else {"progress": state}
        tx.change(Run, run.id, status=status, error=why, finished=tx.now(), **values)
        if status == "failed":
            tx.emit("training.failed", run.id, key=f"{run.id}:{tx.now()}", payload={"error": why})
        return tx.get(Run, run.id)
