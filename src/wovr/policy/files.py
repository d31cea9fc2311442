"""Policies by their config and in files: which of the two kinds it is, `kind` tells.

A policy is one safetensors file that rebuilds it alone: an OpenVLA-OFT carries its tokenizer, statistics and picture
normalisation in the header. What it takes to run one is imported only when there is one.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeAlias

import torch
from pydantic import Discriminator, Tag
from torch import nn

from wovr.core.checkpoint import (
    check_tensors,
    load_model,
    read_header,
    save_model,
    save_tensors,
    stored_tensors,
)
from wovr.core.config import KIND, validate
from wovr.core.errors import UserError
from wovr.policy.openvla_oft.config import OpenVLAOFTConfig
from wovr.policy.small import SmallVLA, SmallVLAConfig

if TYPE_CHECKING:
    from wovr.policy.openvla_oft.model import OpenVLAOFT

SMALL, OPENVLA_OFT = "small", "openvla_oft"


def _kind(section: Any) -> str:
    """Of a policy's section: what it says, or the embedded one."""
    return str(section.get(KIND, SMALL) if isinstance(section, dict) else getattr(section, KIND, section))


PolicyConfig = Annotated[
    Annotated[SmallVLAConfig, Tag(SMALL)] | Annotated[OpenVLAOFTConfig, Tag(OPENVLA_OFT)],
    Discriminator(_kind, custom_error_type="kind", custom_error_message="expected kind small or openvla_oft"),
]
"""A section of a config file: OpenVLA-OFT where it says so, else the embedded policy."""
PolicyModule: TypeAlias = "SmallVLA | OpenVLAOFT"
"""A `wovr.policy.base.Policy` that is a torch module too."""


def check_policy(config: SmallVLAConfig | OpenVLAOFTConfig) -> None:
    """UserError where a published folder that `make_policy` would read is missing, damaged or does not fit."""
    if isinstance(config, OpenVLAOFTConfig) and config.pretrained is not None:
        from wovr.policy.openvla_oft.published import check_openvla_oft

        check_openvla_oft(config)


def make_policy(config: SmallVLAConfig | OpenVLAOFTConfig, dtype: torch.dtype = torch.float32) -> PolicyModule:
    """A new policy: published weights where the config names them, else random ones; adapters where it has `lora`.

    `dtype` is that of an OpenVLA-OFT's weights. Errors as of `check_policy`.
    """
    if isinstance(config, SmallVLAConfig):
        return SmallVLA(config)
    from wovr.policy.openvla_oft.model import OpenVLAOFT
    from wovr.policy.openvla_oft.published import load_openvla_oft

    policy = OpenVLAOFT(config).to(dtype) if config.pretrained is None else load_openvla_oft(config, dtype)
    return ready_to_train(policy)


def ready_to_train(policy: PolicyModule) -> PolicyModule:
    """The same policy; one whose config has `lora` gets fresh adapters where it has none, as after `load_policy`."""
    if isinstance(policy.config, OpenVLAOFTConfig) and policy.config.lora is not None:
        from wovr.policy.openvla_oft.lora import add_lora, has_adapters

        if not has_adapters(policy):
            add_lora(policy)
    return policy


def save_policy(path: Path, policy: nn.Module) -> None:
    """Write a policy, in the dtype of its weights and with adapters merged, for `load_policy`."""
    if isinstance(policy, SmallVLA):
        save_model(path, policy, policy.config)
        return
    from wovr.policy.openvla_oft.lora import merged_weights
    from wovr.policy.openvla_oft.model import OpenVLAOFT

    assert isinstance(policy, OpenVLAOFT), f"a policy, not {type(policy).__name__}"
    config = policy.config.model_copy(update={"pretrained": None})  # the file stands alone
    files = json.dumps(policy.assets.files)
    save_tensors(path, merged_weights(policy), config=config.model_dump_json(), files=files)


def load_policy(path: Path) -> PolicyModule:
    """The policy in a file, on the CPU, in evaluation mode and without adapters. A file without `kind` is a small one.

    Raises UserError that names the file and the key or weight that does not fit.
    """
    header = read_header(path)
    raw = _json(header, "config", path)
    kind = _kind(raw)
    if kind == SMALL:
        return load_model(path, SmallVLAConfig, SmallVLA).eval()
    if kind != OPENVLA_OFT:
        raise UserError(f"{path}: expected a policy of kind {SMALL} or {OPENVLA_OFT}, found '{kind}'")
    from wovr.policy.openvla_oft.assets import parse
    from wovr.policy.openvla_oft.published import assemble, shapes

    config = validate(OpenVLAOFTConfig, raw, str(path))
    assets = parse(_json(header, "files", path), config, f"{path}: ")
    stored = stored_tensors(path)
    check_tensors(path, shapes(config), {name: tensor.shape for name, tensor in stored.items()}, "this policy")
    return assemble(config, assets, stored).eval()


def _json(header: dict[str, str], key: str, path: Path) -> dict[str, Any]:
    if key not in header:
        raise UserError(f"{path}: expected a policy saved by wovr, found no '{key}' in its header")
    try:
        found = json.loads(header[key])
    except ValueError as error:
        raise UserError(f"{path}: expected JSON under '{key}' in the header, found {error}") from None
    if not isinstance(found, dict):
        raise UserError(f"{path}: expected a mapping under '{key}' in the header, found {type(found).__name__}")
    return found
