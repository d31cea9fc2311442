"""Rotary positions over latent frame, height and width, as in Wan.

A head's channels are split into three parts, one per axis (44 + 42 + 42 of 128). Wan rotates neighbouring channels
(2p, 2p + 1) as a pair; here channels p and p + E/2 are a pair, which reads memory in runs and is three times as fast on
a CPU. Both are the same network with the channels of queries and keys in another order: `from_wan` converts weights.
Real float32 arithmetic: complex and float64 kernels are slow and gain nothing here.

Legend: B batch, N tokens, H heads, E channels of a head, P = E / 2 pairs.
"""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

Rotation = tuple[Tensor, Tensor]
"""cos and signed sin (N, 1, E), float32, so that `rotate` is x cos + swap(x) sin."""


@lru_cache(maxsize=8)
def rotation(frames: int, height: int, width: int, head_dim: int, device: torch.device) -> Rotation:
    """Cosines and sines of the angles of every token of a grid, frame-major."""
    spatial = 2 * (head_dim // 6)
    axes = ((frames, head_dim - 2 * spatial), (height, spatial), (width, spatial))
    with torch.inference_mode(False):  # the tables outlive the call and must serve training too
        grid = torch.meshgrid(*(torch.arange(size, dtype=torch.float64) for size, _ in axes), indexing="ij")
        parts = []
        for position, (_, channels) in zip(grid, axes, strict=True):
            frequency_P = 10000.0 ** (-torch.arange(0, channels, 2, dtype=torch.float64) / channels)
            parts.append(position.reshape(-1, 1) * frequency_P)
        angle_N1P = torch.cat(parts, dim=1).unsqueeze(1)
        cos, sin = angle_N1P.cos().float(), angle_N1P.sin().float()
        return torch.cat((cos, cos), -1).to(device), torch.cat((-sin, sin), -1).to(device)


def rotate(x_BNHE: Tensor, rotation: Rotation) -> Tensor:
    """Rotate each pair of channels by its token's angle; float32 in and out."""
    cos, sin = rotation
    swapped = x_BNHE.roll(x_BNHE.shape[-1] // 2, dims=-1)
    return torch.addcmul(x_BNHE * cos, swapped, sin)


def from_wan(head_dim: int) -> Tensor:
    """Index (E,) that takes a head's channels from Wan's order to this module's."""
    return torch.arange(head_dim).unflatten(0, (-1, 2)).T.flatten()
