import gymnasium
import numpy as np
import pytest
from gymnasium.vector import AutoresetMode
from gymnasium.wrappers.vector import DictInfoToList, RecordEpisodeStatistics

from tests.imagine.worlds import H, make_starts, make_world
from wovr.core.errors import UserError
from wovr.imagine.env import ImaginedVectorEnv, decode_instruction, encode_instruction
from wovr.kir.bank import KeyframeBank


def make_env(num_envs=3, horizon=24, **kwargs):
    world = kwargs.pop("world", None) or make_world(horizon)
    return ImaginedVectorEnv(world, KeyframeBank(make_starts()), num_envs, **kwargs)


def play(env, seed, steps):
    env.action_space.seed(seed)
    seen = [env.reset(seed=seed)[0]]
    for _ in range(steps):
        seen.append(env.step(env.action_space.sample()))
    return seen


def assert_equal(one, other):
    if isinstance(one, dict):
        assert one.keys() == other.keys()
        for key in one:
            assert_equal(one[key], other[key])
    elif isinstance(one, tuple | list):
        for a, b in zip(one, other, strict=True):
            assert_equal(a, b)
    else:
        np.testing.assert_array_equal(one, other)


def test_what_gymnasium_expects_of_a_vector_environment():
    env = make_env()
    assert isinstance(env.metadata["autoreset_mode"], AutoresetMode)
    assert env.observation_space == gymnasium.vector.utils.batch_space(env.single_observation_space, 3)
    assert env.action_space == gymnasium.vector.utils.batch_space(env.single_action_space, 3)
    observation, info = env.reset(seed=0)
    assert isinstance(info, dict)
    for _ in range(5):  # past an autoreset
        assert observation in env.observation_space
        for single in gymnasium.vector.utils.iterate(env.observation_space, observation):
            assert single in env.single_observation_space
        observation, rewards, terminations, truncations, info = env.step(env.action_space.sample())
        assert rewards.shape == (3,) and rewards.dtype == np.float64
        assert terminations.shape == truncations.shape == (3,)
        assert terminations.dtype == truncations.dtype == np.bool_
    env.close()
    assert env.closed


def test_a_seed_determines_everything():
    one, same = play(make_env(), 4, 7), play(make_env(), 4, 7)
    assert_equal(one, same)
    env = make_env()
    play(env, 9, 4)
    assert_equal(one, play(env, 4, 7))
    assert not np.array_equal(one[1][0]["frame"], play(make_env(), 5, 1)[1][0]["frame"])


def test_what_is_returned_is_the_callers_own():
    env = make_env()
    observation, _ = env.reset(seed=0)
    before = observation["frame"].copy()
    env.step(env.action_space.sample())
    assert np.array_equal(before, observation["frame"])


def test_truncation_at_the_horizon_and_reset_in_the_next_step():
    env = make_env(horizon=16)
    env.reset(seed=0)
    actions = env.action_space.sample()
    assert not env.step(actions)[3].any()
    last, _, terminated, truncated, info = env.step(actions)
    assert truncated.all() and not terminated.any() and info["_frames"].all()
    assert np.array_equal(last["frame"], info["frames"][:, -1]), "the end is seen"
    fresh, rewards, terminated, truncated, info = env.step(actions)
    assert not (terminated | truncated).any() and not rewards.any()
    assert not info["_frames"].any() and not info["_success_probability"].any()
    memories = [start.memory_MHWC[-1] for start in make_starts()]
    assert all(any(np.array_equal(frame, memory) for memory in memories) for frame in fresh["frame"])
    assert env.step(actions)[4]["_frames"].all()


def test_success_is_rewarded_once_and_costs_nothing_afterwards():
    starts = make_starts()[:3]
    probe = make_env(autoreset_mode="Disabled")
    probe.reset(seed=0, options={"starts": starts})
    actions = np.zeros(probe.action_space.shape, np.float32)
    peaks = probe.step(actions)[4]["success_probability"].max(axis=1)
    env = make_env(world=make_world(24, threshold=float(np.sort(peaks)[-1])), autoreset_mode="Disabled")
    env.reset(seed=0, options={"starts": starts})
    best, decoded = int(peaks.argmax()), env.world.model.codec.decoded
    _, rewards, terminated, truncated, info = env.step(actions)
    assert rewards.tolist() == terminated.tolist() == [i == best for i in range(3)] and not truncated.any()
    assert info["_success_step"].tolist() == terminated.tolist()
    assert info["success_step"][best] == info["success_probability"][best].argmax()
    frozen, rewards, terminated, _, info = env.step(actions)
    assert rewards[best] == 0 and terminated[best] and not info["_frames"][best]
    assert decoded[0][0] == 3 and decoded[1][0] <= 2
    env.reset(options={"reset_mask": np.arange(3) == best, "starts": starts[:1]})
    observation, _, terminated, _, info = env.step(actions)
    assert info["_frames"][best] and not np.array_equal(observation["frame"][best], frozen["frame"][best])


def test_reset_mask_leaves_the_others_alone():
    env, undisturbed = make_env(autoreset_mode="Disabled"), make_env(autoreset_mode="Disabled")
    options = {"starts": make_starts()[:3]}
    env.reset(seed=0, options=options)
    undisturbed.reset(seed=0, options=options)
    actions = np.full(env.action_space.shape, 0.5, np.float32)
    env.step(actions), undisturbed.step(actions)
    observation, _ = env.reset(options={"reset_mask": np.array([False, True, False]), "starts": make_starts()[3:]})
    assert np.array_equal(observation["frame"][1], make_starts()[3].memory_MHWC[-1])
    assert decode_instruction(observation["instruction"][1]) == "lift it"
    frames, others = env.step(actions)[0]["frame"].astype(int), undisturbed.step(actions)[0]["frame"]
    assert np.abs(frames - others)[[0, 2]].max() <= 1, "rounding of another batch order at most"
    assert np.abs(frames - others)[1].max() > 1


def test_a_number_of_starts_that_does_not_fit_is_refused():
    with pytest.raises(UserError, match=r"expected one per environment \(3\), found 1"):
        make_env().reset(options={"starts": make_starts()[:1]})
    with pytest.raises(UserError, match="found SameStep"):
        make_env(autoreset_mode="SameStep")


def test_gymnasiums_own_wrappers_work():
    env = DictInfoToList(RecordEpisodeStatistics(make_env(horizon=16)))
    env.reset(seed=0)
    infos = [env.step(env.action_space.sample())[-1] for _ in range(3)]
    assert infos[0][0]["success_probability"].shape == (H,)
    assert all(info["episode"]["l"] == 2 for info in infos[1]), "chunks, as a step is a chunk"


def test_render_gives_the_current_frames():
    env = make_env(render_mode="rgb_array")
    observation, _ = env.reset(seed=0)
    assert np.array_equal(np.stack(env.render()), observation["frame"])
    assert make_env().render() is None


def test_instructions_pass_as_bytes():
    text = "lege den Würfel auf den roten Teller"
    assert decode_instruction(encode_instruction(text)) == text
    with pytest.raises(UserError, match="at most 128 bytes, found 200"):
        encode_instruction("a" * 200)
