"""The run folder: its config, which stages are done, and the ledger of rollouts in the true simulator.

runs/NAME/config.yaml     the whole config; opening the folder with another one is an error
          manifest.json   {format, wovr, seed, stages: {name: {finished, seconds, source, summary}}}; `source` is the
                          code that ran the stage, see `wovr.core.source`
          ledger.jsonl    one line per batch of true rollouts: {key, purpose, stage, episodes, steps}, and
                          `lost` where the simulator died under some
          sft/ …          what each stage writes
"""

from __future__ import annotations

import fcntl
import importlib.metadata
import os
import time
from collections.abc import Collection, Mapping
from pathlib import Path
from types import TracebackType
from typing import IO, Any

import yaml

from wovr.core.checkpoint import read_json, write_json, write_text
from wovr.core.config import first_difference
from wovr.core.errors import UserError
from wovr.core.log import append_record, read_records
from wovr.core.progress import Expected
from wovr.core.source import source

MANIFEST, CONFIG, LEDGER = "manifest.json", "config.yaml", "ledger.jsonl"
FORMAT = 1
"""Layout of the folder; a folder of another number is refused."""
EPISODES = "episodes"
"""The store of recorded episodes in it."""
LOOKED_AT = 5
"""Neighbours, newest first, in which to look for how long stages take."""


class RunFolder:
    """One run on disk. `open` it to work in it (one process at a time), `read` it to look."""

    def __init__(self, path: Path, lock: IO[str] | None, *, follows: bool = False) -> None:
        """Use `open`, `read` or `follow`."""
        self.path = path
        self._lock = lock
        self._source = source() if lock else {}  # now, before hours in which a checkout may move on
        self._follows = follows
        self._manifest: dict[str, Any] = read_json(path / MANIFEST)
        found = self._manifest.get("format")
        if found != FORMAT:
            raise UserError(f"{path / MANIFEST}: key 'format': expected {FORMAT}, found {found!r}")

    @classmethod
    def open(cls, path: Path, config: Mapping[str, Any], ignore: Collection[str] = ()) -> RunFolder:
        """Make the folder, or continue it when it was made with the same config.

        Episodes may be there before: `wovr convert` puts them where a run looks for them.

        `config` is `Config.model_dump(mode="json")`; the top-level keys in `ignore` do not change results and may
        differ. Raises UserError when the folder has another config, other content or is in use.
        """
        text = yaml.safe_dump(dict(config), sort_keys=False)
        others = path.is_dir() and any(file.name != EPISODES for file in path.iterdir())
        if others and not (path / ".lock").exists():
            raise UserError(f"{path}: expected a new folder or a run folder, found other files; choose another name")
        path.mkdir(parents=True, exist_ok=True)
        lock = _lock(path)
        try:
            if (path / MANIFEST).exists():
                _check_same(path, read_config(path), yaml.safe_load(text), ignore)
            write_text(path / CONFIG, text)
            if not (path / MANIFEST).exists():
                version = importlib.metadata.version("wovr")
                manifest: dict[str, Any] = {"format": FORMAT, "wovr": version, "seed": config.get("seed"), "stages": {}}
                write_json(path / MANIFEST, manifest)
            return cls(path, lock)
        except BaseException:
            lock.close()
            raise

    @classmethod
    def read(cls, path: Path) -> RunFolder:
        """An existing folder, without the right to change it."""
        if not (path / MANIFEST).exists():
            raise UserError(f"{path}: expected a run folder, found no {MANIFEST} in it")
        return cls(path, lock=None)

    @classmethod
    def follow(cls, path: Path) -> RunFolder:
        """The folder that rank 0 has open, for the other ranks: they do the same work and write none of it down."""
        return cls(path, lock=None, follows=True)

    @property
    def version(self) -> str:
        """The version of wovr that made the folder."""
        return str(self._manifest["wovr"])

    @property
    def config(self) -> dict[str, Any]:
        """The content of config.yaml."""
        return read_config(self.path)

    def folder(self, name: str) -> Path:
        """The folder of a stage, made when missing; `name` may have parts: `refine/round_1/rl`."""
        folder = self.path / name
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def refresh(self) -> None:
        """Read again what rank 0 has written: all ranks then take the same turns."""
        self._manifest = read_json(self.path / MANIFEST)

    def stage_done(self, name: str) -> bool:
        """Whether the stage is complete."""
        return name in self._manifest["stages"]

    def stages(self) -> dict[str, dict[str, Any]]:
        """{name: {finished, seconds, source, summary}} of every complete stage; `finished` is in seconds since 1970.

        Runs of older versions lack `source`.
        """
        return dict(self._manifest["stages"])

    def expected(self, ignore: Collection[str]) -> Expected | None:
        """How long stages may take, None where nothing tells: what they took here, where they are repeated, and in that
        folder beside this one which got furthest with the same config but for the keys in `ignore`."""
        own = {name: stage["seconds"] for name, stage in self.stages().items()}
        theirs = _seconds_beside(self.path.absolute(), _without(self.config, ignore), ignore)
        if theirs is not None:
            folder, seconds = theirs
            return Expected(seconds | own, f"as in {self.path.parent / folder}")
        return Expected(own, "as before") if own else None

    def mark_done(self, name: str, seconds: float, summary: Mapping[str, Any]) -> None:
        """Record a stage as complete, after its artifacts are in place. `summary` must be JSON."""
        assert self._lock is not None, "a run folder opened with `read` or `follow` is not written"
        self._manifest["stages"][name] = {
            "finished": time.time(),
            "seconds": round(seconds, 3),
            "source": self._source,
            "summary": dict(summary),
        }
        write_json(self.path / MANIFEST, self._manifest)

    def add_rollouts(self, purpose: str, *, episodes: int, steps: int, stage: str, key: str, lost: int = 0) -> None:
        """Write true-simulator rollouts to the ledger. The same `key` again, after a resume, counts once.

        `lost` episodes, whose simulator died under them, come on top of `episodes`.
        """
        if self._follows:
            return
        assert self._lock is not None, "a run folder opened with `read` is not written"
        ledger = self.path / LEDGER
        if any(line["key"] == key for line in read_records(ledger)):
            return
        record = {"key": key, "purpose": purpose, "stage": stage, "episodes": episodes, "steps": steps}
        append_record(ledger, record | ({"lost": lost} if lost else {}))

    def ledger(self) -> dict[str, dict[str, int]]:
        """{purpose: {episodes, steps}} of all true-simulator rollouts so far, and `lost` where some were."""
        totals: dict[str, dict[str, int]] = {}
        for line in read_records(self.path / LEDGER):
            total = totals.setdefault(line["purpose"], {"episodes": 0, "steps": 0})
            total["episodes"] += line["episodes"]
            total["steps"] += line["steps"]
            if "lost" in line:
                total["lost"] = total.get("lost", 0) + line["lost"]
        return totals

    def close(self) -> None:
        """Let other processes open the folder."""
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def __enter__(self) -> RunFolder:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


def _lock(path: Path) -> IO[str]:
    """Hold `.lock` for as long as the file stays open; the system frees it when the process dies."""
    file = (path / ".lock").open("a+")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.seek(0)
        holder = file.read().strip() or "unknown"
        file.close()
        raise UserError(
            f"{path}: expected a run folder that is not in use, found it open in process {holder}; "
            "wait for it or choose another name"
        ) from None
    file.truncate(0)
    file.write(str(os.getpid()))
    file.flush()
    return file


def _check_same(path: Path, old: dict[str, Any], new: dict[str, Any], ignore: Collection[str]) -> None:
    difference = first_difference(_without(old, ignore), _without(new, ignore))
    if difference:
        key, before, after = difference
        raise UserError(
            f"{path}: key '{key}': expected {before!r} as in the folder's config.yaml, found {after!r}; "
            "choose another folder name, or restore the value to continue this run"
        )


def _seconds_beside(
    run: Path, config: Mapping[str, Any], ignore: Collection[str]
) -> tuple[str, dict[str, float]] | None:
    """(folder, seconds by stage) of the neighbour of `run` with this config that has most stages."""
    others = [path for path in run.parent.glob(f"*/{MANIFEST}") if path.parent.name != run.name]
    found = []
    for path in sorted(others, key=lambda path: path.stat().st_mtime, reverse=True)[:LOOKED_AT]:
        try:
            seconds = {name: float(stage["seconds"]) for name, stage in read_json(path)["stages"].items()}
            if seconds and _without(read_config(path.parent), ignore) == config:
                found.append((path.parent.name, seconds))
        except (UserError, KeyError, TypeError, ValueError, AttributeError):
            continue  # whatever lies there is no run of ours
    return max(found, key=lambda one: len(one[1]), default=None)


def _without(config: Mapping[str, Any], keys: Collection[str]) -> dict[str, Any]:
    return {key: value for key, value in config.items() if key not in keys}


def read_config(path: Path) -> dict[str, Any]:
    """The config of the run folder `path`. UserError where there is none."""
    file = path / CONFIG
    try:
        config = yaml.safe_load(file.read_text())
    except (OSError, yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{file}: expected the config of this run, found {' '.join(str(error).split())}") from None
    if not isinstance(config, dict):
        raise UserError(f"{file}: expected a mapping of keys, found {type(config).__name__}")
    return config
