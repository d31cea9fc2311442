"""Training data of the world model: episodes as latents in memory, and the loss of Eq. 7 on windows of them.

One array of latents per episode serves every window: reference G[0], memory G[t], new G[t + 4] and G[t + 8], where G[e]
is the latent of the four frames that end at e. The embedded codec has one for every e, and before o_0 nothing moves:
G[e] = G[0]. Wan's codec reads an episode as one stream, so that e and t are multiples of four, and what stands still at
o_0 has latents of its own, which depend on how long it has stood still: where e <= 0, position p of a window, counted
from the reference, holds the p-th latent of such a stream, as a rollout that starts there has it.

Legend: E episodes, N latents or frames of all episodes, B batch, L latent frames of a window, C latent channels, h w
latent height and width, T actions of a window, A action dims, K chunks of a window, R noised copies of the windows of a
batch, N new latents, M own memories, S windows of a batch that stand on one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor, nn

from wovr.core.config import Config
from wovr.core.dist import Dist
from wovr.core.errors import UserError
from wovr.core.log import RunLog
from wovr.core.seed import normal, stream
from wovr.core.text import word_ids
from wovr.core.types import Episode, no_motion
from wovr.core.weights import LossFn
from wovr.dit.context import (
    FRAMES_PER_LATENT,
    ContextConfig,
    Layout,
    absolute,
    layout,
    memory_sigmas,
    noised_window,
)
from wovr.dit.model import ActionDiT
from wovr.episodes.windows import WindowConfig, WindowIndex, memory_indices
from wovr.flow.loss import velocity_loss
from wovr.flow.schedule import FlowConfig, train_sigmas, train_weights
from wovr.imagine.load import StoredCodec
from wovr.reward.joint import RewardHead, balance, head_loss, sight
from wovr.stages.latent_cache import LatentCache


class WorldLossConfig(Config):
    """What counts in a window."""

    motion_weight: float = Field(4.0, ge=0)
    """Extra weight of a latent cell in proportion to its change from the memory, at most this: a block and a gripper
    cover a few cells of 64, and all that RL asks is what becomes of them."""
    motion_scale: float = Field(0.5, gt=0)
    """Root mean square change of a cell (latents have unit variance) that gets half of the extra weight."""
    copies: int = Field(1, ge=1)
    """Noised copies of each window, at sigmas spread over their range; more than one asks for `dit.causal_context`,
    where they share one pass over the context, so that most tokens are supervised."""
    chunks: int = Field(1, ge=1)
    """K, chunks of a clip per training forward, each at a sigma of its own (packed training, `wovr.dit.context`): of 8
    chunks of two latents behind a context of two, 16 of 18 are supervised; of one chunk, 2 of 4. Episodes shorter than
    K chunks are not drawn. Later chunks see earlier ones as noised as they are, and `flow.train_sigmas=uniform` lets
    some of these be nearly clean, as all are at inference."""


def check_fit(dit: ActionDiT, channels: int, loss: WorldLossConfig, context: ContextConfig) -> None:
    """UserError where the network does not fit the codec's latent channels, the number of noised copies or absolute
    actions."""
    if dit.config.channels != channels:
        raise UserError(
            f"world model: expected {channels} latent channels as the codec has, found {dit.config.channels}"
        )
    if loss.copies > 1 and not dit.config.causal_context:
        raise UserError(f"world model: expected loss.copies=1 without a causal context, found {loss.copies}")
    if context.actions == "absolute" and dit.config.action_sums:
        raise UserError("world model: expected dit.action_sums=false with absolute actions, which are sums, found true")


class LatentEpisodes:
    """All episodes of a training set, encoded once; bf16, 1.5 kB per 64 x 64 frame, Wan's 6.1 kB per 256 x 256 one."""

    def __init__(
        self,
        episodes: Sequence[Episode],
        codec: StoredCodec,
        log: RunLog,
        context: ContextConfig,
        horizon: int,
        *,
        folder: Path | None = None,
        dist: Dist | None = None,
    ) -> None:
        """For windows of this context and `horizon` new frames.

        Latents are kept in `folder`, and read from there if they were encoded before; several ranks share the work.
        """
        cache = LatentCache(codec, folder)
        self.episodes, self.context, self.horizon, self.stride = episodes, context, horizon, codec.stride
        self.steps = [(episode.actions_TA, episode.success_T) for episode in episodes]
        self.start_E = np.cumsum([0] + [len(episode) + 1 for episode in episodes[:-1]])
        """The first frame of each episode among those of all."""
        place_L = np.arange(layout(context, horizon).frames) + (0 if context.reference else 1)
        self.before = 0 if codec.stride == 1 else int(place_L[-1])
        """Latents of standing still at o_0, which lie between G[0] and what follows."""
        self._place_L = np.delete(place_L, int(context.reference)) if context.memory_frames == 1 else place_L
        if folder is not None and dist is not None and dist.world_size > 1:
            self._encode(cache, episodes[dist.rank :: dist.world_size], log)
            dist.barrier()
        latents, stills = self._encode(cache, episodes, log)
        self.latents_NChw = torch.cat(latents)
        self.latent_E = np.cumsum([0] + [len(part) for part in latents[:-1]])
        self.stills_NChw = torch.cat(stills) if stills else None
        self.still_E = np.cumsum([0] + [len(part) for part in stills[:-1]])
        rest_1A = no_motion(episodes[0].actions_TA.shape[1])[None]
        produced = [row for episode in episodes for row in (rest_1A, episode.actions_TA)]
        self.produced_NA = torch.from_numpy(np.concatenate(produced))
        """The action that produced each frame, as the network is told it."""
        if context.actions == "absolute":
            parts = self.produced_NA.split([len(episode) + 1 for episode in episodes])
            at_rest_1A = self.produced_NA.new_zeros(1, self.produced_NA.shape[1])
            self.produced_NA = torch.cat([absolute(part_TA[None], at_rest_1A)[0] for part_TA in parts])
        self.success_N = np.concatenate([row for episode in episodes for row in ([False], episode.success_T)])
        """Whether each frame succeeds."""

    def _encode(
        self, cache: LatentCache, episodes: Sequence[Episode], log: RunLog
    ) -> tuple[list[Tensor], list[Tensor]]:
        """Of each episode, what windows are cut from, and the still latents that a memory of one frame needs."""
        latents, stills = [], []
        with log.progress("encode episodes", len(episodes)) as bar:
            for episode in episodes:
                latents.append(cache.episode(episode, self.before))
                stills += [cache.stills(episode)] if self.context.memory_frames == 1 else []
                bar.advance()
        return latents, stills

    def windows(self, episode_B: NDArray[np.int64], t_B: NDArray[np.int64]) -> tuple[Tensor, Tensor]:
        """Latents (B, L, C, h, w), float32, and actions (B, T, A) of windows [reference, memory, new] at t."""
        new_BF = memory_indices(t_B + self.horizon, self.horizon)
        memory_BF = memory_indices(t_B, self.context.memory_frames)
        zero_B1 = np.zeros((len(t_B), int(self.context.reference)), dtype=np.int64)
        frame_BT = np.concatenate([zero_B1, memory_BF, new_BF], axis=1)
        actions_BTA = self.produced_NA[torch.from_numpy(self.start_E[episode_B][:, None] + frame_BT)]
        groups = slice(FRAMES_PER_LATENT - 1, None, FRAMES_PER_LATENT)  # a memory of one frame has none
        end_BL = np.concatenate([zero_B1, memory_BF[:, groups], new_BF[:, groups]], axis=1)
        index_BL = np.where(end_BL > 0, self.before + end_BL // self.stride, np.minimum(self._place_L, self.before))
        latents_BLChw = self.latents_NChw[torch.from_numpy(self.latent_E[episode_B][:, None] + index_BL)]
        if self.stills_NChw is not None:
            still_B1 = self.still_E[episode_B][:, None] + memory_BF // self.stride
            memory_B1Chw = self.stills_NChw[torch.from_numpy(still_B1)]
            anchor = int(self.context.reference)
            latents_BLChw = torch.cat([latents_BLChw[:, :anchor], memory_B1Chw, latents_BLChw[:, anchor:]], dim=1)
        return latents_BLChw.float(), actions_BTA

    def success(self, episode_B: NDArray[np.int64], t_B: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Whether each new frame of these windows succeeds, (B, `horizon`)."""
        new_BF = memory_indices(t_B + self.horizon, self.horizon)
        return self.success_N[self.start_E[episode_B][:, None] + new_BF]


@dataclass(frozen=True, slots=True)
class OwnMemory:
    """Memory latents that the network imagined itself, with what truly followed as the target.

    In a rollout each chunk stands on the latents of the one before, errors included. Trained on true memories alone,
    the network carries its errors on; shown its own, it learns to take them back (as DAgger does for policies).
    """

    latents_MChw: Tensor
    place_M: Sequence[tuple[int, int]]
    """(episode, t) of the window that has this memory."""
    share: float
    """Of the windows of a batch."""
    number: int = 0
    """Of the round that draws from them."""


class WorldBatches:
    """Batches for `world_loss`; `at(step)` is a pure function of the step.

    `layout` is that of the windows, packed or not; `weight_E` as in `WindowIndex`; `labels` are for a reward head.
    Raises UserError where no episode is as long as their new frames.
    """

    def __init__(
        self,
        data: LatentEpisodes,
        windows: WindowConfig,
        layout: Layout,
        *,
        batch_size: int,
        copies: int,
        seed: int,
        own: OwnMemory | None = None,
        weight_E: NDArray[np.float64] | None = None,
        labels: bool = False,
    ) -> None:
        assert data.horizon == FRAMES_PER_LATENT * layout.new
        self.data, self.batch_size, self.seed = data, batch_size, seed
        self.noise_frames = layout.context + copies * layout.new
        self.index = WindowIndex(
            data.steps, horizon=data.horizon, config=windows, stride=data.stride, weight_E=weight_E
        )
        self.layout, self.own = layout, own
        self.own_p_M = None if own is None else self._probabilities(own.place_M)
        self.success_share = self._success_share() if labels else None

    def at(self, step: int) -> dict[str, Tensor]:
        """Clean latents, actions and all randomness of one step."""
        phase = "world" if self.own is None else "own-memory"  # the second training does not repeat the first's draws
        number = 0 if self.own is None else self.own.number
        rng = stream(self.seed, f"{phase}-windows", step, number)
        place_B = self.index.draw(rng, self.batch_size)
        if self.own is None:
            latents_BLChw, actions_BTA = self.data.windows(*place_B)
        else:
            latents_BLChw, actions_BTA = self._with_own_memories(self.own, rng, *place_B)
        # After own memories have taken the first rows' places.
        labels = {} if self.success_share is None else self._labels(self.success_share, *place_B)
        noise_shape = (self.batch_size, self.noise_frames, *latents_BLChw.shape[2:])
        return {
            "latents_BLChw": latents_BLChw,
            "actions_BTA": actions_BTA,
            "noise_BFChw": normal(noise_shape, self.seed, f"{phase}-train-noise", step, number),
            "uniform_BK": torch.from_numpy(rng.random((self.batch_size, self.layout.chunks), dtype=np.float32)),
            "memory_uniform_B": torch.from_numpy(rng.random(self.batch_size, dtype=np.float32)),
            **labels,
        }

    def _labels(self, share: float, episode_B: NDArray[np.int64], t_B: NDArray[np.int64]) -> dict[str, Tensor]:
        """For the reward head. The weights of a frame depend on its label alone, and not on the batch."""
        labels_BT = torch.from_numpy(self.data.success(episode_B, t_B)).float()
        return {
            "labels_BT": labels_BT,
            "balance_BT": balance(labels_BT, share),
            "instruction_BL": word_ids([self.data.episodes[e].instruction for e in episode_B]),
        }

    def _success_share(self) -> float:
        """Of the new frames of all windows, as often as they are drawn. UserError where one class is missing."""
        index, config = self.index, self.index.config
        later_W, first_W = (
            self.data.success(index.episode_W, t_W).mean(1) for t_W in (index.t_W, np.zeros_like(index.t_W))
        )
        moved = config.cold_start + config.static
        share = float(np.average((1 - moved) * later_W + config.cold_start * first_W, weights=index.weight_W))
        if not 0 < share < 1:
            found = "no frame with success" if share == 0 else "no frame without"
            raise UserError(f"world_model.reward_head: expected windows with and without success, found {found}")
        return share

    def _with_own_memories(
        self, own: OwnMemory, rng: np.random.Generator, episode_B: NDArray[np.int64], t_B: NDArray[np.int64]
    ) -> tuple[Tensor, Tensor]:
        """As `LatentEpisodes.windows`; the first rows are other windows, whose memories the network imagined."""
        own_S = rng.choice(len(own.place_M), round(own.share * self.batch_size), p=self.own_p_M)
        S = len(own_S)
        episode_B[:S], t_B[:S] = np.asarray(own.place_M)[own_S].T
        latents_BLChw, actions_BTA = self.data.windows(episode_B, t_B)
        latents_BLChw[:S, self.layout.context - 1] = own.latents_MChw[torch.from_numpy(own_S)]
        return latents_BLChw, actions_BTA

    def _probabilities(self, place_M: Sequence[tuple[int, int]]) -> NDArray[np.float64]:
        """Of own memories: the weight of the window that begins there, 0 where none does."""
        places = zip(self.index.episode_W.tolist(), self.index.t_W.tolist(), strict=True)
        weight = dict(zip(places, self.index.weight_W.tolist(), strict=True))
        weight_M = np.array([weight.get(place, 0.0) for place in place_M])
        if not weight_M.any():
            raise UserError(f"own_memory: expected episodes of more than {self.data.horizon} steps, found none")
        return weight_M / weight_M.sum()


def world_loss(context: ContextConfig, flow: FlowConfig, layout: Layout, weights: WorldLossConfig) -> LossFn:
    """The rectified-flow loss per sample (B,) on the new latents of `WorldBatches`, whose `layout` it takes.

    A sample's loss is the mean over all copies and chunks of its window. A network with a reward head adds the head's
    loss, by its weight.
    """
    chunk = layout.new // layout.chunks

    def loss(model: nn.Module, batch: Any) -> tuple[Tensor, dict[str, Tensor]]:
        assert isinstance(model, ActionDiT)
        clean_RLChw = batch["latents_BLChw"].repeat_interleave(weights.copies, 0)
        sigma_RK = train_sigmas(flow, _spread(batch["uniform_BK"], weights.copies))
        noised_RLChw, timesteps_RL, target_RNChw = noised_window(
            context,
            layout,
            clean_RLChw,
            _noise_of_copies(batch["noise_BFChw"], layout, weights.copies),
            sigma_RK,
            memory_sigmas(context, batch["memory_uniform_B"]).repeat_interleave(weights.copies, 0),
        )
        velocity_RNChw, features_RNhwD = model(
            noised_RLChw, timesteps_RL, batch["actions_BTA"], new_only=True, features=True
        )
        new_RNChw = clean_RLChw[:, layout.context :]
        memory_RNChw = clean_RLChw[:, layout.context - 1 : -1 : chunk].repeat_interleave(chunk, 1)  # of each chunk
        change_RNhw = (new_RNChw - memory_RNChw).square().mean(2).sqrt()
        weight_RNhw = 1 + weights.motion_weight * change_RNhw / (change_RNhw + weights.motion_scale)
        by_chunk = [
            x_RN.unflatten(1, (layout.chunks, chunk)).flatten(0, 1)
            for x_RN in (velocity_RNChw, target_RNChw, weight_RNhw)
        ]
        loss_RK = velocity_loss(*by_chunk) * train_weights(flow, sigma_RK.flatten())
        plain_R = velocity_loss(velocity_RNChw.detach(), target_RNChw)
        loss_B = loss_RK.unflatten(0, (-1, weights.copies * layout.chunks)).mean(1)
        logs = {"velocity_error": plain_R.unflatten(0, (-1, weights.copies)).mean(1)}
        head = model.reward_head
        if isinstance(head, RewardHead):
            logits_RT = head(features_RNhwD, batch["instruction_BL"].repeat_interleave(weights.copies, 0))
            sight_RT = sight(flow, sigma_RK).repeat_interleave(FRAMES_PER_LATENT * chunk, 1)
            reward_B, more = head_loss(logits_RT, batch["labels_BT"], batch["balance_BT"], sight_RT)
            loss_B, logs = loss_B + head.config.weight * reward_B, logs | more
        return loss_B, logs

    return loss


def _spread(uniform_BK: Tensor, copies: int) -> Tensor:
    """Uniform numbers (B copies, K): those of one chunk lie 1 / copies apart."""
    steps_R1 = torch.arange(copies, device=uniform_BK.device)[:, None] / copies
    return ((uniform_BK[:, None] + steps_R1) % 1).flatten(0, 1)


def _noise_of_copies(noise_BFChw: Tensor, layout: Layout, copies: int) -> Tensor:
    """(B copies, L, C, h, w) of F = context + copies * new frames: the context's noise is shared."""
    context_BKChw, new_BMChw = noise_BFChw.split((layout.context, copies * layout.new), dim=1)
    new_RNChw = new_BMChw.unflatten(1, (copies, layout.new)).flatten(0, 1)
    return torch.cat((context_BKChw.repeat_interleave(copies, 0), new_RNChw), dim=1)
