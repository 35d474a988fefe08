"""One Whisper in memory with several LoRA adapters, whose clips are decoded in one batch (the torch engine).

Each layer with adapters adds what each row's own adapter makes of it (PEFT's `adapter_names`); the layers' own product,
which is most of the work, is shared. CTranslate2 knows no adapters: there each is merged into weights of its own.

Letters in shapes: `B` batch, `T` mel frames, `E` encoder positions, `D` width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from voxloop.errors import ModelError, first_line
from voxloop.families.whisper.recogniser import WhisperRecogniser

if TYPE_CHECKING:
    from voxloop.families.contract import Context, Decoding, Hypothesis, Waveform


class AdaptedRecogniser(WhisperRecogniser):
    """A base and its adapters by name. A clip is heard with one of them, whatever else is in its batch."""

    def __init__(self, base: WhisperRecogniser) -> None:
        # The base's own fields: its model is shared, and gets its adapters when the first one is added.
        self.__dict__.update(base.__dict__)
        self._peft: Any = None
        self._of_clip: dict[int, str] = {}  # by id() of the clips in hand
        self._batch: list[str] = []  # of the batch in hand
        self._rows_of: list[str] = []  # of the rows that go through the network now

    def add(self, name: str, folder: Path) -> None:
        """Load an adapter. Raises ModelError for one that does not fit the base."""
        from peft import PeftModel
        from peft.tuners.lora import LoraLayer
        from safetensors import SafetensorError

        try:
            if self._peft is None:
                self._peft = PeftModel.from_pretrained(self.model, str(folder), adapter_name=name)
            else:
                self._peft.load_adapter(str(folder), adapter_name=name)
        except (OSError, ValueError, RuntimeError, KeyError, SafetensorError) as error:
            raise ModelError(f"the adapter in {folder} does not fit its base: {first_line(error)}") from error
        self._peft.eval()
        for layer in self._peft.modules():
            if isinstance(layer, LoraLayer) and not hasattr(layer, "voxloop_hook"):
                layer.voxloop_hook = layer.register_forward_pre_hook(self._named, with_kwargs=True)

    def remove(self, name: str) -> None:
        """Forget an adapter."""
        self._peft.delete_adapter(name)

    def transcribe_with(
        self, adapters: Sequence[str], waveforms: Sequence[Waveform], decoding: Decoding, *, word_times: bool = False
    ) -> list[Hypothesis]:
        """As `transcribe`, each waveform with the adapter of its own."""
        own = [waveform.view() for waveform in waveforms]  # one waveform may be heard with several adapters
        self._of_clip = {id(clip): name for clip, name in zip(own, adapters, strict=True)}
        return self.transcribe(own, decoding, word_times=word_times)

    def _named(self, layer: Any, given: tuple[Any, ...], named: Mapping[str, Any]) -> tuple[Any, Any]:
        """Tell a layer with adapters which row is whose; a beam search has several rows for each clip."""
        times = len(given[0]) // len(self._rows_of)
        return given, {**named, "adapter_names": [name for name in self._rows_of for _ in range(times)]}

    def _encode(self, clips: Sequence[Waveform], context: Context) -> tuple[torch.Tensor, torch.Tensor | None]:
        self._batch = self._rows_of = [self._of_clip[id(clip)] for clip in clips]
        return super()._encode(clips, context)

    def _rows(  # type: ignore[override]
        self, states: torch.Tensor, mask: torch.Tensor | None, rows: Sequence[int]
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        self._rows_of = [self._batch[row] for row in rows]
        return super()._rows(states, mask, rows)
