"""Euler's method for the flow. It knows no network: the velocity is any callable."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise

from torch import Tensor


def euler(velocity: Callable[[Tensor, float], Tensor], noise: Tensor, sigmas: Sequence[float]) -> Tensor:
    """Follow dx / d sigma = velocity(x, sigma) from `noise` at `sigmas[0]` to `sigmas[-1]`, in the noise's dtype."""
    x = noise
    for sigma, following in pairwise(sigmas):
        x = x.add(velocity(x, sigma).to(x.dtype), alpha=following - sigma)
    return x
