"""Activation checkpointing: the same numbers, fewer bytes between the passes."""

import weakref

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from tests.dit.test_model import build, inputs
from wovr.core.seed import normal
from wovr.dit.checkpointing import call


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("causal_context", [False, True])
def test_values_and_gradients_are_the_same(causal_context: bool, autocast: bool):
    found = []
    for kind in ("none", "selective", "full"):
        model = build(causal_context=causal_context).train()
        model.checkpointing = kind
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            velocity = model(*inputs(model), new_only=True)
        velocity.float().square().mean().backward()
        found.append([velocity.detach(), *(parameter.grad for parameter in model.parameters())])
    for other in found[1:]:
        for value, again in zip(found[0], other, strict=True):
            # Gradients of the two calls of a block are summed in bfloat16 where autocast keeps its casts.
            allowed = 1e-2 if autocast and causal_context else 1e-6
            assert (again - value).norm() <= allowed * value.norm()


class Kept(TorchDispatchMode):
    """Counts bytes of results that still exist."""

    def __init__(self):
        super().__init__()
        self.storages: list[weakref.ref[torch.UntypedStorage]] = []

    def __torch_dispatch__(self, function, types, arguments=(), keywords=None):
        results = function(*arguments, **(keywords or {}))
        for result in tree_leaves(results):
            if isinstance(result, Tensor):
                self.storages.append(weakref.ref(result.untyped_storage()))
        return results

    def bytes(self) -> int:
        alive = {storage.data_ptr(): storage.nbytes() for ref in self.storages if (storage := ref()) is not None}
        return sum(alive.values())


@pytest.mark.parametrize("causal_context", [False, True])
def test_fewer_bytes_wait_for_the_backward_pass(causal_context: bool):
    kept = {}
    for kind in ("none", "selective", "full"):
        model = build(causal_context=causal_context).train()
        model.checkpointing = kind
        latents, timesteps, actions = inputs(model)
        wide = latents.repeat(1, 1, 1, 4, 4)  # the blocks see many more tokens than there are actions
        with Kept() as results:
            velocity = model(wide, timesteps, actions, new_only=True)
        kept[kind] = results.bytes()
        velocity.sum().backward()
    assert kept["none"] > 1.2 * kept["selective"] > 1.2 * 3 * kept["full"], kept


def test_blocks_are_called_as_modules_in_both_computations_and_only_in_training():
    calls = []
    model = build().train()
    model.checkpointing = "full"
    for block in model.blocks:
        block.register_forward_pre_hook(lambda module, arguments: calls.append(module))
    model(*inputs(model), new_only=True).sum().backward()
    assert calls == [*model.blocks, *reversed(model.blocks)]
    calls.clear()
    with torch.no_grad():
        model(*inputs(model), new_only=True)
    model.eval()(*inputs(model), new_only=True).sum().backward()
    assert calls == [*model.blocks, *model.blocks]


class Gathered(torch.nn.Module):
    """A linear as under ZeRO-3: hooks fetch the weight in operations of their own, the bias is added in place."""

    def __init__(self):
        super().__init__()
        self.weight, self.bias = (torch.nn.Parameter(normal(shape, 0, "weight")) for shape in ((4, 4), (4,)))
        self.fetched = 0
        self.register_forward_pre_hook(self.fetch)

    def fetch(self, module: torch.nn.Module, arguments: tuple[Tensor, ...]) -> None:
        self.fetched += 1
        for _ in range(self.fetched):
            self.weight.data = self.weight.data.clone()

    def forward(self, x: Tensor) -> Tensor:
        y = x @ self.weight.T
        y += self.bias
        return torch.nn.functional.gelu(y) @ self.weight.T


def test_selective_stands_hooks_and_changes_in_place():
    gradients = []
    for kind in ("none", "selective"):
        module, x = Gathered(), normal((2, 3, 4), 0, "x")
        call(module, kind, x).square().sum().backward()
        gradients.append([module.weight.grad, module.bias.grad])
        assert module.fetched == (1 if kind == "none" else 2)
    torch.testing.assert_close(*gradients, rtol=0, atol=0)
