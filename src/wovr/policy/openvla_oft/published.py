"""Published OpenVLA-OFT folders, in and out: shards of safetensors with an index, and the files of `assets`.

The network's parameters bear the published names, so that a tensor is read, cast and put in its place, one at a time.
The proprioception's projector lies beside the weights as `proprio_projector--N_checkpoint.pt`, a pickle that
`wovr.core.checkpoint.load_torch_file` reads without executing it.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from wovr.core.checkpoint import (
    StoredTensor,
    check_tensors,
    load_torch_file,
    new_folder,
    read_json,
    renamed,
    stored_tensors,
    write_json,
)
from wovr.core.errors import UserError
from wovr.policy.openvla_oft.assets import Assets, read_assets
from wovr.policy.openvla_oft.config import OpenVLAOFTConfig
from wovr.policy.openvla_oft.lora import merged_weights
from wovr.policy.openvla_oft.model import OpenVLAOFT

INDEX = "model.safetensors.index.json"
PROPRIO = "proprio_projector."
SHARD_BYTES = 5 * 10**9
"""Of tensors in one file of an export, at most."""


def load_openvla_oft(config: OpenVLAOFTConfig, dtype: torch.dtype = torch.float32) -> OpenVLAOFT:
    """The policy in `config.pretrained`, without adapters, on the CPU. Errors as of `check_openvla_oft`."""
    assets, stored = check_openvla_oft(config)
    return assemble(config, assets, stored, dtype)


def check_openvla_oft(config: OpenVLAOFTConfig) -> tuple[Assets, dict[str, StoredTensor]]:
    """The folder's small files, and where every tensor lies, before any weight is read.

    Raises UserError that names the file and what is missing, unexpected or does not fit `config`.
    """
    assert config.pretrained is not None
    assets = read_assets(config.pretrained, config)
    expected = shapes(config)
    main = {name: shape for name, shape in expected.items() if not name.startswith(PROPRIO)}
    stored = _main_tensors(config.pretrained)
    check_tensors(config.pretrained, main, _shapes(stored), "`policy`")
    if config.proprio:
        path = _proprio_file(config.pretrained)
        extra = {name: shape for name, shape in expected.items() if name.startswith(PROPRIO)}
        projector = _proprio_tensors(path)
        check_tensors(path, extra, _shapes(projector), "`policy.proprio`")
        stored |= projector
    return assets, stored


def shapes(config: OpenVLAOFTConfig) -> dict[str, tuple[int, ...]]:
    """Every tensor's name and shape."""
    with torch.device("meta"):
        return {name: tuple(value.shape) for name, value in OpenVLAOFT(config).state_dict().items()}


def assemble(
    config: OpenVLAOFTConfig, assets: Assets, stored: Mapping[str, StoredTensor], dtype: torch.dtype | None = None
) -> OpenVLAOFT:
    """The policy from tensors that have been checked; in their own dtype where none is given."""
    with torch.device("meta"):
        policy = OpenVLAOFT(config, assets)
    weights = (
        {name: tensor.read() for name, tensor in stored.items()}
        if dtype is None
        else {name: tensor.read().to(dtype) for name, tensor in stored.items()}
    )
    policy.load_state_dict(weights, assign=True)
    return policy


def save_published(
    folder: Path, policy: OpenVLAOFT, dtype: torch.dtype = torch.bfloat16, shard_bytes: int = SHARD_BYTES
) -> None:
    """Write a folder as OpenVLA-OFT publishes them, adapters merged; it appears when it is complete.

    UserError where it is neither new nor empty.
    """
    weights = merged_weights(policy)
    main = {name: value for name, value in weights.items() if not name.startswith(PROPRIO)}
    shards = _shards(main, dtype, shard_bytes)
    files = [f"model-{number:05d}-of-{len(shards):05d}.safetensors" for number in range(1, len(shards) + 1)]
    with new_folder(folder) as place:
        for file, names in zip(files, shards, strict=True):
            save_file({name: _stored(main[name], dtype) for name in names}, place / file, metadata={"format": "pt"})
        size = sum(_bytes(value, dtype) for value in main.values())
        placed = {name: file for file, names in zip(files, shards, strict=True) for name in names}
        write_json(place / INDEX, {"metadata": {"total_size": size}, "weight_map": dict(sorted(placed.items()))})
        if policy.proprio_dim:
            projector = {
                name.removeprefix(PROPRIO): _stored(value, dtype)
                for name, value in weights.items()
                if name.startswith(PROPRIO)
            }
            torch.save(projector, place / "proprio_projector--0_checkpoint.pt")
        for name, text in policy.assets.files.items():
            (place / name).write_text(text)


def _main_tensors(folder: Path) -> dict[str, StoredTensor]:
    """Of the files that the index names, or of all where there is no index."""
    index = folder / INDEX
    if not index.is_file():
        return stored_tensors(folder)
    placed = read_json(index)
    placed = placed.get("weight_map") if isinstance(placed, dict) else None
    if not (isinstance(placed, dict) and all(isinstance(file, str) for file in placed.values())):
        raise UserError(f"{index}: expected names of files by tensor under 'weight_map', found something else")
    found: dict[str, StoredTensor] = {}
    for file in sorted(set(placed.values())):
        if not (folder / file).is_file():
            raise UserError(f"{folder / file}: expected this part of the weights as {INDEX} says, found none")
        found |= stored_tensors(folder / file)
    return found


def _proprio_file(folder: Path) -> Path:
    files = sorted(folder.glob("proprio_projector*checkpoint.pt"))
    if len(files) != 1:
        found = ", ".join(file.name for file in files) or "none"
        raise UserError(
            f"{folder}: expected one file proprio_projector--N_checkpoint.pt as `policy.proprio` is set, found {found}"
        )
    return files[0]


def _proprio_tensors(path: Path) -> dict[str, StoredTensor]:
    """By their names in the policy. Those of a projector that was trained in parallel start with `module.`."""
    tensors = load_torch_file(path)
    stored = {name: StoredTensor(tuple(value.shape), partial(_get, value)) for name, value in tensors.items()}
    return renamed(stored, ((r"^(module\.)?", PROPRIO),))


def _get(tensor: Tensor) -> Tensor:
    return tensor


def _shapes(stored: Mapping[str, StoredTensor]) -> dict[str, tuple[int, ...]]:
    return {name: tensor.shape for name, tensor in stored.items()}


def _bytes(value: Tensor, dtype: torch.dtype) -> int:
    return value.numel() * dtype.itemsize


def _shards(tensors: Mapping[str, Tensor], dtype: torch.dtype, limit: int) -> list[list[str]]:
    """Names in their order, cut before a file would hold more than `limit` bytes."""
    shards: list[list[str]] = [[]]
    held = 0
    for name, value in tensors.items():
        size = _bytes(value, dtype)
        if shards[-1] and held + size > limit:
            shards.append([])
            held = 0
        shards[-1].append(name)
        held += size
    return shards


def _stored(value: Tensor, dtype: torch.dtype) -> Tensor:
    return value.detach().to("cpu", dtype).contiguous()
