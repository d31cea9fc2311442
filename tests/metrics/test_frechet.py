"""Fréchet distance against closed forms and against torchmetrics, which takes another root."""

import math

import pytest
import torch
from torch import nn
from torchmetrics.image.fid import FrechetInceptionDistance

from wovr.metrics.frechet import FeatureMoments, frechet_distance


class Features(nn.Module):
    """torchmetrics' network, when features are given instead of images."""

    num_features = 6

    def forward(self, x):
        return x


def draw(seed, n=50, scale=1.0, offset=0.0):
    generator = torch.Generator().manual_seed(seed)
    mix = torch.randn(6, 6, generator=generator, dtype=torch.float64)
    return scale * torch.randn(n, 6, generator=generator, dtype=torch.float64) @ mix + offset


def moments(*parts):
    found = FeatureMoments()
    for part in parts:
        found.add(part)
    return found


def test_moments_are_those_of_all_vectors_whatever_the_parts():
    x = draw(0, offset=1e4)
    for found in (moments(x), moments(x[:1], x[1:20], x[20:])):
        torch.testing.assert_close(found.mean, x.mean(dim=0))
        torch.testing.assert_close(found.covariance, x.T.cov(), rtol=1e-9, atol=1e-9)


def test_against_torchmetrics():
    a, b = draw(0), draw(1, scale=1.5, offset=0.3)
    reference = FrechetInceptionDistance(feature=Features())
    reference.set_dtype(torch.float64)
    reference.update(a, real=True)
    reference.update(b, real=False)
    expected = reference.compute().item()
    assert frechet_distance(moments(a), moments(b)) == pytest.approx(expected, rel=1e-9)
    assert frechet_distance(moments(b), moments(a)) == pytest.approx(expected, rel=1e-9)


def test_closed_form_where_covariances_commute():
    a = draw(0)
    b = a * 3 + 1  # B = 9 A: the covariance part is (3 - 1)^2 tr A
    mean = (a.mean(dim=0) - b.mean(dim=0)).square().sum()
    expected = (mean + 4 * a.T.cov().trace()).item()
    assert frechet_distance(moments(a), moments(b)) == pytest.approx(expected, rel=1e-9)


def test_fewer_vectors_than_features():
    a = draw(0, n=3)
    assert frechet_distance(moments(a), moments(a)) == pytest.approx(0, abs=1e-6)
    assert frechet_distance(moments(a), moments(a + 2)) == pytest.approx(4 * 6, rel=1e-6)


def test_one_vector_has_no_covariance():
    assert math.isnan(frechet_distance(moments(draw(0, n=1)), moments(draw(1))))
