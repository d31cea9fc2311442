"""`wovr convert`: the command, and the line that it ends with."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from wovr.core.errors import UserError

if TYPE_CHECKING:
    from wovr.stages.convert import Converted

EXAMPLES = """
What SOURCE is, is seen from its files:

\b
  episodes       wovr's own: a folder of shard_*.hdf5, as runs/NAME/episodes
  lerobot-v2.1   LeRobot dataset: a folder with meta/info.json
  lerobot-v3.0   likewise
  libero         LIBERO's or robomimic's: .hdf5, or a folder of them
  keyframes      wovr's own start states: .safetensors
  npy            published start states: .npy, or a folder of them

The first four hold episodes and convert into each other, the last two likewise.

Examples:

\b
  wovr convert datasets/libero_goal runs/goal/episodes
                                       demonstrations, for `wovr sft`
  wovr convert my_robot runs/mine/episodes --purpose collect
                                       rollouts of a real robot (LeRobot), in
                                       place of `wovr collect`
  wovr convert my_robot runs/mine/episodes --purpose collect \\
    --camera observation.images.top --size 256 --success last
                                       one of several cameras; every episode
                                       ends in success
  wovr convert lift.hdf5 runs/lift/episodes --instruction "lift the cube"
                                       robomimic's files have no instruction
  wovr convert runs/goal/episodes exported --to lerobot-v3.0 --fps 20
                                       what a run recorded, for others
  wovr convert RLinf-Wan-LIBERO-Goal/dataset bank.safetensors
                                       published first frames and keyframes;
                                       nothing in them is executed

Memory does not grow with the number of episodes. A conversion that fails
leaves nothing behind. docs/convert.md says what becomes of steps, pictures
and grippers.
"""


def convert(
    source: Annotated[Path, typer.Argument(metavar="SOURCE", help="File or folder to read.")],
    target: Annotated[Path, typer.Argument(metavar="TARGET", help="File or folder to write.")],
    to: Annotated[
        str | None,
        typer.Option(metavar="KIND", help="What to write.", show_default="episodes, or keyframes from npy"),
    ] = None,
    purpose: Annotated[
        str | None,
        typer.Option(
            help="Ledger line of the episodes: demonstrations, collect, refine-1 ...",
            show_default="demonstrations, or what wovr's own files say",
        ),
    ] = None,
    append: Annotated[bool, typer.Option("--append", help="Add to episodes of the same purpose.")] = False,
    camera: Annotated[
        str | None, typer.Option(metavar="KEY", help="Camera whose frames to take, where there are several.")
    ] = None,
    wrist: Annotated[str | None, typer.Option(metavar="KEY", help="Camera at the hand.")] = None,
    size: Annotated[
        int | None, typer.Option(metavar="PIXELS", min=8, help="Height and width to bring frames to.")
    ] = None,
    success: Annotated[
        str,
        typer.Option(metavar="recorded|last|none", help="Which frames are successful; last: of each episode."),
    ] = "recorded",
    instruction: Annotated[str | None, typer.Option(metavar="TEXT", help="Of all episodes.")] = None,
    task: Annotated[int | None, typer.Option(metavar="N", min=0, help="Task id of all episodes.")] = None,
    fps: Annotated[
        int | None,
        typer.Option(min=1, help="Env steps per second of a LeRobot dataset.", show_default="the source's, or 20"),
    ] = None,
    states: Annotated[
        bool, typer.Option("--states/--no-states", help="Whether a LeRobot dataset gets simulator states.")
    ] = True,
    plain: Annotated[bool, typer.Option("--plain", help="Print lines instead of progress bars.")] = False,
) -> None:
    """Convert episodes and start states from and to other formats."""
    from typing import get_args

    from wovr.core.log import RunLog
    from wovr.episodes.foreign import Success
    from wovr.stages import convert as stage

    for flag, value, known in (("--to", to, get_args(stage.Kind)), ("--success", success, get_args(Success))):
        if value is not None and value not in known:
            raise UserError(f"{flag}: expected {', '.join(known)}, found {value!r}")
    options = stage.Options(
        purpose=purpose,
        camera=camera,
        wrist=wrist,
        size=size,
        success=cast(Any, success),
        instruction=instruction,
        task=task,
        fps=fps,
        states=states,
        append=append,
    )
    log = RunLog(target.parent, plain=plain)
    print(_summary(target, stage.convert(source, target, cast(Any, to), options, log)))


def _summary(target: Path, done: Converted) -> str:
    size = f"{done.bytes / 1e9:.2f} GB" if done.bytes >= 1e9 else f"{done.bytes / 1e6:.1f} MB"
    if done.starts:
        return f"{target}: {done.starts:,} start states, {size}"
    rate = f"{100 * done.successes / done.episodes:.1f} %" if done.episodes else "unknown"
    return f"{target}: {done.episodes:,} episodes, {done.frames:,} frames, success {rate}, {size}"
