"""Replays of recorded actions in imagination, counted against what was recorded."""

import numpy as np
import pytest
import torch

from tests.imagine.worlds import IMAGE, A, FakeReward, H, make_model
from wovr.codec.conv import ConvCodec, ConvCodecConfig
from wovr.core.checkpoint import read_json, save_model
from wovr.core.dist import Dist
from wovr.core.errors import UserError
from wovr.core.log import RunLog
from wovr.core.run import RunFolder
from wovr.core.train import TrainConfig
from wovr.core.types import Episode
from wovr.dit.context import ContextConfig, layout
from wovr.dit.model import ActionDiT, DiTConfig
from wovr.episodes.store import EpisodeStore
from wovr.flow.schedule import FlowConfig
from wovr.imagine.load import DIT, REWARD, WORLD_CODEC, save_dit
from wovr.reward.base import Seen
from wovr.reward.classifier import RewardClassifier, RewardClassifierConfig
from wovr.stages import hallucination
from wovr.stages.experiment import CodecStageConfig, Experiment, Workplace
from wovr.stages.hallucination import Measurement, keyframe_step, replay_agreement
from wovr.stages.replay import Replay, load_replays, replay, save_replays

SETTINGS = {"horizon": 24, "batch_size": 4, "seed": 3}


def make_episode(seed, steps=24, success_at=None):
    rng = np.random.default_rng(seed)
    success_T = np.zeros(steps, dtype=np.bool_)
    if success_at is not None:
        success_T[success_at:] = True
    return Episode(
        frames_THWC=rng.integers(0, 256, (steps + 1, IMAGE, IMAGE, 3), dtype=np.uint8),
        actions_TA=rng.uniform(-1, 1, (steps, A)).astype(np.float32),
        success_T=success_T,
        states_TS=np.zeros((steps + 1, 0)),
        instruction="put it there",
        suite="fake",
        task_id=0,
        init_id=seed,
        policy="base",
        seed=0,
        purpose="collect",
    )


def reward(threshold):
    fake = FakeReward()
    fake.threshold = threshold
    return fake


def episodes(*made):
    return [(episode, f"demo_{i}") for i, episode in enumerate(made)]


def test_a_replay_starts_at_the_recorded_frame_and_takes_the_recorded_actions():
    episode = make_episode(0)
    first, later = replay(make_model(), reward(0.1), episodes(episode, episode), [0, 5], **SETTINGS)

    assert (first.kind, later.kind) == ("first_frame", "keyframe")
    assert (len(first.probability_T), len(later.probability_T)) == (24, 16)  # whole chunks of the 19 steps left
    for one in (first, later):
        stop = one.step + len(one.probability_T) + 1
        np.testing.assert_array_equal(one.true_THWC, episode.frames_THWC[one.step : stop])
        np.testing.assert_array_equal(one.imagined_THWC[0], one.true_THWC[0])
        assert one.imagined_THWC.shape == one.true_THWC.shape
        seen = Seen(torch.from_numpy(one.true_THWC[None, 1:]), None)
        np.testing.assert_array_equal(one.true_probability_T, reward(0.1).judge(seen, [episode.instruction])[0])

    other = Episode(
        **{name: getattr(episode, name) for name in Episode.__slots__} | {"actions_TA": -episode.actions_TA}
    )
    (changed,) = replay(make_model(), reward(0.1), episodes(other), [0], **SETTINGS)
    assert (changed.imagined_THWC[1:] != first.imagined_THWC[1:]).any()


def test_other_actions_may_be_fed_from_the_start_on():
    """The memory keeps what was recorded, and the noise stays the same."""
    made = [make_episode(seed) for seed in (0, 1)]
    recorded = list(replay(make_model(), reward(0.1), episodes(*made), [8, 0], **SETTINGS))
    fed = [made[0].actions_TA[8:].copy(), -made[1].actions_TA]
    same, other = replay(make_model(), reward(0.1), episodes(*made), [8, 0], actions=fed, **SETTINGS)
    np.testing.assert_array_equal(same.imagined_THWC, recorded[0].imagined_THWC)
    np.testing.assert_array_equal(other.true_THWC, recorded[1].true_THWC)
    assert (other.imagined_THWC[1:] != recorded[1].imagined_THWC[1:]).any()


def test_neither_batch_nor_shorter_neighbours_change_a_replay():
    made = episodes(make_episode(0, 8), make_episode(1, 24), make_episode(2, 16), make_episode(3, 24))
    together, alone = (
        list(replay(make_model(), reward(0.1), made, [0] * 4, horizon=24, batch_size=size, seed=3)) for size in (4, 1)
    )
    assert [len(one.probability_T) for one in together] == [8, 24, 16, 24]
    for a, b in zip(together, alone, strict=True):
        np.testing.assert_allclose(a.imagined_THWC.astype(int), b.imagined_THWC.astype(int), atol=1)


def test_starts_after_success_or_without_a_chunk_are_left_out():
    made = episodes(make_episode(0, 24, success_at=3), make_episode(1, 24, success_at=4), make_episode(2, 11))
    done = list(replay(make_model(), reward(0.1), made, [4, 4, 4], **SETTINGS))
    assert [(one.episode, one.true_first) for one in done] == [("demo_1", 0)]
    with pytest.raises(UserError, match="held-out episodes: expected at least one of 8 steps"):
        replay_agreement(make_model(), reward(0.1), made[2:], [4], **SETTINGS)


@pytest.mark.parametrize(("threshold", "agreement", "false_success"), [(0.0, 0.25, 1.0), (9.0, 0.75, 0.0)])
def test_a_reward_that_always_or_never_fires(threshold, agreement, false_success):
    made = episodes(make_episode(0, success_at=20), *(make_episode(seed) for seed in (1, 2, 3)))
    found = replay_agreement(make_model(), reward(threshold), made, [0] * 4, **SETTINGS)
    assert found.overall.confusion.agreement.rate == agreement
    assert found.overall.confusion.false_success_rate.rate == false_success


def test_a_short_replay_without_success_stays_a_failure_of_the_full_horizon():
    measurement = Measurement(horizon=16, chunk_length=H)
    frames = np.zeros((9, IMAGE, IMAGE, 3), dtype=np.uint8)
    for imagined_first, true_first in [(8, 8), (2, 8), (7, 1)]:
        imagined, true = np.full((2, 8), 0.25, np.float32) * [[1], [3]]
        told = (imagined.astype(np.float32), imagined_first, true_first, true.astype(np.float32))
        measurement.add(Replay("demo", 0, "", frames, frames, *told))
    report = measurement.report().overall
    assert report.confusion.both_fail == report.confusion.false_success == report.confusion.both_succeed == 1
    assert report.delay == 6
    assert report.psnr_by_depth[0] == 100
    assert torch.tensor(report.psnr_by_depth[1]).isnan()
    assert report.gap_by_depth[0] == 0.5 == report.gap_after_success and report.psnr_after_success == 100


def test_keyframes_lie_before_success_with_whole_chunks_ahead():
    def steps_of(episode):
        return {keyframe_step(episode, H, 2 * H, seed=0, number=number) for number in range(60)}

    assert steps_of(make_episode(0, 48)) == {8, 16, 24, 32}
    assert steps_of(make_episode(0, 48, success_at=16)) == {8, 16}  # o_16 is not yet a success, o_17 is
    assert steps_of(make_episode(0, 48, success_at=15)) == {8}
    assert steps_of(make_episode(0, 16)) == {0}


def test_replays_survive_the_disk(tmp_path):
    made = list(replay(make_model(), reward(0.1), episodes(make_episode(0)), [8], **SETTINGS))
    save_replays(tmp_path / "replays.safetensors", made)
    (back,) = load_replays(tmp_path / "replays.safetensors")
    for name in Replay.__slots__:
        np.testing.assert_array_equal(getattr(back, name), getattr(made[0], name))


def write_world(folder, reward_threshold):
    torch.manual_seed(0)
    config, context = DiTConfig(width=24, depth=1, heads=2, ffn_width=24, channels=4, action_dim=A), ContextConfig()
    save_dit(folder / DIT, ActionDiT(config, layout(context, H)), context, FlowConfig(steps=1))
    classifier = RewardClassifierConfig(
        channels=8, keypoints=4, text_width=8, hidden_width=16, threshold=reward_threshold
    )
    save_model(folder / REWARD, RewardClassifier(classifier), classifier)


def test_the_stage_measures_both_worlds_on_held_out_episodes(tmp_path):
    experiment = Experiment(codec=CodecStageConfig(pretrained=None, train=TrainConfig(steps=1)))
    with RunFolder.open(tmp_path / "run", experiment.model_dump(mode="json")) as run:
        path = run.path
        codec = ConvCodecConfig(channels=4, frame_width=8, group_width=16, blocks=1)
        for folder in (path, path / "refine/round_1"):
            save_model(folder / WORLD_CODEC, ConvCodec(codec), codec)
        write_world(path, reward_threshold=1e-6)  # every frame is a success
        write_world(path / "refine/round_1", reward_threshold=1 - 1e-6)  # none is
        store = EpisodeStore(run.folder("episodes"))
        store.append([make_episode(i, 32, success_at=20 if i % 2 else None) for i in range(33)])
        place = Workplace(experiment, run, RunLog(path, plain=True), Dist())
        summary = hallucination.run(place)
        measured = read_json(path / hallucination.SUMMARY)
        examples = load_replays(path / hallucination.EXAMPLES)

    assert summary["base"]["collect"]["first_frame"]["false_success_rate"]["rate"] == 1
    assert summary["pace"]["collect"]["first_frame"]["false_success_rate"]["rate"] == 0
    held = measured["base"]["collect"]["by_start"]["first_frame"]["agreement"]["n"]
    assert held == 3, "every 11th of 33"
    assert set(measured["base"]["collect"]["by_start"]) == {"first_frame", "keyframe"}
    psnr = measured["base"]["collect"]["by_start"]["first_frame"]["psnr_by_depth"]
    assert psnr[3] is not None and psnr[4:] == [None, None]
    assert {one.outcome for one in examples} == {"both_fail", "false_failure"}, "those of the newest world"
