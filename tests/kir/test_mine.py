"""Mining: the right moments, ahead of the event, early enough, and with the right memory."""

import numpy as np
import pytest
from pydantic import ValidationError

from wovr.core.types import no_motion
from wovr.kir.mine import MineConfig, first_frame_start, gripper_toggles, mine_keyframes, start_state, success_peaks

T = 48
STILL = MineConfig(jitter=0)


def grips(*closed: range) -> list[float]:
    return [1.0 if any(t in steps for steps in closed) else -1.0 for t in range(T)]


def mine(episode, probability_F=None, config=STILL, seed=0, name="shard_00000/demo_1"):
    return mine_keyframes(episode, name, probability_F, config=config, memory_frames=4, seed=seed)


def test_toggles_include_a_close_at_once():
    actions = np.array([[1.0], [1.0], [-1.0], [0.0], [0.5]], dtype=np.float32)
    assert gripper_toggles(actions).tolist() == [0, 2, 4]


def test_peaks_are_local_maxima_and_plateaus_count_once():
    probability = np.array([0.3, 0.1, 0.5, 0.5, 0.7, 0.7, 0.2, 0.19, 0.195, 0.1, 0.6], dtype=np.float32)
    assert success_peaks(probability, 0.2).tolist() == [0, 4, 10]


def test_keyframes_lie_ahead_of_gripper_events(make_episode):
    found = mine(make_episode(grips(range(15, 30))))
    assert [(start.step, start.reason) for start in found] == [(7, "gripper"), (22, "gripper")]


def test_keyframes_lie_ahead_of_success_peaks(make_episode):
    probability = np.zeros(T + 1, dtype=np.float32)
    probability[24:27] = [0.2, 0.4, 0.3]
    found = mine(make_episode(grips()), probability)
    assert [(start.step, start.reason) for start in found] == [(17, "success_peak")]


def test_success_yields_none(make_episode):
    assert mine(make_episode(grips(range(15, 30)), success=True)) == []


def test_nothing_too_late_and_nothing_before_the_first_frame(make_episode):
    late = make_episode(grips(range(5, 42)))
    assert mine(late) == []
    assert [start.step for start in mine(late, config=MineConfig(jitter=0, min_steps_left=14))] == [34]


def test_chatter_is_one_event_and_the_earliest_are_kept(make_episode):
    chatter = make_episode([1.0 if t % 2 else -1.0 for t in range(T)])
    found = mine(chatter, config=MineConfig(jitter=0, max_per_episode=3))
    assert [start.step for start in found] == [1, 9, 17]


def test_jitter_is_bounded_and_repeats_with_seed_and_name(make_episode):
    episode = make_episode(grips(range(20, T)))
    config = MineConfig(lead=8, jitter=4)
    steps = {mine(episode, config=config, seed=seed)[0].step for seed in range(60)}
    assert steps == set(range(20 - 12, 20 - 4 + 1))
    assert mine(episode, config=config, seed=5)[0].step == mine(episode, config=config, seed=5)[0].step
    assert len({mine(episode, config=config, name=f"demo_{i}")[0].step for i in range(20)}) > 1


def test_jitter_beyond_lead_is_refused():
    with pytest.raises(ValidationError, match="larger than lead"):
        MineConfig(lead=2, jitter=3)


@pytest.mark.parametrize("step", [0, 2, 9])
def test_memory_is_the_last_frames_and_the_actions_that_produced_them(make_episode, step):
    episode = make_episode(grips())
    start = start_state(episode, "demo", step, "gripper", memory_frames=4)
    frames = [max(0, i) for i in range(step - 3, step + 1)]
    assert start.reference_HWC.max() == 0
    assert start.memory_MHWC[:, 0, 0, 0].tolist() == frames
    expected = np.stack([episode.actions_TA[i - 1] if i > 0 else no_motion(3) for i in frames])
    np.testing.assert_array_equal(start.memory_actions_MA, expected)
    assert (start.step, start.init_id, start.instruction) == (step, 3, "task 0")
    assert start.moved_A.tolist() == [sum(range(step)), 0, 0] and start.moved_A.dtype == np.float32


def test_first_frame_start(make_episode):
    start = first_frame_start(make_episode(grips()), "demo", memory_frames=4)
    assert (start.step, start.reason) == (0, "first_frame")
    assert (start.memory_MHWC == start.reference_HWC).all()
    np.testing.assert_array_equal(start.memory_actions_MA, np.stack([no_motion(3)] * 4))
