"""Frames in HDF5 files, read when they are asked for: 3,000 episodes of 512 frames at 256 px are 302 GB.

Small data stay as fast as arrays: a video is read whole at its first use and held, as long as the process has room in
its `FrameMemory`. None makes way for another: training draws from all episodes alike, so that none is worth more, and
one that was dropped would be asked for again.

Legend: T frames, H W height and width.
"""

from __future__ import annotations

import io
import os
import weakref
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from wovr.core.errors import UserError
from wovr.core.types import Frames, Video

COMPRESSION = {"compression": "gzip", "compression_opts": 1}
GROUP = 4
"""Frames of a chunk."""
TILE = 12 << 10
"""Bytes of one frame in a chunk: gzip looks back 32 KB, and there finds the same tile of the frame before."""
MAX_OPEN_FILES = 64


class HDF5Files:
    """Files that are read: the few used last stay open, per process, so that a reader may cross a fork or a pickle."""

    def __init__(self) -> None:
        self._files: OrderedDict[Path, h5py.File] = OrderedDict()
        self._pid = os.getpid()

    def open(self, path: Path) -> h5py.File:
        """The file, open for reading; it may be closed when others are opened. What h5py raises passes."""
        if self._pid != os.getpid():  # forked: HDF5's handles belong to the parent
            self._files, self._pid = OrderedDict(), os.getpid()
        if path not in self._files:
            self._files[path] = h5py.File(path, "r", locking=False)
            if len(self._files) > MAX_OPEN_FILES:
                self._files.popitem(last=False)[1].close()
        self._files.move_to_end(path)
        return self._files[path]

    def __reduce__(self) -> tuple[type[HDF5Files], tuple[()]]:
        return HDF5Files, ()


class FrameMemory:
    """Bytes of frames that a process may hold for videos that could be read again. `used` falls as they are let go."""

    def __init__(self, limit: float) -> None:
        self.limit, self.used = limit, 0

    def has_room(self, size: int) -> bool:
        return self.used + size <= self.limit

    def hold(self, frames: Frames) -> bool:
        """Count these frames as long as anything refers to them, unless there is no room."""
        if not self.has_room(frames.nbytes):
            return False
        self.used += frames.nbytes
        weakref.finalize(frames, self._let_go, frames.nbytes)
        return True

    def _let_go(self, size: int) -> None:
        self.used -= size

    def __reduce__(self) -> tuple[type[FrameMemory], tuple[float]]:
        return FrameMemory, (self.limit,)  # another process holds nothing yet


class StoredVideo:
    """A `wovr.core.types.Video` in an HDF5 file. UserError naming file and dataset where it is missing or damaged."""

    def __init__(self, dataset: h5py.Dataset, files: HDF5Files, memory: FrameMemory) -> None:
        """`dataset` (T, H, W, 3) is opened again through `files`, in this process or another."""
        self.path, self.name = Path(dataset.file.filename), dataset.name
        self.shape, self.dtype = dataset.shape, dataset.dtype
        self._files, self._memory = files, memory
        self._held: Frames | None = None

    def __len__(self) -> int:
        return int(self.shape[0])

    def __getitem__(self, rows: Any, /) -> Frames:
        if self._held is None and self._memory.has_room(int(np.prod(self.shape))):
            self._held = self._read(slice(None))
            self._memory.hold(self._held)
        return self._read(rows) if self._held is None else self._held[rows]

    def _read(self, rows: Any) -> Frames:
        """Only the frames that are asked for are unpacked, each of them once."""
        index = np.arange(len(self))[rows]
        found, inverse = np.unique(index, return_inverse=True)
        runs = np.split(found, np.flatnonzero(np.diff(found) > 1) + 1)
        with readable(f"{self.path}: {self.name}"):
            dataset = self._files.open(self.path)[self.name]
            parts = [dataset[run[0] : run[-1] + 1] if len(run) else dataset[:0] for run in runs]
        frames = parts[0] if len(parts) == 1 else np.concatenate(parts)
        return frames if np.array_equal(index, found) else frames[inverse.reshape(index.shape)]

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_held": None}


def write_video(group: h5py.Group, name: str, video: Video) -> h5py.Dataset:
    """Frames as a dataset that `StoredVideo` reads, in chunks of a few rows of four frames (`wovr.episodes.store`)."""
    frames, height, width, channels = video.shape
    rows = min(height, max(1, TILE // (width * channels)))
    chunks = (min(frames, GROUP), rows, width, channels)
    return group.create_dataset(name, data=video[:], chunks=chunks, **COMPRESSION)


def write_hdf5(path: Path, fill: Callable[[h5py.File], object]) -> None:
    """A file that is built in memory, since HDF5 does not recover from a disk that fills while it writes."""
    image = io.BytesIO()
    with h5py.File(image, "w") as file:
        fill(file)
    path.write_bytes(image.getbuffer())


@contextmanager
def readable(place: str) -> Iterator[None]:
    """Turn what h5py raises on missing, truncated or damaged data into one line that names the place."""
    try:
        yield
    except (OSError, KeyError, RuntimeError, ValueError) as error:
        reason = " ".join(str(error).strip("'\"").split())
        raise UserError(f"{place}: expected a complete HDF5 episode, found {reason}") from None
