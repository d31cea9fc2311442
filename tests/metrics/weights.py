"""Weights in the format of published files, made from their names alone, so that another program makes the same."""

import math

import numpy as np
import torch
from torch import Tensor

from wovr.core.seed import stream


def published_weights(shapes: dict[str, tuple[int, ...]]) -> dict[str, Tensor]:
    """Uniform numbers that keep activations near 1; normalisation layers are some way off from doing nothing."""
    weights = {}
    for name, shape in shapes.items():
        draw = stream(0, name).random(shape, dtype=np.float32)
        if name.endswith(("running_var", "bn.weight")):
            draw = 0.5 + draw
        elif len(shape) == 1:
            draw = 0.2 * (draw - 0.5)
        else:
            draw = (draw - 0.5) * math.sqrt(24 / math.prod(shape[1:]))
        weights[name] = torch.from_numpy(draw)
    return weights


def frames(count: int, height: int = 64, width: int = 48) -> Tensor:
    """uint8 (count, height, width, 3)."""
    return torch.from_numpy(stream(0, "frames").integers(0, 256, (count, height, width, 3), dtype=np.uint8))
