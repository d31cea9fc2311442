"""Training windows: which frames and actions they hold and how often they are drawn."""

from __future__ import annotations

import numpy as np
import pytest
from pydantic import ValidationError

from wovr.core.errors import UserError
from wovr.core.seed import stream
from wovr.core.types import Actions, no_motion
from wovr.episodes.windows import (
    WindowConfig,
    WindowIndex,
    memory_indices,
    window_actions,
    window_weights,
)

H = 8
PLAIN = WindowConfig(contact_weight=1.0, cold_start=0.0, static=0.0)


def steps(length: int, *, closed: range = range(0), success: int | None = None) -> tuple[Actions, np.ndarray]:
    """Actions whose gripper is closed during `closed`, and success from step `success` on."""
    actions_TA = np.random.default_rng(length).normal(size=(length, 3)).astype(np.float32)
    actions_TA[:, -1] = [1.0 if t in closed else -1.0 for t in range(length)]
    success_T = np.zeros(length, dtype=np.bool_)
    if success is not None:
        success_T[success:] = True
    return actions_TA, success_T


def slow_weight(actions_TA: Actions, success_T: np.ndarray, t: int, config: WindowConfig) -> float | None:
    """Weight of the window at t frame by frame; None where it is not drawn."""
    length = len(actions_TA)
    if t + H > length:
        return None
    successful = [f for f in range(1, length + 1) if success_T[f - 1]]
    if successful and t > successful[0] + config.after_success:
        return None
    shown = 0
    for new in range(t + 1, t + H + 1):
        recent = range(max(new - config.contact_frames, 0), new)
        shown += any((actions_TA[i, -1] > 0) != (i > 0 and actions_TA[i - 1, -1] > 0) for i in recent)
    return 1 + (config.contact_weight - 1) * min(shown / config.contact_frames, 1)


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("contact_frames", [1, 4, 12])
def test_weights_agree_with_a_frame_by_frame_reference(seed: int, contact_frames: int) -> None:
    rng = np.random.default_rng(seed)
    length = int(rng.integers(1, 60))
    actions_TA = rng.normal(size=(length, 3)).astype(np.float32)
    actions_TA[:, -1] = np.repeat(rng.choice([-1, 1], size=8), 8)[:length]
    success_T = np.cumsum(rng.random(length) < 0.05) > 0
    config = WindowConfig(contact_weight=3.5, contact_frames=contact_frames, after_success=int(rng.integers(0, 9)))
    expected = [slow_weight(actions_TA, success_T, t, config) for t in range(length + 1)]
    assert window_weights(actions_TA, success_T, H, config).tolist() == [w for w in expected if w is not None]


def test_every_window_of_a_plain_episode_is_drawn_equally_often() -> None:
    index = WindowIndex([steps(48), steps(7), steps(8)], horizon=H, config=PLAIN)
    assert len(index) == 41 + 0 + 1
    episode_n, t_n = index.draw(stream(0, "windows"), 42_000)
    counts = np.bincount(np.where(episode_n == 2, 41, t_n), minlength=42)
    assert set(np.unique(episode_n)) == {0, 2}
    assert counts.min() > 850 and counts.max() < 1150  # 1000 +- 31 each


def test_contact_is_drawn_as_often_as_its_weight_says() -> None:
    config = PLAIN.model_copy(update={"contact_weight": 5.0})
    index = WindowIndex([steps(48, closed=range(20, 48))], horizon=H, config=config)
    # The toggle at action 20 shows in the frames 21 to 24: all of them in the windows at 16 to 20.
    assert index.weight_W[13:24].tolist() == [2, 3, 4, 5, 5, 5, 5, 5, 4, 3, 2]
    assert np.all(np.delete(index.weight_W, range(13, 24)) == 1)
    _, t_n = index.draw(stream(1, "windows"), 20_000)
    share = np.isin(t_n, range(16, 21)).mean()
    assert share == pytest.approx(25 / (25 + 18 + 30), abs=0.02)


def test_an_episodes_windows_are_drawn_as_often_as_its_weight_says() -> None:
    """On top of what they weigh themselves."""
    episodes = [steps(48, closed=range(20, 48)), steps(48, closed=range(20, 48))]
    config = WindowConfig(contact_weight=5.0, cold_start=0.0, static=0.0)
    plain = WindowIndex(episodes, horizon=H, config=config)
    index = WindowIndex(episodes, horizon=H, config=config, weight_E=np.array([1.0, 4.0]))
    assert np.array_equal(index.weight_W, plain.weight_W * np.repeat([1.0, 4.0], 41))
    episode_n, t_n = index.draw(stream(1, "windows"), 20_000)
    assert np.mean(episode_n == 1) == pytest.approx(0.8, abs=0.02)
    contact = np.isin(t_n[episode_n == 1], range(16, 21)).mean()
    assert contact == pytest.approx(25 / (25 + 18 + 30), abs=0.02)


def test_no_window_starts_long_after_success() -> None:
    index = WindowIndex([steps(48, success=10)], horizon=H, config=PLAIN)
    assert index.t_W.tolist() == list(range(11 + PLAIN.after_success + 1))


def test_cold_starts_and_static_videos_have_their_share() -> None:
    config = WindowConfig(contact_weight=1.0, cold_start=0.2, static=0.1)
    index = WindowIndex([steps(508)], horizon=H, config=config)
    _, t_n = index.draw(stream(2, "windows"), 20_000)
    assert np.mean(t_n == 0) == pytest.approx(0.2, abs=0.02)
    assert np.mean(t_n == -H) == pytest.approx(0.1, abs=0.02)
    assert np.all((t_n >= 0) | (t_n == -H))


def test_draws_are_a_function_of_the_stream() -> None:
    index = WindowIndex([steps(48, closed=range(20, 40)), steps(30)], horizon=H, config=WindowConfig())
    first, second = (index.draw(stream(3, "windows", 7), 32) for _ in range(2))
    np.testing.assert_array_equal(first, second)
    assert not np.array_equal(first, index.draw(stream(3, "windows", 8), 32))


def test_too_short_episodes_are_an_error() -> None:
    with pytest.raises(UserError, match="expected at least one of 8 steps or more, found 2 shorter"):
        WindowIndex([steps(7), steps(0)], horizon=H, config=PLAIN)


def test_shares_above_one_are_refused() -> None:
    with pytest.raises(ValidationError, match="cold_start"):
        WindowConfig(cold_start=0.7, static=0.7)


def test_memory_clamps_to_the_first_frame() -> None:
    assert memory_indices(10, 4).tolist() == [7, 8, 9, 10]
    assert memory_indices(1, 4).tolist() == [0, 0, 0, 1]
    assert memory_indices(0, 4).tolist() == [0, 0, 0, 0]
    assert memory_indices([2, 3], 2).tolist() == [[1, 2], [2, 3]]
    assert memory_indices(0, H).tolist() == [0] * H, "the new frames of a static video, t = -H"


@pytest.mark.parametrize("t", [-8, -3, 0, 1, 2, 3, 4, 10, 12])
@pytest.mark.parametrize("memory", [1, 4, 8])
def test_window_actions_are_those_that_produced_the_frames(t: int, memory: int) -> None:
    actions_TA, _ = steps(20)
    produced_by = {f: actions_TA[f - 1] for f in range(1, 21)}
    frames = [0, *range(t - memory + 1, t + 1), *range(t + 1, t + H + 1)]
    expected = np.stack([produced_by.get(f, no_motion(3)) for f in frames])
    window = window_actions(actions_TA, t, memory, H)
    assert window.shape == (1 + memory + H, 3) and window.dtype == np.float32
    np.testing.assert_array_equal(window, expected)
