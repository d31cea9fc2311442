"""Speed and size of the episode store, as JSON: appending, random windows, compression, for the codecs of h5py.

Frames are tabletop rollouts under random actions, at 64 px and at 256 px. Rendered scenes are flatter than
photographs, so each size is measured again with sensor noise (standard deviation 2 of 255), near the worst case.
`lzf` and `none` are what the store could use instead of its gzip.

    python benchmarks/episode_store.py [--episodes 16] > benchmarks/results/episode_store_HARDWARE_DATE.json
"""

from __future__ import annotations

import argparse
import json
import platform
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from unittest import mock

import numpy as np

from wovr.core.seed import stream
from wovr.core.types import Episode, SimulatorStart
from wovr.envs.tabletop.simulator import Tabletop, TabletopConfig
from wovr.episodes import store as store_module
from wovr.episodes.store import EpisodeStore

WINDOW = 13
"""1 + 4 + 8 frames, a training window."""
READS = 100
REPEATS = 5
COMPRESSIONS: dict[str, dict[str, object]] = {
    "gzip-1": store_module.COMPRESSION,
    "gzip-4": {"compression": "gzip", "compression_opts": 4},
    "lzf": {"compression": "lzf"},
    "none": {},
}


def record(image_size: int, count: int) -> list[Episode]:
    """Rollouts whose random commands last eight steps each, so that things move."""
    simulator = Tabletop(TabletopConfig(image_size=image_size))
    rng = stream(0, "benchmark", image_size)
    starts = [SimulatorStart(number % 4, number) for number in range(count)]
    observations = [simulator.reset(starts)]
    chunks = rng.uniform(-1, 1, (count, simulator.horizon // 8, simulator.action_dim))
    actions_BTA = np.repeat(chunks, 8, axis=1).astype(np.float32)
    observations += [simulator.step(actions_BA) for actions_BA in actions_BTA.swapaxes(0, 1)]
    return [
        Episode(
            frames_THWC=np.stack([seen.frames_BHWC[row] for seen in observations]),
            actions_TA=actions_BTA[row],
            success_T=np.array([seen.success_B[row] for seen in observations[1:]]),
            states_TS=np.stack([seen.states_BS[row] for seen in observations]),
            instruction=simulator.tasks[start.task_id].instruction,
            suite=simulator.suite,
            task_id=start.task_id,
            init_id=start.init_id,
            policy="random",
            seed=0,
            purpose="benchmark",
        )
        for row, start in enumerate(starts)
    ]


def add_noise(episode: Episode) -> Episode:
    rng = stream(1, "benchmark", episode.init_id)
    noisy = episode.frames_THWC + rng.normal(0, 2, episode.frames_THWC.shape)
    return replace(episode, frames_THWC=np.clip(np.rint(noisy), 0, 255).astype(np.uint8))


def measure(episodes: Sequence[Episode], compression: dict[str, object]) -> dict[str, float]:
    with tempfile.TemporaryDirectory() as folder, mock.patch.object(store_module, "COMPRESSION", compression):
        store = EpisodeStore(Path(folder))
        write_seconds = best(lambda: store.append(episodes))
        size = (store.folder / "shard_00000.hdf5").stat().st_size
        rng = stream(2, "benchmark")
        names = rng.choice(store.names, READS)
        starts = rng.integers(len(episodes[0]) - WINDOW, size=READS)
        windows_seconds = best(
            lambda: [store.frames(name, t, t + WINDOW) for name, t in zip(names, starts, strict=True)]
        )
        episodes_seconds = best(lambda: [store.read(name) for name in store.names[: len(episodes)]])
    frames = sum(len(episode.frames_THWC) for episode in episodes)
    return {
        "write_frames_per_s": round(frames / write_seconds),
        "read_window_ms": round(1000 * windows_seconds / READS, 2),
        "read_window_frames_per_s": round(READS * WINDOW / windows_seconds),
        "read_episode_ms": round(1000 * episodes_seconds / len(episodes), 2),
        "compression_ratio": round(sum(episode.frames_THWC.nbytes for episode in episodes) / size, 2),
        "kib_per_episode": round(size / 1024 / len(episodes), 1),
    }


def best(work: Callable[[], object]) -> float:
    """Wall seconds of the fastest of a few runs, which other jobs on the machine disturb least."""
    seconds = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - start)
    return min(seconds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--episodes", type=int, default=16)
    count = parser.parse_args().episodes
    results: dict[str, dict[str, dict[str, float]]] = {}
    for image_size in (64, 256):
        clean = record(image_size, count)
        for kind, episodes in (("rendered", clean), ("noisy", [add_noise(episode) for episode in clean])):
            results[f"{image_size}px_{kind}"] = {
                name: measure(episodes, compression) for name, compression in COMPRESSIONS.items()
            }
    print(json.dumps({"machine": platform.processor() or platform.machine(), "results": results}, indent=2))


if __name__ == "__main__":
    main()
