"""Wan2.2's VAE from disk: a folder or file of diffusers, the published `Wan2.2_VAE.pth`, or a file of wovr's own.

The published file is a pickle, which `wovr.core.checkpoint.load_torch_file` reads without executing it. Weights are
mapped from disk where the format allows it, so that reading them takes no second copy.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

import torch

from wovr.codec.wan import WanCodec, WanCodecConfig
from wovr.core.checkpoint import StoredTensor, check_tensors, load_torch_file, read_json, renamed, stored_tensors
from wovr.core.errors import UserError

ORIGINAL = (
    (r"^conv1\.", "quant_conv."),
    (r"^conv2\.", "post_quant_conv."),
    (r"^(encoder|decoder)\.conv1\.", r"\1.conv_in."),
    (r"\.head\.0\.", ".norm_out."),
    (r"\.head\.2\.", ".conv_out."),
    (r"\.middle\.0\.", ".mid_block.resnets.0."),
    (r"\.middle\.1\.", ".mid_block.attentions.0."),
    (r"\.middle\.2\.", ".mid_block.resnets.1."),
    (r"\.(down|up)samples\.(\d+)\.\1samples\.\d+\.(resample|time_conv)\.", r".\1_blocks.\2.\1sampler.\3."),
    (r"\.(down|up)samples\.(\d+)\.\1samples\.(\d+)\.", r".\1_blocks.\2.resnets.\3."),
    (r"\.residual\.0\.", ".norm1."),
    (r"\.residual\.2\.", ".conv1."),
    (r"\.residual\.3\.", ".norm2."),
    (r"\.residual\.6\.", ".conv2."),
    (r"\.shortcut\.", ".conv_shortcut."),
)
"""Patterns of Wan's own names, and what takes their place in diffusers' names. None of them fits one of these."""


def load_wan_codec(path: Path, config: WanCodecConfig) -> WanCodec:
    """The codec, in the dtype of its file. Errors as of `check_wan_codec`."""
    stored = check_wan_codec(path, config)
    with torch.device("meta"):
        codec = WanCodec(config)
    codec.load_state_dict({name: tensor.read() for name, tensor in stored.items()}, assign=True)
    return codec


def check_wan_codec(path: Path, config: WanCodecConfig) -> dict[str, StoredTensor]:
    """Every tensor by diffusers' name, before any is read.

    Raises UserError where a file is missing, damaged, holds anything but tensors or does not fit `config`.
    """
    if (path / "config.json").is_file():
        _check_config(path / "config.json", config)
    found = stored_tensors(path) if path.is_dir() or path.suffix == ".safetensors" else _torch_file(path)
    stored = renamed(found, ORIGINAL)
    latent = stored.get("post_quant_conv.weight")
    if latent is not None and latent.shape[:1] != (config.channels,):
        raise UserError(
            f"{path}: expected {config.channels} latent channels as in `codec.wan`, found {latent.shape[0]}"
        )
    with torch.device("meta"):
        expected = {name: tuple(value.shape) for name, value in WanCodec(config).state_dict().items()}
    check_tensors(path, expected, {name: tensor.shape for name, tensor in stored.items()}, "`codec.wan`")
    return stored


def _check_config(path: Path, config: WanCodecConfig) -> None:
    found = read_json(path)
    for key, value in config.diffusers().items():
        if isinstance(found, dict) and found.get(key, value) != value:
            raise UserError(f"{path}: key '{key}': expected {value} as in `codec.wan`, found {found[key]}")


def _torch_file(path: Path) -> dict[str, StoredTensor]:
    tensors = load_torch_file(path)
    return {
        name: StoredTensor(tuple(value.shape), partial(tensors.__getitem__, name)) for name, value in tensors.items()
    }
