import numpy as np
import pytest

from wovr.metrics.alarm import Rise, is_exploited, paired_rise, weighted_rise
from wovr.metrics.success import paired_difference


def outcomes(successes: int, n: int = 32) -> np.ndarray:
    return np.arange(n) < successes


def test_a_rise_has_the_interval_of_the_paired_difference() -> None:
    before, now = outcomes(8), np.roll(outcomes(20), 4)
    rise, difference = paired_rise(before, now), paired_difference(before, now)
    assert rise.ci95 == pytest.approx(difference.ci95)
    assert rise.value > 0 and paired_rise(before, before).value == 0


@pytest.mark.parametrize(
    ("imagined", "true", "exploited"),
    [
        ((4, 28), (4, 4), True),  # imagination alone
        ((4, 28), (4, 27), False),  # both
        ((4, 28), (20, 4), True),  # truth falls
        ((4, 6), (4, 4), False),  # too little to tell
        ((28, 28), (4, 4), False),  # a flattering world model, but nothing has risen
        ((28, 4), (28, 28), False),  # a pessimistic one
    ],
)
def test_what_is_exploited(imagined: tuple[int, int], true: tuple[int, int], exploited: bool) -> None:
    rises = [paired_rise(outcomes(before), outcomes(now)) for before, now in (imagined, true)]
    assert is_exploited(*rises) is exploited


def test_weights_of_recordings() -> None:
    """Against float64 sums written out; equal weights are no rise, and the error shrinks as 1 / sqrt(n)."""
    success, weight = outcomes(10), 1 + np.arange(32) / 8.0
    mean = (weight * success).sum() / weight.sum()
    assert weighted_rise(weight, success).value == pytest.approx(mean - 10 / 32)
    assert weighted_rise(np.full(32, 3.0), success) == Rise(pytest.approx(0.0), pytest.approx(0.0))
    twice = weighted_rise(np.tile(weight, 4), np.tile(success, 4))
    assert twice.error == pytest.approx(weighted_rise(weight, success).error / 2)
    assert weighted_rise(np.where(success, 2.0, 1.0), success).value > 0


def test_the_error_of_weights_is_that_of_repeated_draws() -> None:
    draws = np.random.default_rng(0)
    values, errors = [], []
    for _ in range(400):
        success = draws.random(60) < 0.4
        weight = np.exp(draws.normal(0.5 * success, 0.3))
        rise = weighted_rise(weight, success)
        values.append(rise.value)
        errors.append(rise.error)
    assert np.std(values) == pytest.approx(np.mean(errors), rel=0.15)
