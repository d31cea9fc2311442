"""The policy protocol: what the embedded VLA and OpenVLA-OFT share.

Legend: B batch, H chunk length, A action dims, K = H * A action tokens, V bins per token.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from wovr.core.types import Actions, Frames


@dataclass(frozen=True, slots=True)
class PolicyBatch:
    """One action chunk for each of B observations."""

    actions_BHA: Actions
    """Environment units, float32."""
    tokens_BK: Tensor
    """Bin indices, int64."""
    log_probs_BK: Tensor
    """Log-probability of each token at the sampling temperature, float32."""


class Policy(Protocol):
    """A VLA that emits a chunk of H actions as K discrete tokens in one parallel forward."""

    chunk_length: int
    action_dim: int

    def act(
        self, frames_BHWC: Frames, instructions: Sequence[str], *, temperature: float, uniforms_BK: Tensor | None
    ) -> PolicyBatch:
        """Sample by inverse CDF from `uniforms_BK` in [0, 1); greedy where it is None. No gradient."""
        ...

    def log_probs(
        self, frames_BHWC: Tensor, instructions: Sequence[str], tokens_BK: Tensor, *, temperature: float
    ) -> tuple[Tensor, Tensor]:
        """(log-probabilities (B, K), entropies (B, K)) of given tokens, with gradient."""
        ...
