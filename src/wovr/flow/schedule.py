"""Which sigmas the solver visits and training draws.

Both come from uniform numbers u in [0, 1] by Wan's shift, sigma = s u / (1 + (s - 1) u), that spends most steps
near noise: five steps at s = 5 visit 1, .952, .882, .769, .556 and end at 0.
"""

from __future__ import annotations

from typing import Literal, TypeVar

import torch
from pydantic import Field
from torch import Tensor

from wovr.core.config import Config

TIMESTEPS = 1000
"""Networks see sigma * 1000 (Wan's 1000 training timesteps)."""

T = TypeVar("T", float, Tensor)


class FlowConfig(Config):
    """How the flow is sampled in training and solved at inference."""

    steps: int = Field(5, ge=1)
    """Euler steps per chunk. Five in the published world models."""
    shift: float = Field(5.0, gt=0)
    """s of the shift; 1 spaces sigmas evenly. Five in Wan2.2-TI2V-5B."""
    train_sigmas: Literal["uniform", "grid"] = "uniform"
    """`uniform`: any shifted sigma. `grid`: only those that the solver visits, for a fixed number of steps."""
    train_weight: Literal["none", "bell"] = "none"
    """`bell`: the trainer of the published models weighs losses by a bell around timestep 500. It is 0 at sigma = 1."""


def shift(u: T, s: float) -> T:
    """Wan's shift of u in [0, 1]; keeps 0 and 1."""
    return s * u / (1 + (s - 1) * u)


def solver_sigmas(config: FlowConfig) -> list[float]:
    """The `steps + 1` sigmas of a solution, from 1 down to 0."""
    return [shift(1 - i / config.steps, config.shift) for i in range(config.steps + 1)]


def train_sigmas(config: FlowConfig, uniform: Tensor) -> Tensor:
    """Training sigmas, one for each of the numbers uniform in [0, 1)."""
    if config.train_sigmas == "grid":
        grid = torch.tensor(solver_sigmas(config)[:-1], device=uniform.device)
        return grid[(uniform * config.steps).long()]
    return shift(1 - uniform, config.shift)


def train_weights(config: FlowConfig, sigma_B: Tensor) -> Tensor:
    """Loss weights (B,), with mean 1 over the sigmas that training draws."""
    if config.train_weight == "none":
        return torch.ones_like(sigma_B)
    steps = config.steps if config.train_sigmas == "grid" else TIMESTEPS
    drawn = train_sigmas(config, (torch.arange(steps, device=sigma_B.device) + 0.5) / steps)
    return _bell(sigma_B) / _bell(drawn).mean()


def _bell(sigma: Tensor) -> Tensor:
    """exp(-2 (sigma - 1/2)^2), lowered so that it meets 0 at the ends."""
    return torch.exp(-2 * (sigma - 0.5) ** 2) - torch.exp(torch.tensor(-0.5))
