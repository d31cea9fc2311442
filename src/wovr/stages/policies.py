"""Policies as stages use them: on this rank's device, in the precision of their training, with what they look at."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from wovr.core.dist import Dist, Precision, precision
from wovr.core.errors import UserError
from wovr.core.seed import seed_everything
from wovr.core.types import Episode, Frames
from wovr.policy.base import Policy, PolicyBatch
from wovr.policy.files import PolicyModule, load_policy, ready_to_train, save_policy
from wovr.policy.small import SmallVLA
from wovr.stages.experiment import Experiment, Workplace


def acting_policy(place: Workplace, path: Path) -> Acting:
    """The policy in a file, ready to act on this rank's device in RL's precision."""
    requested = place.experiment.rl.update.optim.precision
    return Acting(frozen_policy(place, path), place.dist, requested)


def frozen_policy(place: Workplace, path: Path) -> PolicyModule:
    """The policy in a file, its weights in RL's precision, on this rank's device."""
    bf16 = precision(place.experiment.rl.update.optim.precision) == "bf16"
    policy = load_policy(path).requires_grad_(False)
    return policy.to(place.dist.device, torch.bfloat16 if bf16 else torch.float32)


def trained_policy(experiment: Experiment, path: Path) -> PolicyModule:
    """The policy in a file, with fresh adapters where its config asks for them, in `weights_dtype`."""
    seed_everything(experiment.seed)  # for the adapters
    policy = load_policy(path).requires_grad_(True)
    return ready_to_train(policy.to(weights_dtype(experiment, experiment.rl.update.optim.precision)))


def save_trained(path: Path, policy: PolicyModule) -> None:
    """Write a policy with its adapters merged, and the adapters beside it in `adapters/`, as peft writes them."""
    save_policy(path, policy)
    if not isinstance(policy, SmallVLA) and policy.config.lora is not None:
        from wovr.policy.openvla_oft.lora import save_adapters

        adapters = path.parent / "adapters"
        shutil.rmtree(adapters, ignore_errors=True)  # of a stage that was interrupted after it had written them
        save_adapters(adapters, policy)


def weights_dtype(experiment: Experiment, requested: Precision) -> torch.dtype:
    """Of a policy to be trained: what is trained has fp32 weights or masters, what adapters leave alone need not."""
    adapted = getattr(experiment.policy, "lora", None) is not None
    return torch.bfloat16 if adapted and precision(requested) == "bf16" else torch.float32


class Acting:
    """A policy that acts, without gradient, in the precision that it is trained in: its log-probabilities are then
    those that training finds."""

    def __init__(self, policy: Policy, dist: Dist, precision: Precision) -> None:
        self.chunk_length, self.action_dim = policy.chunk_length, policy.action_dim
        self.views, self.proprio_dim = policy.views, policy.proprio_dim
        self._policy, self._dist, self._precision = policy, dist, precision

    def act(
        self,
        frames_BHWC: Frames,
        instructions: Sequence[str],
        *,
        temperature: float,
        uniforms_BK: Tensor | None,
        **beside: Any,
    ) -> PolicyBatch:
        with self._dist.autocast(self._precision):
            return self._policy.act(
                frames_BHWC, instructions, temperature=temperature, uniforms_BK=uniforms_BK, **beside
            )

    @torch.no_grad()
    def log_probs(
        self, frames_BHWC: Tensor, instructions: Sequence[str], tokens_BK: Tensor, *, temperature: float, **beside: Any
    ) -> tuple[Tensor, Tensor]:
        device = self._dist.device
        with self._dist.autocast(self._precision):
            return self._policy.log_probs(
                frames_BHWC.to(device),
                instructions,
                tokens_BK.to(device),
                temperature=temperature,
                **{name: value.to(device) for name, value in beside.items()},
            )

    def encode_actions(self, actions_BHA: Tensor) -> Tensor:
        return self._policy.encode_actions(actions_BHA)


def beside_frames(policy: Policy, episode: Episode, steps: NDArray[np.int64]) -> dict[str, Any]:
    """What the policy looks at beside the frames of an episode, by the names of its arguments.

    UserError where the episode lacks it.
    """
    found: dict[str, Any] = {}
    if policy.views == 2:
        found["wrist_BHWC"] = torch.from_numpy(_asked(episode.wrist_THWC, episode, "a view from the hand")[steps])
    if policy.proprio_dim:
        found["proprio_BP"] = torch.from_numpy(_asked(episode.proprio_TP, episode, "proprioception")[steps])
    return found


def _asked(rows: Any, episode: Episode, what: str) -> Any:
    if rows is None:
        raise UserError(f"episodes of '{episode.instruction}': expected {what}, which the policy looks at, found none")
    return rows
