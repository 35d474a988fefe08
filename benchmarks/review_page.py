"""Clip to clip in the review page: from the key to the next entry's text, waveform and playable sound, in Chromium.

    python -m benchmarks.review_page [--steps 200] [--pause 0.6]

Prints the median, the 95th percentile and the slowest step, at the pace of somebody who skims. The sound of the next
three entries is fetched ahead, as for every reviewer. A step ends with the frame after which the waveform with its
word regions is drawn, the text stands in the field and the sound can play. Beside other work on the machine, only the
processor time of the page's main thread means much.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import tempfile
from pathlib import Path

from playwright.sync_api import CDPSession, sync_playwright
from tests.web.chromium import launched, signed_in, until
from tests.web.conftest import served
from tests.web.filled import fill

from voxloop.pipeline import open_loop

TEXT = "the quick brown fox jumps over the lazy dog while nine old owls watch from a tall tree"

# Playing is off: what is timed is what happens before it.
WATCH = """() => {
  window.__steps = [];
  const main = document.querySelector("main");
  let pressed = 0;
  addEventListener("keydown", () => { pressed = performance.now(); }, { capture: true });
  new MutationObserver(() => {
    if (!main.dataset.ready) return;
    const since = pressed;
    requestAnimationFrame(() => setTimeout(() => window.__steps.push(performance.now() - since)));
  }).observe(main, { attributes: true, attributeFilter: ["data-ready"] });
}"""


def measured(steps: int, pause_s: float) -> tuple[list[float], float]:
    """Milliseconds of each step, and the processor time of the page's main thread for one, with all that follows it."""
    words = TEXT.split()
    texts = [" ".join(words[n % 5 : 10 + n % 8]) for n in range(steps + 4)]
    with (
        tempfile.TemporaryDirectory() as folder,
        open_loop(Path(folder) / "ws", create=True) as ws,
        sync_playwright() as playwright,
    ):
        fill(ws, texts, seconds=4.0)
        browser = launched(playwright)
        with served(ws) as server, signed_in(browser, server, "ann") as page:
            page.uncheck("label:has-text('Autoplay') input")
            page.evaluate(WATCH)
            page.evaluate("document.activeElement.blur()")
            page.wait_for_timeout(3000)
            session = page.context.new_cdp_session(page)
            session.send("Performance.enable", {"timeDomain": "threadTicks"})
            before = _cpu_s(session)
            for n in range(steps):
                page.keyboard.press("ArrowRight")
                until(page, f"window.__steps.length === {n + 1}")
                page.wait_for_timeout(1000 * pause_s)
            cpu_ms = 1000 * (_cpu_s(session) - before) / steps
            found: list[float] = page.evaluate("window.__steps")
        browser.close()
    return found, cpu_ms


def _cpu_s(session: CDPSession) -> float:
    metrics = session.send("Performance.getMetrics")["metrics"]
    return float(next(one["value"] for one in metrics if one["name"] == "TaskDuration"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--pause", type=float, default=0.6, help="seconds between two steps")
    parser.add_argument("--out", type=Path, default=Path("build/bench"))
    given = parser.parse_args()
    took, cpu_ms = measured(given.steps, given.pause)
    took.sort()
    result = {
        "steps": len(took),
        "median_ms": round(statistics.median(took), 1),
        "p95_ms": round(took[int(0.95 * (len(took) - 1))], 1),
        "worst_ms": round(took[-1], 1),
        "main_thread_cpu_ms": round(cpu_ms, 1),
        "pause_s": given.pause,
        "machine": platform.processor() or platform.machine(),
    }
    given.out.mkdir(parents=True, exist_ok=True)
    (given.out / "review_page.json").write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
