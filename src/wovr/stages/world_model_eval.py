"""The world model's videos under recorded actions, beside the true ones (5.1, Tables 1 and 4).

The paper's protocol: from the first frame of a held-out trajectory, which also fills the memory, the model imagines
chunk after chunk under the recorded actions. Its memory is its own; no later true frame is seen. Measures cover the
imagined frames up to each horizon. The base world model and the one that PACE refined are judged apart, and so are
the episodes of the base policy and those of evolved ones.

FPS is imagined frames per second of ActionDiT and decoder on one device, `batch_size` rollouts side by side, without
the first chunk. The paper does not say how many of its were.

Departure: recorded episodes end soon after success, where the paper's all have 512 frames. A horizon counts the
episodes that reach it, and n says how many these are.

Legend: B rollouts, T imagined frames, H chunk length.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from wovr.core.checkpoint import write_json, write_text
from wovr.core.dist import precision
from wovr.core.errors import UserError
from wovr.core.hardware import device_name
from wovr.core.seed import normal
from wovr.core.types import Episode
from wovr.imagine.load import DIT, WORLD_CODEC, load_world_model
from wovr.imagine.world_model import WorldModel
from wovr.kir.mine import FIRST_FRAME, start_state
from wovr.metrics.perceptual import load_features, load_pair_measures
from wovr.metrics.prediction import PredictionQuality
from wovr.stages.data import held_out_names
from wovr.stages.experiment import Workplace
from wovr.stages.hallucination import worlds_of
from wovr.stages.replay import ROLLOUT
from wovr.stages.world_model_table import markdown

SUMMARY = Path("world_model_eval/summary.json")
TABLE = Path("world_model_eval/table.md")


def run(place: Workplace) -> dict[str, Any]:
    """Write `world_model_eval/summary.json` and `table.md`; return FPS and the measures at the longest horizon."""
    config, device = place.experiment.world_model_eval, place.dist.device
    pair_measures = load_pair_measures(config.metrics, config.weights, device)
    features = load_features(config.metrics, config.weights, device)
    chosen = _choose(place)
    reached = {steps for named in chosen.values() for _, steps in named}
    left_out = [horizon for horizon in config.horizons if horizon > max(reached, default=0)]
    if left_out:
        which = ", ".join(map(str, left_out))
        place.log.info(f"world_model_eval: horizons left out, no held-out episode is so long: {which}")
    worlds: dict[str, Any] = {}
    folders = worlds_of(place.run.path)
    with place.log.progress("world_model_eval", len(folders) * sum(map(len, chosen.values()))) as bar:
        for world, folder in folders.items():
            model = load_world_model(folder / WORLD_CODEC, folder / DIT, device)
            check_horizons(config.horizons, model.chunk_length)
            speed, episodes = Speed(), {}
            for purpose, named in chosen.items():
                quality = PredictionQuality(config.horizons, pair_measures, features, place.experiment.seed)
                for imagined_THWC, true_THWC in _videos(place, model, named, speed):
                    quality.add(imagined_THWC, true_THWC)
                    bar.advance()
                episodes[purpose] = {"horizons": quality.by_horizon(), "by_frame": quality.by_frame()}
            worlds[world] = {"fps": speed.fps, "episodes": episodes}
    summary = {
        "settings": config.model_dump(mode="json"),
        "left_out": left_out,
        "hardware": device_name(device),
        "precision": precision("auto"),
        "worlds": worlds,
    }
    write_json(place.run.path / SUMMARY, summary)
    write_text(place.run.path / TABLE, markdown(summary))
    return {world: _headline(found) for world, found in worlds.items()}


def check_horizons(horizons: Sequence[int], chunk_length: int) -> None:
    """UserError unless every horizon is a whole number of chunks."""
    for horizon in horizons:
        if horizon % chunk_length:
            raise UserError(
                f"world_model_eval.horizons: expected multiples of the chunk length {chunk_length}, found {horizon}"
            )


def _choose(place: Workplace) -> dict[str, list[tuple[str, int]]]:
    """(name, steps) of held-out episodes by purpose, oldest first; steps is the longest horizon that one reaches."""
    config, store = place.experiment.world_model_eval, place.episodes()
    held = held_out_names(store, place.experiment.collect.held_out, place.experiment.refine.rounds)
    chosen = {}
    for purpose, names in held.items():
        lengths = [(name, store.info(name).length) for name in names]
        reach = [(name, max((h for h in config.horizons if h <= length), default=0)) for name, length in lengths]
        chosen[purpose] = [(name, steps) for name, steps in reach if steps][: config.trajectories]
    return chosen


class Speed:
    """Imagined frames per second. The first chunk, in which buffers and kernels are made, does not count."""

    def __init__(self) -> None:
        self._frames, self._seconds, self._warm = 0, 0.0, False

    def add(self, frames: int, seconds: float) -> None:
        """Count one chunk of all rollouts of a batch."""
        if self._warm:
            self._frames, self._seconds = self._frames + frames, self._seconds + seconds
        self._warm = True

    @property
    def fps(self) -> float | None:
        """None after a single chunk."""
        return self._frames / self._seconds if self._frames else None


def _videos(
    place: Workplace, model: WorldModel, named: Sequence[tuple[str, int]], speed: Speed
) -> Iterator[tuple[Tensor, Tensor]]:
    """(imagined, true) frames after the first, (T, height, width, 3) uint8, of each (name, T)."""
    store, size = place.episodes(), place.experiment.world_model_eval.batch_size
    for first in range(0, len(named), size):
        part = named[first : first + size]
        episodes = [store.open(name) for name, _ in part]
        steps = [T for _, T in part]
        imagined = imagine(model, episodes, steps, seed=place.experiment.seed, first=first, speed=speed)
        for imagined_THWC, episode, T in zip(imagined, episodes, steps, strict=True):
            yield imagined_THWC, torch.from_numpy(episode.frames_THWC[1 : T + 1])


def imagine(
    model: WorldModel, episodes: Sequence[Episode], steps: Sequence[int], *, seed: int, first: int, speed: Speed
) -> list[Tensor]:
    """The first `steps` recorded actions of each episode in imagination: frames (T, height, width, 3) uint8.

    `first` is the number of the first episode: numbers, and not batches, decide the noise.
    """
    H = model.chunk_length
    state = model.start([start_state(one, "", 0, FIRST_FRAME, model.context.memory_frames) for one in episodes])
    shape = model.noise_shape(state)
    frames: list[list[Tensor]] = [[] for _ in episodes]
    running = list(range(len(episodes)))
    for t in range(0, max(steps), H):
        left = [row for row, i in enumerate(running) if steps[i] > t]
        if len(left) < len(running):
            state, running = state.select(left), [running[row] for row in left]
        actions_BHA = torch.from_numpy(np.stack([episodes[i].actions_TA[t : t + H] for i in running])).to(model.device)
        draws = [normal(shape, seed, "world-noise", ROLLOUT, first + i, t // H) for i in running]
        noise_BLChw = torch.stack(draws).to(model.device)
        began = time.perf_counter()
        _, seen, state = model.step(state, actions_BHA, noise_BLChw)
        frames_BHHWC = seen.frames_BTHWC.cpu()  # waits for the GPU
        speed.add(H * len(running), time.perf_counter() - began)
        for i, frames_HHWC in zip(running, frames_BHHWC, strict=True):
            frames[i].append(frames_HHWC)
    return [torch.cat(parts) for parts in frames]


def _headline(found: dict[str, Any]) -> dict[str, Any]:
    longest = {
        purpose: dict([max(of["horizons"].items(), key=lambda item: int(item[0]))])
        for purpose, of in found["episodes"].items()
        if of["horizons"]
    }
    return {"fps": found["fps"], **longest}
