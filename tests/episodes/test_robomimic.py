"""Demonstrations of LIBERO and robomimic: what belongs to what, which way up, which instruction; and bad files."""

from __future__ import annotations

import json
from dataclasses import fields, replace
from pathlib import Path

import h5py
import numpy as np
import pytest

from tests.episodes.demos import SIZE, STEPS, recording, write_libero_own, write_regenerated, write_robomimic
from wovr.core.errors import UserError
from wovr.core.types import Episode
from wovr.episodes.libero_files import libero_task_names, task_language, write_libero
from wovr.episodes.robomimic import demo_names, read_robomimic
from wovr.episodes.store import EpisodeStore

TASK = "pick_up_the_black_bowl"


def make_episode(seed: int, steps: int = STEPS, **facts: object) -> Episode:
    made = recording(seed, steps)
    default = {"suite": "libero_goal", "task_id": 3, "init_id": seed, "policy": "base", "seed": 5, "purpose": "collect"}
    return Episode(
        frames_THWC=made["frames"],
        actions_TA=made["actions"].astype(np.float32),
        success_T=np.arange(steps) == steps - 2,
        states_TS=made["states"],
        wrist_THWC=made["wrist"],
        **(default | {"instruction": "Put it, please, on the plate"} | facts),
    )


def assert_same(left: Episode, right: Episode) -> None:
    for field in fields(Episode):
        a, b = getattr(left, field.name), getattr(right, field.name)
        if isinstance(b, np.ndarray):
            assert a.dtype == b.dtype, field.name
            np.testing.assert_array_equal(a, b, err_msg=field.name)
        else:
            assert a == b and type(a) is type(b), field.name


@pytest.mark.parametrize("joints", [True, False], ids=["joint angles", "attributes alone"])
def test_libero_pairs_an_action_with_the_frame_after_it(tmp_path: Path, joints: bool) -> None:
    path = tmp_path / "libero_goal" / f"{TASK}_demo.hdf5"
    write_libero_own(path, [4, 5], joints=joints)
    first, second = read_robomimic(path)
    made = recording(4)
    np.testing.assert_array_equal(first.frames_THWC, made["frames"][1:])
    np.testing.assert_array_equal(first.wrist_THWC, made["wrist"][1:])
    np.testing.assert_array_equal(first.actions_TA, made["actions"][1:].astype(np.float32))
    assert first.states_TS.shape == (STEPS, 0), "the state after the last action is in no file"
    assert first.success_T.tolist() == [False] * (STEPS - 2) + [True]
    assert (first.instruction, first.suite, first.task_id, first.policy) == (
        task_language(TASK),
        "libero_goal",
        0,
        "human",
    )
    assert (first.init_id, second.init_id, first.purpose) == (0, 1, "demonstrations")


def test_regenerated_files_pair_an_action_with_the_frame_it_was_taken_at(tmp_path: Path) -> None:
    path = tmp_path / "libero_10_no_noops" / f"KITCHEN_SCENE3_{TASK}_demo.hdf5"
    write_regenerated(path, 4)
    (episode,) = read_robomimic(path)
    made = recording(4)
    np.testing.assert_array_equal(episode.frames_THWC, made["frames"][:-1])
    np.testing.assert_array_equal(episode.actions_TA, made["actions"][:-1].astype(np.float32))
    np.testing.assert_array_equal(episode.states_TS, made["states"][:-1])
    assert episode.success_T.tolist() == [False] * (STEPS - 2) + [True], "stands for the frame that is missing"
    assert (episode.instruction, episode.suite) == ("pick up the black bowl", "libero_10")


@pytest.mark.parametrize("next_obs", [True, False])
def test_robomimic_is_upright_and_its_last_frame_comes_from_next_obs(tmp_path: Path, next_obs: bool) -> None:
    path = tmp_path / "image.hdf5"
    write_robomimic(path, 4, next_obs=next_obs)
    with pytest.raises(UserError, match=r"image\.hdf5: expected an instruction .*, found none"):
        next(read_robomimic(path))
    (episode,) = read_robomimic(path, instruction="lift the cube", task_id=2)
    made, frames = recording(4), STEPS + next_obs
    np.testing.assert_array_equal(episode.frames_THWC, made["frames"][:frames])
    np.testing.assert_array_equal(episode.wrist_THWC, made["wrist"][:frames])
    np.testing.assert_array_equal(episode.actions_TA, made["actions"][: frames - 1].astype(np.float32))
    if next_obs:
        assert episode.states_TS.shape == (frames, 0), "the last one is missing"
    else:
        np.testing.assert_array_equal(episode.states_TS, made["states"][:-1])
    assert episode.success_T.tolist() == [False] * 4 + [True] * (1 + next_obs)
    assert (episode.instruction, episode.suite, episode.task_id) == ("lift the cube", "Lift", 2)


def test_choices_of_the_caller(tmp_path: Path) -> None:
    path = tmp_path / f"{TASK}_demo.hdf5"
    write_libero_own(path, [4])
    made = recording(4)
    (episode,) = read_robomimic(path, rotate=False, camera="eye_in_hand_rgb", success="none", purpose="collect")
    np.testing.assert_array_equal(episode.frames_THWC, made["wrist"][1:, ::-1, ::-1])
    assert not episode.success and episode.purpose == "collect"
    assert episode.suite == "libero_spatial", "of the task file, where the folder does not say it"
    (episode,) = read_robomimic(path, size=4, success="last")
    assert episode.frames_THWC.shape == (STEPS, 4, 4, 3) == episode.wrist_THWC.shape
    assert episode.success_T.tolist() == [False] * (STEPS - 2) + [True]
    with h5py.File(path, "r+") as file:
        del file["data/demo_0/rewards"]
    with pytest.raises(UserError, match=r"demo_0: expected success labels .* 'last'"):
        next(read_robomimic(path))
    with pytest.raises(UserError, match=r"demo_0: expected a camera among agentview_rgb, eye_in_hand_rgb, .*'front'"):
        next(read_robomimic(path, camera="front"))


def test_shards_of_the_store_come_back_exactly(tmp_path: Path) -> None:
    episodes = [make_episode(0), replace(make_episode(1), wrist_THWC=None), make_episode(2, steps=0)]
    EpisodeStore(tmp_path).append(episodes)
    for found, episode in zip(read_robomimic(tmp_path / "shard_00000.hdf5"), episodes, strict=True):
        assert_same(found, episode)


def test_what_we_write_comes_back_exactly_and_looks_like_liberos(tmp_path: Path) -> None:
    mixed = [
        make_episode(0),
        make_episode(1, task_id=4, instruction="open it"),
        replace(make_episode(2), wrist_THWC=None),
    ]
    assert write_libero(tmp_path / "libero_goal", iter(mixed)) == 3
    assert [path.name for path in tmp_path.iterdir()] == ["libero_goal"]
    plate, drawer = (
        tmp_path / "libero_goal" / f"{name}_demo.hdf5" for name in ("Put_it_please_on_the_plate", "open_it")
    )
    for path, episodes in {plate: [mixed[0], mixed[2]], drawer: [mixed[1]]}.items():
        for found, episode in zip(read_robomimic(path), episodes, strict=True):
            assert_same(found, episode)
    with h5py.File(plate) as file:
        data = file["data"]
        assert (data.attrs["num_demos"], data.attrs["total"]) == (2, 2 * STEPS)
        assert json.loads(data.attrs["problem_info"])["language_instruction"] == mixed[0].instruction
        assert json.loads(data.attrs["env_args"])["type"] == 1
        demo = data["demo_0"]
        assert demo.attrs["num_samples"] == STEPS
        lengths = {len(demo[key]) for key in ("obs/agentview_rgb", "actions", "rewards", "dones", "states")}
        assert lengths == {STEPS}
        np.testing.assert_array_equal(demo["obs/agentview_rgb"][:], mixed[0].frames_THWC[:-1, ::-1, ::-1])
        assert demo["rewards"][:].tolist() == [0, 0, 0, 0, 1, 0] and demo["dones"][:].tolist() == [0, 0, 0, 0, 0, 1]


FELT = np.random.default_rng(9).normal(size=(STEPS + 1, 8)).astype(np.float32)


def feel(path: Path, *, group: str = "obs", rows: slice, names: tuple[str, ...] = ("ee_pos", "ee_ori")) -> None:
    """Add LIBERO's proprioception, in double precision as its files have it."""
    parts = {"ee_pos": FELT[:, :3], "ee_ori": FELT[:, 3:6], "ee_states": FELT[:, :6], "gripper_states": FELT[:, 6:]}
    with h5py.File(path, "r+") as file:
        demo = file["data/demo_0"]
        demo.pop(f"{group}/ee_states", None)
        for name in (*names, "gripper_states"):
            demo[f"{group}/{name}"] = parts[name][rows].astype(np.float64)


@pytest.mark.parametrize("names", [("ee_pos", "ee_ori"), ("ee_states",)])
def test_proprioception_goes_with_the_frame_that_it_was_observed_with(tmp_path: Path, names: tuple[str, ...]) -> None:
    own, again, lift = tmp_path / f"{TASK}_demo.hdf5", tmp_path / "b" / f"{TASK}_demo.hdf5", tmp_path / "lift.hdf5"
    write_libero_own(own, [4])
    write_regenerated(again, 4)
    write_robomimic(lift, 4, next_obs=True)
    assert next(read_robomimic(own)).proprio_TP is None, "fingers are missing"
    feel(own, rows=slice(1, None), names=names)
    feel(again, rows=slice(0, -1), names=names)
    np.testing.assert_array_equal(next(read_robomimic(own)).proprio_TP, FELT[1:])
    np.testing.assert_array_equal(next(read_robomimic(again)).proprio_TP, FELT[:-1])
    assert next(read_robomimic(own)).proprio_TP.dtype == np.float32
    feel(lift, rows=slice(0, -1), names=names)
    assert next(read_robomimic(lift, instruction="lift")).proprio_TP is None, "the last frame's is missing"
    feel(lift, group="next_obs", rows=slice(1, None), names=names)
    np.testing.assert_array_equal(next(read_robomimic(lift, instruction="lift")).proprio_TP, FELT)
    change(own, "data/demo_0/obs/gripper_states", FELT[:2, 6:])
    with pytest.raises(UserError, match="gripper_states: expected 6 rows, as many as actions, found 2"):
        next(read_robomimic(own))


@pytest.mark.parametrize(("suite", "size"), [("libero_goal", 8), ("libero_goal", 3), ("kitchen", 8), ("kitchen", 1)])
def test_proprioception_that_we_write_comes_back_exactly(tmp_path: Path, suite: str, size: int) -> None:
    whole = replace(make_episode(0, suite=suite), proprio_TP=np.tile(FELT, 2)[:, :size].copy())
    still = replace(make_episode(2, steps=0, suite=suite), proprio_TP=whole.proprio_TP[:1])
    write_libero(tmp_path / "files", [whole, still, make_episode(3, suite=suite)])
    (path,) = (tmp_path / "files").iterdir()
    for found, episode in zip(read_robomimic(path), (whole, still, make_episode(3, suite=suite)), strict=True):
        assert_same(found, episode)
    with h5py.File(path) as file:
        obs = file["data/demo_0/obs"]
        if (suite, size) == ("libero_goal", 8):
            np.testing.assert_array_equal(obs["ee_ori"][:], FELT[:-1, 3:6])
            assert (obs["ee_pos"].shape, obs["gripper_states"].shape) == ((STEPS, 3), (STEPS, 2))
        assert ("proprio" in obs) == ((suite, size) != ("libero_goal", 8)), "LIBERO's names are for LIBERO's robot"
    EpisodeStore(tmp_path / "store").append([whole, still])
    for found, episode in zip(read_robomimic(tmp_path / "store" / "shard_00000.hdf5"), (whole, still), strict=True):
        assert_same(found, episode)


def test_tasks_of_the_same_words_have_files_of_their_own(tmp_path: Path) -> None:
    twins = [make_episode(0, instruction="close it", task_id=task) for task in (0, 1)]
    write_libero(tmp_path / "out", twins)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["close_it_1_demo.hdf5", "close_it_demo.hdf5"]


def test_a_failed_writer_leaves_nothing_and_overwrites_nothing(tmp_path: Path) -> None:
    def episodes():
        yield make_episode(0)
        raise UserError("the source ends here")

    with pytest.raises(UserError, match="ends here"):
        write_libero(tmp_path / "out", episodes())
    assert not list(tmp_path.iterdir())
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "cat.png").touch()
    with pytest.raises(UserError, match=r"out: expected a new or empty folder, found other files"):
        write_libero(tmp_path / "out", [make_episode(0)])
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["cat.png"]


def test_task_names() -> None:
    assert task_language("LIVING_ROOM_SCENE10_put_it_there") == "put it there"
    names = libero_task_names("libero_goal")
    assert not names or (len(names) == 10 and names[7] == "turn_on_the_stove")
    assert libero_task_names("tabletop") == []


def change(path: Path, key: str, value: object) -> None:
    with h5py.File(path, "r+") as file:
        del file[key]
        if value is not None:
            file[key] = value


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("data/demo_0/actions", None, "demo_0: expected a complete HDF5 episode, found .*actions"),
        ("data/demo_0/obs", None, "demo_0: expected a camera|demo_0: expected a complete HDF5 episode"),
        ("data/demo_0/actions", np.zeros((4, 7)), "rewards: expected 4 rows, as many as actions, found 6"),
        ("data/demo_0/obs/agentview_rgb", np.zeros((6, 8, 8, 3)), r"expected \(N, height, width, 3\) of uint8"),
        ("data/demo_0/obs/agentview_rgb", np.zeros((5, 8, 8, 3), np.uint8), "expected 6 rows"),
        ("data/demo_0/actions", 3.0, "actions: expected an array"),
        ("data/demo_0", None, "expected demonstrations"),
        ("data", None, "expected demonstrations"),
    ],
)
def test_what_is_missing_or_uneven_is_named(tmp_path: Path, key: str, value: object, message: str) -> None:
    path = tmp_path / f"{TASK}_demo.hdf5"
    write_libero_own(path, [4])
    change(path, key, value)
    with pytest.raises(UserError, match=message) as error:
        list(read_robomimic(path))
    assert str(path) in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("keep", [0, 100, 0.5, 0.95])
def test_truncated_files_are_named(tmp_path: Path, keep: float) -> None:
    path = tmp_path / f"{TASK}_demo.hdf5"
    write_libero_own(path, [4])
    content = path.read_bytes()
    path.write_bytes(content[: int(keep * len(content)) if keep < 1 else int(keep)])
    with pytest.raises(UserError, match=r"_demo\.hdf5: expected"):
        list(read_robomimic(path))
    with pytest.raises(UserError, match=r"none\.hdf5"):
        demo_names(tmp_path / "none.hdf5")


def test_one_demonstration_is_read_at_a_time(tmp_path: Path) -> None:
    path = tmp_path / f"{TASK}_demo.hdf5"
    write_libero_own(path, [4, 5])
    change(path, "data/demo_1/actions", None)
    episodes = read_robomimic(path)
    assert next(episodes).frames_THWC.shape == (STEPS, SIZE, SIZE, 3)
    with pytest.raises(UserError, match="demo_1"):
        next(episodes)
