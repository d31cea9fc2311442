"""How good a reward model is: its success probabilities beside the truth, frame by frame and episode by episode.

At its threshold a frame is called a success or not: precision is the share of called frames that are one, recall the
share of successes that are called. Frames of one episode are anything but independent, so that the intervals over
frames are narrower than they should be; those over episodes, which are called by `first_success` with the reward
model's hold, are honest.

Brier score and calibration curve look at the probabilities themselves. Reward models here are trained on classes of
equal weight, and so claim more than the true share of successes wherever that is below a half: the threshold, and not
the probability, is what is calibrated.

Legend: E episodes, T frames of an episode, F frames of all episodes, K bins.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wovr.metrics.success import Rate, first_success

BINS = 10
"""K, of equal width in [0, 1]."""


@dataclass(frozen=True, slots=True)
class Calls:
    """What was called a success, and what is one."""

    called: NDArray[np.bool_]
    true: NDArray[np.bool_]

    @property
    def precision(self) -> Rate:
        """P(true | called)."""
        return Rate.of(self.true[self.called])

    @property
    def recall(self) -> Rate:
        """P(called | true)."""
        return Rate.of(self.called[self.true])

    @property
    def agreement(self) -> Rate:
        """Called right, either way."""
        return Rate.of(self.called == self.true)

    def to_dict(self) -> dict[str, Any]:
        """JSON form."""
        rates = {name: getattr(self, name).to_dict() for name in ("precision", "recall", "agreement")}
        return {"n": len(self.true), "successes": int(self.true.sum()), **rates}


@dataclass(frozen=True, slots=True)
class Bin:
    """Frames of similar probability."""

    probability: float
    """Mean; NaN without frames."""
    success: Rate
    """Share of true successes."""


@dataclass(frozen=True, slots=True)
class RewardQuality:
    """One reward model on one set of episodes."""

    threshold: float
    hold: int
    frames: Calls
    episodes: Calls
    brier: float
    """Mean squared difference of probability and truth over frames."""
    bins_K: tuple[Bin, ...]
    """The calibration curve."""

    @property
    def calibration_error(self) -> float:
        """Expected calibration error: mean difference of probability and share of successes in a frame's bin."""
        gaps = (one.success.n * abs(one.probability - one.success.rate) for one in self.bins_K if one.success.n)
        return sum(gaps) / len(self.frames.true)

    def to_dict(self) -> dict[str, Any]:
        """JSON form; a bin without frames has no probability."""
        return {
            "threshold": self.threshold,
            "hold": self.hold,
            "frames": self.frames.to_dict(),
            "episodes": self.episodes.to_dict(),
            "brier": self.brier,
            "calibration_error": self.calibration_error,
            "bins": [
                {
                    "probability": None if math.isnan(one.probability) else one.probability,
                    "success": one.success.to_dict(),
                }
                for one in self.bins_K
            ],
        }


def measure_reward(
    probability_ET: Sequence[NDArray[np.float32]], success_ET: Sequence[NDArray[np.bool_]], threshold: float, hold: int
) -> RewardQuality:
    """Compare what a reward model says of each frame of some episodes, at least one, with the truth."""
    probability_F = np.concatenate(probability_ET).astype(np.float64)
    true_F = np.concatenate(success_ET)
    assert probability_F.shape == true_F.shape and true_F.size
    called_E = [bool(first_success(one[None], threshold, hold)[0] < len(one)) for one in probability_ET]
    bin_F = np.minimum((probability_F * BINS).astype(int), BINS - 1)
    return RewardQuality(
        threshold=threshold,
        hold=hold,
        # As `first_success` compares, in the probabilities' own precision.
        frames=Calls(np.concatenate(probability_ET) >= threshold, true_F),
        episodes=Calls(np.array(called_E), np.array([bool(one.any()) for one in success_ET])),
        brier=float(np.mean((probability_F - true_F) ** 2)),
        bins_K=tuple(_bin(probability_F[bin_F == k], true_F[bin_F == k]) for k in range(BINS)),
    )


def _bin(probability_F: NDArray[np.float64], true_F: NDArray[np.bool_]) -> Bin:
    return Bin(float(probability_F.mean()) if probability_F.size else math.nan, Rate.of(true_F))
