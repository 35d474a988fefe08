"""Convert rows to Label Studio tasks and its annotations to texts. Pure functions.

The formats are https://labelstud.io/guide/tasks (tasks, `data`),
https://labelstud.io/guide/predictions and https://labelstud.io/guide/task_format
(annotations), for the template https://labelstud.io/templates/transcribe_audio.

Label Studio keeps a task's `data` unchanged but not the author and time of an imported
annotation: it sets them to the importing user and the current time, and refuses unknown
authors (`completed_by`, label_studio/tasks/serializers.py). So authors, times and ids are
stored in `data`, and `completed_by` is left to Label Studio.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from voxloop.steps.review.rows import Incoming, ReviewRow

FROM, TO = "transcription", "audio"  # names of the tags below, which the results have to name
LABELLING_CONFIG = """<View>
  <Audio name="audio" value="$audio" zoom="true" hotkey="ctrl+enter" />
  <Header value="Provide Transcription" />
  <TextArea name="transcription" toName="audio" rows="4" editable="true" maxSubmissions="1" />
</View>
"""

# The names of exported clips; Label Studio adds a random prefix to the name of an uploaded file.
_CLIP = re.compile(r"(sha256-[0-9a-f]{64})[_:](\d+)-(\d+)")
_EMAIL = re.compile(r"[^\s,<>]+@[^\s,<>]+")


def task(rows: Sequence[ReviewRow]) -> dict[str, Any]:
    """Convert one utterance to a task; `rows` are its references, oldest first, or one row without a text."""
    last = rows[-1]
    written = [row for row in rows if row.reference]
    data: dict[str, Any] = {
        "audio": last.audio,
        "utterance": last.utterance,
        "recording": last.recording,
        "start": last.start,
        "end": last.end,
        "duration": last.duration,
        "speaker": last.speaker,
        "language": last.language,
        "status": last.status,
        "confidence": last.confidence,
        "references": [
            {"id": row.reference, "by": row.by, "created": row.created, "text": row.text} for row in written
        ],
        "earlier": written[0].earlier if written else "",
    }
    if last.status == "rejected":
        data |= {"reason": last.reason, "rejected_by": last.rejected_by}
    made: dict[str, Any] = {"data": data, "annotations": [], "predictions": []}
    if last.machine_text:
        made["predictions"].append(
            {
                "model_version": last.machine or "",
                "score": last.confidence,
                "result": [_result(f"prediction-{last.utterance}", last.machine_text)],
            }
        )
    for row in written:
        when = _iso(row.created or 0.0)
        made["annotations"].append(
            {
                "result": [_result(row.reference or "", row.text)],
                "was_cancelled": False,
                "ground_truth": False,
                "created_at": when,
                "updated_at": when,
                "lead_time": row.seconds,
            }
        )
    return made


def incoming(made: Any) -> list[Incoming]:
    """The texts of one task, oldest first. The task is one of our exports, or Label Studio's JSON or JSON-MIN.

    An unchanged text of ours keeps its author and time. Raises ValueError if it is not a task
    or does not name its utterance.
    """
    if not isinstance(made, dict):
        raise ValueError(f"a task must be a JSON object, not {type(made).__name__}")
    data = made.get("data")
    if not isinstance(data, dict):
        if "annotations" in made or "predictions" in made:
            raise ValueError("the task has no `data`")
        data = made  # JSON-MIN: data and results side by side
    utterance = utterance_of(data)
    ours = [one for one in data.get("references") or [] if isinstance(one, dict) and one.get("id")]
    knows = (*str(data.get("earlier") or "").split(), *(str(one["id"]) for one in ours))
    if data is made:
        annotations: Sequence[Any] = [made] if _minimal_text(made) else []
    else:
        annotations = made.get("annotations") or made.get("completions") or []
    found = []
    for annotation in annotations:
        if not isinstance(annotation, dict) or annotation.get("was_cancelled"):
            continue
        text = _minimal_text(made) if data is made else text_of(annotation.get("result"))
        if not text:
            continue
        known = next((one for one in reversed(ours) if " ".join(str(one.get("text")).split()) == text), None)
        if known is not None:
            ours.remove(known)
        found.append(_incoming(utterance, text, annotation, known, knows))
    found.sort(key=lambda one: one.created or 0.0)
    if data.get("status") == "rejected":
        found.append(
            Incoming(utterance=utterance, rejected=str(data.get("reason") or ""), by=_name(data.get("rejected_by")))
        )
    return found


def _incoming(
    utterance: str, text: str, annotation: Mapping[str, Any], ours: Mapping[str, Any] | None, knows: tuple[str, ...]
) -> Incoming:
    lead = annotation.get("lead_time")
    seconds = float(lead) if isinstance(lead, int | float) and not isinstance(lead, bool) else None
    if ours is not None:
        created = ours.get("created")
        return Incoming(
            utterance=utterance,
            text=str(ours["text"]),
            by=_name(ours.get("by")),
            created=float(created) if isinstance(created, int | float) else None,
            reference=str(ours["id"]),
            knows=knows,
            seconds=seconds,
        )
    # A text's time is the time of its last change.
    when = parse_time(annotation.get("updated_at")) or parse_time(annotation.get("created_at"))
    return Incoming(utterance=utterance, text=text, by=author(annotation), created=when, knows=knows, seconds=seconds)


def utterance_of(data: Mapping[str, Any]) -> str:
    """The id of a task's utterance, from its data or from the clip's file name. Raises ValueError."""
    if data.get("utterance"):
        return str(data["utterance"])
    clip = _CLIP.search(str(data.get("audio") or ""))
    if clip is None:
        raise ValueError("the task does not name its utterance: `data.utterance` is missing")
    return f"{clip[1]}:{clip[2]}-{clip[3]}"


def author(annotation: Mapping[str, Any]) -> str | None:
    """The author of an annotation: the email address if known, else the user's name or number in Label Studio."""
    by = annotation.get("completed_by", annotation.get("annotator"))
    if isinstance(by, dict):
        full = f"{by.get('first_name') or ''} {by.get('last_name') or ''}".strip()
        return _name(by.get("email") or by.get("username") or full) or _numbered(by.get("id"))
    if isinstance(by, str) and by.strip():
        return by.strip()
    told = str(annotation.get("created_username") or "").strip()  # "First Last email, number"
    email = _EMAIL.search(told)
    return (email[0] if email else told) or _numbered(by)


def text_of(result: Any) -> str:
    """The text of an annotation: its text areas, in the order of their regions if they have any."""
    if not isinstance(result, list):
        return ""
    areas = [one for one in result if isinstance(one, dict) and one.get("type") == "textarea"]
    values = [one.get("value") for one in areas if isinstance(one.get("value"), dict)]
    values.sort(key=lambda value: float(value.get("start") or 0.0) if value else 0.0)
    return " ".join(" ".join(_texts(value.get("text")) for value in values if value).split())


def parse_time(told: Any) -> float | None:
    """Convert `2021-03-09T22:16:08.728353Z` to seconds since the epoch; None if it is not a time."""
    if not isinstance(told, str):
        return None
    try:
        when = datetime.fromisoformat(told)
    except ValueError:
        return None
    return (when if when.tzinfo else when.replace(tzinfo=UTC)).timestamp()


def _minimal_text(made: Mapping[str, Any]) -> str:
    value = made.get(FROM)
    if isinstance(value, dict):
        value = value.get("text")
    return " ".join(_texts(value).split())


def _texts(value: Any) -> str:
    if isinstance(value, str):
        return value
    return " ".join(str(one) for one in value) if isinstance(value, list) else ""


def _result(id: str, text: str) -> dict[str, Any]:
    return {"id": id, "from_name": FROM, "to_name": TO, "type": "textarea", "value": {"text": [text]}}


def _iso(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat().replace("+00:00", "Z")


def _name(value: Any) -> str | None:
    return value.strip() if isinstance(value, str) and value.strip() else None


def _numbered(value: Any) -> str | None:
    return f"label-studio:{value}" if isinstance(value, int) and not isinstance(value, bool) else None
