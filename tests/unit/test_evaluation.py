"""Measuring a model on frozen references: what is counted, kept and refused."""

from __future__ import annotations

import hashlib
import json
import shutil
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import pytest

from tests.unit import frozen_speech, tiny_whisper
from voxloop import models
from voxloop.errors import UnknownRecord, UsageError
from voxloop.families.decoding import Decoding, Guards
from voxloop.pipeline import open_loop
from voxloop.records import Evaluation, Event, Recording, Transcript
from voxloop.speech import text
from voxloop.speech.audio import decode, from_pcm16, to_pcm16
from voxloop.steps import datasets, evaluation, transcripts
from voxloop.steps.datasets import DatasetRow
from voxloop.steps.evaluation import evaluate, score, scored_rows, significance, sounds
from voxloop.steps.gate import comparison
from voxloop.steps.recordings import ingest
from voxloop.steps.utterances import segment
from voxloop.stores import tables
from voxloop.stores.catalog import to_event
from voxloop.workspace import Workspace


@pytest.fixture
def ws(tmp_path: Path) -> Workspace:
    base = tiny_whisper.make(tmp_path / "base")
    return open_loop(
        tmp_path / "workspace", create=True, base_model=str(base), threads=1, device="cpu", min_snr_db=-99.0
    )


def row(text: str, *, number: int = 0, language: str | None = "en", speaker: str | None = "ann") -> DatasetRow:
    return DatasetRow(
        utterance=f"r{number}:0-16000",
        recording=f"r{number}",
        start=0,
        end=16_000,
        split="test",
        text=text,
        kind="reference",
        transcript=f"t{number}",
        speaker=speaker,
        language=language,
    )


def events(ws: Workspace, type: str) -> list[Event]:
    with ws.read() as reader:
        rows = reader.connection.execute(tables.event.select().where(tables.event.c.type == type))
        return [to_event(row) for row in rows]


def test_a_model_is_decoded_once_and_everything_heard_is_kept(ws: Workspace, tmp_path: Path) -> None:
    frozen = frozen_speech.freeze(ws, tmp_path / "speech", clips=23)
    seen: list[tuple[float, float]] = []
    first = evaluate(ws, progress=lambda done, total: seen.append((done, total)))
    assert seen[-1] == (pytest.approx(23.0), pytest.approx(23.0))
    rows = scored_rows(ws, first)
    assert [r.utterance for r in rows] == [r.utterance for r in datasets.rows(ws, frozen.id, "test")]
    counts = text.total(
        text.word_errors(text.normalise(r.reference, "en"), text.normalise(r.hypothesis, "en")) for r in rows
    )
    scores = first.scores
    assert (scores["errors"], scores["words"], scores["utterances"]) == (counts.errors, counts.units, 23)
    assert scores["wer"] == pytest.approx(counts.rate)
    assert scores["wer_low"] <= scores["wer"] <= scores["wer_high"]
    assert (scores["substitutions"], scores["deletions"], scores["insertions"]) == (
        counts.substitutions,
        counts.deletions,
        counts.insertions,
    )
    assert scores["seconds"] == pytest.approx(23.0)
    assert scores["real_time_factor"] == pytest.approx(scores["decode_seconds"] / 23.0)
    for kind, given in (("silence", sounds.quiet_sounds()), ("noise", sounds.loud_sounds())):
        assert scores[kind]["inputs"] == len(scores[kind]["texts"]) == len(given)
        assert list(scores[kind]["counts"]) == list(given)
        assert scores[kind]["words"] == sum(scores[kind]["counts"].values())
        # What the detector keeps from the model can bring no word, and it hears a voice in few of these.
        assert sum(count > 0 for count in scores[kind]["counts"].values()) <= scores[kind]["reached"] < len(given) / 2
    assert scores["word_times"] is None  # the references have none
    assert scores["joined"]["inputs"] == 1
    assert scores["joined"]["words"] == 5 * 23
    assert {(s["by"], s["name"], s["utterances"]) for s in scores["slices"] if s["by"] == "speaker"} == {
        ("speaker", "ann", 12),
        ("speaker", "bob", 11),
    }
    assert first.normaliser == "whisper-english/1"

    asked: list[tuple[float, float]] = []
    again = evaluate(ws, dataset="frozen", progress=lambda done, total: asked.append((done, total)))
    assert again == first
    assert asked == []
    assert len(events(ws, "model.evaluated")) == 1
    assert evaluate(ws, decoding=Decoding(language="en", beams=2)).id != first.id


def test_only_what_decides_the_text_makes_an_evaluation_another_one(ws: Workspace, tmp_path: Path) -> None:
    frozen_speech.freeze(ws, tmp_path / "speech", clips=4)
    asked = Decoding(language="en", batch_seconds=40.0)
    first = evaluate(ws, decoding=asked)
    assert evaluate(ws, decoding=replace(asked, batch_seconds=10.0)) == first
    assert len(events(ws, "model.evaluated")) == 1
    for other in (replace(asked, max_new_tokens=7), replace(asked, guards=Guards()), replace(asked, beams=2)):
        assert evaluate(ws, decoding=other).id != first.id


def test_an_identity_leaves_out_what_is_at_its_default() -> None:
    """So a field that a later version adds changes no id, as long as its default means what was done before."""
    assert Decoding().identity() == {}
    assert Decoding(batch_seconds=7.0).identity() == {}
    assert Decoding(guards=Guards()).identity() == {"guards": {}}
    changed = Decoding(beams=3, language="vi", guards=Guards(min_logprob=-2.0, temperatures=()))
    assert changed.identity() == {"beams": 3, "language": "vi", "guards": {"min_logprob": -2.0, "temperatures": ()}}

    @dataclass(frozen=True, kw_only=True, slots=True)
    class Later(Decoding):
        prompt: str = ""

    id = evaluation.evaluation_id("m", "d", "test", Decoding(beams=2), "n")
    assert evaluation.evaluation_id("m", "d", "test", Later(beams=2), "n") == id
    assert evaluation.evaluation_id("m", "d", "test", Later(beams=2, prompt="names"), "n") != id
    assert id == "sha256-df244c83dbaad849fe8413149c383a40263fc450d98684e3e02a610fe406bf36"


def test_an_evaluation_under_an_id_of_the_first_formula_is_found(ws: Workspace) -> None:
    """It hashed every field, `batch_seconds` too: [model, dataset, split, decoding.as_dict(), normaliser]."""
    asked = Decoding(language="en", batch_seconds=60.0, engine="ctranslate2-int8", guards=Guards())
    stored = Evaluation(
        id="sha256-847fcb9c5853eba90c85eaa5ea13975973177eeaee376e9098227e3df991bf43",
        model="sha256-model",
        dataset="sha256-dataset",
        split="test",
        decoding=asked.as_dict(),
        normaliser="whisper-english/1",
        scores={"wer": 0.1},
        hypotheses="evaluations/first.jsonl",
    )
    with ws.catalog.write() as tx:
        tx.add(stored)

    def found(decoding: Decoding, normaliser: str = "whisper-english/1") -> str | None:
        one = evaluation.find_evaluation(ws, "sha256-model", "sha256-dataset", "test", decoding, normaliser)
        return one.id if one else None

    assert found(asked) == stored.id
    assert found(replace(asked, batch_seconds=120.0)) == stored.id
    assert found(replace(asked, engine="torch")) is None
    assert found(replace(asked, guards=None)) is None
    assert found(asked, "whisper-basic/1") is None


def test_another_model_of_the_same_weights_hears_the_same(ws: Workspace, tmp_path: Path) -> None:
    frozen_speech.freeze(ws, tmp_path / "speech", clips=8)
    copy = frozen_speech.twin(tmp_path / "base", "copy")
    first, second = evaluate(ws), evaluate(ws, str(copy))
    assert first.id != second.id
    assert scored_rows(ws, first) == scored_rows(ws, second)


def test_what_was_heard_before_a_crash_counts(ws: Workspace, tmp_path: Path) -> None:
    """The blob is written first: the scores that follow, whenever, are of what it holds."""
    frozen = frozen_speech.freeze(ws, tmp_path / "speech", clips=8)
    frozen_speech.remember(ws, models.base_model(ws), frozen, frozen_speech.wrong_in(0.5))
    found = evaluate(ws)
    assert found.scores["wer"] == pytest.approx(0.1)
    assert [r.errors for r in scored_rows(ws, found)].count(1) == 4


def test_a_step_run_by_a_worker_finishes_its_job_even_when_there_is_nothing_new(ws: Workspace, tmp_path: Path) -> None:
    frozen_speech.freeze(ws, tmp_path / "speech", clips=6)
    first = evaluate(ws)
    ws.jobs.listeners = {"test.asked": ("evaluate",)}
    with ws.transaction() as tx:
        tx.emit("test.asked", "anything")
    claim = ws.jobs.claim(["evaluate"])
    assert claim is not None
    assert evaluate(ws.under(claim)) == first
    assert ws.jobs.claim(["evaluate"]) is None
    with ws.read() as reader:
        assert ws.jobs.counts(reader)["evaluate"] == {"done": 1}


def test_only_a_persons_references_test_a_model(ws: Workspace, tmp_path: Path) -> None:
    frozen = frozen_speech.freeze(ws, tmp_path / "speech", clips=6)
    manifest = ws.blobs.get(f"datasets/{frozen.id}.jsonl").decode().splitlines()
    changed = [json.dumps(json.loads(line) | {"kind": "clean"}) for line in manifest[:2]] + manifest[2:]
    ws.blobs.delete(f"datasets/{frozen.id}.jsonl")
    ws.blobs.put(f"datasets/{frozen.id}.jsonl", "\n".join(changed).encode())
    with pytest.raises(
        UsageError, match="2 of 6 texts in the test split of dataset frozen were not written by a person"
    ):
        evaluate(ws)


def test_an_empty_split_and_a_missing_dataset_say_what_to_do(ws: Workspace, tmp_path: Path) -> None:
    with pytest.raises(UnknownRecord, match="dataset build"):
        evaluate(ws)
    frozen_speech.freeze(ws, tmp_path / "speech", clips=6)
    with pytest.raises(UsageError, match=r"val split of dataset frozen is empty.*--ratios"):
        evaluate(ws, split="val")


def test_errors_are_counted_after_normalising_and_the_spelling_beside() -> None:
    found = score([row("Twenty three, please!")], [("23 please", 0.9)], "en")[0]
    assert (found.words, found.errors) == (3, 0)
    assert (found.orthographic_words, found.orthographic_errors) == (3, 3 - 0)
    assert (found.orthographic_characters, found.orthographic_character_errors) == (
        text.character_errors("Twenty three, please!", "23 please").units,
        text.character_errors("Twenty three, please!", "23 please").errors,
    )
    assert (found.reference, found.hypothesis) == ("Twenty three, please!", "23 please")


def test_a_changed_normaliser_is_another_evaluation(ws: Workspace, tmp_path: Path) -> None:
    frozen = frozen_speech.freeze(ws, tmp_path / "speech", clips=6)
    frozen_speech.remember(ws, models.base_model(ws), frozen, lambda _, row: row.text.upper())
    assert evaluate(ws).scores["wer"] == 0
    (ws.folder / "voxloop.toml").write_text("[normaliser.en]\nbase = 'whisper-basic'\ncase = 'keep'\n")
    with open_loop(ws.folder, base_model=ws.settings.base_model) as again:
        frozen_speech.remember(again, models.base_model(again), frozen, lambda _, row: row.text.upper())
        other = evaluate(again)
    assert other.normaliser == "en:whisper-basic/1,case=keep"
    assert other.scores["wer"] == 1
    assert evaluate(ws).normaliser == "whisper-english/1"
    with pytest.raises(UsageError, match="differ in normaliser"):
        comparison.compare(ws, other, evaluate(ws))


def test_an_empty_reference_counts_what_is_heard_in_it() -> None:
    found = score([row("Um."), row("yes", number=1)], [("thank you", 0.2), ("yes", 0.9)], "en")
    assert [(r.words, r.errors, r.insertions) for r in found] == [(0, 2, 2), (1, 0, 0)]
    assert evaluation.wer(found) == 2.0


def test_scripts_without_spaces_are_counted_by_character() -> None:
    found = score([row("你好，世界。", language="zh")], [("你好 世间", None)], "zh")[0]
    assert (found.words, found.errors, found.characters, found.character_errors) == (4, 1, 4, 1)


def test_slices_that_hold_everything_by_length_are_left_out() -> None:
    found = score([row("a", number=1), row("b", number=2, speaker=None)], [("a", None), ("c", None)], "en")
    assert set(evaluation.slices(found)) == {("speaker", "ann"), ("language", "en")}


def test_slices_by_noise_and_session_and_what_was_kept_before_there_were_any() -> None:
    found = score([row("a", number=n) for n in range(4)], [("a", None)] * 4, "en")
    assert {by for by, _ in evaluation.slices(found)} == {"speaker", "language"}
    heard = [
        replace(one, snr_db=snr, session=session)
        for one, snr, session in zip(found, (5.0, 15.0, 30.0, None), ("mon", "mon", "tue", None), strict=True)
    ]
    parts = {key: len(part) for key, part in evaluation.slices(heard).items()}
    assert parts == {
        ("SNR", "below 10 dB"): 1,
        ("SNR", "10 to 20 dB"): 1,
        ("SNR", "20 dB and more"): 1,
        ("session", "mon"): 2,
        ("session", "tue"): 1,
        ("speaker", "ann"): 4,
        ("language", "en"): 4,
    }
    assert all(one["wer_low"] <= one["wer"] <= one["wer_high"] for one in evaluation.scores_of(heard)["slices"])


def test_what_is_known_of_the_recording_is_kept_with_what_was_heard(ws: Workspace, tmp_path: Path) -> None:
    frozen_speech.freeze(ws, tmp_path / "speech", clips=6)
    with ws.transaction() as tx:
        tx.change(Recording, [r.id for r in tx.all(Recording)], session="monday")
    rows = scored_rows(ws, evaluate(ws))
    assert {r.session for r in rows} == {"monday"}
    assert all(r.snr_db is not None for r in rows)


def test_word_times_are_compared_where_the_references_have_them(tmp_path: Path, demo_speech: Path) -> None:
    clips = sorted(demo_speech.glob("*.ogg"))[:3]
    with open_loop(tmp_path / "timed", create=True, base_model="starter", threads=1, device="cpu") as ws:
        stored = [from_pcm16(to_pcm16(decode(clip))) for clip in clips]  # of two likely texts rounding may choose
        with models.loaded(ws, models.base_model(ws)) as starter:
            heard = starter.transcribe(stored, transcripts.decoding(ws, "en"), word_times=True)
        assert all(one.words for one in heard)
        (tmp_path / "said").mkdir()
        lines = []
        for clip, one in zip(clips, heard, strict=True):
            shutil.copy(clip, tmp_path / "said")
            lines.append(json.dumps({"file": clip.name, "text": one.text, "speaker": "ann", "language": "en"}))
        (tmp_path / "said" / "metadata.jsonl").write_text("\n".join(lines))
        ingest(ws, tmp_path / "said", processes=1)
        with ws.read() as reader:
            recordings = reader.all(Recording)
        segment(ws, [recording.id for recording in recordings])
        late = {one.text: [asdict(replace(word, start=word.start + 0.1)) for word in one.words] for one in heard}
        with ws.transaction() as tx:
            for reference in tx.all(Transcript):
                tx.change(Transcript, reference.id, words=late[reference.text])
        datasets.build(ws, ratios=(0.0, 0.0, 1.0))
        found = evaluate(ws)
    assert found.scores["wer"] == 0.0
    times = found.scores["word_times"]
    assert times["words"] > 3
    assert times["start_error_s"] == pytest.approx(0.1, abs=1e-6)
    assert times["end_error_s"] == pytest.approx(0.0, abs=1e-6)
    assert times["in_time"] == 1.0


def test_the_interval_is_clustered_by_recording() -> None:
    rows = [row("a b c d", number=n) for n in range(4) for _ in range(10)]
    heard = [("a b c d" if r.recording in ("r0", "r1") else "x y c d", None) for r in rows]
    scores = evaluation.scores_of(score(rows, heard, "en"))
    low, high = significance.interval([0, 0, 20, 20], [40] * 4, ["0", "1", "2", "3"])
    assert (scores["wer_low"], scores["wer_high"]) == pytest.approx((low, high), abs=0.02)
    assert scores["recordings"] == 4


def test_quiet_sounds_are_quiet_and_noise_is_as_loud_as_soft_speech() -> None:
    quiet, loud = sounds.quiet_sounds(), sounds.loud_sounds()
    assert max(float(abs(wave).max()) for wave in quiet.values()) < 0.2
    levels = {name: 10 * np.log10(np.mean(wave.astype(float) ** 2) + 1e-12) for name, wave in (quiet | loud).items()}
    assert levels["digital silence, 2 s"] == -120.0
    assert levels["hiss, 10 s"] == pytest.approx(-60.0, abs=0.2)
    assert levels["white noise, 10 s"] == pytest.approx(-30.0, abs=0.2)
    assert all(-31 < levels[name] < -21 for name in loud)
    assert all(wave.dtype == np.float32 and (from_pcm16(to_pcm16(wave)) == wave).all() for wave in loud.values())


def test_sounds_are_the_same_in_every_process_and_no_two_are_alike() -> None:
    everything = sounds.quiet_sounds() | sounds.loud_sounds()
    digests = {name: hashlib.sha256(to_pcm16(wave)).hexdigest() for name, wave in everything.items()}
    assert len(set(digests.values())) == len(digests)
    sounds.loud_sounds.cache_clear()
    assert all(
        digests[name] == hashlib.sha256(to_pcm16(wave)).hexdigest() for name, wave in sounds.loud_sounds().items()
    )


def test_pink_noise_has_as_much_power_in_each_octave_and_white_noise_twice_as_much() -> None:
    powers = [np.abs(np.fft.rfft(sounds.loud_sounds()[f"{name}, 10 s"])) ** 2 for name in ("white noise", "pink noise")]
    octaves = [slice(10_000, 20_000), slice(20_000, 40_000)]
    white, pink = (power[octaves[0]].sum() / power[octaves[1]].sum() for power in powers)
    assert (white, pink) == (pytest.approx(0.5, abs=0.1), pytest.approx(1.0, abs=0.1))


def test_the_same_question_about_other_sound_is_another_evaluation(ws: Workspace, tmp_path: Path) -> None:
    """What decides which sound the model is given is part of the question: detector, margins, spans."""
    frozen_speech.freeze(ws, tmp_path / "speech", clips=4)
    first = evaluate(ws)
    assert "silero" in first.decoding["hearing"]
    assert "margins 400 ms" in first.decoding["hearing"]
    with open_loop(ws.folder, base_model=ws.settings.base_model, vad_pad_ms=200) as other:
        assert evaluate(other).id != first.id
    assert evaluate(ws).id == first.id


def test_an_evaluation_from_before_hearing_was_named_is_read_and_not_taken_for_a_new_one(
    ws: Workspace, tmp_path: Path
) -> None:
    frozen_speech.freeze(ws, tmp_path / "speech", clips=4)
    new = evaluate(ws)
    asked = {name: value for name, value in new.decoding.items() if name != "hearing"}
    bare = Decoding.from_dict(asked)
    assert bare.hearing == ""
    lines = [json.loads(line) for line in ws.blobs.get(new.hypotheses).splitlines()]
    old_rows = [{n: v for n, v in line.items() if n not in ("edge_error_s", "detected")} for line in lines]
    ws.blobs.put("evaluations/old.jsonl", "".join(f"{json.dumps(line)}\n" for line in old_rows).encode())
    silence = {"inputs": 4, "seconds": 24.0, "words": 3, "texts": ["you", "", "thank you", ""]}
    old = replace(
        new,
        id=evaluation.evaluation_id(new.model, new.dataset, "test", bare, new.normaliser),
        decoding=asked,
        scores={"wer": 0.5, "cer": 0.2, "words": 20, "utterances": 4, "silence": silence, "slices": []},
        hypotheses="evaluations/old.jsonl",
    )
    with ws.catalog.write() as tx:
        tx.add(old)
    assert len(scored_rows(ws, old)) == 4
    assert evaluate(ws).id == new.id
    with pytest.raises(UsageError, match="differ in decoding"):
        comparison.compare(ws, new, old)
    assert comparison.compare(ws, old, old).verdict == "insufficient evidence"  # it still compares with its like


def test_all_engines_that_serve_are_named(tmp_path: Path) -> None:
    base = tiny_whisper.make(tmp_path / "base")
    asked = {"base_model": str(base), "device": "cpu", "create": True}
    with open_loop(tmp_path / "one", **asked) as ws:
        assert [one.engine for one in evaluation.as_served(ws, models.base_model(ws))] == ["ctranslate2-int8"]
    with open_loop(tmp_path / "two", serving_engines=("ctranslate2-float32", "ctranslate2", "torch"), **asked) as ws:
        model = models.base_model(ws)
        engines = [one.engine for one in evaluation.as_served(ws, model)]
        assert engines == ["ctranslate2-float32", "ctranslate2-int8", "torch"]
        other = [one.engine for one in evaluation.as_served(ws, replace(model, family="voxtral"))]
        assert other == ["torch", "torch", "torch"]
