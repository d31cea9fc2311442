"""The policy protocol: what the embedded VLA and OpenVLA-OFT share.

Legend: B batch, H chunk length, A action dims, K = H * A action tokens, V bins per token, P numbers of proprioception.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
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
    """A VLA that emits a chunk of H actions as K discrete tokens in one parallel forward.

    What it sees besides the scene's camera, it says by `views` and `proprio_dim`; that is given to it, and what it does
    not ask for may be left out.
    """

    chunk_length: int
    action_dim: int
    views: int
    """Cameras: 1 is the one that looks at the scene, 2 are that and the wrist's."""
    proprio_dim: int
    """Numbers of proprioception, P; 0 where it reads none."""

    def act(
        self,
        frames_BHWC: Frames,
        instructions: Sequence[str],
        *,
        temperature: float,
        uniforms_BK: Tensor | None,
        wrist_BHWC: Frames | None = None,
        proprio_BP: NDArray[np.floating] | None = None,
    ) -> PolicyBatch:
        """Sample by inverse CDF from `uniforms_BK` in [0, 1); greedy where it is None. No gradient."""
        ...

    def log_probs(
        self,
        frames_BHWC: Tensor,
        instructions: Sequence[str],
        tokens_BK: Tensor,
        *,
        temperature: float,
        wrist_BHWC: Tensor | None = None,
        proprio_BP: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """(log-probabilities (B, K), entropies (B, K)) of given tokens, with gradient."""
        ...

    def encode_actions(self, actions_BHA: Tensor) -> Tensor:
        """Tokens (B, K), int64, of actions in environment units."""
        ...
