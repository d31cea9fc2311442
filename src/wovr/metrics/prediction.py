"""How imagined videos compare to true ones up to a rollout horizon: a row of the paper's Tables 1 and 4 for each.

PSNR, SSIM, LPIPS and FloLPIPS are means over frames, then over trajectories, with a 95 % interval: percentiles of the
mean under resampling of whole trajectories (bootstrap), since the frames of one are anything but independent. FID and
FVD are properties of all trajectories together and biased upwards where these are few.

Legend: N trajectories, T imagined frames of a trajectory; the frame that it starts from is not among them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from wovr.core.seed import stream
from wovr.metrics.frechet import FeatureMoments, frechet_distance
from wovr.metrics.perceptual import Features, PairMeasure
from wovr.metrics.video import psnr, ssim

RESAMPLES = 2000
PIXEL_MEASURES: dict[str, PairMeasure] = {
    "psnr": lambda imagined_THWC, true_THWC: psnr(imagined_THWC[None], true_THWC[None])[0],
    "ssim": lambda imagined_THWC, true_THWC: ssim(imagined_THWC[None], true_THWC[None])[0],
}
"""Always measured."""


class PredictionQuality:
    """Gathers trajectories one at a time, so that their frames need not stay in memory."""

    def __init__(
        self,
        horizons: Sequence[int],
        pair_measures: Mapping[str, PairMeasure],
        features: Mapping[str, Features],
        seed: int,
    ) -> None:
        self.horizons, self.seed = horizons, seed
        self._measures, self._features = {**PIXEL_MEASURES, **pair_measures}, features
        self._values: dict[str, list[Tensor]] = {name: [] for name in self._measures}
        self._moments = {
            (name, horizon): (FeatureMoments(), FeatureMoments()) for name in features for horizon in horizons
        }

    def add(self, imagined_THWC: Tensor, true_THWC: Tensor) -> None:
        """Count one trajectory, uint8 (T, H, W, 3) on both sides: in every horizon of at most T steps."""
        assert imagined_THWC.shape == true_THWC.shape and imagined_THWC.dtype == true_THWC.dtype == torch.uint8
        for name, measure in self._measures.items():
            self._values[name].append(measure(imagined_THWC, true_THWC).double())
        reached = [horizon for horizon in self.horizons if horizon <= len(true_THWC)]
        assert reached, "shorter than every horizon"
        for name, features in self._features.items():
            for side, frames_THWC in enumerate((imagined_THWC, true_THWC)):
                for horizon, vectors_NF in zip(reached, features(frames_THWC, reached), strict=True):
                    self._moments[name, horizon][side].add(vectors_NF)

    def by_horizon(self) -> dict[str, dict[str, Any]]:
        """{horizon: {n, psnr: {mean, ci95}, ..., fid}} of every horizon that a trajectory reaches; JSON."""
        found: dict[str, dict[str, Any]] = {}
        for horizon in self.horizons:
            reach = [i for i, value_T in enumerate(self._values["psnr"]) if len(value_T) >= horizon]
            if not reach:
                continue
            row = found[str(horizon)] = {"n": len(reach)}
            for name, values in self._values.items():
                # A measure that looks at the next frame has one value less than the video has frames.
                ahead = len(self._values["psnr"][0]) - len(values[0])
                means = [values[i][: horizon - ahead].mean().item() for i in reach]
                row[name] = mean_interval(means, self.seed)
            for name in self._features:
                distance = frechet_distance(*self._moments[name, horizon])
                row[name] = None if math.isnan(distance) else distance
        return found

    def by_frame(self) -> dict[str, list[float]]:
        """Mean of each measure at every depth, first imagined frame first, over the trajectories that are so long."""
        return {
            name: [
                torch.stack([value_T[t] for value_T in values if len(value_T) > t]).mean().item()
                for t in range(max((len(value_T) for value_T in values), default=0))
            ]
            for name, values in self._values.items()
        }


def mean_interval(values_N: Sequence[float], seed: int) -> dict[str, Any]:
    """Mean and its 95 % bootstrap interval (percentiles); null for one value, which says nothing about others."""
    values = np.asarray(values_N, dtype=np.float64)
    if len(values) < 2:
        return {"mean": float(values.mean()), "ci95": None}
    drawn = stream(seed, "bootstrap").integers(len(values), size=(RESAMPLES, len(values)))
    low, high = np.quantile(values[drawn].mean(axis=1), [0.025, 0.975])
    return {"mean": float(values.mean()), "ci95": [float(low), float(high)]}
