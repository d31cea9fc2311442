"""Reward hacking: success rises in imagination and not in truth.

Both worlds are looked at from time to time, each with the same starts and draws as before, so that a rise is a paired
difference. One look cannot tell a world model that flatters every policy alike from one that is being exploited; two
can.

Legend: N rollouts of one look.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike
from pydantic import Field

from wovr.core.config import Config
from wovr.metrics.success import Z95, paired_difference


class AlarmConfig(Config):
    """When to look, and what to do where imagination is exploited."""

    action: Literal["off", "warn", "stop", "refine"] = "off"
    """`warn` says so and goes on; `stop` ends this phase of RL and the command; `refine` ends the phase, and what
    follows is refinement, as ever. `off` spends no true rollout."""
    every: int = Field(10, ge=1)
    """Updates between looks. The first is before the first update, the last after the last."""
    rollouts: int = Field(32, ge=8)
    """Of each look in either world. 32 tell a rise of 40 points from none."""


@dataclass(frozen=True, slots=True)
class Rise:
    """How far a success rate has risen."""

    value: float
    """In [-1, 1]."""
    error: float
    """Its standard error."""

    @property
    def ci95(self) -> tuple[float, float]:
        """Normal 95 % interval."""
        return self.value - Z95 * self.error, self.value + Z95 * self.error


def paired_rise(before_N: ArrayLike, now_N: ArrayLike) -> Rise:
    """From the success of the same starts, then and now. The interval is that of `PairedDifference`."""
    difference = paired_difference(before_N, now_N)
    n = difference.n + 2  # one start more gained, one more lost: Bonett and Price, 2012
    gained, lost = (difference.gained + 1) / n, (difference.lost + 1) / n
    return Rise(gained - lost, math.sqrt((gained + lost - (gained - lost) ** 2) / n))


def weighted_rise(weight_N: ArrayLike, success_N: ArrayLike) -> Rise:
    """From recorded rollouts and how much likelier than before the policy would act so: the mean of success under
    normalised weights minus the plain mean, with the error of a ratio estimator."""
    weight, success = np.asarray(weight_N, dtype=np.float64), np.asarray(success_N, dtype=np.float64)
    assert weight.shape == success.shape and weight.ndim == 1 and weight.sum() > 0, (weight.shape, success.shape)
    weight = weight / weight.mean()
    now, before = (weight * success).mean(), success.mean()
    influence = weight * (success - now) - (success - before)
    return Rise(float(now - before), float(influence.std() / math.sqrt(len(weight))))


def is_exploited(imagined: Rise, true: Rise) -> bool:
    """Whether imagined success has risen, and by more than true success, both beyond chance (95 %)."""
    apart = math.hypot(imagined.error, true.error)
    return imagined.ci95[0] > 0 and imagined.value - true.value > Z95 * apart
