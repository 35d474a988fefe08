"""What the steps rely on, of every model family: tiny random models of each, made on the spot."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from string import ascii_lowercase
from typing import Any

import numpy as np
import pytest
import torch

from tests.unit import tiny_voxtral, tiny_whisper
from voxloop.errors import ModelError, TrainingError, UsageError
from voxloop.families.contract import (
    REMEDIES,
    Capability,
    Decoding,
    Family,
    Guards,
    PersonalVocabulary,
    Recogniser,
    Term,
    Trainable,
    require,
)
from voxloop.families.registry import OURS, family, family_of

RATE = 16_000
TEXTS = ("one", "two, über")
LANGUAGES = ("en", "de")


def whisper_label(text: str, language: str | None) -> list[int]:
    """A space, as published models begin their texts; a token for each byte; the end. The prompt is not learnt."""
    return [*f" {text}".encode(), 256]


def whisper_logits(model: Any, inputs: dict[str, Any]) -> tuple[torch.Tensor, torch.Tensor]:
    given = {name: value for name, value in inputs.items() if name != "labels"}
    return model(**given).logits, inputs["labels"]


def voxtral_label(text: str, language: str | None) -> list[int]:
    """A token for each byte, behind 40 special ones; the end. Nothing of the prompt."""
    return [*(byte + 40 for byte in text.encode()), 2]


def voxtral_logits(model: Any, inputs: dict[str, Any]) -> tuple[torch.Tensor, torch.Tensor]:
    given = {name: value for name, value in inputs.items() if name != "labels"}
    return model(**given).logits[:, :-1], inputs["labels"][:, 1:]


@dataclass(frozen=True)
class Case:
    """A family, a tiny model of it, and what is known of that model without the code under test."""

    family: Family
    folder: Path
    label: Callable[[str, str | None], list[int]]  # the tokens that are learnt from a text
    logits: Callable[[Any, dict[str, Any]], tuple[torch.Tensor, torch.Tensor]]  # for each place, and its token
    counted: str  # key of the tensor whose rows are as long as `label_length` says, where it is not the padding

    @property
    def trainable(self) -> Trainable:
        return self.family.open_for_training(self.folder, audio_context="full")


MAKERS: dict[str, Callable[[Path], Path]] = {
    "whisper": lambda folder: tiny_whisper.make(folder, multilingual=True, seed=1),
    "voxtral": tiny_voxtral.make,
}
KNOWN: dict[str, tuple[Any, Any, str]] = {
    "whisper": (whisper_label, whisper_logits, "labels"),
    "voxtral": (voxtral_label, voxtral_logits, "attention_mask"),
}


@pytest.fixture(scope="module", params=sorted(MAKERS))
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Case:
    folder = MAKERS[request.param](tmp_path_factory.mktemp(request.param))
    return Case(family(request.param), folder, *KNOWN[request.param])


def sounds(*durations_s: float, seed: int = 0) -> list[np.ndarray]:
    """Tones in noise: clips that differ."""
    rng = np.random.default_rng(seed)
    found = []
    for number, duration_s in enumerate(durations_s):
        times = np.arange(round(duration_s * RATE)) / RATE
        tone = 0.3 * np.sin(2 * np.pi * 300 * (number + 1) * times)
        found.append((tone + 0.05 * rng.standard_normal(len(times))).astype(np.float32))
    return found


def batch(case: Case, trainable: Trainable, **given: Any) -> dict[str, torch.Tensor]:
    return case.family.collate(trainable, sounds(0.6, 1.4), TEXTS, LANGUAGES, **given)


def loss_of(case: Case, trainable: Trainable, inputs: dict[str, Any], model: Any = None, **given: float) -> float:
    model = (model or trainable.model).eval()
    with torch.no_grad():
        return case.family.loss(trainable, model, inputs, **given)[0].item()


def test_every_family_of_ours_is_here() -> None:
    assert set(MAKERS) == set(OURS)


def test_a_folder_says_which_family_it_is_of(case: Case) -> None:
    assert family(family_of(case.folder)) is case.family
    assert case.family.name == family_of(case.folder)


def test_a_batch_has_a_row_for_each_clip_and_hears_each(case: Case) -> None:
    trainable = case.trainable
    inputs = batch(case, trainable)
    assert {len(tensor) for tensor in inputs.values()} == {2}
    alone = case.family.collate(trainable, sounds(0.6, 1.4)[1:], TEXTS[1:], LANGUAGES[1:])
    both, one = loss_of(case, trainable, inputs), loss_of(case, trainable, alone)
    other = case.family.collate(trainable, sounds(0.6, 1.4)[:1], TEXTS[:1], LANGUAGES[:1])
    assert both == pytest.approx(one + loss_of(case, trainable, other), rel=1e-4)  # padding changes nothing
    changed = case.family.collate(trainable, sounds(0.6, 1.4)[::-1], TEXTS, LANGUAGES)
    assert loss_of(case, trainable, changed) != pytest.approx(both, rel=1e-5)


def test_labels_are_the_text_and_its_end_token_by_token(case: Case) -> None:
    trainable = case.trainable
    inputs = batch(case, trainable)
    for row, text, language in zip(inputs["labels"], TEXTS, LANGUAGES, strict=True):
        assert row[row != trainable.label_pad].tolist() == case.label(text, language)
    trainable.language = "de"
    unnamed = case.family.collate(trainable, sounds(0.6), TEXTS[:1], [None])["labels"][0]
    assert unnamed[unnamed != trainable.label_pad].tolist() == case.label(TEXTS[0], "de")


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_loss_is_the_summed_cross_entropy_of_the_labels(case: Case, smoothing: float) -> None:
    trainable = case.trainable
    inputs = batch(case, trainable)
    with torch.no_grad():
        logits, labels = case.logits(trainable.model.eval(), inputs)
    expected = 0.0
    for row, answers in zip(logits.double().numpy(), labels.tolist(), strict=True):
        for scores, answer in zip(row, answers, strict=True):
            if answer != trainable.label_pad:
                likely = scores - scores.max() - np.log(np.exp(scores - scores.max()).sum())
                expected -= (1 - smoothing) * likely[answer] + smoothing * likely.mean()
    assert loss_of(case, trainable, inputs, smoothing=smoothing) == pytest.approx(expected, rel=1e-5)


def test_a_training_step_lowers_the_loss(case: Case) -> None:
    trainable = case.trainable
    inputs = batch(case, trainable)
    before = loss_of(case, trainable, inputs)
    optimizer = torch.optim.AdamW(trainable.model.parameters(), lr=1e-4)
    loss, _ = case.family.loss(trainable, trainable.model, inputs)
    loss.backward()
    optimizer.step()
    assert loss_of(case, trainable, inputs) < 0.995 * before


def test_masks_hide_what_they_are_told_to(case: Case) -> None:
    trainable = case.trainable
    inputs = batch(case, trainable)
    told: list[list[int]] = []

    def hide(features: torch.Tensor, frames: torch.Tensor) -> torch.Tensor:
        told.append(frames.tolist())
        assert features.ndim == 3
        return torch.zeros_like(features)

    masked = case.family.masked(inputs, [9_600, 22_401], hide)
    assert told == [[60, 141]]
    assert loss_of(case, trainable, masked) != pytest.approx(loss_of(case, trainable, inputs), rel=1e-5)
    assert torch.equal(masked["labels"], inputs["labels"])


def test_texts_do_not_depend_on_the_batch(case: Case) -> None:
    recogniser = case.family.load(case.folder)
    clips = [*sounds(0.6, 2.0, 1.1), np.zeros(0, np.float32)]
    asked = Decoding(language="en", max_new_tokens=12)
    told: list[float] = []
    together = recogniser.transcribe(clips, asked, heard=told.append)
    assert sum(told) == pytest.approx(3.7)
    for clip, found in zip(clips, together, strict=True):
        alone = recogniser.transcribe([clip], asked)[0]
        assert found.text == alone.text
        assert found.confidence == pytest.approx(alone.confidence, abs=1e-4)
    assert any(found.text for found in together)
    assert together[-1].text == ""
    assert all(0 < found.confidence <= 1 for found in together[:3] if found.confidence is not None)
    for found in together[:3]:
        assert found.mean_logprob is not None
        assert found.mean_logprob <= 0
    assert recogniser.transcribe([], asked) == []
    beams = recogniser.transcribe(clips[:1], Decoding(language="en", max_new_tokens=12, beams=2))[0]
    assert (beams.mean_logprob or -99) >= (together[0].mean_logprob or 0) - 1e-3


def test_more_than_30_s_are_refused(case: Case) -> None:
    with pytest.raises(UsageError, match="at most 30 s"):
        case.family.load(case.folder).transcribe([np.zeros(480_001, np.float32)], Decoding())


def test_a_saved_model_reloads_with_equal_outputs(case: Case, tmp_path: Path) -> None:
    trainable = case.trainable
    with torch.no_grad():
        for weight in trainable.model.parameters():
            weight.mul_(1.05)
    inputs, asked = batch(case, trainable), Decoding(language="en", max_new_tokens=12)
    before = loss_of(case, trainable, inputs)
    heard = case.family.recogniser(trainable, trainable.model).transcribe(sounds(0.6, 1.4), asked)
    case.family.save(trainable, trainable.model, tmp_path / "saved")
    again = case.family.open_for_training(tmp_path / "saved", audio_context="full")
    assert loss_of(case, again, batch(case, again)) == pytest.approx(before, rel=1e-6)
    assert case.family.load(tmp_path / "saved").transcribe(sounds(0.6, 1.4), asked) == heard
    assert before != pytest.approx(loss_of(case, case.trainable, inputs), rel=1e-4)
    assert family_of(tmp_path / "saved") == case.family.name


def test_adapters_are_learnt_merged_and_reloaded(case: Case, tmp_path: Path) -> None:
    from peft import LoraConfig, get_peft_model

    trainable = case.trainable
    config = LoraConfig(
        r=2,
        target_modules=list(case.family.lora_targets),
        exclude_modules=case.family.without_adapters(["encoder"]),
        init_lora_weights=False,  # as if they had learnt something
    )
    torch.manual_seed(0)
    model = get_peft_model(trainable.model, config)
    with_adapters = {name.partition(".lora_")[0] for name, _ in model.named_parameters() if ".lora_" in name}
    assert with_adapters
    assert not any({"encoder", "audio_tower", "multi_modal_projector"} & set(name.split(".")) for name in with_adapters)
    assert {name.rpartition(".")[2] for name in with_adapters} <= set(case.family.lora_targets)
    inputs = batch(case, trainable)
    case.family.loss(trainable, model, inputs)[0].backward()
    learning = {name for name, weight in model.named_parameters() if weight.grad is not None and weight.grad.any()}
    assert learning
    assert all(".lora_" in name for name in learning)
    before = loss_of(case, trainable, inputs, model)
    case.family.save(trainable, model, tmp_path / "merged")
    again = case.family.open_for_training(tmp_path / "merged", audio_context="full")
    assert loss_of(case, again, inputs) == pytest.approx(before, rel=1e-4)
    assert before != pytest.approx(loss_of(case, case.trainable, inputs), rel=1e-3)
    assert (tmp_path / "merged" / "adapter" / "adapter_model.safetensors").is_file()


@pytest.mark.parametrize("part", ["encoder", "embeddings"])
def test_what_is_frozen_gets_no_gradient(case: Case, part: Any) -> None:
    trainable = case.trainable
    free = sum(weight.numel() for weight in trainable.model.parameters() if weight.requires_grad)
    case.family.freeze(trainable, [part])
    case.family.loss(trainable, trainable.model, batch(case, trainable))[0].backward()
    learnt = {name for name, weight in trainable.model.named_parameters() if weight.grad is not None}
    hears = {name for name in learnt if {"encoder", "audio_tower", "multi_modal_projector"} & set(name.split("."))}
    names = {name for name in learnt if "embed_tokens" in name or "lm_head" in name or "proj_out" in name}
    assert (not hears and names) if part == "encoder" else (hears and not names)
    assert 0 < sum(w.numel() for w in trainable.model.parameters() if w.requires_grad) < free


def test_layers_are_counted_from_the_top(case: Case) -> None:
    trainable = case.trainable
    above = {name: case.family.layers_above(trainable, name) for name, _ in trainable.model.named_parameters()}
    assert set(above.values()) == {0, 1, 2}  # two layers in each part
    for name, count in above.items():
        if ".layers.1." in name:
            assert count == 0
        if ".layers.0." in name:
            assert count == 1
        if "embed_tokens" in name or ".conv1." in name:
            assert count == 2


def test_labels_are_as_long_as_counted(case: Case) -> None:
    trainable = case.trainable
    inputs, rules = batch(case, trainable), case.family.labels(case.folder)
    padding = {"labels": trainable.label_pad, "attention_mask": 0}[case.counted]
    prompt = {"labels": 3, "attention_mask": 0}[case.counted]  # language, task and no time stamps are not among labels
    for row, text, language in zip(inputs[case.counted], TEXTS, LANGUAGES, strict=True):
        length = case.family.label_length(trainable, text, language)
        assert length == prompt + int((row != padding).sum())
        tokens = case.family.text_tokens(trainable, text)
        assert rules.tokens(text) == len(tokens) <= len(text.encode())
        assert length <= len(tokens) + rules.around
    limit = case.family.label_limit(trainable)
    around = case.family.label_length(trainable, "x", "en") - 1
    longest = "x" * (limit - around)
    assert case.family.label_length(trainable, longest, "en") == limit
    case.family.collate(trainable, sounds(0.6), [longest], ["en"])
    with pytest.raises(TrainingError, match=f"a text has {limit + 1} tokens"):
        case.family.collate(trainable, sounds(0.6), [longest + "x"], ["en"])
    with pytest.raises(ModelError, match=r"tokenizer\.json|tekken\.json"):
        case.family.labels(case.folder / "nowhere")


def test_seconds_in_a_batch(case: Case) -> None:
    assert case.family.padded_seconds(3.0, 30.0) == 30.0


def test_the_first_engine_runs_the_model(case: Case) -> None:
    engines = case.family.engines()
    assert engines[-1] == "torch"
    assert ("ctranslate2" in engines) == ("ctranslate2" in case.family.capabilities)  # it is installed for the tests


# Capabilities --------------------------------------------------------------------------------------------------------


def has_word_times(case: Case, folder: Path) -> None:
    found = case.family.load(case.folder).transcribe(
        sounds(1.4), Decoding(language="en", max_new_tokens=12), word_times=True
    )
    assert found[0].words
    assert all(0 <= word.start <= word.end <= 1.4 + 0.64 for word in found[0].words)


def has_no_speech(case: Case, folder: Path) -> None:
    (found,) = case.family.load(case.folder).transcribe(sounds(1.0), Decoding(language="en", max_new_tokens=4))
    assert found.no_speech is not None


def has_language_detection(case: Case, folder: Path) -> None:
    (found,) = case.family.load(case.folder).transcribe(sounds(1.0), Decoding(max_new_tokens=4))
    assert found.language is not None
    assert found.language_probability is not None


def has_guards(case: Case, folder: Path) -> None:
    asked = Decoding(language="en", max_new_tokens=12, guards=Guards(min_logprob=0.0, temperatures=()))
    (found,) = case.family.load(case.folder).transcribe(sounds(1.0), asked)
    assert found.guards


def has_short_context(case: Case, folder: Path) -> None:
    assert case.family.padded_seconds(1.0) < 3.0
    trainable = case.family.open_for_training(case.folder, audio_context="trimmed")
    own, full = batch(case, trainable), batch(case, trainable, at_least_s=30.0)
    assert sum(tensor.nbytes for tensor in own.values()) < sum(tensor.nbytes for tensor in full.values())
    case.family.save(trainable, trainable.model, folder)
    assert case.family.load(folder).context("auto") == "trimmed"
    case.family.load(folder).transcribe(sounds(1.0), Decoding(audio_context="trimmed", max_new_tokens=4))


def has_ctranslate2(case: Case, folder: Path) -> None:
    kind = require(case.family, "ctranslate2")
    kind.convert(case.folder, folder, "float32")
    assert kind.intact(folder)
    asked = Decoding(language="en", max_new_tokens=8)
    (found,) = kind.load_converted(folder).transcribe(sounds(1.0), asked)
    (expected,) = case.family.load(case.folder).transcribe(sounds(1.0), asked)
    assert found.text == expected.text
    (folder / "model.bin").write_bytes(b"")
    assert not kind.intact(folder)


def has_embeddings(case: Case, folder: Path) -> None:
    recogniser = case.family.load(case.folder)
    clips = sounds(1.0, 1.0, 0.7)
    vectors = recogniser.embed([*clips, clips[0]])
    assert np.linalg.norm(vectors, axis=1) == pytest.approx(np.ones(4), abs=1e-4)
    cosines = vectors @ vectors.T
    assert cosines[0, 3] == pytest.approx(1.0, abs=1e-5)
    # The mean of all states lies in all vectors of speech; what is left tells them apart.
    assert max(cosines[0, 1], cosines[0, 2], cosines[1, 2]) < 0.999
    assert recogniser.embed([clips[1]])[0] == pytest.approx(vectors[1], abs=1e-4)


def has_encoder_states(case: Case, folder: Path) -> None:
    kind, trainable = require(case.family, "encoder states"), case.trainable
    inputs = batch(case, trainable, at_least_s=30.0)
    encoded = kind.encode(trainable, inputs)
    assert loss_of(case, trainable, encoded) == pytest.approx(loss_of(case, trainable, inputs), rel=1e-5)
    states = case.family.loss(trainable, trainable.model, inputs)[1].encoder_last_hidden_state
    assert states.shape[2] == kind.encoder_width(trainable)
    assert kind.encoder_positions(inputs).tolist() == [states.shape[1]] * 2
    assert kind.encoder_bytes(case.folder, 60.0) == states.nbytes


def has_cost_estimate(case: Case, folder: Path) -> None:
    found = require(case.family, "cost estimate").cost(case.folder)
    assert found.parameters == sum(weight.numel() for weight in case.trainable.model.parameters())
    assert found.window_operations > found.token_weights > 0


def has_other_programs(case: Case, folder: Path) -> None:
    kind, trainable = require(case.family, "other programs"), case.trainable
    torch.manual_seed(0)  # some random models never end a text
    torch.nn.init.normal_(trainable.model.model.decoder.layer_norm.bias)  # as a trained one has
    case.family.save(trainable, trainable.model, folder / "saved")
    assert kind.complete(folder / "saved", folder / "whole")
    assert not kind.complete(folder / "whole", folder / "again")
    asked = Decoding(language="en", max_new_tokens=8, audio_context="full")
    before, after = (case.family.load(folder / name).transcribe(sounds(1.0), asked) for name in ("saved", "again"))
    assert [one.text for one in before] == [one.text for one in after]
    (found,) = kind.read_elsewhere("transformers", folder / "whole", sounds(1.0), None, None)
    assert found.heard is not None, found.missing
    (broken,) = kind.read_elsewhere("transformers", folder / "nowhere", sounds(1.0), None, None)
    assert broken.heard is None
    assert "failed" in str(broken.missing)


def has_prompt(case: Case, made: Path) -> None:
    recogniser, clips = case.family.load(case.folder), sounds(0.5, 1.0)
    heard = [recogniser.transcribe(clips, Decoding(max_new_tokens=8, prompt=prompt)) for prompt in ("", "so far")]
    assert [one.mean_logprob for one in heard[0]] != [one.mean_logprob for one in heard[1]]


def has_biased_decoding(case: Case, made: Path) -> None:
    recogniser, clips = case.family.load(case.folder), sounds(0.5, 1.0)
    terms = tuple(Term(first + second) for first in ascii_lowercase for second in ascii_lowercase)
    known = PersonalVocabulary(terms=terms, bonus=5.0, bonus_limit=100.0)
    plain = recogniser.transcribe(clips, Decoding(max_new_tokens=12))
    heard = recogniser.transcribe(clips, Decoding(max_new_tokens=12, vocabulary=known))
    assert [one.text for one in heard] != [one.text for one in plain]


def has_translation(case: Case, made: Path) -> None:
    recogniser, clips = case.family.load(case.folder), sounds(0.5, 1.0)
    asked = [Decoding(language="de", max_new_tokens=8, task=task) for task in ("transcribe", "translate")]
    heard, translated = (recogniser.transcribe(clips, one) for one in asked)
    assert [one.mean_logprob for one in heard] != [one.mean_logprob for one in translated]
    assert {one.language for one in translated} == {"de"}


def has_sampling(case: Case, made: Path) -> None:
    recogniser, clips = case.family.load(case.folder), sounds(0.5, 1.0)
    likeliest, sampled, again = (
        recogniser.transcribe(clips, Decoding(max_new_tokens=8, temperature=temperature))
        for temperature in (0.0, 1.0, 1.0)
    )
    assert sampled == again
    assert [one.text for one in sampled] != [one.text for one in likeliest]
    assert {one.temperature for one in sampled} == {1.0}


def has_adapters(case: Case, made: Path) -> None:
    from peft import LoraConfig, get_peft_model

    merged: list[Recogniser] = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        trainable = case.trainable
        config = LoraConfig(r=2, target_modules=list(case.family.lora_targets), init_lora_weights=False)
        case.family.save(trainable, get_peft_model(trainable.model, config), made / str(seed))
        merged.append(case.family.load(made / str(seed)))
    mixed = require(case.family, "adapters").load_adapted(case.folder)
    for seed in (0, 1):
        mixed.add(str(seed), made / str(seed) / "adapter")
    clips = sounds(0.6, 1.4, 0.6)
    # Two adapters hear the same clip; a guard has some rows of a batch decoded again, and a beam has several for each.
    order, given = ["0", "1", "1", "0"], [clips[0], clips[1], clips[0], clips[2]]
    doubted = Guards(min_logprob=-1e-9, max_compression=1.2, max_no_speech=1.0, temperatures=(0.5,))
    plain = Decoding(language="en", max_new_tokens=12)
    for asked in (plain, replace(plain, beams=2), replace(plain, language=None), replace(plain, guards=doubted)):
        found = mixed.transcribe_with(order, given, asked, word_times=True)
        alone = [
            merged[int(name)].transcribe([clip], asked, word_times=True)[0]
            for name, clip in zip(order, given, strict=True)
        ]
        assert [one.text for one in found] == [one.text for one in alone]
        assert [one.mean_logprob for one in found] == pytest.approx([one.mean_logprob for one in alone], abs=1e-3)
    assert found[0].text != found[2].text
    mixed.remove("0")
    (left,) = mixed.transcribe_with(["1"], [clips[1]], plain)
    assert left.text == merged[1].transcribe([clips[1]], plain)[0].text
    (made / "0" / "adapter" / "adapter_model.safetensors").write_bytes(b"damaged")
    with pytest.raises(ModelError, match="does not fit its base"):
        mixed.add("0", made / "0" / "adapter")


WORKS: dict[Capability, Callable[[Case, Path], None]] = {
    "word times": has_word_times,
    "no-speech": has_no_speech,
    "language detection": has_language_detection,
    "guards": has_guards,
    "prompt": has_prompt,
    "translation": has_translation,
    "sampling": has_sampling,
    "biased decoding": has_biased_decoding,
    "short context": has_short_context,
    "ctranslate2": has_ctranslate2,
    "adapters": has_adapters,
    "cost estimate": has_cost_estimate,
    "embeddings": has_embeddings,
    "encoder states": has_encoder_states,
    "other programs": has_other_programs,
}


def asked_anyway(case: Case, capability: Capability) -> None:
    """Ask for it where it can be asked for without `require`."""
    recogniser, clips = case.family.load(case.folder), sounds(0.5)
    if capability == "word times":
        recogniser.transcribe(clips, Decoding(max_new_tokens=2), word_times=True)
    elif capability == "guards":
        recogniser.transcribe(clips, Decoding(max_new_tokens=2, guards=Guards()))
    elif capability == "prompt":
        recogniser.transcribe(clips, Decoding(max_new_tokens=2, prompt="so far"))
    elif capability == "translation":
        recogniser.transcribe(clips, Decoding(max_new_tokens=2, task="translate"))
    elif capability == "sampling":
        recogniser.transcribe(clips, Decoding(max_new_tokens=2, temperature=0.5))
    elif capability == "biased decoding":
        known = PersonalVocabulary(terms=(Term("Zoë"),), bonus=1.0)
        recogniser.transcribe(clips, Decoding(max_new_tokens=2, vocabulary=known))
    elif capability == "short context":
        with pytest.raises(UsageError, match="short context"):
            case.family.open_for_training(case.folder, audio_context="trimmed")
        with pytest.raises(UsageError, match="short context"):
            recogniser.context("trimmed")
        recogniser.transcribe(clips, Decoding(max_new_tokens=2, audio_context="trimmed"))
    else:
        require(case.family, capability)


@pytest.mark.parametrize("capability", sorted(REMEDIES))
def test_a_capability_works_or_is_refused_by_name(case: Case, capability: Capability, tmp_path: Path) -> None:
    if capability in case.family.capabilities:
        assert require(case.family, capability) is case.family
        WORKS[capability](case, tmp_path / "made")
        return
    with pytest.raises(UsageError) as refused:
        asked_anyway(case, capability)
    assert case.family.name in str(refused.value)
    assert capability in str(refused.value)
    assert REMEDIES[capability] in str(refused.value)


def test_what_is_not_said_is_not_there(case: Case) -> None:
    """A family without a capability gives no numbers that look as if it had it."""
    (found,) = case.family.load(case.folder).transcribe(sounds(1.0), Decoding(max_new_tokens=4))
    if "no-speech" not in case.family.capabilities:
        assert found.no_speech is None
    if "language detection" not in case.family.capabilities:
        assert (found.language, found.language_probability) == (None, None)
    assert found.words == ()


def test_special_tokens_written_out_in_a_text_are_letters(case: Case) -> None:
    """As in `{"text": "<|endoftext|>"}`: what is learnt, and counted, is how it is spelled."""
    trainable = case.trainable
    texts = ["a <|endoftext|> b", "<|0.00|>hi<|2.00|>", "<|en|>", "[INST]", "<s>a</s>"]
    if case.family.name == "whisper":  # whose time stamps are added tokens that are not special
        trainable.processor.tokenizer.add_tokens(["<|0.00|>", "<|2.00|>"], special_tokens=False)
    for text in texts:
        expected = case.label(text, None)
        assert case.family.text_tokens(trainable, text) == expected[-1 - len(text.encode()) : -1]
        counted = case.family.labels(case.folder)
        assert counted.tokens(text) == len(text.encode())
