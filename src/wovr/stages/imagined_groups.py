"""Groups of four frames as a world model imagines them from true states, under the recorded actions.

Beside each stand the frames that truly followed, so that decoder and network can learn from what they get wrong.

Legend: N groups, J imagined stretches, H chunk length, A action dims, L latent frames of a chunk, C latent channels,
h w latent height and width.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from wovr.core.errors import UserError
from wovr.core.log import RunLog
from wovr.core.seed import normal, stream
from wovr.core.types import Episode
from wovr.dit.context import FRAMES_PER_LATENT
from wovr.imagine.world_model import WorldModel
from wovr.kir.mine import start_state

CHUNKS = 2
"""Chunks that are imagined from one true state: further on, what truly followed may be another story."""
BATCH = 128


def imagine_groups(
    model: WorldModel, episodes: Sequence[Episode], *, draws: int, seed: int, log: RunLog, number: int = 0
) -> tuple[Tensor, list[tuple[int, int]]]:
    """Latents (N, C, h, w), float32, and of each the (episode, last frame) that it stands for.

    Stretches of `CHUNKS` chunks follow each other through every episode, beginning where the codec has latents of true
    frames; where these are more groups than a training draws, a random part of them is imagined. All draws are keyed by
    `seed` and `number`. Raises UserError where no episode holds a chunk.
    """
    H, stride, rng = model.chunk_length, model.codec.stride, stream(seed, "imagined-groups", number)
    offset_E = stride * rng.integers(0, H // stride, len(episodes))
    starts = [
        (e, step)
        for e, episode in enumerate(episodes)
        for step in range(int(offset_E[e]), len(episode) - H + 1, CHUNKS * H)
    ]
    if not starts:
        raise UserError(f"episodes: expected at least one of {H} steps or more, found {len(episodes)} shorter")
    enough = max(BATCH, math.ceil(draws / (CHUNKS * model.layout.new)))
    starts = [starts[n] for n in sorted(rng.permutation(len(starts))[:enough])]
    latents: list[Tensor] = []
    places: list[tuple[int, int]] = []
    with log.progress("imagine for training", len(starts)) as bar:
        for first in range(0, len(starts), BATCH):
            rows = starts[first : first + BATCH]
            _imagine(model, episodes, rows, (seed, number), latents, places)
            bar.advance(len(rows))
    return torch.cat(latents), places


def _imagine(
    model: WorldModel,
    episodes: Sequence[Episode],
    rows: list[tuple[int, int]],
    draws: tuple[int, int],
    latents: list[Tensor],
    places: list[tuple[int, int]],
) -> None:
    """Append the groups of up to `CHUNKS` chunks from each (episode, step); `draws` are seed and number."""
    H, memory = model.chunk_length, model.context.memory_frames
    state = model.start([start_state(episodes[e], "", t, "", memory) for e, t in rows], frames=False)
    for chunk in range(CHUNKS):
        going = [row for row, (e, t) in enumerate(rows) if t + H * (chunk + 1) <= len(episodes[e])]
        if not going:
            return
        rows, state = [rows[row] for row in going], state.select(going)
        at = [(e, t + H * chunk) for e, t in rows]
        actions_JHA = torch.from_numpy(np.stack([episodes[e].actions_TA[t : t + H] for e, t in at]))
        seed, number = draws
        noise = [normal(model.noise_shape(state), seed, "imagined-groups-noise", e, t, number) for e, t in at]
        actions_JHA = actions_JHA.to(model.device)
        new_JLChw = model.imagine(state, actions_JHA, torch.stack(noise).to(model.device))
        state = model.advance(state, actions_JHA, new_JLChw)
        for group in range(new_JLChw.shape[1]):
            latents.append(new_JLChw[:, group].float().cpu())
            places += [(e, t + FRAMES_PER_LATENT * (group + 1)) for e, t in at]
