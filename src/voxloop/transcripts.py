"""Speech to text: which model speaks, what it heard, and the text made clean of it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import sqlalchemy as sa

from voxloop import text as _text
from voxloop import utterances as _utterances
from voxloop.errors import ModelError, UnknownRecord, UsageError
from voxloop.families.contract import Decoding, Hypothesis, Recogniser, family
from voxloop.records import SAMPLE_RATE, Model, Transcript, Utterance, Word, seconds
from voxloop.starter import STARTER_DIR
from voxloop.stores import catalog as tables
from voxloop.stores.blobs import sha256_file

if TYPE_CHECKING:
    from voxloop.families.contract import Waveform
    from voxloop.workspace import Workspace

CHAMPION = "champion"
STARTER = "starter"
MODEL_FILES = (".safetensors", ".json", ".txt", ".model")  # what a model folder's identity covers
BLOCK_S = 600.0  # seconds of audio read, transcribed and committed at a time by the command line


# Which model ---------------------------------------------------------------------------------------------------------


def base_model(ws: Workspace, name: str | None = None) -> Model:
    """The model that `name` means, registered in the catalog.

    `name` is an alias (`champion`), a model's id, `starter`, a local folder or a
    Hub id such as `openai/whisper-small`; None means the champion or, before
    there is one, the setting `base_model`. Raises ModelError or UnknownRecord.
    """
    with ws.read() as reader:
        aliased = reader.connection.execute(
            sa.select(tables.alias.c.model).where(tables.alias.c.name == (name or CHAMPION))
        ).scalar()
        if aliased:
            return reader.get(Model, aliased)
        if name == CHAMPION:
            raise UnknownRecord("no model is champion yet: `voxloop model promote MODEL` makes one, on evidence")
        name = name or ws.settings.base_model
        if name != STARTER and not Path(name).is_dir() and "/" not in name:
            return reader.get(Model, name)
    return _register(ws, name)


def _register(ws: Workspace, name: str) -> Model:
    """A model that did not come from a run: the starter, a folder or a Hub id."""
    if name == STARTER:
        folder = STARTER_DIR
    elif Path(name).is_dir():
        folder = Path(name).absolute()
    else:
        folder = _hub_folder(name)
    files = _hash_files(folder)
    if not any(file.endswith(".safetensors") for file in files):
        raise ModelError(
            f"{folder} holds no .safetensors weights: needed is a folder with config.json, tokenizer and safetensors"
        )
    where = name if folder != Path(name).absolute() else str(folder)
    model = Model(id=model_id(files), family=_family_of(folder), base=where, kind="full", where=where, files=files)
    with ws.read() as reader:
        known = reader.find(Model, model.id)
    if known:
        return known
    with ws.catalog.write() as tx:  # true whatever becomes of the job in hand, so not fenced by its claim
        tx.add(model)
        return tx.get(Model, model.id)


@lru_cache(maxsize=32)
def _hash_files(folder: Path) -> dict[str, str]:
    """Hashes of a model's files by name; a folder is not expected to change while it is used."""
    return {
        path.relative_to(folder).as_posix(): sha256_file(path)
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.suffix in MODEL_FILES
    }


def model_id(files: dict[str, str]) -> str:
    """`sha256-<hex>` over the files' names and hashes."""
    lines = "".join(f"{name} {files[name]}\n" for name in sorted(files))
    return f"sha256-{hashlib.sha256(lines.encode()).hexdigest()}"


def _family_of(folder: Path) -> str:
    try:
        found = json.loads((folder / "config.json").read_text()).get("model_type")
    except (OSError, ValueError) as error:
        raise ModelError(f"{folder} holds no readable config.json, so it is no model folder: {error}") from error
    if found != "whisper":
        raise ModelError(f"{folder} holds a model of type {found!r}; this version knows Whisper")
    return "whisper"


def _hub_folder(name: str) -> Path:
    """The local copy of a Hub repository, downloaded once; safetensors only."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        patterns = ["*.json", "*.txt", "*.safetensors", "*.model"]
        return Path(snapshot_download(name, allow_patterns=patterns, ignore_patterns=["*.fp32*", "flax*", "tf*"]))
    except (HfHubHTTPError, LocalEntryNotFoundError, HFValidationError, OSError) as error:
        raise ModelError(
            f"model {name!r} is neither a folder here nor could it be had from the Hugging Face Hub "
            f"({type(error).__name__}): check the name and the network, or give a local folder, or use `starter`"
        ) from error


def model_folder(ws: Workspace, model: Model) -> str:
    """The local folder that a model is loaded from."""
    if model.where == STARTER:
        return str(STARTER_DIR)
    if model.run is not None:
        return str(ws.blobs.folder(model.where))
    return model.where if Path(model.where).is_dir() else str(_hub_folder(model.where))


def device(ws: Workspace) -> str:
    """`cuda` or `cpu`, as set or as found."""
    if ws.settings.device:
        return ws.settings.device
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


_LOADED: dict[tuple[str, str], Recogniser] = {}


def recogniser(ws: Workspace, model: Model) -> Recogniser:
    """The loaded model; the two last used stay in memory, as evaluation needs champion and challenger."""
    import torch

    if ws.settings.threads:
        torch.set_num_threads(ws.settings.threads)
    key = (model.id, device(ws))
    if key not in _LOADED:
        while len(_LOADED) > 1:
            _LOADED.pop(next(iter(_LOADED)))
        _LOADED[key] = family(model.family).load(model_folder(ws, model), device=key[1])
    _LOADED[key] = _LOADED.pop(key)
    return _LOADED[key]


# In the pipeline -----------------------------------------------------------------------------------------------------


def decoding(ws: Workspace, language: str | None = None) -> Decoding:
    """How this workspace reads text off its model."""
    return Decoding(language=language or ws.settings.language or None, batch_seconds=ws.settings.batch_seconds)


def transcribe(ws: Workspace, recordings: str | Sequence[str]) -> list[Transcript]:
    """Transcribe the utterances of recordings that the current model has not heard yet.

    Utterances of all the recordings are decoded together, batched by length. An
    earlier model's hypotheses stay.
    """
    ids = [recordings] if isinstance(recordings, str) else list(recordings)
    model = base_model(ws)
    with ws.read() as reader:
        waiting: list[Utterance] = []
        for id in ids:
            for utterance in reader.all(Utterance, tables.utterance.c.recording == id, order=tables.utterance.c.start):
                if reader.find(Transcript, _hypothesis_id(utterance.id, model.id)) is None:
                    waiting.append(utterance)
    made: list[Transcript] = []
    for language, group in _by_language(waiting):
        for block in blocks(group, [utterance.samples for utterance in group]):
            waveforms = [_utterances.utterance_audio(ws, utterance) for utterance in block]
            heard = recogniser(ws, model).transcribe(waveforms, decoding(ws, language))
            made += [
                Transcript(
                    id=_hypothesis_id(utterance.id, model.id),
                    utterance=utterance.id,
                    kind="hypothesis",
                    text=hypothesis.text,
                    by=model.id,
                    confidence=hypothesis.confidence,
                    words=hypothesis.words,
                )
                for utterance, hypothesis in zip(block, heard, strict=True)
            ]
    with ws.completion() as tx:
        tx.add(*made)
        for transcript in made:
            # Uncertain first; what a person has seen already keeps its place.
            tx.change(Utterance, transcript.utterance, priority=1.0 - (transcript.confidence or 0.0))
            tx.connection.execute(
                sa.update(tables.utterance)
                .where(tables.utterance.c.id == transcript.utterance, tables.utterance.c.status == "new")
                .values(status="transcribed")
            )
        for id in ids:
            tx.emit("transcription.completed", id, key=f"{id}:{model.id}", payload={"model": model.id})
    return made


def restore(ws: Workspace, recordings: str | Sequence[str]) -> list[Transcript]:
    """Make clean texts of the newest hypotheses; both are kept."""
    ids = [recordings] if isinstance(recordings, str) else list(recordings)
    made = []
    with ws.read() as reader:
        for id in ids:
            for utterance in reader.all(Utterance, tables.utterance.c.recording == id):
                newest = latest(reader.all(Transcript, tables.transcript.c.utterance == utterance.id), "hypothesis")
                if newest is None:
                    continue
                made.append(
                    Transcript(
                        id=newest.id.replace("hypothesis", "clean", 1),
                        utterance=utterance.id,
                        kind="clean",
                        text=_text.clean(newest.text, utterance.language),
                        by=newest.by,
                        confidence=newest.confidence,
                        words=newest.words,
                    )
                )
    with ws.completion() as tx:
        tx.add(*made)
        made_by: dict[str, list[str]] = {id: [] for id in ids}
        for transcript in made:
            made_by[transcript.utterance.partition(":")[0]].append(transcript.by)
        for id, models in made_by.items():
            tx.emit("nlp.postprocessed", id, key=f"{id}:{models[0] if models else 'none'}")
    return made


def latest(transcripts: Sequence[Transcript], kind: str) -> Transcript | None:
    """The newest of one kind, from transcripts of one utterance in any order."""
    of_kind = [transcript for transcript in transcripts if transcript.kind == kind]
    return max(of_kind, key=lambda t: (t.created, t.id), default=None)


def _hypothesis_id(utterance: str, model: str) -> str:
    """The same utterance heard by the same model is one transcript, however often it is tried."""
    return f"hypothesis-{hashlib.sha256(f'{utterance} {model}'.encode()).hexdigest()[:26]}"


def _by_language(utterances: Sequence[Utterance]) -> Iterator[tuple[str | None, list[Utterance]]]:
    groups: dict[str | None, list[Utterance]] = {}
    for utterance in utterances:
        groups.setdefault(utterance.language, []).append(utterance)
    yield from groups.items()


# A file, for its text alone ------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True, slots=True)
class Segment:
    """A span of a file with what was heard in it; times in seconds from the file's beginning."""

    start: float
    end: float
    text: str
    confidence: float | None
    words: tuple[Word, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class FileTranscript:
    """The text of one file, which is not taken into the workspace."""

    file: str
    model: str
    duration: float  # seconds
    segments: tuple[Segment, ...]

    @property
    def text(self) -> str:
        return " ".join(segment.text for segment in self.segments if segment.text)


def transcribe_file(
    ws: Workspace,
    file: Path,
    *,
    model: str | None = None,
    language: str | None = None,
    progress: Callable[[float, float], None] | None = None,
) -> FileTranscript:
    """Read one audio file aloud. `progress` is told seconds done and seconds in all. Raises AudioError."""
    from voxloop.audio import decode

    waveform = decode(file)
    record = base_model(ws, model)
    speaker = recogniser(ws, record)
    spans = _utterances.speech_spans(waveform, ws.settings)
    segments: list[Segment] = []
    for block in blocks(spans, [end - start for start, end in spans]):
        heard = speaker.transcribe([waveform[start:end] for start, end in block], decoding(ws, language))
        segments += [_segment(start, end, hypothesis) for (start, end), hypothesis in zip(block, heard, strict=True)]
        if progress:
            progress(block[-1][1] / SAMPLE_RATE, len(waveform) / SAMPLE_RATE)
    return FileTranscript(
        file=str(file), model=record.id, duration=len(waveform) / SAMPLE_RATE, segments=tuple(segments)
    )


def transcribe_waveforms(ws: Workspace, waveforms: Sequence[Waveform], model: Model) -> list[Hypothesis]:
    """Texts of waveforms of at most 30 s by a given model."""
    return recogniser(ws, model).transcribe(waveforms, decoding(ws))


T = TypeVar("T")


def blocks(items: Sequence[T], samples: Sequence[int]) -> Iterator[list[T]]:
    """Items in groups of at most ten minutes of audio, so that progress shows and memory stays bounded."""
    block: list[T] = []
    held = 0
    for item, length in zip(items, samples, strict=True):
        if block and held + length > BLOCK_S * SAMPLE_RATE:
            yield block
            block, held = [], 0
        block.append(item)
        held += length
    if block:
        yield block


def _segment(start: int, end: int, hypothesis: Hypothesis) -> Segment:
    offset = seconds(start)
    words = tuple(
        Word(text=word.text, start=word.start + offset, end=word.end + offset, probability=word.probability)
        for word in hypothesis.words
    )
    return Segment(start=offset, end=seconds(end), text=hypothesis.text, confidence=hypothesis.confidence, words=words)


FORMATS = ("text", "json", "srt", "vtt")


def formatted(transcript: FileTranscript, format: str) -> str:
    """The transcript as `text`, `json`, `srt` (SubRip) or `vtt` (https://www.w3.org/TR/webvtt1/)."""
    if format == "text":
        return transcript.text
    if format == "json":
        return json.dumps(asdict(transcript) | {"text": transcript.text}, ensure_ascii=False)
    if format not in ("srt", "vtt"):
        raise UsageError(f"format {format!r} is not known; known: {', '.join(FORMATS)}")
    comma = "," if format == "srt" else "."
    cues = [
        f"{number}\n{_clock(segment.start, comma)} --> {_clock(segment.end, comma)}\n{segment.text}\n"
        for number, segment in enumerate((s for s in transcript.segments if s.text), 1)
    ]
    return ("WEBVTT\n\n" if format == "vtt" else "") + "\n".join(cues)


def _clock(time_s: float, comma: str) -> str:
    """`hh:mm:ss,mmm`, as subtitles count time."""
    milliseconds = round(time_s * 1000)
    hours, rest = divmod(milliseconds, 3_600_000)
    minutes, rest = divmod(rest, 60_000)
    return f"{hours:02}:{minutes:02}:{rest // 1000:02}{comma}{rest % 1000:03}"
