"""Voxtral (arXiv:2507.13264): a Whisper encoder in front of a language model, loaded, trained, decoded and saved.

Every clip is fed as 30 s, which the language model sees as 375 tokens between the words of a request
(`prompts.py`). The loss covers the tokens of the text and the end, never those of the request.

Letters in shapes: `B` batch, `F` mel channels, `T` mel frames, `U` tokens, prompt included, `V` vocabulary.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch.nn import functional

from voxloop.errors import ModelError, TrainingError, install_command
from voxloop.families.contract import Capability, Labels, Part, Segment, Trainable, require, words_alone
from voxloop.families.decoding import Context
from voxloop.families.folders import hide_frames, on_device, open_folder, save_folder, without_adapters
from voxloop.families.voxtral import prompts
from voxloop.records import MAX_UTTERANCE_S

if TYPE_CHECKING:
    from voxloop.families.contract import Waveform
    from voxloop.families.voxtral.recogniser import VoxtralRecogniser

HOP = 160  # samples per mel frame: 10 ms
CONTEXT_TOKENS = 32_768  # that the published models read and write: arXiv:2507.13264, section 2
AROUND_TEXT = prompts.AUDIO_TOKENS + prompts.AROUND_AUDIO + 7 + 1  # of `lang:xx` at most, and the end
TOWER = r"\b(audio_tower|multi_modal_projector)\b"


class Voxtral:
    """The Voxtral family: Mini and Small."""

    name = "voxtral"
    capabilities: frozenset[Capability] = frozenset(("embeddings",))
    lora_targets: tuple[str, ...] = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")

    def engines(self) -> tuple[str, ...]:
        """What can run Voxtral here: torch alone."""
        return ("torch",)

    def load(self, folder: str | Path, *, device: str = "cpu", dtype: str = "float32") -> VoxtralRecogniser:
        """Open a folder or Hub id. Raises ModelError with the remedy."""
        from voxloop.families.voxtral.recogniser import VoxtralRecogniser

        model, processor = _open(folder, getattr(torch, dtype))
        return VoxtralRecogniser(self, on_device(model, device).eval(), processor)

    def labels(self, folder: str | Path) -> Labels:
        """How long the texts of Voxtral may be, counted by the tokenizer of a saved model."""
        from transformers import AutoTokenizer
        from transformers.utils import is_mistral_common_available

        if not is_mistral_common_available() or not Path(folder, "tekken.json").is_file():
            raise ModelError(
                f"{folder} has no usable tokenizer: it needs tekken.json and the package of Voxtral's tokenizer "
                f"(install it with `{install_command('voxtral')}`)"
            )
        tokenizer = AutoTokenizer.from_pretrained(str(folder))
        return Labels(
            limit=CONTEXT_TOKENS, around=AROUND_TEXT, tokens=lambda text: len(prompts.tokens(tokenizer, text))
        )

    def open_for_training(self, folder: str | Path, *, audio_context: Context) -> Trainable:
        """Open a folder or Hub id for training, float32 on the CPU. Raises UsageError for a trimmed context."""
        if audio_context == "trimmed":
            require(self, "short context")
        model, processor = _open(folder, torch.float32)
        return Trainable(model=model, processor=processor)

    def freeze(self, trainable: Trainable, parts: Collection[Part]) -> None:
        """Leave the audio tower and its projector, or the embedding of tokens and the output layer, as they are."""
        whole = trainable.model
        modules: list[torch.nn.Module] = []
        if "encoder" in parts:
            modules += [whole.model.audio_tower, whole.model.multi_modal_projector]
        if "embeddings" in parts:
            modules += [whole.get_input_embeddings(), whole.lm_head]
        for module in modules:
            module.requires_grad_(False)

    def without_adapters(self, frozen: Collection[Part]) -> str | None:
        """The audio tower and its projector: adapters belong into the language model, whatever is frozen."""
        return rf".*{TOWER}.*"

    def recogniser(self, trainable: Trainable, model: torch.nn.Module) -> VoxtralRecogniser:
        """The model as it is now, half-way through training; adapters stay in it."""
        from voxloop.families.voxtral.recogniser import VoxtralRecogniser

        return VoxtralRecogniser(self, without_adapters(model), trainable.processor)

    def collate(
        self,
        trainable: Trainable,
        waveforms: Sequence[Waveform],
        texts: Sequence[str | Sequence[Segment]],
        languages: Sequence[str | None],
        *,
        at_least_s: float = 0.0,
    ) -> dict[str, torch.Tensor]:
        """A batch: input_ids, attention_mask and labels (B, U), padded on the right; input_features (B, F, 3000)."""
        given = prompts.request(trainable.processor, waveforms, [code or trainable.language for code in languages])
        limit, tokenizer = self.label_limit(trainable), trainable.processor.tokenizer
        rows, learnt = [], []
        for ids, mask, text in zip(given["input_ids"], given["attention_mask"], map(words_alone, texts), strict=True):
            prompt = ids[mask.bool()].tolist()  # the request is padded on the left, for generation
            said = [*prompts.tokens(tokenizer, text), tokenizer.eos_token_id]
            if len(prompt) + len(said) > limit:
                raise TrainingError(
                    f"a text has {len(prompt) + len(said)} tokens with its prompt, and the model accepts at most "
                    f"{limit}: {text[:60]!r}…; remove it from the dataset or split it into shorter utterances"
                )
            rows.append(torch.tensor(prompt + said))
            learnt.append(torch.tensor([trainable.label_pad] * len(prompt) + said))
        pad = torch.nn.utils.rnn.pad_sequence
        return {
            "input_ids": pad(rows, batch_first=True, padding_value=tokenizer.pad_token_id),
            "attention_mask": pad([torch.ones_like(row) for row in rows], batch_first=True),
            "input_features": given["input_features"],
            "labels": pad(learnt, batch_first=True, padding_value=trainable.label_pad),
        }

    def masked(
        self,
        inputs: Mapping[str, Any],
        samples: Sequence[int],
        hide: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
    ) -> dict[str, Any]:
        """The batch with its features (B, F, T) as `hide` changes them; a clip's frames are 10 ms each."""
        return hide_frames(inputs, samples, HOP, hide)

    def loss(
        self, trainable: Trainable, model: torch.nn.Module, inputs: Mapping[str, Any], *, smoothing: float = 0.0
    ) -> tuple[torch.Tensor, Any]:
        """The summed loss of a batch that `collate` made, and the model's outputs: logits where something is learnt."""
        labels = inputs["labels"]
        learnt = (labels != trainable.label_pad).any(dim=0)
        # A token is foretold by the place before it. Logits of the prompt's places would take most of the memory.
        kept = labels.shape[1] - int(learnt.int().argmax()) + 1
        given = {name: value for name, value in inputs.items() if name != "labels"}
        outputs = model(**given, use_cache=False, logits_to_keep=kept)
        total = functional.cross_entropy(
            outputs.logits[:, :-1].float().flatten(0, 1),
            labels[:, 1 - kept :].flatten(),
            ignore_index=trainable.label_pad,
            reduction="sum",
            label_smoothing=smoothing,
        )
        return total, outputs

    def published(self, folder: str | Path) -> bool:
        """Every Voxtral is."""
        return True

    def tuned_context(self, folder: str | Path) -> Context:
        """Voxtral is fed 30 s, always."""
        return "full"

    def padded_seconds(self, seconds: float, at_least_s: float = MAX_UTTERANCE_S) -> float:
        """Seconds that a clip takes up in a batch: always 30."""
        return MAX_UTTERANCE_S

    def label_limit(self, trainable: Trainable) -> int:
        """Tokens that the model reads and writes, prompt and end included."""
        limit: int = trainable.model.config.text_config.max_position_embeddings
        return limit

    def label_length(self, trainable: Trainable, text: str | Sequence[Segment], language: str | None) -> int:
        """Tokens of a text with its prompt, the audio's included, and the end."""
        before = prompts.prompt_length(trainable.processor, language or trainable.language)
        return before + len(self.text_tokens(trainable, words_alone(text))) + 1

    def text_tokens(self, trainable: Trainable, text: str) -> list[int]:
        """Tokens of a text alone, without prompt and end."""
        return prompts.tokens(trainable.processor.tokenizer, text)

    def layers_above(self, trainable: Trainable, weight: str) -> int:
        """Layers between a weight and the output of the audio tower or the language model that it is in."""
        config = trainable.model.config
        layers: int = (config.audio_config if ".audio_tower." in f".{weight}" else config.text_config).num_hidden_layers
        numbered = re.search(r"\.layers\.(\d+)\.", weight)
        if numbered:
            return layers - 1 - int(numbered.group(1))
        return layers if re.search(r"\.(conv\d|embed_\w+)\.", weight) else 0

    def save(self, trainable: Trainable, model: torch.nn.Module, folder: Path) -> None:
        """Write a complete folder that `load` and stock transformers open.

        With the config: a processor in a folder without one is reopened with another kind of tokenizer.
        """
        save_folder(model, trainable.processor, folder)


def _open(folder: str | Path, dtype: torch.dtype) -> tuple[Any, Any]:
    from transformers import VoxtralForConditionalGeneration, VoxtralProcessor

    model, processor = open_folder(
        folder,
        "voxtral",
        VoxtralForConditionalGeneration,
        VoxtralProcessor,
        dtype,
        example="mistralai/Voxtral-Mini-3B-2507",
    )
    prompts.check_processor(folder, processor)
    return model, processor


VOXTRAL = Voxtral()
