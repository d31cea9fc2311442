"""Mirror images of episodes: what changes in them, and that the tabletop could have shown them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tests.episodes.test_store import make_episode
from wovr.core.config import load_config
from wovr.core.errors import UserError
from wovr.core.types import Actions, Frames
from wovr.envs.tabletop import Tabletop, TabletopConfig, play_scene
from wovr.envs.tabletop.scene import TABLE, Scene
from wovr.episodes.mirror import mirrored, with_mirror_images
from wovr.episodes.store import EpisodeStore
from wovr.stages.experiment import Experiment
from wovr.stages.pretrain import PretrainConfig

CONFIGS = Path(__file__).parents[2] / "configs"


def test_left_and_right_change_places(tmp_path: Path) -> None:
    store = EpisodeStore(tmp_path)
    (name,) = store.append([make_episode(0)])
    stored = store.open(name)
    image = mirrored(stored, [0])
    frames = stored.frames_THWC[:]
    for rows in (slice(None), 3, [1, 1, 0]):
        np.testing.assert_array_equal(image.frames_THWC[rows], np.flip(frames[rows], axis=-2))
        assert image.frames_THWC[rows].flags.c_contiguous, "torch takes it"
    assert len(image.frames_THWC) == len(frames) and image.frames_THWC.shape == frames.shape
    np.testing.assert_array_equal(image.actions_TA, stored.actions_TA * np.array([-1, 1, 1], np.float32))
    np.testing.assert_array_equal(image.success_T, stored.success_T)
    assert image.states_TS.shape == (len(stored) + 1, 0), "whose image nobody knows"


def test_mirror_images_follow_the_episodes() -> None:
    episodes = [make_episode(0), make_episode(1)]
    found = with_mirror_images(episodes, [1])
    assert found[:2] == episodes and [episode.seed for episode in found] == [0, 1, 0, 1]
    assert with_mirror_images(episodes, []) == episodes


def mirror_scene(scene: Scene) -> Scene:
    def flip(points: np.ndarray) -> np.ndarray:
        return np.stack([TABLE - points[..., 0], points[..., 1]], axis=-1)

    return replace(scene, gripper=flip(scene.gripper), blocks=flip(scene.blocks), plates=flip(scene.plates))


def play(scenes: list[Scene], actions_TBA: Actions) -> tuple[Frames, np.ndarray]:
    simulator = Tabletop(TabletopConfig())
    seen = [simulator.reset_scenes(scenes, [0] * len(scenes)), *map(simulator.step, actions_TBA)]
    return np.stack([one.frames_BHWC for one in seen], 1), np.stack([one.states_BS for one in seen], 1)


def test_the_tabletop_is_the_same_seen_in_a_mirror() -> None:
    """But for the shadow of a block that is carried, which falls to the right, and for few jams of a block between two
    things, where the solver's order decides."""
    rng = np.random.default_rng(0)
    scenes = [play_scene(rng) for _ in range(30)]
    actions_TBA = np.repeat(rng.uniform(-1, 1, (8, 30, 3)), 5, axis=0).astype(np.float32)
    frames, states = play(scenes, actions_TBA)
    other, _ = play([mirror_scene(scene) for scene in scenes], actions_TBA * np.array([-1, 1, 1], np.float32))
    pushed = (np.abs(states[:, -1, 4:] - states[:, 0, 4:]) > 1).any(axis=1)
    assert pushed.sum() > 10, "contact is mirrored too"
    held_BT = states[:, :, 3] >= 0
    images = [mirrored(replace(make_episode(steps=40), frames_THWC=seen), [0]).frames_THWC[:] for seen in frames]
    differs_BT = (np.abs(np.stack(images).astype(int) - other).max(axis=-1) > 3).sum(axis=(2, 3))
    assert (differs_BT[~held_BT] == 0).mean() > 0.9
    assert held_BT.sum() > 10 and differs_BT[held_BT].max() < 120


@pytest.mark.parametrize("dims", [(2,), (-1,), (0, 5)])
def test_only_motions_are_mirrored(dims: tuple[int, ...]) -> None:
    for kind, key, file in (
        (Experiment, "world_model.mirror", "tabletop.yaml"),
        (PretrainConfig, "mirror", "pretrain.yaml"),
    ):
        with pytest.raises(UserError, match="mirror: expected dims from 0 to 1, found"):
            load_config(kind, CONFIGS / file, [f"{key}={list(dims)}"])
