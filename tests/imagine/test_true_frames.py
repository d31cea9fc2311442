"""True frames are judged as imagined ones are."""

import numpy as np
import pytest
import torch

from tests.imagine.worlds import FakeReward, H, make_model
from tests.stages.test_hallucination import make_episode
from wovr.core.seed import normal
from wovr.imagine import true_frames
from wovr.imagine.true_frames import judge_true
from wovr.kir.mine import start_state


class FeatureReward:
    """Reads a number per frame off the features. Notes what it is shown."""

    threshold, hold, reads_features = 0.5, 1, True

    def __init__(self):
        self.seen = []

    def judge(self, seen, instructions):
        self.seen.append(seen)
        means_BN = seen.features_BNhwD.mean(dim=(2, 3, 4))
        return (means_BN[..., None] * torch.arange(1, 5)).flatten(1)


def test_a_judge_of_frames_sees_them_as_they_are():
    episode = make_episode(0, 24)
    found = judge_true(make_model(), FakeReward(), episode, "demo", 3, 12, seed=0)
    np.testing.assert_allclose(found, 3 * episode.frames_THWC[4:16].mean(axis=(1, 2, 3)) / 255, rtol=1e-5)


@pytest.mark.parametrize(("first", "steps", "begins"), [(0, 16, [0, 8]), (0, 19, [0, 8, 11]), (5, 8, [5])])
def test_a_judge_of_features_sees_whole_chunks(first, steps, begins, monkeypatch):
    monkeypatch.setattr(true_frames, "CHUNKS", 2)
    model, episode, reward = make_model(), make_episode(0, 24), FeatureReward()
    found = judge_true(model, reward, episode, "demo", first, steps, seed=4)
    assert found.shape == (steps,) and found.dtype == np.float32
    shown = torch.cat([seen.frames_BTHWC for seen in reward.seen])
    assert torch.equal(shown, torch.from_numpy(np.stack([episode.frames_THWC[t + 1 : t + 1 + H] for t in begins])))
    for t in begins:  # one chunk by itself, from what a rollout that starts there knows
        start = [start_state(episode, "demo", t, "", 4)]
        new = model.encode(start, torch.from_numpy(episode.frames_THWC[None, t + 1 : t + 1 + H]))
        noise = normal(tuple(new.shape[1:]), 4, "true-frames/demo", t)[None]
        actions = torch.from_numpy(episode.actions_TA[None, t : t + H])
        features = model.features(model.start(start), actions, new, noise)
        expected = (features.mean(dim=(2, 3, 4))[..., None] * torch.arange(1, 5)).flatten()
        own = (
            slice(t - first, t - first + H) if t == begins[-1] else slice(t - first, t - first + min(H, begins[-1] - t))
        )
        np.testing.assert_allclose(found[own], expected[: own.stop - own.start], rtol=1e-4, atol=1e-5)


def test_the_noise_belongs_to_the_episode_and_the_seed():
    model, episode = make_model(), make_episode(0, 16)
    one, again, other, later = (
        judge_true(model, FeatureReward(), episode, name, 0, 16, seed=seed)
        for name, seed in (("a", 0), ("a", 0), ("b", 0), ("a", 1))
    )
    assert np.array_equal(one, again) and not np.allclose(one, other) and not np.allclose(one, later)
    part = judge_true(model, FeatureReward(), episode, "a", 8, 8, seed=0)
    np.testing.assert_allclose(one[8:], part, rtol=1e-4, atol=1e-5)
