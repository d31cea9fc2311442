"""Tensors that leave the device while nobody needs them (Appendix A: collocated placement).

Rollouts need policy and world model, training needs the policy with its gradients and the optimiser's state. On one
device both fit only one after the other, so that each waits in host memory through the other's phase.

What moves is the storage. Views of it, and whoever holds a tensor, as an optimiser or DeepSpeed does, find it again
where it was; nothing has to be linked anew. Buffers on the host are pinned where there is a GPU, and made once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

Tensors = Callable[[], Iterable[Tensor]]


@dataclass(slots=True)
class _Home:
    """Where a storage waits."""

    storage: torch.UntypedStorage
    buffer: Tensor
    """uint8, on the host."""


class Parked:
    """Tensors that are parked on the host and brought back, all together."""

    def __init__(self, tensors: Tensors, *, frozen: bool = False) -> None:
        """`tensors` names them anew each time: an optimiser's state grows. `frozen` ones never change, so that they are
        copied to the host once, and after that only dropped from the device."""
        self._tensors, self._frozen = tensors, frozen
        self._homes: dict[int, _Home] = {}
        self.parked = False
        """Whether they wait on the host."""
        self.moves = 0
        """How often tensors were parked or brought back."""
        self.bytes_moved = 0
        """Between device and host, so far."""

    @torch.no_grad()
    def park(self) -> None:
        """Free the device of them. They must not be read or written before `bring`."""
        assert not self.parked, "parked already"
        before, self._homes = self._homes, {}
        for tensor in self._tensors():
            if not tensor.untyped_storage().resizable():  # mapped from a file
                tensor.data = tensor.data.clone()
            storage = tensor.untyped_storage()
            if storage._cdata in self._homes:  # another view of it
                continue
            home = before.get(storage._cdata)
            if home is None or home.buffer.nbytes != storage.nbytes():
                buffer = torch.empty(storage.nbytes(), dtype=torch.uint8, pin_memory=torch.cuda.is_available())
                home = _Home(storage, buffer)
                self._copy(home, to_host=True)
            elif not self._frozen:
                self._copy(home, to_host=True)
            self._homes[storage._cdata] = home
        _wait()
        for home in self._homes.values():
            home.storage.resize_(0)
        self.parked = True
        if torch.cuda.is_available():
            torch.cuda.empty_cache()  # for the other phase, whose blocks have other sizes
        self.moves += 1

    @torch.no_grad()
    def bring(self) -> None:
        """Put them back on the device, as they were."""
        assert self.parked, "not parked"
        for home in self._homes.values():
            home.storage.resize_(home.buffer.nbytes)
            self._copy(home, to_host=False)
        _wait()
        self.parked = False
        self.moves += 1

    def _copy(self, home: _Home, *, to_host: bool) -> None:
        on_device = torch.empty(0, dtype=torch.uint8, device=home.storage.device).set_(home.storage)
        source, target = (on_device, home.buffer) if to_host else (home.buffer, on_device)
        target.copy_(source, non_blocking=True)
        self.bytes_moved += home.buffer.nbytes


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
