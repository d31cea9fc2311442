"""Near-successes: failed episodes that nearly succeeded, drawn more often in training (SANS of World-VLA-Loop).

They are the hard negatives: what the world model and the reward get wrong about them, a policy finds. World-VLA-Loop
collects them by teleoperation; here they are recognised among the rollouts of the policy, by two signs of which either
suffices: the reward's success probability rose high, or the object came near its goal in the simulator's state.

Legend: E episodes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from wovr.core.config import Config


class NearSuccessConfig(Config):
    """Which failed episodes are near-successes, and what they weigh."""

    weight: float = Field(3.0, gt=0)
    """How many times likelier a window or a labelled frame of such an episode is drawn."""
    probability: float | None = Field(0.3, ge=0, le=1)
    """Highest success probability of its frames, at least; above the threshold too, since the episode failed in truth.
    None leaves this sign out."""
    margin: float | None = Field(10.0, ge=0)
    """Least distance of the object, let go, from its goal, at most, in units of the simulator. On the tabletop 10 is
    the plate's rim and 2 is success; LIBERO and recordings do not tell it. None leaves this sign out."""

    @model_validator(mode="after")
    def _has_a_sign(self) -> Self:
        if self.probability is None and self.margin is None:
            raise ValueError("expected probability, margin or both, found neither")
        return self


@dataclass(frozen=True, slots=True)
class NearSuccesses:
    """Those of E episodes that are near-successes, by which sign. A sign that was not at hand is None."""

    failed_E: NDArray[np.bool_]
    probable_E: NDArray[np.bool_] | None
    """By the success probability."""
    close_E: NDArray[np.bool_] | None
    """By the distance."""

    @property
    def near_E(self) -> NDArray[np.bool_]:
        """By either sign."""
        near_E = np.zeros_like(self.failed_E)
        for sign_E in (self.probable_E, self.close_E):
            near_E = near_E if sign_E is None else near_E | sign_E
        return near_E

    def weights(self, weight: float) -> NDArray[np.float64]:
        """(E,): `weight` for near-successes, 1 for all others."""
        return np.where(self.near_E, weight, 1.0)

    def summary(self) -> dict[str, int | None]:
        """How many, for people."""
        by_probability, by_margin = (None if one is None else int(one.sum()) for one in (self.probable_E, self.close_E))
        return {
            "failed": int(self.failed_E.sum()),
            "near_successes": int(self.near_E.sum()),
            "by_probability": by_probability,
            "by_margin": by_margin,
        }


def find_near_successes(
    failed_E: NDArray[np.bool_],
    peak_E: NDArray[np.floating] | None,
    distance_E: NDArray[np.floating] | None,
    config: NearSuccessConfig,
) -> NearSuccesses:
    """Apply both signs.

    Args:
        failed_E: which episodes failed in truth.
        peak_E: highest success probability of each episode's frames, NaN or None where unknown.
        distance_E: least distance of its object from the goal, NaN or None where unknown.
        config: what counts as near.
    """
    probable_E = close_E = None
    if peak_E is not None and config.probability is not None:
        probable_E = failed_E & (peak_E >= config.probability)
    if distance_E is not None and config.margin is not None:
        close_E = failed_E & (distance_E <= config.margin)
    return NearSuccesses(failed_E, probable_E, close_E)
