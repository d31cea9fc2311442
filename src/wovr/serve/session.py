"""The driven world: one start, the actions since then, and what they lead to in imagination and in truth.

Pure Python: it knows neither clock nor web. Every world that is shown takes every action; one that is switched on
later is brought to the present by the same actions. What happens is a function of the seed, the start and the actions,
in policy mode of the number of the attempt as well.

Legend: T env steps, H chunk length, A action dims.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from wovr.core.errors import UserError
from wovr.core.seed import stream
from wovr.core.types import Actions
from wovr.envs.chunked import TrajectoryKey
from wovr.imagine.rollout import act
from wovr.imagine.view import View
from wovr.kir.mine import FIRST_FRAME
from wovr.metrics.success import first_success
from wovr.policy.base import Policy
from wovr.serve.tracks import Glimpse, Start, Track

World = Literal["imagined", "true"]
WORLDS: tuple[World, ...] = ("imagined", "true")
PLAY = 2**32 - 4
"""Number of these rollouts, which keys their draws: no update reaches it."""
LONGEST = 1024
"""Env steps until one has to begin anew: what is kept of a trajectory is bounded."""


@dataclass(frozen=True, slots=True)
class Rule:
    """When a world's frames count as success."""

    threshold: float
    hold: int


@dataclass(frozen=True, slots=True)
class Sampling:
    """How a policy's actions are drawn."""

    temperature: float
    greedy: bool


class Session:
    """One trajectory, in one world or in both."""

    def __init__(
        self,
        tracks: Mapping[World, Track],
        rules: Mapping[World, Rule],
        starts: Sequence[Start],
        *,
        action_dim: int,
        chunk_length: int,
        seed: int,
        missing: Mapping[World, str] | None = None,
    ) -> None:
        """`missing` says of a world without a track why there is none."""
        assert starts and "imagined" in tracks
        self.tracks, self.rules, self.starts = tracks, rules, starts
        self.action_dim, self.chunk_length, self.seed = action_dim, chunk_length, seed
        self.missing = dict(missing or {})
        self.asked: tuple[World, ...] = ("imagined",)
        self.shown: tuple[World, ...] = ("imagined",)
        """The worlds asked for, as far as they can be shown from this start."""
        self.start = 0
        self.attempt = 0
        self.closed = False
        """Whether the gripper is told to close."""
        self.actions: list[Actions] = []
        self.glimpses: dict[World, Glimpse] = {}
        self.curves: dict[World, list[float]] = {world: [] for world in WORLDS}
        """Success of every step so far, for the worlds that are shown."""
        self._plan_TA = np.zeros((0, action_dim), np.float32)  # what a policy is about to do
        self._decisions = 0

    @property
    def depth(self) -> int:
        """Env steps since the start."""
        return len(self.actions)

    def draw(self, kind: str) -> int:
        """Number of a start of this kind, `first_frame` or `keyframe`, at random; never the same twice in a row."""
        pool = [i for i, one in enumerate(self.starts) if (one.imagined.reason == FIRST_FRAME) == (kind == FIRST_FRAME)]
        others = [i for i in pool if i != self.start] or pool
        if not others:
            raise UserError(f"start: expected a {kind.replace('_', ' ')}, found none in this run")
        return int(stream(self.seed, "play-starts", self.attempt).choice(others))

    def reset(self, start: int) -> None:
        """Begin at this start, in all worlds that are shown; the true one is left out where it cannot begin there.

        UserError where it should have been able to; imagination alone is shown then.
        """
        if not 0 <= start < len(self.starts):
            raise UserError(f"start: expected 0 to {len(self.starts) - 1}, found {start}")
        self.start = start
        self.attempt += 1
        self.actions.clear()
        self._plan_TA, self._decisions = self._plan_TA[:0], 0
        self.closed = bool(self.starts[start].imagined.memory_actions_MA[-1, -1] > 0)
        self.shown = tuple(world for world in self.asked if not self.why_missing(world)) or ("imagined",)
        self.glimpses.clear()
        try:
            for world in self.shown:
                self._begin(world)
        except UserError:
            self.shown = ("imagined",)
            self._begin("imagined")
            raise

    def why_missing(self, world: World) -> str:
        """Why a world cannot be shown here; nothing where it can."""
        if world in self.missing or world == "imagined":
            return self.missing.get(world, "")
        known = self.starts[self.start].true is not None
        return "" if known else "nobody recorded how the simulator comes to this start"

    def show(self, worlds: Sequence[World]) -> None:
        """Show these worlds. One that was not shown before does all actions so far. UserError where it cannot be."""
        chosen = tuple(world for world in WORLDS if world in worlds)
        if not chosen:
            raise UserError("worlds: expected imagined, true or both, found none")
        for world in chosen:
            if reason := self.why_missing(world):
                raise UserError(f"{world} world: {reason}")
        for world in set(chosen) - set(self.shown):
            try:
                self._begin(world)
                for t in range(self.depth):
                    self._advance(world, np.stack(self.actions[t : t + self.chunk_length]))
            except UserError:
                self._hide(world)
                raise
        for world in set(self.shown) - set(chosen):
            self._hide(world)
        self.asked = self.shown = chosen

    def step(self, action_A: Actions, following_TA: Actions | None = None) -> None:
        """Do one action in every world that is shown; what is likely to follow, if not the same again, saves time."""
        if self.depth >= LONGEST:
            raise UserError(f"expected at most {LONGEST} steps from a start, found more; begin anew")
        expected_TA = action_A[None] if following_TA is None else np.concatenate([action_A[None], following_TA])
        for world in reversed(self.shown):  # the simulator first: where it is lost, nothing has happened
            self._advance(world, expected_TA)
        self.actions.append(action_A.copy())
        self.closed = bool(action_A[-1] > 0)

    def prepare(self, action_A: Actions) -> None:
        """Get ready for this action."""
        for world in self.shown:
            self.tracks[world].prepare(action_A[None])

    def step_policy(self, policy: Policy, sampling: Sampling) -> None:
        """Let the policy do one step of its chunk. It looks at imagination where that is shown, as in RL."""
        self.plan(policy, sampling)
        action_A, self._plan_TA = self._plan_TA[0], self._plan_TA[1:]
        self.step(action_A, self._plan_TA)

    def plan(self, policy: Policy, sampling: Sampling) -> None:
        """Let the policy decide, where it has done what it decided before, and get ready for that."""
        if len(self._plan_TA) == 0:
            key = TrajectoryKey(self.seed, PLAY, self.attempt, world=self.start)
            view = View.of(policy, self.glimpses[self.shown[0]].chunk)
            instruction = self.starts[self.start].imagined.instruction
            draws = ([instruction], [key], self._decisions)
            decision = act(policy, sampling.temperature, 0.0, sampling.greedy, view, *draws)
            self._plan_TA = decision.actions_BHA[0]
            self._decisions += 1
        for world in self.shown:
            self.tracks[world].prepare(self._plan_TA)

    def drop_plan(self) -> None:
        """Forget what a policy was about to do: somebody else decides."""
        self._plan_TA = self._plan_TA[:0]

    def success_step(self, world: World) -> int | None:
        """Depth at which a world that is shown has seen success; none where it has not."""
        curve, rule = self.curves[world], self.rules[world]
        if world not in self.shown or not curve:
            return None
        found = int(first_success(np.array([curve], np.float32), rule.threshold, rule.hold)[0])
        return found + 1 if found < len(curve) else None

    def _begin(self, world: World) -> None:
        # The noise of imagination is the start's: the same actions from there lead to the same frames again.
        key = TrajectoryKey(self.seed, PLAY, self.attempt, world=self.start)
        self.glimpses[world] = self.tracks[world].begin(self.starts[self.start], key)
        self.curves[world] = []

    def _hide(self, world: World) -> None:
        self.glimpses.pop(world, None)
        self.curves[world] = []

    def _advance(self, world: World, expected_TA: Actions) -> None:
        self.glimpses[world] = self.tracks[world].step(expected_TA)
        self.curves[world].append(self.glimpses[world].success)
