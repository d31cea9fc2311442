"""Env steps per second of the embedded simulator, batched, with rendering: one process, one thread. Prints JSON."""

from __future__ import annotations

import argparse
import json
import statistics
import time

import numpy as np

from wovr.core.types import SimulatorStart
from wovr.envs.tabletop import Tabletop, TabletopConfig


def measure(batch: int, steps: int) -> float:
    simulator = Tabletop(TabletopConfig())
    simulator.reset([SimulatorStart(i % 4, i // 4) for i in range(batch)])
    actions = np.random.default_rng(0).uniform(-1, 1, (steps, batch, 3)).astype(np.float32)
    began = time.perf_counter()
    for actions_BA in actions:
        simulator.step(actions_BA)
    return batch * steps / (time.perf_counter() - began)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 16, 64])
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    found = {
        batch: statistics.median(measure(batch, max(50, 3200 // batch)) for _ in range(arguments.repeats))
        for batch in arguments.batch
    }
    print(json.dumps({"env_steps_per_second": found, "repeats": arguments.repeats, "rendering": True}, indent=2))


if __name__ == "__main__":
    main()
