"""Training state that DeepSpeed shards over ranks (ZeRO). The only file that imports deepspeed.

Stage 1 shards the optimiser's moments and the average of the weights, 2 gradients too, 3 weights too. accelerate sets
up the processes; the engines are made here, one per training: a stage trains several models with their own precision
and clipping, and accelerate knows one DeepSpeed setting per process.
"""

from __future__ import annotations

import copy
import gc
import logging
import os
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from wovr.core.checkpoint import check_tensors
from wovr.core.dist import Dist, precision
from wovr.core.optim import Average, Optimizer
from wovr.core.train_state import SavedState

OURS = {
    "train_micro_batch_size_per_gpu": 1,  # batches are cut by the trainer
    "zero_allow_untested_optimizer": True,  # torch's AdamW, which also keeps the average
    "zero_force_ds_cpu_optimizer": False,  # DeepSpeed's own has to be compiled and keeps no average
    "steps_per_print": None,
}
"""Settings that whoever writes the JSON need not know."""


class Sharded:
    """A model whose training state DeepSpeed shards (ZeRO); see `wovr.core.weights.Weights`.

    In bf16 the weights are bf16, and their masters, which the optimiser updates, fp32. Autocast then serves models that
    mix them with other numbers.
    """

    def __init__(self, model: nn.Module, optimizer: Optimizer, dist: Dist) -> None:
        assert dist.zero is not None
        self.model, self._optimizer, self._dist, self._config = model, optimizer, dist, optimizer.config
        self._moments = [moment for moment in optimizer.moments(optimizer.adamw) if moment != "step"]
        _start_deepspeed()
        import deepspeed

        self._empty = _without_weights(model)
        settings = {
            **dist.zero,
            **OURS,
            "gradient_clipping": self._config.grad_clip,
            "bf16": {"enabled": precision(self._config.precision) == "bf16"},
        }
        for kernel in (parameter for parameter in model.parameters() if parameter.ndim > 2):
            kernel.data = kernel.data.clone(memory_format=torch.contiguous_format)  # DeepSpeed lays weights end to end
        exact = {name: parameter.data for name, parameter in model.named_parameters()}  # bf16 would round them
        trained = {name for name, _ in self._trained()}
        self._frozen = {name: value for name, value in exact.items() if name not in trained}
        buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
        loss = _Loss(model, lambda: dist.autocast(self._config.precision))
        self._engine, *_ = deepspeed.initialize(model=loss, optimizer=optimizer.adamw, config=settings)
        for name, buffer in model.named_buffers():  # a rotary table in bf16 would turn by other angles
            buffer.data = buffers[name].to(buffer.device)
        self._stage = self._engine.zero_optimization_stage()
        self._copy: nn.Module | None = None
        if settings["bf16"]["enabled"]:
            self._set_weights(exact.__getitem__)
        self._make_moments()

    def loss(self, loss_fn: Any, part: Mapping[str, Any]) -> tuple[Tensor, dict[str, Tensor]]:
        """What `loss_fn` makes of this rank's part of a batch."""
        found: tuple[Tensor, dict[str, Tensor]] = self._engine(loss_fn, part)
        return found

    def backward(self, loss: Tensor, *, last: bool) -> None:
        """Add a rank's share of the global loss. DeepSpeed takes the mean over ranks, which undoes the factor."""
        self._engine.set_gradient_accumulation_boundary(last)
        self._engine.backward(loss * self._dist.world_size, scale_wrt_gas=False)

    def update(self) -> float:
        """Clip, step and average; returns the norm of the global gradient before clipping."""
        self._engine.step()
        return float(self._engine.get_global_grad_norm())

    def clear(self) -> None:
        """Drop the gradients."""
        self._engine.optimizer.zero_grad()

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """Names and whole tensors as of a `Replica`, gathered one by one: every rank must go through all."""
        from deepspeed.utils import safe_get_full_optimizer_state

        for name, value in self._weights():
            yield f"model.{name}", value
        steps = next(iter(self._optimizer.adamw.state.values()))["step"]
        for name, parameter in self._trained():
            yield f"optimizer.step.{name}", steps
            for moment in self._moments:
                yield f"optimizer.{moment}.{name}", safe_get_full_optimizer_state(parameter, moment)

    def load(self, saved: SavedState) -> None:
        """Continue from the tensors of a `Replica`, or of any number of ranks under any stage."""
        expected = {f"model.{name}": tuple(value.shape) for name, value in self._empty.state_dict().items()}
        found = {name: saved.shape(name) for name in saved if name.startswith("model.")}
        check_tensors(saved.path, expected, found, "this model")
        self._set_weights(lambda name: saved[f"model.{name}"])
        for state in self._optimizer.adamw.state.values():
            state["step"].fill_(int(saved.metadata["step"]))
        for name, parameter in self._trained():
            for moment in self._moments:
                self._set_state(parameter, saved[f"optimizer.{moment}.{name}"], moment)

    def result(self) -> nn.Module:
        """The model to use, in eval mode, whole and on the CPU: the average where one is kept."""
        from deepspeed.utils import safe_get_full_optimizer_state

        values = dict(self._weights())
        if self._config.ema_decay:
            for name, parameter in self._trained():
                values[name] = safe_get_full_optimizer_state(parameter, Average.KEY).cpu()
        model = copy.deepcopy(self._empty)
        model.load_state_dict(values, assign=True)
        return model.requires_grad_(False).eval()

    def acting(self) -> nn.Module:
        """The weights that are computed with. Stage 3 gathers them into a copy, which is made once: what ranks do with
        it need not keep step."""
        if self._stage < 3:
            return self.model.eval()
        if self._copy is None:
            empty = {
                id(p): nn.Parameter(torch.empty_like(p, device=self._dist.device), False)
                for p in self._empty.parameters()
            }
            self._copy = copy.deepcopy(self._empty, empty).to(self._dist.device).eval()
        for target, (name, parameter) in zip(self._copy.parameters(), self.model.named_parameters(), strict=True):
            with self._whole(parameter):
                target.data = target.data.to(parameter.dtype).copy_(self._frozen.get(name, parameter.data))
        return self._copy

    def states(self) -> Iterable[Tensor]:
        return [*self._flat(), *self._optimizer.large()]

    def judged(self) -> nn.Module:
        """The bf16 weights themselves where they are whole and no average is kept: masters, rounded."""
        whole = self._stage < 3 and precision(self._config.precision) == "bf16"
        return self.model.eval() if whole and not self._config.ema_decay else self.result()

    def close(self) -> None:
        """Give up what the engine holds. Its hooks keep it alive in circles."""
        self._engine.destroy()
        del self._engine
        gc.collect()

    def _trained(self) -> Iterator[tuple[str, nn.Parameter]]:
        return ((name, value) for name, value in self.model.named_parameters() if value.requires_grad)

    def _weights(self) -> Iterator[tuple[str, Tensor]]:
        """Whole and on the CPU: masters, and what is not trained (buffers too) as it was given."""
        from deepspeed.utils import safe_get_full_fp32_param

        trained = dict(self._trained())
        for name, value in self._empty.state_dict().items():
            if name in trained:
                yield name, safe_get_full_fp32_param(trained[name]).cpu()
            else:
                yield name, self._frozen.get(name, value).cpu()

    def _set_weights(self, value_of: Callable[[str], Tensor]) -> None:
        """Masters and the weights that are computed with."""
        for name, parameter in self.model.named_parameters():
            value = value_of(name).to(self._dist.device, torch.float32)
            if parameter.requires_grad:
                self._set_state(parameter, value, None)
            with self._whole(parameter):  # stage 3 takes what rank 0 makes of it
                parameter.data.copy_(value)

    def _set_state(self, parameter: nn.Parameter, value: Tensor, moment: str | None) -> None:
        """A moment, or the master where that is None, from the whole tensor."""
        if self._stage < 3:
            parameter.set_full_hp_param(value, moment)  # type: ignore[attr-defined]  # DeepSpeed adds it
            return
        sharding = parameter._z3_optimizer  # type: ignore[attr-defined]
        size = sharding.get_local_fp32_param(parameter).numel()  # the last ranks' shares are padded
        whole = nn.functional.pad(value.flatten(), (0, size * self._dist.world_size - value.numel()))
        sharding.set_local_hp_param(whole[size * self._dist.rank :][:size], parameter, moment)

    def _whole(self, parameter: nn.Parameter) -> AbstractContextManager[Any]:
        """Within, a parameter that stage 3 has sharded is gathered."""
        from deepspeed.runtime.zero import GatheredParameters

        return GatheredParameters([parameter], modifier_rank=0) if self._stage == 3 else nullcontext()

    def _make_moments(self) -> None:
        """As before the first step. The optimiser would make them only in that step, too late to be filled, and
        DeepSpeed would find those of the first parameter group alone."""
        sharding, adamw = self._engine.optimizer, self._optimizer.adamw
        for values in self._flat():
            moments = {moment: torch.zeros_like(values.data) for moment in self._moments}
            if Average.KEY in moments:
                moments[Average.KEY].copy_(values.data)
            adamw.state[values] = {"step": torch.tensor(0.0, device=values.device), **moments}
        if self._stage < 3:
            sharding._lazy_init_hp_params_optimizer_state()

    def _flat(self) -> list[Tensor]:
        """This rank's share of the masters, end to end."""
        sharding = self._engine.optimizer
        flat = sharding.fp32_partitioned_groups_flat if self._stage == 3 else sharding.single_partition_of_fp32_groups
        return list(flat)


class _Loss(nn.Module):
    """The loss as the output of a module, as DeepSpeed's engine wants it. The engine ends an autocast around itself."""

    def __init__(self, model: nn.Module, autocast: Callable[[], AbstractContextManager[Any]]) -> None:
        super().__init__()
        self.model, self.autocast = model, autocast

    def forward(self, loss_fn: Any, part: Any) -> Any:
        with self.autocast():
            return loss_fn(self.model, part)


def _without_weights(model: nn.Module) -> nn.Module:
    """A copy whose parameters take no memory; buffers are copied."""
    meta = {id(value): nn.Parameter(value.detach().to("meta"), value.requires_grad) for value in model.parameters()}
    return copy.deepcopy(model, meta)


def _start_deepspeed() -> None:
    """On a CPU gloo does all that is needed: nothing is compiled, so that no compiler is needed."""
    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    # DeepSpeed calls what torch will rename.
    warnings.filterwarnings("ignore", category=FutureWarning, module="torch.distributed")
    cpu = not torch.cuda.is_available()
    if cpu:
        os.environ["DS_ACCELERATOR"] = "cpu"
    import deepspeed

    if cpu:
        deepspeed.ops.__compatible_ops__ = {}
    deepspeed.init_distributed("gloo" if cpu else "nccl", verbose=False)
