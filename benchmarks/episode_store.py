"""Speed and size of the episode store: how tight frames pack, appending, random windows for one and for eight loaders.

Frames are rollouts under random commands of the tabletop and, where its assets are (WOVR_LIBERO_ASSETS), of LIBERO, at
64 and 256 px. Rendered scenes stand still where nothing acts; `noisy` adds sensor noise (standard deviation 2 of 255)
to every frame, near the worst case. `gzip-1` is the store's own; the others are what it could use instead: chunks of
one frame or of eight, other filters of h5py and, where hdf5plugin is installed, some that plain builds of HDF5 lack.

Windows are 13 frames at disjoint random places, read through `EpisodeStore`, each process with a store of its own.
Warm: the files are in the page cache. Cold: they were dropped from it (`cold_cached` is the share that was left),
though what lies below a virtual machine may still hold them. CPU time tells more than wall time on a busy machine.

    python benchmarks/episode_store.py [--quick] [--out results.json]
"""

from __future__ import annotations

import argparse
import ctypes
import mmap
import multiprocessing as mp
import os
import random
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any
from unittest import mock

import numpy as np
from machine import write

from wovr.core.seed import stream
from wovr.core.types import Episode, SimulatorStart
from wovr.envs.base import Simulator
from wovr.envs.libero import Libero, LiberoConfig
from wovr.envs.tabletop import Tabletop, TabletopConfig
from wovr.episodes import video as video_module
from wovr.episodes.store import EpisodeStore

WINDOW = 13
"""1 + 4 + 8 frames, a training window."""
STEPS = 128
COUNT = {64: 64, 256: 12}
"""Episodes of a store, by image size: four that differ, over and over."""
LOADERS = (1, 8)
PAPER = 3000 * 512 * 256 * 256 * 3
"""Bytes of 3,000 trajectories of 512 frames at 256 px."""
FRAME_CHUNKS = {"GROUP": 1, "TILE": 1 << 30}


def layouts() -> dict[str, dict[str, Any]]:
    """What to put in the place of the store's own COMPRESSION, GROUP and TILE."""
    gzip = video_module.COMPRESSION
    found: dict[str, dict[str, Any]] = {
        "gzip-1": {},
        "gzip-1, chunks of one frame": FRAME_CHUNKS,
        "gzip-1, shuffled": {"COMPRESSION": gzip | {"shuffle": True}},
        "gzip-4": {"COMPRESSION": gzip | {"compression_opts": 4}},
        "gzip-1, eight frames": {"GROUP": 8},
        "lzf, chunks of one frame": {"COMPRESSION": {"compression": "lzf"}} | FRAME_CHUNKS,
        "none, chunks of one frame": {"COMPRESSION": {}} | FRAME_CHUNKS,
    }
    try:
        import hdf5plugin
    except ImportError:
        return found
    whole = {"TILE": 1 << 30}
    filters = {
        "zstd-3": hdf5plugin.Zstd(clevel=3),
        "blosc2-zstd-3": hdf5plugin.Blosc2(cname="zstd", clevel=3, filters=hdf5plugin.Blosc2.NOFILTER),
    }
    return found | {name: {"COMPRESSION": dict(one)} | whole for name, one in filters.items()}


def record(simulator: Simulator) -> list[Episode]:
    """Four rollouts whose random commands last eight steps each, so that things move."""
    tasks = [task.task_id for task in simulator.tasks[:2]]
    starts = [SimulatorStart(tasks[number % 2], number // 2) for number in range(4)]
    rng = stream(0, "benchmark")
    commands_BTA = rng.uniform(-1, 1, (len(starts), STEPS // 8, simulator.action_dim))
    actions_TBA = np.repeat(commands_BTA, 8, axis=1).astype(np.float32).swapaxes(0, 1)
    episodes = []
    for first in range(0, len(starts), simulator.max_batch):
        rows = slice(first, first + simulator.max_batch)
        seen = [simulator.reset(starts[rows]), *(simulator.step(actions_BA[rows]) for actions_BA in actions_TBA)]
        for row, start in enumerate(starts[rows]):
            episodes.append(
                Episode(
                    frames_THWC=np.stack([one.frames_BHWC[row] for one in seen]),
                    actions_TA=actions_TBA[:, first + row],
                    success_T=np.array([one.success_B[row] for one in seen[1:]]),
                    states_TS=np.stack([one.states_BS[row] for one in seen]),
                    instruction=simulator.tasks[0].instruction,
                    suite=simulator.suite,
                    task_id=start.task_id,
                    init_id=start.init_id,
                    policy="random",
                    seed=0,
                    purpose="benchmark",
                )
            )
    return episodes


def recordings() -> Iterator[tuple[str, list[Episode]]]:
    for size in COUNT:
        with closing(Tabletop(TabletopConfig(image_size=size, horizon=STEPS))) as tabletop:
            episodes = record(tabletop)
        yield f"tabletop_{size}px", episodes
        if os.environ.get("WOVR_LIBERO_ASSETS"):
            with closing(Libero(LiberoConfig(image_size=size, tasks=("6", "7")))) as libero:
                episodes = record(libero)
            yield f"libero_{size}px", episodes
        yield f"{episodes[0].suite.split('_')[0]}_{size}px_noisy", [add_noise(episode) for episode in episodes]


def add_noise(episode: Episode) -> Episode:
    noise_THWC = stream(1, "benchmark", episode.task_id, episode.init_id).normal(0, 2, episode.frames_THWC.shape)
    noisy_THWC = np.clip(np.rint(episode.frames_THWC[:] + noise_THWC), 0, 255)
    return replace(episode, frames_THWC=noisy_THWC.astype(np.uint8))


@contextmanager
def layout(changes: dict[str, Any]) -> Iterator[None]:
    with mock.patch.multiple(video_module, **({"GROUP": video_module.GROUP} | changes)):
        yield


def measure(episodes: Sequence[Episode], changes: dict[str, Any], repeats: int) -> dict[str, Any]:
    raw = sum(episode.frames_THWC[:].nbytes for episode in episodes)
    with tempfile.TemporaryDirectory() as folder, layout(changes):
        store = EpisodeStore(Path(folder))
        began = time.perf_counter()
        for first in range(0, len(episodes), 4):
            store.append(episodes[first : first + 4])
        took = time.perf_counter() - began
        shards = list(store.folder.iterdir())
        ratio = raw / sum(path.stat().st_size for path in shards)
        rng = random.Random(0)
        places = [
            (name, t) for name in store.names for t in range(rng.randrange(STEPS % WINDOW), STEPS - WINDOW, WINDOW)
        ]
        rng.shuffle(places)
        found: dict[str, Any] = {"ratio": round(ratio, 2), "write_mb_per_s": round(raw / took / 1e6)}
        if episodes[0].frames_THWC.shape[1] == 256:
            found["paper_gb"] = round(PAPER / ratio / 1e9)
        for loaders in LOADERS:
            cold = [len(places) / (drop(shards) or seconds(store.folder, places, loaders)) for _ in range(repeats)]
            found[f"windows_per_s_{loaders}_cold"] = round(median(cold))
            warm = [len(places) / seconds(store.folder, places, loaders) for _ in range(repeats)]
            found[f"windows_per_s_{loaders}_warm"] = round(median(warm))
        for what, frames in (("window", WINDOW), ("frame", 1)):
            found[f"cpu_ms_per_{what}"] = round(1000 * cpu_seconds(store.folder, places, frames) / len(places), 2)
        drop(shards)
        found["cold_cached"] = round(max(map(cached, shards)), 3)
    return found


def cpu_seconds(folder: Path, places: Sequence[tuple[str, int]], frames: int) -> float:
    """CPU time in which this process reads so many frames at all places."""
    began = time.process_time()
    store = EpisodeStore(folder)
    for name, t in places:
        store.frames(name, t, t + frames)
    return time.process_time() - began


def seconds(folder: Path, places: Sequence[tuple[str, int]], loaders: int) -> float:
    """Wall time in which so many processes share the windows, from the first that begins to the last that ends."""
    context = mp.get_context("fork")
    barrier, results = context.Barrier(loaders), context.Queue()

    def load(mine: Sequence[tuple[str, int]]) -> None:
        barrier.wait()
        began = time.perf_counter()
        store = EpisodeStore(folder)
        for name, t in mine:
            store.frames(name, t, t + WINDOW)
        results.put((began, time.perf_counter()))

    processes = [context.Process(target=load, args=(places[rank::loaders],)) for rank in range(loaders)]
    for process in processes:
        process.start()
    spans = [results.get(timeout=300) for _ in processes]
    for process in processes:
        process.join()
    return max(end for _, end in spans) - min(began for began, _ in spans)


def drop(paths: Sequence[Path]) -> None:
    """Drop files, which are on disk by now, from the page cache."""
    for path in paths:
        with path.open("rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def cached(path: Path) -> float:
    """Share of a file's pages that the page cache holds, by mincore."""
    with path.open("r+b") as file, mmap.mmap(file.fileno(), 0) as memory:
        pages = (ctypes.c_ubyte * -(-len(memory) // mmap.PAGESIZE))()
        start = ctypes.c_char.from_buffer(memory)
        if ctypes.CDLL(None, use_errno=True).mincore(
            ctypes.c_void_p(ctypes.addressof(start)), ctypes.c_size_t(len(memory)), pages
        ):
            raise OSError(ctypes.get_errno(), "mincore")
        del start
        return float(np.mean(np.frombuffer(pages, dtype=np.uint8) & 1))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="every read once, the store's own layout and frame chunks")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    chosen = layouts()
    own = dict(list(chosen.items())[:2])  # and chunks of one frame
    results: dict[str, dict[str, Any]] = {}
    for name, episodes in recordings():
        many = episodes * (COUNT[episodes[0].frames_THWC.shape[1]] // len(episodes))
        tried = own if arguments.quick or name.endswith("noisy") else chosen
        results[name] = {
            codec: measure(many, changes, 3 if codec in own and not arguments.quick else 1)
            for codec, changes in tried.items()
        }
    write({"window": WINDOW, "results": results}, arguments.out)


if __name__ == "__main__":
    main()
