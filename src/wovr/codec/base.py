"""The codec protocol: frames <-> latents with Wan's temporal structure.

Legend: B batch, T frames, L latent frames, C latent channels, h w latent height and width.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

DecoderState = tuple[Tensor, ...]
"""What a decoder remembers of B streams: tensors of B rows each, which may be picked and joined row by row."""


class Codec(Protocol):
    """1 + 4k frames <-> 1 + k latent frames: the first frame has a latent of its own, later ones share one by fours.

    A latent may depend on all frames before it, and a frame on all latents before its own: frames and latents form a
    stream from an episode's first frame on.
    """

    channels: int
    spatial_factor: int
    temporal_factor: int
    stride: int
    """Frames from one latent of an episode to the next: 1 where any four frames in a row have a latent, 4 where an
    episode is one stream."""

    def encode(self, frames_BTHWC: Tensor) -> Tensor:
        """uint8 frames (B, 1 + 4k, H, W, 3) -> latents (B, 1 + k, C, h, w), float32, about unit variance."""
        ...

    def encode_episode(self, frames_THWC: Tensor) -> Tensor:
        """uint8 frames -> latents (L, C, h, w), float32: of the first frame, then of the four frames that end at frame
        `stride`, 2 `stride`, ... Frames after the last of these are left out."""
        ...

    def start(self, latents_BLChw: Tensor) -> DecoderState:
        """The decoder after these latents, the first of which is an episode's first: ready for what follows."""
        ...

    def decode(self, latents_BLChw: Tensor, state: DecoderState) -> tuple[Tensor, DecoderState]:
        """The latents that follow in each stream (B, L, C, h, w) -> uint8 frames (B, 4 L, H, W, 3), and the state after
        them. `state` itself stays as it was."""
        ...

    def decode_all(self, latents_BLChw: Tensor) -> Tensor:
        """What `encode` gave (B, 1 + k, C, h, w) -> uint8 frames (B, 1 + 4k, H, W, 3)."""
        ...

    @property
    def device(self) -> torch.device: ...


def to_bytes(pixels: Tensor) -> Tensor:
    """Pixels in about [-1, 1] -> uint8, in place where they are float32."""
    return pixels.float().add_(1).mul_(127.5).round_().clamp_(0, 255).to(torch.uint8)
