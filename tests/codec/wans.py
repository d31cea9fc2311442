"""A tiny random VAE of Wan2.2's structure, made by diffusers, and its tensors under Wan's own names."""

from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKLWan
from torch import Tensor, nn

from wovr.codec.wan import WanCodec, WanCodecConfig
from wovr.codec.wan_weights import load_wan_codec
from wovr.core.seed import seed_everything

TINY = WanCodecConfig(
    channels=3,
    encoder_width=4,
    decoder_width=4,
    width_factors=(1, 2, 2, 2),
    blocks=1,
    latents_mean=(0.1, -0.2, 0.3),
    latents_std=(0.5, 1.5, 2.0),
)


def make_vae(config: WanCodecConfig = TINY) -> Any:
    """diffusers' own; its default initialisation, so that signals neither die nor explode."""
    seed_everything(0)
    vae: Any = AutoencoderKLWan(
        base_dim=config.encoder_width,
        decoder_base_dim=config.decoder_width,
        z_dim=config.channels,
        dim_mult=list(config.width_factors),
        num_res_blocks=config.blocks,
        temperal_downsample=[False, True, True],
        latents_mean=list(config.latents_mean),
        latents_std=list(config.latents_std),
        is_residual=True,
        in_channels=12,
        out_channels=12,
        patch_size=2,
        scale_factor_spatial=16,
    )
    for module in vae.modules():
        if isinstance(module, nn.Conv2d | nn.Conv3d):
            nn.init.normal_(module.weight, std=1.2 / module.weight[0].numel() ** 0.5)
    return vae.eval()


def make_codec(folder: Path, config: WanCodecConfig = TINY) -> tuple[WanCodec, Any]:
    """Ours and diffusers', with the same weights."""
    vae = make_vae(config)
    vae.save_pretrained(folder)
    return load_wan_codec(folder, config).eval().requires_grad_(False), vae


def original(vae: Any) -> dict[str, Tensor]:
    """Wan's own names, spelled out here once more, layer by layer."""
    residual = {"norm1": "residual.0", "conv1": "residual.2", "norm2": "residual.3", "conv2": "residual.6"}
    names = {"quant_conv": "conv1", "post_quant_conv": "conv2"}
    for net, sample, block in (("encoder", "downsamples", "down"), ("decoder", "upsamples", "up")):
        names |= {
            f"{net}.conv_in": f"{net}.conv1",
            f"{net}.norm_out": f"{net}.head.0",
            f"{net}.conv_out": f"{net}.head.2",
        }
        for layer in ("norm", "to_qkv", "proj"):
            names[f"{net}.mid_block.attentions.0.{layer}"] = f"{net}.middle.1.{layer}"
        for ours, theirs in residual.items():
            for number in (0, 1):
                names[f"{net}.mid_block.resnets.{number}.{ours}"] = f"{net}.middle.{2 * number}.{theirs}"
        blocks = vae.config.num_res_blocks + (net == "decoder")
        for level in range(4):
            theirs_at = f"{net}.{sample}.{level}.{sample}"
            for number in range(blocks):
                for ours, theirs in (residual | {"conv_shortcut": "shortcut"}).items():
                    names[f"{net}.{block}_blocks.{level}.resnets.{number}.{ours}"] = f"{theirs_at}.{number}.{theirs}"
            for layer in ("resample.1", "time_conv"):
                names[f"{net}.{block}_blocks.{level}.{block}sampler.{layer}"] = f"{theirs_at}.{blocks}.{layer}"
    found = {}
    for name, value in vae.state_dict().items():
        layer, _, kind = name.rpartition(".")
        found[f"{names[layer]}.{kind}"] = value.clone()
    assert len(found) == len(vae.state_dict())
    return found


def videos(batch: int, frames: int, side: int = 32) -> Tensor:
    """Random, uint8."""
    generator = torch.Generator().manual_seed(batch * 1000 + frames)
    return torch.randint(0, 256, (batch, frames, side, side, 3), dtype=torch.uint8, generator=generator)
