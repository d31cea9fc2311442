"""Which episodes a dataset has, where their samples and frames are, and what its tasks say."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import Field

from wovr.core.config import Config, validate
from wovr.core.errors import UserError
from wovr.episodes.lerobot.layout import EPISODES_V2, INFO, TASKS_V2, TASKS_V3, DatasetInfo, Facts, fill


@dataclass(frozen=True, slots=True)
class Clip:
    """The frames of one episode from one camera."""

    path: Path
    start: float
    """Timestamp of its first frame in the file, seconds."""
    whole: bool
    """Whether the file holds nothing else."""


@dataclass(frozen=True, slots=True)
class Record:
    """One episode, as the metadata has it."""

    index: int
    length: int
    """Samples."""
    data: Path
    clips: dict[str, Clip]
    """By camera, of those stored as video."""
    facts: Facts | None
    """What wovr recorded of it, where wovr wrote the dataset."""


class _EpisodeV2(Config, extra="ignore"):
    episode_index: int = Field(ge=0)
    length: int = Field(ge=1)


class _TaskV2(Config, extra="ignore"):
    task_index: int
    task: str


def load_records(folder: Path, info: DatasetInfo, cameras: Sequence[str]) -> list[Record]:
    """All episodes in order, with the clips of those of `cameras` that are stored as video.

    UserError where the metadata are incomplete or a file that they name is missing.
    """
    videos = [key for key in cameras if info.features[key].dtype == "video"]
    read = _records_v3 if info.codebase_version == "v3.0" else _records_v2
    records = sorted(read(folder, info, videos), key=lambda record: record.index)
    if len(records) != info.total_episodes:
        raise UserError(f"{folder / INFO}: expected {info.total_episodes} episodes in meta, found {len(records)}")
    for record in records:
        for path in (record.data, *(clip.path for clip in record.clips.values())):
            if not path.is_file():
                raise UserError(f"{path}: expected a file with episode {record.index}, found none")
    return records


def load_tasks(folder: Path, info: DatasetInfo) -> dict[int, str]:
    """Text of every task by its `task_index`."""
    if info.codebase_version != "v3.0":
        tasks = [validate(_TaskV2, row, place) for place, row in _lines(folder / TASKS_V2)]
        if not tasks:
            raise UserError(f"{folder / TASKS_V2}: expected tasks, found none")
        return {task.task_index: task.task for task in tasks}
    path = folder / TASKS_V3
    with readable(path):
        table = pq.read_table(path)
        # The text is the index of a data frame, which an early writer left without a name.
        text = "task" if "task" in table.column_names else "__index_level_0__"
        return dict(zip(table["task_index"].to_pylist(), table[text].to_pylist(), strict=True))


@contextmanager
def readable(path: Path) -> Iterator[None]:
    """Turn what pyarrow raises on missing, damaged or unfit files into one line that names the file."""
    if not path.is_file():
        raise UserError(f"{path}: expected a parquet file, found none")
    try:
        yield
    except (pa.ArrowException, OSError, KeyError) as error:
        raise UserError(f"{path}: expected a complete parquet file, found {' '.join(str(error).split())}") from None


def _records_v2(folder: Path, info: DatasetInfo, videos: Sequence[str]) -> Iterator[Record]:
    for place, row in _lines(folder / EPISODES_V2):
        episode = validate(_EpisodeV2, row, place)
        where = {"episode_index": episode.episode_index, "episode_chunk": episode.episode_index // info.chunks_size}
        data = fill(folder, info.data_path, **where)
        clips = {
            key: Clip(fill(folder, info.video_path or "", video_key=key, **where), 0.0, whole=True) for key in videos
        }
        yield Record(episode.episode_index, episode.length, data, clips, _facts(info, row, place))


def _records_v3(folder: Path, info: DatasetInfo, videos: Sequence[str]) -> Iterator[Record]:
    paths = sorted((folder / "meta/episodes").glob("*/*.parquet"))
    if not paths:
        raise UserError(f"{folder / 'meta/episodes'}: expected parquet files, found none")
    own = [f"wovr/{name}" for name in Facts.model_fields] if info.wovr else []
    names = ["episode_index", "length", "data/chunk_index", "data/file_index", *own]
    for key in videos:
        names += [f"videos/{key}/{fact}" for fact in ("chunk_index", "file_index", "from_timestamp", "to_timestamp")]
    for path in paths:
        with readable(path):
            table = pq.read_table(path, columns=names)
            rows = table.select(names).to_pylist()  # select complains of a missing column, read_table does not
        for row in rows:
            nothing = next((name for name in names if row[name] is None), None)
            if nothing:
                raise UserError(f"{path}: column {nothing!r}: expected a value for every episode, found none")
            yield _record_v3(folder, info, videos, path, row)


def _record_v3(folder: Path, info: DatasetInfo, videos: Sequence[str], path: Path, row: dict[str, Any]) -> Record:
    clips = {}
    for key in videos:
        start, stop = row[f"videos/{key}/from_timestamp"], row[f"videos/{key}/to_timestamp"]
        if not abs((stop - start) * info.fps - row["length"]) < 0.5:
            raise UserError(
                f"{path}: episode {row['episode_index']}: expected {row['length']} frames of {key}, found "
                f"{start:.3f} s to {stop:.3f} s at {info.fps:g} per second"
            )
        where = {name: row[f"videos/{key}/{name}"] for name in ("chunk_index", "file_index")}
        clips[key] = Clip(fill(folder, info.video_path or "", video_key=key, **where), start, whole=False)
    data = fill(folder, info.data_path, chunk_index=row["data/chunk_index"], file_index=row["data/file_index"])
    facts = _facts(info, row, f"{path}: episode {row['episode_index']}")
    return Record(row["episode_index"], row["length"], data, clips, facts)


def _facts(info: DatasetInfo, row: dict[str, Any], place: str) -> Facts | None:
    """What wovr adds to an episode's row."""
    if info.wovr is None:
        return None
    return validate(Facts, {name: row[key] for name in Facts.model_fields if (key := f"wovr/{name}") in row}, place)


def _lines(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """(file and line number, object) for every line of a JSON Lines file."""
    if not path.is_file():
        raise UserError(f"{path}: expected a JSON Lines file, found none")
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except ValueError as error:
                raise UserError(f"{path}:{number}: expected JSON, found {error}") from None
            if not isinstance(row, dict):
                raise UserError(f"{path}:{number}: expected keys and values, found {type(row).__name__}")
            yield f"{path}:{number}", row
