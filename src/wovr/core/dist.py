"""Devices, ranks and precision. The only file that imports accelerate.

A plain start is one process and never pays for the import. Under `torchrun` or `accelerate launch` gradients
are summed over ranks once per optimiser step: explicitly, and not by a wrapper around the module, so that a
loss function may call any method of its model. `prepare` is the one place where a wrapper (DeepSpeed) belongs.
"""

from __future__ import annotations

import atexit
import os
from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from functools import cache
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor, nn

Precision = Literal["auto", "bf16", "fp32"]
ModuleT = TypeVar("ModuleT", bound=nn.Module)


@cache
def precision(requested: Precision = "auto") -> Literal["bf16", "fp32"]:
    """What to compute in. `auto` is bf16 where it is fast: on a GPU, or on a CPU with AVX512-BF16 or AMX.

    Elsewhere `auto` is fp32 and lets matrix products use the fast "medium" mode; an explicit `fp32` stays exact.
    """
    if requested != "auto":
        return requested
    cpu = torch.cpu.get_capabilities()
    if torch.cuda.is_available() or cpu.get("avx512_bf16") or cpu.get("amx_bf16"):
        return "bf16"
    torch.set_float32_matmul_precision("medium")
    return "fp32"


class Dist:
    """This process among its peers. One process is rank 0 of 1."""

    def __init__(self) -> None:
        self._accelerator = _accelerator() if int(os.environ.get("WORLD_SIZE", "1")) > 1 else None
        if self._accelerator is None:
            self.rank, self.world_size = 0, 1
            self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        else:
            self.rank, self.world_size = self._accelerator.process_index, self._accelerator.num_processes
            self.device = self._accelerator.device
            atexit.register(self._accelerator.end_training)  # else its threads may outlive the interpreter and abort

    @property
    def is_main(self) -> bool:
        """Whether this rank writes files and shows progress."""
        return self.rank == 0

    def autocast(self, requested: Precision = "auto") -> AbstractContextManager[Any]:
        """Run the forward pass in bf16 where `precision` says so."""
        if precision(requested) == "fp32":
            return nullcontext()
        return torch.autocast(self.device.type, dtype=torch.bfloat16)

    def prepare(self, model: ModuleT) -> ModuleT:
        """Move a model to this rank's device and give every rank the weights of rank 0."""
        model.to(self.device)
        if self._accelerator is not None:
            for tensor in model.state_dict().values():
                torch.distributed.broadcast(tensor, src=0)
        return model

    def sum_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Replace every gradient by its sum over ranks."""
        if self._accelerator is None:
            return
        for parameter in parameters:
            if parameter.grad is None:  # unused on this rank, perhaps used on another
                parameter.grad = torch.zeros_like(parameter)
            torch.distributed.all_reduce(parameter.grad)

    def sum(self, tensor: Tensor) -> Tensor:
        """Sum over ranks, the same on each."""
        if self._accelerator is None:
            return tensor
        total: Tensor = self._accelerator.reduce(tensor, reduction="sum")
        return total

    def barrier(self) -> None:
        """Wait for every rank."""
        if self._accelerator is not None:
            self._accelerator.wait_for_everyone()


def _accelerator() -> Any:
    from accelerate import Accelerator

    return Accelerator(cpu=not torch.cuda.is_available())
