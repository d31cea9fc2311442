"""Published initial states and keyframes (`.npy`) <-> start states, without executing what is in them.

The folder `dataset/` of `RLinf/RLinf-Wan-LIBERO-*` holds one file per start, as RLinf reads it
(`rlinf/data/datasets/world_model.py`, `rlinf/envs/world_model/world_model_wan_env.py`): a one-dimensional array of
frames, each a dict.

    image          (H, W, 3) uint8, turned as our frames are
    delta_action   (A,) environment units, the action that produced the image; no motion where none did
    instruction    text
    init_ee_pose   of the robot's hand, in the first frame; not known to us, neither read nor written

`traj0.npy` has one frame, where an episode starts. `traj0_kir.npy` is a keyframe: frame 0 is the reference, and the
last M frames are the memory.

Such an array is a pickle, and a pickle is a program. numpy's own functions are not safe to call with its arguments
either: a dtype whose flags lie makes an array of addresses of one's choice. So what a file may name is what an array of
plain data needs, and each of these names stands for a class here, which checks what it is given.

Legend: M memory frames, A action dims; H W height and width.
"""

from __future__ import annotations

import math
import pickle
import re
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from wovr.core.checkpoint import new_folder
from wovr.core.errors import UserError
from wovr.core.types import Actions, Frames, StartState, no_motion
from wovr.kir.mine import FIRST_FRAME

PUBLISHED = "published"
"""Reason of keyframes that others found."""
KEYFRAME = "_kir"
"""What a keyframe's file name ends with."""


def start_files(path: Path) -> list[Path]:
    """A file by itself, or those of a folder, traj2 before traj10. UserError where there are none."""
    files = [path] if path.is_file() else list(path.glob("*.npy"))
    if not files:
        raise UserError(f"{path}: expected .npy files of start states, found none")
    return sorted(files, key=lambda file: [int(part) if part.isdigit() else part for part in _parts(file.stem)])


def read_starts(files: Iterable[Path], *, memory_frames: int = 4) -> list[StartState]:
    """One start state per file. Tasks are numbered by their instructions in alphabetical order.

    UserError naming the file for what is damaged, is not of this format, or of another size than the files before.
    """
    starts: list[StartState] = []
    for path in files:
        start = _read_start(path, memory_frames)
        if starts and _sizes(start) != _sizes(starts[0]):
            raise UserError(f"{path}: expected {_sizes(starts[0])} as in the files before, found {_sizes(start)}")
        starts.append(start)
    numbers = {text: number for number, text in enumerate(sorted({start.instruction for start in starts}))}
    return [replace(start, task_id=numbers[start.instruction]) for start in starts]


def write_starts(folder: Path, starts: Iterable[StartState]) -> int:
    """Write one file per start state and return their number. `folder` appears by rename.

    UserError where it holds files already, or the disk is full.
    """
    counts = {"": 0, KEYFRAME: 0}
    with new_folder(folder) as temporary:
        for start in starts:
            kind = "" if start.reason == FIRST_FRAME else KEYFRAME
            frames = _frames(start)
            array = np.empty(len(frames), dtype=object)
            array[:] = frames
            np.save(temporary / f"traj{counts[kind]}{kind}.npy", array)
            counts[kind] += 1
    return sum(counts.values())


def _frames(start: StartState) -> list[dict[str, Any]]:
    nothing_A = no_motion(start.memory_actions_MA.shape[1])
    pictures, actions = [start.reference_HWC], [nothing_A]
    if start.reason != FIRST_FRAME:
        pictures, actions = [*pictures, *start.memory_MHWC], [*actions, *start.memory_actions_MA]
    return [
        {"image": picture, "delta_action": action, "instruction": start.instruction}
        for picture, action in zip(pictures, actions, strict=True)
    ]


def _read_start(path: Path, memory_frames: int) -> StartState:
    frames = load_frames(path)
    pictures = [_image(frame, f"{path}: frame {number}") for number, frame in enumerate(frames)]
    actions = [_action(frame, f"{path}: frame {number}") for number, frame in enumerate(frames)]
    instruction = _text(frames[0].get("instruction"))
    if not instruction:
        raise UserError(f"{path}: frame 0: expected an instruction, found {_shortly(frames[0].get('instruction'))}")
    if 1 < len(frames) < memory_frames or len({(p.shape, a.shape) for p, a in zip(pictures, actions, strict=True)}) > 1:
        expected = f"1 frame, or {memory_frames} and more, all of one size"
        raise UserError(f"{path}: expected {expected}, found {len(frames)} of {sorted({p.shape for p in pictures})}")
    if len(frames) == 1:
        memory, produced = pictures * memory_frames, [no_motion(len(actions[0]))] * memory_frames
    else:
        memory, produced = pictures[-memory_frames:], actions[-memory_frames:]
    return StartState(
        reference_HWC=pictures[0].copy(),
        memory_MHWC=np.stack(memory),
        memory_actions_MA=np.stack(produced),
        instruction=instruction,
        task_id=0,
        episode=path.stem,
        step=len(frames) - 1,
        reason=FIRST_FRAME if len(frames) == 1 else PUBLISHED,
    )


def _sizes(start: StartState) -> str:
    height, width, _ = start.reference_HWC.shape
    return f"{height}x{width} and {start.memory_actions_MA.shape[1]} action numbers"


def _parts(stem: str) -> list[str]:
    return re.split(r"(\d+)", stem)


def _image(frame: dict[Any, Any], place: str) -> Frames:
    found = frame.get("image")
    if not isinstance(found, np.ndarray) or found.dtype != np.uint8 or found.ndim != 3 or found.shape[2] != 3:
        raise UserError(f"{place}: image: expected (height, width, 3) of uint8, found {_shortly(found)}")
    return found


def _action(frame: dict[Any, Any], place: str) -> Actions:
    found = frame.get("delta_action")
    numbers = found if isinstance(found, np.ndarray) and found.dtype.kind in "iuf" else np.empty(())
    with np.errstate(over="ignore"):
        action = numbers.astype(np.float32)
    if action.ndim != 1 or not action.size or not np.isfinite(action).all():
        raise UserError(f"{place}: delta_action: expected a row of finite numbers, found {_shortly(found)}")
    return action


def _text(found: object) -> str:
    """The instruction, '' where it is none. RLinf takes bytes for UTF-8 too."""
    if isinstance(found, bytes):
        return found.decode(errors="replace")
    return str(found) if isinstance(found, str) else ""


def _shortly(found: object) -> str:
    return f"{found.shape} of {found.dtype}" if isinstance(found, np.ndarray) else type(found).__name__


def load_frames(path: Path) -> list[dict[Any, Any]]:
    """The dicts of one file, at least one, their values plain Python or numpy. UserError naming the file where it
    names anything else than plain data needs, or is damaged. Nothing in it is executed."""
    try:
        with path.open("rb") as file:
            _read_header(file)
            array = _Unpickler(file).load()
        found = list(array.value) if isinstance(array, _Array) and array.value.ndim == 1 else []
    except OSError as error:
        raise UserError(f"{path}: expected a file of frames, found {error.strerror or 'none'}") from None
    except _NotPlainError as error:
        raise UserError(f"{path}: expected an array of frames with plain data, found {error}") from None
    except Exception:  # a damaged or hostile pickle may raise anything
        raise UserError(f"{path}: expected an array of frames, found something else, or a damaged file") from None
    frames = [_plain(frame) for frame in found if isinstance(frame, dict)]
    if not frames or len(frames) < len(found):
        raise UserError(f"{path}: expected a one-dimensional array of frames (dicts), found something else")
    return frames


def _plain(frame: dict[Any, Any]) -> dict[Any, Any]:
    """The arrays and scalars that were read in place of the classes that read them."""
    return {key: value.value if isinstance(value, _Array | _Scalar) else value for key, value in frame.items()}


def _read_header(file: IO[bytes]) -> None:
    """Pass over the header, a literal; the pickle follows where it announces objects."""
    version = npy.read_magic(file)
    if version not in ((1, 0), (2, 0)):
        raise _NotPlainError(f"version {version} of the format")
    read = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
    shape, _, dtype = read(file)
    if dtype.kind != "O":
        raise _NotPlainError(f"{dtype} of {shape}")


class _NotPlainError(Exception):
    """What was found instead of plain data."""


class _Dtype:
    """Stands for `numpy.dtype`: numbers, text and objects, no fields."""

    def __init__(self, name: str, align: bool = False, copy: bool = False) -> None:
        if not re.fullmatch(r"O8?|b1|[iu][1248]|f[248]|[SU]\d{1,5}", name):
            raise _NotPlainError(f"values of type {name!r}")
        self.value = np.dtype(name)

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        """Only the byte order counts."""
        order, fields = state[1], state[2:5]
        if order not in ("<", ">", "|", "=") or any(field is not None for field in fields):
            raise _NotPlainError("values of several fields")
        self.value = self.value.newbyteorder(order)

    @staticmethod
    def of(found: object) -> np.dtype[Any]:
        """numpy's own, where the pickle gives what stands for it."""
        if not isinstance(found, _Dtype):
            raise _NotPlainError("an array without a type")
        return found.value


class _Array:
    """Stands for `numpy.ndarray` and what rebuilds one."""

    def __init__(self, *_: object) -> None:
        self.value: NDArray[Any] = np.empty(0)

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, shape, dtype, fortran, data = state
        size = math.prod(shape)
        kind = _Dtype.of(dtype)
        if kind.hasobject:
            if not isinstance(data, list) or len(data) != size:
                raise _NotPlainError("an array without its values")
            flat = np.empty(size, dtype=object)
            for number, value in enumerate(data):  # assigned at once, numpy would look into them
                flat[number] = value
        else:
            flat = np.frombuffer(data, dtype=kind)
        self.value = flat.reshape(shape, order="F" if fortran else "C")


class _Scalar:
    """Stands for a number or text that numpy keeps."""

    def __init__(self, dtype: _Dtype, data: bytes) -> None:
        self.value = np.frombuffer(data, dtype=_Dtype.of(dtype))[0]  # refuses objects

    def __setstate__(self, state: object) -> None:
        raise _NotPlainError("a scalar that is built twice")


KNOWN = {("numpy", "ndarray"): _Array, ("numpy", "dtype"): _Dtype}
for _core in ("numpy.core.multiarray", "numpy._core.multiarray"):  # as numpy 1 and 2 call it
    KNOWN |= {(_core, "_reconstruct"): _Array, (_core, "scalar"): _Scalar}


class _Unpickler(pickle.Unpickler):
    """Knows the names above, no others; persistent ids are refused by the base class."""

    def find_class(self, module: str, name: str) -> Any:
        """The class that stands for a name."""
        if (module, name) not in KNOWN:
            found = f"{module}.{name}"[:80]
            shown = found if found.isprintable() else repr(found)
            raise _NotPlainError(f"{shown} in its pickle, which is not executed")
        return KNOWN[module, name]
