"""What counts: steps up to and including first success, and the weight of each.

Imagination is least to be trusted after success, so later steps are masked, env step by env step: a chunk in the
middle of which the task succeeds counts up to that step. `GRPOConfig.mask_after_success` turns this off. The rest of
Eq. 11's bookkeeping is here too: which chunks are trained on, and the factor that makes a mean over chunks the mean
over trajectories of the paper.

Legend: N trajectories, C chunks per trajectory, H env steps per chunk, B rows (chunks) that are trained on.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


def valid_steps(first_N: Tensor, steps: int | Tensor, *, mask_after_success: bool = True) -> Tensor:
    """T_valid: env steps up to and including first success, all of them where there is none or no mask is asked for.

    Args:
        first_N: index of first success (`wovr.metrics.success.first_success`), any value >= steps where there is none.
        steps: env steps of each trajectory, one number or (N,).
        mask_after_success: as in `GRPOConfig`; without it the trajectories must have run on after success.

    Returns:
        int64 (N,), at least 1.
    """
    return torch.clamp(first_N + 1, max=steps) if mask_after_success else torch.zeros_like(first_N) + steps


@dataclass(frozen=True, slots=True)
class Rows:
    """The chunks of one update that are trained on."""

    trajectory_B: Tensor
    """int64 (B,), which trajectory the chunk belongs to."""
    chunk_B: Tensor
    """int64 (B,), which chunk of it."""
    mask_BH: Tensor
    """bool (B, H), the env steps that count; at least one per row."""
    weight_B: Tensor
    """float32 (B,), B / (N_kept T_valid): see `chunk_rows`."""

    def __len__(self) -> int:
        return len(self.trajectory_B)


def chunk_rows(valid_N: Tensor, keep_N: Tensor, chunk_length: int) -> Rows:
    """Cut the kept trajectories into rows and give each row its weight in Eq. 11.

    With m kept trajectories (groups are of one size, so the mean over groups of the mean over a group is the mean
    over trajectories) and s_it the clipped term, the loss is

        L = - 1/m sum_i 1/T_i sum_{t <= T_i} s_it = 1/B sum_b [ - B / (m T_i(b)) sum_{t in b, t <= T_i} s_it ].

    The bracket is what `grpo_loss` returns for row b, and B / (m T_i) is the weight. Its numbers are counted over the
    whole update, so pass all ranks' trajectories; then a trainer that sums rows and divides by their number gets
    the same step whatever the micro-batches and ranks. A random subset of rows, divided by its own size, is an
    unbiased estimate of the same loss, so that one update may be split over several optimiser steps.

    Args:
        valid_N: T_valid of each trajectory.
        keep_N: bool, trajectories of groups that carry a signal.
        chunk_length: H.

    Returns:
        Rows in order of trajectory, then chunk; none where nothing is kept.
    """
    kept_n = keep_N.nonzero().squeeze(1)
    # Chunks that start at or beyond T_valid hold no step that counts.
    chunks_n = (valid_N[kept_n] + chunk_length - 1) // chunk_length
    trajectory_B = kept_n.repeat_interleave(chunks_n)
    first_row_n = chunks_n.cumsum(0) - chunks_n
    chunk_B = torch.arange(len(trajectory_B), device=valid_N.device) - first_row_n.repeat_interleave(chunks_n)
    valid_B = valid_N[trajectory_B]
    step_BH = chunk_B[:, None] * chunk_length + torch.arange(chunk_length, device=valid_N.device)
    weight_B = len(trajectory_B) / (len(kept_n) * valid_B.float()) if len(kept_n) else valid_B.float()
    return Rows(trajectory_B, chunk_B, mask_BH=step_BH < valid_B[:, None], weight_B=weight_B)
