"""What a computation would hold in memory and multiply, found by running it on tensors that have shapes but no numbers.

Every operation is seen, forward and backward, and storages are counted from their making to their release. So nothing
is estimated: what autograd keeps, what autocast copies and what lives for one operation only all count, and a change of
the model changes the figure. Not seen is what kernels and allocators take for themselves.

No tensor can pose as one on a GPU where torch was built without. `meta` tensors stand for these, and `Shapes` does what
a GPU would do otherwise: one fused kernel for attention, and autocast.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, Self

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

PRODUCTS = (F.linear, F.conv2d, F.conv3d, F.scaled_dot_product_attention)
MATMULS = (torch.matmul, torch.bmm, Tensor.matmul, Tensor.__matmul__)
"""What autocast runs in bf16 on a GPU."""
NORMS = (F.layer_norm, F.group_norm)
"""What it runs in fp32."""


@dataclass(frozen=True, slots=True)
class Footprint:
    """One run of a computation."""

    flops: int
    """Of matrix products, convolutions and attention; a multiplication and an addition are two."""
    levels: tuple[tuple[int, int], ...]
    """(bytes of finished gradients, most bytes of all else that lived beside them), in order. What was there before, as
    the weights, does not count."""

    def peak(self, gradients: float = 1.0) -> float:
        """Most bytes alive at once, where this share of the gradients stays on the device."""
        return max(live + gradients * finished for finished, live in self.levels)


class Shapes(TorchFunctionMode):
    """Within this context tensors and modules have no numbers and cost no memory: on a GPU, or on this CPU."""

    def __init__(self, gpu: bool) -> None:
        super().__init__()
        self.gpu = gpu
        self._stack = ExitStack()
        self._autocasts = False
        self._copies: dict[Tensor, Tensor] | None = None
        """bf16 copies of weights, which autocast keeps while the forward pass lasts."""

    def __enter__(self) -> Self:
        self._stack.enter_context(torch.device("meta" if self.gpu else "cpu"))
        if not self.gpu:
            self._stack.enter_context(FakeTensorMode(allow_non_fake_inputs=True))
        super().__enter__()
        return self

    def __exit__(self, *raised: Any) -> None:
        super().__exit__(*raised)
        self._stack.__exit__(*raised)

    def place(self, model: nn.Module, dtype: torch.dtype | None = None) -> None:
        """Bring a module from `meta` here, in place; `dtype` casts what is floating point."""

        def placed(tensor: Tensor) -> Tensor:
            kind = dtype if dtype and tensor.is_floating_point() else tensor.dtype
            return torch.empty_strided(tensor.size(), tensor.stride(), dtype=kind)

        for module in model.modules():
            for name, parameter in list(module.named_parameters(recurse=False)):
                setattr(module, name, nn.Parameter(placed(parameter), parameter.requires_grad))
            for name, buffer in list(module.named_buffers(recurse=False)):
                setattr(module, name, placed(buffer))

    def training(self, model: nn.Module, loss: Callable[[nn.Module], Tensor], *, autocast: bool) -> Footprint:
        """Of the forward and backward pass of one micro-batch. `loss` makes the batch and returns a scalar; `autocast`
        computes in bf16 whatever the weights are."""
        trace = _Trace([*model.parameters(), *model.buffers()])
        hooks = [
            parameter.register_post_accumulate_grad_hook(trace.finish)
            for parameter in model.parameters()
            if parameter.requires_grad
        ]
        with trace:
            with self._autocast() if autocast else nullcontext():
                value = loss(model)
            # The engine itself: during `backward` this context would be left, and what is checkpointed runs then.
            torch.autograd.Variable._execution_engine.run_backward(
                (value,), (torch.ones_like(value),), False, False, (), allow_unreachable=True, accumulate_grad=True
            )
        for hook in hooks:
            hook.remove()
        return trace.footprint()

    def inference(self, work: Callable[[], Any], modules: Iterable[nn.Module]) -> Footprint:
        """Of `work` without gradient; what it returns lives to the end."""
        trace = _Trace([tensor for module in modules for tensor in (*module.parameters(), *module.buffers())])
        with trace, torch.no_grad():
            kept = work()
        del kept
        return trace.footprint()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is torch.unique:  # how many rows differ is not known without numbers: all of them
            return args[0], torch.arange(len(args[0]))
        if not self.gpu:
            return func(*args, **kwargs)
        # What checkpointing computes again in the backward pass is autocast too, what a custom backward does is not.
        if self._autocasts and torch.is_grad_enabled():
            if func in PRODUCTS or func in MATMULS:
                args = tuple(self._bf16(value) for value in args)
                kwargs = {key: self._bf16(value) for key, value in kwargs.items()}
            elif func in NORMS:
                args = tuple(value.float() if isinstance(value, Tensor) else value for value in args)
        if func is F.scaled_dot_product_attention:
            return _attention(*args, **kwargs)
        return func(*args, **kwargs)

    def _bf16(self, value: Any) -> Any:
        if not isinstance(value, Tensor) or value.dtype != torch.float32:
            return value
        if self._copies is None or not isinstance(value, nn.Parameter) or not torch.is_autocast_cache_enabled():
            return value.bfloat16()
        if value not in self._copies:
            self._copies[value] = value.bfloat16()
        return self._copies[value]

    @contextmanager
    def _autocast(self) -> Iterator[None]:
        on_cpu: AbstractContextManager[Any] = nullcontext() if self.gpu else torch.autocast("cpu", torch.bfloat16)
        self._autocasts, self._copies = True, {}
        with on_cpu:
            yield
        self._copies = None


def _attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """The kernel that a GPU takes: flash, or where there is a mask the memory-efficient one, which adds it up."""
    assert not enable_gqa, "heads of keys as many as of queries"
    ops = torch.ops.aten
    if attn_mask is None:
        flash = ops._scaled_dot_product_flash_attention
        return flash(query, key, value, dropout_p, is_causal, scale=scale)[0]
    bias = attn_mask.expand(*query.shape[:-1], key.shape[-2]).to(query.dtype)
    efficient = ops._scaled_dot_product_efficient_attention
    return efficient(query, key, value, bias, True, dropout_p, is_causal, scale=scale)[0]


class _Trace(TorchDispatchMode):
    """Counts bytes of live storages, and FLOPs."""

    def __init__(self, known: Iterable[Tensor]) -> None:
        super().__init__()
        self.flops = self.live = self.finished = 0
        self.levels = [[0, 0]]
        self.sizes: dict[int, int] = {tensor.untyped_storage()._cdata: 0 for tensor in known}
        self.gradients: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        count = flop_registry.get(func.overloadpacket)
        if count is not None:
            self.flops += count(*args, **kwargs, out_val=out)
        for value in tree_leaves(out):
            if isinstance(value, Tensor):
                self._note(value.untyped_storage())
        return out

    def finish(self, parameter: Tensor) -> None:
        """The gradient of `parameter` is complete: from here on it counts as one."""
        assert parameter.grad is not None
        key = parameter.grad.untyped_storage()._cdata
        if key not in self.gradients:
            self.gradients.add(key)
            self.live -= self.sizes[key]
            self.finished += self.sizes[key]
            self.levels.append([self.finished, self.live])

    def footprint(self) -> Footprint:
        return Footprint(self.flops, tuple((finished, live) for finished, live in self.levels))

    def _note(self, storage: torch.UntypedStorage) -> None:
        key = storage._cdata
        if key in self.sizes:
            return
        self.sizes[key] = storage.nbytes()
        weakref.finalize(storage, self._release, key)
        self.live += self.sizes[key]
        self.levels[-1][1] = max(self.levels[-1][1], self.live)

    def _release(self, key: int) -> None:
        size = self.sizes.pop(key)
        if key not in self.gradients:
            self.live -= size
