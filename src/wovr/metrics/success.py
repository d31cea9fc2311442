"""Success: when a rollout succeeds, and how sure a measured rate is.

`first_success` is the one definition of success. The environment's `done`, the return (Eq. 10) and T_valid
(Eq. 11) all follow from it, so a flicker of the reward can never be done with return 0.

Legend: B rollouts, T frames that an action produced (index t is the frame after action t).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

Z95 = 1.959963984540054
"""Two-sided 95 % quantile of the standard normal distribution."""
T95 = (12.7062, 4.3027, 3.1824, 2.7764, 2.5706, 2.4469, 2.3646, 2.3060, 2.2622)
"""The same of Student's t distribution with 1, 2, … degrees of freedom."""


def t95(degrees: int) -> float:
    """Two-sided 95 % quantile of Student's t distribution; beyond the table that of the last entry, which is wider."""
    assert degrees >= 1, degrees
    return T95[min(degrees, len(T95)) - 1]


def first_success(probability_BT: Tensor | NDArray, threshold: float, hold: int = 1) -> Tensor:
    """Index of the frame that completes the first `hold` consecutive frames of probability >= threshold.

    `hold = 1` and `threshold = 0.5` are Eq. 8. Booleans serve as probabilities, so true success goes the same way.

    Returns:
        int64 (B,) in [0, T]; T where there is no success.
    """
    passes_BT = torch.as_tensor(probability_BT) >= threshold
    assert passes_BT.ndim == 2 and hold >= 1, (passes_BT.shape, hold)
    B, T = passes_BT.shape
    if hold > T:
        return torch.full((B,), T, dtype=torch.int64, device=passes_BT.device)
    held_BT = passes_BT.unfold(1, hold, 1).all(dim=-1)
    # argmax gives the first of equal maxima; cast because it is not defined for booleans.
    first_B = held_BT.to(torch.uint8).argmax(dim=1) + hold - 1
    return torch.where(held_BT.any(dim=1), first_B, T)


@dataclass(frozen=True, slots=True)
class Rate:
    """`successes` of `n` trials, with the Wilson score interval."""

    successes: int
    n: int

    def __post_init__(self) -> None:
        assert 0 <= self.successes <= self.n, self

    @classmethod
    def of(cls, outcomes_B: ArrayLike) -> Rate:
        """The rate of True in a boolean array of any shape."""
        outcomes = np.asarray(outcomes_B, dtype=bool)
        return cls(int(outcomes.sum()), outcomes.size)

    @property
    def rate(self) -> float:
        """The share in [0, 1]; NaN without trials."""
        return self.successes / self.n if self.n else math.nan

    @property
    def ci95(self) -> tuple[float, float]:
        """Wilson 95 % interval, which stays inside [0, 1] and honest near its ends; [0, 1] without trials."""
        if not self.n:
            return 0.0, 1.0
        shrink = 1 + Z95**2 / self.n
        centre = (self.rate + Z95**2 / (2 * self.n)) / shrink
        half = Z95 / shrink * math.sqrt(self.rate * (1 - self.rate) / self.n + Z95**2 / (4 * self.n**2))
        return max(0.0, centre - half), min(1.0, centre + half)

    def to_dict(self) -> dict[str, object]:
        """JSON form; a rate without trials is null."""
        rate = self.rate if self.n else None
        return {"rate": rate, "successes": self.successes, "n": self.n, "ci95": list(self.ci95)}

    def __str__(self) -> str:
        low, high = self.ci95
        return f"{100 * self.rate:.1f} % [{100 * low:.1f}, {100 * high:.1f}] of {self.n}"


@dataclass(frozen=True, slots=True)
class Difference:
    """Rate b minus rate a of trials that share nothing, at least one each."""

    a: Rate
    b: Rate

    @property
    def difference(self) -> float:
        """In [-1, 1]."""
        return self.b.rate - self.a.rate

    @property
    def ci95(self) -> tuple[float, float]:
        """Hybrid score 95 % interval of Newcombe (1998, method 10), from the Wilson intervals of both rates."""
        (low_a, high_a), (low_b, high_b) = self.a.ci95, self.b.ci95
        below = math.hypot(self.b.rate - low_b, high_a - self.a.rate)
        above = math.hypot(high_b - self.b.rate, self.a.rate - low_a)
        return self.difference - below, self.difference + above

    def to_dict(self) -> dict[str, object]:
        """JSON form."""
        return {"difference": self.difference, "ci95": list(self.ci95)}


@dataclass(frozen=True, slots=True)
class PairedDifference:
    """Success of policy b minus that of policy a on the same initial states."""

    gained: int
    """Initial states where b succeeds and a fails."""
    lost: int
    """Initial states where a succeeds and b fails."""
    n: int

    @property
    def difference(self) -> float:
        """Rate of b minus rate of a, in [-1, 1]."""
        return (self.gained - self.lost) / self.n

    @property
    def ci95(self) -> tuple[float, float]:
        """Adjusted Wald 95 % interval for paired proportions (Bonett and Price, 2012).

        One state is added to `gained` and one to `lost` before the usual formula, which keeps its coverage
        near 95 % for few states and for rates near 0 or 1, where the plain formula fails.
        """
        gained, lost = (self.gained + 1) / (self.n + 2), (self.lost + 1) / (self.n + 2)
        centre = gained - lost
        half = Z95 * math.sqrt((gained + lost - centre**2) / (self.n + 2))
        return max(-1.0, centre - half), min(1.0, centre + half)

    def to_dict(self) -> dict[str, object]:
        """JSON form."""
        return {
            "difference": self.difference,
            "ci95": list(self.ci95),
            "gained": self.gained,
            "lost": self.lost,
            "n": self.n,
        }


def paired_difference(success_a_B: ArrayLike, success_b_B: ArrayLike) -> PairedDifference:
    """Compare two policies whose entry i started from the same initial state. At least one state."""
    a_B, b_B = np.asarray(success_a_B, dtype=bool), np.asarray(success_b_B, dtype=bool)
    assert a_B.shape == b_B.shape and a_B.ndim == 1 and a_B.size > 0, (a_B.shape, b_B.shape)
    return PairedDifference(gained=int((b_B & ~a_B).sum()), lost=int((a_B & ~b_B).sum()), n=a_B.size)


def agreement(success_a_B: ArrayLike, success_b_B: ArrayLike) -> Rate:
    """Share of rollouts whose success is the same on both sides, for example imagined and true."""
    a_B, b_B = np.asarray(success_a_B, dtype=bool), np.asarray(success_b_B, dtype=bool)
    assert a_B.shape == b_B.shape, (a_B.shape, b_B.shape)
    return Rate.of(a_B == b_B)
