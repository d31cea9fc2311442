"""Actions and proprioception in the units of the data, of the environment and of tokens.

From tokens to the environment: a bin's centre in [-1, 1], then the quantiles of the data (`q01` to `q99` are -1 to 1)
where the statistics' mask says so, then the gripper. In the published data, the last dimension is 1 for an open gripper
and 0 for a closed one and is not normalised; LIBERO's environment wants -1 for open and +1 for closed.

Unlike the embedded policy's, OpenVLA's V bins are V edges with V - 1 centres between them: token 0 (an action of
exactly 1) and token 1 stand for the same, the highest, centre.

Legend: B batch, H chunk length, A action dims, K = H * A tokens (step by step), V action tokens, P numbers of
proprioception.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from wovr.core.errors import UserError

EPS = 1e-8
"""Added to a quantile range before division, and to it again on the way back."""


class Range:
    """What maps [-1, 1] to the data's quantiles per dimension, where `mask` holds; elsewhere values stay."""

    def __init__(self, statistics: Mapping[str, Any]) -> None:
        low, high = (torch.from_numpy(np.array(statistics[key], np.float64)) for key in ("q01", "q99"))
        self._low, self._width = low, high - low + EPS
        self._mask = torch.from_numpy(np.array(statistics.get("mask", [True] * len(low)), bool))

    def to_data(self, normal: Tensor) -> Tensor:
        """(..., dimensions) in [-1, 1] -> the data's units, float64."""
        low, width, mask = (value.to(normal.device) for value in (self._low, self._width, self._mask))
        return torch.where(mask, 0.5 * (normal.double() + 1) * width + low, normal.double())

    def to_normal(self, data: Tensor) -> Tensor:
        """The other way, clipped to [-1, 1], float64."""
        low, width, mask = (value.to(data.device) for value in (self._low, self._width, self._mask))
        return torch.where(mask, 2 * (data.double() - low) / width - 1, data.double()).clamp(-1, 1)


class ActionTokens:
    """V tokens per action dimension; `statistics` is the section of one key of `dataset_statistics.json`."""

    def __init__(self, statistics: Mapping[str, Any], bins: int) -> None:
        self.bins = bins
        self._range = Range(statistics["action"])
        self._actions = len(statistics["action"]["q01"])
        edges_V = np.linspace(-1, 1, bins)
        centres = (edges_V[:-1] + edges_V[1:]) / 2
        self._edges_V = torch.from_numpy(edges_V)
        self._centres_V = torch.from_numpy(centres[np.minimum(bins - 1 - np.arange(bins), bins - 2)])

    def decode(self, tokens_BK: Tensor) -> Tensor:
        """(B, H, A) float32, environment units. A gripper of exactly one half is open."""
        normal_BHA = self._centres_V.to(tokens_BK.device)[tokens_BK].unflatten(1, (-1, self._actions))
        data_BHA = self._range.to_data(normal_BHA)
        gripper_BH = torch.where(data_BHA[..., -1] >= 0.5, -1.0, 1.0)
        return torch.cat([data_BHA[..., :-1], gripper_BH.unsqueeze(-1)], dim=-1).float()

    def encode(self, actions_BHA: Tensor) -> Tensor:
        """(B, K) int64, as OpenVLA's tokenizer bins demonstrations: normalised, clipped, the edge at or below."""
        gripper_BH = (1 - actions_BHA[..., -1].double().clamp(-1, 1)) / 2
        data_BHA = torch.cat([actions_BHA[..., :-1].double(), gripper_BH.unsqueeze(-1)], dim=-1)
        normal_BHA = self._range.to_normal(data_BHA).contiguous()
        return self.bins - torch.bucketize(normal_BHA, self._edges_V.to(normal_BHA.device), right=True).flatten(1)


class ProprioRange:
    """Proprioception to what the network reads."""

    def __init__(self, statistics: Mapping[str, Any]) -> None:
        self._range = Range(statistics["proprio"])

    def __call__(self, proprio_BP: Tensor) -> Tensor:
        """(B, P) in [-1, 1], float32."""
        return self._range.to_normal(proprio_BP).float()


def check_statistics(path: Path | str, found: Any, key: str, action_dim: int, proprio: int) -> dict[str, Any]:
    """The section of `key`; UserError where it is absent or does not fit the dimensions. `path` is for the error."""
    if not isinstance(found, dict) or key not in found:
        keys = ", ".join(sorted(found)) if isinstance(found, dict) and found else "none"
        raise UserError(f"{path}: expected the key '{key}' of `policy.statistics`, found {keys}")
    wanted = {"action": (action_dim, "action_dim")} | ({"proprio": (proprio, "proprio")} if proprio else {})
    for part, (size, setting) in wanted.items():
        section = found[key].get(part) if isinstance(found[key], dict) else None
        for name in ("q01", "q99", "mask"):
            values = section.get(name) if isinstance(section, dict) else None
            if name == "mask" and values is None:
                continue
            place = f"{path}: key '{key}.{part}.{name}'"
            if not (isinstance(values, list) and all(isinstance(value, int | float) for value in values)):
                raise UserError(f"{place}: expected {size} numbers, found {type(values).__name__}")
            if len(values) != size:
                raise UserError(f"{place}: expected {size} numbers as `policy.{setting}` says, found {len(values)}")
    return dict(found[key])
