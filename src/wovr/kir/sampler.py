"""Draw the start states of an update: keyframes and first frames, mixed and balanced over tasks (paper, 4.2)."""

from __future__ import annotations

import math

import numpy as np
from pydantic import Field

from wovr.core.config import Config
from wovr.core.errors import UserError
from wovr.core.seed import stream
from wovr.core.types import StartState
from wovr.kir.bank import KeyframeBank


class SamplerConfig(Config):
    """The mixture of start states."""

    keyframe_fraction: float = Field(0.5, ge=0, le=1)
    """Share of groups that start from keyframes; 0 switches KIR off. The paper says "a portion"."""


def draw_starts(bank: KeyframeBank, groups: int, config: SamplerConfig, *, seed: int, update: int) -> list[StartState]:
    """One start state per group, a pure function of the arguments.

    The number of keyframes is rounded so that over updates the share is exactly `keyframe_fraction`. Tasks take
    turns within either kind, and no start is drawn twice before its task's others. Where the bank holds one kind alone
    (a policy that never failed, an imported set of keyframes), it fills every group. UserError where it is empty.
    """
    keyframes, first_frames = bank.keyframes, bank.first_frames
    if not len(bank):
        raise UserError("keyframe bank: expected start states, found none")
    fraction = config.keyframe_fraction
    if not len(keyframes) or not len(first_frames):
        fraction = 1.0 if len(keyframes) else 0.0
    share = fraction * groups
    from_keyframes = math.floor(share * (update + 1)) - math.floor(share * update)
    rng = stream(seed, "starts", update)
    return _balanced(keyframes, from_keyframes, rng) + _balanced(first_frames, groups - from_keyframes, rng)


def _balanced(bank: KeyframeBank, n: int, rng: np.random.Generator) -> list[StartState]:
    """n starts; tasks in random order take turns, each through its own starts in random order."""
    pools: dict[int, list[StartState]] = {}
    for start in bank:
        pools.setdefault(start.task_id, []).append(start)
    order = rng.permutation(sorted(pools))
    turns = {task: rng.permutation(len(pools[task])) for task in sorted(pools)}
    drawn = []
    for i in range(n):
        turn, place = divmod(i, len(order))
        task = order[place]
        drawn.append(pools[task][turns[task][turn % len(turns[task])]])
    return drawn
