"""The joint reward head: success of every new frame, read from the ActionDiT's hidden tokens and trained with it.

An idea of World-VLA-Loop. What the head finds missing in the tokens, its gradient teaches the network to put there, so
that it is drawn and judged by the same account of what happens; and judging costs no further pass, since the tokens are
those of the last Euler step, from which the frames come too.

The head is told the instruction, which the ActionDiT is not; and success is a relation of places, so that it reads
keypoints, as the classifier does. It trains at every sigma that the flow loss draws, most of all where the new frames
can be seen: near sigma = 1 it could go by the actions alone, which tell when a block is let go, but hardly whether it
lies where it should.

Legend: B batch, R noised copies of the windows of a batch, N new latent frames, h w tokens of a latent frame, D their
width, T = 4 N new frames, L words, C channels.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from pydantic import Field
from torch import Tensor, nn

from wovr.core.text import TextEncoder, word_ids
from wovr.core.vision import Keypoints
from wovr.flow.schedule import TIMESTEPS, FlowConfig, train_sigmas
from wovr.reward.base import RuleConfig, Seen

FRAMES = 4
"""Frames of a latent one."""
LEAST = 0.01
"""Of the weight at sigma = 1, where (1 - sigma)^2 is nothing."""


class RewardHeadConfig(RuleConfig):
    """Size of the head, what its loss counts, and when its output counts as success."""

    channels: int = Field(64, ge=1)
    """Channels that the tokens are reduced to, C."""
    keypoints: int = Field(16, ge=1)
    """Places that are read from each latent frame."""
    text_width: int = Field(64, ge=1)
    """Width of the instruction's embedding."""
    hidden_width: int = Field(256, ge=1)
    """Width of the MLP after the keypoints."""
    weight: float = Field(0.5, gt=0)
    """Of its loss beside the flow loss."""


class RewardHead(nn.Module):
    """`wovr.reward.base.RewardModel` on features of width D. Each latent frame is read by itself: its tokens have
    attended to all others."""

    reads_features = True

    def __init__(self, config: RewardHeadConfig, width: int) -> None:
        super().__init__()
        self.config = config
        self.text = TextEncoder(config.text_width)
        self.norm = nn.LayerNorm(width)
        self.reduce = nn.Linear(width, config.channels)
        self.film = nn.Linear(config.text_width, 2 * config.channels)
        self.keypoints = Keypoints(config.channels, config.keypoints)
        read_width = config.keypoints * (config.channels + 2) + config.text_width
        self.head = nn.Sequential(
            nn.Linear(read_width, config.hidden_width),
            nn.GELU(),
            nn.Linear(config.hidden_width, config.hidden_width),
            nn.GELU(),
            nn.Linear(config.hidden_width, FRAMES),
        )

    @property
    def threshold(self) -> float:
        return self.config.threshold

    @property
    def hold(self) -> int:
        return self.config.hold

    def calibrated(self, threshold: float, hold: int) -> RewardHead:
        """This head with another decision rule; changes only the configuration, and returns itself."""
        self.config = self.config.model_copy(update={"threshold": threshold, "hold": hold})
        return self

    def forward(self, features_BNhwD: Tensor, ids_BL: Tensor) -> Tensor:
        """Features and the word ids of instructions -> logits (B, T), float32."""
        B, N = features_BNhwD.shape[:2]
        text_BNE = self.text(ids_BL.to(features_BNhwD.device))[:, None].expand(-1, N, -1)
        scale, shift = self.film(text_BNE)[:, :, None, None].chunk(2, dim=-1)
        x_BNhwC = nn.functional.gelu(self.reduce(self.norm(features_BNhwD)) * (1 + scale) + shift)
        keypoints_BNF = self.keypoints(x_BNhwC.flatten(0, 1).movedim(-1, 1)).unflatten(0, (B, N))
        logits_BNF: Tensor = self.head(torch.cat([keypoints_BNF, text_BNE], dim=-1))
        return logits_BNF.float().flatten(1)

    @torch.no_grad()
    def judge(self, seen: Seen, instructions: Sequence[str]) -> Tensor:
        """As of `RewardModel`, from the features alone."""
        assert seen.features_BNhwD is not None, "made without features"
        return self(seen.features_BNhwD.to(self.norm.weight.dtype), word_ids(instructions)).sigmoid()


def head_loss(
    logits_RT: Tensor, labels_BT: Tensor, balance_BT: Tensor, sight_RT: Tensor
) -> tuple[Tensor, dict[str, Tensor]]:
    """Cross-entropy per sample (B,) and logs. R = B k: k neighbouring rows are noised copies of one window.

    A frame counts by its class (`balance`) and its sigma (`sight`), neither of which depends on what else is in the
    batch.
    """
    copies = len(logits_RT) // len(labels_BT)
    labels_RT = labels_BT.repeat_interleave(copies, 0)
    loss_RT = nn.functional.binary_cross_entropy_with_logits(logits_RT, labels_RT, reduction="none")
    weighted_R = (loss_RT * balance_BT.repeat_interleave(copies, 0) * sight_RT).mean(1)
    right_R = ((logits_RT.detach() > 0) == (labels_RT > 0)).float().mean(1)
    loss_B, right_B = (of_R.unflatten(0, (-1, copies)).mean(1) for of_R in (weighted_R, right_R))
    return loss_B, {"reward_loss": loss_B.detach(), "reward_accuracy": right_B}


def balance(labels: Tensor, share: float) -> Tensor:
    """Weights that give both classes half of the loss where a `share` of all frames that training draws succeeds."""
    return torch.where(labels > 0, 0.5 / share, 0.5 / (1 - share))


def sight(flow: FlowConfig, sigma: Tensor) -> Tensor:
    """Weights by sigma, in proportion to (1 - sigma)^2 and a little at any, with mean 1 over those that training draws.

    Of the grid of five steps they are 0.2, 0.2, 0.4, 1 and 3.3.
    """
    drawn = train_sigmas(flow, (torch.arange(TIMESTEPS, device=sigma.device) + 0.5) / TIMESTEPS)
    return (LEAST + (1 - sigma).square()) / (LEAST + (1 - drawn).square()).mean()
