"""Metrics and progress: every value goes to `metrics.jsonl`; wandb only when asked; bars with time left."""

from __future__ import annotations

import json
import netrc
import os
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn

from wovr.core.checkpoint import disk_is_full
from wovr.core.errors import UserError

PLAIN_INTERVAL = 5.0
"""Seconds between lines of progress where there is no terminal."""


def append_record(path: Path, record: Mapping[str, Any]) -> None:
    """Append one JSON object as one line and flush it to disk; what a crash left of a torn last line is cut off."""
    path.parent.mkdir(parents=True, exist_ok=True)
    line = json.dumps(record).encode() + b"\n"
    path.touch()
    try:
        with path.open("rb+") as file:
            file.seek(_end_of_complete_lines(path))
            file.truncate()
            file.write(line)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        if disk_is_full(error):
            raise UserError(f"{path}: expected room for one more line, found a full disk") from None
        raise


def read_records(path: Path) -> list[dict[str, Any]]:
    """Every complete line, [] when there is no file; UserError naming the line that is not JSON."""
    if not path.exists():
        return []
    records = []
    for number, line in enumerate(path.read_bytes()[: _end_of_complete_lines(path)].splitlines(), start=1):
        try:
            records.append(json.loads(line))
        except ValueError as error:
            raise UserError(f"{path}: line {number}: expected JSON, found {error}") from None
    return records


def _end_of_complete_lines(path: Path) -> int:
    """Offset after the last newline."""
    block = 1 << 16
    with path.open("rb") as file:
        end = file.seek(0, os.SEEK_END)
        while end > 0:
            start = max(0, end - block)
            file.seek(start)
            newline = file.read(end - start).rfind(b"\n")
            if newline >= 0:
                return start + newline + 1
            end = start
    return 0


class Bar(Protocol):
    """Progress of one piece of work."""

    def advance(self, count: int = 1, **shown: float) -> None:
        """`count` more units are done; `shown` are values to print beside the bar, for example loss=0.1."""
        ...


class RunLog:
    """The log of one run folder. On ranks other than 0 pass `active=False`: nothing is written or shown."""

    def __init__(
        self, folder: Path, *, plain: bool = False, wandb_project: str | None = None, active: bool = True
    ) -> None:
        """`plain` prints lines instead of bars even on a terminal. wandb runs offline where there is no key."""
        self._path = folder / "metrics.jsonl"
        self._active = active
        self._console = Console(stderr=True, highlight=False)
        self._plain = plain or not self._console.is_terminal
        self._bars: Progress | None = None
        self._wandb = _start_wandb(wandb_project, folder) if active and wandb_project else None

    def metrics(self, stage: str, step: int, values: Mapping[str, float]) -> None:
        """Write one line: time (seconds since 1970), stage, step and the values."""
        if not self._active:
            return
        append_record(self._path, {"time": round(time.time(), 3), "stage": stage, "step": step, **values})
        if self._wandb is not None:
            self._wandb.log({f"{stage}/{key}": value for key, value in values.items()} | {f"{stage}/step": step})

    def info(self, text: str) -> None:
        """Print one line on stderr, above any bar."""
        if self._active:
            self._console.print(text, markup=False)

    @contextmanager
    def progress(self, description: str, total: int, done: int = 0) -> Iterator[Bar]:
        """Show `done` of `total` units of work: count, rate, time left. Bars may be nested."""
        if not self._active:
            yield _Silent()
        elif self._plain:
            bar = _PlainBar(description, total, done)
            yield bar
            bar.close()
        else:
            with self._rich_bar(description, total, done) as rich_bar:
                yield rich_bar

    @contextmanager
    def _rich_bar(self, description: str, total: int, done: int) -> Iterator[Bar]:
        outermost = self._bars is None
        if self._bars is None:
            columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), _Rate())
            shown = TextColumn("{task.fields[shown]}")
            self._bars = Progress(*columns, TimeRemainingColumn(), shown, console=self._console)
            self._bars.start()
        bars = self._bars
        task = bars.add_task(description, total=total, completed=done, shown="")
        try:
            yield _RichBar(bars, task)
        finally:
            if outermost:
                bars.stop()
                self._bars = None
            else:
                bars.remove_task(task)

    def close(self) -> None:
        """Finish the wandb run, if any."""
        if self._wandb is not None:
            self._wandb.finish()


class _Silent:
    def advance(self, count: int = 1, **shown: float) -> None: ...


class _PlainBar:
    def __init__(self, description: str, total: int, done: int) -> None:
        self._description, self._total, self._done, self._start = description, total, done, done
        self._began = self._printed = time.monotonic()
        self._shown: dict[str, float] = {}

    def advance(self, count: int = 1, **shown: float) -> None:
        self._done += count
        self._shown |= shown
        if time.monotonic() - self._printed >= PLAIN_INTERVAL:
            self._print()

    def close(self) -> None:
        self._print()

    def _print(self) -> None:
        self._printed = time.monotonic()
        seconds = max(self._printed - self._began, 1e-9)
        rate = (self._done - self._start) / seconds
        left = f"{_clock((self._total - self._done) / rate)} left" if rate else "no time yet"
        if self._done >= self._total:
            left = f"done in {_clock(seconds)}"
        parts = [f"{self._description} {self._done}/{self._total}", f"{rate:.1f}/s", left, _values(self._shown)]
        print("  ".join(part for part in parts if part), file=sys.stderr, flush=True)


class _RichBar:
    def __init__(self, bars: Progress, task: Any) -> None:
        self._bars, self._task = bars, task
        self._shown: dict[str, float] = {}

    def advance(self, count: int = 1, **shown: float) -> None:
        self._shown |= shown
        self._bars.update(self._task, advance=count, shown=_values(self._shown))


class _Rate(ProgressColumn):
    def render(self, task: Task) -> str:
        return f"{task.speed:.1f}/s" if task.speed else ""


def _values(shown: Mapping[str, float]) -> str:
    return "  ".join(f"{name} {value:.4g}" for name, value in shown.items())


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def _start_wandb(project: str, folder: Path) -> Any:
    import wandb

    if not has_wandb_key():
        os.environ.setdefault("WANDB_MODE", "offline")
    return wandb.init(project=project, name=folder.name, dir=str(folder), resume="allow", id=folder.name)


def has_wandb_key() -> bool:
    """Whether wandb can log online: by its variable, or as `wandb login` leaves it."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    try:
        return netrc.netrc().authenticators("api.wandb.ai") is not None
    except (OSError, netrc.NetrcParseError):
        return False
