"""The straight path between data and noise, and its velocity. The convention of time stands here and nowhere else.

sigma = 1 is noise and sigma = 0 is data (Wan's convention; the paper's t is 1 - sigma):

    x_sigma = (1 - sigma) data + sigma noise          v = d x_sigma / d sigma = noise - data

Sigmas are given per sample or per frame and broadcast over the trailing dimensions.
"""

from __future__ import annotations

from torch import Tensor


def interpolate(data: Tensor, noise: Tensor, sigma: Tensor) -> Tensor:
    """x_sigma. `sigma` has the leading dimensions of `data`, for example (B,) or (B, L)."""
    return data.lerp(noise, _broadcast(sigma, data))


def velocity(data: Tensor, noise: Tensor) -> Tensor:
    """The target of Eq. 7, constant along the path."""
    return noise - data


def _broadcast(sigma: Tensor, like: Tensor) -> Tensor:
    return sigma.reshape(sigma.shape + (1,) * (like.ndim - sigma.ndim)).to(like.dtype)
