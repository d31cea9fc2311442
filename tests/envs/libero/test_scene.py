"""What the scene computes itself."""

import numpy as np
import pytest

from wovr.envs.libero.scene import axis_angle


@pytest.mark.parametrize("angle", [1e-9, 0.3, 3.1, 4.0, 6.2])
def test_axis_angle_turns_by_the_angle_about_the_axis(angle):
    axis = np.array([2.0, -1.0, 2.0]) / 3
    quaternion = np.array([*(np.sin(angle / 2) * axis), np.cos(angle / 2)])
    given = quaternion.copy()
    np.testing.assert_allclose(axis_angle(quaternion), 0 if angle < 1e-8 else angle * axis, atol=1e-7)
    np.testing.assert_array_equal(quaternion, given)


def test_no_turn_is_zero_and_rounding_does_no_harm():
    for w in (1.0, -1.0, 1.0 + 1e-12, -1.0 - 1e-12):
        np.testing.assert_array_equal(axis_angle(np.array([1e-9, 0.0, 0.0, w])), np.zeros(3))
