"""Undirected play in the tabletop simulator: what the shipped backbone is pretrained on.

Other layouts and other colours than the suite's, no instruction, no success label.
"""

from __future__ import annotations

import numpy as np

from wovr.core.log import RunLog
from wovr.core.seed import stream
from wovr.core.types import Episode
from wovr.envs.tabletop import Player, Tabletop, TabletopConfig, play_scene

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
    frames, states, actions = [observation.frames_BHWC], [observation.states_BS], []
    for _ in range(steps):
        acted = [player.action(state) for player, state in zip(players, observation.states_BS, strict=True)]
        actions.append(np.stack(acted))
        observation = simulator.step(actions[-1])
        frames.append(observation.frames_BHWC)
        states.append(observation.states_BS)
    frames_BTHWC, states_BTS, actions_BTA = (np.stack(rows, axis=1) for rows in (frames, states, actions))
    return [
        Episode(
            frames_THWC=frames_BTHWC[row],
            actions_TA=actions_BTA[row],
            success_T=np.zeros(steps, dtype=np.bool_),  # play has no task
            states_TS=states_BTS[row],
            instruction="",
            suite="tabletop-play",
            task_id=0,
            init_id=number,
            policy="play",
            seed=seed,
            purpose="play",
        )
        for row, number in enumerate(numbers)
    ]
