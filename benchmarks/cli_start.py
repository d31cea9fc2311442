"""Seconds from the start of `wovr --help` to its end, and of an empty interpreter beside it. Prints JSON."""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time


def measure(*arguments: str) -> float:
    began = time.perf_counter()
    subprocess.run([sys.executable, *arguments], check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=15)
    repeats = parser.parse_args().repeats
    commands = {"help": ("-m", "wovr_cli", "--help"), "empty_interpreter": ("-c", "")}
    for command in commands.values():
        measure(*command)  # files are then in memory
    found: dict[str, list[float]] = {name: [] for name in commands}
    for _ in range(repeats):
        for name, command in commands.items():
            found[name].append(measure(*command))
    medians = {name: round(statistics.median(seconds), 3) for name, seconds in found.items()}
    print(json.dumps({"seconds": medians, "repeats": repeats}, indent=2))


if __name__ == "__main__":
    main()
