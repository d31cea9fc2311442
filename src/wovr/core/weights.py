"""What a trainer trains: a model with its optimiser and its average, among one process or several.

Legend: B batch.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Protocol

from torch import Tensor, nn

from wovr.core.checkpoint import fill
from wovr.core.dist import Dist
from wovr.core.optim import Optimizer
from wovr.core.train_state import SavedState

Batch = Mapping[str, Any]
"""Tensors, or lists, that all have the leading dimension B."""
LossFn = Callable[[nn.Module, Batch], tuple[Tensor, dict[str, Tensor]]]
"""(model, batch) -> (loss (B,), logs of shape (B,) each): one value per sample, never a mean."""


class Weights(Protocol):
    """A model with its optimiser and its average: whole on every rank (`Replica`) or sharded (`core.zero.Sharded`)."""

    model: nn.Module

    def loss(self, loss_fn: LossFn, part: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """What `loss_fn` makes of this rank's part of a batch."""
        ...

    def backward(self, loss: Tensor, *, last: bool) -> None:
        """Add a rank's share of the global loss to the gradients; `last` of this step or not."""
        ...

    def update(self) -> float:
        """Clip, step and average; returns the norm of the global gradient before clipping."""
        ...

    def clear(self) -> None:
        """Drop the gradients."""
        ...

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """`model.`, `optimizer.` and names of their own: all that decides the following steps, whole."""
        ...

    def load(self, saved: SavedState) -> None:
        """Continue from `tensors`."""
        ...

    def result(self) -> nn.Module:
        """The model to use, in eval mode: the average where one is kept."""
        ...

    def judged(self) -> nn.Module:
        """As `result`, for a validation in inference's precision: without a copy where the weights that are trained are
        the same numbers."""
        ...

    def acting(self) -> nn.Module:
        """The weights as they are trained, whole on this rank and in eval mode, to be used until the next update."""
        ...

    def states(self) -> Iterable[Tensor]:
        """What lies on the device between updates and is for training alone: moments, masters, the average."""
        ...

    def close(self) -> None:
        """Let go of what other processes share."""
        ...


class Replica:
    """`Weights` that every rank has whole; gradients are summed over ranks."""

    def __init__(self, model: nn.Module, optimizer: Optimizer, dist: Dist) -> None:
        self.model, self._optimizer, self._dist = model, optimizer, dist
        self._config = optimizer.config

    def loss(self, loss_fn: LossFn, part: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        with self._dist.autocast(self._config.precision):
            return loss_fn(self.model, part)

    def backward(self, loss: Tensor, *, last: bool) -> None:
        loss.backward()

    def update(self) -> float:
        self._dist.sum_gradients(self._optimizer.parameters)
        limit = self._config.grad_clip or math.inf
        norm = nn.utils.clip_grad_norm_(self._optimizer.parameters, limit).item()
        if math.isfinite(norm):
            self._optimizer.step()
        return norm

    def clear(self) -> None:
        self._optimizer.clear()

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        yield from ((f"model.{name}", value) for name, value in self.model.state_dict().items())
        yield from ((f"optimizer.{name}", value) for name, value in self._optimizer.state().items())

    def load(self, saved: SavedState) -> None:
        fill(self.model, _under("model.", saved), saved.path)
        self._optimizer.load(_under("optimizer.", saved))

    def result(self) -> nn.Module:
        if not self._config.ema_decay:
            return self.model.eval()
        model = copy.deepcopy(self.model).requires_grad_(False).eval()
        model.load_state_dict(self._optimizer.averages(), strict=False)
        return model

    def judged(self) -> nn.Module:
        return self.result()

    def acting(self) -> nn.Module:
        return self.model.eval()

    def states(self) -> Iterable[Tensor]:
        return self._optimizer.large()

    def close(self) -> None:
        pass


def _under(prefix: str, saved: SavedState) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): saved[name] for name in saved if name.startswith(prefix)}
