"""Counter-based randomness: every draw is a pure function of what it is for.

A stream keyed by (seed, purpose, indices) gives the same numbers whatever the batch split, the number of
ranks, the order of work or the point at which a run was resumed.
"""

from __future__ import annotations

import random
import zlib

import numpy as np
import torch


def stream(seed: int, purpose: str, *indices: int) -> np.random.Generator:
    """A generator for one purpose, for example `stream(seed, "world-noise", update, trajectory, chunk)`.

    One purpose always takes the same number of indices, all below 2**32: a missing second one, for example, means 0.
    """
    key = np.random.SeedSequence([seed, zlib.crc32(purpose.encode()), *indices])
    return np.random.Generator(np.random.Philox(key))


def normal(shape: tuple[int, ...], seed: int, purpose: str, *indices: int) -> torch.Tensor:
    """Standard normal float32 tensor from the stream of that name."""
    return torch.from_numpy(stream(seed, purpose, *indices).standard_normal(shape, dtype=np.float32))


def seed_everything(seed: int) -> None:
    """Seed the global generators: only weight initialisation and dropout draw from them."""
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002  (third-party code draws from the global state)
    torch.manual_seed(seed)
