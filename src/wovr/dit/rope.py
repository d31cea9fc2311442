"""Rotary positions over latent frame, height and width, as in Wan.

A head's channels are split into three parts, one per axis (44 + 42 + 42 of 128), and neighbouring channels form the
pairs that are rotated. Real float32 arithmetic: complex and float64 kernels are slow and gain nothing here.

Legend: B batch, N tokens, H heads, E channels of a head, P = E / 2 pairs.
"""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

Rotation = tuple[Tensor, Tensor]
"""cos (N, 1, P) and sin (N, 1, P), float32."""


@lru_cache(maxsize=8)
def rotation(frames: int, height: int, width: int, head_dim: int, device: torch.device) -> Rotation:
    """Cosines and sines of the angles of every token of a grid, frame-major."""
    spatial = 2 * (head_dim // 6)
    axes = ((frames, head_dim - 2 * spatial), (height, spatial), (width, spatial))
    # Tables outlive the call: made under inference_mode, they could not serve a later training step.
    with torch.inference_mode(False):
        grid = torch.meshgrid(*(torch.arange(size, dtype=torch.float64) for size, _ in axes), indexing="ij")
        parts = []
        for position, (_, channels) in zip(grid, axes, strict=True):
            frequency_P = 10000.0 ** (-torch.arange(0, channels, 2, dtype=torch.float64) / channels)
            parts.append(position.reshape(-1, 1) * frequency_P)
        angle_N1P = torch.cat(parts, dim=1).unsqueeze(1)
        return angle_N1P.cos().float().to(device), angle_N1P.sin().float().to(device)


def rotate(x_BNHE: Tensor, rotation: Rotation) -> Tensor:
    """Rotate each pair of channels by its token's angle."""
    cos, sin = rotation
    even, odd = x_BNHE.float().unflatten(-1, (-1, 2)).unbind(-1)
    return torch.stack((even * cos - odd * sin, even * sin + odd * cos), -1).flatten(-2)
