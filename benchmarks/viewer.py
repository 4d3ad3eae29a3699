"""How large a page of the token viewer is, and how long a browser takes to show it.

    python benchmarks/viewer.py [--repeats 5]

Pages of random numbers - no real signal compresses worse - are opened in a fresh context of a real Chromium, offline.
"First paint" is the browser's own entry; "tokens" is when the first rollout is drawn in colour, the number a
reader waits for; "main thread" is CPU time until all its tokens are drawn, which other work on the machine hardly
lengthens. The floor, measured in turn with it, is the same browser opening a page with the same number of plain spans
and no viewer. Results: docs/results/viewer.md.
"""

from __future__ import annotations

import argparse
import random
import shutil
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from playwright.sync_api import sync_playwright

from stepalign.report.page import write_token_page

SIZES = ((10, 2048), (50, 4096))
"""(rollouts, tokens of each), all under two contexts."""
WORDS = (" the", " sum", "x", " =", " 12", "\\frac", "{", "}", " therefore", ".\n", " equals", " we", " have")


def random_signal(rollouts: int, tokens: int, alternatives: int) -> dict[str, Any]:
    """A signal.json with numbers of full entropy, nine steps a rollout."""
    rng = random.Random(0)
    contexts = [{"name": name, "label": name} for name in ("step_aligned", "reference")]
    return {
        "format": 1,
        "model": "random",
        "temperature": 1.0,
        "unit": "nats",
        "contexts": contexts,
        "rollouts": [_rollout(index, tokens, alternatives, contexts, rng) for index in range(rollouts)],
    }


def _rollout(
    index: int, length: int, alternatives: int, contexts: list[dict[str, str]], rng: random.Random
) -> dict[str, Any]:
    pieces = rng.choices(WORDS, k=length)
    tokens, at = [], 0
    for piece in pieces:
        tokens.append({"text": piece, "start": at, "end": at + len(piece), "id": rng.randrange(150_000)})
        at += len(piece)
    student = [-rng.expovariate(1.5) for _ in pieces]
    entropy = [rng.random() for _ in pieces]
    return {
        "rollout_id": f"r{index}",
        "case": "correct",
        "verdict": "correct",
        "question": f"question {index}",
        "text": "".join(pieces),
        "tokens": tokens,
        "steps": [{"label": str(step + 1), "start": at * step // 9, "end": at * (step + 1) // 9} for step in range(9)],
        "contexts": [
            {
                "name": context["name"],
                "text": "".join(rng.choices(WORDS, k=length // 4)),
                "log_ratio": (ratio := [rng.gauss(0, 1) for _ in pieces]),
                "student_log_prob": student,
                "teacher_log_prob": [a + b for a, b in zip(student, ratio, strict=True)],
                "forward_kl": [rng.random() for _ in pieces],
                "student_entropy": entropy,
                "teacher_entropy": [rng.random() for _ in pieces],
                "top_student": (top := _alternatives(length, alternatives, rng)),
                "top_teacher": top,
            }
            for context in contexts
        ],
    }


def _alternatives(length: int, count: int, rng: random.Random) -> list[list[list[Any]]]:
    return [[[word, -rng.expovariate(0.5)] for word in rng.sample(WORDS, count)] for _ in range(length)]


def write_floor(path: Path, tokens: int) -> None:
    """The text of one rollout, twice, as bare spans."""
    rng = random.Random(0)
    spans = "".join(f"<span>{word}</span>" for word in rng.choices(WORDS, k=2 * tokens))
    path.write_text(f"<!doctype html><meta charset=utf-8><body class='viewer ready'>{spans}", encoding="utf-8")


def open_once(browser: Any, path: Path) -> dict[str, float]:
    """Seconds from navigation to first paint, to the first rollout's tokens, and to a step to the next rollout; and
    the CPU seconds of the page's main thread until all tokens of the rollout are drawn."""
    context = browser.new_context(viewport={"width": 1280, "height": 900}, offline=True)
    page = context.new_page()
    counters = context.new_cdp_session(page)
    counters.send("Performance.enable", {"timeDomain": "threadTicks"})
    page.add_init_script("""
        new MutationObserver((_, watcher) => {
          const viewer = document.querySelector('.viewer.ready');
          if (!viewer) return;
          watcher.disconnect();
          requestAnimationFrame(() => setTimeout(() => { window.tokensAt = performance.now(); }, 0));
        }).observe(document, {subtree: true, childList: true, attributes: true});
    """)
    page.goto(path.as_uri())
    page.locator(".viewer.ready").wait_for(timeout=60_000)
    page.wait_for_function("window.tokensAt && performance.getEntriesByType('paint').length", timeout=60_000)
    page.locator("[aria-busy]").wait_for(state="detached", timeout=60_000)
    metrics = {row["name"]: row["value"] for row in counters.send("Performance.getMetrics")["metrics"]}
    found = page.evaluate("[performance.getEntriesByType('paint')[0].startTime, window.tokensAt]")
    times = {"first paint": found[0] / 1e3, "tokens": found[1] / 1e3, "main thread": metrics["TaskDuration"]}
    button = page.locator('[aria-label="Next rollout"]')
    if button.count():
        times["next rollout"] = page.evaluate("""async () => {
          const place = document.querySelector('.place').textContent;
          const start = performance.now();
          document.querySelector('[aria-label="Next rollout"]').click();
          const same = () => document.querySelector('.place').textContent === place;
          while (same()) await new Promise((tick) => setTimeout(tick, 1));
          await new Promise(requestAnimationFrame);
          return (performance.now() - start) / 1e3;
        }""")
    context.close()
    return times


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    repeats = parser.parse_args().repeats
    binary = shutil.which("chromium") or shutil.which("google-chrome")
    if binary is None:
        raise SystemExit("no Chromium on this machine")
    with tempfile.TemporaryDirectory() as name, sync_playwright() as driver:
        pages: dict[str, Path] = {}
        for rollouts, tokens in SIZES:
            title = f"{rollouts} x {tokens}"
            signal = random_signal(rollouts, tokens, 5)
            pages[title] = Path(name) / f"{rollouts}.html"
            start = time.process_time()
            write_token_page(signal, pages[title])
            seconds = time.process_time() - start
            print(f"{title}: {pages[title].stat().st_size / 1e6:.2f} MB, written in {seconds:.1f} s of CPU", flush=True)
            pages[f"{title}, floor"] = Path(name) / f"{rollouts}-floor.html"
            write_floor(pages[f"{title}, floor"], tokens)
        browser = driver.chromium.launch(executable_path=binary, args=["--no-sandbox", "--disable-gpu"])
        found: dict[str, list[dict[str, float]]] = {title: [] for title in pages}
        for _ in range(repeats):
            for title, path in pages.items():
                found[title].append(open_once(browser, path))
        print(f"{browser.version}, {repeats} repeats, medians (least to most)")
        for title, runs in found.items():
            for what in runs[0]:
                values = sorted(run[what] for run in runs)
                print(f"{title:20} {what:14} {statistics.median(values):8.3f} ({values[0]:.3f} to {values[-1]:.3f})")
        browser.close()


if __name__ == "__main__":
    main()
