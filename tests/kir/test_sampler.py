"""The mixture of start states."""

from collections import Counter

import pytest

from wovr.core.errors import UserError
from wovr.kir.bank import KeyframeBank
from wovr.kir.mine import FIRST_FRAME, start_state
from wovr.kir.sampler import SamplerConfig, draw_starts

KEYFRAMES_PER_TASK = {0: 12, 1: 3, 2: 1}


@pytest.fixture
def bank(make_episode):
    starts = []
    for task, keyframes in KEYFRAMES_PER_TASK.items():
        for i in range(20):
            episode = make_episode([1.0] * 20, task_id=task, init_id=i)
            starts.append(start_state(episode, f"demo_{i}", 0, FIRST_FRAME, 1))
            if i < keyframes:
                starts.append(start_state(episode, f"demo_{i}", 5, "gripper", 1))
    return KeyframeBank(starts)


def identity(starts):
    return [(start.task_id, start.init_id, start.step) for start in starts]


def test_pure_function_of_seed_and_update(bank):
    draws = [
        identity(draw_starts(bank, 16, SamplerConfig(), seed=s, update=u)) for s, u in [(0, 3), (0, 3), (0, 4), (1, 3)]
    ]
    assert draws[0] == draws[1]
    assert draws[0] != draws[2]
    assert draws[0] != draws[3]


@pytest.mark.parametrize("fraction", [0.0, 0.3, 0.5, 1.0])
def test_fraction_is_kept_over_updates(bank, fraction):
    counts = []
    for update in range(10):
        drawn = draw_starts(bank, 7, SamplerConfig(keyframe_fraction=fraction), seed=0, update=update)
        assert len(drawn) == 7
        counts.append(sum(start.reason != FIRST_FRAME for start in drawn))
    assert sum(counts) == round(fraction * 70)
    assert max(counts) - min(counts) <= 1


def test_tasks_take_equal_turns_however_many_starts_they_have(bank):
    drawn = draw_starts(bank, 24, SamplerConfig(), seed=0, update=0)
    keyframes = Counter(start.task_id for start in drawn if start.reason != FIRST_FRAME)
    firsts = Counter(start.task_id for start in drawn if start.reason == FIRST_FRAME)
    assert set(keyframes.values()) == set(firsts.values()) == {4}


def test_no_start_twice_while_its_task_has_others(bank):
    drawn = draw_starts(bank, 24, SamplerConfig(), seed=0, update=0)
    firsts = [start for start in identity(drawn) if start[2] == 0]
    assert len(set(firsts)) == len(firsts)
    of_task_1 = [start for start in identity(drawn) if start[0] == 1 and start[2] != 0]
    assert len(set(of_task_1)) == KEYFRAMES_PER_TASK[1]


def test_every_start_comes_up(bank):
    seen = set()
    for update in range(60):
        seen |= set(identity(draw_starts(bank, 12, SamplerConfig(), seed=0, update=update)))
    assert len(seen) == len(bank)


def test_one_kind_alone_fills_every_group(bank):
    config = SamplerConfig(keyframe_fraction=0.5)
    assert len(draw_starts(bank.keyframes, 5, config, seed=0, update=1)) == 5
    assert len(draw_starts(bank.first_frames, 5, config, seed=0, update=1)) == 5
    with pytest.raises(UserError, match="found none"):
        draw_starts(KeyframeBank([]), 5, config, seed=0, update=0)
