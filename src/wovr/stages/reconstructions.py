"""Episodes as the codec gives them back: the reward draws frames of them as it draws true ones.

They are made once, and held in memory beside the true frames. What has no room there lies on disk, in files that are
addressed by what they were made from (as those of `wovr.stages.latent_cache` are), so that refinement finds what the
first training made. Single frames could be reconstructed as they are drawn, but a training may draw more of them than
there are, and Wan's codec, which reads an episode as one stream, would go through all that lies before each.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from wovr.core.checkpoint import write_atomic
from wovr.core.types import Episode, Video
from wovr.episodes.video import FrameMemory, HDF5Files, StoredVideo, readable, write_hdf5, write_video
from wovr.imagine.load import StoredCodec
from wovr.stages.experiment import Workplace
from wovr.stages.latent_cache import digest
from wovr.stages.train_codec import reconstruct

FRAMES = "frames"


def reconstructions(place: Workplace, codec: StoredCodec, episodes: Sequence[Episode]) -> list[Video]:
    """The frames of each episode as the codec gives them back. Several ranks share the work by way of the disk.

    UserError where a file is damaged or the disk is full.
    """
    dist = place.dist
    kept = _Kept(codec, place.run.path / "reconstructed" / codec.digest, place.memory)
    if dist.world_size > 1:
        for episode in episodes[dist.rank :: dist.world_size]:
            kept.video(episode, on_disk=True)
        dist.barrier()
    videos: list[Video] = []
    with place.log.progress("reconstruct episodes", len(episodes)) as bar:
        for episode in episodes:
            videos.append(kept.video(episode))
            bar.advance()
    return videos


class _Kept:
    """The reconstructions of one codec: held in memory, or in files below `folder`."""

    def __init__(self, codec: StoredCodec, folder: Path, memory: FrameMemory) -> None:
        self.codec, self.folder, self.memory = codec, folder, memory
        self.files = HDF5Files()

    def video(self, episode: Episode, *, on_disk: bool = False) -> Video:
        true_THWC = episode.frames_THWC[:]
        path = self.folder / f"{digest(true_THWC)}.hdf5"
        if not path.is_file():
            frames_THWC = reconstruct(self.codec.codec, true_THWC)
            if not on_disk and self.memory.hold(frames_THWC):
                return frames_THWC
            write_atomic(path, lambda part: write_hdf5(part, lambda file: write_video(file, FRAMES, frames_THWC)))
        with readable(str(path)):
            return StoredVideo(self.files.open(path)[FRAMES], self.files, self.memory)
