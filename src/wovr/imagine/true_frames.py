"""Success probability of true frames, by whichever reward model judges imagination."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from wovr.core.seed import normal
from wovr.core.types import Episode
from wovr.imagine.world_model import WorldModel
from wovr.kir.mine import FIRST_FRAME, start_state
from wovr.reward.base import RewardModel, Seen

CHUNKS = 64
"""Chunks whose features are made at once."""


def judge_true(
    model: WorldModel, reward: RewardModel, episode: Episode, name: str, first: int, steps: int, *, seed: int
) -> NDArray[np.float32]:
    """Probabilities (steps,) of the frames after `first`, at least a chunk of them.

    A reward model that reads features is shown whole chunks, each as a rollout that starts there: the last one reaches
    back where steps are left over. The noise depends on `name` and the step of the episode alone.
    """
    assert steps >= model.chunk_length
    if not reward.reads_features:
        frames_1THWC = _frames(episode, model, [first], steps)
        return reward.judge(Seen(frames_1THWC, None), [episode.instruction])[0].cpu().numpy()
    H, stop = model.chunk_length, first + steps
    begins = [*range(first, stop - H + 1, H), *([stop - H] if steps % H else [])]
    probability_T = np.zeros(steps, dtype=np.float32)
    for rows in range(0, len(begins), CHUNKS):
        part = begins[rows : rows + CHUNKS]
        found_BH = reward.judge(_seen(model, episode, name, part, seed), [episode.instruction] * len(part))
        for begin, found_H in zip(part, found_BH.cpu().numpy(), strict=True):
            probability_T[begin - first : begin - first + H] = found_H
    return probability_T


def _seen(model: WorldModel, episode: Episode, name: str, begins: list[int], seed: int) -> Seen:
    H = model.chunk_length
    starts = [start_state(episode, name, t, FIRST_FRAME, model.context.memory_frames) for t in begins]
    frames_BHHWC = _frames(episode, model, begins, H)
    new_BLChw = model.encode(starts, frames_BHHWC)
    actions_BHA = torch.from_numpy(np.stack([episode.actions_TA[t : t + H] for t in begins])).to(model.device)
    noise = torch.stack([normal(tuple(new_BLChw.shape[1:]), seed, f"true-frames/{name}", t) for t in begins])
    state = model.start(starts, frames=False)
    return Seen(frames_BHHWC, model.features(state, actions_BHA, new_BLChw, noise.to(model.device)))


def _frames(episode: Episode, model: WorldModel, begins: list[int], steps: int) -> Tensor:
    """The `steps` frames after each of `begins`."""
    return torch.from_numpy(np.stack([episode.frames_THWC[t + 1 : t + steps + 1] for t in begins])).to(model.device)
