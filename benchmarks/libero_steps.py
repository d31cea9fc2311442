"""Env steps per second of LIBERO, beside the loop over its own environment that most code runs. Prints JSON.

Every way is measured in turn, round after round, so that a machine that is busy with other things is so for all of
them; `cpu_ms` are what the processes themselves used per env step, which such company changes less.

    python benchmarks/libero_steps.py --assets FOLDER --out benchmarks/results/libero-steps_cpu2_DATE.json
"""

from __future__ import annotations

import argparse
import itertools
import os
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack, closing
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import psutil
from machine import write

from wovr.core.types import SimulatorStart
from wovr.envs.libero import Libero, LiberoConfig
from wovr.envs.libero.install import find_assets, find_package, prepare, working_gl
from wovr.envs.libero.suites import load_initial_states, task_file

SUITE, TASK, NUMBER = "libero_goal", "turn_on_the_stove", 7
ACTIONS_TA = np.random.default_rng(0).uniform(-0.3, 0.3, (8, 7)).astype(np.float32)
SAMPLES = (4, 1)
"""Per pixel: as LIBERO's pictures have them, and the least."""
EVERY = {"every_frame": 1, "one_frame_in_8": 8, "no_frame": 0}
Measured = tuple[float, float]
"""Env steps per second, CPU seconds per env step."""


def naive(size: int, stack: ExitStack) -> Callable[[], Measured]:
    """LIBERO's own environment with the agent's camera, stepped in this process: every frame, mirror images too."""
    from libero.libero.envs import OffScreenRenderEnv

    file = str(task_file(SUITE, TASK))
    env = OffScreenRenderEnv(
        bddl_file_name=file, camera_heights=size, camera_widths=size, camera_names=["agentview"], ignore_done=True
    )
    stack.callback(env.close)
    env.seed(0)
    env.reset()
    env.set_init_state(load_initial_states(SUITE, TASK)[0])

    def run() -> Measured:
        began, used = time.perf_counter(), time.process_time()
        for action_A in ACTIONS_TA:
            env.step(action_A)
        return len(ACTIONS_TA) / (time.perf_counter() - began), (time.process_time() - used) / len(ACTIONS_TA)

    return run


def ours(libero: Libero, every: int) -> Callable[[], Measured]:
    """The worker processes, each with one environment; a frame every so many steps, or none."""
    batch = libero.max_batch
    libero.reset([SimulatorStart(NUMBER, row) for row in range(batch)])
    workers = [psutil.Process(worker.pid) for worker in libero._workers]

    def used() -> float:
        return sum(sum(worker.cpu_times()[:2]) for worker in workers)

    def run() -> Measured:
        began, before = time.perf_counter(), used()
        for step, action_A in enumerate(ACTIONS_TA, start=1):
            libero.step(np.stack([action_A] * batch), render=every > 0 and step % every == 0)
        steps = batch * len(ACTIONS_TA)
        return steps / (time.perf_counter() - began), (used() - before) / steps

    return run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--assets", type=Path)
    parser.add_argument("--sizes", type=int, nargs="+", default=[256, 128])
    parser.add_argument("--workers", type=int, nargs="+", default=[1, len(os.sched_getaffinity(0))])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    results: dict[str, Any] = {}
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        prepare(find_package(), find_assets(arguments.assets), working_gl(), folder)
        for size in arguments.sizes:
            ways = {"naive": naive(size, stack)}
            chosen = LiberoConfig(image_size=size, tasks=(TASK,), assets=arguments.assets)
            for workers, samples in itertools.product(sorted(set(arguments.workers)), SAMPLES):
                config = chosen.model_copy(update={"workers": workers, "samples": samples})
                libero = stack.enter_context(closing(Libero(config)))
                how = f"{workers} workers, {samples} samples"
                ways |= {f"{name}, {how}": ours(libero, every) for name, every in EVERY.items()}
            rounds = [{name: run() for name, run in ways.items()} for _ in range(arguments.rounds)]
            results[f"{size} px"] = summary(rounds)
    write({"task": f"{SUITE} {NUMBER} {TASK}", "gl": working_gl(), "rounds": arguments.rounds} | results, arguments.out)


def summary(rounds: list[dict[str, Measured]]) -> dict[str, Any]:
    """Medians over rounds; ratios within a round, to the naive loop and of rendering in a step."""
    result: dict[str, Any] = {}
    for name in rounds[0]:
        result[name] = {
            "steps_per_second": round(median(found[name][0] for found in rounds), 2),
            "cpu_ms": round(1e3 * median(found[name][1] for found in rounds), 1),
            "times_naive": round(median(found[name][0] / found["naive"][0] for found in rounds), 2),
        }
        if name.startswith("every_frame"):
            without = name.replace("every_frame", "no_frame")
            share = median(1 - found[without][1] / found[name][1] for found in rounds)
            result[name]["share_of_rendering"] = round(share, 2)
    return result


if __name__ == "__main__":
    main()
