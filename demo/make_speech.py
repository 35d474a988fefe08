"""Make the demo's own speech anew: `python demo/make_speech.py` writes `demo/speech/`.

The same espeak-ng makes the same clips.
One synthetic speaker, "coral", says two dozen household commands in Caribbean English: an accent and words the starter
has never heard. Speed, pitch, room and noise vary from clip to clip, as a person's do.
"""

import argparse
import json
import random
from pathlib import Path
from typing import Final

import numpy as np
import soundfile

from voxloop.starter import synthesis
from voxloop.starter.synthesis import SAMPLE_RATE, Voice, Wave
from voxloop.starter.texts import DEMO_COMMANDS

SPEAKER: Final = "coral"
ACCENT: Final = "en-029"  # Caribbean English, one of synthesis.RESERVED_ACCENTS
VARIANT: Final = "Annie"  # one of synthesis.RESERVED_VARIANTS
TAKES: Final = 11  # of each command: 264 clips


def take(text: str, *, rng: random.Random, noise: np.random.Generator) -> Wave:
    """One clip (N,) at 16 kHz: the command at its own speed, pitch and loudness, in a room, with noise."""
    voice = Voice(accent=ACCENT, variant=VARIANT, speed_wpm=rng.randint(125, 195), pitch=rng.randint(38, 62))
    wave = synthesis.speak(text, voice=voice)
    wave = np.pad(wave, (rng.randint(800, 4_000), rng.randint(800, 4_000)))
    wave = synthesis.change_speed(wave, factor=rng.uniform(0.95, 1.05))
    wave = synthesis.reverberate(wave, decay_s=rng.uniform(0.05, 0.25), wet=rng.uniform(0.1, 0.5), rng=noise)
    wave = synthesis.add_noise(wave, snr_db=rng.uniform(14, 32), slope=rng.choice((0.0, 1.0, 2.0)), rng=noise)
    loudness = 10 ** rng.uniform(-0.6, -0.1)
    return (wave / max(1e-6, float(np.abs(wave).max())) * loudness).astype(np.float32)


def main() -> None:
    """Write the clips and `metadata.jsonl`."""
    parser = argparse.ArgumentParser(description="Make the demo's speech.")
    parser.add_argument("--out", type=Path, default=Path(__file__).resolve().parent / "speech")
    folder = parser.parse_args().out
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob("*.ogg"):
        old.unlink()
    rows = []
    for number in range(TAKES):
        for text in DEMO_COMMANDS:
            name = f"{text.replace(' ', '-')}-{number + 1:02d}.ogg"
            wave = take(text, rng=random.Random(f"{name}"), noise=np.random.default_rng(len(rows)))
            soundfile.write(folder / name, wave, SAMPLE_RATE, format="OGG", subtype="OPUS", compression_level=0.9)
            rows.append(
                {
                    "file": name,
                    "text": text,
                    "speaker": SPEAKER,
                    "language": "en",
                    "source": f"espeak-ng, voice {ACCENT}+{VARIANT}, demo/make_speech.py",
                    "license": "CC0-1.0",
                }
            )
    (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    size = sum(path.stat().st_size for path in folder.iterdir())
    print(f"{len(rows)} clips of {SPEAKER} in {folder}, {size / 1e6:.2f} MB")


if __name__ == "__main__":
    main()
