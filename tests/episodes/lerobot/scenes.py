"""Episodes and datasets to convert: smooth moving pictures, since a video codec is made for those."""

from __future__ import annotations

import io
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import av
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from wovr.core.types import Episode, Frames

FPS = 10


def picture(step: int, scene: int, height: int = 48, width: int = 48) -> Frames:
    """A bright disc on a gradient; where it is tells `step`, the tint tells `scene`."""
    y, x = np.mgrid[:height, :width]
    disc = (x - width * (0.2 + 0.05 * step)) ** 2 + (y - height / 2) ** 2 < (height / 6) ** 2
    grey = np.where(disc, 230, 60 + 80 * y / height)
    return np.stack([grey, grey * 0.9, grey * (0.5 + 0.1 * (scene % 5))], axis=-1).astype(np.uint8)


def video(steps: int, scene: int, height: int = 48, width: int = 48) -> Frames:
    return np.stack([picture(step, scene, height, width) for step in range(steps)])


def make_episode(seed: int, steps: int, *, states: int = 5, wrist: bool = False, action_dim: int = 3) -> Episode:
    rng = np.random.default_rng(seed)
    return Episode(
        frames_THWC=video(steps + 1, seed),
        actions_TA=rng.normal(size=(steps, action_dim)).astype(np.float32),
        success_T=np.arange(steps) >= steps - seed,
        states_TS=rng.normal(size=(steps + 1, states)),
        instruction=("put the red block on the plate", "stelle den Würfel auf „grün“ 🟩")[seed % 2],
        suite="tabletop",
        task_id=3 - seed % 2,
        init_id=100 + seed,
        policy="base",
        seed=2**40 + seed,
        purpose="refine-1",
        wrist_THWC=video(steps + 1, seed + 3, 32, 40) if wrist else None,
    )


def psnr(left: Frames, right: Frames) -> float:
    return float(10 * np.log10(255**2 / np.mean((left.astype(float) - right) ** 2)))


def encode(path: Path, frames: Frames, fps: int = FPS, codec: str = "libx264", **options: str) -> None:
    """One mp4 file; LeRobot's defaults are the codec libsvtav1 and g=2, a keyframe every second frame."""
    # For root, SVT-AV1 makes the thread that opens it a real-time one, and the tests after it would starve the machine.
    with ThreadPoolExecutor(1) as thread:
        thread.submit(_encode, path, frames, fps, codec, options).result()


def _encode(path: Path, frames: Frames, fps: int, codec: str, options: dict[str, str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=fps, options={"g": "2", "crf": "20", **options})
        stream.height, stream.width, stream.pix_fmt = *frames.shape[1:3], "yuv420p"
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")))
        container.mux(stream.encode())


def png(frame: Frames) -> dict[str, Any]:
    file = io.BytesIO()
    Image.fromarray(frame).save(file, "PNG")
    return {"bytes": file.getvalue(), "path": "frame-000000.png"}


def foreign_dataset(folder: Path, version: str, lengths: tuple[int, ...] = (6, 9, 4), images: bool = False) -> None:
    """A dataset as LeRobot's own writer lays out lerobot/pusht: two action numbers, a reward of 0 or 1 and success."""
    camera = "observation.image"
    feature: dict[str, Any] = {"dtype": "image" if images else "video", "shape": [48, 48, 3]}
    features = {
        camera: {**feature, "names": ["height", "width", "channel"]},
        "observation.state": {"dtype": "float32", "shape": [2], "names": {"motors": ["motor_0", "motor_1"]}},
        "action": {"dtype": "float32", "shape": [2], "names": {"motors": ["motor_0", "motor_1"]}},
        **{name: {"dtype": "int64", "shape": [1]} for name in ("episode_index", "frame_index", "index", "task_index")},
        "timestamp": {"dtype": "float32", "shape": [1], "names": None},
        "next.reward": {"dtype": "float32", "shape": [1], "names": None},
        "next.done": {"dtype": "bool", "shape": [1], "names": None},
        "next.success": {"dtype": "bool", "shape": [1], "names": None},
    }
    new = version == "v3.0"
    chunk = "chunk-{chunk_index:03d}/file-{file_index:03d}" if new else "chunk-{episode_chunk:03d}"
    info = {
        "codebase_version": version,
        "robot_type": "unknown",
        "total_episodes": len(lengths),
        "total_frames": sum(lengths),
        "total_tasks": 1,
        "chunks_size": 2,
        "fps": FPS,
        "splits": {"train": f"0:{len(lengths)}"},
        "data_path": f"data/{chunk}.parquet" if new else f"data/{chunk}/episode_{{episode_index:06d}}.parquet",
        "video_path": f"videos/{{video_key}}/{chunk}.mp4"
        if new
        else f"videos/{chunk}/{{video_key}}/episode_{{episode_index:06d}}.mp4",
        "features": features,
    }
    (folder / "meta").mkdir(parents=True)
    (folder / "meta/info.json").write_text(json.dumps(info, indent=4))
    tables, rows, first = [], [], 0
    for index, length in enumerate(lengths):
        numbers = np.arange(length)
        columns: dict[str, Any] = {camera: [png(frame) for frame in video(length, index)]} if images else {}
        columns |= {
            "observation.state": pa.array(foreign_actions(index, length).tolist(), pa.list_(pa.float32(), 2)),
            "action": pa.array(foreign_actions(index, length).tolist(), pa.list_(pa.float32(), 2)),
            "episode_index": np.full(length, index),
            "frame_index": numbers,
            "timestamp": (numbers / FPS).astype(np.float32),
            "next.reward": (numbers == length - 1).astype(np.float32),
            "next.done": numbers == length - 1,
            "next.success": numbers == length - 1,
            "index": first + numbers,
            "task_index": np.zeros(length, dtype=np.int64),
        }
        tables.append(pa.table(columns))
        rows.append({"episode_index": index, "tasks": ["push the T"], "length": length, "first": first})
        first += length
    if new:
        _finish_v3(folder, info, camera, tables, rows, images)
    else:
        _finish_v2(folder, info, camera, tables, rows, images)


def foreign_actions(index: int, length: int) -> np.ndarray:
    return np.random.default_rng(index).uniform(0, 512, (length, 2)).astype(np.float32)


def _finish_v2(
    folder: Path, info: dict[str, Any], camera: str, tables: list[pa.Table], rows: list[dict[str, Any]], images: bool
) -> None:
    (folder / "meta/tasks.jsonl").write_text('{"task_index": 0, "task": "push the T"}\n')
    lines = [json.dumps({key: row[key] for key in ("episode_index", "tasks", "length")}) for row in rows]
    (folder / "meta/episodes.jsonl").write_text("\n".join(lines) + "\n")
    for index, table in enumerate(tables):
        where = {"episode_index": index, "episode_chunk": index // info["chunks_size"]}
        path = folder / info["data_path"].format(**where)
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(table, path)
        if not images:
            encode(folder / info["video_path"].format(video_key=camera, **where), video(len(table), index))


def _finish_v3(
    folder: Path, info: dict[str, Any], camera: str, tables: list[pa.Table], rows: list[dict[str, Any]], images: bool
) -> None:
    """The first two episodes share a file (one row group, as early releases wrote it), the others have the next."""
    pq.write_table(pa.table({"task_index": [0], "__index_level_0__": ["push the T"]}), folder / "meta/tasks.parquet")
    metas = []
    for file, members in enumerate((range(2), range(2, len(tables)))):
        where = {"chunk_index": 0, "file_index": file}
        path = folder / info["data_path"].format(**where)
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.concat_tables([tables[i] for i in members]), path)
        start = 0
        for i in members:
            row, length = rows[i], len(tables[i])
            meta = {key: row[key] for key in ("episode_index", "tasks", "length")}
            meta |= {"data/chunk_index": 0, "data/file_index": file}
            meta |= {"dataset_from_index": row["first"], "dataset_to_index": row["first"] + length}
            if not images:
                times = {"from_timestamp": start / FPS, "to_timestamp": (start + length) / FPS}
                meta |= {f"videos/{camera}/{name}": value for name, value in {**where, **times}.items()}
            metas.append(meta)
            start += length
        if not images:
            frames = np.concatenate([video(len(tables[i]), i) for i in members])
            encode(folder / info["video_path"].format(video_key=camera, **where), frames)
    path = folder / "meta/episodes/chunk-000/file-000.parquet"
    path.parent.mkdir(parents=True)
    pq.write_table(pa.Table.from_pylist(metas), path)
