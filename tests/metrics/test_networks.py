"""Inception and I3D: names as published, values as the published implementations gave for the same weights."""

import pytest
import torch
from torch import nn

from tests.metrics.weights import frames, published_weights
from wovr.metrics.i3d import I3D, MIN_FRAMES
from wovr.metrics.inception import Inception
from wovr.metrics.perceptual import load_features
from wovr.metrics.published import I3D as I3D_FILE
from wovr.metrics.published import INCEPTION


def shapes(module: nn.Module) -> dict[str, tuple[int, ...]]:
    """Without the counters of training steps, which older files lack."""
    return {n: tuple(v.shape) for n, v in module.state_dict().items() if not n.endswith("num_batches_tracked")}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("weights")
    classifier = {"fc.weight": (1008, 2048), "fc.bias": (1008,)}
    torch.save(published_weights(shapes(Inception()) | classifier), path / INCEPTION.name)
    torch.save(published_weights(shapes(I3D())), path / I3D_FILE.name, _use_new_zipfile_serialization=False)
    return path


@pytest.fixture(scope="module")
def features(folder):
    return load_features(["fid", "fvd"], folder, "cpu")


def test_fid_features_are_those_of_pytorch_fid(features):
    pictures = frames(3)
    two, three = features["fid"](pictures, [2, 3])
    assert two.shape == (2, 2048) and torch.equal(three[:2], two)
    expected = [[0.28968117, 10.583723, 2.9792061, 3.2803271], [0.36841369, 10.256986, 2.8888552, 3.3469074]]
    torch.testing.assert_close(two[:, :4], torch.tensor(expected), rtol=1e-4, atol=1e-4)
    assert (two.mean().item(), two.std().item()) == pytest.approx((3.702991, 5.21006), rel=1e-4)


def test_fvd_features_are_those_of_videogpt(features):
    (nine,) = features["fvd"](frames(12), [MIN_FRAMES])
    assert nine.shape == (1, 400)
    expected = [-12.034019, -3.6193581, 0.8802460, 5.2482667]
    torch.testing.assert_close(nine[0, :4], torch.tensor(expected), rtol=1e-4, atol=1e-3)
    assert (nine.mean().item(), nine.std().item()) == pytest.approx((0.4407241, 6.3547058), rel=1e-3)


def test_parameters_are_those_of_the_published_networks():
    inception, i3d = shapes(Inception()), shapes(I3D())
    assert inception["Mixed_6c.branch7x7dbl_4.conv.weight"] == (160, 160, 7, 1)
    assert inception["Mixed_7c.branch3x3dbl_3b.bn.running_var"] == (384,)
    assert i3d["Mixed_4e.b2b.conv3d.weight"] == (64, 32, 3, 3, 3) and i3d["logits.conv3d.bias"] == (400,)
    assert sum(p.numel() for p in I3D().parameters()) == 12_697_264
    assert sum(p.numel() for p in Inception().parameters()) == 23_850_960 - 1008 * 2049
