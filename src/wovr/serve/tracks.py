"""One trajectory in each world, an env step at a time: what a person needs, where a rollout goes by whole chunks.

The world model imagines chunks, but keys change in the middle of one. So a chunk is imagined as if the present action
went on to its end, and imagined again from the same context, with the same noise, once another action comes. What was
done so far stays as it is: after its last step a chunk is what the library imagines from those actions, to the bit. In
the middle of one, a frame that was shown is from the last time that its chunk was imagined until then.

Legend: T env steps, H chunk length, A action dims; images are height x width x 3.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from wovr.core.errors import UserError
from wovr.core.types import Actions, Frames, StartState
from wovr.envs.chunked import Chunk, TrajectoryKey
from wovr.envs.continued import ContinuedSimulator, RecordedStart
from wovr.imagine.world import ImaginedWorld
from wovr.imagine.world_model import ImaginedState


@dataclass(frozen=True, slots=True)
class Start:
    """One start in both worlds."""

    imagined: StartState
    true: RecordedStart | None
    """None where nobody knows how the simulator comes there."""


@dataclass(frozen=True, slots=True)
class Glimpse:
    """What a world shows now."""

    chunk: Chunk
    """Of one trajectory and one step, for a policy to look at."""

    @property
    def frame_HWC(self) -> Frames:
        return self.chunk.frames_BTHWC[0, -1]

    @property
    def success(self) -> float:
        """Probability in imagination; 0 or 1 in truth."""
        return float(self.chunk.probability_BT[0, -1])


class Track(Protocol):
    """One trajectory in one world."""

    def begin(self, start: Start, key: TrajectoryKey) -> Glimpse:
        """Leave everything behind and begin here. UserError where this world cannot."""
        ...

    def step(self, expected_TA: Actions) -> Glimpse:
        """Do the first of these actions. Those that are expected to follow, the last of them for good, cost nothing
        where they do follow."""
        ...

    def prepare(self, expected_TA: Actions) -> None:
        """Do what can be done of the next step before it is due."""
        ...

    @property
    def seconds(self) -> float:
        """What the last chunk took to compute."""
        ...


class ImaginedTrack:
    """A trajectory in the world model."""

    def __init__(self, world: ImaginedWorld) -> None:
        self.world = world
        self._seconds = 0.0
        self._done = 0  # steps of the chunk that were taken
        self._actions_HA: Actions | None = None  # with which the chunk was imagined; none was yet
        self._imagined: tuple[Chunk, ImaginedState] | None = None

    def begin(self, start: Start, key: TrajectoryKey) -> Glimpse:
        self._done, self._actions_HA, self._imagined = 0, None, None
        return Glimpse(self.world.reset([start.imagined], [key]))

    def step(self, expected_TA: Actions) -> Glimpse:
        self.prepare(expected_TA[:1] if self._foreseen(expected_TA[0]) else expected_TA)
        assert self._imagined is not None
        self._done += 1
        chunk, _ = self._imagined
        return Glimpse(
            Chunk(
                chunk.frames_BTHWC[:, self._done - 1 : self._done],
                chunk.probability_BT[:, self._done - 1 : self._done],
                chunk.states_BTS[:, self._done - 1 : self._done],
                chunk.lost_B,
            )
        )

    def prepare(self, expected_TA: Actions) -> None:
        H = self.world.chunk_length
        if self._done == H:
            assert self._imagined is not None
            self.world.follow(self._imagined[1])
            self._done, self._actions_HA = 0, None
        if self._foreseen(expected_TA[0]):
            return
        rest_TA = expected_TA[: H - self._done]
        rest_TA = np.concatenate([rest_TA, np.repeat(rest_TA[-1:], H - self._done - len(rest_TA), axis=0)])
        before_TA = rest_TA[:0] if self._actions_HA is None else self._actions_HA[: self._done]
        self._actions_HA = np.concatenate([before_TA, rest_TA])
        began = time.perf_counter()
        self._imagined = self.world.foresee(self._actions_HA[None])
        self._seconds = time.perf_counter() - began

    @property
    def seconds(self) -> float:
        return self._seconds

    def _foreseen(self, action_A: Actions) -> bool:
        """Whether the chunk that is there was imagined with this action next."""
        inside = self._actions_HA is not None and self._done < len(self._actions_HA)
        return inside and np.array_equal(self._actions_HA[self._done], action_A)  # type: ignore[index]


class TrueTrack:
    """A trajectory in the true simulator."""

    def __init__(self, world: ContinuedSimulator) -> None:
        assert world.chunk_length == 1
        self._world = world

    def begin(self, start: Start, key: TrajectoryKey) -> Glimpse:
        if start.true is None:
            raise UserError("true simulator: expected a start whose recorded actions lead to it, found one without")
        return self._glimpse(self._world.reset([start.true], [key]))

    def step(self, expected_TA: Actions) -> Glimpse:
        return self._glimpse(self._world.step(expected_TA[None, :1]))

    def prepare(self, expected_TA: Actions) -> None:
        """A simulator is asked when a step is due."""

    @property
    def seconds(self) -> float:
        return 0.0

    def _glimpse(self, chunk: Chunk) -> Glimpse:
        if chunk.lost_B[0]:
            raise UserError("true simulator: expected it to go on, found its process gone; begin anew")
        return Glimpse(chunk)
