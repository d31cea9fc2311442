"""What LeRobot's dataset format fixes, versions v2.1 and v3.0, and the facts in `meta/info.json`.

Taken from huggingface/lerobot: v2.1 from release 0.3.3 (`lerobot/datasets/{utils,lerobot_dataset,compute_stats}.py`),
v3.0 from releases 0.4 to 0.6 (`dataset_metadata.py`, `dataset_writer.py`, `dataset_reader.py`, `video_utils.py` beside
them, and `docs/source/lerobot-dataset-v3.mdx`). v2.0 differs from v2.1 only in its statistics, which are not read.

    v2.1  meta/info.json  meta/tasks.jsonl  meta/episodes.jsonl  meta/episodes_stats.jsonl
          data/chunk-000/episode_000000.parquet           one episode per file, chunks_size episodes per chunk
          videos/chunk-000/KEY/episode_000000.mp4         likewise, for every camera KEY
    v3.0  meta/info.json  meta/tasks.parquet  meta/stats.json
          meta/episodes/chunk-000/file-000.parquet        one row per episode: where its rows and frames are, statistics
          data/chunk-000/file-000.parquet                 many episodes per file, chunks_size files per chunk
          videos/KEY/chunk-000/file-000.mp4               many episodes per file, told apart by timestamps

Names under data/ and videos/ follow the templates in `info.json`, the others are fixed. A camera of dtype `video` is
in the mp4 files, one of dtype `image` in the parquet files as encoded pictures. A sample is a frame with the action
taken at it, so an episode has as many actions as frames; `next.reward`, `next.done` and `next.success` tell what that
action led to. `observation.state` is what the robot feels of itself: in LIBERO's datasets the eight numbers of
`wovr.envs.libero.scene.Glance`.

wovr adds what LeRobot skips: the key `wovr` in `info.json` (`Written`) and per episode `Facts`, as keys `wovr/...` in
episodes.jsonl (v2.1) or as columns of these names in meta/episodes (v3.0). LeRobot's converter from v2.1 to v3.0 keeps
both.
"""

from __future__ import annotations

import re
from pathlib import Path, PurePosixPath
from string import Formatter
from typing import Any, Literal

from pydantic import Field, field_validator

from wovr.core.checkpoint import read_json
from wovr.core.config import Config, validate
from wovr.core.errors import UserError

INFO, STATS = "meta/info.json", "meta/stats.json"
TASKS_V2, EPISODES_V2, EPISODE_STATS_V2 = "meta/tasks.jsonl", "meta/episodes.jsonl", "meta/episodes_stats.jsonl"
TASKS_V3, EPISODES_V3 = "meta/tasks.parquet", "meta/episodes/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"

DATA_PATH = {
    "v2.1": "data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet",
    "v3.0": "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet",
}
VIDEO_PATH = {
    "v2.1": "videos/chunk-{episode_chunk:03d}/{video_key}/episode_{episode_index:06d}.mp4",
    "v3.0": "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4",
}
PLACEHOLDERS = ("episode_chunk", "episode_index", "video_key", "chunk_index", "file_index")

ACTION, STATE, PROPRIO = "action", "observation.environment_state", "observation.state"
REWARD, DONE, SUCCESS = "next.reward", "next.done", "next.success"
CAMERA, WRIST = "observation.images.image", "observation.images.image2"
"""Agent view and wrist view as LeRobot names them for LIBERO (its `docs/source/libero.mdx`)."""


class Feature(Config, extra="ignore"):
    """One column or camera."""

    dtype: str
    """numpy's name, or `video`, `image`, `string`."""
    shape: tuple[int, ...]
    """Of one sample; `(1,)` is stored as a scalar."""
    info: dict[str, Any] | None = None
    """Of the video stream, in v3.0 and in late v2.1."""
    video_info: dict[str, Any] | None = None
    """The same by its older name."""

    @property
    def is_camera(self) -> bool:
        """Whether it holds colour pictures; depth maps do not count."""
        about = {**(self.video_info or {}), **(self.info or {})}
        depth = about.get("is_depth_map") or about.get("video.is_depth_map")
        return self.dtype in ("video", "image") and not depth


class Written(Config, extra="ignore"):
    """What `write_lerobot` adds to `info.json`."""

    padded_samples: Literal[1]
    """At the end of every episode one sample whose action is `no_motion` and whose result repeats the one before."""
    camera: str
    """Key of the agent view."""
    wrist: str | None
    """Key of the wrist view."""


class Facts(Config, extra="ignore"):
    """What is known of one episode beside its samples. Fields as in `wovr.core.types.Episode`."""

    suite: str
    task_id: int
    init_id: int
    policy: str
    seed: int
    purpose: str


class DatasetInfo(Config, extra="ignore"):
    """`meta/info.json`."""

    codebase_version: Literal["v2.0", "v2.1", "v3.0"]
    fps: float = Field(gt=0)
    """Frames per second."""
    features: dict[str, Feature]
    total_episodes: int = Field(ge=0)
    total_frames: int = Field(ge=0)
    """Samples of all episodes."""
    chunks_size: int = Field(1000, ge=1)
    """Files per chunk, which in v2.1 is episodes per chunk."""
    data_path: str
    """Template, see `PLACEHOLDERS`."""
    video_path: str | None = None
    """Template; none where no camera is stored as video."""
    wovr: Written | None = None

    @field_validator("data_path", "video_path")
    @classmethod
    def _is_template(cls, template: str | None) -> str | None:
        for _, name, width, conversion in Formatter().parse(template or ""):
            if name is not None and (
                name not in PLACEHOLDERS or conversion or not re.fullmatch(r"(0\dd)?", width or "")
            ):
                raise ValueError(f"expected placeholders among {', '.join(PLACEHOLDERS)}")
        return template

    @property
    def cameras(self) -> list[str]:
        """Keys of the colour cameras."""
        return [key for key, feature in self.features.items() if feature.is_camera]


def load_info(folder: Path) -> DatasetInfo:
    """`meta/info.json` of the dataset in `folder`; UserError naming the file and the key that does not fit."""
    raw = read_json(folder / INFO)
    if not isinstance(raw, dict):
        raise UserError(f"{folder / INFO}: expected keys and values, found {type(raw).__name__}")
    info = validate(DatasetInfo, raw, str(folder / INFO))
    if any(info.features[key].dtype == "video" for key in info.cameras) and info.video_path is None:
        raise UserError(f"{folder / INFO}: key 'video_path': expected a template for its videos, found none")
    return info


def fill(folder: Path, template: str, **placeholders: int | str) -> Path:
    """The path that a template gives, never outside of `folder`."""
    try:
        path = PurePosixPath(template.format(**placeholders))
    except KeyError as error:
        raise UserError(
            f"{folder / INFO}: template {template!r}: expected {', '.join(placeholders)}, found {error.args[0]}"
        ) from None
    except ValueError:  # an index that is no whole number
        raise UserError(f"{folder / INFO}: template {template!r}: expected numbers, found {placeholders}") from None
    if path.is_absolute() or ".." in path.parts:
        raise UserError(f"{folder / INFO}: template {template!r}: expected a path inside the dataset, found {path}")
    return folder / path
