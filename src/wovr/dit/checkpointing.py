"""Activation checkpointing: the backward pass computes activations again instead of keeping them.

`selective` is that of `torch.utils.checkpoint.create_selective_checkpoint_contexts`, whose own contexts expect the
second computation to repeat the first operation by operation, and alias results that may be changed in place. Under
DeepSpeed's ZeRO-3 neither holds: hooks gather and free parameters, and biases are added in place, which made wrong
gradients. The contexts here mind products alone and keep copies.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only
from torch.utils.checkpoint import checkpoint

Checkpointing = Literal["none", "selective", "full"]

PRODUCTS = {
    torch.ops.aten.mm.default,
    torch.ops.aten.addmm.default,
    torch.ops.aten.bmm.default,
    torch.ops.aten._scaled_dot_product_flash_attention.default,
    torch.ops.aten._scaled_dot_product_efficient_attention.default,
    torch.ops.aten._scaled_dot_product_cudnn_attention.default,
}
"""Matrix products and attention, the costly part: `selective` keeps their results."""


def call(module: nn.Module, kind: Checkpointing, *inputs: Any) -> Any:
    """`module(*inputs)`, of whose activations the backward pass finds those that `kind` keeps.

    The module is called as a whole, so that its hooks run in the second computation too. It must draw nothing.
    """
    if kind == "none" or not torch.is_grad_enabled():
        return module(*inputs)
    contexts: dict[str, Any] = {"context_fn": _contexts} if kind == "selective" else {}
    # Weights that autocast has cast are not kept for the module's next call: they would fill the memory that is saved.
    cached = torch.is_autocast_cache_enabled()
    torch.set_autocast_cache_enabled(False)
    try:
        return checkpoint(module, *inputs, use_reentrant=False, preserve_rng_state=False, **contexts)
    finally:
        torch.set_autocast_cache_enabled(cached)


def _contexts() -> tuple[TorchDispatchMode, TorchDispatchMode]:
    """For the first computation, which keeps results of products, and for the second, which takes them."""
    kept: deque[Any] = deque()

    def keep(run: Callable[[], Any]) -> Any:
        result = run()
        kept.append(tree_map_only(Tensor, torch.clone, result))
        return result

    return _Products(keep), _Products(lambda run: kept.popleft())


class _Products(TorchDispatchMode):
    """Leaves matrix products to `handle`, which gets a function that computes one."""

    def __init__(self, handle: Callable[[Callable[[], Any]], Any]) -> None:
        super().__init__()
        self.handle = handle

    def __torch_dispatch__(self, operation: Any, types: Any, inputs: Any = (), options: Any = None) -> Any:
        def run() -> Any:
            return operation(*inputs, **(options or {}))

        return self.handle(run) if operation in PRODUCTS else run()
