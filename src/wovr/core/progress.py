"""What there is to tell of a command's progress, and how times and rates are put; who shows it is another matter."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

World = Literal["true", "imagined"]
"""Where success was seen: in the true simulator or in recordings of it, or in imagination."""
State = Literal["to come", "running", "done", "left out", "stopped"]


class Work:
    """A piece of work of which some units are done."""

    def __init__(self, description: str, total: int, done: int) -> None:
        self.description, self.total, self.done = description, total, done
        self.shown: dict[str, float] = {}
        """The last values that came with it."""
        self._start, self._began = done, time.monotonic()
        self._advanced = self._began

    def advance(self, count: int, shown: Mapping[str, float]) -> None:
        """`count` more units are done."""
        self.done += count
        self.shown = {**self.shown, **shown}  # a new one: another thread may be reading
        self._advanced = time.monotonic()

    @property
    def seconds(self) -> float:
        """Since the beginning, or since it was resumed."""
        return time.monotonic() - self._began

    @property
    def rate(self) -> float:
        """Units per second until the last of them was done: waiting for the next does not lower it."""
        return (self.done - self._start) / max(self._advanced - self._began, 1e-9)

    @property
    def left(self) -> float | None:
        """Seconds until all is done; None before there is a rate."""
        if self.done <= self._start:
            return None
        return max(0.0, (self.total - self.done) / self.rate - (time.monotonic() - self._advanced))


@dataclass(slots=True)
class Stage:
    """One of the stages that a command runs."""

    name: str
    state: State = "to come"
    began: float = 0.0
    seconds: float = 0.0
    """What it took, once it is done."""
    note: str = ""
    """Why it did not run."""


@dataclass(frozen=True, slots=True)
class Expected:
    """What stages took another time."""

    seconds: Mapping[str, float]
    source: str
    """Which time that was: `as in runs/seed0`."""

    def left(self, stages: Mapping[str, Stage]) -> float | None:
        """Seconds until the last stage ends; None where one that is still to do is not known.

        By how much this machine is slower or faster now, the stages that are done tell.
        """
        if any(stage.name not in self.seconds for stage in stages.values() if stage.state in ("to come", "running")):
            return None
        ran = [stage for stage in stages.values() if stage.state == "done" and stage.began]
        then = sum(self.seconds.get(stage.name, 0.0) for stage in ran)
        slower = sum(stage.seconds for stage in ran if stage.name in self.seconds) / then if then else 1.0
        left = 0.0
        for stage in stages.values():
            if stage.state == "to come":
                left += slower * self.seconds[stage.name]
            elif stage.state == "running":
                left += max(0.0, slower * self.seconds[stage.name] - (time.monotonic() - stage.began))
        return left


@dataclass(slots=True)
class Success:
    """A success rate, as it came to be known."""

    world: World
    of: str
    """Whose, and when: `base, eval`."""
    rates: dict[int, float] = field(default_factory=dict)
    """By step."""
    ci95: Sequence[float] | None = None
    """Of the last rate, 95 %."""

    def add(self, step: int, rate: float, ci95: Sequence[float] | None) -> None:
        """The rate at a step, the last of all: what was known of later ones is replaced, as where a run is resumed."""
        self.rates = {at: known for at, known in self.rates.items() if at < step} | {step: rate}
        self.ci95 = ci95

    def __str__(self) -> str:
        """`52.1 % [48.0, 56.1]`, the last rate."""
        text = f"{100 * list(self.rates.values())[-1]:.1f} %"
        return text if self.ci95 is None else f"{text} [{', '.join(f'{100 * end:.1f}' for end in self.ci95)}]"


def clock(seconds: float) -> str:
    """For what runs: `4:10`, `1:04:10`."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def duration(seconds: float) -> str:
    """For what is over, or far off: `40 s`, `12 min`, `1 h 05 min`."""
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


def speed(rate: float) -> str:
    """`2.0/s`, or `14 s each` where that says more."""
    if rate >= 0.2:
        return f"{rate:.1f}/s"
    return f"{duration(1 / rate)} each" if rate else ""


def values(shown: Mapping[str, float]) -> str:
    """`loss 0.1235  lr 0.001`."""
    return "  ".join(f"{name} {value:.4g}" for name, value in shown.items())
