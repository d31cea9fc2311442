"""A reader of LeRobot datasets written from the format's description alone, as a second opinion on what wovr writes.

It imports nothing of wovr. It follows `info.json`'s templates, the metadata files of each version and the timestamps,
as a user of the format would: docs/source/lerobot-dataset-v3.mdx and, for v2.1, the description in LeRobotDataset.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import av
import numpy as np
import pyarrow.parquet as pq


@dataclass
class Recording:
    """One episode: columns by name, frames by camera, the text of its task, its row of the metadata."""

    columns: dict[str, np.ndarray]
    frames: dict[str, np.ndarray]
    task: str
    meta: dict[str, Any]


def read_dataset(folder: Path) -> tuple[dict[str, Any], list[Recording], dict[str, Any]]:
    """(info.json, episodes, statistics): of the whole dataset in v3.0, by episode in v2.1."""
    info = json.loads((folder / "meta/info.json").read_text(encoding="utf-8"))
    if info["codebase_version"] == "v2.1":
        tasks = {row["task_index"]: row["task"] for row in json_lines(folder / "meta/tasks.jsonl")}
        metas = json_lines(folder / "meta/episodes.jsonl")
        stats = {row["episode_index"]: row["stats"] for row in json_lines(folder / "meta/episodes_stats.jsonl")}
    else:
        table = pq.read_table(folder / "meta/tasks.parquet").to_pydict()
        tasks = dict(zip(table["task_index"], table["task"], strict=True))
        paths = sorted((folder / "meta/episodes").rglob("*.parquet"))
        metas = [row for path in paths for row in pq.read_table(path).to_pylist()]
        stats = json.loads((folder / "meta/stats.json").read_text())
    episodes = [read_episode(folder, info, meta, tasks) for meta in metas]
    return info, episodes, stats


def read_episode(folder: Path, info: dict[str, Any], meta: dict[str, Any], tasks: dict[int, str]) -> Recording:
    index = meta["episode_index"]
    cameras = [key for key, feature in info["features"].items() if feature["dtype"] == "video"]
    if info["codebase_version"] == "v2.1":
        where = {"episode_chunk": index // info["chunks_size"], "episode_index": index}
        table = pq.read_table(folder / info["data_path"].format(**where))
        videos = {key: folder / info["video_path"].format(video_key=key, **where) for key in cameras}
        starts = dict.fromkeys(cameras, 0.0)
    else:
        where = {"chunk_index": meta["data/chunk_index"], "file_index": meta["data/file_index"]}
        table = pq.read_table(folder / info["data_path"].format(**where))
        first = table["index"][0].as_py()  # rows of the file count on from here
        table = table.slice(meta["dataset_from_index"] - first, meta["dataset_to_index"] - meta["dataset_from_index"])
        videos, starts = {}, {}
        for key in cameras:
            where = {name: meta[f"videos/{key}/{name}"] for name in ("chunk_index", "file_index")}
            videos[key] = folder / info["video_path"].format(video_key=key, **where)
            starts[key] = meta[f"videos/{key}/from_timestamp"]
    columns = {name: np.array(table[name].to_pylist()) for name in table.column_names}
    (task_index,) = set(columns["task_index"].tolist())
    frames = {key: frames_at(videos[key], starts[key] + columns["timestamp"]) for key in cameras}
    return Recording(columns, frames, tasks[task_index], meta)


def frames_at(path: Path, times: np.ndarray) -> np.ndarray:
    """The frame nearest to each time, which must be within LeRobot's tolerance of 1e-4 s."""
    with av.open(str(path)) as container:
        decoded = [(frame.time, frame.to_ndarray(format="rgb24")) for frame in container.decode(video=0)]
    found = np.array([time for time, _ in decoded])
    nearest = np.abs(found[None] - times[:, None]).argmin(axis=1)
    assert np.abs(found[nearest] - times).max() < 1e-4
    return np.stack([decoded[i][1] for i in nearest])


def json_lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
