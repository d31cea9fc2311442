"""One GRPO update of a policy from a batch of rollouts, imagined or true: the same code serves both.

Every rank holds all rows and trains on its share of them, so that a step depends on neither ranks nor micro-batches.

Legend: N trajectories, C chunks, B rows (chunks that are trained on), H env steps per chunk, K action tokens.
"""

from __future__ import annotations

from typing import Any

import torch
from pydantic import Field
from torch import Tensor, nn

from wovr.core.config import Config
from wovr.core.dist import Dist
from wovr.core.optim import OptimConfig
from wovr.core.seed import stream
from wovr.core.train import Trainer, on_device
from wovr.core.weights import LossFn
from wovr.grpo.advantage import discounted_return, group_advantages
from wovr.grpo.config import GRPOConfig
from wovr.grpo.loss import grpo_loss
from wovr.grpo.mask import Rows, chunk_rows, valid_steps
from wovr.imagine.rollout import RolloutBatch

SIGHT = ("wrist_BHWC", "proprio_BP")
"""What a policy may look at beside the frame."""


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
    """Micro-batches per optimiser step and rank: less memory, same result."""
    optim: OptimConfig = OptimConfig(lr=1e-4, eps=1e-5, precision="fp32")

    def steps(self, updates: int) -> int:
        """Optimiser steps of so many updates."""
        return updates * self.epochs * self.minibatches


def update_policy(
    trainer: Trainer,
    rollouts: RolloutBatch,
    config: UpdateConfig,
    *,
    seed: int,
    number: int,
    base: nn.Module | None = None,
    base_rows: int = 0,
) -> dict[str, float]:
    """Train on one batch and return its logs; a batch in which no group carries a signal changes nothing.

    Rows go through in a random order drawn for (seed, number, pass), so that a resumed run repeats it. The divergence
    from `base` is estimated on the first `base_rows` of them, before the first step.
    """
    first_N, limit_N = torch.from_numpy(rollouts.success_step_N), torch.from_numpy(rollouts.limit_N)
    returns_N = discounted_return(first_N, limit_N, config.grpo.gamma)
    advantages = group_advantages(returns_N, torch.from_numpy(rollouts.group_N), config.grpo)
    valid_N = valid_steps(first_N, limit_N, mask_after_success=config.grpo.mask_after_success)
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
    batch = _batch(rollouts, rows, advantages.advantage_N)
    loss_fn, ranks = rl_loss(config), trainer.dist.world_size
    done: list[dict[str, float]] = []
    for epoch in range(config.epochs):
        order_B = torch.from_numpy(stream(seed, "rows", number, epoch).permutation(len(rows)))
        if epoch == 0 and base is not None:
            logs["kl_base"] = base_divergence(base, _take(batch, order_B[:base_rows]), config, trainer.dist)
        parts = min(config.minibatches, len(rows))
        for part in range(parts):
            chosen = order_B[len(rows) * part // parts : len(rows) * (part + 1) // parts]
            of_a_rank = max(1, len(chosen) // ranks)
            done.append(trainer.step(_filled(_take(batch, chosen), ranks), loss_fn, min(config.accumulate, of_a_rank)))
    means = {key: sum(step[key] for step in done) / len(done) for key in done[0]}
    return logs | means | {"log_prob_gap": done[0]["log_prob_gap"]}


def rl_loss(config: UpdateConfig) -> LossFn:
    """`grpo_loss` over rows, as the trainer takes it."""

    def loss(model: nn.Module, batch: Any) -> tuple[Tensor, dict[str, Tensor]]:
        log_probs_BK, entropies_BK = _log_probs(model, batch, config.temperature)
        loss_B, logs = grpo_loss(
            log_probs_BK,
            entropies_BK,
            old_log_probs_BK=batch["old_log_probs_BK"],
            advantage_B=batch["advantage_B"],
            weight_B=batch["weight_B"],
            mask_BH=batch["mask_BH"],
            config=config.grpo,
        )
        share_B = batch["share_B"]
        return share_B * loss_B, {name: share_B * value_B for name, value_B in logs.items()}

    return loss


@torch.no_grad()
def base_divergence(base: nn.Module, batch: dict[str, Any], config: UpdateConfig, dist: Dist) -> float:
    """KL of the policy that acted from `base`, nats per token: the mean of rho - 1 - log rho over the valid tokens of
    the rows, where rho = pi_base / pi (Schulman 2020: unbiased, never negative). Ranks share the rows."""
    total, rows = torch.zeros(2, dtype=torch.float64), len(batch["tokens_BK"])
    mine = torch.arange(rows)[rows * dist.rank // dist.world_size : rows * (dist.rank + 1) // dist.world_size]
    for chosen in mine.tensor_split(config.accumulate):
        if not len(chosen):
            continue
        part = {key: on_device(value, dist.device) for key, value in _take(batch, chosen).items()}
        with dist.autocast(config.optim.precision):
            base_log_probs_BK, _ = _log_probs(base, part, config.temperature)
        valid_BK = part["mask_BH"].repeat_interleave(base_log_probs_BK.shape[1] // part["mask_BH"].shape[1], dim=1)
        log_rho_BK = torch.where(valid_BK, base_log_probs_BK.double() - part["old_log_probs_BK"].double(), 0.0)
        total += torch.stack([(log_rho_BK.exp() - 1 - log_rho_BK).sum(), valid_BK.sum()]).cpu()
    divergence, tokens = dist.sum(total.to(dist.device)).tolist()
    return float(divergence / tokens)


def chunk_length(rollouts: RolloutBatch) -> int:
    """H, from the shapes of the batch."""
    return -(-rollouts.probability_NT.shape[1] // rollouts.chunk_mask_NC.shape[1])


def _log_probs(policy: nn.Module, batch: dict[str, Any], temperature: float) -> tuple[Tensor, Tensor]:
    beside = {name: batch[name] for name in SIGHT if name in batch}
    found: tuple[Tensor, Tensor] = policy.log_probs(  # type: ignore[operator]  # a Policy
        batch["frames_BHWC"], batch["instructions"], batch["tokens_BK"], temperature=temperature, **beside
    )
    return found


def _batch(rollouts: RolloutBatch, rows: Rows, advantage_N: Tensor) -> dict[str, Any]:
    """The rows with all that their loss asks for."""
    at = (rows.trajectory_B, rows.chunk_B)
    beside = {"wrist_BHWC": rollouts.wrist_NCHWC, "proprio_BP": rollouts.proprio_NCP}
    return {
        "frames_BHWC": torch.from_numpy(rollouts.frames_NCHWC)[at],
        **{name: torch.from_numpy(seen)[at] for name, seen in beside.items() if seen is not None},
        "instructions": [rollouts.instructions[i] for i in rows.trajectory_B.tolist()],
        "tokens_BK": torch.from_numpy(rollouts.tokens_NCK)[at],
        "old_log_probs_BK": torch.from_numpy(rollouts.log_probs_NCK)[at],
        "advantage_B": advantage_N[rows.trajectory_B],
        "weight_B": rows.weight_B,
        "mask_BH": rows.mask_BH,
        "share_B": torch.ones(len(rows)),
    }


def _filled(batch: dict[str, Any], ranks: int) -> dict[str, Any]:
    """With a row for every rank: those that are added count for nothing, and the others for as much as before in the
    mean over all."""
    rows = len(batch["mask_BH"])
    if rows >= ranks:
        return batch
    more = _take(batch, torch.arange(ranks) % rows)
    real_B = torch.arange(ranks) < rows
    return more | {"mask_BH": more["mask_BH"] & real_B[:, None], "share_B": real_B * (ranks / rows)}


def _take(batch: dict[str, Any], rows: Tensor) -> dict[str, Any]:
    return {
        key: value[rows] if isinstance(value, Tensor) else [value[i] for i in rows.tolist()]
        for key, value in batch.items()
    }
