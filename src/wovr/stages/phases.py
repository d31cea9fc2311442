"""The two phases of an RL update on one device: rollouts, then training; and what each costs (Appendix A)."""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from wovr.core.placement import Parked
from wovr.core.train import Trainer


class Phases:
    """Says which phase it is, times it, and moves what only the other one needs at the border, nowhere else.

    Collocated, the world model waits on the host while the policy trains, the optimiser's state and the base policy
    while it acts. The policy's own weights serve both and stay.
    """

    def __init__(self, trainer: Trainer, base: nn.Module | None, *, collocated: bool) -> None:
        """It begins in the rollout phase; what is made after that, as the world model, is made there."""
        self.collocated = collocated
        self.seconds: dict[str, float] = {}
        """Of the last phase of each name."""
        self.peaks: dict[str, float] = {}
        """Bytes at the peak of the last phase of each name."""
        self.of_rollouts: list[Parked] = []
        device = trainer.dist.device.type
        # What is offloaded lies on the host already.
        self.of_training = [Parked(lambda: (state for state in trainer.states() if state.device.type == device))]
        if base is not None:
            self.of_training.append(Parked(lambda: tensors_of(base), frozen=True))
        self._rolling = True
        self._leave: Callable[[], None] | None = None
        for parked in self.of_training if collocated else ():
            parked.park()

    def add_world(self, modules: Iterable[nn.Module], leave: Callable[[], None]) -> None:
        """What rollouts need beside the policy. `leave` gives up what they keep from chunk to chunk."""
        held = list(modules)
        self.of_rollouts.append(Parked(lambda: (tensor for one in held for tensor in tensors_of(one)), frozen=True))
        self._leave = leave

    @contextmanager
    def rollouts(self) -> Iterator[None]:
        """Within, policy and world are on the device."""
        with self._timed("rollout"):
            if not self._rolling:
                self._swap(self.of_training, self.of_rollouts)
                self._rolling = True
            yield

    @contextmanager
    def training(self) -> Iterator[None]:
        """Within, policy, optimiser's state and base policy are on the device."""
        with self._timed("training"):
            if self._rolling:
                if self._leave is not None:
                    self._leave()
                self._swap(self.of_rollouts, self.of_training)
                self._rolling = False
            yield

    @property
    def moves(self) -> int:
        """Times that something was parked or brought back."""
        return sum(parked.moves for parked in (*self.of_rollouts, *self.of_training))

    def metrics(self) -> dict[str, float]:
        """For the log: of the last phases."""
        seconds = {f"seconds_{name}": value for name, value in self.seconds.items()}
        return seconds | {f"memory_{name}_gb": value / 1e9 for name, value in self.peaks.items()}

    def _swap(self, out: list[Parked], back: list[Parked]) -> None:
        if not self.collocated:
            return
        for parked in out:
            parked.park()
        for parked in back:
            parked.bring()

    @contextmanager
    def _timed(self, name: str) -> Iterator[None]:
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()
        began = time.monotonic()
        yield
        self.seconds[name] = time.monotonic() - began
        self.peaks[name] = peak_memory()


def tensors_of(module: nn.Module) -> Iterator[Tensor]:
    """Parameters and buffers."""
    yield from module.parameters()
    yield from module.buffers()


def peak_memory() -> float:
    """Most bytes of the GPU's tensors since the last reset; without a GPU, of this process in its life."""
    if torch.cuda.is_available():
        return float(torch.cuda.max_memory_allocated())
    unit = 1 if sys.platform == "darwin" else 1024
    return float(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit)
