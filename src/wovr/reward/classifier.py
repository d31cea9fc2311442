"""The reward classifier R_psi (Eq. 5): does this one frame show what the instruction asks for?

Departures from the paper: the threshold is calibrated, not 0.5, and must be passed for `hold` consecutive frames
(`wovr.reward.calibrate`). Both are part of the configuration and so travel with the weights.

Legend: B batch (frame height in frames_BHWC is H), C channels, P keypoints.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from pydantic import Field
from torch import Tensor, nn

from wovr.core.text import TextEncoder, word_ids
from wovr.core.vision import FilmEncoder, Keypoints
from wovr.reward.base import RuleConfig, Seen

CACHED_FRAMES = 128
"""Frames judged at once on a CPU: their feature maps stay in its cache, which is three times as fast as 1,024."""


class RewardClassifierConfig(RuleConfig):
    """Size of the classifier and when its output counts as success."""

    channels: int = Field(32, ge=1)
    """Channels of the feature map, C."""
    blocks: int = Field(1, ge=1)
    """Residual FiLM blocks at a quarter of the frame's resolution."""
    keypoints: int = Field(16, ge=1)
    """Places that are read from the feature map, P."""
    text_width: int = Field(64, ge=1)
    """Width of the instruction's embedding."""
    hidden_width: int = Field(256, ge=1)
    """Width of the MLP after the keypoints."""


class RewardClassifier(nn.Module):
    """`wovr.reward.base.RewardModel`: success is a relation of places, so keypoints are compared by an MLP."""

    reads_features = False

    def __init__(self, config: RewardClassifierConfig) -> None:
        super().__init__()
        self.config = config
        self.text = TextEncoder(config.text_width)
        self.encoder = FilmEncoder(config.channels, config.blocks, config.text_width)
        self.keypoints = Keypoints(config.channels, config.keypoints)
        read_width = config.keypoints * (config.channels + 2) + config.text_width
        self.head = nn.Sequential(
            nn.Linear(read_width, config.hidden_width),
            nn.GELU(),
            nn.Linear(config.hidden_width, config.hidden_width),
            nn.GELU(),
            nn.Linear(config.hidden_width, 1),
        )

    @property
    def threshold(self) -> float:
        return self.config.threshold

    @property
    def hold(self) -> int:
        return self.config.hold

    def calibrated(self, threshold: float, hold: int) -> RewardClassifier:
        """This classifier with another decision rule; changes only the configuration, and returns itself."""
        self.config = self.config.model_copy(update={"threshold": threshold, "hold": hold})
        return self

    def forward(self, frames_BHWC: Tensor, instructions: Sequence[str] | Tensor) -> Tensor:
        """uint8 frames (B, height, width, 3), instructions or their word ids -> logits (B,), float32."""
        ids_BL = instructions if isinstance(instructions, Tensor) else word_ids(instructions)
        text_BD = self.text(ids_BL.to(frames_BHWC.device))
        keypoints_BF = self.keypoints(self.encoder(frames_BHWC, text_BD))
        return self.head(torch.cat([keypoints_BF, text_BD], dim=-1)).float().squeeze(-1)

    @torch.no_grad()
    def probability(self, frames_BHWC: Tensor, instructions: Sequence[str] | Tensor) -> Tensor:
        """Success probabilities (B,), float32, no gradient."""
        ids_BL = instructions if isinstance(instructions, Tensor) else word_ids(instructions)
        size = CACHED_FRAMES if frames_BHWC.device.type == "cpu" else max(1, len(frames_BHWC))
        parts = zip(frames_BHWC.split(size), ids_BL.split(size), strict=True)
        return torch.cat([self(frames, ids).sigmoid() for frames, ids in parts])

    def judge(self, seen: Seen, instructions: Sequence[str]) -> Tensor:
        """As of `RewardModel`: each frame by itself."""
        batch, steps = seen.frames_BTHWC.shape[:2]
        repeated = [instruction for instruction in instructions for _ in range(steps)]
        return self.probability(seen.frames_BTHWC.flatten(0, 1), repeated).unflatten(0, (batch, steps))


def reward_loss(model: nn.Module, batch: Mapping[str, Any]) -> tuple[Tensor, dict[str, Tensor]]:
    """Binary cross-entropy per sample (B,) and logs, from `frames_BHWC`, `instructions` and `labels_B` in {0, 1}.

    Unweighted: the classes are balanced by sampling (`wovr.reward.labels`).
    """
    labels_B = batch["labels_B"].float()
    logits_B = model(batch["frames_BHWC"], batch["instructions"])
    loss_B = nn.functional.binary_cross_entropy_with_logits(logits_B, labels_B, reduction="none")
    said_B = (logits_B.detach() > 0).float()
    return loss_B, {
        "accuracy": (said_B == labels_B).float(),
        "false_success": said_B * (1 - labels_B),
        "missed_success": (1 - said_B) * labels_B,
    }
