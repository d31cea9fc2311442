"""Undirected play in the tabletop simulator: what the shipped backbone is pretrained on.

Other layouts than the suite's, blocks and plates in colours that the suite's do not have, no instruction, no success
label.
"""

from __future__ import annotations

import numpy as np

from wovr.core.log import RunLog
from wovr.core.seed import stream
from wovr.core.types import Episode
from wovr.envs.tabletop import Player, Tabletop, TabletopConfig, play_scene
from wovr.stages.scripted import record

BATCH = 64


def play_episodes(count: int, steps: int, *, seed: int, log: RunLog) -> list[Episode]:
    """`count` episodes of `steps` actions; episode i is a function of (seed, i)."""
    simulator = Tabletop(TabletopConfig())
    episodes: list[Episode] = []
    with log.progress("play", count) as bar:
        for first in range(0, count, BATCH):
            numbers = range(first, min(first + BATCH, count))
            episodes += _play(simulator, numbers, steps, seed)
            bar.advance(len(numbers))
    return episodes


def _play(simulator: Tabletop, numbers: range, steps: int, seed: int) -> list[Episode]:
    streams = [stream(seed, "play", number) for number in numbers]
    observation = simulator.reset_scenes([play_scene(random) for random in streams], [0] * len(streams))
    players = [Player(plates, random) for plates, random in zip(simulator.plates_B22, streams, strict=True)]
    recorded = [arrays for arrays in record(simulator, observation, players, steps) if arrays is not None]
    return [
        Episode(
            **(arrays | {"success_T": np.zeros(steps, dtype=np.bool_)}),  # play has no task
            instruction="",
            suite="tabletop-play",
            task_id=0,
            init_id=number,
            policy="play",
            seed=seed,
            purpose="play",
        )
        for arrays, number in zip(recorded, numbers, strict=True)
    ]
