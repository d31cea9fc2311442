"""Devices, ranks and precision. The only file that imports accelerate.

A plain start is one process and never pays for the import. What several processes train, and how they share it, is in
`core/weights.py` (whole on every rank) and `core/zero.py` (sharded by DeepSpeed).
"""

from __future__ import annotations

import atexit
import gc
import os
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from datetime import timedelta
from functools import cache
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from wovr.core.checkpoint import read_json
from wovr.core.errors import UserError

Precision = Literal["auto", "bf16", "fp32"]
ModuleT = TypeVar("ModuleT", bound=nn.Module)
T = TypeVar("T")

BUCKET = 2**24
"""Elements of gradients that are summed over ranks at once, or one gradient that is larger."""
PIECE = 2**26
"""Bytes of an array that travel at once: through the GPU's memory where there is one."""
PATIENCE = timedelta(days=2)
"""How long ranks wait for each other. Rank 0 may simulate for hours meanwhile; that one died the launcher notices."""


@cache
def precision(requested: Precision = "auto") -> Literal["bf16", "fp32"]:
    """What to compute in. `auto` is bf16 where it is fast: on a GPU, or on a CPU with AMX.

    AVX512-BF16 alone does not make it so: there fp32 trains 1.2 times and imagines 2.4 times as fast.
    """
    if requested != "auto":
        return requested
    return "bf16" if torch.cuda.is_available() or torch.cpu.get_capabilities().get("amx_bf16") else "fp32"


class Dist:
    """This process among its peers. One process is rank 0 of 1."""

    def __init__(self, zero: Path | None = None, *, offload: bool = False) -> None:
        """`zero` is DeepSpeed's settings as JSON, as configs/deepspeed/zero2.json: trainings are sharded so.

        `offload` keeps the sharded moments in the CPU's memory and updates them there.
        """
        self.zero = None if zero is None else _zero_settings(zero, offload)
        several = int(os.environ.get("WORLD_SIZE", "1")) > 1
        self._accelerator = _accelerator() if several or zero else None
        if self._accelerator is None:
            self.rank, self.world_size = 0, 1
            self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        else:
            self.rank, self.world_size = self._accelerator.process_index, self._accelerator.num_processes
            self.device = self._accelerator.device
            atexit.register(self._leave)

    def alone(self) -> Dist:
        """This process without its peers: for work that rank 0 does while they wait."""
        lone = object.__new__(Dist)
        lone.zero, lone._accelerator = None, None
        lone.rank, lone.world_size, lone.device = 0, 1, self.device
        return lone

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
        """Replace every gradient by its sum over ranks. Small ones travel together: each journey has its price."""
        if self._accelerator is None:
            return
        bucket: list[Tensor] = []
        held = 0
        for parameter in parameters:
            if parameter.grad is None:  # unused on this rank, perhaps used on another
                parameter.grad = torch.zeros_like(parameter)
            bucket.append(parameter.grad)
            held += parameter.numel()
            if held > BUCKET:
                _sum_together(bucket)
                bucket, held = [], 0
        _sum_together(bucket)

    def sum(self, tensor: Tensor) -> Tensor:
        """Sum over ranks, the same on each."""
        if self._accelerator is None:
            return tensor
        total: Tensor = self._accelerator.reduce(tensor, reduction="sum")
        return total

    def gather(self, value: T) -> list[T]:
        """Something small of each rank, in their order, on every rank; tensors on the CPU."""
        if self._accelerator is None:
            return [value]
        found: list[Any] = [None] * self.world_size
        torch.distributed.all_gather_object(found, value)
        return found

    def concatenate(self, rows: NDArray[Any]) -> NDArray[Any]:
        """The rows of all ranks, in their order, on every rank. Ranks may have different numbers of them."""
        if self._accelerator is None:
            return rows
        counts = self.gather(len(rows))
        whole = np.empty((sum(counts), *rows.shape[1:]), dtype=rows.dtype)
        ends = np.cumsum(counts)
        whole[ends[self.rank] - len(rows) : ends[self.rank]] = rows
        for rank, (end, count) in enumerate(zip(ends, counts, strict=True)):
            part = torch.from_numpy(whole[end - count : end].reshape(-1).view(np.uint8))
            for piece in part.split(PIECE):
                moved = piece.to(self.device)
                torch.distributed.broadcast(moved, src=rank)
                piece.copy_(moved)
        return whole

    def barrier(self) -> None:
        """Wait for every rank."""
        if self._accelerator is not None:
            self._accelerator.wait_for_everyone()

    def on_main(self, work: Callable[[], object]) -> None:
        """Let rank 0 do `work`, and every rank wait for it: files are written once and read after that."""
        if self.is_main:
            work()
        self.barrier()

    def close(self) -> None:
        """Leave the group of processes, all together. A thread of gloo that outlives the interpreter would abort it."""
        self.barrier()
        self._leave()

    def _leave(self) -> None:
        """At the end of a process that failed, too: without waiting for the others."""
        if self._accelerator is None:
            return
        gc.collect()
        self._accelerator.end_training()
        self._accelerator = None
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()


def _sum_together(tensors: list[Tensor]) -> None:
    """Sum over ranks, in place."""
    if tensors:
        flat = torch.cat([tensor.flatten() for tensor in tensors])
        torch.distributed.all_reduce(flat)
        for tensor, part in zip(tensors, flat.split([tensor.numel() for tensor in tensors]), strict=True):
            tensor.copy_(part.view_as(tensor))


def _zero_settings(path: Path, offload: bool) -> dict[str, Any]:
    settings = read_json(path)
    zero = settings.get("zero_optimization") if isinstance(settings, dict) else None
    if not isinstance(zero, dict) or zero.get("stage") not in (1, 2, 3):
        raise UserError(f"{path}: key 'zero_optimization.stage': expected 1, 2 or 3 in DeepSpeed's settings")
    if offload:
        zero["offload_optimizer"] = {"device": "cpu", "pin_memory": torch.cuda.is_available()}
    return dict(settings)


def _accelerator() -> Any:
    from accelerate import Accelerator, InitProcessGroupKwargs

    waiting = InitProcessGroupKwargs(timeout=PATIENCE)
    return Accelerator(cpu=not torch.cuda.is_available(), kwargs_handlers=[waiting])
