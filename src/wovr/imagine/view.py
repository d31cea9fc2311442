"""What a policy is shown: as much of a world's observation as it asks for.

Legend: B trajectories that run, P numbers of proprioception; images are height x width x 3.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from wovr.core.errors import UserError
from wovr.core.types import Frames
from wovr.envs.chunked import Chunk, ChunkedSimulator, ChunkWorld
from wovr.policy.base import Policy


@dataclass(frozen=True, slots=True)
class View:
    """What a policy is shown at the start of a chunk. What it does not ask for is None, whatever the world shows."""

    frames_BHWC: Frames
    wrist_BHWC: Frames | None
    proprio_BP: NDArray[np.float32] | None

    @classmethod
    def of(cls, policy: Policy, chunk: Chunk) -> Self:
        """The last frame of a chunk of a world that `check_view` has passed."""
        wrist = chunk.wrist_BTHWC if policy.views > 1 else None
        proprio = chunk.proprio_BTP if policy.proprio_dim else None
        return cls(
            chunk.frames_BTHWC[:, -1],
            None if wrist is None else wrist[:, -1],
            None if proprio is None else proprio[:, -1],
        )

    @property
    def asked(self) -> dict[str, Any]:
        """Arguments of `Policy.act` beside frames: only those that the policy asks for."""
        given = {"wrist_BHWC": self.wrist_BHWC, "proprio_BP": self.proprio_BP}
        return {name: value for name, value in given.items() if value is not None}


def check_view(policy: Policy, world: ChunkWorld[Any], chunk: Chunk) -> None:
    """Raise UserError where the policy asks for what the world does not show in its first chunk."""
    simulated = isinstance(world, ChunkedSimulator)
    if policy.views > 1 and chunk.wrist_BTHWC is None:
        found = "a simulator that shows none (LIBERO's does with simulator.wrist=true)" if simulated else "imagination"
        raise UserError(f"policy: expected a world with a camera at the hand (views: {policy.views}), found {found}")
    told = 0 if chunk.proprio_BTP is None else chunk.proprio_BTP.shape[-1]
    if policy.proprio_dim and policy.proprio_dim != told:
        found = f"a simulator that tells {told}" if simulated else "imagination, which has none"
        asked = f"{policy.proprio_dim} numbers of proprioception (proprio_dim: {policy.proprio_dim})"
        raise UserError(f"policy: expected a world that tells {asked}, found {found}")
