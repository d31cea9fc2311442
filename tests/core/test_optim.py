import copy
import math

import numpy as np
import torch
from torch import nn

from wovr.core.optim import OptimConfig, Optimizer, learning_rate


def test_learning_rate_rises_and_falls() -> None:
    cosine = OptimConfig(lr=2.0, warmup_steps=4, schedule="cosine")
    rates = [learning_rate(step, cosine, 14) for step in range(15)]
    assert rates[:4] == [0.5, 1.0, 1.5, 2.0]
    np.testing.assert_allclose(rates[4:], [1 + math.cos(math.pi * k / 10) for k in range(11)])
    assert learning_rate(9, OptimConfig(lr=2.0), 10) == 2.0


def test_muon_moves_the_matrices_and_adamw_the_rest() -> None:
    """Muon's step from its paper: momentum .95 with Nesterov, five Newton-Schulz steps, Moonlight's scale."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 16), nn.LayerNorm(16), nn.Conv1d(2, 3, 4))
    reference = copy.deepcopy(model)
    rest = [p for p in reference.parameters() if p.ndim != 2]
    adamw = torch.optim.AdamW([{"params": [p], "weight_decay": 0.1 * (p.ndim > 1)} for p in rest], lr=1e-2)
    optimizer = Optimizer(model, OptimConfig(lr=1e-2, muon_lr=3e-2, weight_decay=0.1))
    momentum = torch.zeros(16, 6)
    for step in range(3):
        torch.manual_seed(step)
        for own, other in zip(model.parameters(), reference.parameters(), strict=True):
            own.grad = torch.randn_like(own)
            other.grad = own.grad.clone()
        matrix = reference[0].weight
        assert matrix.grad is not None
        momentum = 0.95 * momentum + 0.05 * matrix.grad
        update = newton_schulz(0.05 * matrix.grad + 0.95 * momentum)
        with torch.no_grad():
            matrix.mul_(1 - 3e-2 * 0.1).sub_(3e-2 * 0.2 * math.sqrt(16) * update)
        adamw.step()
        optimizer.prepare(1e-2, steps_done=0)
        optimizer.step()
    for (name, own), other in zip(model.named_parameters(), reference.parameters(), strict=True):
        tolerance = 2e-3 if own.ndim == 2 else 1e-6  # torch orthogonalises in bfloat16
        torch.testing.assert_close(own, other, rtol=0, atol=tolerance, msg=lambda text, name=name: f"{name}: {text}")


def newton_schulz(matrix: torch.Tensor) -> torch.Tensor:
    x = (matrix / matrix.norm()).double()
    for _ in range(5):
        gram = x.T @ x
        x = 3.4445 * x + x @ (-4.775 * gram + 2.0315 * gram @ gram)
    return x.float()
