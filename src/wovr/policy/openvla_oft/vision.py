"""DINOv2 with registers and SigLIP, and the projector, under the names that timm and the checkpoints give them.

They are written out here, not taken from transformers: names, the fused q k v and the position embedding without a
class token are those of the published files, so that weights and adapters pass without being renamed or regrouped.

Two facts of the published models. Activations are the exact GELU in both: timm's `vit_large_patch14_reg4_dinov2` and
`vit_so400m_patch14_siglip_224` name no other, and OpenVLA's `timm_override_act_layers` is [null, null]; the tanh
approximation is what SigLIP's own code has, and transformers by default. Features are the output of the second-to-last
block, before the final norm, so that the last block, the norm and SigLIP's attention pool are in every file but compute
nothing: they are kept, frozen, for an export to be whole.

Legend: B batch (of views), N patches, D width, H heads, E channels of a head, S pixels along a side; the pictures are
(B, 3, S, S).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu, scaled_dot_product_attention
from torch.utils.checkpoint import checkpoint

from wovr.policy.openvla_oft.config import PATCH, OpenVLAOFTConfig, ViTConfig

REGISTERS = 4
"""Of DINOv2: tokens without content, beside the class token. Neither is a feature."""
NORM_EPS = 1e-6
"""timm's, in every layer norm of a vision transformer."""


class Attention(nn.Module):
    """Self-attention."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x_BND: Tensor) -> Tensor:
        q_BHNE, k_BHNE, v_BHNE = self.qkv(x_BND).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        return self.proj(scaled_dot_product_attention(q_BHNE, k_BHNE, v_BHNE).transpose(1, 2).flatten(2))


class Mlp(nn.Module):
    """Two layers with the exact GELU between them."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, x_BND: Tensor) -> Tensor:
        return self.fc2(gelu(self.fc1(x_BND)))


class LayerScale(nn.Module):
    """A factor per channel. OpenVLA's files call it so, where timm says `gamma`."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.scale_factor = nn.Parameter(torch.full((width,), 1e-5))

    def forward(self, x_BND: Tensor) -> Tensor:
        return x_BND * self.scale_factor


class Block(nn.Module):
    """Attend, then the MLP; each is added to what came in. DINOv2 scales both."""

    def __init__(self, config: ViTConfig, scaled: bool) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(config.width, eps=NORM_EPS)
        self.attn = Attention(config.width, config.heads)
        self.ls1 = LayerScale(config.width) if scaled else nn.Identity()
        self.norm2 = nn.LayerNorm(config.width, eps=NORM_EPS)
        self.mlp = Mlp(config.width, config.mlp_width)
        self.ls2 = LayerScale(config.width) if scaled else nn.Identity()

    def forward(self, x_BND: Tensor) -> Tensor:
        x_BND = x_BND + self.ls1(self.attn(self.norm1(x_BND)))
        return x_BND + self.ls2(self.mlp(self.norm2(x_BND)))


class PatchEmbed(nn.Module):
    """Pictures to one token per patch."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, width, kernel_size=PATCH, stride=PATCH)

    def forward(self, pictures: Tensor) -> Tensor:
        return self.proj(pictures).flatten(2).transpose(1, 2)


class AttentionPool(nn.Module):
    """The weights of SigLIP's pooling head, which OpenVLA does not use."""

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        D = config.width
        self.latent = nn.Parameter(torch.randn(1, 1, D) * D**-0.5)
        self.q, self.kv, self.proj = nn.Linear(D, D), nn.Linear(D, 2 * D), nn.Linear(D, D)
        self.norm = nn.LayerNorm(D, eps=NORM_EPS)
        self.mlp = Mlp(D, config.mlp_width)


class VisionTransformer(nn.Module):
    """Pictures to features of their patches. DINOv2 has class and register tokens and layer scale, SigLIP a pool."""

    def __init__(self, config: ViTConfig, patches: int, *, dino: bool, checkpointing: bool) -> None:
        super().__init__()
        D = config.width
        self.prefix = 1 + REGISTERS if dino else 0
        self.checkpointing = checkpointing
        if dino:
            self.cls_token = nn.Parameter(torch.randn(1, 1, D) * 1e-6)
            self.reg_token = nn.Parameter(torch.randn(1, REGISTERS, D) * 1e-6)
        self.pos_embed = nn.Parameter(torch.randn(1, patches, D) * 0.02)
        self.patch_embed = PatchEmbed(D)
        self.blocks = nn.ModuleList([Block(config, scaled=dino) for _ in range(config.depth)])
        self.norm = nn.LayerNorm(D, eps=NORM_EPS)
        if not dino:
            self.attn_pool = AttentionPool(config)
        for unused in (self.blocks[-1], self.norm, *([] if dino else [self.attn_pool])):
            unused.requires_grad_(False)

    def forward(self, pictures: Tensor) -> Tensor:
        """(B, N, D): the output of the second-to-last block. Positions belong to patches alone."""
        x_BND = self.patch_embed(pictures.to(self.pos_embed.dtype)) + self.pos_embed
        if self.prefix:
            first = [token.expand(len(x_BND), -1, -1) for token in (self.cls_token, self.reg_token)]
            x_BND = torch.cat([*first, x_BND], dim=1)
        for block in self.blocks[:-1]:
            x_BND = recomputed(block, self.checkpointing, x_BND)
        return x_BND[:, self.prefix :]


class VisionBackbone(nn.Module):
    """Both vision transformers, each with pictures normalised in its own way; DINOv2's channels come first."""

    def __init__(self, config: OpenVLAOFTConfig) -> None:
        super().__init__()
        patches, again = config.patches, config.checkpointing
        self.featurizer = VisionTransformer(config.dino, patches, dino=True, checkpointing=again)
        self.fused_featurizer = VisionTransformer(config.siglip, patches, dino=False, checkpointing=again)

    def forward(self, for_dino: Tensor, for_siglip: Tensor) -> Tensor:
        return torch.cat([self.featurizer(for_dino), self.fused_featurizer(for_siglip)], dim=-1)


class Projector(nn.Module):
    """Features of a patch to a token of the language model."""

    def __init__(self, features: int, width: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(features, 4 * features)
        self.fc2 = nn.Linear(4 * features, width)
        self.fc3 = nn.Linear(width, width)

    def forward(self, x_BND: Tensor) -> Tensor:
        return self.fc3(gelu(self.fc2(gelu(self.fc1(x_BND)))))


def recomputed(block: nn.Module, again: bool, *inputs: Tensor | tuple[Tensor, ...]) -> Tensor:
    """`block(*inputs)`; with `again`, the backward pass computes the activations once more instead of keeping them.

    The block is called as a whole, so that its hooks, those of DeepSpeed's ZeRO among them, run both times.
    """
    if not (again and torch.is_grad_enabled()):
        return block(*inputs)
    # Weights that autocast has cast are not kept for the block's next call: they would fill the memory that is saved.
    cached = torch.is_autocast_cache_enabled()
    torch.set_autocast_cache_enabled(False)
    try:
        return checkpoint(block, *inputs, use_reentrant=False)
    finally:
        torch.set_autocast_cache_enabled(cached)
