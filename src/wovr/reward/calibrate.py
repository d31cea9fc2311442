"""Choose the success threshold on held-out episodes, at a stated rate of false success.

A policy that is optimised against the classifier finds its false successes, so that rate is bounded first. What
the bound leaves free goes to finding true successes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor

from wovr.core.config import Config

FirstSuccess = Callable[[NDArray[np.float32], float, int], Tensor]
"""`wovr.metrics.success.first_success`: (prob_BT, threshold, hold) -> index (B,), T where there is none."""

LOGITS = np.linspace(0.0, 6.0, 61)
"""Candidate thresholds, as logits: 0.5 to 0.9975. Below Eq. 8's 0.5 one odd success among some twenty would choose, and
imagined smears, which true frames do not show, would pass."""


class CalibrationConfig(Config):
    """What the calibrated classifier must keep to."""

    false_success_rate: float = Field(0.02, ge=0, lt=1)
    """Largest share of failed held-out episodes that may be called a success."""
    hold: int = Field(2, ge=1)
    """Consecutive frames that must pass; 1 is Eq. 8, 2 removes flicker of one frame."""


@dataclass(frozen=True, slots=True)
class Calibration:
    """The chosen decision rule and what it does on the held-out episodes."""

    threshold: float
    hold: int
    failed: int
    """Episodes that fail in truth."""
    false_successes: int
    """Those of them that are called a success."""
    succeeded: int
    """Episodes that succeed in truth."""
    missed_successes: int
    """Those of them that are called a failure."""

    @property
    def false_success_rate(self) -> float:
        """Of the failed episodes; NaN where there is none."""
        return self.false_successes / self.failed if self.failed else float("nan")

    @property
    def missed_success_rate(self) -> float:
        """Of the successful episodes; NaN where there is none."""
        return self.missed_successes / self.succeeded if self.succeeded else float("nan")

    @property
    def agreement(self) -> float:
        """Share of all episodes whose outcome is called right."""
        return 1 - (self.false_successes + self.missed_successes) / (self.failed + self.succeeded)


def calibrate(
    probabilities: Sequence[NDArray[np.float32]],
    succeeded_E: NDArray[np.bool_],
    config: CalibrationConfig,
    first_success: FirstSuccess,
) -> Calibration:
    """The threshold that finds most successes among those within `config.false_success_rate`.

    `probabilities[e]` (T_e,) belongs to the frames after each action of held-out episode e, `succeeded_E[e]` is its
    true outcome. Among equally good thresholds the lowest is taken: imagined successes are fainter than the recorded
    ones that decide here. Where no threshold keeps the rate, the one with the fewest false successes is returned:
    compare `false_success_rate` of the result.
    """
    assert len(probabilities) == len(succeeded_E) > 0
    thresholds = 1 / (1 + np.exp(-LOGITS))
    called_KE = np.array(
        [
            [bool(first_success(prob_T[None], threshold, config.hold)[0] < len(prob_T)) for prob_T in probabilities]
            for threshold in thresholds
        ]
    )
    false_K = (called_KE & ~succeeded_E).sum(1)
    missed_K = (~called_KE & succeeded_E).sum(1)
    failed = int((~succeeded_E).sum())
    allowed_K = false_K <= max(config.false_success_rate * failed, false_K.min())
    best_K = allowed_K & (missed_K == missed_K[allowed_K].min())
    chosen = int(best_K.argmax())
    return Calibration(
        threshold=float(thresholds[chosen]),
        hold=config.hold,
        failed=failed,
        false_successes=int(false_K[chosen]),
        succeeded=int(succeeded_E.sum()),
        missed_successes=int(missed_K[chosen]),
    )
