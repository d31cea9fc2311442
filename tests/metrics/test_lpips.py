"""LPIPS against its formula, and what the weights of FloLPIPS do."""

import sys

import pytest
import torch
from torch import nn
from torchmetrics.functional.image import lpips as torchmetrics_lpips

from tests.metrics.weights import frames, published_weights
from wovr.core.errors import UserError
from wovr.metrics.lpips import AlexNet, flolpips, load_lpips, load_raft
from wovr.metrics.perceptual import load_pair_measures
from wovr.metrics.published import ALEXNET, RAFT


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("weights")
    shapes = {name: tuple(value.shape) for name, value in AlexNet().state_dict().items()}
    torch.save(published_weights(shapes | {"classifier.6.weight": (1000, 8)}), path / ALEXNET.name)
    (path / RAFT.name).touch()
    return path


@pytest.fixture(scope="module")
def metric(folder):
    return load_lpips(folder / ALEXNET.name)


def images(seed):
    return 2 * torch.rand(3, 3, 64, 48, generator=torch.Generator().manual_seed(seed)) - 1


def reference_maps(metric, a, b):
    """Zhang et al., Eq. 1, one pixel's vector after the other."""
    path = torchmetrics_lpips.__file__.replace("lpips.py", "lpips_models/alex.pth")
    heads = list(torch.load(path, map_location="cpu", weights_only=True).values())
    shift, scale = torch.tensor([-0.030, -0.088, -0.188]), torch.tensor([0.458, 0.448, 0.450])
    x, y = ((image.movedim(1, -1) - shift).div(scale).movedim(-1, 1) for image in (a, b))
    taps, maps = iter(heads), []
    for layer in metric.net.features:
        x, y = layer(x), layer(y)
        if isinstance(layer, nn.ReLU):
            unit_x, unit_y = (nn.functional.normalize(z, dim=1, eps=1e-10) for z in (x, y))
            maps.append((next(taps) * (unit_x - unit_y) ** 2).sum(dim=1))
    assert len(maps) == len(heads) == 5
    return maps


def test_lpips_is_its_formula(metric):
    a, b = images(0), images(1)
    expected = sum(one.mean(dim=(1, 2)) for one in reference_maps(metric, a, b))
    torch.testing.assert_close(metric(a, b), expected)
    assert (metric(a, b) > 0.01).all()
    assert torch.equal(metric(a, a), torch.zeros(3))


def test_flow_weights_are_their_formula_frame_by_frame(metric):
    a, b = images(0), images(1)
    difference = torch.randn(3, 2, 64, 48, generator=torch.Generator().manual_seed(2))
    found = metric.flow_weighted(a, b, difference)
    maps = reference_maps(metric, a, b)
    for n in range(3):
        expected = 0.0
        for one in maps:
            small = nn.functional.interpolate(difference[n][None], one.shape[1:], mode="bilinear")[0]
            weight = (small[0] ** 2 + small[1] ** 2).sqrt()
            expected += (weight / weight.sum() * one[n]).sum().item()
        assert found[n].item() == pytest.approx(expected, rel=1e-4)


def test_even_weights_are_lpips_and_equal_flows_are_nothing(metric):
    a, b = images(0), images(1)
    torch.testing.assert_close(metric.flow_weighted(a, b, torch.full((3, 2, 64, 48), 0.3)), metric(a, b))
    assert torch.equal(metric.flow_weighted(a, b, torch.zeros(3, 2, 64, 48)), torch.zeros(3))


def test_flolpips_weighs_a_frame_by_the_flow_to_the_next(metric):
    imagined, true = images(0), images(1)

    def flow(now, following):
        return (following - now)[:, :2]

    found = flolpips(metric, flow, imagined, true)
    difference = (imagined[1:] - imagined[:-1] - true[1:] + true[:-1])[:, :2]
    torch.testing.assert_close(found, metric.flow_weighted(imagined[:-1], true[:-1], difference))


def test_videos_are_measured_in_parts_without_a_seam(folder, metric, monkeypatch):
    monkeypatch.setattr("wovr.metrics.perceptual.load_raft", lambda path, device: lambda now, then: (then - now)[:, :2])
    measures = load_pair_measures(["flolpips", "lpips"], folder, "cpu")
    imagined, true = frames(5), frames(10)[5:]
    whole = {name: measure(imagined, true) for name, measure in measures.items()}
    monkeypatch.setattr("wovr.metrics.perceptual.FRAMES_AT_ONCE", 2)
    for name, measure in measures.items():
        torch.testing.assert_close(measure(imagined, true), whole[name])
    assert {name: len(value) for name, value in whole.items()} == {"lpips": 5, "flolpips": 4}
    one = metric(*(video[:1].movedim(-1, 1).float() / 127.5 - 1 for video in (imagined, true)))
    torch.testing.assert_close(whole["lpips"][:1], one)


def test_a_missing_torchvision_is_one_line(folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "torchvision.models.optical_flow", None)
    with pytest.raises(UserError, match=r"flolpips: expected torchvision .*wovr\[metrics\]") as error:
        load_raft(folder / RAFT.name)
    assert "\n" not in str(error.value)
