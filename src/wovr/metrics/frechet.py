"""Fréchet distance between two sets of feature vectors (FID: Heusel et al., 2017; FVD: Unterthiner et al., 2018).

Legend: N vectors, F features.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


class FeatureMoments:
    """Count, sum and second moments of feature vectors, gathered in float64 so that the vectors need not be kept."""

    def __init__(self) -> None:
        self.n = 0
        self._origin_F = self._sum_F = self._second_FF = torch.zeros(0)

    def add(self, features_NF: Tensor) -> None:
        """Count N further vectors."""
        features_NF = features_NF.double()
        if not self.n:
            # Moments about the first vectors' mean: about zero, large features would cancel in the covariance.
            self._origin_F = features_NF.mean(dim=0)
            self._sum_F = torch.zeros_like(self._origin_F)
            self._second_FF = features_NF.new_zeros(2 * self._origin_F.shape)
        moved_NF = features_NF - self._origin_F
        self.n += len(features_NF)
        self._sum_F = self._sum_F + moved_NF.sum(dim=0)
        self._second_FF.addmm_(moved_NF.T, moved_NF)

    @property
    def mean(self) -> Tensor:
        """(F,) float64."""
        return self._origin_F + self._sum_F / self.n

    @property
    def covariance(self) -> Tensor:
        """(F, F) float64, unbiased; at least two vectors."""
        return (self._second_FF - torch.outer(self._sum_F, self._sum_F) / self.n) / (self.n - 1)


def frechet_distance(a: FeatureMoments, b: FeatureMoments) -> float:
    """|mean_a - mean_b|^2 + tr(A + B - 2 (A B)^(1/2)) of normal distributions with covariances A and B.

    NaN with less than two vectors on a side. (A B)^(1/2) has the trace of (A^(1/2) B A^(1/2))^(1/2), whose eigenvalues
    are real: covariances of fewer vectors than features, as FVD's mostly are, then do no harm.
    """
    if min(a.n, b.n) < 2:
        return math.nan
    A, B = a.covariance, b.covariance
    root = _square_root(A)
    product = root @ B @ root
    trace = torch.linalg.eigvalsh((product + product.T) / 2).clamp_min(0).sqrt().sum()
    distance = (a.mean - b.mean).square().sum() + A.trace() + B.trace() - 2 * trace
    return max(0.0, distance.item())


def _square_root(A: Tensor) -> Tensor:
    values_F, vectors_FF = torch.linalg.eigh(A)
    return vectors_FF * values_F.clamp_min(0).sqrt() @ vectors_FF.T
