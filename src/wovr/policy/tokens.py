"""Actions as discrete tokens, and the one formula of their probabilities.

Rollout and training both go through `token_log_probs`, in float32, so that the importance ratio of unchanged
weights is 1. Departure from OpenVLA: bin centres, not edges, span the range, so that the extremes and (for an odd
number of bins) the middle of the range are actions that can be emitted exactly.

Legend: B batch, H chunk length, A action dims, K = H * A tokens (step by step), V bins per token.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor


class ActionBins:
    """V uniform bins per action dimension, centres from `low_A` to `high_A` in environment units."""

    def __init__(self, low_A: Sequence[float], high_A: Sequence[float], bins: int) -> None:
        assert bins >= 2 and len(low_A) == len(high_A) and all(a < b for a, b in zip(low_A, high_A, strict=True))
        self.bins = bins
        self._low_A = torch.tensor(low_A, dtype=torch.float32)
        self._width_A = (torch.tensor(high_A, dtype=torch.float32) - self._low_A) / (bins - 1)

    def encode(self, actions_BHA: Tensor) -> Tensor:
        """Nearest bins, (B, K) int64; actions outside the range take the outermost bin."""
        position_BHA = (actions_BHA.float() - self._low_A.to(actions_BHA.device)) / self._width_A.to(actions_BHA.device)
        return position_BHA.round().clamp(0, self.bins - 1).long().flatten(1)

    def decode(self, tokens_BK: Tensor) -> Tensor:
        """Bin centres, (B, H, A) float32."""
        tokens_BHA = tokens_BK.unflatten(1, (-1, len(self._low_A)))
        return self._low_A.to(tokens_BK.device) + tokens_BHA * self._width_A.to(tokens_BK.device)


def token_log_probs(logits_BKV: Tensor, temperature: float) -> Tensor:
    """log softmax(logits / temperature), (B, K, V) float32."""
    return torch.log_softmax(logits_BKV.float() / temperature, dim=-1)


def correlated_uniforms(normals_BHA: Tensor, correlation: float) -> Tensor:
    """Standard normals -> uniforms (B, K) for `sample_tokens`, correlated between neighbouring steps of a chunk.

    A Gaussian copula: an AR(1) process along the H steps of every action dimension, then the normal CDF. Each token
    keeps its own distribution; only the draws of a dimension go together. Independent ones cancel over a chunk, and
    exploration that hardly displaces the hand tells the policy gradient little (cf. Eberhard et al. 2023, pink noise).
    """
    assert 0 <= correlation < 1
    steps = [normals_BHA[:, 0]]
    for h in range(1, normals_BHA.shape[1]):
        steps.append(correlation * steps[-1] + math.sqrt(1 - correlation**2) * normals_BHA[:, h])
    return torch.special.ndtr(torch.stack(steps, dim=1)).flatten(1)


def sample_tokens(log_probs_BKV: Tensor, uniforms_BK: Tensor) -> Tensor:
    """Inverse-CDF sample, (B, K): the first bin whose cumulative probability exceeds the uniform in [0, 1).

    Each token depends on its own row and uniform alone, so the composition of a batch never changes a sample.
    """
    cdf_BKV = log_probs_BKV.exp().cumsum(dim=-1)
    below_BK = (cdf_BKV <= uniforms_BK.unsqueeze(-1)).sum(dim=-1)
    return below_BK.clamp(max=log_probs_BKV.shape[-1] - 1)  # rounding may leave the last sum just below 1


def chosen_and_entropy(log_probs_BKV: Tensor, tokens_BK: Tensor) -> tuple[Tensor, Tensor]:
    """(log-probability of `tokens_BK`, entropy in nats), both (B, K)."""
    chosen_BK = log_probs_BKV.gather(-1, tokens_BK.unsqueeze(-1)).squeeze(-1)
    return chosen_BK, -(log_probs_BKV.exp() * log_probs_BKV).sum(dim=-1)


def act_tokens(logits_BKV: Tensor, temperature: float, uniforms_BK: Tensor | None) -> tuple[Tensor, Tensor]:
    """Tokens (B, K) by `sample_tokens`, or the likeliest where there are no uniforms; and their log-probabilities."""
    log_probs_BKV = token_log_probs(logits_BKV, temperature)
    if uniforms_BK is None:
        tokens_BK = log_probs_BKV.argmax(dim=-1)
    else:
        tokens_BK = sample_tokens(log_probs_BKV, uniforms_BK.to(log_probs_BKV.device))
    return tokens_BK, chosen_and_entropy(log_probs_BKV, tokens_BK)[0]
