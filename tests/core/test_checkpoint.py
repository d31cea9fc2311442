import errno
import json
import resource
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import nn

from wovr.core import checkpoint
from wovr.core.checkpoint import (
    link_file,
    load_model,
    load_tensors,
    load_weights,
    read_header,
    read_json,
    save_model,
    save_tensors,
    write_atomic,
    write_json,
)
from wovr.core.config import Config
from wovr.core.errors import UserError


class NetConfig(Config):
    width: int = 3
    """Width."""


def build(config: NetConfig) -> nn.Sequential:
    return nn.Sequential(nn.Linear(2, config.width), nn.BatchNorm1d(config.width))


def fails(call: object, *parts: str) -> None:
    with pytest.raises(UserError) as error:
        call()  # type: ignore[operator]
    text = str(error.value)
    assert "\n" not in text
    for part in parts:
        assert part in text


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    path = tmp_path / "net.safetensors"
    save_model(path, build(NetConfig(width=5)), NetConfig(width=5), note="hello")
    return path


def test_a_model_comes_back_from_its_file_alone(saved: Path) -> None:
    model = build(NetConfig(width=5))
    model(torch.randn(4, 2))  # moves the buffers of the norm
    save_model(saved, model, NetConfig(width=5), note="hello")
    loaded = load_model(saved, NetConfig, build)
    for name, value in model.state_dict().items():
        torch.testing.assert_close(loaded.state_dict()[name], value, rtol=0, atol=0)
    assert read_header(saved) == {"format": "wovr-1", "config": '{"width":5}', "note": "hello"}


def test_tensors_keep_type_and_layout_of_values(tmp_path: Path) -> None:
    tensors = {"a": torch.arange(6).reshape(2, 3).T, "b": torch.randn(3).bfloat16(), "c": torch.tensor(True)}
    save_tensors(tmp_path / "x.safetensors", tensors, key="value")
    loaded, metadata = load_tensors(tmp_path / "x.safetensors")
    assert metadata["key"] == "value"
    for name, value in tensors.items():
        assert loaded[name].dtype == value.dtype and torch.equal(loaded[name], value)


def test_missing_truncated_and_foreign_files(saved: Path, tmp_path: Path) -> None:
    gone = tmp_path / "gone.safetensors"
    fails(lambda: load_tensors(gone), str(gone), "found none")
    fails(lambda: read_header(gone), str(gone), "found none")
    cut = tmp_path / "cut.safetensors"
    whole = saved.read_bytes()
    for length in (0, 4, len(whole) // 2, len(whole) - 1):
        cut.write_bytes(whole[:length])
        fails(lambda: load_model(cut, NetConfig, build), str(cut), "expected a complete safetensors file")
    cut.write_bytes(b"not safetensors at all, but long enough to have a header")
    fails(lambda: load_tensors(cut), str(cut))
    save_tensors(cut, {"a": torch.zeros(1)})
    fails(lambda: load_model(cut, NetConfig, build), str(cut), "no 'config' in its header")


def test_misfits_name_file_and_key(saved: Path) -> None:
    fails(
        lambda: load_weights(saved, build(NetConfig(width=4))),
        str(saved),
        "6 misshapen: 0.weight [5, 2] instead of [4, 2]",
    )
    fails(lambda: load_weights(saved, nn.Sequential(nn.Linear(2, 5))), str(saved), "unexpected: 1.")
    larger = nn.Sequential(*build(NetConfig(width=5)), nn.Linear(5, 1))
    fails(lambda: load_weights(saved, larger), str(saved), "2 missing: 2.weight, 2.bias")


def test_a_config_of_another_version_names_the_key(tmp_path: Path) -> None:
    path = tmp_path / "old.safetensors"
    save_tensors(path, {}, config=json.dumps({"breadth": 2}))
    fails(lambda: load_model(path, NetConfig, build), str(path), "unknown key 'breadth'")
    save_tensors(path, {}, config="{")
    fails(lambda: load_model(path, NetConfig, build), str(path), "expected JSON")


def test_a_failed_write_leaves_the_old_file_alone(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("old")

    def fail(temporary: Path) -> None:
        temporary.write_text("half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_atomic(path, fail)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_full_disk_is_a_user_error(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("old")

    def fail(temporary: Path) -> None:
        temporary.write_text("half")
        raise OSError(errno.ENOSPC, "No space left on device")

    fails(lambda: write_atomic(path, fail), str(path), "full disk")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.fixture
def small_file_limit() -> Iterator[None]:
    """The system refuses to write past 4 KiB, which takes the path of a full disk through safetensors."""
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limits[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    signal.signal(signal.SIGXFSZ, handler)


@pytest.mark.usefixtures("small_file_limit")
def test_a_write_that_the_system_cuts_short_inside_safetensors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.safetensors"
    save_tensors(path, {"a": torch.ones(4)})
    monkeypatch.setattr(checkpoint, "FULL_DISK", (errno.EFBIG,))
    fails(lambda: save_tensors(path, {"a": torch.zeros(10_000)}), str(path), "full disk")
    assert torch.equal(load_tensors(path)[0]["a"], torch.ones(4))
    assert list(tmp_path.iterdir()) == [path]


def test_json(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "a.json"
    write_json(path, {"a": [1, 2.5, None]})
    assert read_json(path) == {"a": [1, 2.5, None]}
    path.write_text('{"a": ')
    fails(lambda: read_json(path), str(path), "expected JSON")
    fails(lambda: read_json(tmp_path / "b.json"), "b.json", "found none")


def test_a_second_name_costs_nothing_and_endangers_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, linked, copied = tmp_path / "a" / "net", tmp_path / "b" / "net", tmp_path / "c" / "net"
    save_tensors(source, {"x": torch.zeros(3)})
    link_file(linked, source)
    link_file(linked, source)
    assert linked.stat().st_ino == source.stat().st_ino
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint.os, "link", lambda *_: (_ for _ in ()).throw(OSError(errno.EXDEV, "other device")))
        link_file(copied, source)
    assert copied.read_bytes() == source.read_bytes() and copied.stat().st_ino != source.stat().st_ino
    save_tensors(linked, {"x": torch.ones(3)})
    assert not load_tensors(source)[0]["x"].any(), "writing goes by rename"
    assert [path.name for path in tmp_path.rglob(".*")] == []
