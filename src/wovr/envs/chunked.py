"""Worlds that advance by action chunks: the interface of imagined and true rollouts, and the true one.

A `ChunkWorld` is the common core of imagination and simulation. It judges single frames and leaves horizon and
success to who drives it: `wovr.imagine.rollout`, or the gymnasium environment in `wovr.imagine.env`.

Legend: B trajectories that run, T frames, H chunk length, A action dims, S simulator state size,
P numbers of proprioception; images are height x width x 3.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from wovr.core.errors import UserError
from wovr.core.types import Actions, Frames, SimulatorStart
from wovr.envs.base import Observation, Simulator

StartT = TypeVar("StartT", contravariant=True)
Rows = Sequence[int] | NDArray[np.int64]
"""Numbers of trajectories."""


@dataclass(frozen=True, slots=True)
class TrajectoryKey:
    """Names a trajectory: its every random draw is a function of this key and the number of the chunk."""

    seed: int
    rollout: int
    """Number of the rollout, for example the update that it serves."""
    trajectory: int
    """Number of the trajectory in that rollout, over all ranks."""
    world: int
    """Number of the draws with which the world imagines. A group shares them: its trajectories then differ by what the
    policy did, and not by luck."""


@dataclass(frozen=True, slots=True)
class Chunk:
    """What B trajectories show after a reset (T = 1, the current frame) or after a chunk of actions (T = H)."""

    frames_BTHWC: Frames
    probability_BT: NDArray[np.float32]
    """Success probability of each frame; 0 or 1 where the simulator knows."""
    states_BTS: NDArray[np.float64]
    """Simulator states, as in `Observation`; S = 0 in imagination."""
    lost_B: NDArray[np.bool_]
    """Whether the trajectory's environment was lost: it ends here, and is no trajectory of the policy."""
    wrist_BTHWC: Frames | None = None
    """What the camera at the hand sees, where there is one."""
    proprio_BTP: NDArray[np.float32] | None = None
    """What the robot feels of itself, as in `Observation`, where that is known."""

    def select(self, rows: Rows) -> Chunk:
        """These trajectories alone, in this order."""
        return Chunk(
            self.frames_BTHWC[rows],
            self.probability_BT[rows],
            self.states_BTS[rows],
            self.lost_B[rows],
            None if self.wrist_BTHWC is None else self.wrist_BTHWC[rows],
            None if self.proprio_BTP is None else self.proprio_BTP[rows],
        )

    def first(self, steps: int) -> Chunk:
        """The first frames alone."""
        return Chunk(
            self.frames_BTHWC[:, :steps],
            self.probability_BT[:, :steps],
            self.states_BTS[:, :steps],
            self.lost_B,
            None if self.wrist_BTHWC is None else self.wrist_BTHWC[:, :steps],
            None if self.proprio_BTP is None else self.proprio_BTP[:, :steps],
        )


class ChunkWorld(Protocol[StartT]):
    """B trajectories that advance together by one chunk of H actions and may be dropped one by one."""

    chunk_length: int
    action_dim: int
    horizon: int
    """Longest episode, env steps."""
    threshold: float
    """Success probability from which a frame passes."""
    hold: int
    """Consecutive frames that must pass."""

    def instruction(self, start: StartT) -> str:
        """The task that belongs to a start."""
        ...

    def reset(self, starts: Sequence[StartT], keys: Sequence[TrajectoryKey]) -> Chunk:
        """Drop all trajectories and begin one per start."""
        ...

    def step(self, actions_BHA: Actions) -> Chunk:
        """Advance every trajectory that runs by one chunk."""
        ...

    def keep(self, rows: Rows) -> None:
        """Go on with these rows alone, in this order. The others cost nothing from now on."""
        ...


class ChunkedSimulator:
    """A true simulator as a `ChunkWorld`. Success is the simulator's own, so one frame is enough.

    A larger `hold` makes trajectories run on past success: recordings then show what success looks like. Without
    `every_frame` only the last frame of a chunk, which the policy sees, is rendered, and fills the others' place.
    """

    threshold = 0.5

    def __init__(self, simulator: Simulator, chunk_length: int, *, hold: int = 1, every_frame: bool = False) -> None:
        self.simulator, self.chunk_length, self.hold, self.every_frame = simulator, chunk_length, hold, every_frame
        self.action_dim, self.horizon = simulator.action_dim, simulator.horizon
        self._instructions = {task.task_id: task.instruction for task in simulator.tasks}
        self._environments = 0
        self._rows_B = np.zeros(0, dtype=np.int64)

    def instruction(self, start: SimulatorStart) -> str:
        if start.task_id not in self._instructions:
            known = ", ".join(map(str, self._instructions))
            raise UserError(f"task {start.task_id}: expected a task of suite {self.simulator.suite} ({known})")
        return self._instructions[start.task_id]

    def reset(self, starts: Sequence[SimulatorStart], keys: Sequence[TrajectoryKey]) -> Chunk:
        """The keys are not used: a simulator draws nothing but its initial states, which are numbered."""
        assert len(starts) == len(keys)
        self._environments, self._rows_B = len(starts), np.arange(len(starts))
        return self._chunk([self.simulator.reset(starts)])

    def step(self, actions_BHA: Actions) -> Chunk:
        assert actions_BHA.shape == (len(self._rows_B), self.chunk_length, self.action_dim), actions_BHA.shape
        active = np.zeros(self._environments, dtype=np.bool_)
        active[self._rows_B] = True
        all_actions = np.zeros((self.chunk_length, self._environments, self.action_dim), dtype=np.float32)
        all_actions[:, self._rows_B] = actions_BHA.swapaxes(0, 1)
        last = self.chunk_length - 1
        observations = [
            self.simulator.step(actions, active, render=self.every_frame or step == last)
            for step, actions in enumerate(all_actions)
        ]
        return self._chunk(observations)

    def keep(self, rows: Rows) -> None:
        self._rows_B = self._rows_B[np.asarray(rows, dtype=np.int64)]

    def _chunk(self, observations: list[Observation]) -> Chunk:
        rows_B = self._rows_B
        shown = observations if self.every_frame else [observations[-1]] * len(observations)
        wrist = [observation.wrist_BHWC[rows_B] for observation in shown if observation.wrist_BHWC is not None]
        proprio = [seen.proprio_BP[rows_B] for seen in observations if seen.proprio_BP is not None]
        return Chunk(
            np.stack([observation.frames_BHWC[rows_B] for observation in shown], axis=1),
            np.stack([observation.success_B[rows_B] for observation in observations], axis=1).astype(np.float32),
            np.stack([observation.states_BS[rows_B] for observation in observations], axis=1),
            observations[-1].lost_B[rows_B],
            np.stack(wrist, axis=1) if wrist else None,
            np.stack(proprio, axis=1) if proprio else None,
        )
