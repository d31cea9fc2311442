"""One GRPO update of a policy from a batch of rollouts, imagined or true: the same code serves both.

Legend: N trajectories, C chunks, B rows (chunks that are trained on), H env steps per chunk, K action tokens.
"""

from __future__ import annotations

from typing import Any

import torch
from pydantic import Field
from torch import Tensor, nn

from wovr.core.config import Config
from wovr.core.optim import OptimConfig
from wovr.core.seed import stream
from wovr.core.train import Trainer
from wovr.core.weights import LossFn
from wovr.grpo.advantage import discounted_return, group_advantages
from wovr.grpo.config import GRPOConfig
from wovr.grpo.loss import grpo_loss
from wovr.grpo.mask import chunk_rows, valid_steps
from wovr.imagine.rollout import RolloutBatch


class UpdateConfig(Config):
    """What is done with one batch of rollouts."""

    grpo: GRPOConfig = GRPOConfig()
    temperature: float = Field(1.0, gt=0)
    """Of the policy's sampling, in rollout and training alike. The reference uses 1.6 with OpenVLA-OFT."""
    correlation: float = Field(0.0, ge=0, lt=1)
    """Of the draws of neighbouring steps while exploring (see `correlated_uniforms`). 0 as in paper and reference."""
    epochs: int = Field(1, ge=1)
    """Passes over the rows of an update."""
    minibatches: int = Field(1, ge=1)
    """Optimiser steps per pass."""
    accumulate: int = Field(1, ge=1)
    """Micro-batches per optimiser step: less memory, same result."""
    optim: OptimConfig = OptimConfig(lr=1e-4, eps=1e-5, precision="fp32")


def update_policy(
    trainer: Trainer, rollouts: RolloutBatch, config: UpdateConfig, *, seed: int, number: int
) -> dict[str, float]:
    """Train on one batch and return its logs; a batch in which no group carries a signal changes nothing.

    Rows go through in a random order drawn for (seed, number, pass), so that a resumed run repeats it.
    """
    first_N = torch.from_numpy(rollouts.success_step_N)
    limit_N = torch.from_numpy(rollouts.limit_N)
    returns_N = discounted_return(first_N, limit_N, config.grpo.gamma)
    advantages = group_advantages(returns_N, torch.from_numpy(rollouts.group_N), config.grpo)
    valid_N = valid_steps(first_N, limit_N)
    rows = chunk_rows(valid_N, advantages.keep_N, chunk_length(rollouts))
    logs = {
        "success": float(rollouts.success_N.mean()),
        "valid_steps": float(valid_N.float().mean()),
        "groups": float(advantages.groups),
        "groups_failed": float(advantages.skipped_failed),
        "groups_succeeded": float(advantages.skipped_succeeded),
        "groups_equal": float(advantages.skipped_equal),
        "rows": float(len(rows)),
    }
    if not len(rows):
        return logs
    at = (rows.trajectory_B, rows.chunk_B)
    batch: dict[str, Any] = {
        "frames_BHWC": torch.from_numpy(rollouts.frames_NCHWC)[at],
        "instructions": [rollouts.instructions[i] for i in rows.trajectory_B.tolist()],
        "tokens_BK": torch.from_numpy(rollouts.tokens_NCK)[at],
        "old_log_probs_BK": torch.from_numpy(rollouts.log_probs_NCK)[at],
        "advantage_B": advantages.advantage_N[rows.trajectory_B],
        "weight_B": rows.weight_B,
        "mask_BH": rows.mask_BH,
    }
    loss_fn = rl_loss(config)
    done: list[dict[str, float]] = []
    for epoch in range(config.epochs):
        order_B = stream(seed, "rows", number, epoch).permutation(len(rows))
        parts = min(config.minibatches, len(rows))
        for part in range(parts):
            chosen = torch.from_numpy(order_B[len(rows) * part // parts : len(rows) * (part + 1) // parts])
            done.append(trainer.step(_take(batch, chosen), loss_fn, min(config.accumulate, len(chosen))))
    return logs | {key: sum(step[key] for step in done) / len(done) for key in done[0]}


def rl_loss(config: UpdateConfig) -> LossFn:
    """`grpo_loss` over rows, as the trainer takes it."""

    def loss(model: nn.Module, batch: Any) -> tuple[Tensor, dict[str, Tensor]]:
        log_probs_BK, entropies_BK = model.log_probs(  # type: ignore[operator]  # a Policy
            batch["frames_BHWC"], batch["instructions"], batch["tokens_BK"], temperature=config.temperature
        )
        return grpo_loss(
            log_probs_BK,
            entropies_BK,
            old_log_probs_BK=batch["old_log_probs_BK"],
            advantage_B=batch["advantage_B"],
            weight_B=batch["weight_B"],
            mask_BH=batch["mask_BH"],
            config=config.grpo,
        )

    return loss


def chunk_length(rollouts: RolloutBatch) -> int:
    """H, from the shapes of the batch."""
    return -(-rollouts.probability_NT.shape[1] // rollouts.chunk_mask_NC.shape[1])


def _take(batch: dict[str, Any], rows: Tensor) -> dict[str, Any]:
    return {
        key: value[rows] if isinstance(value, Tensor) else [value[i] for i in rows.tolist()]
        for key, value in batch.items()
    }
