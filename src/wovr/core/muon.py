"""Muon (Jordan et al. 2024) with the matrices of one shape orthogonalised together.

torch's own takes one after the other: with small matrices that is mostly the cost of calling. What is computed and what
is kept is the same.

Legend: P parameters of one shape, R rows, C columns.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


class Muon(torch.optim.Muon):
    """`torch.optim.Muon` with `adjust_lr_fn="match_rms_adamw"` (Moonlight's scaling)."""

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """One update of every parameter that has a gradient."""
        assert closure is None
        for group in self.param_groups:
            assert group["nesterov"] and group["adjust_lr_fn"] == "match_rms_adamw"
            by_shape: dict[torch.Size, list[Tensor]] = {}
            for parameter in group["params"]:
                if parameter.grad is not None:
                    by_shape.setdefault(parameter.shape, []).append(parameter)
            for parameters in by_shape.values():
                self._update(parameters, group)

    def _update(self, parameters: list[Tensor], group: dict[str, Any]) -> None:
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        states = [self.state[parameter] for parameter in parameters]
        momenta = [
            state.setdefault("momentum_buffer", torch.zeros_like(parameter))
            for state, parameter in zip(states, parameters, strict=True)
        ]
        torch._foreach_lerp_(momenta, gradients, 1 - group["momentum"])
        nesterov_PRC = torch.stack(torch._foreach_lerp(gradients, momenta, group["momentum"]))
        unit_PRC = orthogonal(nesterov_PRC, group["ns_coefficients"], group["ns_steps"], group["eps"]).float()
        rate = group["lr"] * 0.2 * max(parameters[0].shape) ** 0.5
        torch._foreach_mul_(parameters, 1 - group["lr"] * group["weight_decay"])
        torch._foreach_add_(parameters, list(unit_PRC.unbind()), alpha=-rate)


def orthogonal(x_PRC: Tensor, coefficients: tuple[float, float, float], steps: int, eps: float) -> Tensor:
    """Each matrix with its singular values moved towards 1 by Newton-Schulz iterations, in bf16."""
    a, b, c = coefficients
    wide = x_PRC.shape[1] <= x_PRC.shape[2]
    x = (x_PRC if wide else x_PRC.mT).bfloat16()
    x = x / torch.linalg.vector_norm(x, dim=(1, 2), keepdim=True).clamp(min=eps)
    for _ in range(steps):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x if wide else x.mT
