"""The true simulator from the middle of recorded episodes: what is imagined from a keyframe can be held against it.

A simulator starts at its initial states alone, so the recorded actions up to the keyframe are done again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from wovr.core.types import Actions, SimulatorStart
from wovr.envs.base import Observation
from wovr.envs.chunked import Chunk, ChunkedSimulator, Rows, TrajectoryKey


@dataclass(frozen=True, slots=True)
class RecordedStart:
    """A moment of a recorded episode."""

    start: SimulatorStart
    actions_TA: Actions
    """What was done from the initial state to this moment; none is the initial state itself."""


class ContinuedSimulator:
    """A `wovr.envs.chunked.ChunkWorld` over a simulator, whose trajectories begin where recordings stand.

    It is that of the simulator but for `reset`. Exact where the simulator is deterministic.
    """

    def __init__(self, world: ChunkedSimulator) -> None:
        self._world = world
        self.chunk_length, self.action_dim, self.horizon = world.chunk_length, world.action_dim, world.horizon
        self.threshold, self.hold = world.threshold, world.hold

    def instruction(self, start: RecordedStart) -> str:
        return self._world.instruction(start.start)

    def reset(self, starts: Sequence[RecordedStart], keys: Sequence[TrajectoryKey]) -> Chunk:
        """Begin at the initial states and catch up. Success on the way there does not count."""
        chunk = self._world.reset([one.start for one in starts], keys)
        steps_B = np.array([len(one.actions_TA) for one in starts])
        seen: Observation | None = None
        for t in range(int(steps_B.max(initial=0))):
            actions_BA = np.zeros((len(starts), self.action_dim), dtype=np.float32)
            active_B = steps_B > t
            for row, one in enumerate(starts):
                if active_B[row]:
                    actions_BA[row] = one.actions_TA[t]
            seen = self._world.simulator.step(actions_BA, active_B)
        if seen is None:
            return chunk
        return replace(
            chunk,
            frames_BTHWC=seen.frames_BHWC[:, None],
            probability_BT=seen.success_B[:, None].astype(np.float32),
            states_BTS=seen.states_BS[:, None],
            lost_B=seen.lost_B,
            wrist_BTHWC=None if seen.wrist_BHWC is None else seen.wrist_BHWC[:, None],
            proprio_BTP=None if seen.proprio_BP is None else seen.proprio_BP[:, None],
        )

    def step(self, actions_BHA: Actions) -> Chunk:
        return self._world.step(actions_BHA)

    def keep(self, rows: Rows) -> None:
        self._world.keep(rows)
