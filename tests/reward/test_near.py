"""Which episodes are near-successes."""

import numpy as np
import pytest
from pydantic import ValidationError

from wovr.reward.near import NearSuccessConfig, find_near_successes

FAILED = np.array([True, True, True, True, False, True])
PEAK = np.array([0.1, 0.3, 0.95, 0.2, 0.99, np.nan])
DISTANCE = np.array([30.0, 12.0, np.inf, 10.0, 1.0, np.nan])


def test_either_sign_is_enough_and_successes_are_none() -> None:
    found = find_near_successes(FAILED, PEAK, DISTANCE, NearSuccessConfig(weight=4, probability=0.3, margin=10))
    assert found.near_E.tolist() == [False, True, True, True, False, False]
    assert found.weights(4.0).tolist() == [1, 4, 4, 4, 1, 1]
    assert found.summary() == {"failed": 5, "near_successes": 3, "by_probability": 2, "by_margin": 1}


def test_an_episode_of_both_signs_counts_once() -> None:
    found = find_near_successes(FAILED, PEAK, DISTANCE, NearSuccessConfig(probability=0.2, margin=12))
    assert found.summary() == {"failed": 5, "near_successes": 3, "by_probability": 3, "by_margin": 2}


@pytest.mark.parametrize(
    ("config", "near", "signs"),
    [
        (NearSuccessConfig(margin=None), [1, 2], (2, None)),
        (NearSuccessConfig(probability=None), [3], (None, 1)),
    ],
)
def test_each_sign_may_be_left_out(config: NearSuccessConfig, near: list[int], signs: tuple[int, int]) -> None:
    found = find_near_successes(FAILED, PEAK, DISTANCE, config)
    assert np.flatnonzero(found.near_E).tolist() == near
    assert (found.summary()["by_probability"], found.summary()["by_margin"]) == signs


def test_what_is_not_at_hand_is_no_sign() -> None:
    found = find_near_successes(FAILED, None, None, NearSuccessConfig())
    assert not found.near_E.any() and found.weights(3.0).tolist() == [1] * 6
    assert found.summary() == {"failed": 5, "near_successes": 0, "by_probability": None, "by_margin": None}


def test_without_a_sign_there_is_nothing_to_look_for() -> None:
    with pytest.raises(ValidationError, match="expected probability, margin or both"):
        NearSuccessConfig(probability=None, margin=None)
