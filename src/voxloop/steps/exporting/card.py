"""The card of an exported model (README.md): what it is, its error rates, and how to run it.

It contains no names of people, no paths and no file names of the workspace. External text is escaped.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from voxloop import __version__, hub, models
from voxloop.errors import VoxloopError, counted
from voxloop.families.contract import ExportFormat
from voxloop.families.decoding import Decoding
from voxloop.records import Dataset, Evaluation, Run
from voxloop.steps import datasets
from voxloop.stores import tables

if TYPE_CHECKING:
    from voxloop.records import Model
    from voxloop.steps.exporting.trial import Outcome, Trial
    from voxloop.workspace import Workspace

LIBRARIES: Mapping[ExportFormat, str] = {
    "transformers": "transformers",
    "ctranslate2": "ctranslate2",
    "ggml": "whisper.cpp",
    "peft": "peft",
}
ISO_639 = re.compile(r"[a-z]{2,3}")
STARTER_LICENCE = "cc-by-sa-4.0"
# Recipe entries that reveal locations, or who looks after the run.
PRIVATE = ("noise_folder", "replay_from", "trackers", "why")


def write(
    ws: Workspace,
    model: Model,
    formats: Sequence[ExportFormat],
    tried: Trial | None,
    *,
    nested: bool,
    completed: bool,
    not_to_share: int = 0,
) -> str:
    """Return the card as Markdown with front matter for the Hub.

    `nested`: each format has its own folder. `not_to_share`: number of training speakers who permit no sharing.
    """
    with ws.read() as reader:
        run = reader.find(Run, model.run) if model.run else None
        dataset = reader.find(Dataset, run.dataset) if run else None
        measured = reader.all(Evaluation, tables.evaluation.c.split == "test", order=tables.evaluation.c.created.desc())
    base = _base(ws, model)
    after = next((one for one in measured if one.model == model.id), None)
    before = next((one for one in measured if base and after and _comparable(one, after, base.id)), None)
    languages = _languages(ws, dataset)
    parts = [
        _front_matter(model, base, formats, languages, after),
        f"# {_title(model, base)}\n",
        _origin(model, run, base),
        *_measured(before, after),
        *_trial(tried),
        *_data(ws, dataset),
        *_usage(formats, base, nested=nested, trimmed=bool(tried and tried.context == "trimmed")),
        *_limits(model, tried, completed, not_to_share),
        *_settings(run),
    ]
    return "\n".join(part.rstrip("\n") + "\n" for part in parts)


def escaped(value: object) -> str:
    """Escape external text, so that Markdown shows it literally on one line."""
    line = " ".join(str(value).split())
    return re.sub(r"([\\`*_{}\[\]<>()#+!|~$&-])", r"\\\1", line)


def _base(ws: Workspace, model: Model) -> Model | None:
    if model.run is None:
        return None
    try:
        return models.base_model(ws, model.base)
    except VoxloopError:
        return None  # it was deleted: the card omits it


def _comparable(one: Evaluation, after: Evaluation, base: str) -> bool:
    return (
        one.model == base
        and one.dataset == after.dataset
        and one.normaliser == after.normaliser
        # Compare only the beam size; the base is decoded with its own audio context.
        and Decoding.from_dict(one.decoding).beams == Decoding.from_dict(after.decoding).beams
    )


def _called(model: Model) -> str:
    """Return a base model's public name."""
    if model.where == models.STARTER:
        return "Voxloop's starter"
    if model.run is None and not Path(model.where).is_absolute():
        return hub.repository(model.where)
    return f"a local model ({model.id.removeprefix('sha256-')[:12]})"


def _title(model: Model, base: Model | None) -> str:
    return escaped(model.name or (f"{_called(base)}, fine-tuned" if base else _called(model)))


def _front_matter(
    model: Model,
    base: Model | None,
    formats: Sequence[ExportFormat],
    languages: Sequence[str],
    after: Evaluation | None,
) -> str:
    """Write YAML with every value as JSON, which is valid YAML."""
    root = base or model
    tags = [model.family, "voxloop", *(LIBRARIES[one] for one in formats)]
    told: dict[str, Any] = {
        "library_name": LIBRARIES[formats[0]],
        "pipeline_tag": "automatic-speech-recognition",
        "tags": list(dict.fromkeys([*tags, *(["lora"] if model.kind == "adapter" else [])])),
    }
    if languages:
        told["language"] = list(languages)
    if root.run is None and root.where == models.STARTER:
        told["license"] = STARTER_LICENCE
    elif root.run is None and not Path(root.where).is_absolute():
        original = hub.original(hub.repository(root.where)) or hub.repository(root.where)
        told["base_model"] = original
        told["base_model_relation"] = "adapter" if tuple(formats) == ("peft",) else "finetune" if base else "quantized"
    if after is not None:
        result = {
            "task": {"type": "automatic-speech-recognition"},
            "dataset": {"name": "frozen test references (private)", "type": "private", "split": "test"},
            "metrics": [{"type": "wer", "value": round(100 * after.scores["wer"], 2), "name": "WER"}],
        }
        told["model-index"] = [{"name": "voxloop model", "results": [result]}]
    lines = [f"{key}: {json.dumps(value, ensure_ascii=False)}" for key, value in told.items()]
    return "\n".join(["---", *lines, "---", ""])


def _origin(model: Model, run: Run | None, base: Model | None) -> str:
    if run is None:
        return f"{escaped(_called(model))}, exported by Voxloop {__version__}. `{model.id}`\n"
    how = "LoRA adapters" if run.method == "lora" else "all weights"
    of = escaped(_called(base)) if base else "a base model that has been deleted"
    return f"{of}, fine-tuned ({how}) and exported by Voxloop {__version__}. `{model.id}`\n"


def _measured(before: Evaluation | None, after: Evaluation | None) -> Iterator[str]:
    yield "## Evaluation\n"
    if after is None:
        yield "Not evaluated: run `voxloop evaluate` to measure a model on frozen test references.\n"
        return
    rows = [("after", after)] if before is None else [("before", before), ("after", after)]
    lines = ["| | WER | 95 % interval | CER | clips | words |", "|---|---|---|---|---|---|"]
    for label, one in rows:
        s = one.scores
        bounds = f"{100 * s['wer_low']:.1f} to {100 * s['wer_high']:.1f} %"
        lines.append(
            f"| {label} | {100 * s['wer']:.1f} % | {bounds} | {100 * s['cer']:.1f} % "
            f"| {s['utterances']} | {s['words']} |"
        )
    yield "\n".join(lines) + "\n"
    decoding = Decoding.from_dict(after.decoding)
    how = "greedy" if decoding.beams == 1 else f"{decoding.beams} beams"
    yield (
        f"Measured on references that people wrote or accepted, and that training did not use. Normaliser: "
        f"{escaped(after.normaliser)}. Decoding: {escaped(decoding.engine)}, {how}, audio context "
        f"{decoding.audio_context}. Confidence intervals: bootstrap over recordings.\n"
    )


def _trial(tried: Trial | None) -> Iterator[str]:
    yield "## In other programs\n"
    if tried is None:
        yield "The export was not tested in other programs.\n"
        return
    if tried.wer is None:
        yield "There were no test references: the table shows only which programs could open the model.\n"
    else:
        yield (
            f"Each program transcribed the same test clips during the export: {tried.clips} "
            f"{'clip' if tried.clips == 1 else 'clips'}, {tried.seconds:.0f} s, {tried.words} "
            f"{'word' if tried.words == 1 else 'words'}. Voxloop: WER {100 * tried.wer:.1f} %.\n"
        )
    lines = ["| program | version | WER | texts that differ from Voxloop's | |", "|---|---|---|---|---|"]
    lines += [_line(one, tried) for one in tried.outcomes]
    yield "\n".join(lines) + "\n"
    if tried.remedy:
        yield f"**WER more than 1 point above Voxloop's**: {tried.remedy}.\n"
    if any(one.late for one in tried.outcomes):
        yield "Segment end times are unreliable: some are after the end of the clip.\n"


def _line(one: Outcome, tried: Trial) -> str:
    if one.missing:
        return f"| {one.program} | {one.version or '–'} | – | – | not tested: {escaped(one.missing)} |"
    if one.wer is None:
        return f"| {one.program} | {one.version} | – | – | opens |"
    note = "worse" if one in tried.worse else ""
    return f"| {one.program} | {one.version} | {100 * one.wer:.1f} % | {one.different} of {tried.clips} | {note} |"


def _languages(ws: Workspace, dataset: Dataset | None) -> list[str]:
    if dataset is None:
        return []
    found = {row.language for row in datasets.rows(ws, dataset.id) if row.language}
    return sorted(code for code in found if ISO_639.fullmatch(code))


def _data(ws: Workspace, dataset: Dataset | None) -> Iterator[str]:
    if dataset is None:
        return
    rows = datasets.rows(ws, dataset.id)
    train = [row for row in rows if row.split == "train"]
    speakers = len({row.speaker for row in train if row.speaker})
    languages = ", ".join(_languages(ws, dataset)) or "unknown"
    yield "## Training data\n"
    yield (
        f"- train: {_clips(len(train))}, {60 * dataset.hours.get('train', 0):.1f} minutes, "
        f"{speakers or 'unnamed'} speaker{'' if speakers == 1 else 's'}\n"
        f"- val: {_clips(dataset.clips.get('val', 0))}, test: {_clips(dataset.clips.get('test', 0))}\n"
        f"- languages: {languages}\n"
        f"- human transcripts: {sum(row.kind == 'reference' for row in train)} of {len(train)}\n"
        f"- dataset `{dataset.id}`\n"
    )


def _clips(count: int) -> str:
    return f"{count:,} {'clip' if count == 1 else 'clips'}"


def _usage(formats: Sequence[ExportFormat], base: Model | None, *, nested: bool, trimmed: bool) -> Iterator[str]:
    yield "## How to run it\n"
    for one in formats:
        place = f"FOLDER/{one}" if nested else "FOLDER"
        yield from _USAGE[one](place, base)
    if "transformers" in formats:
        place = "FOLDER/transformers" if nested else "FOLDER"
        yield (
            f"Voxloop: `VOXLOOP_BASE_MODEL={place} voxloop transcribe recording.wav`"
            + (" feeds clips at their own length, as in training" if trimmed else "")
            + "\n"
        )


def _transformers(place: str, base: Model | None) -> Iterator[str]:
    yield (
        "transformers:\n\n```python\nfrom transformers import pipeline\n\n"
        f'asr = pipeline("automatic-speech-recognition", model="{place}")\n'
        'print(asr("recording.wav", return_timestamps=True)["chunks"])\n```\n'
    )


def _ctranslate2(place: str, base: Model | None) -> Iterator[str]:
    yield (
        "faster-whisper:\n\n```python\nfrom faster_whisper import WhisperModel\n\n"
        f'segments, _ = WhisperModel("{place}").transcribe("recording.wav")\n'
        "for segment in segments:\n    print(segment.start, segment.end, segment.text)\n```\n"
    )


def _ggml(place: str, base: Model | None) -> Iterator[str]:
    yield f"whisper.cpp:\n\n```sh\nwhisper-cli -m {place}/ggml-model.bin -f recording.wav\n```\n"


def _peft(place: str, base: Model | None) -> Iterator[str]:
    known = hub.original(hub.repository(base.where)) if base and base.run is None and "/" in base.where else None
    local = base is None or base.where == models.STARTER or Path(base.where).is_absolute() or known is None
    yield (
        "PEFT:\n\n```python\nfrom peft import PeftModel\n"
        "from transformers import AutoModelForSpeechSeq2Seq\n\n"
        f'base = AutoModelForSpeechSeq2Seq.from_pretrained("{f"{place}/base" if local else known}")\n'
        f'model = PeftModel.from_pretrained(base, "{place}").merge_and_unload()\n```\n'
    )


_USAGE = {"transformers": _transformers, "ctranslate2": _ctranslate2, "ggml": _ggml, "peft": _peft}


def _limits(model: Model, tried: Trial | None, completed: bool, not_to_share: int) -> Iterator[str]:
    yield "## Limits\n"
    lines = []
    if not_to_share:
        who = counted(not_to_share, "speaker of its training data has", "speakers of its training data have")
        lines.append(f"- **Not for sharing:** {who} not consented to it.")
    lines += ["- Voices, rooms and topics that the training data lacks may be recognised worse."] if model.run else []
    if completed:
        lines.append(
            "- It was not trained to predict time stamps. Its vocabulary was extended so that programs that request "
            "them get the text as one segment from 0.00 s to the end of the audio."
        )
    if tried and tried.context == "trimmed":
        lines.append(
            "- It was trained on clips at their own length. All programs but Voxloop pad every clip to 30 s, which "
            "may raise the error rate: see the table above."
        )
    if model.forgotten:
        lines.append(
            f"- Removed from the workspace since training: {model.forgotten} of its training utterances. A model "
            "cannot unlearn them."
        )
    lines.append("- The licence of its base model also applies to it.")
    yield "\n".join(lines) + "\n"


def _settings(run: Run | None) -> Iterator[str]:
    if run is None:
        return
    yield "## Training settings\n"
    known = {name: value for name, value in sorted(run.recipe.items()) if name not in PRIVATE}
    lines = ["| setting | value |", "|---|---|"]
    lines += [
        f"| {escaped(name)} | {escaped(json.dumps(value, ensure_ascii=False))} |" for name, value in known.items()
    ]
    yield "\n".join(lines) + "\n"
