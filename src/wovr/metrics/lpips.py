"""LPIPS (Zhang et al., 2018) and FloLPIPS (Danier et al., 2022), over AlexNet.

AlexNet's weights are a published file (`wovr.metrics.published`); the learned weights of its channels, five vectors,
come with torchmetrics. The networks are written here because the libraries that have them import torchvision, which
does not load beside every build of torch.

FloLPIPS is LPIPS whose spatial mean is weighted by how much the optical flow to the next frame differs between the two
videos. Departures from its release: weights sum to 1 over each frame, where the release lets them sum to 1 over a batch
of eight and values depend on what else is in it; and the flow is RAFT's instead of PWC-Net's, whose correlation layer
is CUDA code.

Legend: N frames, H W image height and width, h w of a feature map, C channels. Images are float in [-1, 1].
"""

from __future__ import annotations

import math
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from wovr.core.checkpoint import fill, load_torch_file
from wovr.core.errors import UserError
from wovr.metrics.published import load_published

CHANNELS = (64, 192, 384, 256, 256)
"""Of the five layers that are compared."""
RAFT_SIDE = 128
"""Least height and width that RAFT accepts; smaller frames are enlarged for it."""

Flow = Callable[[Tensor, Tensor], Tensor]
"""(frames_N3HW, next_N3HW) -> flow_N2HW in pixels."""


class AlexNet(nn.Module):
    """Five rectified feature maps. Names and layers as in torchvision, without its classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            *(nn.Conv2d(3, 64, 11, stride=4, padding=2), nn.ReLU()),
            *(nn.MaxPool2d(3, stride=2), nn.Conv2d(64, 192, 5, padding=2), nn.ReLU()),
            *(nn.MaxPool2d(3, stride=2), nn.Conv2d(192, 384, 3, padding=1), nn.ReLU()),
            *(nn.Conv2d(384, 256, 3, padding=1), nn.ReLU()),
            *(nn.Conv2d(256, 256, 3, padding=1), nn.ReLU()),
        )

    def forward(self, x_N3HW: Tensor) -> list[Tensor]:
        maps = []
        for layer in self.features:
            x_N3HW = layer(x_N3HW)
            if isinstance(layer, nn.ReLU):
                maps.append(x_N3HW)
        return maps


class LPIPS(nn.Module):
    """Learned perceptual distance of images, version 0.1 over AlexNet; about 0 to 1, 0 for equal images."""

    shift: Tensor
    scale: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.net = AlexNet()
        self.heads = nn.ParameterList(torch.zeros(channels) for channels in CHANNELS)
        # ImageNet's mean and deviation, for images in [-1, 1].
        self.register_buffer("shift", torch.tensor([-0.030, -0.088, -0.188])[:, None, None], persistent=False)
        self.register_buffer("scale", torch.tensor([0.458, 0.448, 0.450])[:, None, None], persistent=False)

    def forward(self, a_N3HW: Tensor, b_N3HW: Tensor) -> Tensor:
        """LPIPS of N pairs of images, (N,)."""
        return torch.stack([map_Nhw.mean(dim=(1, 2)) for map_Nhw in self.maps(a_N3HW, b_N3HW)]).sum(dim=0)

    def flow_weighted(self, a_N3HW: Tensor, b_N3HW: Tensor, flow_difference_N2HW: Tensor) -> Tensor:
        """FloLPIPS of N pairs of images, (N,): `flow_difference` is the flow of a minus that of b."""
        total_N = a_N3HW.new_zeros(len(a_N3HW))
        for map_Nhw in self.maps(a_N3HW, b_N3HW):
            difference_N2hw = interpolate(flow_difference_N2HW, map_Nhw.shape[1:], mode="bilinear")
            weight_Nhw = difference_N2hw.norm(dim=1)
            weight_Nhw = weight_Nhw / weight_Nhw.sum(dim=(1, 2), keepdim=True).clamp_min(1e-12)
            total_N = total_N + (weight_Nhw * map_Nhw).sum(dim=(1, 2))
        return total_N

    def maps(self, a_N3HW: Tensor, b_N3HW: Tensor) -> list[Tensor]:
        """The distance at each place (N, h, w), for each of the five layers."""
        maps_a, maps_b = (self.net((x_N3HW - self.shift) / self.scale) for x_N3HW in (a_N3HW, b_N3HW))
        return [
            torch.einsum("NChw,C->Nhw", (_unit(a_NChw) - _unit(b_NChw)).square(), head_C)
            for a_NChw, b_NChw, head_C in zip(maps_a, maps_b, self.heads, strict=True)
        ]


def _unit(x_NChw: Tensor) -> Tensor:
    return x_NChw / (x_NChw.norm(dim=1, keepdim=True) + 1e-10)


def flolpips(lpips: LPIPS, flow: Flow, imagined_T3HW: Tensor, true_T3HW: Tensor) -> Tensor:
    """FloLPIPS of each frame that has a next one, (T - 1,)."""
    now, following = slice(None, -1), slice(1, None)
    flow_imagined, flow_true = (flow(video[now], video[following]) for video in (imagined_T3HW, true_T3HW))
    return lpips.flow_weighted(imagined_T3HW[now], true_T3HW[now], flow_imagined - flow_true)


def load_lpips(alexnet: Path, device: torch.device | str = "cpu") -> LPIPS:
    """LPIPS over the published AlexNet."""
    metric = LPIPS()
    load_published(alexnet, metric.net, without="classifier.")
    # Found without being imported: where torchvision does not load, torchmetrics does not either.
    package = find_spec("torchmetrics")
    assert package is not None and package.origin is not None, "a dependency of wovr"
    path = Path(package.origin).parent / "functional" / "image" / "lpips_models" / "alex.pth"
    tensors = {name: value.flatten() for name, value in load_torch_file(path).items()}
    fill(metric.heads, {str(k): tensors[f"lin{k}.model.1.weight"] for k in range(len(CHANNELS))}, path)
    return metric.to(device).eval().requires_grad_(False)


def load_raft(path: Path, device: torch.device | str = "cpu") -> Flow:
    """Optical flow by torchvision's RAFT. UserError where torchvision is missing or does not load beside this torch."""
    try:
        from torchvision.models.optical_flow import raft_large
    except (ImportError, RuntimeError) as error:
        raise UserError(
            f"metric flolpips: expected torchvision of the release that fits torch {torch.__version__} (the extra "
            f"`wovr[metrics]`), found {' '.join(str(error).split())}"
        ) from None
    network = raft_large()
    load_published(path, network)
    network.to(device).eval().requires_grad_(False)

    def flow(frames_N3HW: Tensor, next_N3HW: Tensor) -> Tensor:
        height, width = frames_N3HW.shape[-2:]
        larger = max(1.0, RAFT_SIDE / min(height, width))
        size = [8 * math.ceil(side * larger / 8) for side in (height, width)]
        flow_N2HW = network(*(interpolate(x, size, mode="bilinear") for x in (frames_N3HW, next_N3HW)))[-1]
        per_pixel = flow_N2HW.new_tensor([width / size[1], height / size[0]])[:, None, None]
        return interpolate(flow_N2HW * per_pixel, (height, width), mode="bilinear")

    return flow
