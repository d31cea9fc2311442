"""Data in other formats <-> our episodes and keyframe banks: what `wovr convert` does.

Episodes travel one at a time, and into our store in shards of at most `BATCH_BYTES` of pictures, so memory does not
grow with the data. A conversion that fails or is interrupted removes what it wrote; where the process is killed, whole
shards stay, and a second conversion of the same purpose is refused rather than added.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args

from wovr.core.checkpoint import read_json
from wovr.core.errors import UserError
from wovr.core.log import Bar, RunLog
from wovr.core.types import Episode
from wovr.episodes.foreign import Success, resize
from wovr.episodes.libero_files import write_libero
from wovr.episodes.robomimic import demo_names, read_robomimic
from wovr.episodes.store import EpisodeStore
from wovr.kir.bank import KeyframeBank
from wovr.kir.published import read_starts, start_files, write_starts
from wovr.stages.data import COLLECT, DEMONSTRATIONS, refine_purpose

Kind = Literal["episodes", "lerobot-v2.1", "lerobot-v3.0", "libero", "keyframes", "npy"]
"""Formats: our store; LeRobot datasets; demonstrations of LIBERO or robomimic; our keyframe bank; published starts."""
STARTS = ("keyframes", "npy")
"""Kinds of start states; the others hold episodes."""
BATCH, BATCH_BYTES = 32, 128 * 2**20
"""A shard of the store is closed at so many episodes, or bytes of frames."""
PURPOSES = rf"{COLLECT}|{DEMONSTRATIONS}|{refine_purpose(1)[:-1]}[1-9]\d*"
"""Lines of the ledger that stages read."""
LIBERO_FPS = 20
"""Control steps per second, of LIBERO and most of robomimic's."""


@dataclass(frozen=True, slots=True)
class Options:
    """What the caller says about the data; None leaves it to the source."""

    purpose: str | None = None
    """Line of the ledger. Our own files bring theirs; `demonstrations` for others."""
    camera: str | None = None
    """Key of the camera whose frames are taken."""
    wrist: str | None = None
    """Key of the camera at the hand."""
    size: int | None = None
    """Height and width of frames."""
    success: Success = "recorded"
    """Which frames are successful."""
    instruction: str | None = None
    """Of all episodes."""
    task: int | None = None
    """Task id of all episodes."""
    fps: int | None = None
    """Env steps per second, of a LeRobot dataset that is written."""
    states: bool = True
    """Whether a LeRobot dataset that is written holds simulator states."""
    append: bool = False
    """Whether episodes may join others of the same purpose."""


@dataclass(slots=True)
class Converted:
    """What a conversion came to: episodes, or start states."""

    episodes: int = 0
    starts: int = 0
    frames: int = 0
    successes: int = 0
    bytes: int = 0
    """On disk, of what was written."""


def recognise(source: Path) -> Kind:
    """The format of what is on disk. UserError where there is nothing, or nothing known."""
    by_suffix: dict[str, Kind] = {".hdf5": "libero", ".h5": "libero", ".npy": "npy", ".safetensors": "keyframes"}
    if source.is_file() and source.suffix in by_suffix:
        return by_suffix[source.suffix]
    if (source / "meta" / "info.json").is_file():
        info = read_json(source / "meta" / "info.json")
        version = str(info.get("codebase_version")) if isinstance(info, dict) else ""
        return "lerobot-v3.0" if version.startswith("v3") else "lerobot-v2.1"  # its reader checks the version
    if any(source.glob("shard_*.hdf5")):
        return "episodes"
    if any(source.glob("*.hdf5")):
        return "libero"
    if any(source.glob("*.npy")):
        return "npy"
    found = "something else" if source.exists() else "none"
    raise UserError(
        f"{source}: expected a folder of episodes (shard_*.hdf5), a LeRobot dataset (meta/info.json), demonstrations "
        f"(.hdf5), a keyframe bank (.safetensors) or published start states (.npy), found {found}"
    )


def convert(source: Path, target: Path, to: Kind | None, options: Options, log: RunLog) -> Converted:
    """Convert `source` to `target`. UserError in one line for whatever does not fit; then nothing is left behind."""
    if options.purpose is not None and not re.fullmatch(PURPOSES, options.purpose):
        raise UserError(f"--purpose: expected {COLLECT}, {DEMONSTRATIONS} or refine-1, ..., found {options.purpose!r}")
    kind = recognise(source)
    to = to or _default(source, kind)
    if (kind in STARTS) != (to in STARTS):
        raise UserError(f"{source}: expected {_list(kind in STARTS)} to convert {kind} to, found --to {to}")
    if target.resolve() == source.resolve():
        raise UserError(f"{target}: expected another place than the source's, found the same")
    _check_target(target, to)
    with _no_traces(target):
        if kind in STARTS:
            return _convert_starts(source, kind, target, to)
        done = Converted()
        total, episodes = _episodes(source, kind, options)
        with log.progress("convert", total) as bar:
            _write(target, to, _counted(episodes, done, bar), kind, source, options)
        done.bytes = _size(target)
        return done


def _default(source: Path, kind: Kind) -> Kind:
    if kind in ("episodes", "keyframes"):
        raise UserError(f"{source}: expected --to with one of {_list(kind in STARTS)}, found none")
    return "keyframes" if kind == "npy" else "episodes"


def _list(starts: bool) -> str:
    return ", ".join(kind for kind in get_args(Kind) if (kind in STARTS) == starts)


def _check_target(target: Path, to: Kind) -> None:
    """Refuse a target in which something would be lost or mixed; the rest of the check is in the writers."""
    if to == "keyframes" and (target.exists() or target.suffix != ".safetensors"):
        found = "one" if target.exists() else repr(target.name)
        raise UserError(f"{target}: expected a .safetensors file that does not exist yet, found {found}")
    if to == "episodes" and target.exists():
        others = [path.name for path in target.iterdir()] if target.is_dir() else [target.name]
        if not all(name.startswith(("shard_", ".shard_")) for name in others):
            hint = f"; its episodes belong in {target / 'episodes'}" if "manifest.json" in others else ""
            raise UserError(f"{target}: expected a new folder or one of episodes, found other files{hint}")


def _episodes(source: Path, kind: Kind, options: Options) -> tuple[int, Iterator[Episode]]:
    """(how many there are, the episodes as the caller wants them). Metadata are checked before the first is read."""
    if kind == "episodes":
        _refuse(source, kind, camera=options.camera, wrist=options.wrist)
        store = EpisodeStore(source)
        return len(store), (_adapted(episode, options) for episode in store.iter())
    shared: dict[str, Any] = {"success": options.success, "size": options.size}
    cameras: dict[str, Any] = {"camera": options.camera, "wrist": options.wrist}
    if kind == "libero":
        files = sorted(source.glob("*.hdf5")) if source.is_dir() else [source]
        total = sum(len(demo_names(path)) for path in files)
        given: dict[str, Any] = {"purpose": options.purpose, "task_id": options.task}
        return total, (
            episode
            for number, path in enumerate(files)
            for episode in read_robomimic(
                path, **shared, **cameras, **given, instruction=options.instruction, file_number=number
            )
        )
    from wovr.episodes.lerobot import load_info, read_lerobot

    total = load_info(source).total_episodes
    episodes = read_lerobot(source, **shared, **cameras, purpose=options.purpose or DEMONSTRATIONS, policy="human")
    return total, (_adapted(episode, replace(options, success="recorded")) for episode in episodes)


def _refuse(source: Path, kind: Kind, **asked: object) -> None:
    """UserError where the caller chose among what this kind has one of."""
    for name, value in asked.items():
        if value is not None:
            raise UserError(f"{source}: --{name}: expected none with {kind}, which have no choice, found {value!r}")


def _adapted(episode: Episode, options: Options) -> Episode:
    """The episode with what the caller said about it."""
    given = {"purpose": options.purpose, "instruction": options.instruction, "task_id": options.task}
    changes: dict[str, Any] = {key: value for key, value in given.items() if value is not None}
    if options.success != "recorded":
        success_T = episode.success_T & False
        success_T[-1:] = options.success == "last"
        changes["success_T"] = success_T
    if options.size is not None:
        changes["frames_THWC"] = resize(episode.frames_THWC[:], options.size)
        if episode.wrist_THWC is not None:
            changes["wrist_THWC"] = resize(episode.wrist_THWC[:], options.size)
    return replace(episode, **changes) if changes else episode


def _counted(episodes: Iterator[Episode], done: Converted, bar: Bar) -> Iterator[Episode]:
    for episode in episodes:
        yield episode
        done.episodes += 1
        done.frames += len(episode.frames_THWC)
        done.successes += episode.success
        bar.advance(success=done.successes / done.episodes)


def _write(target: Path, to: Kind, episodes: Iterator[Episode], kind: Kind, source: Path, options: Options) -> None:
    if to == "episodes":
        _append(target, episodes, options.append)
    elif to == "libero":
        write_libero(target, episodes)
    else:
        from wovr.episodes.lerobot import load_info, write_lerobot

        fps = options.fps or (round(load_info(source).fps) if kind.startswith("lerobot") else LIBERO_FPS)
        version: Literal["v2.1", "v3.0"] = "v3.0" if to == "lerobot-v3.0" else "v2.1"
        write_lerobot(target, episodes, version=version, fps=fps, states=options.states)


def _append(target: Path, episodes: Iterator[Episode], append: bool) -> None:
    """Add shard by shard; where anything fails, remove those that were added."""
    store = EpisodeStore(target)
    taken = set() if append else {store.info(name).purpose for name in store.names}
    before = set(target.glob("shard_*.hdf5"))
    batch: list[Episode] = []
    size = 0
    try:
        for episode in episodes:
            if episode.purpose in taken:
                raise UserError(
                    f"{target}: expected no episodes of purpose {episode.purpose!r} yet, found some; remove them, "
                    "choose another --purpose, or add to them with --append"
                )
            batch.append(episode)
            size += sum(frames[:].nbytes for frames in (episode.frames_THWC, episode.wrist_THWC) if frames is not None)
            if len(batch) == BATCH or size >= BATCH_BYTES:
                store.append(batch)
                batch, size = [], 0
        store.append(batch)
    except BaseException:
        for path in set(target.glob("shard_*.hdf5")) - before:
            path.unlink()
        raise


def _convert_starts(source: Path, kind: Kind, target: Path, to: Kind) -> Converted:
    """Banks are held in memory whole, as they are when they are used."""
    bank = KeyframeBank(read_starts(start_files(source))) if kind == "npy" else KeyframeBank.load(source)
    if to == "npy":
        write_starts(target, bank)
    else:
        bank.save(target)
    return Converted(starts=len(bank), bytes=_size(target))


def _size(target: Path) -> int:
    files = target.rglob("*") if target.is_dir() else [target]
    return sum(path.stat().st_size for path in files if path.is_file())


@contextmanager
def _no_traces(target: Path) -> Iterator[None]:
    """Remove the folders that were made on the way to a target that never came to be."""
    made = [path for path in (target, *target.parents) if not path.exists()]
    try:
        yield
    except BaseException:
        for path in made:
            if path.is_dir() and not any(path.iterdir()):
                path.rmdir()
        raise
