"""Opening and saving model folders, shared by all families that use transformers."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from voxloop.errors import ModelError, first_line


def open_folder(
    folder: str | Path, model_type: str, model_class: Any, processor_class: Any, dtype: torch.dtype, *, example: str
) -> tuple[Any, Any]:
    """Model and processor of a folder or Hub id. Raises ModelError with a remedy; `example` is a suitable model."""
    from transformers import AutoConfig
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()  # a bar for loading a few tensors is noise in every log
    name = str(folder)
    local = Path(name).is_dir()
    try:
        config = AutoConfig.from_pretrained(name)
    except (OSError, ValueError) as error:
        raise ModelError(_unreachable(name, local, error)) from error
    if config.model_type != model_type:
        raise ModelError(
            f"{name} contains a model of type {config.model_type!r}: name a {model_type.capitalize()} model, "
            f"such as {example}"
        )
    try:
        model = model_class.from_pretrained(name, config=config, dtype=dtype, use_safetensors=True)
    except (OSError, ValueError, RuntimeError) as error:
        if local and not any(Path(name).glob("*.safetensors")):
            raise ModelError(
                f"{name} contains no safetensors weights, and pickled ones (.bin, .pt) can run code when loaded: "
                "convert a trusted copy with save_pretrained"
            ) from error
        if local:
            raise ModelError(f"the weights in {name} cannot be loaded: {first_line(error)}") from error
        raise ModelError(_unreachable(name, local, error)) from error
    try:
        processor = processor_class.from_pretrained(name)
    except (OSError, ValueError, TypeError) as error:
        raise ModelError(
            f"{name} has no usable tokenizer and feature extractor ({first_line(error)}): "
            "copy them from the model it was trained from"
        ) from error
    return model, processor


def _unreachable(name: str, local: bool, error: BaseException) -> str:
    if local:
        return f"{name} is not a model folder ({first_line(error)}): config.json, weights and tokenizer are needed"
    return (
        f"model {name!r} is neither a folder here nor could it be had from the Hugging Face Hub "
        f"({first_line(error)}): check the name and the network, or give a local folder, or use `starter`"
    )


def on_device(model: Any, device: str) -> Any:
    """Move the model to a device. Raises ModelError if that is impossible."""
    try:
        return model.to(device)
    except (RuntimeError, AssertionError) as error:
        raise ModelError(
            f"device {device!r} cannot be used ({first_line(error)}): set `device` to cpu, or free memory on the GPU"
        ) from error


@contextmanager
def evaluating(model: torch.nn.Module) -> Iterator[None]:
    """Put the model into evaluation mode without gradients for a block; its mode is restored afterwards."""
    training = model.training
    model.eval()
    try:
        with torch.inference_mode():
            yield
    finally:
        model.train(training)


def hide_frames(
    inputs: Mapping[str, Any],
    samples: Sequence[int],
    hop: int,
    hide: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
) -> dict[str, Any]:
    """A batch with its `input_features` (B, F, T) as `hide` changes them; a clip has a frame for each `hop` samples."""
    features = inputs["input_features"]
    frames = torch.tensor([max(1, -(-count // hop)) for count in samples]).clamp(max=features.shape[-1])
    return {**inputs, "input_features": hide(features, frames)}


def without_adapters(model: torch.nn.Module) -> Any:
    """The model inside LoRA adapters, or the model itself; adapters stay active."""
    given: Any = model
    return given.get_base_model() if hasattr(given, "get_base_model") else given


def save_folder(model: torch.nn.Module, processor: Any, folder: Path) -> None:
    """Write a complete folder that stock transformers opens; adapters are merged, and kept beside in `adapter/`."""
    folder.mkdir(parents=True, exist_ok=True)
    whole: Any = model
    if hasattr(whole, "merge_and_unload"):
        whole.save_pretrained(folder / "adapter")
        # A copy is merged, since un-merging leaves rounding in the weights that go on training.
        whole = copy.deepcopy(whole).merge_and_unload()
    whole.config.use_cache = True  # training turns it off; who opens this folder wants to generate
    whole.save_pretrained(folder)
    processor.save_pretrained(folder)
