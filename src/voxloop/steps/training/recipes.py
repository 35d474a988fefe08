"""Recipes: named, complete and validated settings of a training run."""

from __future__ import annotations

import types
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Literal, cast, get_args, get_origin, get_type_hints

from voxloop.errors import SettingError, nearest
from voxloop.settings import meanings

Method = Literal["full", "lora"]
Precision = Literal["auto", "fp32", "bf16", "fp16"]
AudioContext = Literal["auto", "packed", "floor", "full", "trimmed"]


@dataclass(frozen=True, slots=True)
class Bounds:
    """The limits of a number."""

    least: float | None = None
    most: float | None = None
    above: bool = False  # `least` itself is excluded
    below: bool = False  # `most` itself is excluded

    def admit(self, value: float) -> bool:
        """Whether the number lies within the limits; NaN lies nowhere."""
        enough = self.least is None or (value > self.least if self.above else value >= self.least)
        return enough and (self.most is None or (value < self.most if self.below else value <= self.most))

    def __str__(self) -> str:
        least, most = (None if end is None else f"{end:g}" for end in (self.least, self.most))
        if most is None:
            return f"above {least}" if self.above else f"{least} or more"
        if least is None:
            return f"at most {most}"
        if not (self.above or self.below):
            return f"from {least} to {most}"
        return f"{'above' if self.above else 'at least'} {least} and {'below' if self.below else 'at most'} {most}"


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """The complete settings of a training run. Saved with the run, which reads them only from there."""

    name: str = "custom"
    """Name of the recipe, kept when settings are overridden."""
    why: str = ""
    """Why the recipe was chosen; empty if it was requested by name."""
    method: Method = "full"
    """full: train every weight; lora: train low-rank adapters beside frozen weights (arXiv:2106.09685)."""
    audio_context: AudioContext = "auto"
    """Input of the encoder. packed: 30 s windows of several clips by one speaker, so that the model keeps working in
    other programs; floor: a clip followed by as much silence, at least `context_floor_s` in total; full: a clip padded
    to 30 s; trimmed: a clip and a short margin, and the model is then served the same way. auto: trimmed if the base
    model was trained that way, else packed."""
    context_floor_s: float = 10.0
    """With packed and floor: shortest input for a single clip, in seconds."""
    alone_share: float = 0.25
    """With packed: share of an epoch's clips that are fed one at a time instead of in a window."""
    time_stamp_share: float = 0.5
    """With packed: share of windows whose labels contain the clips' start and end times as time stamp tokens."""

    learning_rate: float = 4e-4
    """Peak learning rate of AdamW, which decays along a cosine."""
    final_share: float = 0.02
    """Final learning rate as a share of the peak."""
    warmup_steps: int = 10
    """Steps of linear warm-up from 0."""
    max_steps: int | None = None
    """Most optimiser steps; none: no limit."""
    max_epochs: float | None = None
    """Most passes over the training speech; none: no limit."""
    max_seconds: float | None = None
    """Longest training time in seconds, from loading the model, with evaluation and saving; none: no limit."""
    batch_seconds: float = 40.0
    """Seconds of audio per batch, with padding. Halved when memory runs out."""
    accumulation: int = 1
    """Batches per optimiser step (gradient accumulation)."""
    weight_decay: float = 0.01
    """AdamW's decoupled weight decay."""
    clip_norm: float = 1.0
    """Largest norm of the gradient; longer ones are scaled down."""
    beta1: float = 0.9
    """AdamW's decay rate of the mean gradient."""
    beta2: float = 0.98
    """AdamW's decay rate of the mean squared gradient."""
    label_smoothing: float = 0.0
    """Share of the target probability spread over all tokens (arXiv:1512.00567)."""
    blend: bool = True
    """After training, interpolate between the base model's weights and the trained ones: base + a (trained - base),
    with the best a on val of 0, 0.25, 0.5, 0.75 and 1 (arXiv:2109.01903). On val, the model is never worse than its
    base."""
    average: float = 0.0
    """Decay per step of a running average of the weights, which is then evaluated and saved; 0: no averaging."""
    precision: Precision = "auto"
    """Number format of matrix products; weights stay in fp32. auto: bf16 if the device multiplies it faster (GPUs
    since Ampere, CPUs with AMX) and the model has at least 20 million parameters, else fp32. fp16 needs a GPU."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass, to save memory."""
    layer_decay: float = 1.0
    """Learning rate of a layer relative to the layer above it (arXiv:1801.06146); 1: the same rate for all."""
    ctc_weight: float = 0.0
    """Weight of an auxiliary CTC loss on the encoder (arXiv:1609.06773), for small models; 0: none."""
    freeze_encoder: bool = False
    """Train only the decoder; with method=lora, only the decoder gets adapters."""
    encoder_copies: int = 0
    """With freeze_encoder: number of differently augmented epochs whose encoder outputs are cached in a file and then
    reused until the run ends; 0: compute every epoch anew."""
    freeze_embeddings: bool = False
    """Do not train the token embedding, which is also the output layer and most of a small model's weights."""

    lora_rank: int = 16
    """Rank of the adapters."""
    lora_alpha: int = 32
    """Scale of the adapters: their output is multiplied by lora_alpha / lora_rank."""
    lora_dropout: float = 0.05
    """Dropout rate before the adapters."""
    lora_targets: tuple[str, ...] = ()
    """Names of the layers that get adapters; empty: the default of the model family."""

    speed: float = 0.1
    """Speed perturbation: clips are played up to this share faster or slower (Ko et al., Interspeech 2015)."""
    cut_share: float = 0.0
    """Share of clips whose start or end is cut off, as recorders and voice detectors do; for short clips."""
    cut_s: float = 0.15
    """Longest piece cut off either end, in seconds; never more than a quarter of the clip."""
    volume_db: float = 6.0
    """Clips are made up to this many dB louder or quieter."""
    noise_share: float = 0.3
    """Share of clips with added white noise."""
    noise_snr_db: float = 10.0
    """Lowest signal-to-noise ratio of added noise, in dB; the highest is 30 dB above."""
    noise_folder: str | None = None
    """Folder of your own noise recordings, made where the model will be used; none: white noise only."""
    noise_folder_share: float = 0.3
    """Share of clips with an added piece of one of those recordings."""
    telephone_share: float = 0.0
    """Share of clips with simulated telephone quality: 300 to 3,400 Hz, 8 kHz, mu-law."""
    mask_bands: int = 14
    """SpecAugment (arXiv:1904.08779): largest width of two masked bands, in mel channels; 0: none."""
    mask_frames: int = 12
    """SpecAugment: longest masked stretch, in mel frames of 10 ms, one per second; never more than a fifth of the
    clip; 0: none."""
    join_share: float = 0.3
    """Share of an epoch's clips that are joined into strings, so that the model does not forget longer speech; not
    used with audio_context=packed, whose windows do the same."""
    join_clips: int = 5
    """Most clips per string."""
    join_pause_s: float = 0.3
    """Longest pause between the clips of a string, in seconds."""
    join_seconds: float = 12.0
    """Longest string, in seconds; longer clips are not joined."""
    silence_share: float = 0.0
    """Faint noise with an empty text, as a share of an epoch's clips, against hallucinated words in silence."""
    full_length_share: float = 0.0
    """With trimmed: share of batches padded to 30 s, so that the model keeps working at that length."""
    replay_share: float = 0.2
    """Share of an epoch's clips taken from the base model's earlier training data, against forgetting."""
    replay_from: tuple[str, ...] = ()
    """Datasets (names or ids) to replay; empty: those that the base model and its own bases were trained on."""
    rehearse: bool = False
    """Fill the replayed share up with speech of this workspace by other speakers, with the texts that the base model
    itself wrote and is sure of."""

    eval_steps: int | None = None
    """Steps between evaluations on val; none: see eval_seconds."""
    eval_seconds: float | None = 10.0
    """Seconds of training between evaluations on val; none: see eval_steps. With neither: once per epoch."""
    keep_no_better: bool = False
    """Keep the last trained weights as a model even if they are no better than the base model on val."""
    patience: int | None = None
    """Early stopping: end after this many evaluations in a row without a lower word error rate (with fewer than 500
    words in val, without a lower loss either); none: never."""
    save_seconds: float = 60.0
    """Seconds between checkpoints to resume from."""
    keep_checkpoints: int = 2
    """Number of newest checkpoints to keep."""
    keep_checkpoints_after: int = 0
    """Number of intermediate models to keep after the run, in its folder `intermediate`: the best on val, or the newest
    if val is empty. `voxloop evaluate` accepts their folders."""
    log_steps: int = 10
    """Steps between lines of metrics."""
    max_val_clips: int = 200
    """Most clips of val to evaluate on; the same ones every time."""
    seed: int = 1
    """Seed of everything random: order, augmentation, dropout."""
    workers: int | None = None
    """Number of processes that prepare batches; 0: the training process itself; none: 0 on a CPU, on a GPU one per two
    cores, at most 4."""

    def __post_init__(self) -> None:
        if self.max_steps is None and self.max_epochs is None and self.max_seconds is None:
            raise SettingError("the recipe has no limit: set max_steps, max_epochs or max_seconds")
        hints = get_type_hints(Recipe)
        for name, bounds in BOUNDS.items():
            value, optional = getattr(self, name), types.NoneType in get_args(hints[name])
            if not (value is None and optional) and not bounds.admit(value):
                needed = f"it must be {bounds}" + (", or none" if optional else "")
                raise SettingError(f"recipe: {name} is {value!r}, but {needed}{REASONS.get(name, '')}")
        if self.freeze_encoder and self.ctc_weight:
            raise SettingError(
                "ctc_weight trains the encoder, which freeze_encoder freezes: set ctc_weight=0 or freeze_encoder=false"
            )
        if self.encoder_copies and not self.freeze_encoder:
            raise SettingError(
                f"encoder_copies is {self.encoder_copies}, but only a frozen encoder's outputs can be cached: "
                "set freeze_encoder=true or encoder_copies=0"
            )

    def as_dict(self) -> dict[str, Any]:
        """Every setting with its value, in JSON types."""
        return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}


_POSITIVE, _COUNT, _NOT_NEGATIVE = Bounds(0, above=True), Bounds(1), Bounds(0)
_SHARE, _BELOW_ONE = Bounds(0, 1), Bounds(0, 1, below=True)

BOUNDS: Mapping[str, Bounds] = {
    **dict.fromkeys(("learning_rate", "batch_seconds", "clip_norm", "save_seconds"), _POSITIVE),
    **dict.fromkeys(("accumulation", "lora_rank", "lora_alpha", "keep_checkpoints", "log_steps"), _COUNT),
    "max_val_clips": _COUNT,
    **dict.fromkeys(("max_steps", "max_epochs", "max_seconds", "eval_steps", "eval_seconds", "patience"), _POSITIVE),
    **dict.fromkeys(
        ("warmup_steps", "weight_decay", "keep_checkpoints_after", "ctc_weight", "volume_db"), _NOT_NEGATIVE
    ),
    **dict.fromkeys(("mask_bands", "mask_frames", "cut_s", "join_pause_s", "encoder_copies", "workers"), _NOT_NEGATIVE),
    **dict.fromkeys(("final_share", "noise_share", "noise_folder_share", "telephone_share", "cut_share"), _SHARE),
    **dict.fromkeys(("join_share", "full_length_share", "silence_share", "alone_share", "time_stamp_share"), _SHARE),
    **dict.fromkeys(("label_smoothing", "beta1", "beta2", "lora_dropout", "average", "replay_share"), _BELOW_ONE),
    "layer_decay": Bounds(0, 1, above=True),
    "speed": Bounds(0, 0.5),
    "join_clips": Bounds(2),
    "join_seconds": Bounds(0, 29, above=True),
    "context_floor_s": Bounds(1, 30),
}
"""The limits of every number that has some."""

REASONS = {
    "join_clips": "; set join_share=0 to join no clips",
    "join_seconds": ", so that a string fits into 30 s",
}  # added to the message about a limit


def from_dict(values: Mapping[str, Any]) -> Recipe:
    """Restore a recipe from `as_dict`. Raises SettingError for an unknown setting."""
    known = {f.name for f in fields(Recipe)}
    for name in values:
        if name not in known:
            raise SettingError(f"a recipe has no setting {name!r}{nearest(name, known)}")
    typed: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in values.items()}
    return Recipe(**typed)


# For small models trained at the clips' own length: the starter, and models fine-tuned from it.
SMALL: dict[str, Recipe] = {
    # Small batches, because a minute allows few steps, and averaged weights, because small batches are noisy. Only
    # short clips are joined: without strings the model learns digits and forgets strings, with strings of whole phrases
    # it learns too little. Cut, because a few clips do not show how short a word may be (docs/log.md).
    "quick": Recipe(
        name="quick",
        learning_rate=6e-4,
        max_seconds=60.0,
        max_epochs=400,
        batch_seconds=16.0,
        average=0.98,
        cut_share=0.5,
        join_share=0.5,
        join_seconds=2.5,
        silence_share=0.04,
    ),
    "thorough": Recipe(
        name="thorough",
        learning_rate=6e-4,
        warmup_steps=100,
        max_epochs=30,
        average=0.999,
        silence_share=0.01,
        full_length_share=0.02,
        eval_seconds=None,
        patience=6,
        save_seconds=300.0,
    ),
    "careful": Recipe(
        name="careful",
        method="lora",
        learning_rate=3e-4,
        warmup_steps=50,
        max_epochs=20,
        batch_seconds=60.0,
        label_smoothing=0.05,
        silence_share=0.01,
        full_length_share=0.1,
        eval_seconds=None,
        patience=5,
        save_seconds=300.0,
    ),
    "full": Recipe(
        name="full",
        learning_rate=1e-5,
        warmup_steps=200,
        max_epochs=10,
        batch_seconds=120.0,
        accumulation=2,
        silence_share=0.01,
        full_length_share=0.1,
        join_share=0.15,
        eval_seconds=None,
        patience=5,
        save_seconds=600.0,
    ),
}

# For published models, which forget what they know at the rates above (docs/log.md).
PUBLISHED: dict[str, Recipe] = {
    "quick": Recipe(
        name="quick",
        learning_rate=2e-5,
        max_seconds=300.0,
        max_epochs=16,
        batch_seconds=30.0,
        silence_share=0.01,
        patience=4,
        max_val_clips=60,
    ),
    "thorough": Recipe(
        name="thorough",
        learning_rate=2e-5,
        warmup_steps=50,
        max_epochs=12,
        batch_seconds=60.0,
        silence_share=0.01,
        eval_seconds=60.0,
        patience=5,
        save_seconds=300.0,
    ),
    "careful": Recipe(
        name="careful",
        method="lora",
        learning_rate=3e-4,
        warmup_steps=20,
        max_epochs=8,
        batch_seconds=60.0,
        silence_share=0.01,
        eval_seconds=60.0,
        patience=4,
        save_seconds=300.0,
    ),
    "full": Recipe(
        name="full",
        learning_rate=1e-5,
        warmup_steps=200,
        max_epochs=10,
        batch_seconds=120.0,
        accumulation=2,
        silence_share=0.01,
        eval_seconds=None,
        patience=5,
        save_seconds=600.0,
    ),
}

RECIPES = tuple(SMALL)

FIXED = {"name", "why"}  # describe the recipe and are not settings

SUITS = {
    "quick": "small models (starter, tiny, base) and up to 1 h of speech; trains all weights, in minutes on two cores",
    "thorough": "small models and 1 h of speech or more; trains all weights until val stops improving",
    "careful": "larger models and up to 10 h of speech; trains LoRA adapters until val stops improving",
    "full": "larger models and more than 10 h of speech; trains all weights at a low rate; needs a GPU",
}

SMALL_MODEL = 20_000_000  # parameters: below, fp32 is cheaper than the casts to bf16
CPU_MODEL = 100_000_000  # parameters: below, two cores can train all weights in minutes
SOME_SPEECH_S = 3600.0  # training speech in seconds from which longer training pays off
MUCH_SPEECH_S = 10 * 3600.0  # training speech in seconds from which all weights of a large model can be trained


def named(name: str, *, published: bool = False) -> Recipe:
    """The recipe called `name`, in its variant for published models or for small ones like the starter.

    Raises SettingError for an unknown name.
    """
    if name not in RECIPES:
        raise SettingError(f"there is no recipe {name!r}{nearest(name, RECIPES)}")
    return (PUBLISHED if published else SMALL)[name]


def choose(*, train_seconds: float, parameters: int, published: bool = False) -> Recipe:
    """The default recipe for this number of parameters and seconds of training speech, with the reason."""
    small = parameters < CPU_MODEL
    if small:
        name = "thorough" if train_seconds >= SOME_SPEECH_S else "quick"
    else:
        name = "full" if train_seconds >= MUCH_SPEECH_S else "careful"
    limit_s = SOME_SPEECH_S if small else MUCH_SPEECH_S
    speech = f"{train_seconds / 3600:.1f} h" if train_seconds >= 3600 else f"{train_seconds / 60:.1f} min"
    why = (
        f"the model has {parameters / 1e6:.1f} M parameters ({'less' if small else 'not less'} than "
        f"{CPU_MODEL / 1e6:.0f} M) and the train split has {speech} of speech "
        f"({'less' if train_seconds < limit_s else 'not less'} than {limit_s / 3600:.0f} h)"
    )
    return replace(named(name, published=published), why=why)


SettingKind = Literal["choice", "yes or no", "whole number", "number", "text", "list"]

SECTIONS: Mapping[str, tuple[str, ...]] = {
    "Basics": ("method", "learning_rate", "batch_seconds", "max_epochs", "max_seconds", "max_steps"),
    "Early stopping and selection": (
        *("patience", "eval_seconds", "eval_steps", "max_val_clips", "blend", "average", "keep_no_better"),
    ),
    "Memory and speed": (
        *("accumulation", "precision", "gradient_checkpointing", "workers"),
        *("save_seconds", "keep_checkpoints", "keep_checkpoints_after", "log_steps", "seed"),
    ),
    "LoRA adapters": ("lora_rank", "lora_alpha", "lora_dropout", "lora_targets"),
    "Frozen parts": ("freeze_encoder", "encoder_copies", "freeze_embeddings"),
    "Optimiser": (
        *("warmup_steps", "final_share", "weight_decay", "clip_norm", "beta1", "beta2"),
        *("label_smoothing", "layer_decay", "ctc_weight"),
    ),
    "Augmentation": (
        *("speed", "volume_db", "noise_share", "noise_snr_db", "noise_folder", "noise_folder_share"),
        *("telephone_share", "cut_share", "cut_s", "mask_bands", "mask_frames"),
    ),
    "Input of the encoder": (
        *("audio_context", "context_floor_s", "alone_share", "time_stamp_share"),
        *("join_share", "join_clips", "join_pause_s", "join_seconds"),
    ),
    "Against forgetting": ("replay_share", "replay_from", "rehearse", "silence_share", "full_length_share"),
}
"""The settings by topic, in the order in which a form shows them."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Described:
    """One setting of a recipe, as printed by `voxloop recipe show`."""

    setting: str
    value: Any
    default: Any
    meaning: str
    kind: SettingKind
    optional: bool  # may be none
    choices: tuple[str, ...] = ()  # of the kind `choice`
    bounds: Bounds | None = None

    @property
    def differs(self) -> bool:
        return bool(self.value != self.default)

    def as_dict(self) -> dict[str, Any]:
        return asdict(self) | {"differs": self.differs, "allowed": str(self.bounds) if self.bounds else None}


@dataclass(frozen=True, kw_only=True, slots=True)
class RecipeDetails:
    """A recipe with a description of every setting."""

    name: str
    suits: str  # what it is for
    why: str | None  # why it was chosen; None if requested by name
    settings: tuple[Described, ...]


def details(recipe: Recipe) -> RecipeDetails:
    """The description of a recipe that `voxloop recipe show` and the API return."""
    return RecipeDetails(
        name=recipe.name, suits=SUITS[recipe.name], why=recipe.why or None, settings=tuple(described(recipe))
    )


def described(recipe: Recipe) -> list[Described]:
    """Every setting of a recipe with its default and its meaning, in the order of this module."""
    values, defaults = recipe.as_dict(), Recipe(max_steps=1).as_dict() | {"max_steps": None}
    hints = get_type_hints(Recipe)
    return [
        Described(
            setting=name,
            value=values[name],
            default=defaults[name],
            meaning=meaning,
            kind=_kind(hints[name]),
            optional=types.NoneType in get_args(hints[name]),
            choices=get_args(hints[name]) if get_origin(hints[name]) is Literal else (),
            bounds=BOUNDS.get(name),
        )
        for name, meaning in meanings(Recipe).items()
        if name not in FIXED
    ]


def _kind(hint: Any) -> SettingKind:
    """The kind of a field's values, from its type."""
    if get_origin(hint) is types.UnionType:
        return _kind(next(option for option in get_args(hint) if option is not types.NoneType))
    if get_origin(hint) is Literal:
        return "choice"
    kinds: dict[Any, SettingKind] = {bool: "yes or no", int: "whole number", float: "number", str: "text"}
    return kinds.get(hint, "list")


def override(recipe: Recipe, settings: Sequence[str]) -> Recipe:
    """The recipe with `key=value` settings applied. Raises SettingError for a wrong name or value."""
    hints = get_type_hints(Recipe)
    values: dict[str, Any] = {}
    for setting in settings:
        name, equals, text = setting.partition("=")
        name = name.strip()
        if not equals:
            raise SettingError(f"setting {setting!r} has no value: write key=value, such as learning_rate=1e-4")
        if name not in hints or name in FIXED:
            raise SettingError(f"a recipe has no setting {name!r}{nearest(name, set(hints) - FIXED)}")
        values[name] = _parse(name, text.strip(), hints[name])
    return replace(recipe, **values)


KINDS: dict[Any, str] = {int: "a whole number", float: "a number"}  # in messages


def _parse(name: str, text: str, kind: Any) -> Any:
    """Text converted to the type of a field."""
    origin, options = get_origin(kind), get_args(kind)
    if origin is Literal:
        if text not in options:
            raise SettingError(f"{name} is {text!r}: choose one of {', '.join(options)}")
        return text
    if origin is types.UnionType:
        if text.lower() in ("none", ""):
            return None
        return _parse(name, text, next(option for option in options if option is not type(None)))
    if origin is tuple:
        if text.lower() == "none":
            return ()
        return tuple(part.strip() for part in text.split(",") if part.strip())
    if kind is bool:
        if text.lower() in ("true", "yes", "1", "on"):
            return True
        if text.lower() in ("false", "no", "0", "off"):
            return False
        raise SettingError(f"{name} is {text!r}: choose true or false")
    try:
        return cast("type[int] | type[float] | type[str]", kind)(text)
    except ValueError as error:
        raise SettingError(f"{name} is {text!r}: give {KINDS[kind]}") from error
