"""What crosses the borders between subpackages.

Shape legend: B batch, T env steps, H chunk length, A action dims, K action tokens per step of the
policy's output, S simulator state size, P numbers of proprioception; images are height x width x 3, uint8 in [0, 255].
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

Frames = NDArray[np.uint8]
Actions = NDArray[np.float32]


class Video(Protocol):
    """Frames (T, height, width, 3), uint8: an array, or what reads them from disk when they are asked for.

    `video[rows]` takes an index, a slice or an integer array, repeats allowed, and gives an array: `video[:]` is all of
    it. Such arrays are not to be written to.
    """

    @property
    def shape(self) -> tuple[int, ...]: ...

    @property
    def dtype(self) -> np.dtype[np.uint8]: ...

    def __len__(self) -> int: ...

    def __getitem__(self, rows: Any, /) -> Frames: ...


NO_MOTION_GRIP = -1.0
"""Gripper command (open) of the action that is paired with a frame that no action produced."""


def no_motion(action_dim: int) -> Actions:
    """The action paired with a reference or cold-start frame: zero motion, gripper open, as [0 x 6, -1]."""
    action_A = np.zeros(action_dim, dtype=np.float32)
    action_A[-1] = NO_MOTION_GRIP
    return action_A


@dataclass(frozen=True, slots=True)
class Episode:
    """One recorded rollout. `actions_TA[t]` leads from `frames_THWC[t]` to `frames_THWC[t + 1]`."""

    frames_THWC: Video
    """(T + 1, height, width, 3)."""
    actions_TA: Actions
    """(T, A), environment units."""
    success_T: NDArray[np.bool_]
    """(T,), whether the task's condition holds in `frames_THWC[t + 1]`."""
    states_TS: NDArray[np.float64]
    """(T + 1, S), simulator state; S = 0 where there is no simulator."""
    instruction: str
    suite: str
    task_id: int
    init_id: int
    """Number of the fixed initial state."""
    policy: str
    """What acted, for example `base`, `demonstrator`, `rl-round-0`."""
    seed: int
    purpose: str
    """The ledger line that this rollout belongs to, for example `collect` or `refine-1`."""
    wrist_THWC: Video | None = None
    """(T + 1, height, width, 3) from the camera at the hand, where there is one."""
    proprio_TP: NDArray[np.float32] | None = None
    """(T + 1, P), what the robot feels of itself (see `wovr.envs.base.Observation`), where that is known."""

    def __post_init__(self) -> None:
        steps = len(self.actions_TA)
        assert self.frames_THWC.dtype == np.uint8 and len(self.frames_THWC.shape) == 4
        assert len(self.frames_THWC) == steps + 1 == len(self.states_TS), "one frame and state more than actions"
        assert self.success_T.shape == (steps,) and self.success_T.dtype == np.bool_
        assert self.wrist_THWC is None or (len(self.wrist_THWC) == steps + 1 and self.wrist_THWC.dtype == np.uint8)
        proprio_TP = self.proprio_TP
        assert proprio_TP is None or (proprio_TP.ndim == 2 and proprio_TP.dtype == np.float32)
        assert proprio_TP is None or len(proprio_TP) == steps + 1

    def __len__(self) -> int:
        return len(self.actions_TA)

    @property
    def success(self) -> bool:
        """Whether any frame meets the task's condition."""
        return bool(self.success_T.any())


@dataclass(frozen=True, slots=True)
class Task:
    """One task of a suite."""

    task_id: int
    name: str
    instruction: str


@dataclass(frozen=True, slots=True)
class SimulatorStart:
    """Where a true rollout starts: a task and the number of one of its fixed initial states."""

    task_id: int
    init_id: int


@dataclass(frozen=True, slots=True)
class StartState:
    """Where an imagined rollout starts: a keyframe, or an episode's first frame.

    A first frame is the case `step == 0`: every memory frame repeats the reference, with no-motion actions.
    """

    reference_HWC: Frames
    memory_MHWC: Frames
    """The last M frames up to and including the current one, oldest first."""
    memory_actions_MA: Actions
    """The action that produced each memory frame (no-motion where none did)."""
    instruction: str
    task_id: int
    episode: str
    """Name of the episode in the store it was cut from."""
    step: int
    """Index of the current frame in that episode."""
    reason: str
    """`first_frame`, or why it was mined: `gripper`, `success_peak`."""
    init_id: int = -1
    """Initial state of that episode, -1 where unknown."""
    moved_A: Actions | None = None
    """Sum of all motions from o_0 to the current frame, 0 for the gripper; none where unknown. World models that are
    told absolute actions need it."""
