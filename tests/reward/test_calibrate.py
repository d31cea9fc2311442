"""Threshold calibration on held-out episodes."""

import math

import numpy as np

from wovr.metrics.success import first_success
from wovr.reward.calibrate import Calibration, CalibrationConfig, calibrate


def peaks(values: list[float], length: int = 2) -> list[np.ndarray]:
    """One episode of 10 frames per value, that holds the value for `length` frames and is at 0.01 elsewhere."""
    episodes = []
    for value in values:
        probability_T = np.full(10, 0.01, np.float32)
        probability_T[4 : 4 + length] = value
        episodes.append(probability_T)
    return episodes


def run(good: list[float], bad: list[float], rate: float, hold: int = 2, length: int = 2) -> Calibration:
    truth_E = np.array([True] * len(good) + [False] * len(bad))
    config = CalibrationConfig(false_success_rate=rate, hold=hold)
    return calibrate(peaks(good + bad, length), truth_E, config, first_success)


def test_separable_episodes_get_the_lowest_threshold() -> None:
    """Just above the worst failure, however sure the worst success is; a half where no failure comes near."""
    result = run(good=[0.95, 0.99], bad=[0.62, 0.02], rate=0.02)
    assert 0.62 < result.threshold < 0.65
    assert run(good=[0.95, 0.99], bad=[0.12, 0.02], rate=0.02).threshold == 0.5
    assert (result.false_successes, result.missed_successes, result.agreement) == (0, 0, 1.0)
    assert (result.failed, result.succeeded) == (2, 2)


def test_the_rate_bounds_false_success_before_success_is_found() -> None:
    good, bad = [0.7] * 5 + [0.97] * 5, [0.1] * 8 + [0.8, 0.9]
    strict = run(good, bad, rate=0.0)
    assert strict.threshold > 0.9 and (strict.false_successes, strict.missed_successes) == (0, 5)
    middling = run(good, bad, rate=0.1)
    assert 0.8 < middling.threshold < 0.97 and middling.false_successes <= 1
    loose = run(good, bad, rate=0.2)
    assert 0.5 <= loose.threshold < 0.7 and (loose.false_success_rate, loose.missed_success_rate) == (0.2, 0.0)


def test_one_odd_success_does_not_lower_the_threshold_below_a_half() -> None:
    result = run(good=[0.05, *[0.99] * 9], bad=[0.01] * 10, rate=0.02)
    assert result.threshold >= 0.5 and (result.false_successes, result.missed_successes) == (0, 1)


def test_hold_ignores_flicker() -> None:
    flicker = peaks([0.99] * 3, length=1) + peaks([0.99] * 3, length=2)
    truth_E = np.array([False] * 3 + [True] * 3)
    held = calibrate(flicker, truth_E, CalibrationConfig(hold=2), first_success)
    assert held.agreement == 1.0 and held.hold == 2
    assert calibrate(flicker, truth_E, CalibrationConfig(hold=1), first_success).agreement == 0.5


def test_an_impossible_rate_gives_the_fewest_false_successes() -> None:
    result = run(good=[0.9], bad=[0.999, 0.999, 0.6], rate=0.0)
    assert result.false_successes == 2 and result.false_success_rate > 0
    assert result.missed_successes == 0


def test_episodes_of_one_outcome_leave_the_other_rate_undefined() -> None:
    assert math.isnan(run(good=[0.9], bad=[], rate=0.02).false_success_rate)
    assert math.isnan(run(good=[], bad=[0.1], rate=0.02).missed_success_rate)
