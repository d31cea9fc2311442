"""Datasets that wovr did not write: laid out as LeRobot's own writer does it, and what is wrong with some."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import av
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.episodes.lerobot.scenes import FPS, encode, foreign_actions, foreign_dataset, make_episode, psnr, video
from wovr.core.errors import UserError
from wovr.core.types import Episode
from wovr.episodes.lerobot import read_lerobot, write_lerobot

BOTH = pytest.mark.parametrize("version", ["v2.1", "v3.0"])
LENGTHS = (6, 9, 4)


def read(folder: Path, **arguments: Any) -> list[Episode]:
    return list(read_lerobot(folder, purpose="convert", policy="human", **arguments))


def edit(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    value = json.loads(path.read_text())
    change(value)
    path.write_text(json.dumps(value))


def rewrite(path: Path, change: Callable[[pa.Table], pa.Table]) -> None:
    pq.write_table(change(pq.read_table(path)), path)


def replaced(name: str, values: Any) -> Callable[[pa.Table], pa.Table]:
    return lambda table: table.set_column(table.column_names.index(name), name, pa.array(values))


@BOTH
@pytest.mark.parametrize("images", [False, True])
def test_a_foreign_dataset_is_read(tmp_path: Path, version: str, images: bool) -> None:
    foreign_dataset(tmp_path / "pusht", version, images=images)
    episodes = read(tmp_path / "pusht")
    assert [len(episode) for episode in episodes] == [5, 8, 3]
    for index, (episode, length) in enumerate(zip(episodes, LENGTHS, strict=True)):
        expected = video(length, index)
        assert episode.frames_THWC.shape == expected.shape
        assert np.array_equal(episode.frames_THWC, expected) if images else psnr(episode.frames_THWC, expected) > 30
        np.testing.assert_array_equal(episode.actions_TA, foreign_actions(index, length)[:-1])
        assert episode.actions_TA.dtype == np.float32
        assert episode.success_T.tolist() == [False] * (length - 2) + [True], "the last sample's, one step early"
        assert episode.states_TS.shape == (length, 0) and episode.wrist_THWC is None
        np.testing.assert_array_equal(episode.proprio_TP, foreign_actions(index, length), "what the dataset has there")
        assert (episode.instruction, episode.suite, episode.task_id) == ("push the T", "pusht", 0)
        assert (episode.init_id, episode.policy, episode.purpose) == (index, "human", "convert")


@BOTH
def test_success_is_what_is_asked_for(tmp_path: Path, version: str) -> None:
    foreign_dataset(tmp_path, version)
    assert [e.success_T.tolist()[-2:] for e in read(tmp_path, success="last")] == [[False, True]] * 3
    assert not any(e.success for e in read(tmp_path, success="none"))

    def without(*names: str) -> Callable[[dict[str, Any]], object]:
        return lambda info: [info["features"].pop(name) for name in names]

    edit(tmp_path / "meta/info.json", without("next.success"))
    assert all(e.success for e in read(tmp_path)), "the reward of 0 and 1 tells"
    edit(tmp_path / "meta/info.json", without("next.reward"))
    with pytest.raises(UserError, match=r"expected next.success or next.reward .* success=last or success=none"):
        read(tmp_path)
    assert len(read(tmp_path, success="none")) == 3


def test_a_graded_reward_is_not_taken_for_success(tmp_path: Path) -> None:
    foreign_dataset(tmp_path, "v2.1")
    edit(tmp_path / "meta/info.json", lambda info: info["features"].pop("next.success"))
    path = tmp_path / "data/chunk-000/episode_000001.parquet"
    rewrite(path, replaced("next.reward", np.linspace(0, 1, 9, dtype=np.float32)))
    with pytest.raises(UserError, match=r"episode_000001.parquet: episode 1: .*expected 0 or 1, found 0.125; say"):
        read(tmp_path)


@BOTH
def test_frames_become_squares_of_the_whole_view(tmp_path: Path, version: str) -> None:
    foreign_dataset(tmp_path, version, lengths=(4, 4, 4))
    for number, path in enumerate(sorted(tmp_path.rglob("*.mp4"))):
        frames = np.full((8 if version == "v3.0" and number == 0 else 4, 48, 96, 3), 20, np.uint8)
        frames[:, :, :24] = 220  # a quarter of the width
        encode(path, frames)
    for episode in read(tmp_path, size=32):
        assert episode.frames_THWC.shape == (4, 32, 32, 3)
        grey = episode.frames_THWC.mean(axis=(0, 1, 3))
        assert (grey[:7] > 200).all() and (grey[9:] < 40).all()


@BOTH
@pytest.mark.parametrize("options", [{"codec": "libsvtav1", "preset": "10"}, {"g": "40", "bf": "3"}])
def test_other_encodings_are_read(tmp_path: Path, version: str, options: dict[str, str]) -> None:
    """AV1, LeRobot's default; and H.264 with one keyframe in front and frames that are stored out of order."""
    foreign_dataset(tmp_path, version, lengths=(7, 9, 5))
    scenes = [video(length, index) for index, length in enumerate((7, 9, 5))]
    if version == "v3.0":
        scenes = [np.concatenate(scenes[:2]), scenes[2]]
    try:
        for path, frames in zip(sorted(tmp_path.rglob("*.mp4")), scenes, strict=True):
            encode(path, frames, **options)
    except av.codec.codec.UnknownCodecError:
        pytest.skip("this build of av has no encoder for AV1")
    for index, episode in enumerate(read(tmp_path)):
        for frame, expected in zip(episode.frames_THWC, video(len(episode) + 1, index), strict=True):
            assert psnr(frame, expected) > 25, "a neighbouring frame has 22 dB"


def test_version_2_0_is_read_as_2_1(tmp_path: Path) -> None:
    foreign_dataset(tmp_path, "v2.1")
    edit(tmp_path / "meta/info.json", lambda info: info.update(codebase_version="v2.0"))
    assert len(read(tmp_path)) == 3


def test_cameras_are_chosen_by_key(tmp_path: Path) -> None:
    write_lerobot(tmp_path / "set", [make_episode(0, 4, wrist=True)], version="v3.0", fps=FPS)
    edit(tmp_path / "set/meta/info.json", lambda info: info.pop("wovr"))
    with pytest.raises(UserError, match=r"the key of one as camera, found 2: .*images.image, .*images.image2"):
        read(tmp_path / "set")
    hand = "observation.images.image2"
    (episode,) = read(tmp_path / "set", camera=hand, wrist="observation.images.image")
    assert episode.frames_THWC.shape[1:3] == (32, 40) and episode.wrist_THWC is not None
    with pytest.raises(UserError, match=r"camera 'top': expected one of observation.images.image, "):
        read(tmp_path / "set", camera="top")


BAD_INFO: list[tuple[Callable[[dict[str, Any]], object], str]] = [
    (lambda info: info.update(codebase_version="v1.6"), r"'codebase_version': .*'v2.1' or 'v3.0', found 'v1.6'"),
    (lambda info: info.pop("features"), "'features': field required"),
    (lambda info: info.pop("data_path"), "'data_path': field required"),
    (lambda info: info.update(data_path="{episode_index.__class__}"), "'data_path': expected placeholders among"),
    (lambda info: info.update(data_path="{episode_index:0999999d}"), "'data_path': expected placeholders among"),
    (lambda info: info.update(data_path="../1.parquet"), "expected a path inside the dataset, found ../1.parquet"),
    (
        lambda info: info.update(data_path="{file_index:03d}-{episode_index}"),
        r"expected \w+_index, .*, found \w+_index",
    ),
    (lambda info: info.update(fps=0), "'fps': input should be greater than 0, found 0"),
    (lambda info: info.update(video_path=None), "'video_path': expected a template for its videos"),
    (lambda info: info.update(total_episodes=5), "expected 5 episodes in meta, found 3"),
    (lambda info: info["features"].pop("action"), "expected a feature 'action'"),
    (lambda info: info["features"].pop("observation.image"), "expected one colour camera .* found none"),
]


@BOTH
@pytest.mark.parametrize(("change", "message"), BAD_INFO)
def test_bad_info_is_one_line(
    tmp_path: Path, version: str, change: Callable[[dict[str, Any]], object], message: str
) -> None:
    foreign_dataset(tmp_path, version)
    edit(tmp_path / "meta/info.json", change)
    with pytest.raises(UserError, match=rf"info\.json: .*{message}") as caught:
        read_lerobot(tmp_path, purpose="convert", policy="human")  # before any episode is read
    assert "\n" not in str(caught.value)


@BOTH
@pytest.mark.parametrize("pattern", ["meta/info.json", "meta/tasks.*", "meta/episodes*", "data/*/*", "videos/**/*.mp4"])
@pytest.mark.parametrize("damage", ["missing", "empty", "truncated"])
def test_bad_files_are_named(tmp_path: Path, version: str, pattern: str, damage: str) -> None:
    foreign_dataset(tmp_path, version)
    path = sorted(path for path in tmp_path.glob(pattern))[0]
    if path.is_dir():
        path = next(path.glob("*/*"))
    content = path.read_bytes()
    if damage == "missing":
        path.unlink()
    else:
        path.write_bytes(content[: 0 if damage == "empty" else len(content) // 2])
    with pytest.raises(UserError) as caught:
        read(tmp_path)
    said = str(caught.value)
    named = path.parents[1] if damage == "missing" and path.parent.parent.name == "episodes" else path
    if pattern != "meta/episodes*" or version == "v3.0" or damage != "empty":
        assert str(named) in said
    assert ": expected " in said and "found" in said and "\n" not in said


@BOTH
def test_a_video_with_its_index_in_front_but_no_end_is_named(tmp_path: Path, version: str) -> None:
    write_lerobot(tmp_path / "set", [make_episode(i, 20) for i in range(2)], version=version, fps=FPS)
    path = sorted((tmp_path / "set").rglob("*.mp4"))[-1]
    path.write_bytes(path.read_bytes()[:-300])
    with pytest.raises(UserError, match=rf"{path.name}: episode 1: expected .* found"):
        read(tmp_path / "set")


def test_damage_in_a_video_is_named(tmp_path: Path) -> None:
    write_lerobot(tmp_path / "set", [make_episode(0, 20)], version="v2.1", fps=FPS)
    (path,) = (tmp_path / "set").rglob("*.mp4")
    content = path.read_bytes()
    middle = (content.index(b"mdat") + len(content)) // 2
    path.write_bytes(content[:middle] + bytes(200) + content[middle + 200 :])
    with pytest.raises(UserError, match=r"episode_000000.mp4: episode 0: expected .* found"):
        read(tmp_path / "set")


@pytest.mark.parametrize(("frames", "message"), [(8, "expected 9 frames, found 8"), (11, "expected 9 frames .* more")])
def test_frames_and_samples_must_match(tmp_path: Path, frames: int, message: str) -> None:
    foreign_dataset(tmp_path, "v2.1")
    encode(tmp_path / "videos/chunk-000/observation.image/episode_000001.mp4", video(frames, 1))
    with pytest.raises(UserError, match=rf"episode_000001.mp4: episode 1: {message}"):
        read(tmp_path)


def test_frames_must_be_where_the_timestamps_say(tmp_path: Path) -> None:
    foreign_dataset(tmp_path, "v2.1")
    encode(tmp_path / "videos/chunk-000/observation.image/episode_000000.mp4", video(6, 0), fps=2 * FPS)
    with pytest.raises(UserError, match=r"expected frame 1 of 6 at 0.100 s, found 0.050 s"):
        read(tmp_path)


def test_video_ranges_must_have_the_length_of_the_episode(tmp_path: Path) -> None:
    foreign_dataset(tmp_path, "v3.0")
    path = tmp_path / "meta/episodes/chunk-000/file-000.parquet"
    rewrite(path, replaced("videos/observation.image/to_timestamp", [0.8, 1.5, 0.4]))
    with pytest.raises(UserError, match=r"episode 0: expected 6 frames of observation.image, found 0.000 s to 0.800 s"):
        read(tmp_path)


BAD_ROWS: list[tuple[str, Any, str]] = [
    ("action", [[0.0, np.inf]] * 6, "'action': expected finite numbers, found inf"),
    ("action", [[0.0, None]] * 6, "'action': expected finite numbers, found nan"),
    ("action", [[0.0]] * 6, "expected 2 action numbers, found 1"),
    ("action", [[0.0]] * 5 + [[0.0, 1.0]], "'action': expected numbers"),
    ("frame_index", [0, 1, 2, 2, 4, 5], "'frame_index': expected 0 to 5 in order"),
    ("task_index", [0, 0, 0, 1, 1, 1], "'task_index': expected one task of the 1 in meta, found 0, 1"),
    ("task_index", [7] * 6, "'task_index': expected one task of the 1 in meta, found 7"),
    ("episode_index", [0, 0, 0, 1, 1, 1], "expected 6 rows of episode 0, found 3 of episode 0"),
]


@pytest.mark.parametrize(("name", "values", "message"), BAD_ROWS)
def test_bad_samples_are_named(tmp_path: Path, name: str, values: Any, message: str) -> None:
    foreign_dataset(tmp_path, "v2.1")
    rewrite(tmp_path / "data/chunk-000/episode_000000.parquet", replaced(name, values))
    with pytest.raises(UserError, match=rf"episode_000000.parquet: .*{message}") as caught:
        read(tmp_path)
    assert "\n" not in str(caught.value)


@BOTH
def test_a_missing_column_is_named(tmp_path: Path, version: str) -> None:
    foreign_dataset(tmp_path, version)
    path = sorted((tmp_path / "data").rglob("*.parquet"))[0]
    rewrite(path, lambda table: table.drop_columns(["action"]))
    with pytest.raises(UserError, match=rf"{path.name}: expected a column 'action', found "):
        read(tmp_path)


def test_bad_pictures_are_named(tmp_path: Path) -> None:
    foreign_dataset(tmp_path, "v2.1", images=True)
    bad = [{"bytes": b"no picture", "path": "x.png"}] * 6
    rewrite(tmp_path / "data/chunk-000/episode_000000.parquet", replaced("observation.image", bad))
    with pytest.raises(UserError, match=r"episode 0: column 'observation.image', sample 0: expected a picture, found"):
        read(tmp_path)


def test_episodes_are_read_one_at_a_time(tmp_path: Path) -> None:
    """The first episodes come although the file of the last is damaged."""
    foreign_dataset(tmp_path, "v3.0")
    (tmp_path / "data/chunk-000/file-001.parquet").write_bytes(b"damaged")
    episodes = read_lerobot(tmp_path, purpose="convert", policy="human")
    assert [len(next(episodes)), len(next(episodes))] == [5, 8]
    with pytest.raises(UserError, match=r"file-001.parquet: expected a complete parquet file"):
        next(episodes)
