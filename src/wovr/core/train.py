"""The one optimisation loop: warm-up, clipping, EMA, micro-batches, exact resume.

Losses come per sample and are divided by the global batch size, so neither the number of micro-batches nor the
number of ranks changes a step. `batch_at` is a pure function of the step, so a resumed run repeats the
uninterrupted one bit for bit. Legend: B batch.
"""

from __future__ import annotations

import itertools
import json
import math
import shutil
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import Field
from torch import Tensor, nn

from wovr.core.checkpoint import fill, load_tensors, save_tensors
from wovr.core.config import first_difference
from wovr.core.dist import Dist
from wovr.core.errors import UserError
from wovr.core.log import RunLog
from wovr.core.optim import OptimConfig, Optimizer, learning_rate
from wovr.core.train_state import find_state, save_state
from wovr.core.weights import Batch, LossFn, Replica, Weights
from wovr.core.zero import Sharded


class TrainConfig(OptimConfig):
    """How long and how often."""

    steps: int = Field(gt=0)
    """Optimiser steps."""
    batch_size: int = Field(32, gt=0)
    """Samples per step over all ranks."""
    accumulate: int = Field(1, gt=0)
    """Micro-batches per step and rank: less memory, same result."""
    log_every: int = Field(50, gt=0)
    """Steps between lines of the log; a line holds the means since the last."""
    checkpoint_every: int = Field(500, ge=0)
    """Steps between saved states, which bound what an interruption costs; 0 saves only the last."""
    validate_every: int = Field(0, ge=0)
    """Steps between validations; 0 validates only at the end."""
    patience: int = Field(0, ge=0)
    """Validations in a row without a better score after which training stops, and the best weights are taken; 0 trains
    to the end and takes the last."""


BEST = "best.safetensors"
"""Within the state's folder: the weights of the best validation."""
RESULT_NEUTRAL = {"accumulate", "log_every", "checkpoint_every"}
"""Keys that may change when a training is resumed."""


def is_sharded(config: OptimConfig, dist: Dist) -> bool:
    """Whether ZeRO shards a training. Muon needs whole matrices: what it trains is whole on every rank."""
    return dist.zero is not None and not config.muon_lr


class Trainer:
    """A model, its optimiser and its average, advanced one global batch at a time."""

    def __init__(self, model: nn.Module, config: OptimConfig, dist: Dist, total_steps: int) -> None:
        """Moves `model` to the device of `dist`; parameters without `requires_grad` stay frozen."""
        self.config, self.dist, self.total_steps = config, dist, total_steps
        self.steps_done = 0
        sharded = is_sharded(config, dist)
        self._optimizer = Optimizer(model if sharded else dist.prepare(model), config)  # DeepSpeed moves it itself
        self._weights: Weights = (Sharded if sharded else Replica)(model, self._optimizer, dist)

    def step(self, batch: Batch, loss_fn: LossFn, micro_batches: int = 1) -> dict[str, float]:
        """One update from the GLOBAL batch, which every rank passes whole and takes its slice of.

        Returns the logs of `loss_fn` averaged over the global batch, with `loss`, `grad_norm` (before clipping)
        and `lr`. Raises UserError when the loss or its gradient is not finite, what is on disk being as it was, and
        when a process or micro-batch would go without a sample.
        """
        size, parts = batch_size(batch), self.dist.world_size * micro_batches
        if size < parts:
            raise UserError(
                f"batch: expected {parts} samples or more, one for each of {self.dist.world_size} processes and "
                f"{micro_batches} micro-batches, found {size}"
            )
        mine = split(batch, self.dist.world_size)[self.dist.rank]
        total: dict[str, Tensor] = {}
        for number, part in enumerate(split(mine, micro_batches), start=1):
            part = {key: on_device(value, self.dist.device) for key, value in part.items()}
            loss_B, logs = self._weights.loss(loss_fn, part)
            assert loss_B.ndim == 1, "losses are per sample, shape (B,)"
            self._weights.backward(loss_B.sum() / size, last=number == micro_batches)
            for key, value in {**logs, "loss": loss_B}.items():
                assert value.shape == loss_B.shape, f"log {key!r} is not per sample"
                total[key] = total.get(key, 0) + value.detach().float().sum() / size
        names = sorted(total)
        values = dict(zip(names, self.dist.sum(torch.stack([total[name] for name in names])).tolist(), strict=True))
        values["lr"] = learning_rate(self.steps_done, self.config, self.total_steps)
        values["grad_norm"] = self._update(values["loss"], values["lr"])
        self.steps_done += 1
        return values

    def _update(self, loss: float, rate: float) -> float:
        self._optimizer.prepare(rate, self.steps_done)
        norm = self._weights.update() if math.isfinite(loss) else math.nan
        if not math.isfinite(norm):
            self._weights.clear()
            raise UserError(
                f"training step {self.steps_done}: expected a finite loss and gradient, found loss {loss:g} and "
                f"gradient norm {norm:g}; try a smaller lr (now {self.config.lr:g}); the last checkpoint is intact"
            )
        return norm

    def result(self) -> nn.Module:
        """The model to use, in eval mode: the average where one is kept. Every rank calls this."""
        return self._weights.result()

    def judged(self) -> nn.Module:
        """The same for a validation, without a copy where one can be saved; it may change with the next step."""
        return self._weights.judged()

    def acting(self) -> nn.Module:
        """The weights as they are trained, to act with until the next step. Every rank calls this; what it then does
        with them is its own affair."""
        return self._weights.acting()

    def states(self) -> Iterable[Tensor]:
        """What lies on the device between steps and is for training alone."""
        return self._weights.states()

    def save(self, folder: Path, **metadata: str) -> None:
        """Write all that decides the following steps: weights, average, moments, step, random state, config."""
        random = ((f"random.{rank}", value) for rank, value in enumerate(self.dist.gather(torch.get_rng_state())))
        tensors = itertools.chain(self._weights.tensors(), random)
        config = self.config.model_dump_json()
        save_state(folder, tensors, step=self.steps_done, dist=self.dist, config=config, **metadata)

    def resume(self, folder: Path) -> dict[str, str] | None:
        """Continue from `save` as if never interrupted; returns the metadata given to it, None where there is none.

        Raises UserError when the state belongs to another config or model.
        """
        saved = find_state(folder)
        if saved is None:
            return None
        if "config" not in saved.metadata:
            raise UserError(f"{saved.path}: expected a training state, found no 'config' in its header")
        self._check_config(saved.path, json.loads(saved.metadata["config"]))
        self._weights.load(saved)
        mine = f"random.{self.dist.rank}"
        torch.set_rng_state(saved[mine if mine in saved else "random.0"])
        self.steps_done = int(saved.metadata["step"])
        return saved.metadata

    def close(self) -> None:
        """Let go of what other processes share. The model of `result` stays."""
        self._weights.close()

    def _check_config(self, path: Path, saved: dict[str, Any]) -> None:
        now = json.loads(self.config.model_dump_json())
        for key in RESULT_NEUTRAL:
            saved.pop(key, None)
            now.pop(key, None)
        difference = first_difference(saved, now)
        if difference:
            key, before, after = difference
            raise UserError(
                f"{path}: key '{key}': this state was trained with {before!r}, found {after!r}; "
                "restore the value or delete the folder to start anew"
            )


@dataclass(frozen=True, slots=True)
class FitResult:
    """What `fit` returns."""

    model: nn.Module
    """The model to use, in eval mode: the average where one is kept."""
    history: list[dict[str, float]]
    """The logged lines: `step` and means since the last line; validations have keys `validation/…`."""
    state: Path
    """The folder of the final training state."""
    validation: dict[str, float]
    """`step` and `validation/…` of the model to use; empty without validation."""

    def clean(self) -> None:
        """Remove the training state. For once the artifact is saved: until then it makes `fit` return at once."""
        shutil.rmtree(self.state, ignore_errors=True)


def fit(
    model: nn.Module,
    loss_fn: LossFn,
    batch_at: Callable[[int], Batch],
    config: TrainConfig,
    *,
    dist: Dist,
    folder: Path,
    log: RunLog,
    name: str,
    validate: Callable[[nn.Module], dict[str, float]] | None = None,
    score: str = "",
) -> FitResult:
    """Train for `config.steps`, resuming from `folder/NAME.state` when it is there.

    `batch_at(step)` gives the whole global batch on every rank and depends on nothing but the step. `validate` gets
    the model to use, in eval mode and without gradient, on every rank. `score` is that key of its result, more being
    better, which `config.patience` goes by.
    """
    if config.patience and not (validate and score):
        raise UserError(f"{name}: expected patience=0 where nothing is validated, found {config.patience}")
    if dist.zero and not is_sharded(config, dist):
        log.info(f"{name}: Muon needs whole matrices, so that every process holds all states; muon_lr=0 shards them")
    state = folder / f"{name}.state"
    trainer = Trainer(model, config, dist, config.steps)
    history: list[dict[str, float]] = []
    recent: list[dict[str, float]] = []  # the steps since the last logged line
    metadata = trainer.resume(state)
    if metadata is not None:
        history, recent = json.loads(metadata["history"]), json.loads(metadata["recent"])
    model.train()
    with log.progress(name, config.steps, done=trainer.steps_done) as bar:
        while trainer.steps_done < config.steps and not _stale(history, score, config.patience):
            values = trainer.step(batch_at(trainer.steps_done), loss_fn, config.accumulate)
            recent.append(values)
            bar.advance(1, loss=values["loss"])
            done = trainer.steps_done
            last = done == config.steps
            line: dict[str, float] = {}
            if last or done % config.log_every == 0:
                line |= {key: sum(step[key] for step in recent) / len(recent) for key in values}
                recent = []
            if validate and (last or (config.validate_every and done % config.validate_every == 0)):
                judged = trainer.result() if config.patience else trainer.judged()
                with torch.no_grad():
                    found = validate(judged)
                line |= {f"validation/{key}": value for key, value in found.items()}
                if config.patience and dist.is_main and found[score] >= max([found[score], *_scores(history, score)]):
                    save_tensors(state / BEST, judged.state_dict(), step=str(done))
                del judged  # it may be a copy of gigabytes
                model.train()
            if line:
                history.append({"step": done, **line})
                log.metrics(name, done, line)
            last = last or _stale(history, score, config.patience)
            if last or (config.checkpoint_every and done % config.checkpoint_every == 0):
                trainer.save(state, history=json.dumps(history), recent=json.dumps(recent))
    result = trainer.result()
    trainer.close()
    dist.barrier()
    validated = [line for line in history if any(key.startswith("validation/") for key in line)]
    taken = validated[-1] if validated else {}
    if config.patience:
        best, metadata = load_tensors(state / BEST)
        fill(result, best, state / BEST)
        taken = next(line for line in validated if line["step"] == int(metadata["step"]))
    validation = {key: value for key, value in taken.items() if key == "step" or key.startswith("validation/")}
    return FitResult(result, history, state, validation)


def _scores(history: list[dict[str, float]], score: str) -> list[float]:
    return [line[f"validation/{score}"] for line in history if f"validation/{score}" in line]


def _stale(history: list[dict[str, float]], score: str, patience: int) -> bool:
    """Whether the last `patience` validations all fell short of the best before them."""
    scores = _scores(history, score)
    return 0 < patience < len(scores) and max(scores[-patience:]) < max(scores[:-patience])


def batch_size(batch: Batch) -> int:
    """B, the same for every value."""
    sizes = {len(value) for value in batch.values()}
    assert len(sizes) == 1, f"values of a batch differ in length: {sorted(sizes)}"
    return sizes.pop()


def split(batch: Batch, parts: int) -> list[Batch]:
    """Consecutive slices along dimension 0, as equal as can be."""
    size = batch_size(batch)
    bounds = [size * part // parts for part in range(parts + 1)]
    return [{key: value[start:stop] for key, value in batch.items()} for start, stop in itertools.pairwise(bounds)]


def on_device(value: Any, device: torch.device) -> Any:
    """A tensor there; anything else as it is."""
    return value.to(device, non_blocking=True) if isinstance(value, Tensor) else value
