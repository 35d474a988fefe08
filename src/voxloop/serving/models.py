"""The model in use: the champion, followed while the server runs; and any other model that a request names.

A new champion is loaded beside the old one, tried (`canary`), and only then takes its place; the old one goes when
nothing uses it any more. Where it cannot be loaded or does not pass, the old one stays, and that is told.
"""

from __future__ import annotations

import ctypes
import logging
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import sqlalchemy as sa
from ulid import ULID

from voxloop import models
from voxloop.errors import ModelError, VoxloopError, first_line
from voxloop.families.decoding import PersonalVocabulary, Term
from voxloop.records import Model
from voxloop.serving import canary
from voxloop.serving.adapters import Adapters
from voxloop.steps import transcripts
from voxloop.stores import tables

if TYPE_CHECKING:
    from voxloop.families.contract import Recogniser
    from voxloop.families.decoding import Decoding
    from voxloop.workspace import Workspace

log = logging.getLogger(__name__)

FOLLOWED_S = 0.25  # how often the alias is looked at


@dataclass(eq=False, slots=True)
class InUse:
    """A model that serves, and what keeps it in memory."""

    model: Model
    recogniser: Recogniser
    holding: ExitStack


@dataclass(frozen=True, slots=True)
class Refused:
    """A champion that is not served, and why."""

    model: str
    reason: str


class ServedModels:
    """The models of a running server. A request that names none is heard by the model in use when it began."""

    def __init__(self, ws: Workspace) -> None:
        self.ws = ws
        self.refused: Refused | None = None
        self._lock = threading.Lock()
        self._adapters = Adapters(ws, ws.settings.serve_models)
        # What is champion now was served before, so that it is not tried again.
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
        """The model that a client names: by an alias, a name, an id or its beginning, or as a base by where it is from.

        Only what the workspace knows already: a request never makes it read a folder or fetch from the Hub.
        Raises UnknownRecord.
        """
        if name == models.STARTER:
            return models.base_model(self.ws, name)
        with self.ws.read() as reader:
            alias = tables.alias.c
            aliased = reader.connection.execute(sa.select(alias.model).where(alias.name == name)).scalar()
            named = reader.all(Model, tables.model.c.base == name, tables.model.c.run.is_(None))
            named += reader.all(Model, tables.model.c.name == name)
            if aliased or not named:
                return reader.get(Model, aliased or name)
            return named[-1]

    def named(self) -> list[tuple[str, Model]]:
        """Every name that a request may give: aliases first, then names, then ids."""
        with self.ws.read() as reader:
            alias = tables.alias.c
            rows = reader.connection.execute(sa.select(alias.name, alias.model).order_by(alias.name))
            aliases = dict(rows.tuples().all())
            found = {model.id: model for model in reader.all(Model)}
        current = self.current
        found.setdefault(current.id, current)
        given = [(model.name, model) for model in found.values() if model.name]
        return [*((name, found[id]) for name, id in aliases.items() if id in found), *given, *found.items()]

    @contextmanager
    def using(self, model: Model | None = None) -> Iterator[tuple[Model, Recogniser]]:
        """Hold a model in memory, that in use where none is named, until the block ends; whatever is promoted then."""
        wanted = model or self.current
        with self._held(wanted) as recogniser:
            yield wanted, recogniser

    def mixing(self, model: Model) -> tuple[str, ...] | None:
        """What models have in common whose clips may share a batch; None for one that is heard by itself."""
        return self._adapters.mixing(model)

    def close(self) -> None:
        """Stop following, and let the model go."""
        self._ended.set()
        self._follower.join()
        with self._lock:
            self._in_use.holding.close()
        self._adapters.close()

    # Following the alias ---------------------------------------------------------------------------------------------

    def _load(self, model: Model) -> InUse:
        holding = ExitStack()
        return InUse(model, holding.enter_context(self._held(model)), holding)

    def _held(self, model: Model) -> AbstractContextManager[Recogniser]:
        if self.mixing(model):
            return self._adapters.using(model)
        return models.loaded(self.ws, model, kept=self.ws.settings.serve_models)

    def _follow(self) -> None:
        while not self._ended.wait(FOLLOWED_S):
            try:
                champion = models.base_model(self.ws)
                if champion.id == self.current.id:
                    self.refused = None
                elif self.refused is None or self.refused.model != champion.id:
                    self._replace(champion)
            except VoxloopError as error:
                log.warning("the alias cannot be followed: %s", error)

    def _replace(self, model: Model) -> None:
        """Serve another model, if it can be loaded and hears what it should."""
        try:
            new = self._load(model)
        except (VoxloopError, MemoryError, OSError, RuntimeError) as error:
            self._refuse(model, error)
            return
        try:
            clips = canary.check(self.ws, model, new.recogniser)
        except (VoxloopError, MemoryError, OSError, RuntimeError) as error:
            new.holding.close()
            self._refuse(model, error)
            return
        with self._lock:
            old, self._in_use = self._in_use, new
        self.refused = None
        old.holding.close()
        del old
        _give_back_memory()
        log.info("serving %s, tried on %d test clips", model.id, clips)
        with self.ws.transaction() as tx:
            tx.emit("serving.changed", model.id, key=_key(model), payload={"clips": clips})

    def _refuse(self, model: Model, error: BaseException) -> None:
        reason = str(error) if isinstance(error, ModelError) else first_line(error)
        self.refused = Refused(model.id, reason)
        models.free()
        log.error("%s is champion and not served: %s; serving %s as before", model.id, reason, self.current.id)
        with self.ws.transaction() as tx:
            payload = {"reason": reason, "serving": self.current.id}
            tx.emit("serving.refused", model.id, key=_key(model), payload=payload)


def _key(model: Model) -> str:
    """Each time that a model begins to serve, or is refused, is an event of its own."""
    return f"{model.id}:{ULID()}"


def _give_back_memory() -> None:
    """Return what a freed model held to the system, where memory is glibc's (malloc_trim(3))."""
    models.free()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim:
        trim(0)


def decoding_for(
    ws: Workspace, model: Model, language: str | None = None, prompt: str = "", keywords: Sequence[str] = ()
) -> Decoding:
    """How the workspace reads text off a model, with the prompt and the words that a client brings along."""
    found = transcripts.decoding(ws, language, model=model)
    words = tuple(Term(word) for word in keywords if word.strip())
    known = found.vocabulary or PersonalVocabulary(terms=(), bonus=ws.settings.vocabulary_bonus)
    vocabulary = replace(known, terms=(*known.terms, *words)) if words else found.vocabulary
    return replace(found, prompt=prompt or found.prompt, vocabulary=vocabulary)
