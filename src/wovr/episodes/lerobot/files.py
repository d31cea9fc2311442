"""The files of a dataset being written, in either version: samples, frames, episodes, tasks and statistics."""

from __future__ import annotations

import json
from contextlib import ExitStack, closing
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import pyarrow as pa
import pyarrow.parquet as pq

from wovr.core.types import Frames
from wovr.episodes.lerobot.layout import (
    DATA_PATH,
    EPISODE_STATS_V2,
    EPISODES_V2,
    EPISODES_V3,
    STATS,
    TASKS_V2,
    TASKS_V3,
    VIDEO_PATH,
)
from wovr.episodes.lerobot.stats import QUANTILES, Stats, combined
from wovr.episodes.lerobot.video import VideoWriter

CHUNKS_SIZE = 1000
DATA_FILE_MB, VIDEO_FILE_MB = 100, 200
"""LeRobot's defaults. A file of v3.0 is closed before the episode that would make it larger than this."""
BUFFERED = 100
"""Rows of meta/episodes that are written at a time."""
MB = 2**20

TASKS_INDEX: dict[str, Any] = {
    "index_columns": ["task"],
    "column_indexes": [],
    "columns": [
        {"name": name, "field_name": name, "pandas_type": kind, "numpy_type": dtype, "metadata": None}
        for name, kind, dtype in (("task_index", "int64", "int64"), ("task", "unicode", "object"))
    ],
}
"""How a parquet file says that the texts are the index of a pandas data frame, by which LeRobot looks tasks up."""


class FilesV2:
    """v2.1: one parquet file and one video per camera for every episode. A context manager."""

    def __init__(self, folder: Path, fps: int) -> None:
        self.folder, self.fps = folder, fps
        self.episodes = self.videos = 0
        self._open = ExitStack()
        (folder / "meta").mkdir(parents=True)
        self._episodes = self._open.enter_context((folder / EPISODES_V2).open("w", encoding="utf-8"))
        self._stats = self._open.enter_context((folder / EPISODE_STATS_V2).open("w", encoding="utf-8"))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._open.close()

    def add(
        self,
        table: pa.Table,
        cameras: dict[str, Frames],
        stats: dict[str, Stats],
        tasks: list[str],
        facts: dict[str, Any],
    ) -> None:
        """One episode: samples, frames (N, H, W, 3) by camera, statistics by feature, texts, and wovr's own facts."""
        number = self.episodes
        where = {"episode_index": number, "episode_chunk": number // CHUNKS_SIZE}
        path = self.folder / DATA_PATH["v2.1"].format(**where)
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(table, path)
        for key, frames in cameras.items():
            path = self.folder / VIDEO_PATH["v2.1"].format(video_key=key, **where)
            with VideoWriter(path, self.fps, *frames.shape[1:3]) as video:
                video.add(frames)
            self.videos += 1
        kept = {
            key: {name: value.tolist() for name, value in values.items() if name not in QUANTILES}
            for key, values in stats.items()
        }
        row = {"episode_index": number, "tasks": tasks, "length": len(table), **facts}
        for file, value in ((self._episodes, row), (self._stats, {"episode_index": number, "stats": kept})):
            file.write(json.dumps(value, ensure_ascii=False) + "\n")
        self.episodes += 1

    def finish(self, tasks: dict[str, int]) -> dict[str, int]:
        """Write the tasks; what of `info.json` only this version has."""
        lines = (json.dumps({"task_index": index, "task": task}, ensure_ascii=False) for task, index in tasks.items())
        (self.folder / TASKS_V2).write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
        return {"total_videos": self.videos, "total_chunks": -(-self.episodes // CHUNKS_SIZE)}


class FilesV3:
    """v3.0: files of many episodes, for samples and for every camera. A context manager."""

    def __init__(self, folder: Path, fps: int) -> None:
        self.folder, self.fps = folder, fps
        self.episodes = self.samples = 0
        self._stats: dict[str, Stats] = {}
        self._rows: list[dict[str, Any]] = []
        self._schema: pa.Schema | None = None
        self._open = ExitStack()
        self._meta = self._open.enter_context(closing(_ParquetFiles(folder, EPISODES_V3)))
        self._data = self._open.enter_context(closing(_ParquetFiles(folder, DATA_PATH["v3.0"])))
        self._videos: dict[str, _VideoFiles] = {}
        (folder / "meta").mkdir(parents=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._open.close()

    def add(
        self,
        table: pa.Table,
        cameras: dict[str, Frames],
        stats: dict[str, Stats],
        tasks: list[str],
        facts: dict[str, Any],
    ) -> None:
        """One episode, as `FilesV2.add`."""
        row: dict[str, Any] = {"episode_index": self.episodes, "tasks": tasks, "length": len(table)}
        row |= {f"data/{name}": value for name, value in self._data.make_room(len(table)).items()}
        row |= {"dataset_from_index": self.samples, "dataset_to_index": self.samples + len(table)}
        self._data.write(table)
        for key, frames in cameras.items():
            if key not in self._videos:
                self._videos[key] = self._open.enter_context(closing(_VideoFiles(self.folder, key, self.fps)))
            row |= {f"videos/{key}/{name}": value for name, value in self._videos[key].add(frames).items()}
        row |= facts
        for key, values in stats.items():
            row |= {f"stats/{key}/{name}": value.tolist() for name, value in values.items()}
            self._stats[key] = combined(self._stats[key], values) if key in self._stats else values
        self._rows.append(row)
        self.episodes += 1
        self.samples += len(table)
        if len(self._rows) == BUFFERED:
            self._write_rows()

    def finish(self, tasks: dict[str, int]) -> dict[str, Any]:
        """Write tasks, statistics and what is pending; what of `info.json` only this version has."""
        if self._rows:
            self._write_rows()
        columns = {"task_index": pa.array(tasks.values(), pa.int64()), "task": pa.array(tasks, pa.string())}
        pq.write_table(
            pa.table(columns).replace_schema_metadata({"pandas": json.dumps(TASKS_INDEX)}), self.folder / TASKS_V3
        )
        stats = {key: {name: value.tolist() for name, value in values.items()} for key, values in self._stats.items()}
        (self.folder / STATS).write_text(json.dumps(stats, indent=4) + "\n")
        return {"data_files_size_in_mb": DATA_FILE_MB, "video_files_size_in_mb": VIDEO_FILE_MB}

    def _write_rows(self) -> None:
        place = self._meta.make_room(len(self._rows))
        rows = [{**row, **{f"meta/episodes/{name}": value for name, value in place.items()}} for row in self._rows]
        table = pa.Table.from_pylist(rows, schema=self._schema)
        self._schema = table.schema
        self._meta.write(table)
        self._rows = []


class _Numbered:
    """Numbers of the file that is being filled."""

    def __init__(self) -> None:
        self.chunk = self.file = 0

    def step(self) -> None:
        self.file += 1
        if self.file == CHUNKS_SIZE:
            self.chunk, self.file = self.chunk + 1, 0

    @property
    def where(self) -> dict[str, int]:
        return {"chunk_index": self.chunk, "file_index": self.file}


class _ParquetFiles:
    """Tables, in as many files as their size asks for."""

    def __init__(self, folder: Path, template: str) -> None:
        self.folder, self.template = folder, template
        self._number = _Numbered()
        self._writer: pq.ParquetWriter | None = None
        self._rows = 0

    def make_room(self, rows: int) -> dict[str, int]:
        """Begin the next file if these rows would make this one too large; the numbers of the file they go to."""
        if self._rows:
            size = self._path.stat().st_size
            if size + size / self._rows * rows >= DATA_FILE_MB * MB:
                self.close()
                self._number.step()
        return self._number.where

    def write(self, table: pa.Table) -> None:
        """Append rows, as a row group of their own, which one read fetches."""
        if self._writer is None:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._writer = pq.ParquetWriter(self._path, table.schema)
        self._writer.write_table(table)
        self._rows += len(table)

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()
        self._writer, self._rows = None, 0

    @property
    def _path(self) -> Path:
        return self.folder / self.template.format(**self._number.where)


class _VideoFiles:
    """The frames of one camera, in as many files as their size asks for."""

    def __init__(self, folder: Path, key: str, fps: int) -> None:
        self.folder, self.key, self.fps = folder, key, fps
        self._number = _Numbered()
        self._video: VideoWriter | None = None

    def add(self, frames: Frames) -> dict[str, Any]:
        """Append one episode; where its frames are."""
        if self._video is not None:
            size, before = self._video.size, self._video.frames
            if size + size / before * len(frames) >= VIDEO_FILE_MB * MB:
                self.close()
                self._number.step()
        if self._video is None:
            path = self.folder / VIDEO_PATH["v3.0"].format(video_key=self.key, **self._number.where)
            self._video = VideoWriter(path, self.fps, *frames.shape[1:3])
        start = self._video.frames
        self._video.add(frames)
        times = {"from_timestamp": start / self.fps, "to_timestamp": self._video.frames / self.fps}
        return {**self._number.where, **times}

    def close(self) -> None:
        if self._video is not None:
            self._video.close()
        self._video = None
