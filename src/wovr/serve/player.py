"""The clock: one thread that computes everything, so that the web's event loop never waits for a network.

Time runs while a control is held, the gripper moves or a policy drives; otherwise the world waits for its driver. What
is asked of the thread is bounded: of the keys only the newest state counts, and of commands a handful may wait.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from wovr.core.errors import UserError
from wovr.policy.base import Policy
from wovr.serve.controls import action_of, controls_of
from wovr.serve.messages import Act, Command, Grip, Keys, Reset, Speed, Worlds, pack_frame
from wovr.serve.session import Sampling, Session

STEPS_PER_SECOND = 8.0
"""A hand crosses the embedded table in about two seconds."""
GRIP_STEPS = 4
"""Env steps that the gripper gets to open or close when nothing else moves."""
WAITING = 8
"""Commands that may wait."""


@dataclass(frozen=True, slots=True)
class Driver:
    """Policies that may drive."""

    policies: Mapping[str, Callable[[], Policy]]
    """By name, in order. They are read when they are asked for; one is held at a time."""
    sampling: Sampling
    horizon: int
    """Depth at which a policy gives up."""


class Player:
    """Runs a session. `publish` is called from its thread with what viewers are to be told: `("scene", dict)`,
    `("frame", bytes)` or `("error", str)`."""

    def __init__(self, session: Session, driver: Driver, publish: Callable[[str, Any], None]) -> None:
        self.session, self.driver, self._publish = session, driver, publish
        self.controls = controls_of(session.action_dim)
        self.failure: BaseException | None = None
        """What ended the thread, if anything but `stop` did."""
        self._known = {control.name for control in self.controls}
        self._thread = threading.Thread(target=self._run, name="wovr-play", daemon=True)
        self._wake = threading.Condition()
        self._stopping = False
        self._keys, self._tapped, self._n = Keys(type="keys", held=()), frozenset[str](), 0
        self._commands: deque[Command | None] = deque()
        self._period, self._grip_left = 1 / STEPS_PER_SECOND, 0
        self._name: str | None = None
        self._policy: tuple[str, Policy] | None = None

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """End the thread, after the step that it computes now."""
        with self._wake:
            self._stopping = True
            self._wake.notify()
        self._thread.join()

    def hold(self, keys: Keys) -> None:
        """From now on these controls are held. One that was held for a moment between two steps still counts."""
        unknown = set(keys.held) - self._known
        if unknown:
            raise UserError(f"keys: expected {', '.join(sorted(self._known))}, found {sorted(unknown)[0]!r}")
        with self._wake:
            self._keys, self._n = keys, max(self._n, keys.n)
            self._tapped |= set(keys.held)
            if keys.held:
                self._name = None  # a hand on the controls takes over from a policy
            self._wake.notify()

    def let_go(self) -> None:
        """Nobody drives any more: what the last one held or asked for, and was not begun, is dropped."""
        with self._wake:
            self._n = 0  # the next driver counts anew
            self._commands.clear()
            self._rest()
        self.ask(None)

    def ask(self, command: Command | None) -> None:
        """Have this done before the next step; None has everything told again. UserError where too much waits."""
        with self._wake:
            if len(self._commands) >= WAITING:
                raise UserError(f"expected at most {WAITING} commands at once, found more; wait for the first")
            if isinstance(command, Reset):
                self._rest()  # now: what is pressed while it waits is meant for the new attempt
            self._commands.append(command)
            self._wake.notify()

    def _run(self) -> None:
        try:
            self._tell()
            due = time.monotonic()
            while not self._stopping:
                due = self._turn(due)
        except BaseException as error:
            self.failure = error
            self._publish("error", "the world stopped by a fault of its own; the terminal says which")
            self._publish("failed", None)

    def _turn(self, due: float) -> float:
        """One command, one step, or a wait for either. Returns when the next step is due."""
        task: Callable[[], None]
        with self._wake:
            now = time.monotonic()
            if self._stopping:
                return due
            if self._commands:
                task = partial(self._do, self._commands.popleft())
            elif not self._runs():
                self._wake.wait()
                return max(due, time.monotonic())
            elif due > now:
                self._wake.wait(due - now)
                return due
            else:
                held = self._tapped | set(self._keys.held)
                task = partial(self._step, held, self._keys.fine, self._n, self._name)
                self._tapped = frozenset()
                due = max(due, now - self._period) + self._period
        try:
            task()
        except UserError as error:
            self._rest()
            self._publish("error", str(error))
            self._tell()
        return due

    def _runs(self) -> bool:
        return bool(self._name or self._keys.held or self._tapped or self._grip_left)

    def _rest(self) -> None:
        with self._wake:
            self._keys, self._tapped, self._grip_left = Keys(type="keys", held=()), frozenset(), 0
            self._name = None

    def _do(self, command: Command | None) -> None:
        session = self.session
        if isinstance(command, Grip):
            session.closed = not session.closed
            with self._wake:
                self._n, self._name, self._grip_left = max(self._n, command.n), None, GRIP_STEPS
            return
        if isinstance(command, Reset):
            with self._wake:  # commands before it may have set these
                self._name, self._grip_left = None, 0
            kind = command.start
            number = kind if isinstance(kind, int) else session.start if kind == "again" else session.draw(kind)
            session.reset(number)
        elif isinstance(command, Worlds):
            session.show(command.shown)
        elif isinstance(command, Act):
            self._let(command.name)
        elif isinstance(command, Speed):
            self._period = 1 / command.steps_per_second
        self._tell()

    def _let(self, name: str | None) -> None:
        """Let this policy drive from now on."""
        if name is not None and name not in self.driver.policies:
            raise UserError(f"policy: expected {', '.join(self.driver.policies) or 'none'}, found {name!r}")
        self.session.drop_plan()
        with self._wake:
            self._name, self._grip_left = name, 0  # before it is read: who presses a key meanwhile takes over
        if name is not None and (self._policy is None or self._policy[0] != name):
            self._policy = None  # before the next one is read: they may be large
            self._policy = (name, self.driver.policies[name]())

    def _step(self, held: frozenset[str], fine: bool, n: int, name: str | None) -> None:
        session = self.session
        if name is not None and self._policy is not None:
            session.step_policy(self._policy[1], self.driver.sampling)
        else:
            session.drop_plan()
            action_A = action_of(self.controls, held, session.action_dim, session.closed, fine)
            session.step(action_A)
            self._grip_left = max(0, self._grip_left - 1)
        self._publish("frame", self._frame(n, name))
        if name is None:
            if self._runs():
                session.prepare(action_A)  # most likely the same again, and then no time is lost
            return
        solved = all(session.success_step(world) is not None for world in session.shown)
        if solved or session.depth >= self.driver.horizon:
            with self._wake:
                self._name = None  # keys that were pressed during this step are held on
            self._tell()
        elif self._policy is not None:
            session.plan(self._policy[1], self.driver.sampling)

    def _frame(self, n: int, policy: str | None) -> bytes:
        session = self.session
        header = {
            "attempt": session.attempt,
            "depth": session.depth,
            "n": n,
            "policy": policy,
            "closed": session.closed,
            "chunk_ms": round(1000 * session.tracks["imagined"].seconds, 1),
            "success": {world: round(glimpse.success, 4) for world, glimpse in session.glimpses.items()},
            "success_step": {world: session.success_step(world) for world in session.shown},
        }
        return pack_frame(header, {world: session.glimpses[world].frame_HWC for world in session.shown})

    def _tell(self) -> None:
        """Everything that viewers see, from the start of this attempt on."""
        session = self.session
        start = session.starts[session.start].imagined
        scene = {
            "attempt": session.attempt,
            "start": session.start,
            "kind": start.reason,
            "recorded_step": start.step,
            "instruction": start.instruction,
            "shown": session.shown,
            "missing": {"true": session.why_missing("true")},
            "steps_per_second": round(1 / self._period, 2),
            "curves": {world: [round(value, 4) for value in session.curves[world]] for world in session.shown},
        }
        self._publish("scene", scene)
        self._publish("frame", self._frame(self._n, self._name))
