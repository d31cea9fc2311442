"""Latents of episodes on disk: refinement and a training that goes on do not encode again, nor load the codec for it.

A file is addressed by what it was made from, the episode's frames and the codec's file, so none can be out of date.
Files appear by rename: what an interrupted run encoded is kept, and two writers at worst write the same file twice.

Legend: L latents of an episode, C latent channels, h w latent height and width.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from wovr.codec.base import Codec
from wovr.core.checkpoint import load_tensors, save_tensors
from wovr.core.types import Episode, Frames
from wovr.imagine.load import StoredCodec

STILLS = 64
"""Frames that are encoded at once where each is a still."""


class LatentCache:
    """The latents that one codec makes of episodes, kept below `folder`; nothing is kept where that is None."""

    def __init__(self, codec: StoredCodec, folder: Path | None) -> None:
        self.codec = codec
        self.folder = None if folder is None else folder / codec.digest

    def episode(self, episode: Episode, before: int) -> Tensor:
        """Latents (L, C, h, w), bf16: of o_0, of a stream that stands still at o_0, `before` latents long, and of what
        follows o_0, one every `codec.stride` frames.

        UserError where a file is damaged or the disk is full.
        """
        return self._kept(episode, f"episode-{before}", lambda codec, frames: _episode(codec, frames, before))

    def stills(self, episode: Episode) -> Tensor:
        """Every `codec.stride`-th frame as a still latent, (L, C, h, w), bf16; errors as above."""
        return self._kept(episode, "stills", _stills)

    def _kept(self, episode: Episode, what: str, encode: Callable[[Codec, Frames], Tensor]) -> Tensor:
        frames_THWC = episode.frames_THWC[:]
        if self.folder is None:
            return encode(self.codec.codec, frames_THWC).cpu().bfloat16()
        path = self.folder / f"{digest(frames_THWC)}-{what}.safetensors"
        if path.is_file():
            return load_tensors(path)[0]["latents_LChw"]
        latents_LChw = encode(self.codec.codec, frames_THWC).cpu().bfloat16()
        save_tensors(path, {"latents_LChw": latents_LChw})
        return latents_LChw


def _episode(codec: Codec, frames_THWC: Frames, before: int) -> Tensor:
    frames = torch.from_numpy(frames_THWC).to(codec.device)
    latents_LChw = codec.encode_episode(frames)
    if not before:
        return latents_LChw
    still_1THWC = frames[None, :1].expand(-1, 1 + before * codec.temporal_factor, -1, -1, -1)
    return torch.cat([latents_LChw[:1], codec.encode(still_1THWC)[0, 1:], latents_LChw[1:]])


def _stills(codec: Codec, frames_THWC: Frames) -> Tensor:
    frames = torch.from_numpy(frames_THWC)[:: codec.stride]
    parts = np.array_split(np.arange(len(frames)), max(1, len(frames) // STILLS))
    return torch.cat([codec.encode(frames[torch.from_numpy(rows), None].to(codec.device))[:, 0] for rows in parts])


def digest(frames_THWC: Frames) -> str:
    """Of shape and contents."""
    found = hashlib.sha256(f"{frames_THWC.shape} ".encode())
    found.update(np.ascontiguousarray(frames_THWC).data)
    return found.hexdigest()[:32]
