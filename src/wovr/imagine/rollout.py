"""Rollouts of a policy in groups that share a start: batched, stopped at success unless asked to run on, compacted.

The same function drives imagination and the true simulator. Every random draw is keyed by trajectory and chunk, so
neither the batch size nor the order of work changes a trajectory.

Legend: N trajectories, B of them that run, C chunks, H chunk length, T env steps, A action dims, K action tokens,
S simulator state size, P numbers of proprioception; images are height x width x 3.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields
from functools import partial
from itertools import compress
from typing import Any, Self, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from wovr.core.errors import UserError
from wovr.core.seed import normal
from wovr.core.types import Actions, Frames
from wovr.envs.chunked import Chunk, ChunkWorld, TrajectoryKey
from wovr.imagine.view import View, check_view
from wovr.metrics.success import first_success
from wovr.policy.base import Policy, PolicyBatch
from wovr.policy.tokens import correlated_uniforms

StartT = TypeVar("StartT")
Watch = Callable[[Sequence[TrajectoryKey], Chunk], None]


@dataclass(frozen=True, slots=True)
class Recording:
    """Every frame of one trajectory, first frame included; T is what ran."""

    frames_THWC: Frames
    """(T + 1, height, width, 3)."""
    states_TS: NDArray[np.float64]
    """(T + 1, S)."""
    wrist_THWC: Frames | None
    """As `frames_THWC`, where there is a camera at the hand."""
    proprio_TP: NDArray[np.float32] | None
    """(T + 1, P), where the world tells it."""

    @classmethod
    def of(cls, pieces: Sequence[Chunk]) -> Self:
        """From the start and the chunks of one trajectory."""
        wrist = [piece.wrist_BTHWC[0] for piece in pieces if piece.wrist_BTHWC is not None]
        proprio = [piece.proprio_BTP[0] for piece in pieces if piece.proprio_BTP is not None]
        return cls(
            np.concatenate([piece.frames_BTHWC[0] for piece in pieces]),
            np.concatenate([piece.states_BTS[0] for piece in pieces]),
            np.concatenate(wrist) if wrist else None,
            np.concatenate(proprio) if proprio else None,
        )


@dataclass(frozen=True, slots=True)
class RolloutBatch:
    """N trajectories. What did not run is zero; `chunk_mask_NC` tells what did."""

    instructions: list[str]
    group_N: NDArray[np.int64]
    """Number of the start, over all ranks. Equal numbers form a GRPO group."""
    frames_NCHWC: Frames
    """What the policy saw at the start of each chunk."""
    tokens_NCK: NDArray[np.int64]
    log_probs_NCK: NDArray[np.float32]
    """Of the tokens, when they were sampled."""
    actions_NTA: Actions
    probability_NT: NDArray[np.float32]
    """Success probability of the frame after each action."""
    success_step_N: NDArray[np.int64]
    """Index of the frame that completes success (`first_success`); T where none does."""
    limit_N: NDArray[np.int64]
    """Env steps after which a trajectory was ended if success did not end it: the horizon, or less where asked for."""
    chunk_mask_NC: NDArray[np.bool_]
    lost_N: NDArray[np.bool_]
    """Whether the simulator lost the trajectory's environment: what there is of it says nothing of the policy."""
    recordings: list[Recording] = field(default_factory=list)
    """One per trajectory if frames were recorded, else empty."""
    wrist_NCHWC: Frames | None = None
    """As `frames_NCHWC`, where the policy looks through the camera at the hand too."""
    proprio_NCP: NDArray[np.float32] | None = None
    """What the robot felt of itself then, where the policy asks for it."""

    def __len__(self) -> int:
        return len(self.group_N)

    def select(self, rows_N: NDArray[np.bool_]) -> RolloutBatch:
        """These trajectories alone, in their order."""
        kept: dict[str, Any] = {}
        for one in fields(self):
            value = getattr(self, one.name)
            if value is not None:
                kept[one.name] = value[rows_N] if isinstance(value, np.ndarray) else list(compress(value, rows_N))
        return RolloutBatch(**kept)

    @property
    def success_N(self) -> NDArray[np.bool_]:
        """Whether a trajectory succeeds; as a number, its return at gamma = 1 (Eq. 10)."""
        return self.success_step_N < self.probability_NT.shape[1]

    @property
    def steps_N(self) -> NDArray[np.int64]:
        """Env steps that ran: whole chunks, at most T."""
        chunk_length = math.ceil(self.probability_NT.shape[1] / self.chunk_mask_NC.shape[1])
        return np.minimum(self.chunk_mask_NC.sum(axis=1) * chunk_length, self.probability_NT.shape[1])


def rollout(
    world: ChunkWorld[StartT],
    policy: Policy,
    starts: Sequence[StartT],
    *,
    seed: int,
    number: int = 0,
    group_size: int = 1,
    first_group: int = 0,
    batch_size: int = 128,
    temperature: float = 1.0,
    correlation: float = 0.0,
    greedy: bool = False,
    limits: Sequence[int] | None = None,
    longest: int | None = None,
    stop_at_success: bool = True,
    record: bool = False,
    watch: Watch | None = None,
) -> RolloutBatch:
    """Roll the policy out `group_size` times from every start (Eq. 9).

    Args:
        world: imagination or simulator.
        policy: what acts; its chunks must be the world's.
        starts: one per group; trajectory i belongs to group i // group_size.
        seed: of the run.
        number: of this rollout, for example the update; it keys the randomness beside `seed`.
        group_size: G of Eq. 10.
        first_group: number of the first start where ranks share the starts, so that groups have their own draws.
        batch_size: trajectories that run side by side. It bounds memory and changes nothing else.
        temperature: of the policy's sampling.
        correlation: of the draws of neighbouring steps (see `correlated_uniforms`).
        greedy: take the likeliest tokens instead of sampling.
        limits: env steps of each start's trajectories, whole chunks, where the horizon does not come first.
        longest: env steps of the longest of all trajectories where ranks share the starts: all return as many steps.
        stop_at_success: whether success ends a trajectory; else it runs to its limit, and first success is still noted.
        record: keep every frame, simulator state and proprioception as well.
        watch: is shown the first frames and every chunk, and which trajectories they belong to.

    Raises UserError where the policy asks for other actions or views than the world has.
    """
    H = world.chunk_length
    if (policy.chunk_length, policy.action_dim) != (H, world.action_dim):
        raise UserError(
            f"policy: expected chunks of {H} x {world.action_dim} actions as its world takes, "
            f"found {policy.chunk_length} x {policy.action_dim}"
        )
    limit_P = np.minimum(world.horizon, world.horizon if limits is None else np.asarray(limits, dtype=np.int64))
    limit_N = np.repeat(np.broadcast_to(limit_P, len(starts)), group_size)
    trajectory_N = first_group * group_size + np.arange(len(starts) * group_size)
    horizon = int(limit_N.max()) if longest is None else min(longest, world.horizon)
    log = _Log(limit_N, horizon, world, record, stop_at_success)
    for first in range(0, len(trajectory_N), batch_size):
        rows_B = np.arange(first, min(first + batch_size, len(trajectory_N)))
        keys = [TrajectoryKey(seed, number, int(n), world=int(n) // group_size) for n in trajectory_N[rows_B]]
        starts_B = [starts[int(row) // group_size] for row in rows_B]
        chunk = world.reset(starts_B, keys)
        check_view(policy, world, chunk)
        if watch is not None:
            watch(keys, chunk)
        log.start(rows_B, chunk, View.of(policy, chunk), [world.instruction(start) for start in starts_B])
        look, choose = partial(View.of, policy), partial(act, policy, temperature, correlation, greedy)
        _run(world, look, choose, keys, rows_B, chunk, log, watch)
    return log.batch(trajectory_N // group_size)


Look = Callable[[Chunk], View]
Act = Callable[[View, list[str], list[TrajectoryKey], int], PolicyBatch]


def _run(
    world: ChunkWorld,
    look: Look,
    act: Act,
    keys: list[TrajectoryKey],
    rows_B: NDArray[np.int64],
    chunk: Chunk,
    log: _Log,
    watch: Watch | None,
) -> None:
    """Roll out one micro-batch, rows `rows_B` of the log. What ends is dropped."""
    for c in range(log.chunks):
        view = look(chunk)
        action = act(view, [log.instructions[row] for row in rows_B], keys, c)
        chunk = world.step(action.actions_BHA)
        if watch is not None:
            watch(keys, chunk)
        running = np.flatnonzero(~log.chunk(rows_B, c, view, action, chunk))
        if not len(running):
            return
        if len(running) < len(rows_B):
            world.keep(running)
            rows_B, keys, chunk = rows_B[running], [keys[row] for row in running], chunk.select(running)


def act(
    policy: Policy,
    temperature: float,
    correlation: float,
    greedy: bool,
    view: View,
    instructions: list[str],
    keys: list[TrajectoryKey],
    c: int,
) -> PolicyBatch:
    """What the policy does in chunk `c` of trajectories `keys`: a function of these and of what it sees."""
    choose = partial(policy.act, view.frames_BHWC, instructions, temperature=temperature, **view.asked)
    if greedy:
        return choose(uniforms_BK=None)
    shape = (policy.chunk_length, policy.action_dim)
    normals = [normal(shape, key.seed, "policy-tokens", key.rollout, key.trajectory, c) for key in keys]
    return choose(uniforms_BK=correlated_uniforms(torch.stack(normals), correlation))


class _Log:
    """The arrays of a `RolloutBatch` while they are filled."""

    def __init__(
        self, limit_N: NDArray[np.int64], horizon: int, world: ChunkWorld, record: bool, stop_at_success: bool
    ) -> None:
        N, H, A = len(limit_N), world.chunk_length, world.action_dim
        self.limit_N, self.horizon, self.chunks, self.record = limit_N, horizon, math.ceil(horizon / H), record
        self.threshold, self.hold, self.chunk_length = world.threshold, world.hold, H
        self.stop_at_success = stop_at_success
        self.instructions = [""] * N
        self.frames_NCHWC = np.zeros((N, self.chunks, 0, 0, 3), dtype=np.uint8)
        self.wrist_NCHWC: Frames | None = None
        self.proprio_NCP: NDArray[np.float32] | None = None
        self.tokens_NCK = np.zeros((N, self.chunks, H * A), dtype=np.int64)
        self.log_probs_NCK = np.zeros((N, self.chunks, H * A), dtype=np.float32)
        self.actions_NTA = np.zeros((N, horizon, A), dtype=np.float32)
        self.probability_NT = np.zeros((N, horizon), dtype=np.float32)
        self.chunk_mask_NC = np.zeros((N, self.chunks), dtype=np.bool_)
        self.lost_N = np.zeros(N, dtype=np.bool_)
        self.pieces: list[list[Chunk]] = [[] for _ in range(N)]

    def start(self, rows_B: NDArray[np.int64], chunk: Chunk, view: View, instructions: Sequence[str]) -> None:
        """Note how these trajectories begin."""
        if not self.frames_NCHWC.size:
            shape = self.chunk_mask_NC.shape
            self.frames_NCHWC = np.zeros((*shape, *view.frames_BHWC.shape[1:]), dtype=np.uint8)
            if view.wrist_BHWC is not None:
                self.wrist_NCHWC = np.zeros((*shape, *view.wrist_BHWC.shape[1:]), dtype=np.uint8)
            if view.proprio_BP is not None:
                self.proprio_NCP = np.zeros((*shape, view.proprio_BP.shape[1]), dtype=np.float32)
        for row, instruction in zip(rows_B, instructions, strict=True):
            self.instructions[row] = instruction
        self._record(rows_B, chunk)

    def chunk(
        self, rows_B: NDArray[np.int64], c: int, view: View, action: PolicyBatch, chunk: Chunk
    ) -> NDArray[np.bool_]:
        """Note chunk `c` of these trajectories. Returns which of them end here: by success, by their limit or
        because they are lost.

        The whole trajectory is judged, so that a hold may begin in one chunk and end in the next.
        """
        span = slice(c * self.chunk_length, min((c + 1) * self.chunk_length, self.horizon))
        chunk = chunk.first(span.stop - span.start)
        self.frames_NCHWC[rows_B, c] = view.frames_BHWC
        if self.wrist_NCHWC is not None and view.wrist_BHWC is not None:
            self.wrist_NCHWC[rows_B, c] = view.wrist_BHWC
        if self.proprio_NCP is not None and view.proprio_BP is not None:
            self.proprio_NCP[rows_B, c] = view.proprio_BP
        self.tokens_NCK[rows_B, c] = action.tokens_BK.cpu().numpy()
        self.log_probs_NCK[rows_B, c] = action.log_probs_BK.float().cpu().numpy()
        self.actions_NTA[rows_B, span] = action.actions_BHA[:, : span.stop - span.start]
        self.probability_NT[rows_B, span] = chunk.probability_BT
        self.chunk_mask_NC[rows_B, c] = True
        self.lost_N[rows_B] = chunk.lost_B
        self._record(rows_B, chunk)
        succeeded_B = self._success_steps()[rows_B] < self.horizon
        return (succeeded_B & self.stop_at_success) | (self.limit_N[rows_B] <= span.stop) | chunk.lost_B

    def batch(self, group_N: NDArray[np.int64]) -> RolloutBatch:
        """All that was noted."""
        recordings = []
        for pieces in filter(None, self.pieces):
            recordings.append(Recording.of(pieces))
            pieces.clear()  # or all frames would be in memory twice
        return RolloutBatch(
            instructions=self.instructions,
            group_N=group_N,
            frames_NCHWC=self.frames_NCHWC,
            tokens_NCK=self.tokens_NCK,
            log_probs_NCK=self.log_probs_NCK,
            actions_NTA=self.actions_NTA,
            probability_NT=self.probability_NT,
            success_step_N=self._success_steps(),
            limit_N=self.limit_N,
            chunk_mask_NC=self.chunk_mask_NC,
            lost_N=self.lost_N,
            recordings=recordings,
            wrist_NCHWC=self.wrist_NCHWC,
            proprio_NCP=self.proprio_NCP,
        )

    def _success_steps(self) -> NDArray[np.int64]:
        return first_success(self.probability_NT, self.threshold, self.hold).numpy()

    def _record(self, rows_B: NDArray[np.int64], chunk: Chunk) -> None:
        if self.record:
            for i, row in enumerate(rows_B):
                self.pieces[row].append(chunk.select([i]))
