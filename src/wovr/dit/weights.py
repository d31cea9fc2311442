"""Wan2.2's weights as an ActionDiT: the original layout, diffusers' layout, and published WoVR checkpoints.

A WoVR checkpoint is Wan's original layout without `text_embedding`, plus `action_mlp1` and `action_mlp2`: 829 tensors
at full size. A base model has no action layers: they are initialised, and AdaLN's last one is zero, so that the channel
adds nothing at first, while cross-attention reads action tokens where the base read text.

This module's network differs from Wan's in how it stores the same numbers: patches are cut by a linear layer instead of
a convolution, q k v (and k v of cross-attention) are one matrix, and the channels of a head are in another order
(`wovr.dit.rope`).

Legend: D width, H heads, E channels of a head.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from wovr.core.checkpoint import StoredTensor, check_tensors, open_tensors, renamed, save_tensors, stored_tensors
from wovr.dit.context import Layout
from wovr.dit.model import PATCH, ActionDiT, DiTConfig, action_encoder
from wovr.dit.rope import from_wan

ACTIONS = ("action_mlp1.", "action_mlp2.")
TEXT = "text_embedding."
DIFFUSERS = (
    (r"^scale_shift_table$", "head.modulation"),
    (r"^proj_out\.", "head.head."),
    (r"^condition_embedder\.time_embedder\.linear_1\.", "time_embedding.0."),
    (r"^condition_embedder\.time_embedder\.linear_2\.", "time_embedding.2."),
    (r"^condition_embedder\.time_proj\.", "time_projection.1."),
    (r"^condition_embedder\.text_embedder\.linear_1\.", "text_embedding.0."),
    (r"^condition_embedder\.text_embedder\.linear_2\.", "text_embedding.2."),
    (r"\.scale_shift_table$", ".modulation"),
    (r"\.attn1\.", ".self_attn."),
    (r"\.attn2\.", ".cross_attn."),
    (r"\.to_([qkv])\.", r".\1."),
    (r"\.to_out\.0\.", ".o."),
    (r"\.norm2\.", ".norm3."),
    (r"\.ffn\.net\.0\.proj\.", ".ffn.0."),
    (r"\.ffn\.net\.2\.", ".ffn.2."),
)
"""Patterns of diffusers' names, and what takes their place in the original ones. None of them fits an original name."""


@dataclass(frozen=True, slots=True)
class Part:
    """A tensor of Wan's original layout, which is one run of rows of a parameter here."""

    name: str
    shape: tuple[int, ...]
    heads: int = 0
    """Of channels that are in another order here; 0 where they are not."""


def is_wan(path: Path) -> bool:
    """Whether a file or folder holds weights in one of these layouts: a file of wovr's own has its config within."""
    return path.is_dir() or "config" not in (open_tensors(path).metadata() or {})


def load_wan(path: Path, config: DiTConfig, layout: Layout, dtype: torch.dtype = torch.float32) -> ActionDiT:
    """Read a safetensors file, or a folder of them, one tensor at a time. Errors as of `check_wan`."""
    stored, wanted = check_wan(path, config, layout)
    with torch.device("meta"):
        dit = ActionDiT(config, layout)
    weights: dict[str, Tensor] = {}
    for name, found in wanted.items():
        rows = [_ours(stored[part.name].read(), part) for part in found]
        weights[name] = torch.cat(rows).reshape(dit.get_parameter(name).shape).to(dtype)
    if not any(name.startswith("action_encoder.") for name in wanted):  # of a base model, which has no actions
        encoder = action_encoder(config)
        weights |= {f"action_encoder.{name}": value.to(dtype) for name, value in encoder.state_dict().items()}
    dit.load_state_dict(weights, assign=True)
    return dit


def check_wan(path: Path, config: DiTConfig, layout: Layout) -> tuple[dict[str, StoredTensor], dict[str, list[Part]]]:
    """Where each tensor lies, and those that each parameter is made of, from the headers alone.

    Raises UserError that names missing, unexpected and misshapen tensors.
    """
    stored = index(path)
    with torch.device("meta"):
        shapes = {name: tuple(value.shape) for name, value in ActionDiT(config, layout).state_dict().items()}
    base = not any(name.startswith(ACTIONS) for name in stored)
    wanted = {
        name: parts(name, shape, config)
        for name, shape in shapes.items()
        if not (base and name.startswith("action_encoder."))
    }
    check_tensors(
        path,
        {part.name: part.shape for found in wanted.values() for part in found},
        {name: place.shape for name, place in stored.items() if not name.startswith(TEXT)},
        "`world_model.dit`",
    )
    return stored, wanted


def save_wan(path: Path, dit: ActionDiT) -> None:
    """Write the weights as a WoVR checkpoint: Wan's original names and one file, bf16 as the published ones. It has no
    place for a reward head."""
    written: dict[str, Tensor] = {}
    for name, value in dit.state_dict().items():
        if name.startswith("reward_head."):
            continue
        found = parts(name, tuple(value.shape), dit.config)
        for part, rows in zip(found, value.split([part.shape[0] for part in found]), strict=True):
            written[part.name] = _wans(rows, part).reshape(part.shape).bfloat16()
    save_tensors(path, written, format="pt")


def parts(name: str, shape: tuple[int, ...], config: DiTConfig) -> list[Part]:
    """Wan's tensors that make up the parameter `name` of an ActionDiT, in order of its rows."""
    D = config.width
    name = name.removeprefix("action_encoder.")
    if name == "patch_embedding.weight":
        return [Part(name, (D, config.channels, 1, PATCH, PATCH))]
    fused = re.fullmatch(r"(.*)\.(qkv|kv)\.(weight|bias)", name)
    if fused is not None:
        before, letters, kind = fused.groups()
        turned = {"q", "k"} if letters == "qkv" else set()  # cross-attention has no rotary positions
        return [
            Part(f"{before}.{letter}.{kind}", (D, *shape[1:]), config.heads if letter in turned else 0)
            for letter in letters
        ]
    if re.search(r"\.self_attn\.norm_[qk]\.weight$", name):
        return [Part(name, shape, config.heads)]
    return [Part(name, shape)]


def index(path: Path) -> dict[str, StoredTensor]:
    """Every tensor in a file or folder by its name in Wan's original layout. UserError where there is none."""
    return renamed(stored_tensors(path), DIFFUSERS)


def _ours(tensor: Tensor, part: Part) -> Tensor:
    if not part.heads:
        return tensor
    by_head = tensor.unflatten(0, (part.heads, -1))
    return by_head[:, from_wan(by_head.shape[1])].flatten(0, 1)


def _wans(tensor: Tensor, part: Part) -> Tensor:
    if not part.heads:
        return tensor
    by_head = tensor.unflatten(0, (part.heads, -1))
    return by_head[:, from_wan(by_head.shape[1]).argsort()].flatten(0, 1)
