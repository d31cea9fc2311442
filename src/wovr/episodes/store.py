"""Episodes on disk: a folder of HDF5 shards in the layout of robomimic and LIBERO.

    shard_00000.hdf5
        data                        attributes total, problem_info, env_args (both JSON)
            demo_0                  attributes num_samples, instruction, suite, task_id, ... (`EpisodeInfo`)
                obs/agentview_rgb   (N, height, width, 3) uint8, in chunks of some rows of four frames
                obs/eye_in_hand_rgb likewise, where there is a camera at the hand
                obs/proprio         (N, P) float32, where there is proprioception
                actions             (N, A) float32
                rewards             (N,) uint8, 1 where the action led to a frame that meets the task's condition
                dones               (N,) uint8, 1 at the last sample
                states              (N, S) float64

That layout has as many actions as frames; an episode has T actions and T + 1 frames. So N = T + 1 and the last
sample is padding, as the attribute `padded_samples = 1` says: its action is `no_motion`, its reward repeats the one
before. Reading drops it.

Every append is one new shard, built in memory, written beside its place and renamed. A shard is never opened for
writing again, so a process killed at any moment loses at most the batch that it was appending, and readers need no
locks.

Everything is compressed by gzip at level 1: every build of HDF5 reads it, so that tools for robomimic and LIBERO do,
and its checksum reveals damaged frames. It looks back 32 KB, which at 256 px is not a fifth of a frame. So a chunk
holds 12 KB, 16 rows, of each of four frames, and what did not move lies within its reach: LIBERO's frames pack 4.8 to 1
instead of 2.2 to 1 in chunks of one frame, and 3,000 trajectories of 512 take 63 GB instead of 138. A window of 13
frames takes 8 ms of CPU time instead of 13, a single frame 2 instead of 1. Sensor noise, where nothing stands still,
makes it 1.4 to 1 either way, 20 ms instead of 15 and 5 instead of 1. Eight frames to a chunk would pack 1.2 to 1.5
times tighter and cost noise twice as much; zstd would read windows four times as fast, where there is a plugin for it.

Legend: T env steps, N = T + 1 samples, A action dims, S state size, P numbers of proprioception; H W height and width.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from wovr.core.checkpoint import write_atomic
from wovr.core.errors import UserError
from wovr.core.types import Actions, Episode, Frames, Video, no_motion
from wovr.episodes.video import COMPRESSION, FrameMemory, HDF5Files, StoredVideo, readable, write_hdf5, write_video

FRAMES, WRIST, PROPRIO = "obs/agentview_rgb", "obs/eye_in_hand_rgb", "obs/proprio"


@dataclass(frozen=True, slots=True)
class EpisodeInfo:
    """What is known of a stored episode without reading its arrays. Fields as in `Episode`."""

    length: int
    """T, env steps."""
    instruction: str
    suite: str
    task_id: int
    init_id: int
    policy: str
    seed: int
    purpose: str
    success: bool


class EpisodeStore:
    """The episodes of one folder. Any number of processes may read; one at a time may append.

    An episode's name is `shard_00003/demo_2`. Files are opened when first read, per process, so that a store may
    cross a fork or a pickle. Raises UserError naming the file where one is missing, truncated or damaged.
    """

    def __init__(self, folder: Path, memory: FrameMemory | None = None) -> None:
        """`memory` is for the frames of episodes that are opened; without it they are read each time."""
        self.folder = folder
        self.memory = memory or FrameMemory(0)
        self.names: list[str] = []
        """All episodes, oldest first."""
        self._files = HDF5Files()
        for path in sorted(folder.glob("shard_*.hdf5")):
            self._add_shard(path.stem)

    def __len__(self) -> int:
        return len(self.names)

    def append(self, episodes: Sequence[Episode]) -> list[str]:
        """Store all of `episodes` as one new shard, or none of them, and return their names.

        Append in batches: every call makes a file. Raises UserError where the disk is full.
        """
        if not episodes:
            return []
        last = int(self.names[-1].split("/")[0].removeprefix("shard_")) if self.names else -1
        shard = f"shard_{last + 1:05d}"
        for stale in self.folder.glob(".shard_*.tmp"):  # of a writer that was killed
            stale.unlink()
        write_atomic(
            self._path(shard), lambda temporary: write_hdf5(temporary, lambda file: _write_shard(file, episodes))
        )
        self._add_shard(shard)
        return self.names[-len(episodes) :]

    def info(self, name: str) -> EpisodeInfo:
        """Facts of one episode, from its attributes."""
        with self._demo(name) as demo:
            attributes = demo.attrs
            return EpisodeInfo(
                length=int(attributes["num_samples"]) - int(attributes["padded_samples"]),
                instruction=str(attributes["instruction"]),
                suite=str(attributes["suite"]),
                task_id=int(attributes["task_id"]),
                init_id=int(attributes["init_id"]),
                policy=str(attributes["policy"]),
                seed=int(attributes["seed"]),
                purpose=str(attributes["purpose"]),
                success=bool(attributes["success"]),
            )

    def steps(self, name: str) -> tuple[Actions, NDArray[np.bool_]]:
        """`actions_TA` and `success_T` of one episode: what `WindowIndex` needs, without the frames."""
        with self._demo(name) as demo:
            length = int(demo.attrs["num_samples"]) - int(demo.attrs["padded_samples"])
            return demo["actions"][:length], demo["rewards"][:length].astype(np.bool_)

    def frames(self, name: str, start: int, stop: int) -> Frames:
        """Frames start..stop-1 of one episode, (stop - start, H, W, 3). Reads and unpacks these frames only."""
        with self._demo(name) as demo:
            dataset = demo[FRAMES]
            assert 0 <= start < stop <= len(dataset), f"frames {start}:{stop} of {len(dataset)}"
            return dataset[start:stop]

    def read(self, name: str) -> Episode:
        """One whole episode in memory."""
        return self._episode(name, lambda dataset: dataset[:])

    def open(self, name: str) -> Episode:
        """One episode whose frames are read when they are asked for, and kept as `memory` has room."""
        return self._episode(name, lambda dataset: StoredVideo(dataset, self._files, self.memory))

    def iter(self, purpose: str | None = None) -> Iterator[Episode]:
        """Whole episodes, oldest first; with `purpose`, only those of that ledger line."""
        for name in self.names:
            if purpose is None or self.info(name).purpose == purpose:
                yield self.read(name)

    def check(self, image_size: int, action_dim: int) -> None:
        """Raise UserError unless there are episodes and all have square frames and actions of these sizes."""
        if not self.names:
            raise UserError(f"{self.folder}: expected episodes (shard_*.hdf5), found none")
        for name in self.names:
            with self._demo(name) as demo:
                image, action = demo[FRAMES].shape[1:], demo["actions"].shape[1:]
            if image != (image_size, image_size, 3) or action != (action_dim,):
                raise UserError(
                    f"{self._place(name)}: expected {image_size}x{image_size} frames and {action_dim} action numbers, "
                    f"found {'x'.join(map(str, image[:2]))} and {action[0]}"
                )

    def _episode(self, name: str, video: Callable[[h5py.Dataset], Video]) -> Episode:
        info = asdict(self.info(name))
        del info["length"], info["success"]
        actions_TA, success_T = self.steps(name)
        with self._demo(name) as demo:
            frames_THWC, states_TS = video(demo[FRAMES]), demo["states"][:]
            wrist_THWC = video(demo[WRIST]) if WRIST in demo else None
            proprio_TP = demo[PROPRIO][:] if PROPRIO in demo else None  # earlier versions stored none
        return Episode(
            frames_THWC, actions_TA, success_T, states_TS, wrist_THWC=wrist_THWC, proprio_TP=proprio_TP, **info
        )

    def _path(self, shard: str) -> Path:
        return self.folder / f"{shard}.hdf5"

    def _place(self, name: str) -> str:
        shard, demo = name.split("/")
        return f"{self._path(shard)}: {demo}"

    def _add_shard(self, shard: str) -> None:
        with readable(str(self._path(shard))):
            file = self._files.open(self._path(shard))
            demos = sorted(file["data"], key=lambda demo: int(demo.removeprefix("demo_")))
        self.names += [f"{shard}/{demo}" for demo in demos]

    @contextmanager
    def _demo(self, name: str) -> Iterator[h5py.Group]:
        shard, demo = name.split("/")
        with readable(self._place(name)):
            yield self._files.open(self._path(shard))["data"][demo]


def _write_shard(file: h5py.File, episodes: Sequence[Episode]) -> None:
    data = file.create_group("data")
    suites = sorted({episode.suite for episode in episodes})
    instructions = sorted({episode.instruction for episode in episodes})
    data.attrs["total"] = sum(len(episode.frames_THWC) for episode in episodes)
    data.attrs["num_demos"] = len(episodes)
    data.attrs["env_args"] = json.dumps({"env_name": "; ".join(suites), "env_kwargs": {}})
    data.attrs["problem_info"] = json.dumps(
        {"problem_name": "; ".join(suites), "language_instruction": "; ".join(instructions)}
    )
    for number, episode in enumerate(episodes):
        _write_demo(data.create_group(f"demo_{number}"), episode)


def _write_demo(demo: h5py.Group, episode: Episode) -> None:
    samples = len(episode) + 1
    last_reward = episode.success_T[-1:] if len(episode) else np.zeros(1, dtype=np.bool_)
    arrays: dict[str, NDArray[Any]] = {
        "actions": np.concatenate([episode.actions_TA, no_motion(episode.actions_TA.shape[1])[None]]),
        "rewards": np.concatenate([episode.success_T, last_reward]).astype(np.uint8),
        "dones": (np.arange(samples) == samples - 1).astype(np.uint8),
        "states": episode.states_TS,
    }
    if episode.proprio_TP is not None:
        arrays[PROPRIO] = episode.proprio_TP
    write_video(demo, FRAMES, episode.frames_THWC)
    if episode.wrist_THWC is not None:
        write_video(demo, WRIST, episode.wrist_THWC)
    for name, array in arrays.items():
        packing = {"chunks": array.shape, **COMPRESSION} if array.size else {}  # HDF5 cannot chunk an empty array
        demo.create_dataset(name, data=array, **packing)
    demo.attrs.update(
        num_samples=samples,
        padded_samples=1,
        instruction=episode.instruction,
        suite=episode.suite,
        task_id=episode.task_id,
        init_id=episode.init_id,
        policy=episode.policy,
        seed=episode.seed,
        purpose=episode.purpose,
        success=episode.success,
    )
