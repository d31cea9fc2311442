"""The embedded VLA: pixels and the instruction's text to one chunk of action tokens, in one parallel forward.

It keeps what decides a grasp, where things are: text-conditioned feature maps are read out by keypoints (spatial
softmax: expected coordinates and the features found there) and never pooled over space.

Legend: B batch, H chunk length (frame height in frames_BHWC), A action dims, K = H * A action tokens, V bins per
token, C channels, P keypoints, N cells of the feature map, D trunk width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn

from wovr.core.config import Config
from wovr.core.text import TextEncoder, word_ids
from wovr.core.types import Actions, Frames
from wovr.core.vision import FilmEncoder, Keypoints
from wovr.policy.base import PolicyBatch
from wovr.policy.tokens import ActionBins, act_tokens, chosen_and_entropy, token_log_probs


class SmallVLAConfig(Config):
    """Size of the embedded VLA and the range of its actions."""

    kind: Literal["small"] = "small"
    """Tells this section from that of another policy."""
    chunk_length: int = Field(8, ge=1)
    """Env steps per forward, H; the paper's chunk."""
    action_low: tuple[float, ...] = (-1.0, -1.0, -1.0)
    """Lowest action per dimension, environment units; its length is the number of action dimensions."""
    action_high: tuple[float, ...] = (1.0, 1.0, 1.0)
    """Highest action per dimension, environment units."""
    bins: int = Field(33, ge=2)
    """Bins per token, V; odd, so that -1, 0 and 1 are centres of the default range."""
    channels: int = Field(32, ge=1)
    """Channels of the feature map, C."""
    blocks: int = Field(2, ge=1)
    """Residual FiLM blocks at a quarter of the frame's resolution."""
    keypoints: int = Field(16, ge=1)
    """Places that the trunk reads from the feature map, P."""
    text_width: int = Field(64, ge=1)
    """Width of the instruction's embedding."""
    trunk_width: int = Field(256, ge=1)
    """Width of the residual MLP after the keypoints, D."""
    trunk_blocks: int = Field(2, ge=0)
    """Residual blocks of that MLP."""

    @property
    def action_dim(self) -> int:
        """A."""
        return len(self.action_low)

    @property
    def views(self) -> int:
        """It sees the scene alone."""
        return 1

    @property
    def proprio(self) -> int:
        """Nor does it read proprioception."""
        return 0

    @property
    def pretrained(self) -> None:
        """It is fitted to demonstrations from scratch."""
        return None


class TrunkBlock(nn.Module):
    """Residual MLP block with a pre-norm."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.expand = nn.Linear(width, 2 * width)
        self.contract = nn.Linear(2 * width, width)

    def forward(self, x_BD: Tensor) -> Tensor:
        return x_BD + self.contract(nn.functional.gelu(self.expand(self.norm(x_BD))))


class SmallVLA(nn.Module):
    """`wovr.policy.base.Policy` for one small RGB frame; its size does not depend on the frame's."""

    views, proprio_dim = 1, 0

    def __init__(self, config: SmallVLAConfig) -> None:
        super().__init__()
        self.config = config
        self.chunk_length, self.action_dim = config.chunk_length, len(config.action_low)
        self.bins = ActionBins(config.action_low, config.action_high, config.bins)
        self.text = TextEncoder(config.text_width)
        self.encoder = FilmEncoder(config.channels, config.blocks, config.text_width)
        self.keypoints = Keypoints(config.channels, config.keypoints)
        self.inward = nn.Linear(config.keypoints * (config.channels + 2) + config.text_width, config.trunk_width)
        self.trunk = nn.Sequential(*(TrunkBlock(config.trunk_width) for _ in range(config.trunk_blocks)))
        self.norm = nn.LayerNorm(config.trunk_width)
        self.head = nn.Linear(config.trunk_width, self.chunk_length * self.action_dim * config.bins)

    def forward(self, frames_BHWC: Tensor, instructions: Sequence[str] | Tensor) -> Tensor:
        """uint8 frames (B, height, width, 3), instructions or their word ids -> logits (B, K, V), float32."""
        ids_BL = instructions if isinstance(instructions, Tensor) else word_ids(instructions)
        text_BD = self.text(ids_BL.to(frames_BHWC.device))
        x_BChw = self.encoder(frames_BHWC, text_BD)
        x_BD = self.trunk(self.inward(torch.cat([self.keypoints(x_BChw), text_BD], dim=-1)))
        return self.head(self.norm(x_BD)).float().unflatten(-1, (-1, self.config.bins))

    @torch.no_grad()
    def act(
        self,
        frames_BHWC: Frames,
        instructions: Sequence[str],
        *,
        temperature: float,
        uniforms_BK: Tensor | None,
        **beside: object,  # what other policies look at: callers need not ask which one they have
    ) -> PolicyBatch:
        """One chunk per observation: sampled by inverse CDF from `uniforms_BK` in [0, 1), greedy where it is None."""
        device = self.head.weight.device
        logits_BKV = self(torch.from_numpy(np.ascontiguousarray(frames_BHWC)).to(device), instructions)
        tokens_BK, chosen_BK = act_tokens(logits_BKV, temperature, uniforms_BK)
        return PolicyBatch(self.bins.decode(tokens_BK).cpu().numpy(), tokens_BK, chosen_BK)

    def log_probs(
        self,
        frames_BHWC: Tensor,
        instructions: Sequence[str] | Tensor,
        tokens_BK: Tensor,
        *,
        temperature: float,
        **beside: object,  # as in `act`
    ) -> tuple[Tensor, Tensor]:
        """(log-probabilities (B, K), entropies (B, K)) of given tokens, with gradient."""
        log_probs_BKV = token_log_probs(self(frames_BHWC, instructions), temperature)
        return chosen_and_entropy(log_probs_BKV, tokens_BK)

    def encode_actions(self, actions_BHA: Tensor) -> Tensor:
        """Tokens (B, K) of actions in environment units."""
        return self.bins.encode(actions_BHA)

    def encode_instructions(self, instructions: Sequence[str]) -> Tensor:
        """Word ids, which `forward` takes in place of strings."""
        return word_ids(instructions)


def sft_loss(
    model: nn.Module, batch: Mapping[str, Any], *, target_sigma: float = 0.0
) -> tuple[Tensor, dict[str, Tensor]]:
    """Cross-entropy of demonstrated tokens, mean over K, per sample (B,), and logs.

    `batch`: `frames_BHWC` uint8, `instructions` (strings or their numbers), `tokens_BK`, and where the policy looks at
    more, `wrist_BHWC` and `proprio_BP`. `target_sigma`, in bins, spreads each target over its neighbours as a Gaussian:
    what the policy later explores lies near what was shown. 0 is off.
    """
    tokens_BK = batch["tokens_BK"]
    beside = {key: batch[key] for key in ("wrist_BHWC", "proprio_BP") if key in batch}
    log_probs_BKV = token_log_probs(model(batch["frames_BHWC"], batch["instructions"], **beside), temperature=1.0)
    bins_V = torch.arange(log_probs_BKV.shape[-1], device=tokens_BK.device)
    distance_BKV = (bins_V - tokens_BK.unsqueeze(-1)).float()
    if target_sigma > 0:
        target_BKV = torch.softmax(-0.5 * (distance_BKV / target_sigma) ** 2, dim=-1)
    else:
        target_BKV = (distance_BKV == 0).float()
    loss_B = -(target_BKV * log_probs_BKV).sum(dim=-1).mean(dim=-1)
    best_BK = log_probs_BKV.detach().argmax(dim=-1)
    miss_BK = (best_BK - tokens_BK).abs().float()
    return loss_B, {"accuracy": (miss_BK == 0).float().mean(dim=-1), "bins_off": miss_BK.mean(dim=-1)}


def chunk_targets(actions_TA: Actions, t: int, length: int) -> Actions:
    """The `length` actions from step t on, (length, A); past the end: no motion, the last gripper command held."""
    assert 0 <= t <= len(actions_TA) and len(actions_TA) > 0
    still_A = np.zeros_like(actions_TA[-1])
    still_A[-1] = actions_TA[-1, -1]
    chunk_HA = actions_TA[t : t + length]
    return np.concatenate([chunk_HA, np.tile(still_A, (length - len(chunk_HA), 1))])
