"""The measures of a reward model, against numbers counted by hand."""

import json
import math

import numpy as np
import pytest

from wovr.metrics.reward_quality import measure_reward

PROBABILITY = [np.array([0.1, 0.65, 0.95, 0.95], np.float32), np.array([0.25, 0.75, 0.1], np.float32)]
SUCCESS = [np.array([False, False, True, True]), np.array([False, False, True])]


def test_frames_and_episodes_are_counted():
    found = measure_reward(PROBABILITY, SUCCESS, threshold=0.5, hold=2)
    # Called: .65 .95 .95 and .75; true are two of these and the last frame of the second episode.
    assert (found.frames.precision.successes, found.frames.precision.n) == (2, 4)
    assert (found.frames.recall.successes, found.frames.recall.n) == (2, 3)
    assert (found.frames.agreement.successes, found.frames.agreement.n) == (4, 7)
    # Two frames in a row: the first episode alone is called, and both succeed.
    assert (found.episodes.precision.rate, found.episodes.recall.rate, found.episodes.agreement.n) == (1, 0.5, 2)
    flicker = measure_reward(PROBABILITY, SUCCESS, threshold=0.5, hold=1)
    assert flicker.episodes.recall.rate == 1


def test_the_threshold_itself_passes_as_in_rollouts():
    exact = [np.array([0.3], np.float32)]
    assert measure_reward(exact, [np.array([True])], float(exact[0][0]), 1).frames.recall.rate == 1


def test_brier_and_calibration_error():
    found = measure_reward(PROBABILITY, SUCCESS, 0.5, 1)
    squares = 0.1**2 + 0.65**2 + 2 * 0.05**2 + 0.25**2 + 0.75**2 + 0.9**2
    assert found.brier == pytest.approx(squares / 7, abs=1e-6)
    by_bin = {
        k: (round(one.probability, 3), one.success.successes, one.success.n)
        for k, one in enumerate(found.bins_K)
        if one.success.n
    }
    assert by_bin == {1: (0.1, 1, 2), 2: (0.25, 0, 1), 6: (0.65, 0, 1), 7: (0.75, 0, 1), 9: (0.95, 2, 2)}
    assert found.calibration_error == pytest.approx((2 * 0.4 + 0.25 + 0.65 + 0.75 + 2 * 0.05) / 7, abs=1e-6)


def test_a_perfect_judge_and_one_that_is_always_sure_and_wrong():
    truth = [np.array([True, False])]
    right = measure_reward([np.array([1, 0], np.float32)], truth, 0.5, 1)
    wrong = measure_reward([np.array([0, 1], np.float32)], truth, 0.5, 1)
    assert right.brier == right.calibration_error == 0 and wrong.brier == wrong.calibration_error == 1
    assert [one.success.n for one in right.bins_K] == [1, *[0] * 8, 1], "a probability of 1 lies in the last bin"


def test_json_has_no_nan():
    found = measure_reward([np.array([0.1], np.float32)], [np.array([False])], 0.5, 2).to_dict()
    text = json.dumps(found, allow_nan=False)
    assert json.loads(text)["frames"]["precision"]["rate"] is None
    assert math.isclose(found["bins"][1]["probability"], 0.1, rel_tol=1e-6)
