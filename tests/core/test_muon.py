import pytest
import torch

from wovr.core.muon import Muon, orthogonal
from wovr.core.seed import normal

SHAPES = [(24, 16), (16, 24), (24, 16), (16, 16), (24, 16)]
SETTINGS = {"lr": 0.02, "weight_decay": 0.1, "adjust_lr_fn": "match_rms_adamw"}


def parameters():
    return [torch.nn.Parameter(normal(shape, 0, "weights", i)) for i, shape in enumerate(SHAPES)]


def test_it_is_torchs_muon():
    """Within the rounding of bf16, step by step; one parameter has no gradient in the second step."""
    ours, theirs = parameters(), parameters()
    optimizers = Muon(ours, **SETTINGS), torch.optim.Muon(theirs, **SETTINGS)
    for step in range(4):
        for i, (p, q) in enumerate(zip(ours, theirs, strict=True)):
            p.grad = q.grad = None if (step, i) == (1, 2) else normal(p.shape, 0, "gradient", step, i)
        before = [q.detach().clone() for q in theirs]
        for optimizer in optimizers:
            optimizer.step()
        for p, q, old in zip(ours, theirs, before, strict=True):
            moved = float((q.detach() - old).abs().max())
            assert float((p - q).detach().abs().max()) <= 0.02 * moved
            p.data.copy_(q.data)  # so that rounding does not add up
    for p, q in zip(ours, theirs, strict=True):
        kept, expected = (o.state[x]["momentum_buffer"] for o, x in zip(optimizers, (p, q), strict=True))
        torch.testing.assert_close(kept, expected)


@pytest.mark.parametrize("shape", [(3, 24, 16), (2, 16, 24)])
def test_singular_values_go_towards_one(shape):
    found = orthogonal(normal(shape, 0, "matrix"), (3.4445, -4.7750, 2.0315), 5, 1e-7).float()
    values = torch.linalg.svdvals(found)
    assert found.shape == shape and values.min() > 0.4 and values.max() < 1.4
