"""The reward protocol: success probability of every frame of a chunk, from what there is to see of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from pydantic import Field
from torch import Tensor

from wovr.core.config import Config

Judge = Literal["classifier", "joint"]
"""Which reward model judges imagination: `wovr.reward.classifier`, or the head of `wovr.reward.joint`."""


@dataclass(frozen=True, slots=True)
class Seen:
    """A chunk of B trajectories, imagined or true. Legend: T frames, N latent frames, h w tokens of a latent frame."""

    frames_BTHWC: Tensor
    """uint8 (B, T, height, width, 3)."""
    features_BNhwD: Tensor | None
    """The ActionDiT's hidden tokens of the new latent frames at the last Euler step (`wovr.imagine.world_model`). None
    where nobody asks for them."""


class RuleConfig(Config):
    """When a reward model's probabilities count as success: part of its config, so that it travels with the weights."""

    threshold: float = Field(0.5, gt=0, lt=1)
    """Probability from which a frame counts as success; 0.5 is Eq. 8, calibration replaces it."""
    hold: int = Field(1, ge=1)
    """Consecutive frames that must pass; 1 is Eq. 8."""


class RewardModel(Protocol):
    """R_psi of Eq. 5."""

    reads_features: bool
    """Whether it judges features; else frames."""

    @property
    def threshold(self) -> float:
        """Probability from which a frame counts as success (0.5 in Eq. 8; calibrated here)."""
        ...

    @property
    def hold(self) -> int:
        """Consecutive frames that must pass; 1 reproduces Eq. 8."""
        ...

    def judge(self, seen: Seen, instructions: Sequence[str]) -> Tensor:
        """Success probabilities (B, T) of the frames, float32, no gradient."""
        ...
