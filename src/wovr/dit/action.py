"""Dual-channel action injection (4.1).

(a) AdaLN: the four actions of each latent frame pass `action_mlp2` and join the frame's timestep embedding, before
the modulation projection and the head. Its last layer starts at zero, so that a video backbone is unchanged at first.
(b) Cross-attention: every action becomes one token (`action_mlp1`) in place of the text.

Departure: the published models give action tokens no position, so a frame can only guess which of them are its own.
With `positions`, sinusoids of the time that an action and a latent frame stand for are added to both, once, at the
input: a small network then finds its own actions by the tokens' scalar product from the first step on. With `sums`,
both channels also read the sum of the new actions up to each: AdaLN tells a latent frame its own four actions only,
while where the gripper is in it depends on those of the frames before. Both are off for published weights, which were
trained without. In packed training sums restart with every chunk: a chunk reads of its own actions what it reads at
inference.

Legend: B batch, T actions, L latent frames, A action dims, F features of an action (A, or 2 A with sums), D width.
"""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor, nn

from wovr.dit.block import linear
from wovr.dit.context import FRAMES_PER_LATENT, Layout

LONGEST_PERIOD = 100.0
"""Of the positions' sinusoids, in frames: a few windows long."""


def sinusoid(position: Tensor, width: int, longest_period: float) -> Tensor:
    """Cosines and sines (..., width) of positions (...), float32, periods spaced geometrically (Wan's order)."""
    half = torch.arange(width // 2, dtype=torch.float32, device=position.device)
    angle = position.float().unsqueeze(-1) * longest_period ** (-half / (width // 2))
    return torch.cat((angle.cos(), angle.sin()), dim=-1)


@lru_cache(maxsize=8)
def positions(layout: Layout, width: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Sinusoids of the times of all actions (T, D) and latent frames (L, D); a still latent sits mid-frame."""
    centre = (FRAMES_PER_LATENT - 1) / 2
    frame_times = [FRAMES_PER_LATENT * frame + centre for frame in range(layout.frames)]
    action_times = [
        time + (i - centre if count > 1 else 0)
        for time, count in zip(frame_times, layout.actions_per_frame, strict=True)
        for i in range(count)
    ]
    with torch.inference_mode(False):  # the tables outlive the call
        action_times_T = torch.tensor(action_times, device=device)
        frame_times_L = torch.tensor(frame_times, device=device)
        return sinusoid(action_times_T, width, LONGEST_PERIOD), sinusoid(frame_times_L, width, LONGEST_PERIOD)


class ActionEncoder(nn.Module):
    """Actions to the embeddings of both channels; a channel that is off has no parameters."""

    def __init__(self, action_dim: int, width: int, *, adaln: bool, cross_attention: bool, sums: bool):
        super().__init__()
        self.sums = sums
        inputs = action_dim * (1 + sums)
        self.action_mlp1: nn.Sequential | None = None
        self.action_mlp2: nn.Sequential | None = None
        if cross_attention:
            self.action_mlp1 = nn.Sequential(linear(inputs, width), nn.GELU(), linear(width, width))
        if adaln:
            last = linear(4 * width, width)
            nn.init.zeros_(last.weight)
            self.action_mlp2 = nn.Sequential(linear(FRAMES_PER_LATENT * inputs, 4 * width), nn.SiLU(), last)

    def tokens(self, features_BTF: Tensor) -> Tensor | None:
        """Channel (b): one token per action (B, T, D)."""
        return None if self.action_mlp1 is None else self.action_mlp1(features_BTF)

    def features(self, actions_BTA: Tensor, layout: Layout) -> Tensor:
        """What both channels read of each action (B, T, F): itself and, with `sums`, the sum of its chunk's so far, 0
        in the context."""
        if not self.sums:
            return actions_BTA
        sums_BTA = torch.zeros_like(actions_BTA)
        new_BKHA = actions_BTA[:, -layout.new_actions :].unflatten(1, (layout.chunks, -1))
        sums_BTA[:, -layout.new_actions :] = (new_BKHA.cumsum(2) / FRAMES_PER_LATENT).flatten(1, 2)
        return torch.cat((actions_BTA, sums_BTA), dim=-1)

    def modulation(self, features_BTF: Tensor, layout: Layout) -> Tensor | None:
        """Channel (a): one embedding per latent frame (B, L, D). A still latent repeats its one action."""
        if self.action_mlp2 is None:
            return None
        groups = features_BTF.split(layout.actions_per_frame, dim=1)
        groups_BLGF = torch.stack([group.expand(-1, FRAMES_PER_LATENT, -1) for group in groups], dim=1)
        return self.action_mlp2(groups_BLGF.flatten(2))
