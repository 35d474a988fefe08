"""The chain that the kill test disturbs, as a process of its own.

    python -m tests.journey.chain WORKSPACE SPEECH KILLS SEED

Loads what is slow to load, then forks the work again and again: ingest, then the
worker until idle. Each child is killed with SIGKILL after a random time until
there were KILLS kills; the last one runs to its end. Prints the kills that hit.
"""

from __future__ import annotations

import os
import random
import signal
import sys
import time
from pathlib import Path

LONGEST_S = 1.2  # of a child's life, before the kill


def once(workspace: Path, speech: Path) -> None:
    """Take the speech in and do all the work that follows from it."""
    from voxloop.automation.worker import work
    from voxloop.pipeline import open_loop
    from voxloop.steps.recordings import ingest

    with open_loop(workspace, create=True) as ws:
        ingest(ws, speech, processes=1)
        work(ws, until_idle=True)


def preload(workspace: Path) -> None:
    """Import and load the model before the forks, so that the kills hit work instead of imports."""
    import numpy as np
    import torch

    from voxloop import models
    from voxloop.pipeline import open_loop
    from voxloop.steps import transcripts, utterances

    torch.set_num_threads(1)
    with open_loop(workspace.with_name("preload"), create=True) as ws:
        model = models.base_model(ws)
        with models.loaded(ws, model) as recogniser:
            recogniser.transcribe([np.zeros(1600, np.float32)], transcripts.decoding(ws))
        utterances.speech_spans(np.zeros(16_000, np.float32), ws.settings)


def main() -> None:
    workspace, speech, kills, seed = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
    chance = random.Random(seed)
    preload(workspace)
    killed = 0
    while killed < kills:
        child = os.fork()
        if child == 0:
            # A child that is done before its kill comes goes over it again, which must change nothing.
            while True:
                once(workspace, speech)
        time.sleep(chance.uniform(0.01, LONGEST_S))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        killed += 1
    once(workspace, speech)
    print(killed)


if __name__ == "__main__":
    main()
