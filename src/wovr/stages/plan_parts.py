"""What a plan says of each stage."""

from __future__ import annotations

from dataclasses import dataclass, fields


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes of one process on its device, and of all processes on the host."""

    weights: float = 0.0
    gradients: float = 0.0
    optimizer: float = 0.0
    """Moments, and the master copy and the average of the weights."""
    activations: float = 0.0
    """And everything else that lives at the peak and not longer."""
    caches: float = 0.0
    """What imagination keeps between Euler steps and chunks."""
    host: float = 0.0

    @property
    def total(self) -> float:
        """On the device."""
        return sum(getattr(self, field.name) for field in fields(self)) - self.host


@dataclass(frozen=True, slots=True)
class Part:
    """One piece of a stage's work."""

    name: str
    memory: Memory
    flops: float
    """Of all processes."""
    seconds: float


@dataclass(frozen=True, slots=True)
class StagePlan:
    """One stage. Its parts follow each other."""

    name: str
    parameters: dict[str, int]
    """Of what is trained, by part; empty where nothing is."""
    parts: list[Part]
    disk: float
    """Bytes, with the states that a training keeps until it is done."""

    @property
    def largest(self) -> Part:
        """The part that takes most memory on the device."""
        return max(self.parts, key=lambda part: part.memory.total)

    @property
    def host(self) -> float:
        return max(part.memory.host for part in self.parts)

    @property
    def flops(self) -> float:
        return sum(part.flops for part in self.parts)

    @property
    def seconds(self) -> float:
        return sum(part.seconds for part in self.parts)
