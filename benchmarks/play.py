"""How `wovr play` answers, and whether its memory grows: a browser plays for some minutes, as people do.

    python benchmarks/play.py RUN [--minutes 10] [--seed 0] [--out results.json]

Headless Chromium (the system's) and the server run on the cores that this process has. Every press of a key is timed
on the page, from its keydown to the repaint with the first frame that contains it: from rest, and as a change while
another key is held. Between presses the worlds are switched, policies drive and the world begins anew. Memory is the
server's resident set; the first minute warms up.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from machine import write
from playwright.sync_api import Page, sync_playwright

KEYS = ("ArrowLeft", "ArrowRight", "ArrowUp", "ArrowDown")
WARM_UP_S, SAMPLE_S = 60, 10
FLAGS = ["--no-sandbox", "--disable-gpu"]


def resident(pid: int) -> float:
    """MB."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(re.findall(r"VmRSS:\s+(\d+) kB", status)[0]) / 1000


def answer(page: Page, key: str) -> tuple[float, float]:
    """Hold a key until a frame contains it: (key to frame, last chunk) in ms."""
    page.evaluate("document.getElementById('latency').textContent = ''")
    page.keyboard.down(key)
    page.wait_for_function("() => document.getElementById('latency').textContent", timeout=60_000)
    return milliseconds(page, "latency"), milliseconds(page, "chunk")


def milliseconds(page: Page, name: str) -> float:
    return float(re.sub(r"\D", "", page.inner_text(f"#{name}")) or "nan")


def one_round(page: Page, rng: np.random.Generator, seen: dict[str, list[float]]) -> None:
    """Some seconds of play."""
    page.keyboard.press(str(rng.choice(["f", "k", "r"])))
    page.keyboard.press(str(rng.choice(["1", "2"])))
    for _ in range(int(rng.integers(2, 5))):
        page.wait_for_timeout(int(rng.integers(300, 900)))
        one, other = (KEYS[i] for i in rng.permutation(len(KEYS))[:2])
        latency, chunk = answer(page, one)
        seen["from_rest"].append(latency)
        seen["chunk"].append(chunk)
        page.wait_for_timeout(int(rng.integers(100, 900)))
        latency, chunk = answer(page, other)
        seen["while_moving"].append(latency)
        seen["chunk"].append(chunk)
        page.wait_for_timeout(int(rng.integers(50, 500)))
        for key in (one, other):
            page.keyboard.up(key)
    if rng.random() < 0.3:
        page.keyboard.press("p")
        page.wait_for_timeout(3000)
    if rng.random() < 0.3:
        page.keyboard.press("Space")


def play(page: Page, pid: int, minutes: float, seed: int) -> dict[str, Any]:
    rng, begun = np.random.default_rng(seed), time.monotonic()
    seen: dict[str, list[float]] = {"from_rest": [], "while_moving": [], "chunk": []}
    memory: list[tuple[float, float]] = []
    while (now := time.monotonic() - begun) < 60 * minutes:
        if not memory or now - memory[-1][0] >= SAMPLE_S:
            memory.append((now, resident(pid)))
        one_round(page, rng, seen)
    memory.append((time.monotonic() - begun, resident(pid)))
    warm = [megabytes for at, megabytes in memory if at >= min(WARM_UP_S, 30 * minutes)]
    presses = seen["from_rest"] + seen["while_moving"]
    return {
        "key_to_frame_ms": {
            name: percentiles(values)
            for name, values in (("all", presses), ("from_rest", seen["from_rest"]), ("moving", seen["while_moving"]))
        },
        "chunk_ms": percentiles(seen["chunk"]),
        "memory_mb": {"first": round(warm[0], 1), "last": round(warm[-1], 1), "largest": round(max(warm), 1)},
        "memory_mb_over_time": [[round(at), round(megabytes, 1)] for at, megabytes in memory],
        "minutes": round((time.monotonic() - begun) / 60, 1),
    }


def percentiles(values: list[float]) -> dict[str, float]:
    middle, high = np.percentile(values, [50, 95])
    return {"median": round(float(middle), 1), "p95": round(float(high), 1), "n": len(values)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="run folder")
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--seed", type=int, default=0, help="of what is played")
    parser.add_argument("--out", type=Path, help="where to write the JSON beside printing it")
    arguments = parser.parse_args()

    command = [sys.executable, "-m", "wovr_cli", "play", str(arguments.run), "--port", "0"]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert server.stdout is not None
    address = server.stdout.readline().split()[-1]
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=FLAGS)
        page = browser.new_page(viewport={"width": 1280, "height": 900})
        page.goto(address)
        page.wait_for_function("() => document.getElementById('seat').textContent === 'You drive.'")
        found = play(page, server.pid, arguments.minutes, arguments.seed)
        browser.close()
    server.send_signal(signal.SIGINT)
    found["exit_status"] = server.wait(60)
    found["cores"] = len(os.sched_getaffinity(0))
    found["load_after"] = round(os.getloadavg()[0], 2)
    write(found, arguments.out)


if __name__ == "__main__":
    main()
