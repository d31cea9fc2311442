"""Inception v3 as FID uses it: the network of 2015 in TensorFlow's form, 2048 features per image.

Layers and names of the parameters are those of pytorch-fid's `pt_inception-2015-12-05-6726825d.pth`. That is
torchvision's network but for its pooling: averages leave out the padding, and the last block takes maxima.

Legend: N images, C channels, H W image height and width, h w of a feature map.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, interpolate, max_pool2d, relu

SIDE = 299
"""Height and width of the images that it sees, pixels."""

Kernel = int | tuple[int, int]
ROW, COLUMN = (1, 7), (7, 1)


class Conv(nn.Module):
    """Convolution without bias, batch normalisation, ReLU. It keeps the size of the map unless `pad` is False."""

    def __init__(self, channels_in: int, channels: int, kernel: Kernel, stride: int = 1, pad: bool = True) -> None:
        super().__init__()
        height, width = (kernel, kernel) if isinstance(kernel, int) else kernel
        padding = (height // 2, width // 2) if pad else 0
        self.conv = nn.Conv2d(channels_in, channels, kernel, stride, padding, bias=False)
        self.bn = nn.BatchNorm2d(channels, eps=1e-3)

    def forward(self, x_NChw: Tensor) -> Tensor:
        return relu(self.bn(self.conv(x_NChw)))


def _average(x_NChw: Tensor) -> Tensor:
    return avg_pool2d(x_NChw, 3, stride=1, padding=1, count_include_pad=False)


def _max(x_NChw: Tensor) -> Tensor:
    return max_pool2d(x_NChw, 3, stride=1, padding=1)


def _halve(x_NChw: Tensor) -> Tensor:
    return max_pool2d(x_NChw, 3, stride=2)


class Mixed(nn.Module):
    """Branches side by side, each a chain of convolutions. The last starts with `pool`."""

    def __init__(self, pool: Callable[[Tensor], Tensor], branches: Sequence[dict[str, Conv]]) -> None:
        super().__init__()
        self.pool = pool
        self._branches = [list(branch) for branch in branches]
        for branch in branches:
            for name, conv in branch.items():
                self.add_module(name, conv)

    def forward(self, x_NChw: Tensor) -> Tensor:
        starts = [x_NChw] * (len(self._branches) - 1) + [self.pool(x_NChw)]
        return torch.cat([self._chain(names, y) for names, y in zip(self._branches, starts, strict=True)], dim=1)

    def _chain(self, names: Sequence[str], y_NChw: Tensor) -> Tensor:
        for name in names:
            y_NChw = self.get_submodule(name)(y_NChw)
        return y_NChw


class ForkedMixed(nn.Module):
    """A block whose branches of 3x3 convolutions end in a row and a column side by side."""

    def __init__(self, pool: Callable[[Tensor], Tensor], channels: int) -> None:
        super().__init__()
        self.pool = pool
        self.branch1x1 = Conv(channels, 320, 1)
        self.branch3x3_1 = Conv(channels, 384, 1)
        self.branch3x3_2a, self.branch3x3_2b = Conv(384, 384, (1, 3)), Conv(384, 384, (3, 1))
        self.branch3x3dbl_1, self.branch3x3dbl_2 = Conv(channels, 448, 1), Conv(448, 384, 3)
        self.branch3x3dbl_3a, self.branch3x3dbl_3b = Conv(384, 384, (1, 3)), Conv(384, 384, (3, 1))
        self.branch_pool = Conv(channels, 192, 1)

    def forward(self, x_NChw: Tensor) -> Tensor:
        y, z = self.branch3x3_1(x_NChw), self.branch3x3dbl_2(self.branch3x3dbl_1(x_NChw))
        forks = self.branch3x3_2a(y), self.branch3x3_2b(y), self.branch3x3dbl_3a(z), self.branch3x3dbl_3b(z)
        return torch.cat([self.branch1x1(x_NChw), *forks, self.branch_pool(self.pool(x_NChw))], dim=1)


def _square(channels: int, pool_channels: int) -> Mixed:
    """Of the 35x35 maps."""
    return Mixed(
        _average,
        [
            {"branch1x1": Conv(channels, 64, 1)},
            {"branch5x5_1": Conv(channels, 48, 1), "branch5x5_2": Conv(48, 64, 5)},
            {
                "branch3x3dbl_1": Conv(channels, 64, 1),
                "branch3x3dbl_2": Conv(64, 96, 3),
                "branch3x3dbl_3": Conv(96, 96, 3),
            },
            {"branch_pool": Conv(channels, pool_channels, 1)},
        ],
    )


def _factored(width: int) -> Mixed:
    """Of the 17x17 maps, whose 7x7 convolutions are rows and columns."""
    return Mixed(
        _average,
        [
            {"branch1x1": Conv(768, 192, 1)},
            {
                "branch7x7_1": Conv(768, width, 1),
                "branch7x7_2": Conv(width, width, ROW),
                "branch7x7_3": Conv(width, 192, COLUMN),
            },
            {
                "branch7x7dbl_1": Conv(768, width, 1),
                "branch7x7dbl_2": Conv(width, width, COLUMN),
                "branch7x7dbl_3": Conv(width, width, ROW),
                "branch7x7dbl_4": Conv(width, width, COLUMN),
                "branch7x7dbl_5": Conv(width, 192, ROW),
            },
            {"branch_pool": Conv(768, 192, 1)},
        ],
    )


class Inception(nn.Sequential):
    """Images in [-1, 1], (N, 3, 299, 299) -> feature maps (N, 2048, 8, 8)."""

    def __init__(self) -> None:
        super().__init__()
        self.Conv2d_1a_3x3 = Conv(3, 32, 3, stride=2, pad=False)
        self.Conv2d_2a_3x3 = Conv(32, 32, 3, pad=False)
        self.Conv2d_2b_3x3 = Conv(32, 64, 3)
        self.pool_1 = nn.MaxPool2d(3, stride=2)
        self.Conv2d_3b_1x1 = Conv(64, 80, 1)
        self.Conv2d_4a_3x3 = Conv(80, 192, 3, pad=False)
        self.pool_2 = nn.MaxPool2d(3, stride=2)
        self.Mixed_5b, self.Mixed_5c, self.Mixed_5d = _square(192, 32), _square(256, 64), _square(288, 64)
        self.Mixed_6a = Mixed(
            _halve,
            [
                {"branch3x3": Conv(288, 384, 3, stride=2, pad=False)},
                {
                    "branch3x3dbl_1": Conv(288, 64, 1),
                    "branch3x3dbl_2": Conv(64, 96, 3),
                    "branch3x3dbl_3": Conv(96, 96, 3, stride=2, pad=False),
                },
                {},
            ],
        )
        self.Mixed_6b, self.Mixed_6c = _factored(128), _factored(160)
        self.Mixed_6d, self.Mixed_6e = _factored(160), _factored(192)
        self.Mixed_7a = Mixed(
            _halve,
            [
                {"branch3x3_1": Conv(768, 192, 1), "branch3x3_2": Conv(192, 320, 3, stride=2, pad=False)},
                {
                    "branch7x7x3_1": Conv(768, 192, 1),
                    "branch7x7x3_2": Conv(192, 192, ROW),
                    "branch7x7x3_3": Conv(192, 192, COLUMN),
                    "branch7x7x3_4": Conv(192, 192, 3, stride=2, pad=False),
                },
                {},
            ],
        )
        self.Mixed_7b, self.Mixed_7c = ForkedMixed(_average, 1280), ForkedMixed(_max, 2048)


def image_features(network: Inception, frames_NHWC: Tensor) -> Tensor:
    """Features (N, 2048) of uint8 images (N, H, W, 3)."""
    x_N3HW = frames_NHWC.movedim(-1, 1).float() / 127.5 - 1
    maps_NFhw: Tensor = network(interpolate(x_N3HW, (SIDE, SIDE), mode="bilinear"))
    return maps_NFhw.mean(dim=(2, 3))
