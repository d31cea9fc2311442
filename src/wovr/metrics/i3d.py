"""I3D (Carreira and Zisserman, 2017), whose 400 Kinetics logits are the features of FVD (Unterthiner et al., 2018).

Layers and names of the parameters are those of `i3d_pretrained_400.pt`, DeepMind's network as VideoGPT published it
for torch, and so is the epsilon of the normalisation.

Legend: B videos, T frames, C channels, t h w of a feature map.
"""

from __future__ import annotations

from itertools import chain

import torch
from torch import Tensor, nn
from torch.nn.functional import avg_pool3d, interpolate, max_pool3d, pad, relu

SIDE = 224
"""Height and width that the network was trained with, pixels."""
MIN_FRAMES = 9
"""The last pooling takes two of T / 8 feature maps."""
CLASSES = 400


class I3D(nn.Module):
    """Videos in [-1, 1], (B, 3, T, 224, 224) -> logits averaged over time, (B, 400)."""

    def __init__(self) -> None:
        super().__init__()
        self.Conv3d_1a_7x7 = Unit(3, 64, 7, stride=2)
        self.Conv3d_2b_1x1 = Unit(64, 64, 1)
        self.Conv3d_2c_3x3 = Unit(64, 192, 3)
        self.Mixed_3b = Mixed(192, 64, 96, 128, 16, 32, 32)
        self.Mixed_3c = Mixed(256, 128, 128, 192, 32, 96, 64)
        self.Mixed_4b = Mixed(480, 192, 96, 208, 16, 48, 64)
        self.Mixed_4c = Mixed(512, 160, 112, 224, 24, 64, 64)
        self.Mixed_4d = Mixed(512, 128, 128, 256, 24, 64, 64)
        self.Mixed_4e = Mixed(512, 112, 144, 288, 32, 64, 64)
        self.Mixed_4f = Mixed(528, 256, 160, 320, 32, 128, 128)
        self.Mixed_5b = Mixed(832, 256, 160, 320, 32, 128, 128)
        self.Mixed_5c = Mixed(832, 384, 192, 384, 48, 128, 128)
        self.logits = nn.ModuleDict({"conv3d": nn.Conv3d(1024, CLASSES, 1)})

    def forward(self, x_BCTHW: Tensor) -> Tensor:
        x = _max_pool(self.Conv3d_1a_7x7(x_BCTHW), (1, 3, 3), (1, 2, 2))
        x = _max_pool(self.Conv3d_2c_3x3(self.Conv3d_2b_1x1(x)), (1, 3, 3), (1, 2, 2))
        x = _max_pool(self.Mixed_3c(self.Mixed_3b(x)), (3, 3, 3), (2, 2, 2))
        for block in (self.Mixed_4b, self.Mixed_4c, self.Mixed_4d, self.Mixed_4e, self.Mixed_4f):
            x = block(x)
        x = self.Mixed_5c(self.Mixed_5b(_max_pool(x, (2, 2, 2), (2, 2, 2))))
        logits_BCt11: Tensor = self.logits["conv3d"](avg_pool3d(x, (2, 7, 7), stride=1))
        return logits_BCt11.mean(dim=(2, 3, 4))


class Unit(nn.Module):
    """Convolution without bias, batch normalisation, ReLU."""

    def __init__(self, channels_in: int, channels: int, kernel: int, stride: int = 1) -> None:
        super().__init__()
        self.kernel, self.stride = (kernel,) * 3, (stride,) * 3
        self.conv3d = nn.Conv3d(channels_in, channels, kernel, stride, bias=False)
        self.bn = nn.BatchNorm3d(channels, eps=1e-5)

    def forward(self, x_BCthw: Tensor) -> Tensor:
        return relu(self.bn(self.conv3d(_pad_same(x_BCthw, self.kernel, self.stride))))


class Mixed(nn.Module):
    """Inception block: four branches side by side."""

    def __init__(self, channels_in: int, b0: int, b1a: int, b1b: int, b2a: int, b2b: int, b3b: int) -> None:
        super().__init__()
        self.b0 = Unit(channels_in, b0, 1)
        self.b1a, self.b1b = Unit(channels_in, b1a, 1), Unit(b1a, b1b, 3)
        self.b2a, self.b2b = Unit(channels_in, b2a, 1), Unit(b2a, b2b, 3)
        self.b3b = Unit(channels_in, b3b, 1)

    def forward(self, x_BCthw: Tensor) -> Tensor:
        pooled_BCthw = _max_pool(x_BCthw, (3, 3, 3), (1, 1, 1))
        branches = self.b0(x_BCthw), self.b1b(self.b1a(x_BCthw)), self.b2b(self.b2a(x_BCthw)), self.b3b(pooled_BCthw)
        return torch.cat(branches, dim=1)


def _max_pool(x_BCthw: Tensor, kernel: tuple[int, ...], stride: tuple[int, ...]) -> Tensor:
    return max_pool3d(_pad_same(x_BCthw, kernel, stride), kernel, stride)


def _pad_same(x_BCthw: Tensor, kernel: tuple[int, ...], stride: tuple[int, ...]) -> Tensor:
    """Zeros around the map so that it keeps ceil(size / stride) cells; an odd one goes behind (TensorFlow's SAME)."""
    total = [max(k - (size % s or s), 0) for k, s, size in zip(kernel, stride, x_BCthw.shape[2:], strict=True)]
    return pad(x_BCthw, list(chain.from_iterable((n // 2, n - n // 2) for n in reversed(total))))


def video_features(network: I3D, frames_THWC: Tensor) -> Tensor:
    """Features (400,) of one uint8 video (T, H, W, 3) of at least `MIN_FRAMES` frames, as a whole."""
    x_T3HW = frames_THWC.movedim(-1, 1).float() / 127.5 - 1
    x_T3HW = interpolate(x_T3HW, (SIDE, SIDE), mode="bilinear")
    features_1F: Tensor = network(x_T3HW.movedim(0, 1)[None])
    return features_1F[0]
