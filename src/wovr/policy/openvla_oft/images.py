"""Frames to what the vision transformers see, in torch and on the frames' own device.

Frames are upright, as wovr keeps them everywhere and as these policies were trained on them: LIBERO's renderer gives
them upside down, and the rotation by 180 degrees of the published code has been made where frames are recorded.

A frame is resized to `size` by bicubic interpolation with antialiasing and rounded to bytes, as torchvision does on
uint8 tensors, which is what RLinf's processor calls. OpenVLA-OFT's own evaluation differs: there, TensorFlow resizes
with a Lanczos filter after a round trip through JPEG.

Legend: B batch, H and W height and width in pixels, C colours, S pixels along a side.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import grid_sample, interpolate


def resize(frames_BHWC: Tensor, size: int, crop: float) -> Tensor:
    """uint8 frames -> (B, C, S, S) float32, whole numbers in [0, 255]; `crop` is a share of the area, see `centre`."""
    bytes_BCHW = frames_BHWC.permute(0, 3, 1, 2).float()
    if tuple(bytes_BCHW.shape[-2:]) != (size, size):
        bytes_BCHW = interpolate(bytes_BCHW, (size, size), mode="bicubic", align_corners=False, antialias=True)
        bytes_BCHW = bytes_BCHW.clamp(0, 255).round()
    return bytes_BCHW if crop == 1.0 else centre(bytes_BCHW, crop)


def centre(bytes_BCSS: Tensor, crop: float) -> Tensor:
    """The middle `crop` of the area, enlarged to the old size bilinearly and rounded to bytes.

    As TensorFlow's `crop_and_resize` and `convert_image_dtype`, with which the published evaluation does it: corners
    of the box lie on pixel centres, and a value v in [0, 1] becomes the byte floor(255.5 v).
    """
    B, _, size, _ = bytes_BCSS.shape
    line_S = torch.linspace(-1, 1, size, device=bytes_BCSS.device) * crop**0.5
    grid_BSS2 = torch.stack(torch.meshgrid(line_S, line_S, indexing="xy"), dim=-1).expand(B, -1, -1, -1)
    cut_BCSS = grid_sample(bytes_BCSS, grid_BSS2, mode="bilinear", align_corners=True)
    return (cut_BCSS * (255.5 / 255)).floor().clamp(0, 255)


def normalise(bytes_BCSS: Tensor, mean_C: tuple[float, ...], std_C: tuple[float, ...]) -> Tensor:
    """(B, C, S, S) float32, as one of the vision transformers was trained on it."""
    mean, std = (torch.tensor(values, device=bytes_BCSS.device).view(-1, 1, 1) for values in (mean_C, std_C))
    return (bytes_BCSS / 255 - mean) / std
