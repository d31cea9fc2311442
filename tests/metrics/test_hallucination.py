"""The hallucination report on a case that is counted by hand."""

import json
import math

import pytest
import torch

from wovr.metrics.hallucination import measure_hallucination
from wovr.metrics.success import Rate

T, H = 8, 4
STARTS = ["first_frame"] * 5 + ["keyframe"] * 3
IMAGINED = [1, 6, 7, 8, 8, 0, 8, 8]
TRUE = [3, 8, 8, 2, 8, 0, 8, 8]


@pytest.fixture
def report():
    psnr_BT = torch.full((8, T), 30.0)
    psnr_BT[:5, H:] = 20.0
    psnr_BT[5:, H:] = math.nan
    return measure_hallucination(torch.tensor(IMAGINED), torch.tensor(TRUE), psnr_BT, psnr_BT / 100, STARTS, H)


def test_rates(report):
    confusion = report.overall.confusion
    assert (confusion.both_succeed, confusion.false_success, confusion.false_failure, confusion.both_fail) == (
        2,
        2,
        1,
        3,
    )
    assert confusion.agreement == Rate(5, 8)
    assert confusion.false_success_rate == Rate(2, 5)
    assert confusion.false_success_share == Rate(2, 4)
    assert confusion.false_failure_rate == Rate(1, 3)


def test_starts_are_told_apart(report):
    assert set(report.by_start) == {"first_frame", "keyframe"}
    assert report.by_start["first_frame"].confusion.agreement == Rate(2, 5)
    assert report.by_start["keyframe"].confusion.agreement == Rate(3, 3)
    assert report.by_start["keyframe"].confusion.false_success_rate == Rate(0, 2)


def test_depth_is_where_imagination_claims_success(report):
    assert report.overall.false_success_by_depth == (Rate(0, 2), Rate(2, 2))
    assert report.by_start["first_frame"].psnr_by_depth == (30.0, 20.0)
    assert report.by_start["keyframe"].psnr_by_depth[0] == 30.0


def test_after_success_is_what_follows_true_success(report):
    """In truth successes come at 3 and 2 from first frames, and at 0 from a keyframe, which has no second chunk."""
    assert report.by_start["first_frame"].gap_by_depth == pytest.approx((0.3, 0.2))
    assert report.by_start["first_frame"].psnr_after_success == pytest.approx((30 + 20 * 8) / 9)
    assert report.by_start["keyframe"].psnr_after_success == 30.0
    assert report.overall.gap_after_success == pytest.approx((0.3 * 4 + 0.2 * 8) / 12)


def test_delay_is_imagined_minus_true(report):
    assert report.by_start["first_frame"].delay == -2.0
    assert report.by_start["keyframe"].delay == 0.0


def test_json_has_no_nan(report):
    text = json.dumps(report.to_dict(), allow_nan=False)
    assert json.loads(text)["by_start"]["keyframe"]["psnr_by_depth"] == [30.0, None]
