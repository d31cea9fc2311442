"""The small text-conditioned network over one frame that the embedded policy and the reward classifier share.

Legend: B batch, C channels, D text width, P keypoints, N = h * w cells; x_BChw is a feature map of a quarter of the
frame's height and width.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


def coordinate_grid(x_BChw: Tensor) -> Tensor:
    """Centres of the cells of a feature map in (-1, 1), (2, h, w) float32: x to the right, then y downwards."""
    height, width = x_BChw.shape[-2:]
    y_h = (torch.arange(height, device=x_BChw.device) + 0.5) / height * 2 - 1
    x_w = (torch.arange(width, device=x_BChw.device) + 0.5) / width * 2 - 1
    return torch.stack([x_w.expand(height, width), y_h[:, None].expand(height, width)])


class FilmBlock(nn.Module):
    """Residual pair of 3x3 convolutions; the instruction scales and shifts the channels in between (FiLM)."""

    def __init__(self, channels: int, text_width: int) -> None:
        super().__init__()
        self.conv_in = nn.Conv2d(channels, channels, 3, padding=1)
        self.film = nn.Linear(text_width, 2 * channels)
        self.conv_out = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x_BChw: Tensor, text_BD: Tensor) -> Tensor:
        scale_BC11, shift_BC11 = self.film(text_BD)[:, :, None, None].chunk(2, dim=1)
        h_BChw = self.conv_in(x_BChw) * (1 + scale_BC11) + shift_BC11
        return x_BChw + self.conv_out(nn.functional.gelu(h_BChw))


class FilmEncoder(nn.Module):
    """uint8 frame and text -> feature map at a quarter of the resolution.

    One 6x6 convolution of stride 4 replaces a pyramid: on a CPU a 32x32 map of few channels costs more time than
    everything after it, and `channels` numbers per 4x4 patch keep a block's edge to a fraction of a pixel.
    """

    def __init__(self, channels: int, blocks: int, text_width: int) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, channels, 6, stride=4, padding=1)
        self.position = nn.Conv2d(2, channels, 1, bias=False)
        self.blocks = nn.ModuleList(FilmBlock(channels, text_width) for _ in range(blocks))

    def forward(self, frames_BHWC: Tensor, text_BD: Tensor) -> Tensor:
        pixels_B3HW = frames_BHWC.permute(0, 3, 1, 2).float() / 127.5 - 1  # channels last, and so is every map after it
        x_BChw = self.stem(pixels_B3HW)
        x_BChw = nn.functional.gelu(x_BChw + self.position(coordinate_grid(x_BChw)[None]))
        for block in self.blocks:
            x_BChw = block(x_BChw, text_BD)
        return x_BChw


class Keypoints(nn.Module):
    """Spatial softmax: P attention maps over the feature map -> expected coordinates and features at them."""

    def __init__(self, channels: int, keypoints: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(1, channels)
        self.scores = nn.Conv2d(channels, keypoints, 1)
        # Scores of standard deviation 3 begin as maps of a few cells each. From the default's nearly uniform maps all
        # keypoints start at the image's centre, and hundreds of steps pass before they find anything.
        nn.init.normal_(self.scores.weight, std=3 / channels**0.5)

    def forward(self, x_BChw: Tensor) -> Tensor:
        x_BChw = self.norm(x_BChw)
        attention_BPN = self.scores(x_BChw).float().flatten(2).softmax(dim=-1)
        grid_B2hw = coordinate_grid(x_BChw).expand(len(x_BChw), -1, -1, -1)
        read_BFN = torch.cat([grid_B2hw, x_BChw.float()], dim=1).flatten(2)
        return (attention_BPN @ read_BFN.transpose(1, 2)).flatten(1)
