from dataclasses import replace

import numpy as np
import pytest
import torch

from tests.imagine.worlds import (
    A,
    FakePolicy,
    FeelingPolicy,
    H,
    ScriptedSimulator,
    make_start,
    make_starts,
    make_world,
)
from wovr.core.errors import UserError
from wovr.core.types import SimulatorStart
from wovr.envs.chunked import ChunkedSimulator, TrajectoryKey
from wovr.imagine.rollout import rollout
from wovr.metrics.success import first_success


@pytest.fixture
def starts():
    return make_starts()


def median_peak(starts):
    """A threshold that about half of the trajectories pass."""
    batch = rollout(make_world(), FakePolicy(), starts, seed=1, group_size=3)
    return float(np.median(batch.probability_NT.max(axis=1)))


def assert_same(one, other):
    for name in one.__dataclass_fields__:
        left, right = getattr(one, name), getattr(other, name)
        if name == "recordings":
            assert len(left) == len(right)
            for a, b in zip(left, right, strict=True):
                assert a.frames_THWC.shape == b.frames_THWC.shape
                assert np.abs(a.frames_THWC.astype(int) - b.frames_THWC).max() <= 1
        elif name == "frames_NCHWC":
            assert np.abs(left.astype(int) - right).max() <= 1, "one grey level where rounding tips"
        elif isinstance(left, np.ndarray) and left.dtype == np.float32:
            np.testing.assert_allclose(left, right, atol=5e-3 if name == "probability_NT" else 1e-2, err_msg=name)
        else:
            assert np.array_equal(left, right), name


@pytest.mark.parametrize("batch_size", [1, 5, 12])
def test_batch_size_does_not_change_a_trajectory(starts, batch_size):
    threshold = median_peak(starts)
    one = rollout(make_world(threshold=threshold), FakePolicy(), starts, seed=1, group_size=3, record=True)
    other = rollout(
        make_world(threshold=threshold), FakePolicy(), starts, seed=1, group_size=3, record=True, batch_size=batch_size
    )
    assert 0 < one.success_N.sum() < len(one), "some are compacted away, some are not"
    assert_same(one, other)


def test_latents_do_not_depend_on_what_runs_beside_them(starts):
    """Exact to 1e-5 in fp32, before frames are rounded to bytes."""
    actions = np.random.default_rng(0).uniform(-1, 1, (4, H, A)).astype(np.float32)
    keys = [TrajectoryKey(1, 0, i, world=i) for i in range(4)]
    together, alone = make_world(), make_world()
    together.reset(starts, keys)
    together.step(actions)
    together.keep([3, 1])
    together.step(actions[[3, 1]])
    alone.reset(starts[1:2], keys[1:2])
    alone.step(actions[1:2])
    alone.step(actions[1:2])
    np.testing.assert_allclose(
        together._state.memory_BLChw[1].numpy(), alone._state.memory_BLChw[0].numpy(), atol=1e-5, rtol=1e-5
    )


def test_ranks_that_share_the_groups_make_the_same_trajectories(starts):
    whole = rollout(make_world(), FakePolicy(), starts, seed=1, group_size=2)
    second = rollout(make_world(), FakePolicy(), starts[2:], seed=1, group_size=2, first_group=2)
    assert np.array_equal(whole.tokens_NCK[4:], second.tokens_NCK)
    assert np.array_equal(whole.group_N[4:], second.group_N)


def test_members_of_a_group_differ_and_rollouts_too(starts):
    one = rollout(make_world(), FakePolicy(), starts[:1], seed=1, group_size=2)
    assert not np.array_equal(one.tokens_NCK[0], one.tokens_NCK[1])
    other = rollout(make_world(), FakePolicy(), starts[:1], seed=1, group_size=2, number=1)
    assert not np.array_equal(one.tokens_NCK, other.tokens_NCK)
    assert np.array_equal(one.frames_NCHWC[:, 0], other.frames_NCHWC[:, 0])


def test_a_group_shares_the_worlds_noise(starts):
    """Under the same actions its members imagine the same; another group, with the same start, does not."""
    batch = rollout(make_world(), FakePolicy(), [starts[0], starts[0]], seed=1, group_size=2, greedy=True)
    assert np.array_equal(batch.actions_NTA[0], batch.actions_NTA[1])
    assert np.array_equal(batch.frames_NCHWC[0], batch.frames_NCHWC[1])
    assert not np.array_equal(batch.frames_NCHWC[0], batch.frames_NCHWC[2])


def test_success_stops_a_trajectory_and_nothing_is_computed_for_it(starts):
    policy, world = FakePolicy(), make_world(threshold=median_peak(starts))
    batch = rollout(world, policy, starts, seed=1, group_size=3)
    assert policy.acted == batch.chunk_mask_NC.sum(axis=0)[: len(policy.acted)].tolist()
    assert [shape[0] for shape in world.model.codec.decoded] == policy.acted
    for n in np.flatnonzero(batch.success_N):
        assert batch.chunk_mask_NC[n].sum() == batch.success_step_N[n] // H + 1
        assert not batch.tokens_NCK[n, batch.chunk_mask_NC[n].sum() :].any()
    for n in np.flatnonzero(~batch.success_N):
        assert batch.chunk_mask_NC[n].all() and batch.success_step_N[n] == 24


def test_a_trajectory_may_run_on_after_success(starts):
    """Up to first success it is the same; then it goes on, to the limit of its own start."""
    limits, threshold = [24, 16, 24, 16], median_peak(starts)
    ended = rollout(make_world(threshold=threshold), FakePolicy(), starts, seed=1, group_size=3, limits=limits)
    policy = FakePolicy()
    world = make_world(threshold=threshold)
    on = rollout(world, policy, starts, seed=1, group_size=3, limits=limits, stop_at_success=False)
    assert policy.acted == [12, 12, 6] and on.steps_N.tolist() == np.repeat(limits, 3).tolist()
    assert (ended.steps_N < on.steps_N).any()
    for n, steps in enumerate(ended.steps_N):
        assert np.array_equal(ended.tokens_NCK[n, : steps // H], on.tokens_NCK[n, : steps // H])
        if ended.success_N[n]:
            assert on.success_step_N[n] == ended.success_step_N[n]
    assert on.tokens_NCK[ended.chunk_mask_NC != on.chunk_mask_NC].any(axis=1).all(), "the policy acted there"


def test_recordings_hold_what_the_policy_saw(starts):
    batch = rollout(make_world(), FakePolicy(), starts, seed=1, record=True)
    for n, start in enumerate(starts):
        video = batch.recordings[n].frames_THWC
        assert len(video) == batch.steps_N[n] + 1 == 25
        assert np.array_equal(video[0], start.memory_MHWC[-1])
        assert np.array_equal(video[::H][:3], batch.frames_NCHWC[n])


@pytest.mark.parametrize(("horizon", "limit", "steps", "chunks"), [(24, 16, 16, 2), (20, None, 20, 3), (24, 72, 24, 3)])
def test_truncation(starts, horizon, limit, steps, chunks):
    limits = None if limit is None else [limit] * len(starts)
    batch = rollout(make_world(horizon), FakePolicy(), starts, seed=1, limits=limits, record=True)
    assert batch.probability_NT.shape == (4, steps) and batch.chunk_mask_NC.shape == (4, chunks)
    assert (batch.steps_N == steps).all() and (batch.success_step_N == steps).all()
    assert len(batch.recordings[0].frames_THWC) == steps + 1


def test_greedy_takes_no_random_tokens(starts):
    batch = rollout(make_world(), FakePolicy(), starts, seed=1, greedy=True)
    assert (batch.tokens_NCK == 5).all()


def test_a_policy_of_another_chunk_length_is_refused(starts):
    policy = FakePolicy()
    policy.chunk_length = 4
    with pytest.raises(UserError, match="expected chunks of 8 x 3 actions"):
        rollout(make_world(), policy, starts, seed=1)


def test_the_true_simulator_goes_the_same_way():
    simulator = ScriptedSimulator()
    starts = [SimulatorStart(1, 0), SimulatorStart(0, 0), SimulatorStart(1, 1)]
    batch = rollout(ChunkedSimulator(simulator, H, every_frame=True), FakePolicy(), starts, seed=1, record=True)
    assert batch.success_step_N.tolist() == [9, 24, 9], "action 9 leads to state 10"
    assert batch.instructions == ["at nine", "never", "at nine"]
    assert batch.steps_N.tolist() == [16, 24, 16] and simulator.computed == 56
    assert batch.recordings[0].states_TS[:, 0].tolist() == list(range(17))
    assert batch.recordings[1].frames_THWC[:, 0, 0, 0].tolist() == list(range(25))
    assert batch.recordings[1].wrist_THWC[:, 0, 0, 0].tolist() == list(range(1, 26))
    assert batch.recordings[1].proprio_TP.tolist() == [[step, step / 2] for step in range(25)]
    assert batch.wrist_NCHWC is None is batch.proprio_NCP, "the policy asked for neither"
    assert not batch.lost_N.any()
    simulator = ScriptedSimulator()
    on = rollout(ChunkedSimulator(simulator, H), FakePolicy(), starts, seed=1, stop_at_success=False)
    assert on.success_step_N.tolist() == [9, 24, 9], "success at step 10 is not lost by what follows"
    assert on.steps_N.tolist() == [24, 24, 24] and simulator.computed == 72


def test_only_what_the_policy_sees_is_rendered_unless_it_is_recorded():
    simulator = ScriptedSimulator()
    batch = rollout(ChunkedSimulator(simulator, H), FakePolicy(), [SimulatorStart(0, 0)], seed=1)
    assert simulator.computed == 24 and simulator.rendered == 3
    assert batch.frames_NCHWC[0, :, 0, 0, 0].tolist() == [0, 8, 16]


def test_a_lost_environment_ends_its_trajectory_alone():
    simulator = ScriptedSimulator(loses=(1, 12))
    starts = [SimulatorStart(0, 0), SimulatorStart(0, 1), SimulatorStart(0, 2)]
    batch = rollout(ChunkedSimulator(simulator, H), FakePolicy(), starts, seed=1)
    assert batch.lost_N.tolist() == [False, True, False]
    assert batch.steps_N.tolist() == [24, 16, 24] and simulator.computed == 64


@pytest.mark.parametrize("every_frame", [True, False])
@pytest.mark.parametrize(("views", "proprio_dim"), [(2, 2), (2, 0), (1, 2)])
def test_a_policy_is_shown_what_it_asks_for_and_no_more(views, proprio_dim, every_frame):
    """`FeelingPolicy` checks at every chunk that all it is shown is of one moment, also past those that ended."""
    starts = [SimulatorStart(1, 0), SimulatorStart(0, 0), SimulatorStart(1, 1)]
    policy = FeelingPolicy(views, proprio_dim)
    world = ChunkedSimulator(ScriptedSimulator(), H, every_frame=every_frame)
    batch = rollout(world, policy, starts, seed=1, batch_size=2)
    assert policy.steps == [0, 0, 8, 8, 16] + [0, 8], "the first and second, then the third alone"
    if views == 2:
        assert batch.wrist_NCHWC[:, :, 0, 0, 0].tolist() == [[1, 9, 0], [1, 9, 17], [1, 9, 0]]
    if proprio_dim:
        assert batch.proprio_NCP[:, :, 1].tolist() == [[0, 4, 0], [0, 4, 8], [0, 4, 0]]
        assert batch.proprio_NCP.dtype == np.float32
    assert (batch.wrist_NCHWC is None) == (views == 1) and (batch.proprio_NCP is None) == (not proprio_dim)
    part = batch.select(np.array([False, True, True]))
    for name in ("frames_NCHWC", "wrist_NCHWC", "proprio_NCP"):
        whole = getattr(batch, name)
        assert np.array_equal(getattr(part, name), whole if whole is None else whole[1:]), name
    plain = rollout(ChunkedSimulator(ScriptedSimulator(), H), FakePolicy(), starts, seed=1, greedy=True)
    other = rollout(
        ChunkedSimulator(ScriptedSimulator(), H), FeelingPolicy(views, proprio_dim), starts, seed=1, greedy=True
    )
    assert np.array_equal(plain.actions_NTA, other.actions_NTA)


@pytest.mark.parametrize(
    ("views", "proprio_dim", "imagined", "simulated"),
    [
        (2, 0, r"camera at the hand \(views: 2\), found imagination", r"found a simulator .*simulator\.wrist=true"),
        (1, 8, r"tells 8 numbers of proprioception .*, found imagination", "found a simulator that tells 0"),
    ],
)
def test_a_policy_that_asks_for_more_than_a_world_shows_is_refused(starts, views, proprio_dim, imagined, simulated):
    policy, bare = FeelingPolicy(views, proprio_dim), ScriptedSimulator()
    with pytest.raises(UserError, match=imagined):
        rollout(make_world(), policy, starts, seed=1)
    observe = bare._observe
    bare._observe = lambda: replace(observe(), wrist_BHWC=None, proprio_BP=None)
    with pytest.raises(UserError, match=simulated):
        rollout(ChunkedSimulator(bare, H), policy, [SimulatorStart(0, 0)], seed=1)
    assert not policy.steps and not bare.computed, "before anything runs"


def test_a_policy_that_asks_for_other_proprioception_is_refused():
    with pytest.raises(UserError, match=r"tells 8 numbers .*, found a simulator that tells 2"):
        rollout(ChunkedSimulator(ScriptedSimulator(), H), FeelingPolicy(1, 8), [SimulatorStart(0, 0)], seed=1)


def test_a_task_that_the_suite_lacks_is_named():
    with pytest.raises(UserError, match="task 7: expected a task of suite scripted"):
        ChunkedSimulator(ScriptedSimulator(), H).instruction(SimulatorStart(7, 0))


def test_a_hold_may_cross_the_border_of_chunks():
    """Probabilities come from a script, so that the hold begins at step 7 and ends at step 8."""
    script = np.zeros((2, 24), dtype=np.float32)
    script[0, [3, 7, 8]] = 1  # a flicker at 3, then two in a row over the border
    script[1, [3, 5]] = 1  # flickers only
    world = make_world(hold=2, threshold=0.5)

    def scripted(seen, instructions):
        rows, c = [key.trajectory for key in world._keys], world._chunks[0]
        return torch.from_numpy(script[rows, c * H : c * H + H])

    world.reward.judge = scripted
    batch = rollout(world, FakePolicy(), [make_start(0), make_start(1)], seed=1)
    assert batch.success_step_N.tolist() == [8, 24]
    assert batch.chunk_mask_NC.sum(axis=1).tolist() == [2, 3]
    assert np.array_equal(first_success(batch.probability_NT, 0.5, 2).numpy(), batch.success_step_N)
