"""First success, Wilson intervals and paired differences."""

import math

import numpy as np
import pytest
import torch

from wovr.metrics.success import Difference, PairedDifference, Rate, agreement, first_success, paired_difference


def first_success_by_loop(probability, threshold, hold):
    run = 0
    for t, p in enumerate(probability):
        run = run + 1 if p >= threshold else 0
        if run == hold:
            return t
    return len(probability)


@pytest.mark.parametrize("hold", [1, 2, 3, 12, 13])
def test_first_success_is_the_frame_that_completes_the_hold(hold):
    probability_BT = torch.rand(200, 12, generator=torch.Generator().manual_seed(0))
    expected = [first_success_by_loop(row.tolist(), 0.4, hold) for row in probability_BT]
    found_B = first_success(probability_BT, 0.4, hold)
    assert found_B.dtype == torch.int64
    assert found_B.tolist() == expected


def test_flicker_is_no_success_under_hold():
    flicker_BT = torch.tensor([[0.0, 1.0, 0.0, 1.0, 1.0, 0.0]])
    assert first_success(flicker_BT, 0.5, hold=1).item() == 1
    assert first_success(flicker_BT, 0.5, hold=2).item() == 4
    assert first_success(flicker_BT, 0.5, hold=3).item() == 6


def test_threshold_itself_passes_and_true_success_goes_the_same_way():
    assert first_success(torch.tensor([[0.49, 0.5]]), 0.5).item() == 1
    assert first_success(np.array([[False, False, True], [False] * 3]), 0.5).tolist() == [2, 3]


@pytest.mark.parametrize(
    ("successes", "n", "low", "high"),
    # Newcombe (1998), table I, method 3 without continuity correction.
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_wilson_interval_matches_published_values(successes, n, low, high):
    assert Rate(successes, n).ci95 == pytest.approx((low, high), abs=5e-5)


def test_rate_without_trials():
    rate = Rate.of([])
    assert math.isnan(rate.rate)
    assert rate.to_dict() == {"rate": None, "successes": 0, "n": 0, "ci95": [0.0, 1.0]}


@pytest.mark.parametrize(
    ("b", "a", "low", "high"),
    # Newcombe (1998), Statistics in Medicine 17:873-890, table II, method 10 without continuity correction.
    [
        ((56, 70), (48, 80), 0.0524, 0.3339),
        ((9, 10), (3, 10), 0.1705, 0.8090),
        ((6, 7), (2, 7), 0.0582, 0.8062),
        ((5, 56), (0, 29), -0.0381, 0.1926),
        ((0, 10), (0, 20), -0.1611, 0.2775),
        ((10, 10), (0, 10), 0.6075, 1.0),
    ],
)
def test_unpaired_interval_matches_published_values(a, b, low, high):
    difference = Difference(Rate(*a), Rate(*b))
    assert difference.difference == pytest.approx(b[0] / b[1] - a[0] / a[1])
    assert difference.ci95 == pytest.approx((low, high), abs=5.1e-5)
    swapped = Difference(Rate(*b), Rate(*a))
    assert swapped.ci95 == pytest.approx((-high, -low), abs=5.1e-5)


def test_paired_difference_counts_discordant_states_only():
    a_B = [True, True, False, False, False]
    b_B = [True, False, True, True, False]
    paired = paired_difference(a_B, b_B)
    assert (paired.gained, paired.lost, paired.n) == (2, 1, 5)
    assert paired.difference == pytest.approx(0.2)
    assert agreement(a_B, b_B) == Rate(2, 5)


def test_paired_interval_covers_and_is_narrower_than_unpaired():
    generator = np.random.default_rng(0)
    covered, widths = 0, []
    for _ in range(2000):
        state = generator.random(60)
        noise = generator.random((2, 60)) * 0.2
        a, b = state + noise[0] < 0.5, state + noise[1] < 0.7
        paired = paired_difference(a, b)
        low, high = paired.ci95
        covered += low <= 0.2 <= high
        widths.append(high - low)
    assert 0.935 <= covered / 2000 <= 0.99
    unpaired = 2 * 1.96 * math.sqrt((0.4 * 0.6 + 0.6 * 0.4) / 60)
    assert np.mean(widths) < 0.8 * unpaired


def test_paired_interval_is_not_empty_without_discordance():
    low, high = PairedDifference(0, 0, 20).ci95
    assert low < 0 < high
