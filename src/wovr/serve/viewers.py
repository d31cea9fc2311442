"""Who looks on and who drives: one session that all share, with one driver among its viewers.

A viewer that is slow misses frames, and slows nobody down: what waits for it is at most the newest text of each kind
and as many frames as a chunk has.
"""

from __future__ import annotations

import asyncio
import json
from collections import deque
from typing import Any

MOST = 16
"""Viewers at once."""


class Viewer:
    """What one page is still to be sent."""

    def __init__(self, number: int, frames: int) -> None:
        self.number = number
        self._texts: dict[str, str] = {}
        self._frames: deque[bytes] = deque(maxlen=frames)
        self._any = asyncio.Event()

    def text(self, kind: str, content: dict[str, Any]) -> None:
        """In place of an older one of its kind. A scene shows everything: frames from before it are dropped."""
        if kind == "scene":
            self._frames.clear()
        self._texts[kind] = json.dumps({"type": kind, **content})
        self._any.set()

    def frame(self, data: bytes) -> None:
        """The oldest that waits is dropped where there are too many."""
        self._frames.append(data)
        self._any.set()

    async def next(self) -> str | bytes:
        """Texts first, in the order of their kinds' first coming; then frames, oldest first."""
        while True:
            if self._texts:
                return self._texts.pop(next(iter(self._texts)))
            if self._frames:
                return self._frames.popleft()
            self._any.clear()
            await self._any.wait()


class Viewers:
    """All of them. Everything here runs in the event loop's thread."""

    def __init__(self, frames: int) -> None:
        self._frames = frames
        self._all: dict[int, Viewer] = {}
        self._count = 0
        self.driver: int | None = None
        """Number of the viewer whose keys count."""

    def __len__(self) -> int:
        return len(self._all)

    @property
    def full(self) -> bool:
        return len(self._all) >= MOST

    def join(self, greeting: dict[str, Any]) -> Viewer:
        """The first to come drives."""
        self._count += 1
        viewer = Viewer(self._count, self._frames)
        self._all[viewer.number] = viewer
        viewer.text("hello", greeting)
        self.drive(viewer if self.driver is None else self._all[self.driver])
        return viewer

    def leave(self, viewer: Viewer) -> bool:
        """Whether it was the driver; then the one who has looked on for longest drives."""
        del self._all[viewer.number]
        drove = self.driver == viewer.number
        if drove:
            self.driver = next(iter(self._all), None)
        self._tell_seats()
        return drove

    def drive(self, viewer: Viewer) -> None:
        """Give the controls to this one."""
        self.driver = viewer.number
        self._tell_seats()

    def publish(self, kind: str, content: Any) -> None:
        """What the player says, to all."""
        for viewer in self._all.values():
            if kind == "frame":
                viewer.frame(content)
            elif kind == "error":
                viewer.text("error", {"text": content})
            else:
                viewer.text(kind, content)

    def _tell_seats(self) -> None:
        for number, viewer in self._all.items():
            viewer.text("seat", {"driving": number == self.driver, "viewers": len(self._all)})
