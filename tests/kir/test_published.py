"""Published start states: what comes back, what other readers see, and files with code in them."""

from __future__ import annotations

import io
import os
import pickle
from pathlib import Path

import numpy as np
import pytest

from wovr.core.errors import UserError
from wovr.core.types import NO_MOTION_GRIP
from wovr.kir.bank import KeyframeBank
from wovr.kir.mine import FIRST_FRAME, start_state
from wovr.kir.published import PUBLISHED, load_frames, read_starts, start_files, write_starts

SIZE = 4


def frame(number: int, **changes: object) -> dict[str, object]:
    """As published: float64 actions, a pose in each frame."""
    values = {
        "image": np.full((SIZE, SIZE, 3), number, dtype=np.uint8),
        "delta_action": np.full(7, number / 10),
        "init_ee_pose": np.zeros(6),
        "instruction": f"task {number // 100}",
    }
    return values | changes


def save(path: Path, frames: list[object]) -> Path:
    array = np.empty(len(frames), dtype=object)
    array[:] = frames
    np.save(path, array, allow_pickle=True)
    return path


def refused(path: Path, *parts: str) -> str:
    with pytest.raises(UserError) as error:
        read_starts([path])
    text = str(error.value)
    assert text.startswith(str(path)) and "\n" not in text and all(part in text for part in parts), text
    return text


def test_first_frames_and_keyframes(tmp_path: Path) -> None:
    save(tmp_path / "traj2.npy", [frame(150)])
    save(tmp_path / "traj10.npy", [frame(10, instruction=np.str_("task 0"))])
    save(tmp_path / "traj2_kir.npy", [frame(number) for number in range(100, 107)])
    files = start_files(tmp_path)
    assert [file.name for file in files] == ["traj2.npy", "traj2_kir.npy", "traj10.npy"]
    first, keyframe, last = read_starts(files)

    assert [start.reason for start in (first, keyframe, last)] == [FIRST_FRAME, PUBLISHED, FIRST_FRAME]
    assert [start.instruction for start in (first, keyframe, last)] == ["task 1", "task 1", "task 0"]
    assert [start.task_id for start in (first, keyframe, last)] == [1, 1, 0]
    assert (first.step, first.episode, first.init_id) == (0, "traj2", -1)
    assert (first.reference_HWC == 150).all() and (first.memory_MHWC == 150).all() and len(first.memory_MHWC) == 4
    np.testing.assert_array_equal(first.memory_actions_MA, [[0] * 6 + [NO_MOTION_GRIP]] * 4)

    assert (keyframe.reference_HWC == 100).all() and keyframe.step == 6
    assert keyframe.memory_MHWC[:, 0, 0, 0].tolist() == [103, 104, 105, 106]
    np.testing.assert_allclose(keyframe.memory_actions_MA[:, 0], [10.3, 10.4, 10.5, 10.6], rtol=1e-6)
    assert keyframe.memory_actions_MA.dtype == np.float32


def test_round_trip_through_a_bank(make_episode, tmp_path: Path) -> None:
    episode = make_episode([1.0] * 20)
    steps = {0: FIRST_FRAME, 9: "gripper"}
    starts = [start_state(episode, "shard_00000/demo_1", step, reason, 4) for step, reason in steps.items()]
    assert write_starts(tmp_path / "dataset", starts) == 2
    assert [path.name for path in tmp_path.iterdir()] == ["dataset"]
    assert sorted(path.name for path in (tmp_path / "dataset").iterdir()) == ["traj0.npy", "traj0_kir.npy"]
    KeyframeBank(read_starts(start_files(tmp_path / "dataset"))).save(tmp_path / "bank.safetensors")
    for old, new in zip(starts, KeyframeBank.load(tmp_path / "bank.safetensors"), strict=True):
        for field in ("reference_HWC", "memory_MHWC", "memory_actions_MA"):
            np.testing.assert_array_equal(getattr(old, field), getattr(new, field))
        assert new.instruction == old.instruction
    write_starts(tmp_path / "again", read_starts(start_files(tmp_path / "dataset")))
    for name in ("traj0.npy", "traj0_kir.npy"):
        again, before = (load_frames(tmp_path / way / name) for way in ("again", "dataset"))
        for new_frame, old_frame in zip(again, before, strict=True):
            np.testing.assert_equal(new_frame, old_frame)


def test_numpy_reads_what_is_written(make_episode, tmp_path: Path) -> None:
    start = start_state(make_episode([1.0] * 20), "demo_1", 9, "gripper", 4)
    write_starts(tmp_path / "dataset", [start])
    frames = np.load(tmp_path / "dataset" / "traj0_kir.npy", allow_pickle=True)
    assert frames.shape == (5,) and set(frames[0]) == {"image", "delta_action", "instruction"}
    assert frames[0]["image"].dtype == np.uint8 and frames[0]["delta_action"].tolist() == [0, 0, -1]
    np.testing.assert_array_equal(np.stack([item["image"] for item in frames[1:]]), start.memory_MHWC)
    np.testing.assert_array_equal(np.stack([item["delta_action"] for item in frames[1:]]), start.memory_actions_MA)


@pytest.mark.parametrize("protocol", [3, 4])
def test_plain_data_of_every_kind_is_read(tmp_path: Path, protocol: int) -> None:
    values = {
        "big_endian": np.arange(3, dtype=">i4"),
        "fortran": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
        "flags": np.array([True, False]),
        "texts": np.array(["a", "bcd"]),
        "number": np.float32(1.5),
        "plain": [1, 2.5, None, b"x"],
    }
    array = np.empty(1, dtype=object)
    array[0] = values
    path = tmp_path / "x.npy"
    with path.open("wb") as file:
        np.lib.format.write_array_header_1_0(file, np.lib.format.header_data_from_array_1_0(array))
        file.write(pickle.dumps(array, protocol=protocol))
    (found,) = load_frames(path)
    for name, value in values.items():
        np.testing.assert_array_equal(found[name], value, err_msg=name)


def test_numpy_1_spells_its_modules_differently(tmp_path: Path) -> None:
    path = save(tmp_path / "x.npy", [frame(3)])
    content = path.read_bytes()
    assert b"\x8c\x16numpy._core.multiarray" in content
    path.write_bytes(content.replace(b"\x8c\x16numpy._core.multiarray", b"\x8c\x15numpy.core.multiarray"))
    # protocol 4 frames its opcodes: the first frame is one byte shorter now
    (start,) = read_starts([_reframed(path)])
    assert (start.reference_HWC == 3).all()


def _reframed(path: Path) -> Path:
    """Without protocol 4's frames, which only group reads."""
    content = path.read_bytes()
    at = content.index(b"\x80\x04\x95")
    path.write_bytes(content[: at + 2] + content[at + 11 :])
    return path


class Code:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self):
        return os.mkdir, (str(self.marker),)


class Lie:
    """A dtype whose flags say that its objects are plain bytes: numpy then takes bytes for addresses."""

    def __reduce__(self):
        return np.dtype, ("O8", False, True), (3, "|", None, None, None, -1, -1, 0)


class Addresses:
    def __reduce__(self):
        from numpy._core.multiarray import _reconstruct

        return _reconstruct, (np.ndarray, (0,), b"b"), (1, (1,), Lie(), False, b"A" * 8)


class Persistent(pickle.Pickler):
    def persistent_id(self, value: object) -> str | None:
        return "elsewhere" if isinstance(value, bytes) else None


def test_code_is_named_and_not_executed(tmp_path: Path) -> None:
    marker = tmp_path / "executed"
    for place, frames in {
        "an image": [frame(1, image=Code(marker))],
        "a frame": [Code(marker)],
        "a key nobody reads": [frame(1, note=[Code(marker)])],
    }.items():
        path = save(tmp_path / f"{place}.npy", frames)
        refused(path, "posix.mkdir in its pickle, which is not executed")
        assert not marker.exists(), place
    np.load(path, allow_pickle=True)
    assert marker.exists(), "and would have been executed"


def test_numpys_own_functions_are_not_trusted_either(tmp_path: Path) -> None:
    refused(save(tmp_path / "x.npy", [frame(1, image=Addresses())]), "found an array without its values")


@pytest.mark.parametrize("name", ["builtins.eval", "numpy.load", "numpy.testing.runstring", "codecs.encode"])
def test_no_other_name_is_known(tmp_path: Path, name: str) -> None:
    module, attribute = name.rsplit(".", 1)
    path = save(tmp_path / "x.npy", [frame(1)])
    header = path.read_bytes().split(b"\x80\x04")[0]
    path.write_bytes(header + f"c{module}\n{attribute}\n.".encode())
    refused(path, f"{name} in its pickle, which is not executed")


def test_a_name_cannot_write_lines_of_its_own(tmp_path: Path) -> None:
    path = save(tmp_path / "x.npy", [frame(1)])
    header = path.read_bytes().split(b"\x80\x04")[0]
    path.write_bytes(header + b"\x80\x04\x8c\x02os\x8c\x07a\nwovr:\x93.")
    refused(path, r"'os.a\nwovr:' in its pickle, which is not executed")


def test_persistent_ids_are_refused(tmp_path: Path) -> None:
    path = save(tmp_path / "x.npy", [frame(1)])
    header, buffer = path.read_bytes().split(b"\x80\x04")[0], io.BytesIO()
    Persistent(buffer, protocol=4).dump(np.array([{"image": b"x"}], dtype=object))
    path.write_bytes(header + buffer.getvalue())
    refused(path, "expected an array of frames")


@pytest.mark.parametrize(
    ("frames", "message"),
    [
        (
            [frame(1, image=np.zeros((4, 4, 3)))],
            "frame 0: image: expected (height, width, 3) of uint8, found (4, 4, 3)",
        ),
        ([frame(1, image=None)], "found NoneType"),
        ([frame(1, delta_action=np.zeros((7, 1)))], "delta_action: expected a row of finite numbers, found (7, 1)"),
        ([frame(1, delta_action=np.full(7, np.nan))], "delta_action"),
        ([frame(1, instruction=3)], "expected an instruction, found int"),
        ([frame(1), frame(2)], "expected 1 frame, or 4 and more"),
        ([frame(0)] * 4 + [frame(1, image=np.zeros((5, 4, 3), np.uint8))], "all of one size"),
        ([1, 2], "expected a one-dimensional array of frames"),
        ([], "expected a one-dimensional array of frames"),
    ],
)
def test_what_does_not_fit_is_named(tmp_path: Path, frames: list[object], message: str) -> None:
    refused(save(tmp_path / "x.npy", frames), message)


def test_other_files_are_named(tmp_path: Path) -> None:
    np.save(tmp_path / "numbers.npy", np.zeros(3))
    refused(tmp_path / "numbers.npy", "found float64 of (3,)")
    path = save(tmp_path / "x.npy", [frame(1)])
    content = path.read_bytes()
    for kept in (0, 5, 60, len(content) // 2, len(content) - 1):
        path.write_bytes(content[:kept])
        refused(path, "damaged file")
    refused(tmp_path / "none.npy", "found No such file")
    with pytest.raises(UserError, match=r"expected \.npy files of start states, found none"):
        start_files(tmp_path / "none")
    other = save(tmp_path / "other.npy", [frame(1, image=np.zeros((8, 8, 3), np.uint8))])
    with pytest.raises(UserError, match=r"other\.npy: expected 4x4 and 7 .* found 8x8"):
        read_starts([save(tmp_path / "x.npy", [frame(1)]), other])


def test_a_failed_writer_leaves_nothing_and_overwrites_nothing(make_episode, tmp_path: Path) -> None:
    start = start_state(make_episode([1.0] * 20), "demo_1", 9, "gripper", 4)

    def starts():
        yield start
        raise UserError("the source ends here")

    with pytest.raises(UserError, match="ends here"):
        write_starts(tmp_path / "dataset", starts())
    assert not list(tmp_path.iterdir())
    write_starts(tmp_path / "dataset", [start])
    with pytest.raises(UserError, match="expected a new or empty folder"):
        write_starts(tmp_path / "dataset", [start])
