"""The simulator protocol: what a true environment offers to the stages.

Legend: B environments, A action dims, S simulator state size, P numbers of proprioception.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from wovr.core.types import Actions, Frames, SimulatorStart, Task


@dataclass(frozen=True, slots=True)
class Observation:
    """What B simulated environments show after a reset or a step."""

    frames_BHWC: Frames
    success_B: NDArray[np.bool_]
    """Whether the task's condition holds now."""
    states_BS: NDArray[np.float64]
    """Simulator states; NaN pads those of tasks that have fewer numbers than others."""
    lost_B: NDArray[np.bool_]
    """Whether the environment was lost with its process: what it shows means nothing until the next reset."""
    wrist_BHWC: Frames | None = None
    """What the camera at the hand sees, where it was asked for."""
    proprio_BP: NDArray[np.float32] | None = None
    """What the robot feels of itself now, where the simulator tells it; its numbers and units are the simulator's."""


class Simulator(Protocol):
    """B environments that step together. Frames are uint8, actions are environment units, float32."""

    suite: str
    image_size: int
    action_dim: int
    horizon: int
    """Longest episode, env steps."""
    tasks: Sequence[Task]
    num_initial_states: int
    """Fixed initial states per task that evaluation uses; larger numbers are valid and disjoint from these."""
    max_batch: int
    """Most environments that run side by side. Speed and memory depend on it, trajectories do not."""

    def reset(self, starts: Sequence[SimulatorStart]) -> Observation:
        """Start one environment per entry of `starts`; B becomes `len(starts)`."""
        ...

    def step(
        self, actions_BA: Actions, active_B: NDArray[np.bool_] | None = None, *, render: bool = True
    ) -> Observation:
        """Advance the active environments by one step; the others stay as they are and are not rendered again.

        Without `render`, all frames are those that were seen last.
        """
        ...

    def close(self) -> None: ...
