"""Measures by horizon, of videos whose values are known."""

import numpy as np
import pytest
import torch

from wovr.metrics.prediction import PredictionQuality, mean_interval
from wovr.metrics.video import psnr

SIDE = 16


def video(steps, seed):
    return torch.randint(0, 200, (steps, SIDE, SIDE, 3), generator=torch.Generator().manual_seed(seed)).to(torch.uint8)


def worse_and_worse(true_THWC):
    """Frame t is off by t + 1 counts."""
    return (true_THWC.int() + torch.arange(1, len(true_THWC) + 1)[:, None, None, None]).to(torch.uint8)


def brightness(frames_THWC, horizons):
    """One vector of two features per frame."""
    values = frames_THWC.float().mean(dim=(1, 2, 3))
    return [torch.stack([values, values.square()], dim=1)[:horizon] for horizon in horizons]


def next_frame(imagined_THWC, true_THWC):
    return (imagined_THWC[1:].float() - true_THWC[1:].float()).mean(dim=(1, 2, 3))


@pytest.fixture
def quality():
    found = PredictionQuality([8, 16], {"flolpips": next_frame}, {"fid": brightness}, seed=0)
    for number, steps in enumerate((16, 8, 16)):
        true = video(steps, number)
        found.add(worse_and_worse(true), true)
    return found


def test_a_horizon_holds_the_frames_up_to_it_of_the_trajectories_that_reach_it(quality):
    found = quality.by_horizon()
    assert {horizon: row["n"] for horizon, row in found.items()} == {"8": 3, "16": 2}
    for horizon in (8, 16):
        expected = np.mean([20 * np.log10(255 / (t + 1)) for t in range(horizon)])
        assert found[str(horizon)]["psnr"]["mean"] == pytest.approx(expected)
        assert found[str(horizon)]["ssim"]["mean"] < 1
        # Frame t looks at t + 1: the last within the horizon is `horizon`, off by as many counts.
        assert found[str(horizon)]["flolpips"]["mean"] == pytest.approx(np.mean(range(2, horizon + 1)), rel=1e-5)
    assert found["16"]["fid"] > found["8"]["fid"] > 0


def test_values_by_frame(quality):
    curves = quality.by_frame()
    assert curves["psnr"] == pytest.approx([20 * np.log10(255 / (t + 1)) for t in range(16)])
    assert len(curves["flolpips"]) == 15


def test_equal_videos_are_the_best_there_is():
    quality = PredictionQuality([8], {}, {"fid": brightness}, seed=0)
    for seed in range(2):
        quality.add(video(8, seed), video(8, seed))
    row = quality.by_horizon()["8"]
    assert row["psnr"] == {"mean": 100.0, "ci95": [100.0, 100.0]}
    assert row["ssim"]["mean"] == pytest.approx(1)
    assert row["fid"] == pytest.approx(0, abs=1e-4)


def test_a_horizon_that_none_reaches_has_no_row():
    quality = PredictionQuality([8, 64], {}, {}, seed=0)
    quality.add(video(8, 0), video(8, 1))
    found = quality.by_horizon()
    assert list(found) == ["8"]
    assert found["8"]["psnr"] == {"mean": psnr(video(8, 0)[None], video(8, 1)[None]).mean().item(), "ci95": None}


def test_the_interval_covers_the_mean_about_as_often_as_it_says():
    random = np.random.default_rng(0)
    found = [mean_interval(random.normal(3.0, 2.0, 30), seed=0)["ci95"] for _ in range(200)]
    covered = np.mean([low <= 3.0 <= high for low, high in found])
    assert 0.9 < covered < 0.99
    assert np.mean([high - low for low, high in found]) == pytest.approx(2 * 1.96 * 2 / 30**0.5, rel=0.1)
