"""faster-whisper behind HTTP as speaches serves it: every request is decoded and transcribed by itself, in its turn.

    python -m benchmarks.serving_peer FOLDER       prints its address, and serves a CTranslate2 folder until it is ended

speaches runs `WhisperModel.transcribe` of one model in a thread for each request; with one worker, which is its
default, CTranslate2 takes one request after the other.
"""

from __future__ import annotations

import socket
import sys
import threading
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

import uvicorn
from anyio import to_thread
from fastapi import FastAPI, Request

from benchmarks.peers import whisper_model


def main() -> None:
    model = whisper_model(Path(sys.argv[1]))
    turn = threading.Lock()
    app = FastAPI()

    def heard(sound: bytes) -> str:
        with TemporaryFile() as file:
            file.write(sound)
            file.seek(0)
            with turn:
                # Greedy and with a detector, as our side runs; guards and temperatures are the same by default.
                segments, _ = model.transcribe(file, language="en", beam_size=1, vad_filter=True)
                return "".join(segment.text for segment in segments).strip()

    @app.post("/v1/audio/transcriptions")
    async def transcriptions(request: Request) -> dict[str, Any]:
        async with request.form() as form:
            sound = await form["file"].read()  # type: ignore[union-attr]
        return {"text": await to_thread.run_sync(heard, sound)}

    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        print(f"http://127.0.0.1:{listening.getsockname()[1]}/v1", file=sys.stderr, flush=True)
        uvicorn.Server(uvicorn.Config(app, log_level="error")).run(sockets=[listening])


if __name__ == "__main__":
    main()
