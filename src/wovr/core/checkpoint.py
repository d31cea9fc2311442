"""Artifacts on disk: safetensors with a header that says what they are, JSON beside them, all written atomically.

A file under its final name is always complete: it is written beside the target, flushed and renamed. The
configuration of a model travels in the header of its weights, so that one file is enough to rebuild it.
"""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import warnings
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from wovr.core.config import Config, validate
from wovr.core.errors import UserError

FORMAT = "wovr-1"
"""Value of the header's `format` in every file that this version writes."""

NAMED = 3
"""Names that an error shows of each kind."""
FULL_DISK = (errno.ENOSPC, errno.EDQUOT)

ConfigT = TypeVar("ConfigT", bound=Config)
ModuleT = TypeVar("ModuleT", bound=nn.Module)


def write_atomic(path: Path, write: Callable[[Path], object]) -> None:
    """Let `write` fill a temporary file beside `path`, flush it to disk, rename it to `path`.

    Whatever fails, the temporary file is removed and an older `path` stays as it was. A full disk raises UserError.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    unique = f"{os.getpid()}-{os.urandom(4).hex()}"  # writers on two machines may have the same number
    temporary = path.with_name(f".{path.name}.{unique}.tmp")
    try:
        write(temporary)
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except (OSError, SafetensorError) as error:
        if disk_is_full(error):
            raise UserError(f"{path}: expected room to write it, found a full disk; what was there is intact") from None
        raise
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """A temporary folder beside `path` for the caller to fill, which is then flushed to disk and renamed to `path`.

    Whatever fails, it is removed. UserError where `path` is neither new nor empty, or the disk is full.
    """
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise UserError(f"{path}: expected a new or empty folder, found other files")
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{os.urandom(4).hex()}.tmp")
    temporary.mkdir()
    try:
        yield temporary
        for file_path in filter(Path.is_file, temporary.rglob("*")):
            with file_path.open("rb+") as file:
                os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        if disk_is_full(error):
            raise UserError(f"{path}: expected room to write it, found a full disk") from None
        raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def link_file(path: Path, source: Path) -> None:
    """Give `source` the second name `path`, or copy it where the file system can't. No file is changed in place."""
    path.parent.mkdir(parents=True, exist_ok=True)
    link = path.with_name(f".{path.name}.{os.getpid()}.link")  # no name that anybody writes to
    link.unlink(missing_ok=True)
    try:
        os.link(source, link)
        os.replace(link, path)
    except OSError:
        write_atomic(path, lambda temporary: shutil.copyfile(source, temporary))
    finally:
        link.unlink(missing_ok=True)


def disk_is_full(error: Exception) -> bool:
    """Whether a failed write ran out of space or quota. Safetensors gives the number only in its message."""
    if isinstance(error, OSError):
        return error.errno in FULL_DISK
    return any(f"(os error {number})" in str(error) for number in FULL_DISK)


def write_text(path: Path, text: str) -> None:
    """Write a text file, atomically."""

    def write(temporary: Path) -> None:
        temporary.write_text(text)

    write_atomic(path, write)


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented JSON, atomically."""
    write_text(path, json.dumps(value, indent=2) + "\n")


def read_json(path: Path) -> Any:
    """The value in a JSON file; UserError when it is missing or not JSON."""
    if not path.is_file():
        raise UserError(f"{path}: expected a JSON file, found none")
    try:
        return json.loads(path.read_text())
    except ValueError as error:
        raise UserError(f"{path}: expected JSON, found {error}") from None


def save_tensors(path: Path, tensors: dict[str, Tensor], **metadata: str) -> None:
    """Write named tensors and string metadata as one safetensors file."""
    flat = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    write_atomic(path, lambda temporary: save_file(flat, temporary, metadata={"format": FORMAT, **metadata}))


def load_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """(tensors on the CPU, metadata); UserError when the file is missing, truncated or not safetensors."""
    with open_tensors(path) as file:
        return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118


def read_header(path: Path) -> dict[str, str]:
    """The metadata alone, whatever the size of the file; same errors as `load_tensors`."""
    with open_tensors(path) as file:
        return file.metadata() or {}


def save_model(path: Path, module: nn.Module, config: Config, **metadata: str) -> None:
    """Write weights, buffers and the config that rebuilds the module."""
    save_tensors(path, module.state_dict(), config=config.model_dump_json(), **metadata)


def load_model(path: Path, schema: type[ConfigT], build: Callable[[ConfigT], ModuleT]) -> ModuleT:
    """Rebuild a module that `save_model` wrote: `build` makes it from the config in the header.

    Raises UserError that names the file and the config key or weight that does not fit.
    """
    header = read_header(path)
    if "config" not in header:
        raise UserError(f"{path}: expected a model saved by wovr, found no 'config' in its header")
    try:
        raw = json.loads(header["config"])
    except ValueError as error:
        raise UserError(f"{path}: expected JSON under 'config' in the header, found {error}") from None
    module = build(validate(schema, raw, str(path)))
    load_weights(path, module)
    return module


def load_weights(path: Path, module: nn.Module) -> None:
    """Fill `module` from a safetensors file whose names and shapes must match exactly; UserError where they don't."""
    tensors, _ = load_tensors(path)
    fill(module, tensors, path)


def fill(module: nn.Module, tensors: dict[str, Tensor], path: Path) -> None:
    """Copy `tensors` into the parameters and buffers of `module`. `path` is where they came from, for the error."""
    expected = {name: tuple(value.shape) for name, value in module.state_dict().items()}
    check_tensors(path, expected, {name: tuple(value.shape) for name, value in tensors.items()}, "this model")
    module.load_state_dict(tensors)


def check_tensors(
    path: Path, expected: Mapping[str, tuple[int, ...]], found: Mapping[str, tuple[int, ...]], what: str
) -> None:
    """UserError that names missing, unexpected and misshapen tensors, all in one line.

    Both map names to shapes; `what`, such as a key of the config, is what they should fit.
    """
    misshapen = [
        f"{name} {list(found[name])} instead of {list(shape)}"
        for name, shape in expected.items()
        if name in found and found[name] != shape
    ]
    complaints = [
        *_complaint("missing", [name for name in expected if name not in found]),
        *_complaint("unexpected", [name for name in found if name not in expected]),
        *_complaint("misshapen", misshapen),
    ]
    if complaints:
        raise UserError(f"{path}: expected {len(expected)} tensors that fit {what}, found {'; '.join(complaints)}")


def _complaint(kind: str, names: list[str]) -> list[str]:
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return [f"{len(names)} {kind}: {', '.join(names[:NAMED])}{more}"] if names else []


def open_tensors(path: Path) -> Any:
    """A `safetensors.safe_open` file, which reads single tensors; same errors as `load_tensors`."""
    if not path.is_file():
        raise UserError(f"{path}: expected a safetensors file, found none")
    try:
        return safe_open(path, framework="pt")
    except SafetensorError as error:
        raise UserError(f"{path}: expected a complete safetensors file, found {error}") from None


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """A tensor on disk."""

    shape: tuple[int, ...]
    read: Callable[[], Tensor]


def stored_tensors(path: Path) -> dict[str, StoredTensor]:
    """All tensors by name in a safetensors file or a folder of them, none of them read.

    UserError where there is none, or a file is damaged.
    """
    files = sorted(path.glob("*.safetensors")) if path.is_dir() else [path]
    if not files:
        raise UserError(f"{path}: expected safetensors files, found none")
    found = {}
    for file in map(open_tensors, files):
        for name in file.keys():  # noqa: SIM118
            found[name] = StoredTensor(tuple(file.get_slice(name).get_shape()), partial(file.get_tensor, name))
    return found


def renamed(tensors: Mapping[str, StoredTensor], patterns: Iterable[tuple[str, str]]) -> dict[str, StoredTensor]:
    """The same by other names: each pattern is replaced, in order."""
    found = {}
    for name, tensor in tensors.items():
        for pattern, replacement in patterns:
            name = re.sub(pattern, replacement, name)
        found[name] = tensor
    return found


def load_torch_file(path: Path) -> dict[str, Tensor]:
    """The tensors by name in a file of `torch.save`, on the CPU and mapped from disk where the format allows it.

    It is a pickle, which torch's restricted unpickler reads: it builds tensors and plain containers and executes
    nothing. UserError where the file is missing, damaged or holds anything but tensors by name.
    """
    if not path.is_file():
        raise UserError(f"{path}: expected a torch file of tensors by name, found none")
    try:
        with warnings.catch_warnings(action="ignore"):  # torch announces what it then refuses
            found = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except Exception as error:  # a damaged or hostile pickle may raise anything
        raise UserError(f"{path}: expected a torch file of tensors by name, found {_reason(error)}") from None
    if not isinstance(found, dict):
        raise UserError(f"{path}: expected a torch file of tensors by name, found {type(found).__name__}")
    for name, value in found.items():
        if not (isinstance(name, str) and isinstance(value, Tensor)):
            raise UserError(f"{path}: key {name!r}: expected a tensor, found {type(value).__name__}")
    return dict(found)


def _reason(error: Exception) -> str:
    """In a few words; torch's own end in the advice to load the file without protection."""
    refused = re.search(r"GLOBAL (\S+)", str(error))
    if refused:
        return f"{refused[1]} in its pickle, which is not executed"
    if isinstance(error, UnpicklingError) or not str(error):
        return "something else, or a damaged file"
    return str(error).splitlines()[0].split(". ")[0]
