"""The model in use: the champion, followed while the server runs; and any other model that a request names."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import sqlalchemy as sa

from voxloop import models
from voxloop.errors import VoxloopError
from voxloop.records import Model
from voxloop.stores import tables

if TYPE_CHECKING:
    from voxloop.families.contract import AudioContext, Context, Recogniser
    from voxloop.workspace import Workspace

log = logging.getLogger(__name__)

FOLLOWED_S = 0.5  # how often the alias is looked at


@dataclass(eq=False, slots=True)
class InUse:
    """A model that serves, and what keeps it in memory."""

    model: Model
    recogniser: Recogniser
    holding: ExitStack


class ServedModels:
    """The models of a running server. Every request is answered by the model that was in use when its turn came."""

    def __init__(self, ws: Workspace) -> None:
        self.ws = ws
        self._lock = threading.Lock()
        self._in_use = self._load(models.base_model(ws))
        self._ended = threading.Event()
        self._follower = threading.Thread(target=self._follow, name="voxloop-models", daemon=True)
        self._follower.start()

    @property
    def current(self) -> Model:
        """The model that answers requests which name none."""
        with self._lock:
            return self._in_use.model

    def find(self, name: str) -> Model:
        """The model that a client names: an alias, a model's id or its beginning, `starter`, or a base by its name.

        Only what the workspace knows already: a request never makes it read a folder or fetch from the Hub.
        Raises UnknownRecord.
        """
        if name == models.STARTER:
            return models.base_model(self.ws, name)
        with self.ws.read() as reader:
            alias = tables.alias.c
            aliased = reader.connection.execute(sa.select(alias.model).where(alias.name == name)).scalar()
            named = reader.all(Model, tables.model.c.base == name, tables.model.c.run.is_(None))
            if aliased or not named:
                return reader.get(Model, aliased or name)
            return named[-1]

    def named(self) -> list[tuple[str, Model]]:
        """Every name that a request may give: aliases first, then models by their ids."""
        with self.ws.read() as reader:
            alias = tables.alias.c
            aliases = dict(reader.connection.execute(sa.select(alias.name, alias.model).order_by(alias.name)).all())
            found = {model.id: model for model in reader.all(Model)}
        current = self.current
        found.setdefault(current.id, current)
        return [*((name, found[id]) for name, id in aliases.items() if id in found), *found.items()]

    @contextmanager
    def using(self, id: str | None) -> Iterator[tuple[str, Recogniser]]:
        """Hold a model while a batch is decoded: the one in use, or the one with this id."""
        with self._lock:
            in_use = self._in_use
        wanted = in_use.model if id in (None, in_use.model.id) else self.find(id or "")
        # Counted by `models.loaded` as well, so that a model in use is never freed under a batch.
        with models.loaded(self.ws, wanted) as recogniser:
            yield wanted.id, recogniser

    def context(self, id: str | None, asked: AudioContext) -> Context:
        """How a model feeds clips when that is asked for."""
        with self.using(id) as (_, recogniser):
            return recogniser.context(asked)

    def close(self) -> None:
        self._ended.set()
        self._follower.join()
        with self._lock:
            self._in_use.holding.close()

    def _load(self, model: Model) -> InUse:
        holding = ExitStack()
        return InUse(model, holding.enter_context(models.loaded(self.ws, model)), holding)

    def _follow(self) -> None:
        while not self._ended.wait(FOLLOWED_S):
            try:
                champion = models.base_model(self.ws)
                if champion.id != self.current.id:
                    self._replace(champion)
            except VoxloopError as error:
                log.warning("the new champion is not served: %s", error)

    def _replace(self, model: Model) -> None:
        """Serve another model: loaded beside the old one first, which goes when nobody uses it any more."""
        new = self._load(model)
        with self._lock:
            old, self._in_use = self._in_use, new
        old.holding.close()
        log.info("serving %s, before %s", model.id, old.model.id)
