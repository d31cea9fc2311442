"""Closed loop: does a policy that does better in imagination do better in truth?

In a replay both worlds are given the same actions. Here the policy acts in each for itself, from the same starts and
with the same draws, so that its own reactions to what is imagined count too: what reinforcement learning optimises.
Over the policies of one run the correlation says whether its imagined progress is real.

Legend: P policies, N starts, D chunks.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wovr.core.seed import stream

RESAMPLES = 2000


@dataclass(frozen=True, slots=True)
class Correlation:
    """Pearson's, of imagined and true success rates over policies."""

    value: float
    """NaN where either rate is the same for all policies, or where there are fewer than three."""
    ci95: tuple[float, float]
    """Percentile bootstrap over starts, which all policies share; NaN where `value` is."""
    policies: int
    starts: int

    def to_dict(self) -> dict[str, Any]:
        """JSON form, with null for NaN."""
        known = not math.isnan(self.value)
        return {
            "value": self.value if known else None,
            "ci95": list(self.ci95) if known else None,
            "policies": self.policies,
            "n": self.starts,
        }


def correlation(imagined_PN: NDArray[np.bool_], true_PN: NDArray[np.bool_], seed: int) -> Correlation:
    """Of the success rates in both worlds. Column n belongs to the same start in every row and on both sides.

    Rates of N starts are themselves uncertain, which pulls the correlation towards 0: more starts, less of it.
    """
    assert imagined_PN.shape == true_PN.shape and imagined_PN.dtype == true_PN.dtype == np.bool_
    P, N = imagined_PN.shape
    value = _pearson(imagined_PN.mean(axis=1), true_PN.mean(axis=1)) if P >= 3 and N else math.nan
    if math.isnan(value):
        return Correlation(math.nan, (math.nan, math.nan), P, N)
    draws = stream(seed, "correlation-bootstrap").integers(0, N, (RESAMPLES, N))
    found = np.array([_pearson(imagined_PN[:, draw].mean(axis=1), true_PN[:, draw].mean(axis=1)) for draw in draws])
    low, high = np.nanpercentile(found, (2.5, 97.5))
    return Correlation(value, (float(low), float(high)), P, N)


def success_by_depth(first_N: NDArray[np.int64], steps: int, chunk_length: int) -> list[float]:
    """(D,), the share of trajectories that have succeeded by the end of each chunk; `first_N` is that of
    `wovr.metrics.success.first_success`."""
    return [float((first_N < end).mean()) for end in range(chunk_length, steps + chunk_length, chunk_length)]


def _pearson(a_P: NDArray[np.float64], b_P: NDArray[np.float64]) -> float:
    a_P, b_P = a_P - a_P.mean(), b_P - b_P.mean()
    norm = math.sqrt(float((a_P**2).sum() * (b_P**2).sum()))
    return float((a_P * b_P).sum()) / norm if norm > 1e-12 else math.nan
