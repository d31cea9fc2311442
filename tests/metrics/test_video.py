"""PSNR and SSIM against their definitions."""

import math

import pytest
import torch

from wovr.metrics.video import PSNR_CAP, by_depth, psnr, ssim


@pytest.fixture
def frames():
    return torch.randint(0, 256, (2, 3, 16, 16, 3), generator=torch.Generator().manual_seed(0)).to(torch.uint8)


def test_psnr_is_its_definition_per_frame(frames):
    noise = torch.randint(-9, 10, frames.shape, generator=torch.Generator().manual_seed(1))
    other = (frames.int() + noise).clamp(0, 255).to(torch.uint8)
    found_BT = psnr(frames, other)
    for b in range(2):
        for t in range(3):
            pairs = zip(frames[b, t].flatten().tolist(), other[b, t].flatten().tolist(), strict=True)
            mse = sum((x - y) ** 2 for x, y in pairs) / frames[b, t].numel()
            expected = 10 * math.log10(255**2 / mse)
            assert found_BT[b, t].item() == pytest.approx(expected, abs=1e-6)


def test_psnr_of_equal_frames_is_finite_and_above_any_other(frames):
    other = frames.clone()
    other[0, 0, 0, 0, 0] ^= 1
    found_BT = psnr(frames, other)
    assert (found_BT.flatten()[1:] == PSNR_CAP).all()
    assert 0 < found_BT[0, 0].item() < PSNR_CAP


def test_ssim_per_frame(frames):
    other = frames.clone()
    other[1, 2] = 255 - other[1, 2]
    found_BT = ssim(frames, other)
    assert found_BT.shape == (2, 3)
    assert found_BT.flatten()[:5].tolist() == pytest.approx([1.0] * 5)
    assert found_BT[1, 2].item() < 0


def test_depth_means_leave_out_frames_that_do_not_count():
    nan = math.nan
    value_BT = torch.tensor([[1.0, 3.0, 5.0, 7.0, nan], [3.0, 5.0, nan, nan, nan]])
    first, second, third = by_depth(value_BT, 2)
    assert (first, second) == (3.0, 6.0)
    assert math.isnan(third)
