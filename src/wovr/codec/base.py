"""The codec protocol: frames <-> latents with Wan's temporal structure.

Legend: B batch, T frames, L latent frames, C latent channels, h w latent height and width.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor


class Codec(Protocol):
    """1 + 4k frames <-> 1 + k latent frames: the first frame has a latent of its own, later ones share one by fours."""

    channels: int
    spatial_factor: int
    temporal_factor: int

    def encode(self, frames_BTHWC: Tensor) -> Tensor:
        """uint8 frames (B, 1 + 4k, H, W, 3) -> latents (B, 1 + k, C, h, w), float32, about unit variance."""
        ...

    def decode(self, latents_BLChw: Tensor) -> Tensor:
        """Latents of four-frame groups (B, L, C, h, w) -> uint8 frames (B, 4 L, H, W, 3). No leading still latent."""
        ...

    @property
    def device(self) -> torch.device: ...
