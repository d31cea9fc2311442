"""Low-rank adapters by peft: what is trained in place of the weights.

Adapters sit in every linear layer that the forward pass uses, the head excepted, as OpenVLA-OFT's `all-linear` with
Gaussian initialisation. One departure: there, the projector of proprioception is trained whole; here it has adapters
like the rest.
"""

from __future__ import annotations

from pathlib import Path

import torch
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn

from wovr.core.checkpoint import new_folder, save_tensors
from wovr.core.errors import UserError
from wovr.policy.openvla_oft.config import LoRASettings
from wovr.policy.openvla_oft.model import OpenVLAOFT

ADAPTER = "default"
"""peft's name for the one adapter of a layer."""


def targets(policy: OpenVLAOFT) -> list[str]:
    """Names of the layers that get adapters."""
    dino, siglip = policy.config.dino.depth - 1, policy.config.siglip.depth - 1
    unused = (
        f"vision_backbone.featurizer.blocks.{dino}.",
        f"vision_backbone.fused_featurizer.blocks.{siglip}.",
        "vision_backbone.fused_featurizer.attn_pool.",
    )
    # The head is of a class of its own, and biases of peft's own layers come later.
    linear = [name for name, module in policy.named_modules() if type(module) is nn.Linear]
    return [name for name in linear if not name.startswith(unused)]


def has_adapters(policy: nn.Module) -> bool:
    """Whether `add_lora` has been here."""
    return any(isinstance(module, LoraLayer) for module in policy.modules())


def add_lora(policy: OpenVLAOFT, settings: LoRASettings | None = None) -> OpenVLAOFT:
    """Freeze the weights and put adapters beside them, in place; they change nothing at first.

    `settings` default to the config's `lora`, or to OpenVLA-OFT's. Adapters are float32, whatever the weights are in.
    """
    assert not has_adapters(policy), "adapters are added once"
    settings = settings or policy.config.lora or LoRASettings()
    config = LoraConfig(
        r=settings.rank,
        lora_alpha=settings.scale_numerator,  # type: ignore[arg-type]  # peft declares an int and multiplies by it
        lora_dropout=settings.dropout,
        target_modules=targets(policy),
        init_lora_weights="gaussian",
    )
    inject_adapter_in_model(config, policy, ADAPTER)
    for parameter in policy.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    return policy


def merged_weights(policy: OpenVLAOFT) -> dict[str, Tensor]:
    """The published names and tensors, with what adapters add; without adapters, simply the weights."""
    found = {
        name.replace(".base_layer.", "."): value.detach()
        for name, value in policy.state_dict().items()
        if ".lora_" not in name
    }
    for name, module in policy.named_modules():
        if isinstance(module, LoraLayer):
            base = found[f"{name}.weight"]
            found[f"{name}.weight"] = (base.float() + _change(module)).to(base.dtype)
    return found


def save_adapters(folder: Path, policy: OpenVLAOFT) -> None:
    """Write the adapters as peft does, for `PeftModel.from_pretrained` on the same base, which may be OpenVLA-OFT's own
    code. UserError where there are none, or the folder is neither new nor empty."""
    if not has_adapters(policy):
        raise UserError(f"{folder}: expected a policy with adapters to export, found one without; set `policy.lora`")
    adapters = {
        f"base_model.model.{name.replace(f'.{ADAPTER}.', '.')}": value
        for name, value in policy.state_dict().items()
        if ".lora_" in name
    }
    config: LoraConfig = policy.peft_config[ADAPTER]  # type: ignore[assignment, index]  # peft leaves it there
    with new_folder(folder) as place:
        config.save_pretrained(str(place))
        save_tensors(place / "adapter_model.safetensors", adapters, format="pt")


@torch.no_grad()
def _change(layer: LoraLayer) -> Tensor:
    """scale B A, float32."""
    down, up = (side[ADAPTER].get_parameter("weight") for side in (layer.lora_A, layer.lora_B))
    return layer.scaling[ADAPTER] * (up.float() @ down.float())
