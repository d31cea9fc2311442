"""One live picture of a command on a terminal: stages, the work of the one that runs, success as it comes to be known.

It is redrawn in place from what there is to tell, by a thread that rich runs; what else is printed goes above it. When
the command ends, in whatever way, the last picture stays.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from threading import RLock

from rich.console import Console, ConsoleOptions, RenderResult
from rich.live import Live
from rich.text import Text

from wovr.core.progress import Expected, Stage, Success, Work, World, clock, duration, speed, values

REFRESH = 2.0
"""Pictures per second."""
MARKS = {"done": "✓", "running": "▸", "to come": "·", "left out": "–", "stopped": "✗"}
ASCII_MARKS = {"done": "+", "running": ">", "to come": ".", "left out": "-", "stopped": "x"}
STYLES = {"done": "green", "running": "bold", "to come": "dim", "left out": "dim", "stopped": "bold red"}
WORLD_STYLES: dict[World, str] = {"true": "cyan", "imagined": "magenta"}
LEVELS = "▁▂▃▄▅▆▇█"
BAR_WIDTH, SPARKS = 24, 20
MIN_SUCCESS = 3
"""Lines of success that stay where the terminal is low."""


class Display:
    """What is told of one command, drawn where `live` is entered."""

    def __init__(self, console: Console, title: str) -> None:
        self._console, self._title = console, title
        self._began = time.monotonic()
        self._stages: dict[str, Stage] = {}
        self._expected: Expected | None = None
        self._work: list[Work] = []
        self._success: dict[tuple[World, str], Success] = {}
        self._live: Live | None = None
        # The thread that draws holds it too. Under it nothing is drawn, or the two would wait for each other.
        self._lock = RLock()

    @contextmanager
    def live(self) -> Iterator[None]:
        """Draw until the outermost block ends."""
        if self._live is not None:
            yield
            return
        self._live = Live(self, console=self._console, refresh_per_second=REFRESH)
        self._live.start()
        # rich hides the cursor. A process that is killed could not bring it back.
        self._console.show_cursor(True)
        try:
            yield
        finally:
            live, self._live = self._live, None  # the last picture may be higher than the terminal
            live.stop()

    def plan(self, stages: Sequence[Stage], expected: Expected | None) -> None:
        """These stages are to be seen, in this order."""
        with self._lock:
            self._stages = {stage.name: stage for stage in stages}
            self._expected = expected

    def put(self, stage: Stage) -> None:
        """A stage is as it now is."""
        with self._lock:
            self._stages[stage.name] = stage

    @contextmanager
    def work(self, work: Work) -> Iterator[None]:
        """This work is under way."""
        with self._lock:
            self._work.append(work)
        yield  # what an error ends stays in the last picture
        with self._lock:
            self._work.remove(work)

    def success(self, success: Success) -> None:
        """A rate has come to be known, or has moved."""
        with self._lock:
            self._success[success.world, success.of] = success

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """The picture, in the width and height that the terminal has now."""
        with self._lock:
            height = console.size.height - 1 if self._live is not None else None
            lines = self._lines(options, height)
        yield from lines

    def _lines(self, options: ConsoleOptions, height: int | None) -> list[Text]:
        """All lines, or what of them is folded so that `height` lines suffice."""
        success = [self._of_success(one, options) for one in self._success.values()]
        stages = self._of_stages(options, fold_done=False, fold_to_come=False)
        room = None if height is None else height - 1 - (2 if success else 0)
        if room is not None and len(stages) + len(success) > room:
            stages = self._of_stages(options, fold_done=True, fold_to_come=False)
        if room is not None and len(stages) + len(success) > room:
            stages = self._of_stages(options, fold_done=True, fold_to_come=True)
        if room is not None and len(stages) + len(success) > room:
            success = success[-max(MIN_SUCCESS, room - len(stages)) :]
        above = [_line(""), _line(("  success", "bold"))] if success else []
        lines = [*([self._header()] if self._stages else []), *stages, *above, *success]
        return lines if height is None else lines[: max(1, height)]

    def _header(self) -> Text:
        left = self._expected.left(self._stages) if self._expected else None
        busy = any(stage.state in ("to come", "running") for stage in self._stages.values())
        rest = f"  about {duration(left)} left, {self._expected.source}" if left and busy and self._expected else ""
        return _line((self._title, "bold"), f"  {clock(time.monotonic() - self._began)}", (rest, "dim"))

    def _of_stages(self, options: ConsoleOptions, *, fold_done: bool, fold_to_come: bool) -> list[Text]:
        marks = ASCII_MARKS if options.ascii_only else MARKS
        width = max((len(name) for name in self._stages), default=0)
        done = [stage for stage in self._stages.values() if stage.state in ("done", "left out")]
        to_come = [stage for stage in self._stages.values() if stage.state == "to come"]
        lines = []
        if fold_done and done:
            took = duration(sum(stage.seconds for stage in done))
            lines.append(_line((f"{marks['done']} {len(done)} stages", STYLES["done"]), (f"  {took}", "dim")))
        for stage in self._stages.values():
            if (fold_done and stage in done) or (fold_to_come and stage in to_come):
                continue
            mark = f"{marks[stage.state]} {stage.name:{width}}"
            lines.append(_line((mark, STYLES[stage.state]), (f"  {_told(stage)}", "dim")))
            if stage.state in ("running", "stopped"):
                lines += self._of_work(options)
        if not any(stage.state in ("running", "stopped") for stage in self._stages.values()):
            lines += self._of_work(options)
        if fold_to_come and to_come:
            names = ", ".join(stage.name for stage in to_come)
            lines.append(_line((f"{marks['to come']} {len(to_come)} to come: {names}", STYLES["to come"])))
        return lines

    def _of_work(self, options: ConsoleOptions) -> list[Text]:
        width = max((len(work.description) for work in self._work), default=0)
        lines = []
        for work in self._work:
            count = f"{work.done}/{work.total}"
            left = "" if work.left is None or work.done >= work.total else f"{clock(work.left)} left"
            text = "  ".join(part for part in (count, speed(work.rate), left) if part)
            room = min(BAR_WIDTH, options.max_width - width - len(text) - 6)
            bar = _bar(work.done / max(work.total, 1), max(room, 0), ascii_only=options.ascii_only)
            lines.append(_line(f"  {work.description:{width}}  ", (bar, "green"), f"  {text}" if bar else text))
            if work.shown:
                lines.append(_line((f"  {'':{width}}  {values(work.shown)}", "dim")))
        return lines

    def _of_success(self, success: Success, options: ConsoleOptions) -> Text:
        width = max(len(of) for _, of in self._success)
        rates = list(success.rates.values())
        curve = _spark(rates) if len(rates) > 1 and not options.ascii_only else ""
        world = (f"{success.world:8}", WORLD_STYLES[success.world])
        return _line("  ", world, f"  {success.of:{width}}  {success!s}", (f"  {curve}" if curve else "", world[1]))


def _line(*parts: str | tuple[str, str]) -> Text:
    """One line, cut where the terminal ends."""
    return Text.assemble(*parts, no_wrap=True, overflow="ellipsis")


def _told(stage: Stage) -> str:
    if stage.state == "running":
        return clock(time.monotonic() - stage.began)
    if stage.state == "stopped":
        return f"stopped after {duration(stage.seconds)}"
    return stage.note or (duration(stage.seconds) if stage.state == "done" else "")


def _bar(share: float, width: int, *, ascii_only: bool) -> str:
    full, empty = "#-" if ascii_only else "━╌"
    done = int(width * min(1.0, share))
    return full * done + empty * (width - done)


def _spark(rates: Sequence[float]) -> str:
    """The whole curve from 0 % to 100 % in a few characters, each the mean of its part."""
    cells = min(len(rates), SPARKS)
    bounds = [len(rates) * cell // cells for cell in range(cells + 1)]
    means = [sum(rates[a:b]) / (b - a) for a, b in itertools.pairwise(bounds)]
    return "".join(LEVELS[round(max(0.0, min(1.0, mean)) * (len(LEVELS) - 1))] for mean in means)
