"""How weights are updated: AdamW, or Muon for matrices and AdamW for everything else; and their average.

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
from wovr.core.muon import Muon


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


class Average:
    """Exponential moving average of the weights, kept as one more moment of an optimiser: what shards, offloads or
    saves its moments does so with the average."""

    KEY = "average"

    def __init__(self, optimizer: torch.optim.Optimizer, decay: float) -> None:
        self.decay, self.steps_done = decay, 0
        self._first: dict[Tensor, Tensor] = {}
        optimizer.register_step_pre_hook(self._before)
        optimizer.register_step_post_hook(self._after)

    @torch.no_grad()
    def _before(self, optimizer: torch.optim.Optimizer, *_: Any) -> None:
        """The average begins at the weights before the first step."""
        for parameter in _parameters(optimizer):
            if parameter.grad is not None and self.KEY not in optimizer.state.get(parameter, {}):
                self._first[parameter] = parameter.detach().clone()

    @torch.no_grad()
    def _after(self, optimizer: torch.optim.Optimizer, *_: Any) -> None:
        for parameter, value in self._first.items():
            optimizer.state[parameter][self.KEY] = value
        self._first = {}
        decay = min(self.decay, (1 + self.steps_done) / (10 + self.steps_done))
        states = optimizer.state
        parameters = [parameter for parameter in _parameters(optimizer) if self.KEY in states.get(parameter, {})]
        if parameters:
            averages = [states[parameter][self.KEY] for parameter in parameters]
            torch._foreach_lerp_(averages, parameters, 1 - decay)


def _parameters(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


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
        self.config = config
        named = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
        self.parameters = [parameter for _, parameter in named]
        vectors = [item for item in named if item[1].ndim < 2]
        matrices = [item for item in named if item[1].ndim == 2] if config.muon_lr else []
        kernels = [item for item in named if item[1].ndim > (2 if config.muon_lr else 1)]
        self._parts: list[tuple[torch.optim.Optimizer, float, list[tuple[str, nn.Parameter]]]] = []
        """Each with its rate in proportion to `lr`, and its parameters in its order."""
        groups: list[dict[str, Any]] = [
            {"params": [parameter for _, parameter in group], "weight_decay": decay}
            for group, decay in ((kernels, config.weight_decay), (vectors, 0.0))
            if group
        ]
        if groups:
            adamw = torch.optim.AdamW(groups, lr=config.lr, betas=config.betas, eps=config.eps, fused=True)
            self._parts.append((adamw, 1.0, kernels + vectors))
        if matrices:
            muon = Muon(
                [parameter for _, parameter in matrices],
                lr=config.muon_lr,
                weight_decay=config.weight_decay,
                adjust_lr_fn="match_rms_adamw",
            )
            self._parts.append((muon, config.muon_lr / config.lr, matrices))
        decay = config.ema_decay
        self._averages = [Average(optimizer, decay) for optimizer, _, _ in self._parts] if decay else []

    @property
    def adamw(self) -> torch.optim.Optimizer:
        """The one optimiser, for DeepSpeed to shard."""
        assert not self.config.muon_lr, "Muon needs whole matrices"
        return self._parts[0][0]

    def prepare(self, rate: float, steps_done: int) -> None:
        """Set what depends on the step: AdamW's rate, and how much the average keeps."""
        for average in self._averages:
            average.steps_done = steps_done
        for optimizer, ratio, _ in self._parts:
            for group in optimizer.param_groups:
                group["lr"] = rate * ratio

    def step(self) -> None:
        """One update from the gradients, which are cleared."""
        for optimizer, _, _ in self._parts:
            optimizer.step()
        self.clear()

    def clear(self) -> None:
        """Drop the gradients."""
        for parameter in self.parameters:
            parameter.grad = None

    def moments(self, optimizer: torch.optim.Optimizer) -> tuple[str, ...]:
        """Names of what it keeps of each parameter."""
        muon = isinstance(optimizer, Muon)
        own = ("momentum_buffer",) if muon else ("exp_avg", "exp_avg_sq", "step")
        return (*own, Average.KEY) if self.config.ema_decay else own

    def averages(self) -> dict[str, Tensor]:
        """The averaged weights by name; the weights themselves before the first step."""
        return {
            name: optimizer.state.get(parameter, {}).get(Average.KEY, parameter)
            for optimizer, _, named in self._parts
            for name, parameter in named
        }

    def large(self) -> list[Tensor]:
        """The moments that are as large as the parameters."""
        states = (state for optimizer, _, _ in self._parts for state in optimizer.state.values())
        return [value for state in states for value in state.values() if value.ndim]

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
            wanted = self.moments(optimizer)
            state = {
                index: {moment: tensors[f"{moment}.{name}"] for moment in wanted}
                for index, (name, _) in enumerate(named)
                if f"{wanted[0]}.{name}" in tensors
            }
            optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
