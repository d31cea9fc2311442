"""Latents of episodes on disk, so that refinement and a training that goes on do not encode them again.

A file is addressed by what it was made from, the episode's frames and the codec's weights, so none can be out of date.
Files appear by rename: what an interrupted run encoded is kept, and two writers at worst write the same file twice.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from wovr.codec.conv import ConvCodec
from wovr.core.checkpoint import load_tensors, save_tensors
from wovr.core.types import Episode
from wovr.dit.context import FRAMES_PER_LATENT
from wovr.episodes.windows import memory_indices

ENCODE_BATCH = 64


class LatentCache:
    """The latents that one codec makes of episodes, kept below `folder`; nothing is kept where that is None."""

    def __init__(self, codec: ConvCodec, folder: Path | None) -> None:
        self.codec = codec
        self.folder = None if folder is None else folder / _digest(codec.state_dict())

    def latents(self, episode: Episode, group: int) -> Tensor:
        """Latent of the `group` frames that end at each frame, (T + 1, C, h, w) bf16; one frame is a still latent.

        UserError where a file is damaged or the disk is full.
        """
        if self.folder is None:
            return _encode(self.codec, episode, group)
        frames = torch.from_numpy(episode.frames_THWC)
        path = self.folder / f"{_digest({'frames': frames})}-{group}.safetensors"
        if path.is_file():
            return load_tensors(path)[0]["latents_TChw"]
        latents_TChw = _encode(self.codec, episode, group)
        save_tensors(path, {"latents_TChw": latents_TChw})
        return latents_TChw


def _encode(codec: ConvCodec, episode: Episode, group: int) -> Tensor:
    ends = np.arange(len(episode) + 1)
    index = memory_indices(ends, group) if group > 1 else np.repeat(ends[:, None], FRAMES_PER_LATENT, axis=1)
    frames_THWC = torch.from_numpy(episode.frames_THWC)
    parts = [
        codec.encode_groups(frames_THWC[torch.from_numpy(rows)].to(codec.device)).cpu().bfloat16()
        for rows in np.array_split(index, max(1, len(index) // ENCODE_BATCH))
    ]
    return torch.cat(parts)


def _digest(tensors: dict[str, Tensor]) -> str:
    """Of names, types, shapes and contents."""
    found = hashlib.sha256()
    for name, value in sorted(tensors.items()):
        found.update(f"{name} {value.dtype} {tuple(value.shape)} ".encode())
        found.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return found.hexdigest()[:32]
