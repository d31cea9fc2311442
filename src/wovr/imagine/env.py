"""The imagined environment for anybody's RL library: `gymnasium.vector.VectorEnv`, one action chunk per step.

Success is sparse: reward 1 in the chunk in which it completes, and termination in the same chunk, by the one
definition `wovr.metrics.success.first_success`. Environments that are done are dropped from the imagined world and
cost nothing until they are reset.

Legend: H chunk length, A action dims; images are height x width x 3.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space
from numpy.typing import NDArray

from wovr.core.errors import UserError
from wovr.core.types import Actions, Frames, StartState
from wovr.envs.chunked import TrajectoryKey
from wovr.imagine.world import ImaginedWorld
from wovr.kir.bank import KeyframeBank
from wovr.kir.sampler import SamplerConfig, draw_starts
from wovr.metrics.success import first_success

INSTRUCTION_BYTES = 128
"""Length of the instruction in an observation. The longest LIBERO instruction has 91."""

Observation = dict[str, NDArray]
Flags = NDArray[np.bool_]


def encode_instruction(instruction: str) -> NDArray[np.uint8]:
    """UTF-8 bytes, padded with zeros to INSTRUCTION_BYTES: unlike text, it batches to one array."""
    raw = instruction.encode()
    if len(raw) > INSTRUCTION_BYTES:
        raise UserError(f"instruction {instruction!r}: expected at most {INSTRUCTION_BYTES} bytes, found {len(raw)}")
    return np.frombuffer(raw.ljust(INSTRUCTION_BYTES, b"\0"), dtype=np.uint8)


def decode_instruction(instruction: NDArray[np.uint8]) -> str:
    """The text of an observation's instruction."""
    return instruction.tobytes().rstrip(b"\0").decode()


class ImaginedVectorEnv(VectorEnv):
    """`num_envs` imagined environments.

    Observations are `frame` (height, width, 3) uint8 and `instruction`, UTF-8 bytes (see `decode_instruction`). Actions
    are chunks (H, A) in environment units.

    `reset` takes `options={"starts": [...]}`, one start per environment that is reset, or draws from the bank; with
    `reset_mask` it resets some environments only. `info` of a step holds, each with gymnasium's mask `_key`:
    `success_probability` (num_envs, H), `frames` (num_envs, H, height, width, 3), and `success_step`, the env step that
    completed success.

    Autoreset is next-step: the step after the end resets and ignores the action. When disabled, an environment that is
    done stays as it is, with reward 0 and its flags, until it is reset.
    """

    metadata = {"render_modes": ["rgb_array"], "autoreset_mode": AutoresetMode.NEXT_STEP}  # noqa: RUF012

    def __init__(
        self,
        world: ImaginedWorld,
        bank: KeyframeBank,
        num_envs: int,
        *,
        sampler: SamplerConfig | None = None,
        autoreset_mode: AutoresetMode | str = AutoresetMode.NEXT_STEP,
        render_mode: str | None = None,
    ) -> None:
        assert len(bank), "expected at least one start state"
        self.autoreset_mode = AutoresetMode(autoreset_mode)
        if self.autoreset_mode == AutoresetMode.SAME_STEP:
            raise UserError("autoreset_mode: expected NextStep or Disabled, found SameStep")
        self.metadata = {**self.metadata, "autoreset_mode": self.autoreset_mode}
        self.world, self.num_envs, self.render_mode = world, num_envs, render_mode
        self.bank, self.sampler = bank, sampler or SamplerConfig()
        image = bank[0].reference_HWC.shape
        self.single_observation_space = spaces.Dict(
            {
                "frame": spaces.Box(0, 255, image, np.uint8),
                "instruction": spaces.Box(0, 255, (INSTRUCTION_BYTES,), np.uint8),
            }
        )
        self.single_action_space = spaces.Box(-1, 1, (world.chunk_length, world.action_dim), np.float32)
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)

        self._slots: NDArray[np.int64] = np.zeros(0, dtype=np.int64)  # the environment of each row of the world
        self._frames = np.zeros((num_envs, *image), dtype=np.uint8)
        self._instructions = np.zeros((num_envs, INSTRUCTION_BYTES), dtype=np.uint8)
        self._probability = np.zeros((num_envs, world.horizon), dtype=np.float32)
        self._steps = np.zeros(num_envs, dtype=np.int64)
        self._episodes = np.zeros(num_envs, dtype=np.int64)
        self._terminated = np.zeros(num_envs, dtype=np.bool_)
        self._truncated = np.zeros(num_envs, dtype=np.bool_)
        self._seed: int | None = None  # of noise and starts
        self._draws = 0

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        """Begin all environments, or those of `options["reset_mask"]`, anew; see the class."""
        super().reset(seed=seed)
        if seed is not None or self._seed is None:
            self._seed = int(self.np_random.integers(2**63))
            self._episodes[:], self._draws = 0, 0
        options = options or {}
        slots = np.flatnonzero(options.get("reset_mask", np.ones(self.num_envs, dtype=np.bool_)))
        starts = options.get("starts") or self._draw(len(slots))
        if len(starts) != len(slots):
            raise UserError(f"options['starts']: expected one per environment ({len(slots)}), found {len(starts)}")
        self._begin(slots, starts)
        return self._observation(), {}

    def step(self, actions: Actions) -> tuple[Observation, NDArray[np.float64], Flags, Flags, dict[str, Any]]:
        """Imagine one chunk in every environment that runs."""
        actions = np.asarray(actions, dtype=np.float32)
        assert actions.shape == self.action_space.shape, f"expected {self.action_space.shape}, found {actions.shape}"
        assert self._seed is not None, "reset comes first"
        restart = np.flatnonzero(self._terminated | self._truncated)
        rewards, info = np.zeros(self.num_envs), self._empty_info()
        if len(self._slots):
            rewards[self._imagine(actions, info)] = 1
        if self.autoreset_mode == AutoresetMode.NEXT_STEP and len(restart):
            self._begin(restart, self._draw(len(restart)))
        return self._observation(), rewards, self._terminated.copy(), self._truncated.copy(), info

    def render(self) -> tuple[Frames, ...] | None:
        """The current frames, with `render_mode="rgb_array"`."""
        return tuple(self._frames.copy()) if self.render_mode == "rgb_array" else None

    def _draw(self, count: int) -> list[StartState]:
        assert self._seed is not None
        self._draws += 1
        return draw_starts(self.bank, count, self.sampler, seed=self._seed, update=self._draws)

    def _begin(self, slots: NDArray[np.int64], starts: Sequence[StartState]) -> None:
        self._stop(slots)
        assert self._seed is not None
        keys = [TrajectoryKey(self._seed, int(self._episodes[slot]), int(slot), world=int(slot)) for slot in slots]
        self._frames[slots] = self.world.add(starts, keys).frames_BTHWC[:, -1]
        self._slots = np.concatenate([self._slots, slots])
        self._instructions[slots] = [encode_instruction(self.world.instruction(start)) for start in starts]
        self._episodes[slots] += 1
        self._probability[slots], self._steps[slots] = 0, 0
        self._terminated[slots], self._truncated[slots] = False, False

    def _stop(self, slots: NDArray[np.int64]) -> None:
        rows = np.flatnonzero(~np.isin(self._slots, slots))
        if len(rows) < len(self._slots):
            self.world.keep(rows)
            self._slots = self._slots[rows]

    def _imagine(self, actions: Actions, info: dict[str, Any]) -> NDArray[np.int64]:
        """Step the environments that run, fill `info`, drop those that end; returns those that have succeeded."""
        slots, H = self._slots, self.world.chunk_length
        chunk = self.world.step(actions[slots])
        self._frames[slots] = chunk.frames_BTHWC[:, -1]
        horizon = self._probability.shape[1]
        for row, slot in enumerate(slots):
            span = slice(self._steps[slot], min(self._steps[slot] + H, horizon))
            self._probability[slot, span] = chunk.probability_BT[row, : span.stop - span.start]
        self._steps[slots] = np.minimum(self._steps[slots] + H, horizon)
        # The whole history is judged, so that a hold may begin in one chunk and end in the next.
        success_step = first_success(self._probability[slots], self.world.threshold, self.world.hold).numpy()
        succeeded = success_step < horizon
        self._terminated[slots] = succeeded
        self._truncated[slots] = ~succeeded & (self._steps[slots] == horizon)
        for key, value in (("success_probability", chunk.probability_BT), ("frames", chunk.frames_BTHWC)):
            info[key][slots], info[f"_{key}"][slots] = value, True
        info["success_step"][slots[succeeded]] = success_step[succeeded]
        info["_success_step"][slots[succeeded]] = True
        self._stop(np.flatnonzero(self._terminated | self._truncated))
        return slots[succeeded]

    def _observation(self) -> Observation:
        return {"frame": self._frames.copy(), "instruction": self._instructions.copy()}

    def _empty_info(self) -> dict[str, Any]:
        B, H = self.num_envs, self.world.chunk_length
        values = {
            "success_probability": np.zeros((B, H), dtype=np.float32),
            "frames": np.zeros((B, H, *self._frames.shape[1:]), dtype=np.uint8),
            "success_step": np.full(B, -1, dtype=np.int64),
        }
        return {**values, **{f"_{key}": np.zeros(B, dtype=np.bool_) for key in values}}
