"""The reward protocol: success probability of single frames."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from torch import Tensor


class RewardModel(Protocol):
    """R_psi of Eq. 5."""

    @property
    def threshold(self) -> float:
        """Probability from which a frame counts as success (0.5 in Eq. 8; calibrated here)."""
        ...

    @property
    def hold(self) -> int:
        """Consecutive frames that must pass; 1 reproduces Eq. 8."""
        ...

    def probability(self, frames_BHWC: Tensor, instructions: Sequence[str]) -> Tensor:
        """uint8 frames (B, H, W, 3) -> success probabilities (B,), float32, no gradient."""
        ...
