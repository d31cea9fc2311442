"""How weights are updated: AdamW, or Muon for matrices and AdamW for everything else.

Muon (Jordan et al. 2024) orthogonalises the momentum of a matrix, so that a step moves all its directions alike. The
embedded ActionDiT reaches the same loss with it in little more than half of the steps.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from wovr.core.config import Config
from wovr.core.dist import Precision

MOMENTS: dict[type[torch.optim.Optimizer], tuple[str, ...]] = {
    torch.optim.AdamW: ("exp_avg", "exp_avg_sq", "step"),
    torch.optim.Muon: ("momentum_buffer",),
}


class OptimConfig(Config):
    """How weights are updated."""

    lr: float = Field(3e-4, gt=0)
    """Peak learning rate of AdamW."""
    muon_lr: float = Field(0.0, ge=0)
    """Peak learning rate of Muon for the matrices, in AdamW's measure: a matrix moves as far as AdamW with this rate
    would move it (Moonlight's scaling). 0 leaves the matrices to AdamW too."""
    weight_decay: float = Field(0.01, ge=0)
    """Decoupled decay of matrices and kernels (the paper's .01). Biases, norms and other vectors are not decayed."""
    betas: tuple[float, float] = (0.9, 0.999)
    """Decay rates of AdamW's two moments."""
    eps: float = Field(1e-8, gt=0)
    """AdamW's denominator offset."""
    grad_clip: float = Field(1.0, ge=0)
    """Largest global gradient norm; 0 does not clip."""
    warmup_steps: int = Field(0, ge=0)
    """Steps of linear rise from 0 to `lr`."""
    schedule: Literal["constant", "cosine"] = "constant"
    """What follows the warm-up: `lr` throughout, or half a cosine that ends at 0."""
    ema_decay: float = Field(0.0, ge=0, lt=1)
    """Decay of the exponential moving average of the weights; 0 keeps none. Early steps average over less:
    min(ema_decay, (1 + n) / (10 + n)) after n steps, so that a short training forgets its start."""
    precision: Precision = "auto"
    """Autocast of the forward pass; weights, moments and the average stay fp32. `auto`: bf16 where it is fast."""


def learning_rate(step: int, config: OptimConfig, total_steps: int) -> float:
    """The rate of step 0, 1, … total_steps - 1."""
    if step < config.warmup_steps:
        return config.lr * (step + 1) / config.warmup_steps
    if config.schedule == "constant":
        return config.lr
    progress = (step - config.warmup_steps) / max(1, total_steps - config.warmup_steps)
    return config.lr * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))


class Optimizer:
    """The optimisers of a model's trainable parameters, stepped together."""

    def __init__(self, model: nn.Module, config: OptimConfig) -> None:
        named = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
        self.parameters = [parameter for _, parameter in named]
        vectors = [item for item in named if item[1].ndim < 2]
        matrices = [item for item in named if item[1].ndim == 2] if config.muon_lr else []
        kernels = [item for item in named if item[1].ndim > (2 if config.muon_lr else 1)]
        self._parts: list[tuple[torch.optim.Optimizer, float, list[tuple[str, nn.Parameter]]]] = []
        """Each with its rate in proportion to `lr`, and its parameters in its order."""
        groups: list[dict[str, Any]] = [
            {"params": [parameter for _, parameter in kernels], "weight_decay": config.weight_decay},
            {"params": [parameter for _, parameter in vectors], "weight_decay": 0.0},
        ]
        adamw = torch.optim.AdamW(groups, lr=config.lr, betas=config.betas, eps=config.eps, fused=True)
        self._parts.append((adamw, 1.0, kernels + vectors))
        if matrices:
            muon = torch.optim.Muon(
                [parameter for _, parameter in matrices],
                lr=config.muon_lr,
                weight_decay=config.weight_decay,
                adjust_lr_fn="match_rms_adamw",
            )
            self._parts.append((muon, config.muon_lr / config.lr, matrices))

    def step(self, rate: float) -> None:
        """One update with AdamW's rate, from the gradients, which are cleared."""
        for optimizer, ratio, _ in self._parts:
            for group in optimizer.param_groups:
                group["lr"] = rate * ratio
            optimizer.step()
        self.clear()

    def clear(self) -> None:
        """Drop the gradients."""
        for parameter in self.parameters:
            parameter.grad = None

    def state(self) -> dict[str, Tensor]:
        """All moments, by `moment.parameter`."""
        return {
            f"{moment}.{name}": value
            for optimizer, _, named in self._parts
            for name, parameter in named
            for moment, value in optimizer.state.get(parameter, {}).items()
        }

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Continue from `state`."""
        for optimizer, _, named in self._parts:
            moments = MOMENTS[type(optimizer)]
            state = {
                index: {moment: tensors[f"{moment}.{name}"] for moment in moments}
                for index, (name, _) in enumerate(named)
                if f"{moments[0]}.{name}" in tensors
            }
            optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
