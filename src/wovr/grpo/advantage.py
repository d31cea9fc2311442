"""Group-relative advantages (Eq. 10).

Departures from the paper, each an option of `GRPOConfig`: groups that carry no signal are skipped and counted (the
reference does so; the paper does not say), and the advantage may be divided by the group's standard deviation.

Legend: N trajectories, P groups of G trajectories that share a start state.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from wovr.grpo.config import GRPOConfig

STD_EPS = 1e-6
"""Added to the standard deviation, as the reference does."""


@dataclass(frozen=True, slots=True)
class Advantages:
    """Eq. 10 for one update, and what was skipped."""

    advantage_N: Tensor
    """Zero for trajectories of skipped groups; dtype of the returns."""
    keep_N: Tensor
    """bool, whether the trajectory's group is trained on."""
    groups: int
    skipped_failed: int
    """Groups skipped for too few successes."""
    skipped_succeeded: int
    """Groups skipped for too few failures."""
    skipped_equal: int
    """Groups of mixed enough outcome whose returns are all equal."""

    @property
    def skipped(self) -> int:
        """Groups that are not trained on."""
        return self.skipped_failed + self.skipped_succeeded + self.skipped_equal


def discounted_return(first_N: Tensor, steps: int | Tensor, gamma: float) -> Tensor:
    """R = sum_t gamma^(t-1) r_t (Eq. 10) where the reward is 1 at first success and nothing follows it.

    Args:
        first_N: index of first success, counted from 0 (so t - 1), any value >= steps where there is none.
        steps: env steps of each trajectory, one number or (N,).
        gamma: discount per env step.

    Returns:
        float32 (N,) in [0, 1].
    """
    return torch.where(first_N < steps, gamma ** first_N.float(), 0.0)


def group_advantages(returns_N: Tensor, group_N: Tensor, config: GRPOConfig) -> Advantages:
    """A = R - mean of the group's R (Eq. 10), divided by its standard deviation where the config says so.

    Args:
        returns_N: returns, positive where the trajectory succeeded.
        group_N: int64, which group each belongs to; every id occurs `group_size` times, in any order.
        config: group size, normalisation and which groups to keep.
    """
    _, counts_P = group_N.unique(return_counts=True)
    assert (counts_P == config.group_size).all(), f"expected groups of {config.group_size}, found {counts_P.tolist()}"
    order_N = group_N.argsort(stable=True)
    returns_PG = returns_N[order_N].view(-1, config.group_size)

    successes_P = (returns_PG > 0).sum(dim=1)
    failed_P = successes_P < config.min_successes
    succeeded_P = ~failed_P & (config.group_size - successes_P < config.min_failures)
    equal_P = ~failed_P & ~succeeded_P & (returns_PG == returns_PG[:, :1]).all(dim=1)
    keep_P = ~(failed_P | succeeded_P | equal_P)

    advantage_PG = returns_PG - returns_PG.mean(dim=1, keepdim=True)
    if config.normalize == "std":
        advantage_PG = advantage_PG / (returns_PG.std(dim=1, keepdim=True) + STD_EPS)

    # order_N maps sorted to given places; its inverse brings the results back.
    back_N = order_N.argsort()
    return Advantages(
        advantage_N=(advantage_PG * keep_P[:, None]).flatten()[back_N],
        keep_N=keep_P.repeat_interleave(config.group_size)[back_N],
        groups=len(counts_P),
        skipped_failed=int(failed_P.sum()),
        skipped_succeeded=int(succeeded_P.sum()),
        skipped_equal=int(equal_P.sum()),
    )
