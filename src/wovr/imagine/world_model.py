"""The world model as a simulator: codec, ActionDiT and Euler solver make one chunk (4.1).

The context lives as latents. A start is encoded once; after that the memory is the model's own last latents, so that
nothing is encoded twice and only new latents are decoded. Where frames depend on earlier latents, reference, memory and
all that follows are decoded as one stream. The one exception is the ablation `memory_frames = 1`, whose still latent of
the current frame no chunk contains: it is encoded from the last decoded frame, and the decoder's stream begins with the
reference and four frames that stand still at the current one.

Rewards may be read from the network's features: its hidden tokens of the new latents in the last Euler step, at the
solver's smallest sigma. True latents that are noised to that sigma have features too, from one pass.

Legend: B trajectories, U unique starts, L latent frames, C latent channels, h w latent height and width, H chunk
length, M memory frames, T actions of a window (1 + M + H), A action dims; images are height x width x 3.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from wovr.codec.base import Codec, DecoderState
from wovr.core.dist import Precision, precision
from wovr.core.errors import UserError
from wovr.core.types import StartState, no_motion
from wovr.dit.context import FRAMES_PER_LATENT, ContextConfig, absolute, layout, moved, timesteps
from wovr.dit.model import ActionDiT
from wovr.envs.chunked import Rows
from wovr.flow import path
from wovr.flow.schedule import FlowConfig, solver_sigmas
from wovr.flow.solver import euler
from wovr.reward.base import Seen

ModuleT = TypeVar("ModuleT", bound=nn.Module)


def for_inference(module: ModuleT, requested: Precision = "auto") -> ModuleT:
    """A frozen copy in evaluation mode whose weights are cast once; autocast would cast them at every step."""
    return copy.deepcopy(module).eval().requires_grad_(False).to(_dtype(requested))


def served(module: ModuleT) -> ModuleT:
    """`module` itself where its weights have the precision of inference, else such a copy, which may be gigabytes."""
    return module if next(module.parameters()).dtype == _dtype("auto") else for_inference(module)


def _dtype(requested: Precision) -> torch.dtype:
    return torch.bfloat16 if precision(requested) == "bf16" else torch.float32


@dataclass(frozen=True, slots=True)
class ImaginedState:
    """The context of B trajectories."""

    reference_BLChw: Tensor
    """Latent of the episode's first frame; L = 1, or 0 without `context.reference`."""
    memory_BLChw: Tensor
    memory_actions_BMA: Tensor
    """The actions that produced the memory frames."""
    moved_BA: Tensor | None
    """Sum of all motions from o_0 to the current frame; none where the network is told residual actions."""
    decoder: DecoderState | None
    """After the memory latents; none where frames are not asked for."""

    def __len__(self) -> int:
        return len(self.memory_BLChw)

    def select(self, rows: Rows) -> ImaginedState:
        """These trajectories alone, in this order."""
        index = torch.as_tensor(rows, dtype=torch.int64, device=self.memory_BLChw.device)
        return ImaginedState(
            self.reference_BLChw[index],
            self.memory_BLChw[index],
            self.memory_actions_BMA[index],
            None if self.moved_BA is None else self.moved_BA[index],
            None if self.decoder is None else tuple(kept[index] for kept in self.decoder),
        )

    def join(self, other: ImaginedState) -> ImaginedState:
        """These trajectories and, after them, those of `other`."""
        assert (self.decoder is None) == (other.decoder is None) and (self.moved_BA is None) == (other.moved_BA is None)
        return ImaginedState(
            torch.cat([self.reference_BLChw, other.reference_BLChw]),
            torch.cat([self.memory_BLChw, other.memory_BLChw]),
            torch.cat([self.memory_actions_BMA, other.memory_actions_BMA]),
            None if self.moved_BA is None or other.moved_BA is None else torch.cat([self.moved_BA, other.moved_BA]),
            None
            if self.decoder is None or other.decoder is None
            else tuple(map(torch.cat, zip(self.decoder, other.decoder, strict=True))),
        )


class WorldModel:
    """P_phi of Eq. 9. It draws nothing itself: noise is passed in. It computes in the dtype of the DiT's weights."""

    def __init__(self, codec: Codec, dit: ActionDiT, context: ContextConfig, flow: FlowConfig) -> None:
        self.codec, self.dit, self.context, self.flow = codec, dit, context, flow
        self.layout = dit.layout
        self.chunk_length, self.action_dim = FRAMES_PER_LATENT * self.layout.new, dit.config.action_dim
        assert self.layout == layout(context, self.chunk_length), "the DiT was built for another context"

    @property
    def device(self) -> torch.device:
        return self.codec.device

    @torch.no_grad()
    def start(self, starts: Sequence[StartState], *, frames: bool = True) -> ImaginedState:
        """Encode start states. A start that several trajectories share, as a GRPO group does, is encoded once.

        Without `frames` the decoder is left out, and the state is for `imagine` and `advance` alone. Raises UserError
        where memory or actions do not fit the model, or their sum is asked for and not known.
        """
        unique = {id(start): start for start in starts}
        rank = {key: row for row, key in enumerate(unique)}
        for start in unique.values():
            self._check(start)
        seen = [np.concatenate([start.reference_HWC[None], start.memory_MHWC]) for start in unique.values()]
        frames_UTHWC = torch.from_numpy(np.stack(seen)).to(self.device)
        latents_ULChw, stream_ULChw = self._encode(frames_UTHWC)
        actions_UMA = torch.from_numpy(np.stack([start.memory_actions_MA for start in unique.values()]))
        anchors = int(self.context.reference)
        decoder = self.codec.start(stream_ULChw) if frames or self.context.memory_frames == 1 else None
        state = ImaginedState(
            latents_ULChw[:, :anchors],
            latents_ULChw[:, 1:],
            actions_UMA.to(self.device),
            self._moved(unique.values()),
            decoder,
        )
        return state.select([rank[id(start)] for start in starts])

    @torch.no_grad()
    def encode(self, starts: Sequence[StartState], frames_BHHWC: Tensor) -> Tensor:
        """Latents (B, L, C, h, w) of true frames that follow these starts, a chunk of each."""
        seen = [np.concatenate([start.reference_HWC[None], start.memory_MHWC]) for start in starts]
        stream_BTHWC = self._stream(torch.from_numpy(np.stack(seen)).to(self.device))
        return self.codec.encode(torch.cat([stream_BTHWC, frames_BHHWC], dim=1))[:, -self.layout.new :]

    @torch.no_grad()
    def step(
        self, state: ImaginedState, actions_BHA: Tensor, noise_BLChw: Tensor
    ) -> tuple[Tensor, Seen, ImaginedState]:
        """Imagine one chunk: (new latents (B, L, C, h, w), what is seen of it, next state)."""
        assert state.decoder is not None, "started without frames"
        new_BLChw, features_BNhwD = self._denoise(state, actions_BHA, noise_BLChw)
        frames_BHHWC, decoder = self.codec.decode(new_BLChw, state.decoder)
        following = self._next(state, actions_BHA, new_BLChw, frames_BHHWC, decoder)
        return new_BLChw, Seen(frames_BHHWC, features_BNhwD), following

    @torch.no_grad()
    def imagine(self, state: ImaginedState, actions_BHA: Tensor, noise_BLChw: Tensor) -> Tensor:
        """The new latents (B, L, C, h, w) of one chunk."""
        return self._denoise(state, actions_BHA, noise_BLChw)[0]

    @torch.no_grad()
    def features(self, state: ImaginedState, actions_BHA: Tensor, new_BLChw: Tensor, noise_BLChw: Tensor) -> Tensor:
        """Features of given new latents, which `noise` takes as far from the truth as the last Euler step finds
        imagined ones."""
        sigma_B = new_BLChw.new_full((len(new_BLChw),), solver_sigmas(self.flow)[-2])
        noised_BLChw = path.interpolate(new_BLChw, noise_BLChw, sigma_B)
        return self._network(state, actions_BHA)(noised_BLChw, sigma_B)[1]

    def _denoise(self, state: ImaginedState, actions_BHA: Tensor, noise_BLChw: Tensor) -> tuple[Tensor, Tensor]:
        """The new latents of one chunk, and their features (B, L, h / 2, w / 2, D)."""
        assert len(state) == len(actions_BHA) == len(noise_BLChw)
        network = self._network(state, actions_BHA)
        features_BNhwD = noise_BLChw

        def velocity(new_BLChw: Tensor, sigma: float) -> Tensor:
            nonlocal features_BNhwD
            v_BLChw, features_BNhwD = network(new_BLChw, new_BLChw.new_full((len(new_BLChw),), sigma))
            return v_BLChw

        return euler(velocity, noise_BLChw, solver_sigmas(self.flow)), features_BNhwD

    def _network(self, state: ImaginedState, actions_BHA: Tensor) -> Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]:
        """(new latents, sigma (B,)) -> (velocity, features); what does not depend on them is computed once."""
        dtype = next(self.dit.parameters()).dtype
        context_BLChw = torch.cat([state.reference_BLChw, state.memory_BLChw], dim=1).to(dtype)
        shared = self.dit.precompute(self._window_actions(state, actions_BHA), context_BLChw)

        def network(new_BLChw: Tensor, sigma_B: Tensor) -> tuple[Tensor, Tensor]:
            window_BLChw = torch.cat([context_BLChw, new_BLChw.to(dtype)], dim=1)
            times_BL = timesteps(self.layout, sigma_B)
            found: tuple[Tensor, Tensor] = self.dit(window_BLChw, times_BL, shared, new_only=True, features=True)
            return found

        return network

    @torch.no_grad()
    def advance(self, state: ImaginedState, actions_BHA: Tensor, new_BLChw: Tensor) -> ImaginedState:
        """The state after a chunk. Its frames are decoded only where the state has a decoder, which must follow."""
        if state.decoder is None:
            return self._next(state, actions_BHA, new_BLChw, None, None)
        return self._next(state, actions_BHA, new_BLChw, *self.codec.decode(new_BLChw, state.decoder))

    def _next(
        self,
        state: ImaginedState,
        actions_BHA: Tensor,
        new_BLChw: Tensor,
        frames_BHHWC: Tensor | None,
        decoder: DecoderState | None,
    ) -> ImaginedState:
        actions_BMA = torch.cat([state.memory_actions_BMA, actions_BHA], dim=1)[:, -self.context.memory_frames :]
        if self.context.memory_frames == 1:
            assert frames_BHHWC is not None
            memory_BLChw = self.codec.encode(frames_BHHWC[:, -1:])
        else:
            latents = state.memory_BLChw.shape[1]
            memory_BLChw = torch.cat([state.memory_BLChw, new_BLChw], dim=1)[:, -latents:]
        moved_BA = None if state.moved_BA is None else state.moved_BA + moved(actions_BHA)
        return ImaginedState(state.reference_BLChw, memory_BLChw, actions_BMA, moved_BA, decoder)

    def _encode(self, frames_UTHWC: Tensor) -> tuple[Tensor, Tensor]:
        """Latents of [reference, memory] as the network sees them, and those that the decoder's stream starts with."""
        stream_ULChw = self.codec.encode(self._stream(frames_UTHWC))
        if self.context.memory_frames > 1:
            return stream_ULChw, stream_ULChw
        latents_ULChw = self.codec.encode(frames_UTHWC.flatten(0, 1)[:, None]).unflatten(0, (-1, 2)).squeeze(2)
        return latents_ULChw, stream_ULChw

    def _stream(self, frames_UTHWC: Tensor) -> Tensor:
        """Frames of [reference, memory] as the codec's streams begin: a memory of one frame stands still."""
        if self.context.memory_frames > 1:
            return frames_UTHWC
        still_UTHWC = frames_UTHWC[:, 1:].expand(-1, FRAMES_PER_LATENT, -1, -1, -1)
        return torch.cat([frames_UTHWC[:, :1], still_UTHWC], dim=1)

    def noise_shape(self, state: ImaginedState) -> tuple[int, ...]:
        """(L, C, h, w), the noise that one trajectory needs for a chunk."""
        return (self.layout.new, *state.memory_BLChw.shape[2:])

    def _window_actions(self, state: ImaginedState, actions_BHA: Tensor) -> Tensor:
        """The action that produced each frame of the window, as the network is told it, (B, T, A)."""
        still_A = torch.from_numpy(no_motion(self.action_dim)).to(actions_BHA)
        anchors = int(self.context.reference)
        actions_BTA = torch.cat([state.memory_actions_BMA, actions_BHA], dim=1)
        if state.moved_BA is not None:
            actions_BTA = absolute(actions_BTA, state.moved_BA - moved(state.memory_actions_BMA))
        return torch.cat([still_A.expand(len(state), anchors, -1), actions_BTA], dim=1)

    def _moved(self, starts: Iterable[StartState]) -> Tensor | None:
        if self.context.actions == "residual":
            return None
        known = [start.moved_A for start in starts if start.moved_A is not None]
        return torch.from_numpy(np.stack(known)).to(self.device)

    def _check(self, start: StartState) -> None:
        expected = (self.context.memory_frames, self.action_dim)
        if start.memory_actions_MA.shape != expected or len(start.memory_MHWC) != expected[0]:
            raise UserError(
                f"start state at step {start.step} of episode {start.episode}: expected {expected[0]} memory frames "
                f"with {expected[1]} action dims, found {len(start.memory_MHWC)} frames and actions of shape "
                f"{start.memory_actions_MA.shape}"
            )
        if self.context.actions == "absolute" and start.moved_A is None:
            raise UserError(
                f"start state at step {start.step} of episode {start.episode}: expected the sum of its motions, which "
                "absolute actions need, found none; keyframes of older runs and published ones have none"
            )
