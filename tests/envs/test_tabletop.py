import numpy as np
import pytest

from wovr.core.errors import UserError
from wovr.core.seed import stream
from wovr.core.train import TrainConfig
from wovr.core.types import SimulatorStart
from wovr.envs.tabletop import Demonstrator, Player, Tabletop, TabletopConfig, goal, goal_distance, play_scene
from wovr.envs.tabletop.physics import GAP_EMPTY, GAP_OPEN, REACH, Table
from wovr.envs.tabletop.scene import BLOCK_HALF, SETTLED_RADIUS, SUITE_COLOURS, TASKS, WELL_RADIUS, Scene
from wovr.stages.demonstrations import demonstrate
from wovr.stages.experiment import CodecStageConfig, Experiment, SftConfig

OPEN, CLOSE = -1.0, 1.0


def scene(gripper=(32, 20), blocks=((32, 32), (10, 12)), plates=((20, 50), (46, 50))):
    return Scene(*(np.array(part, float) for part in (gripper, blocks, plates)), SUITE_COLOURS)


def act(table, *actions):
    for action in actions:
        table.step(np.array(action, np.float32))
    return table.state()


def go(table, x, y, grip):
    """Straight to a place."""
    while np.abs(np.array([x, y]) - table.gripper).max() > 1e-6:
        act(table, (*np.clip((np.array([x, y]) - table.gripper) / REACH, -1, 1), grip))


def experiment(**sft):
    return Experiment(codec=CodecStageConfig(train=TrainConfig(steps=1)), sft=SftConfig(**sft))


def starts(n, first=0):
    return [SimulatorStart(i % len(TASKS), first + i // len(TASKS)) for i in range(n)]


def random_actions(n, steps, seed=0):
    return stream(seed, "test-actions").uniform(-1, 1, (steps, n, 3)).astype(np.float32)


def test_there_are_four_tasks_with_distractors():
    assert len({task.instruction for task in TASKS}) == len(TASKS) >= 4
    assert {goal(task.task_id) for task in TASKS} == {(0, 0), (0, 1), (1, 0), (1, 1)}


def test_an_aligned_close_lifts_the_block_and_release_in_the_well_succeeds():
    table = Table(scene())
    go(table, 32, 32, OPEN)
    state = act(table, (0, 0, CLOSE), (0, 0, CLOSE))
    assert state[3] == 0
    go(table, 22, 48, CLOSE)
    assert not table.success(0), "still held"
    state = act(table, (0, 0, OPEN), (0, -1, OPEN), (0, -1, OPEN))
    assert state[3] == -1
    assert table.success(0)
    assert not any(table.success(task) for task in (1, 2, 3))


def test_a_block_let_go_outside_the_well_stays_there():
    table = Table(scene())
    go(table, 32, 32, OPEN)
    act(table, (0, 0, CLOSE), (0, 0, CLOSE))
    go(table, 20, 50 - WELL_RADIUS - 1.5, CLOSE)
    act(table, *[(0, -1, OPEN)] * 5)
    assert not table.success(0)


@pytest.mark.parametrize("side", [-1, 1])
def test_a_close_that_catches_the_end_of_a_block_squeezes_it_out(side):
    table = Table(scene())
    go(table, 32, 32 + 6 * side, OPEN)
    before = table.state()[4:6]
    state = act(table, *[(0, 0, CLOSE)] * 3)
    assert state[3] == -1
    assert state[2] == pytest.approx(GAP_EMPTY, abs=0.1), "the fingers close on nothing, which a frame shows"
    assert (state[5] - before[1]) * side < -2, "away from the fingers"


def test_fingers_push_blocks_and_blocks_push_blocks():
    table = Table(scene(gripper=(14, 32), blocks=((32, 32), (32 + 2 * BLOCK_HALF + 1, 32))))
    act(table, *[(1, 0, OPEN)] * 6)
    first, second = table.state()[4:6], table.state()[6:8]
    assert first[0] > 34
    assert second[0] > 43


def test_moving_over_a_block_without_touching_it_changes_nothing():
    table = Table(scene())
    go(table, 32, 40, OPEN)  # the open fingers pass on both sides
    np.testing.assert_allclose(table.state()[4:6], (32, 32), atol=1e-6)
    assert table.state()[2] == GAP_OPEN


def test_equal_actions_give_equal_episodes_whatever_the_batch():
    simulator, actions = Tabletop(TabletopConfig()), random_actions(6, 30)

    def run(rows):
        observations = [simulator.reset([starts(6)[row] for row in rows])]
        observations += [simulator.step(step[rows]) for step in actions]
        return np.stack([o.frames_BHWC for o in observations], 1), np.stack([o.states_BS for o in observations], 1)

    frames, states = run([0, 1, 2, 3, 4, 5])
    for rows in ([0, 1, 2], [5, 3]):
        again_frames, again_states = run(rows)
        np.testing.assert_array_equal(again_frames, frames[rows])
        np.testing.assert_array_equal(again_states, states[rows])


def test_inactive_environments_stand_still():
    simulator = Tabletop(TabletopConfig())
    before = simulator.reset(starts(3))
    after = simulator.step(np.ones((3, 3), np.float32), np.array([True, False, True]))
    np.testing.assert_array_equal(after.states_BS[1], before.states_BS[1])
    np.testing.assert_array_equal(after.frames_BHWC[1], before.frames_BHWC[1])
    assert (after.states_BS[[0, 2]] != before.states_BS[[0, 2]]).any(axis=1).all()


def test_initial_states_are_numbered_and_shared_by_all_tasks():
    simulator = Tabletop(TabletopConfig())
    frames = simulator.reset([SimulatorStart(0, 7), SimulatorStart(3, 7), SimulatorStart(0, 8)]).frames_BHWC
    np.testing.assert_array_equal(frames[0], frames[1])
    assert (frames[0] != frames[2]).any()


def test_pictures_show_what_matters():
    simulator = Tabletop(TabletopConfig())
    frames = simulator.reset_scenes([scene(), scene(blocks=((32, 34), (10, 12)))], [0, 0]).frames_BHWC
    assert frames.shape == (2, 64, 64, 3)
    assert frames.dtype == np.uint8
    np.testing.assert_array_equal(frames[0, 32, 32], np.rint(SUITE_COLOURS[0]))
    assert (frames[0] != frames[1]).any()
    assert (simulator.step(np.array([[0, 0, 1]] * 2, np.float32)).frames_BHWC != frames).any(), "fingers closed"


def test_skill_decides_success_and_near_misses_happen():
    simulator = Tabletop(TabletopConfig())
    episodes = {skill: demonstrate(simulator, starts(48, 500), experiment(skill=skill)) for skill in (1.0, 0.1)}
    rate = {skill: np.mean([episode.success for episode in found]) for skill, found in episodes.items()}
    assert rate[1.0] == 1.0
    assert 0.1 < rate[0.1] < 0.8
    gaps = np.concatenate([episode.states_TS[:, 2] for episode in episodes[0.1]])
    assert (gaps < GAP_EMPTY + 0.5).any(), "fingers that closed on nothing"


def test_an_offset_moves_every_aim():
    simulator = Tabletop(TabletopConfig())
    grasped = {}
    for offset in ((0.0, 0.0), (2.0, 3.0)):
        episodes = demonstrate(simulator, starts(24, 500), experiment(skill=1.0, offset=offset))
        first = [int(np.argmax(episode.states_TS[:, 3] >= 0)) for episode in episodes]
        assert all(first), "a small offset still grasps"
        closing = [episode.states_TS[t - 3, :2] for t, episode in zip(first, episodes, strict=True)]
        grasped[offset] = np.array(closing)
    shift = np.median(grasped[2.0, 3.0] - grasped[0.0, 0.0], axis=0)
    np.testing.assert_allclose(shift, (2.0, 3.0), atol=0.8)  # where a demonstrator is content with its aim


def test_play_uses_other_colours_and_really_grasps():
    simulator, rng = Tabletop(TabletopConfig()), [stream(0, "test-play", i) for i in range(16)]
    scenes = [play_scene(r) for r in rng]
    for drawn in scenes:
        for kind in (slice(0, 2), slice(2, 4)):
            distance = np.linalg.norm(drawn.colours[kind, None] - SUITE_COLOURS[kind], axis=-1)
            assert distance.min() > 44, "no block has a colour of the suite's blocks, no plate one of its plates"
    observation = simulator.reset_scenes(scenes, [0] * 16)
    players = [Player(plates, r) for plates, r in zip(simulator.plates_B22, rng, strict=True)]
    held = []
    for _ in range(48):
        actions = [player.action(state) for player, state in zip(players, observation.states_BS, strict=True)]
        observation = simulator.step(np.stack(actions))
        held.append(observation.states_BS[:, 3] >= 0)
    assert 0.1 < np.mean(held) < 0.7


def test_play_begins_anywhere_but_touches_nothing():
    scenes = [play_scene(stream(0, "test-play", i)) for i in range(64)]
    for drawn in scenes:
        table = Table(drawn)
        table.step(np.array([0, 0, -1], np.float32))
        np.testing.assert_allclose(table.state()[4:], drawn.blocks.ravel(), atol=3.3)  # or a block slides into a well
        assert table.state()[2] == pytest.approx(GAP_OPEN)
    depths = np.array([drawn.gripper[1] for drawn in scenes])
    assert 0.3 < np.mean(depths < 11) < 0.7
    assert depths.max() > 45


def test_play_goes_where_a_policy_goes_that_misses():
    """To the front with nothing in its fingers, which no demonstrator does."""
    simulator, rng = Tabletop(TabletopConfig()), [stream(0, "test-play", i) for i in range(32)]
    observation = simulator.reset_scenes([play_scene(r) for r in rng], [0] * 32)
    players = [Player(plates, r) for plates, r in zip(simulator.plates_B22, rng, strict=True)]
    empty, depth = [], []
    for _ in range(48):
        states = observation.states_BS
        actions = np.stack([player.action(state) for player, state in zip(players, states, strict=True)])
        empty.append((states[:, 3] < 0) & (states[:, 2] < 2) & (states[:, 1] > 36))
        depth.append(states[:, 1])
        observation = simulator.step(actions)
    assert np.mean(empty) > 0.02
    assert np.median(depth) > 26


def test_an_unknown_task_is_a_clear_error():
    with pytest.raises(UserError, match="task 9: expected 0 to 3"):
        Tabletop(TabletopConfig()).reset([SimulatorStart(9, 0)])


def test_the_demonstrator_stops_after_its_placement():
    table = Table(scene())
    hand = Demonstrator(0, table.plates[0], 1.0, stream(0, "test"))
    for _ in range(40):
        table.step(hand.action(table.state()))
    assert hand.done
    assert table.success(0)


def test_the_distance_read_from_states_is_at_most_the_settled_radius_where_the_simulator_sees_success():
    episodes = demonstrate(Tabletop(TabletopConfig()), starts(40), experiment(skill=0.3))
    near_misses = 0
    for episode in episodes:
        distance_F = goal_distance(episode.task_id, episode.init_id, episode.states_TS)
        assert np.array_equal(distance_F[1:] <= SETTLED_RADIUS, episode.success_T)
        held_F = episode.states_TS[:, 3] == goal(episode.task_id)[0]
        assert held_F.any() and np.array_equal(np.isinf(distance_F), held_F)
        near_misses += not episode.success and distance_F.min() < 12
    assert 0 < sum(episode.success for episode in episodes) < 40 and near_misses


def test_no_distance_is_read_from_states_of_another_layout():
    (episode,) = demonstrate(Tabletop(TabletopConfig(horizon=4)), starts(1), experiment())
    assert goal_distance(episode.task_id, 0, episode.states_TS) is not None
    assert goal_distance(episode.task_id, 1, episode.states_TS) is None
    assert goal_distance(episode.task_id, -1, episode.states_TS) is None
    assert goal_distance(episode.task_id, 0, episode.states_TS[:, :6]) is None
