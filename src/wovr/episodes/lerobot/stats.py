"""Statistics of a feature, as LeRobot normalises with them: min, max, mean, std, count and, in v3.0, five quantiles.

A vector's have its shape, a camera's are (3, 1, 1) of values in [0, 1]. LeRobot samples pictures and estimates
quantiles; here every pixel and sample of an episode counts. Across episodes quantiles are combined as LeRobot does:
the least of those up to the median, the greatest of those above.

Legend: N samples, M numbers of a vector; H W height and width.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from wovr.core.types import Frames

QUANTILES = {"q01": 0.01, "q10": 0.10, "q50": 0.50, "q90": 0.90, "q99": 0.99}

Stats = dict[str, NDArray[Any]]


def vector_stats(values_N: NDArray[Any]) -> Stats:
    """Of (N,) or (N, M) numbers."""
    values_NM = values_N.reshape(len(values_N), -1).astype(np.float64)
    moments = {"min": values_NM.min(0), "max": values_NM.max(0), "mean": values_NM.mean(0), "std": values_NM.std(0)}
    quantiles = np.quantile(values_NM, list(QUANTILES.values()), axis=0)
    return {**moments, "count": np.array([len(values_NM)]), **dict(zip(QUANTILES, quantiles, strict=True))}


def frame_stats(frames_NHWC: Frames) -> Stats:
    """Of all pixels of an episode's frames, by channel."""
    counts_CV = np.sum([Image.fromarray(frame).histogram() for frame in frames_NHWC], axis=0).reshape(3, 256)
    values_V = np.arange(256) / 255
    share_CV = counts_CV / counts_CV.sum(1, keepdims=True)
    mean_C = share_CV @ values_V
    below_CV = np.cumsum(share_CV, axis=1)
    stats = {
        "min": values_V[(counts_CV > 0).argmax(1)],
        "max": values_V[255 - (counts_CV[:, ::-1] > 0).argmax(1)],
        "mean": mean_C,
        "std": np.sqrt(np.maximum(share_CV @ values_V**2 - mean_C**2, 0)),
        **{name: values_V[(below_CV >= q - 1e-12).argmax(1)] for name, q in QUANTILES.items()},
    }
    return {name: value.reshape(3, 1, 1) for name, value in stats.items()} | {"count": np.array([len(frames_NHWC)])}


def combined(first: Stats, second: Stats) -> Stats:
    """Of both sets of samples together."""
    n, m = first["count"], second["count"]
    mean = (first["mean"] * n + second["mean"] * m) / (n + m)
    spread = [(stats["std"] ** 2 + (stats["mean"] - mean) ** 2) * stats["count"] for stats in (first, second)]
    both = {
        "min": np.minimum(first["min"], second["min"]),
        "max": np.maximum(first["max"], second["max"]),
        "mean": mean,
        "std": np.sqrt((spread[0] + spread[1]) / (n + m)),
        "count": n + m,
    }
    for name, q in QUANTILES.items():
        both[name] = (np.minimum if q <= 0.5 else np.maximum)(first[name], second[name])
    return both
