"""What a run says: every value goes to `metrics.jsonl`, to wandb only when asked; progress goes to the terminal.

On a terminal one live picture is redrawn (`wovr.core.display`); elsewhere, or when asked, lines are printed.
"""

from __future__ import annotations

import json
import netrc
import os
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, Protocol

from rich.console import Console

from wovr.core.checkpoint import disk_is_full
from wovr.core.display import Display
from wovr.core.errors import UserError
from wovr.core.progress import Expected, Stage, Success, Work, World, clock, duration, speed, values

PLAIN_INTERVAL = 5.0
"""Seconds between lines of progress where there is no terminal."""
SUCCESS = "success"
"""Stage of the lines of `metrics.jsonl` that `RunLog.success` writes."""


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
        """`plain` prints lines even on a terminal. wandb runs offline where there is no key."""
        self._path = folder / "metrics.jsonl"
        self._active = active
        self._console = Console(stderr=True, highlight=False)
        drawn = active and not plain and self._console.is_terminal and not self._console.is_dumb_terminal
        self._display = Display(self._console, folder.name) if drawn else None
        self._success: dict[tuple[World, str], Success] = {}
        self._wandb = _start_wandb(wandb_project, folder, drawn=drawn) if active and wandb_project else None
        if self._display is not None:
            for line in read_records(self._path):
                if line["stage"] == SUCCESS:
                    self._note(line["world"], line["of"], line["step"], line["success"], line.get("ci95"))

    def metrics(self, stage: str, step: int, values: Mapping[str, float]) -> None:
        """Write one line: time (seconds since 1970), stage, step and the values."""
        if not self._active:
            return
        self._append(stage, step, values)
        if self._wandb is not None:
            self._wandb.log({f"{stage}/{key}": value for key, value in values.items()} | {f"{stage}/step": step})

    def success(
        self,
        world: World,
        of: str,
        rate: float,
        *,
        step: int,
        ci95: Sequence[float] | None = None,
        curve: bool = False,
    ) -> None:
        """A success rate in [0, 1] has come to be known: `of` says whose; rates at several steps are a curve.

        A line is printed where no picture is drawn, but for a point of a `curve`, which its bar tells.
        """
        if not self._active:
            return
        found = {"world": world, "of": of, "success": rate} | ({"ci95": list(ci95)} if ci95 else {})
        self._append(SUCCESS, step, found)
        if self._wandb is not None:
            self._wandb.log({f"{SUCCESS}/{world}/{of}": rate, f"{SUCCESS}/step": step})
        success = self._note(world, of, step, rate, ci95)
        if self._display is None and not curve:
            self.info(f"{world} success of {of}: {success}")

    def _append(self, stage: str, step: int, values: Mapping[str, Any]) -> None:
        append_record(self._path, {"time": round(time.time(), 3), "stage": stage, "step": step, **values})

    def _note(self, world: World, of: str, step: int, rate: float, ci95: Sequence[float] | None) -> Success:
        success = self._success.setdefault((world, of), Success(world, of))
        success.add(step, rate, ci95)
        if self._display is not None:
            self._display.success(success)
        return success

    def video(self, name: str, path: Path, *, step: int) -> None:
        """A GIF of the run folder belongs to `name` at `step`. wandb takes a copy."""
        if not self._active:
            return
        place = str(path.relative_to(self._path.parent))
        self._append("video", step, {"of": name, "file": place})
        if self._wandb is not None:
            import wandb

            self._wandb.log({f"video/{name}": wandb.Video(str(path), format="gif"), "video/step": step})

    def info(self, text: str) -> None:
        """Print one line on stderr, above what is drawn."""
        if self._active:
            self._console.print(text, markup=False, emoji=False, soft_wrap=True)  # a log's lines are not broken

    @contextmanager
    def stages(self, names: Sequence[str], expected: Expected | None = None) -> Iterator[None]:
        """These stages follow, in this order. `expected` is what they took another time, if that is known."""
        if self._display is None:
            yield
            return
        self._display.plan([Stage(name) for name in names], expected)
        with self._display.live():
            yield

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """A stage runs until the block ends: it is then done or, where an error ended it, stopped."""
        stage = Stage(name, "running", began=time.monotonic())
        with self._display.live() if self._display else nullcontext():
            self._put(stage)
            try:
                yield
                stage.state = "done"
            except BaseException:
                stage.state = "stopped"
                raise
            finally:
                stage.seconds = time.monotonic() - stage.began
        if self._display is None:
            self.info(f"{name}: done in {duration(stage.seconds)}")

    def passed(self, name: str, note: str, *, done: bool) -> None:
        """A stage does not run, for the reason in `note`: it was `done` before, or is left out."""
        self._put(Stage(name, "done" if done else "left out", note=note))
        if self._display is None:
            self.info(f"{name}: {note}")

    def _put(self, stage: Stage) -> None:
        if self._display is not None:
            self._display.put(stage)

    @contextmanager
    def progress(self, description: str, total: int, done: int = 0) -> Iterator[Bar]:
        """Show `done` of `total` units of work: count, rate, time left. Bars may be nested."""
        work = Work(description, total, done)
        if not self._active:
            yield _Silent()
        elif self._display is None:
            line = _PlainBar(work)
            yield line
            line.close()
        else:
            with self._display.live(), self._display.work(work):
                yield _DrawnBar(work)

    def close(self) -> None:
        """Finish the wandb run, if any."""
        if self._wandb is not None:
            self._wandb.finish()


class _Silent:
    def advance(self, count: int = 1, **shown: float) -> None: ...


class _PlainBar:
    def __init__(self, work: Work) -> None:
        self._work, self._printed = work, time.monotonic()

    def advance(self, count: int = 1, **shown: float) -> None:
        self._work.advance(count, shown)
        if time.monotonic() - self._printed >= PLAIN_INTERVAL:
            self._print()

    def close(self) -> None:
        self._print()

    def _print(self) -> None:
        self._printed = time.monotonic()
        work = self._work
        left = "no time yet" if work.left is None else f"{clock(work.left)} left"
        if work.done >= work.total:
            left = f"done in {clock(work.seconds)}"
        parts = [f"{work.description} {work.done}/{work.total}", speed(work.rate), left, values(work.shown)]
        print("  ".join(part for part in parts if part), file=sys.stderr, flush=True)


class _DrawnBar:
    def __init__(self, work: Work) -> None:
        self._work = work

    def advance(self, count: int = 1, **shown: float) -> None:
        self._work.advance(count, shown)


def _start_wandb(project: str, folder: Path, *, drawn: bool) -> Any:
    import wandb

    if not has_wandb_key():
        os.environ.setdefault("WANDB_MODE", "offline")
    return wandb.init(
        project=project,
        name=folder.name,
        dir=str(folder),
        resume="allow",
        id=folder.name,
        settings={"console": "off"} if drawn else None,  # a picture that is redrawn is no log
    )


def has_wandb_key() -> bool:
    """Whether wandb can log online: by its variable, or as `wandb login` leaves it."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    try:
        return netrc.netrc().authenticators("api.wandb.ai") is not None
    except (OSError, netrc.NetrcParseError):
        return False
