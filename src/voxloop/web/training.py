"""The API of training: /api/train, what can be set, how a run goes, and long work on models in the background.

Everybody who reviews may look; starting, ending and promoting is for administrators. `POST /api/train`, the page and
the command line start a run by the same step.
"""

from __future__ import annotations

import hashlib
import json
import threading
import time
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from fastapi import APIRouter, Depends, Header, Query, Request
from fastapi.responses import JSONResponse, PlainTextResponse, Response
from pydantic import AliasChoices, BaseModel, ConfigDict, Field

from voxloop import bases, health, models
from voxloop.errors import UsageError
from voxloop.maintenance.removal import delete_run
from voxloop.records import plain
from voxloop.steps import datasets, training
from voxloop.steps.evaluation import forecast
from voxloop.steps.gate.overview import overview
from voxloop.steps.gate.readiness import readiness
from voxloop.steps.training import RunStanding, TrainingRequest, recipes
from voxloop.steps.training.listing import process
from voxloop.web.access import Administrator, Reviewer
from voxloop.web.entries import Ws, limited
from voxloop.web.event_stream import MEDIA_TYPE, Sent, followed
from voxloop.web.problems import Problem

if TYPE_CHECKING:
    from voxloop.serving.tokens import Client
    from voxloop.web.app import Served
    from voxloop.workspace import Workspace

EVERY_S = 1.0  # between two looks of a stream at the catalog
LOG_EVERY_S = 0.5
RECENT = 50  # runs that are listed
PROBED_S = 600.0  # how long the speed of this machine is taken for the same
MOST_LOG_BYTES = 1 << 20  # of a log in one answer: its end

router = APIRouter(prefix="/api", dependencies=[Depends(limited)], tags=["training"])
RunId = Annotated[str, Query(description="A run's id, whole or its end. Default: the run that trains, or the newest")]


def served(request: Request) -> Served:
    """What the application holds."""
    found: Served = request.app.state.served
    return found


def tagged(value: Any) -> tuple[Any, str]:
    """A value as JSON has it, and its ETag."""
    told = plain(value)
    return told, hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()[:24]


def answered(value: Any, if_none_match: str | None = None, *, beside: dict[str, Any] | None = None) -> Response:
    """A value with its ETag; `beside` is part of the answer but not of the tag. 304 where the client has it."""
    told, tag = tagged(value)
    headers = {"etag": f'"{tag}"', "cache-control": "no-store"}
    if if_none_match is not None and if_none_match.strip().removeprefix("W/").strip('"') == tag:
        return Response(status_code=304, headers=headers)
    return JSONResponse(told | (beside or {}), headers=headers)


def check(value: Any, if_match: str | None) -> None:
    """Raise Problem 412 if a client saw another state than this one."""
    tag = (if_match or "").strip().removeprefix("W/").strip('"')
    if tag in ("", "*"):
        return
    told, now = tagged(value)
    if tag != now:
        raise Problem(412, "this has changed since you saw it: look again", code="conflict", also={"now": told})


# What is asked for ----------------------------------------------------------------------------------------------------


class Asked(BaseModel):
    """A training. Whatever is left out is chosen as `voxloop train` chooses it."""

    model_config = ConfigDict(
        populate_by_name=True,
        extra="forbid",
        json_schema_extra={
            "examples": [
                {},
                {
                    "base_model": "starter",
                    "learning_rate": 1e-5,
                    "batch_size": 16,
                    "epochs": 20,
                    "validation_split": 0.1,
                },
                {
                    "dataset": "default",
                    "base": "champion",
                    "method": "lora",
                    "minutes": 30,
                    "settings": {"patience": 3},
                },
            ]
        },
    )

    dataset: Annotated[
        str | None, Field(description="Name or id. Default: a new one of all that is reviewed", max_length=200)
    ] = None
    base: Annotated[
        str | None,
        Field(
            description="A model or base of this machine by name or id; also `base_model`. Default: the champion",
            validation_alias=AliasChoices("base", "base_model"),
            max_length=400,
        ),
    ] = None
    method: Annotated[Literal["full", "lora"] | None, Field(description="All weights, or LoRA adapters")] = None
    recipe: Annotated[str | None, Field(description="Name of a recipe", max_length=40)] = None
    batch_size: Annotated[int | None, Field(description="Clips per batch", ge=1, le=100_000)] = None
    learning_rate: Annotated[float | None, Field(description="Peak learning rate", gt=0, le=1)] = None
    epochs: Annotated[
        float | None,
        Field(
            description="Most passes over the training speech; also `max_epochs`",
            validation_alias=AliasChoices("epochs", "max_epochs"),
            gt=0,
            le=100_000,
        ),
    ] = None
    minutes: Annotated[float | None, Field(description="Longest training time", gt=0, le=100_000)] = None
    validation_split: Annotated[
        float | None, Field(description="Share of a new dataset for validation", ge=0, le=0.5)
    ] = None
    gradient_accumulation_steps: Annotated[int | None, Field(description="Batches per step", ge=1, le=10_000)] = None
    early_stopping_patience: Annotated[
        int | None, Field(description="Evaluations without a lower error rate after which training ends", ge=1)
    ] = None
    settings: Annotated[
        dict[str, bool | int | float | str | list[str] | None],
        Field(description="Further settings of the recipe by name: see /api/train/options", max_length=100),
    ] = {}

    def request(self) -> TrainingRequest:
        """As the step takes it."""
        if "noise_folder" in self.settings:
            raise Problem(400, "a folder of this machine can be named on the command line alone", param="noise_folder")
        named = {
            "learning_rate": self.learning_rate,
            "max_epochs": self.epochs,
            "accumulation": self.gradient_accumulation_steps,
            "patience": self.early_stopping_patience,
        }
        return TrainingRequest(
            dataset=self.dataset or None,
            base=self.base or None,
            method=self.method,
            recipe=self.recipe or None,
            batch_clips=self.batch_size,
            minutes=self.minutes,
            validation_share=self.validation_split,
            settings={name: value for name, value in named.items() if value is not None} | self.settings,
        )


class Bases:
    """The bases of this machine: measuring its speed takes a third of a second, and is done every ten minutes."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._read = 0.0
        self._found: tuple[bases.Machine, list[bases.Base]] | None = None

    def of(self, ws: Workspace) -> tuple[bases.Machine, list[bases.Base]]:
        with self._lock:
            if self._found is None or time.monotonic() - self._read > PROBED_S:
                self._found, self._read = bases.here(ws), time.monotonic()
            return self._found

    def folder(self, ws: Workspace, name: str | None) -> Path:
        """The folder of a base that this machine has. Raises Problem for any other name: no path, no download."""
        if name is not None:
            base = next((one for one in self.of(ws)[1] if one.name == name), None)
            if base is not None and base.refused:
                raise Problem(400, f"{name} cannot be used as a base: {base.refused}", param="base")
            if base is not None:
                return base.folder
            known = {alias for one in overview(ws) for alias in (*one.aliases, one.model.id, one.model.name)}
            if name not in known:
                raise Problem(
                    400,
                    f"{name!r} is none of this machine's bases and models: see /api/train/options. Another one is "
                    f"fetched by `voxloop train --base {name}`",
                    param="base",
                )
        return Path(models.model_folder(ws, models.base_model(ws, name)))


@router.post("/train", status_code=202)
def train(request: Request, ws: Ws, client: Administrator, asked: Asked | None = None) -> Response:
    """Start a training. A worker takes it: one that waits, or else one that this server starts."""
    wanted = (asked or Asked()).request()
    served(request).bases.folder(ws, wanted.base)  # a name that this machine knows
    run = training.start(ws, wanted, by=client.name)
    served(request).trainer.wake()
    return JSONResponse(
        plain(training.standing(ws, run.id)), status_code=202, headers={"location": f"train/runs/{run.id}"}
    )


@router.get("/train/options")
def options(
    request: Request,
    ws: Ws,
    dataset: str | None = None,
    base: str | None = None,
    method: Literal["full", "lora"] | None = None,
    recipe: str | None = None,
) -> dict[str, Any]:
    """What a training can be given, what it would be given by default, and what that takes."""
    here = served(request).bases
    machine, found = here.of(ws)
    folder = here.folder(ws, base or None)
    wanted = TrainingRequest(dataset=dataset or None, base=base or None, method=method, recipe=recipe or None)
    made = training.propose(ws, wanted, folder)
    chosen = _base_in(folder, found)
    need = None if chosen is None else chosen.lora if made.recipe.method == "lora" else chosen.full
    told: dict[str, Any] = plain(
        {
            "data": readiness(ws),
            "datasets": datasets.all_datasets(ws)[::-1],
            "models": [one for one in overview(ws) if one.model.run is not None][::-1],
            "bases": found,
            "default_base": models.CHAMPION if _champion(ws) else ws.settings.base_model,
            "machine": machine,
            "recipes": [{"name": name, "suits": suits} for name, suits in recipes.SUITS.items()],
            "recipe": recipes.details(made.recipe),
            "sections": recipes.SECTIONS,
            "train_s": made.train_s,
            "clip_s": made.clip_s,
            "batch_clips": made.batch_clips,
            "fixed": made.fixed,
            "estimate": {
                "memory_bytes": need.memory_bytes if need else None,
                "room_bytes": bases.memory(machine.device),
                "seconds_per_epoch": need.seconds * made.train_s / bases.WINDOW_S if need else None,
                "seconds": bases.training_time(
                    need, speech_s=made.train_s, epochs=made.recipe.max_epochs, max_s=made.recipe.max_seconds
                )
                if need
                else made.recipe.max_seconds,
            },
        }
    )
    return told


def _champion(ws: Workspace) -> bool:
    return any(models.CHAMPION in one.aliases for one in overview(ws))


def _base_in(folder: Path, found: list[bases.Base]) -> bases.Base | None:
    return next((one for one in found if one.folder == folder and not one.refused), None)


# How it goes ----------------------------------------------------------------------------------------------------------


def _state(here: Served, id: str | None) -> dict[str, Any]:
    """What the page shows of the run that trains (or of the one named), of the queue and of the task."""
    ws = here.ws
    found = training.listed(ws, limit=RECENT)
    shown = training.standing(ws, id) if id else training.current(found)
    queue = sorted((one for one in found if one.ahead is not None), key=lambda one: one.ahead or 0)
    ended = [one for one in found if one.run.status in ("completed", "stopped")]
    told: dict[str, Any] = plain(
        {
            "status": shown.run.status if shown else "none",
            "run": shown,
            "queue": [one.run.id for one in queue],
            "runs": [_brief(one) for one in found],
            "task": here.tasks.newest,
            "worker": {"here": here.trainer.working, "error": here.trainer.error},
            "current_model": here.models.current.id,
            "last_training": ended[0].run.finished if ended else None,
        }
    )
    return told


def _brief(one: RunStanding) -> dict[str, Any]:
    """A run in a list."""
    run, progress = one.run, one.run.progress
    names = ("id", "status", "wanted", "dataset", "base", "method", "model", "created", "finished", "error", "retry_of")
    return {name: getattr(run, name) for name in names} | {
        "recipe": run.recipe.get("name"),
        "step": progress.get("step"),
        "before": (progress.get("base") or {}).get("wer"),
        "after": (progress.get("best") or {}).get("wer", progress.get("best_val_wer")),
        "share": one.share,
        "no_better": run.no_better,
    }


def _usage(here: Served, told: dict[str, Any]) -> dict[str, Any]:
    run = told["run"]
    pid = process(here.ws, run["id"]) if run and run["status"] == "running" else None
    used: dict[str, Any] = plain({"machine": health.machine(), "run": here.run_usage.of(pid)})
    return used


@router.get("/train/status")
def status(
    request: Request, client: Reviewer, run: RunId = "", if_none_match: Annotated[str | None, Header()] = None
) -> Response:
    """How the training goes: `status` (queued, running, completed, …), the run with its progress, queue and usage.

    `run.progress` has `step`, `epoch`, `loss`, `val_loss`, `val_wer`, `learning_rate`, `elapsed_s` and `eta_s`;
    `run.share` is how much of the time has passed.
    """
    here = served(request)
    told = _state(here, run or None)
    return answered(told, if_none_match, beside={"usage": _usage(here, told), "you": _you(client)})


def _you(client: Client) -> dict[str, Any]:
    """Who asks, and whether they may change anything here."""
    return {"name": client.name, "admin": client.may("admin")}


@router.get("/train/events", response_class=Response)
def events(
    request: Request, client: Reviewer, run: RunId = "", last_event_id: Annotated[str | None, Header()] = None
) -> Response:
    """Follow the training by server-sent events.

    `status` has what `/api/train/status` returns, whenever that changes; `metrics` has the lines of metrics of the run
    that are new, all of them at first. `Last-Event-ID` continues from there.
    """
    here = served(request)
    if run:
        training.standing(here.ws, run)  # unknown: 404 rather than an empty stream
    last_run, _, last_line = (last_event_id or "").rpartition(":")
    of, line = last_run, int(last_line) if last_line.isdecimal() else 0
    before = ""

    def news() -> Iterable[Sent]:
        nonlocal of, line, before
        told = _state(here, run or None)
        told |= {"usage": _usage(here, told), "you": _you(client)}
        active = told["status"] in ("running", "queued") or (told["task"] or {}).get("status") == "running"
        seen = json.dumps({name: value for name, value in told.items() if active or name != "usage"})
        found = []
        if seen != before:
            before = seen
            found.append(Sent(event="status", data=told))
        shown: str | None = told["run"]["id"] if told["run"] else None
        if shown is not None:
            if shown != of:
                of, line = shown, 0
            lines, end = training.metrics_after(here.ws, shown, line)
            if lines:
                data = {"run": shown, "anew": line == 0, "lines": lines}
                found.append(Sent(event="metrics", data=data, id=f"{shown}:{end}"))
                line = end
        return found

    return followed(request, news, every_s=EVERY_S)


@router.get("/train/logs", response_class=PlainTextResponse)
def logs(
    request: Request,
    run: RunId = "",
    follow: Annotated[bool, Query(description="Server-sent events, one for each line, until the run ends")] = False,
    tail: Annotated[int | None, Query(ge=0, le=100_000, description="Only the last lines")] = None,
    last_event_id: Annotated[str | None, Header(description="Continue behind this line")] = None,
    accept: Annotated[str, Header()] = "",
) -> Response:
    """The log of a training, as text or followed as it grows; `Accept: text/event-stream` asks for that, too."""
    here = served(request)
    ws = here.ws
    shown = training.standing(ws, run) if run else training.current(training.listed(ws))
    if shown is None:
        raise Problem(404, "nothing was trained yet", code="no_run")
    id = shown.run.id
    place = int(last_event_id) if last_event_id and last_event_id.isdecimal() else 0
    if not (follow or MEDIA_TYPE in accept):
        text = _log(ws, id)
        return PlainTextResponse("".join(text.splitlines(keepends=True)[-tail:] if tail else "" if tail == 0 else text))
    at, rest, over = place, b"", False
    if tail is not None and not place:
        at = _tail(ws, id, tail)

    def news() -> Iterable[Sent] | None:
        nonlocal at, rest, over
        if over:
            return None
        # Looked at before reading, so that the last lines are read, too.
        now = training.standing(ws, id).run.status
        found = []
        while True:
            data, end = training.log_after(ws, id, at)
            if not data:
                break
            line_end = end - len(data) - len(rest)
            *lines, rest = (rest + data).split(b"\n")
            for line in lines:
                line_end += len(line) + 1
                found.append(Sent(event="line", data=line.decode(errors="replace"), id=str(line_end)))
            at = end
        if now not in ("queued", "running"):
            over = True
            if rest:
                found.append(Sent(event="line", data=rest.decode(errors="replace"), id=str(at)))
            found.append(Sent(event="end", data={"status": now}))
        return found

    return followed(request, news, every_s=LOG_EVERY_S)


def _log(ws: Workspace, id: str) -> str:
    """The end of a log."""
    parts, place = [], 0
    while True:
        data, place = training.log_after(ws, id, place)
        if not data:
            break
        parts.append(data)
    return b"".join(parts)[-MOST_LOG_BYTES:].decode(errors="replace")


def _tail(ws: Workspace, id: str, lines: int) -> int:
    """The byte of a log from which on it has so many lines."""
    starts, place, at = [0], 0, 0
    while True:
        data, end = training.log_after(ws, id, place)
        if not data:
            break
        at = end - len(data)
        for line in data.splitlines(keepends=True):
            at += len(line)
            starts.append(at)
        starts, place = starts[-lines - 1 :], end
    return starts[0]


# Runs -----------------------------------------------------------------------------------------------------------------


@router.get("/train/runs/{id}")
def get_run(ws: Ws, id: str, if_none_match: Annotated[str | None, Header()] = None) -> Response:
    """One run with its recipe; its curves are in `metrics`."""
    found = training.standing(ws, id)
    return answered(found, if_none_match, beside={"metrics": training.metrics(ws, found.run.id)})


class Stopped(BaseModel):
    """How to stop a run."""

    discard: Annotated[bool, Field(description="Remove what was learnt instead of keeping the best as a model")] = False


class Again(BaseModel):
    """What to change in a retry."""

    settings: dict[str, bool | int | float | str | list[str] | None] = {}


@router.post("/train/runs/{id}/pause")
def pause(ws: Ws, id: str, client: Administrator) -> dict[str, Any]:
    """Save a checkpoint and free the device; `resume` continues from it."""
    return _asked(ws, training.pause(ws, id).id)


@router.post("/train/runs/{id}/resume")
def resume(request: Request, ws: Ws, id: str, client: Administrator) -> dict[str, Any]:
    """Continue a paused, interrupted or failed run from its newest checkpoint."""
    run = training.resume(ws, id, by=client.name)
    served(request).trainer.wake()
    return _asked(ws, run.id)


@router.post("/train/runs/{id}/stop")
def stop(ws: Ws, id: str, client: Administrator, how: Stopped | None = None) -> dict[str, Any]:
    """End a run for good. The best so far becomes a model, or is discarded."""
    return _asked(ws, training.stop(ws, id, discard=(how or Stopped()).discard).id)


@router.post("/train/runs/{id}/retry", status_code=202)
def retry(request: Request, ws: Ws, id: str, client: Administrator, asked: Again | None = None) -> dict[str, Any]:
    """Queue a new run with the settings of an ended one, some of them changed."""
    wanted = Asked(settings=(asked or Again()).settings).request()
    run = training.retry(ws, id, training.as_overrides(wanted.settings), by=client.name)
    served(request).trainer.wake()
    return _asked(ws, run.id)


@router.delete("/train/runs/{id}")
def remove_run(ws: Ws, id: str, client: Administrator) -> dict[str, Any]:
    """Delete the log, metrics and folder of an ended run that has no model."""
    told: dict[str, Any] = plain(delete_run(ws, id, by=client.name))
    return told


def _asked(ws: Workspace, id: str) -> dict[str, Any]:
    told: dict[str, Any] = plain(training.standing(ws, id))
    return told


# Tasks ----------------------------------------------------------------------------------------------------------------


class Forecasted(BaseModel):
    """What to forecast the gain from more speech for."""

    model: Annotated[str | None, Field(max_length=400)] = None
    dataset: Annotated[str | None, Field(max_length=200)] = None


@router.get("/forecast")
def get_forecast(ws: Ws, dataset: str | None = None) -> dict[str, Any]:
    """The newest forecast of the gain from more speech like that of a dataset; null if there is none."""
    try:
        found = datasets.find(ws, dataset or None)
    except UsageError:
        return {"forecast": None}
    return {"dataset": found.id, "forecast": forecast.newest(ws, found.id)}


@router.post("/forecast", status_code=202)
def start_forecast(request: Request, ws: Ws, client: Administrator, asked: Forecasted | None = None) -> dict[str, Any]:
    """Forecast the gain from more speech, by training briefly on parts of a dataset: this takes minutes to hours."""
    asked = asked or Forecasted()
    served(request).bases.folder(ws, asked.model)
    forecast.plan(ws, asked.model, dataset=asked.dataset)  # too little speech is told of at once
    told: dict[str, Any] = plain(
        served(request).tasks.start("forecast", by=client.name, model=asked.model, dataset=asked.dataset)
    )
    return told


@router.post("/tasks/cancel")
def cancel_task(request: Request, client: Administrator) -> dict[str, Any]:
    """End the evaluation, promotion or forecast that runs; what it has stored stays."""
    told: dict[str, Any] = plain(served(request).tasks.cancel())
    return told
