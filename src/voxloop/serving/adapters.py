"""Models trained with LoRA on one base, with torch: the base is in memory once, and each model as its adapter alone.

Their clips share batches. With CTranslate2, which knows no adapters, each is merged and converted by itself (`models`).
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from voxloop import models
from voxloop.errors import UsageError
from voxloop.families.contract import REMEDIES, AdaptedRecogniser, require
from voxloop.families.registry import family

if TYPE_CHECKING:
    import numpy as np

    from voxloop.families.contract import AudioContext, Context, Decoding, Hypothesis, Waveform
    from voxloop.records import Model
    from voxloop.workspace import Workspace

ADAPTER = "adapter"  # subfolder of a model that was trained with LoRA


@dataclass(eq=False, slots=True)
class _Base:
    """A base in memory, and how many use each of its adapters; most recently used last."""

    recogniser: AdaptedRecogniser
    users: dict[str, int] = field(default_factory=dict)
    lock: threading.RLock = field(default_factory=threading.RLock)
    """Held while an adapter comes or goes, and while a batch is decoded."""


@dataclass(frozen=True, eq=False, slots=True)
class OneAdapter:
    """A base with one of its adapters, as a recogniser of its own."""

    base: _Base
    name: str
    tuned: Context

    def transcribe(
        self,
        waveforms: Sequence[Waveform],
        decoding: Decoding,
        *,
        word_times: bool = False,
        heard: Callable[[float], None] | None = None,
    ) -> list[Hypothesis]:
        """As every recogniser does."""
        return self.transcribe_with([self] * len(waveforms), waveforms, decoding, word_times=word_times)

    def transcribe_with(
        self,
        others: Sequence[OneAdapter],
        waveforms: Sequence[Waveform],
        decoding: Decoding,
        *,
        word_times: bool = False,
    ) -> list[Hypothesis]:
        """Texts of waveforms, each with an adapter of this base that was tuned for the same context."""
        asked = replace(decoding, audio_context=self.context(decoding.audio_context, decoding.untuned))
        with self.base.lock:
            names = [other.name for other in others]
            return self.base.recogniser.transcribe_with(names, waveforms, asked, word_times=word_times)

    def context(self, asked: AudioContext, untuned: Context = "full") -> Context:
        """The context for a requested one: by default the one that the adapter was trained at."""
        return self.tuned if asked == "auto" else asked

    def embed(self, waveforms: Sequence[Waveform]) -> np.ndarray[tuple[int, int], np.dtype[np.float32]]:
        """Never: the setting `embedding_model` names the model that makes vectors. Raises UsageError."""
        raise UsageError(f"a model's adapter makes no embeddings: {REMEDIES['embeddings']}")


class Adapters:
    """The bases in memory, and up to `kept` adapters of each beside those in use."""

    def __init__(self, ws: Workspace, kept: int) -> None:
        self._ws = ws
        self._kept = kept
        self._bases: dict[str, _Base] = {}
        self._mixing: dict[str, tuple[str, Context] | None] = {}
        self._loading = threading.Lock()

    def mixing(self, model: Model) -> tuple[str, Context] | None:
        """The base and the context that models have in common whose clips may share a batch; None: there are none."""
        if model.id not in self._mixing:
            kind = family(model.family)
            possible = model.kind == "adapter" and "adapters" in kind.capabilities
            shared = None
            if possible and models.engine(self._ws, model) == "torch":
                shared = (model.base, kind.tuned_context(models.own_folder(self._ws, model, checked=False)))
            self._mixing[model.id] = shared
        return self._mixing[model.id]

    @contextmanager
    def using(self, model: Model) -> Iterator[OneAdapter]:
        """Hold a model's base and its adapter in memory.

        Raises ModelError where the base's files are not those that the adapter was trained on, by their hash.
        """
        with self._loading:
            base = self._bases.get(model.base) or self._load(model)
            with base.lock:
                if not base.users:
                    # A first adapter that does not fit leaves its layers in the base, which is not kept then.
                    self._bases.pop(model.base, None)
                if model.id not in base.users:
                    base.recogniser.add(model.id, Path(models.own_folder(self._ws, model)) / ADAPTER)
                self._bases[model.base] = base
                base.users[model.id] = base.users.pop(model.id, 0) + 1
        shared = self.mixing(model)
        try:
            yield OneAdapter(base, model.id, shared[1] if shared else "full")
        finally:
            with self._loading, base.lock:
                base.users[model.id] -= 1
                idle = [name for name, users in base.users.items() if not users]
                for name in idle[: max(0, len(idle) - self._kept)]:
                    base.recogniser.remove(name)
                    del base.users[name]

    def close(self) -> None:
        """Let the bases go."""
        self._bases.clear()

    def _load(self, model: Model) -> _Base:
        on = models.base_model(self._ws, model.base)  # by its id, a hash; its files are checked against it
        kind = require(family(model.family), "adapters")
        folder = models.model_folder(self._ws, on)
        return _Base(kind.load_adapted(folder, device=models.device(self._ws)))
