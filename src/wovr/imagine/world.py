"""World model and reward as a `ChunkWorld`: what a policy is rolled out in instead of the simulator."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from wovr.core.seed import normal
from wovr.core.types import Actions, Frames, StartState
from wovr.envs.chunked import Chunk, Rows, TrajectoryKey
from wovr.imagine.world_model import ImaginedState, WorldModel
from wovr.reward.base import RewardModel


class ImaginedWorld:
    """B imagined trajectories; legend as in `wovr.envs.chunked`.

    A trajectory is a function of its start, its actions and its key. In fp32 it is so up to rounding whatever runs
    beside it; in bf16 matrix products of another batch size may round differently.
    """

    def __init__(self, model: WorldModel, reward: RewardModel, horizon: int) -> None:
        self.model, self.reward, self.horizon = model, reward, horizon
        self.chunk_length, self.action_dim = model.chunk_length, model.action_dim
        self.threshold, self.hold = reward.threshold, reward.hold
        self._state: ImaginedState | None = None
        self._instructions: list[str] = []
        self._keys: list[TrajectoryKey] = []
        self._chunks: list[int] = []

    def instruction(self, start: StartState) -> str:
        return start.instruction

    def reset(self, starts: Sequence[StartState], keys: Sequence[TrajectoryKey]) -> Chunk:
        self.leave()
        return self.add(starts, keys)

    def add(self, starts: Sequence[StartState], keys: Sequence[TrajectoryKey]) -> Chunk:
        """Begin further trajectories, as the last rows. Returns their current frames alone, which are not judged."""
        assert len(starts) == len(keys) > 0
        state = self.model.start(starts)
        self._state = state if self._state is None else self._state.join(state)
        self._instructions += [start.instruction for start in starts]
        self._keys += keys
        self._chunks += [0] * len(starts)
        frames_B1HWC = np.stack([start.memory_MHWC[-1:] for start in starts])
        return _chunk(frames_B1HWC, np.zeros(frames_B1HWC.shape[:2], dtype=np.float32))

    def step(self, actions_BHA: Actions) -> Chunk:
        chunk, following = self.foresee(actions_BHA)
        self.follow(following)
        return chunk

    def foresee(self, actions_BHA: Actions) -> tuple[Chunk, ImaginedState]:
        """What the next chunk would be under these actions, and the state that it would lead to. Nothing advances."""
        assert self._state is not None, "reset comes first"
        shape = self.model.noise_shape(self._state)
        rows = [(key.seed, key.rollout, key.world, chunk) for key, chunk in zip(self._keys, self._chunks, strict=True)]
        draws = {row: normal(shape, row[0], "world-noise", *row[1:]) for row in set(rows)}  # a group shares its draw
        noise = torch.stack([draws[row] for row in rows])
        device = self.model.device
        actions = torch.from_numpy(actions_BHA).to(device)
        _, seen, following = self.model.step(self._state, actions, noise.to(device))
        probability_BT = self.reward.judge(seen, self._instructions)
        return _chunk(seen.frames_BTHWC.cpu().numpy(), probability_BT.cpu().numpy()), following

    def follow(self, following: ImaginedState) -> None:
        """Go to the state that `foresee` gave."""
        self._state = following
        self._chunks = [chunk + 1 for chunk in self._chunks]

    def leave(self) -> None:
        """Give up all trajectories, and the memory that their contexts take."""
        self._state, self._instructions, self._keys, self._chunks = None, [], [], []

    def keep(self, rows: Rows) -> None:
        assert self._state is not None, "reset comes first"
        self._state = self._state.select(rows)
        self._instructions = [self._instructions[row] for row in rows]
        self._keys = [self._keys[row] for row in rows]
        self._chunks = [self._chunks[row] for row in rows]


def _chunk(frames_BTHWC: Frames, probability_BT: NDArray[np.float32]) -> Chunk:
    batch, steps = probability_BT.shape
    return Chunk(frames_BTHWC, probability_BT, np.zeros((batch, steps, 0)), np.zeros(batch, dtype=np.bool_))
