"""Rows for tests of what follows transcription, without audio where none is listened to."""

from __future__ import annotations

from voxloop.records import Quality, Recording, Transcript, Utterance, utterance_id
from voxloop.workspace import Workspace


def add_utterance(
    ws: Workspace,
    name: str,
    *,
    reference: str | None = None,
    heard: str | None = None,
    confidence: float = 0.9,
    speaker: str | None = None,
    session: str | None = None,
    language: str | None = None,
    duration: float = 1.0,
    parts: int = 1,
    by: str = "ann",
    quality: Quality | None = None,
) -> list[str]:
    """A recording of `parts` utterances of `duration` seconds each; their ids."""
    samples = int(duration * 16_000)
    recording = Recording(
        id=f"sha256-{name}",
        source=name,
        name=name,
        samples=samples * parts,
        speaker=speaker,
        session=session,
        language=language,
    )
    ids = []
    with ws.transaction() as tx:
        tx.add(recording)
        for part in range(parts):
            id = utterance_id(recording.id, part * samples, (part + 1) * samples)
            status = "reviewed" if reference else "transcribed" if heard else "new"
            tx.add(
                Utterance(
                    id=id,
                    recording=recording.id,
                    start=part * samples,
                    end=(part + 1) * samples,
                    speaker=speaker,
                    language=language,
                    status=status,  # type: ignore[arg-type]
                    quality=quality,
                )
            )
            if heard is not None:
                for kind in ("hypothesis", "clean"):
                    tx.add(
                        Transcript(
                            id=f"{kind}-{id}",
                            utterance=id,
                            kind=kind,
                            text=heard,
                            by="model",
                            confidence=confidence,  # type: ignore[arg-type]
                        )
                    )
            if reference is not None:
                tx.add(Transcript(id=f"reference-{id}", utterance=id, kind="reference", text=reference, by=by))
            ids.append(id)
    return ids
