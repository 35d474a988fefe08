"""Trackers: the lines of a run's metrics as TensorBoard, Trackio and Weights & Biases show them.

They are Accelerate's trackers. Nothing is sent anywhere: TensorBoard writes into the run's folder, Trackio into the
workspace's `trackio` unless TRACKIO_DIR names another folder, and Weights & Biases works offline unless WANDB_MODE
says otherwise. A tracker that fails is disabled with a warning; the run continues.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from voxloop.errors import SettingError, UsageError, install_command, nearest

log = logging.getLogger(__name__)

NAMES = ("tensorboard", "trackio", "wandb")  # each also the name of its package and of our extra
PROJECT = "voxloop"


def check(names: Sequence[str]) -> None:
    """Raises SettingError for an unknown tracker, UsageError for one that is not installed."""
    for name in names:
        if name not in NAMES:
            raise SettingError(f"trackers: unknown tracker {name!r}{nearest(name, NAMES)}")
        if find_spec(name) is None:
            raise UsageError(
                f"trackers names {name}, which is not installed: install it with `{install_command(name)}`, "
                "or remove it from the setting `trackers`"
            )


class Trackers:
    """The trackers of one run, on the main process. Needs an Accelerator to exist."""

    def __init__(self, names: Sequence[str], folder: Path, recipe: Mapping[str, Any]) -> None:
        """`folder` is the run's, by whose name it is shown; `recipe` is stored as its hyperparameters."""
        self._active: dict[str, Any] = {}
        # As text where it is no number: TensorBoard takes neither lists nor None.
        config = {name: value if isinstance(value, int | float) else str(value) for name, value in recipe.items()}
        for name in names:
            self._try(name, lambda name=name: self._start(name, folder, config))  # type: ignore[misc]

    def log(self, values: Mapping[str, float], step: int) -> None:
        for name, tracker in list(self._active.items()):
            self._try(name, lambda tracker=tracker: tracker.log(dict(values), step=step))  # type: ignore[misc]

    def finish(self) -> None:
        for name, tracker in list(self._active.items()):
            self._try(name, tracker.finish)

    def _start(self, name: str, folder: Path, config: dict[str, Any]) -> None:
        check([name])
        from accelerate import tracking

        run = folder.name
        if name == "tensorboard":
            tracker: Any = tracking.TensorBoardTracker("tensorboard", logging_dir=folder)
        elif name == "trackio":
            os.environ.setdefault("TRACKIO_DIR", str(folder.parent.parent / "trackio"))  # read when it is imported
            tracker = tracking.TrackioTracker(PROJECT, name=run, space_id=None, resume="allow", embed=False)
        else:
            os.environ.setdefault("WANDB_MODE", "offline")
            tracker = tracking.WandBTracker(PROJECT, name=run, id=run, dir=str(folder), resume="allow")
        tracker.start()
        tracker.store_init_configuration(config)
        self._active[name] = tracker

    def _try(self, name: str, act: Callable[[], None]) -> None:
        try:
            act()
        except Exception as error:  # noqa: BLE001 - other people's code, and no reason to lose a run
            self._active.pop(name, None)
            log.warning("tracker %s failed and was disabled (%s: %s)", name, type(error).__name__, error)
