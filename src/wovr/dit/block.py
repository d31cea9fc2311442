"""The transformer block of Wan: modulate, attend to all latents, attend to the actions, modulate, feed forward.

Projections that share an input are one linear (qkv, kv); modulation is kept per latent frame and broadcast over the
frame's tokens.

Legend: B batch, L latent frames, S tokens per latent frame, N = L S tokens, T action tokens, D width, H heads,
E channels of a head.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from wovr.dit.context import Run
from wovr.dit.rope import Rotation, rotate

KeysValues = tuple[Tensor, Tensor]
"""What attention reads of a sequence of tokens."""
Mask = Sequence[tuple[int, int]]
"""Block-causal: runs of neighbouring queries, each as (how many, how many of the first keys they see). Empty where all
see all."""


def linear(inputs: int, outputs: int, parts: int = 1) -> nn.Linear:
    """A linear as Wan initialises it: zero bias, Xavier weight, drawn for each of the fused `parts` by itself."""
    layer = nn.Linear(inputs, outputs)
    nn.init.zeros_(layer.bias)
    for part in layer.weight.chunk(parts):
        nn.init.xavier_uniform_(part)
    return layer


class RMSNorm(nn.Module):
    """Root-mean-square norm over the full width, times `scale`. Float32 out, since the rotation is next."""

    def __init__(self, width: int, eps: float, scale: float = 1.0):
        super().__init__()
        self.eps, self.scale = eps, scale
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        return _RMSNorm.apply(x, self.scale * self.weight.float(), self.eps)


class _RMSNorm(torch.autograd.Function):
    """y = w x / rms(x). Its gradient in five passes, where autograd's takes ten: 7 % of a training step on a CPU."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight_D: Tensor, eps: float) -> Tensor:
        wide = x.float()
        norm = torch.linalg.vector_norm(wide, dim=-1, keepdim=True)  # a scalar product would be autocast to bfloat16
        inverse = torch.rsqrt(norm.square() / x.shape[-1] + eps)
        unit = wide * inverse
        ctx.save_for_backward(unit, inverse, weight_D)
        ctx.dtype = x.dtype
        return unit * weight_D

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        unit, inverse, weight_D = ctx.saved_tensors
        product = grad * unit
        along = (product @ weight_D).unsqueeze(-1) / unit.shape[-1]
        grad_x = torch.addcmul(grad * weight_D, unit, -along).mul_(inverse)
        return grad_x.to(ctx.dtype), product.flatten(0, -2).sum(0), None


def attend(q_BHNE: Tensor, k_BHTE: Tensor, v_BHTE: Tensor) -> Tensor:
    """softmax(q k^T) v (B, H, N, E); the queries come scaled by E^-1/2 from their norm.

    On a CPU step by step: at these lengths the fused kernel takes seven times as long in bfloat16 with gradient. Keys
    come before queries there, so that the softmax runs down columns: rows of 13 actions are short for vector units.
    """
    if q_BHNE.device.type == "cpu":
        return (k_BHTE @ q_BHNE.transpose(-1, -2)).softmax(-2).transpose(-1, -2) @ v_BHTE
    return F.scaled_dot_product_attention(q_BHNE, k_BHTE, v_BHTE, scale=1.0)


def attend_masked(q_BHNE: Tensor, k_BHTE: Tensor, v_BHTE: Tensor, mask: Mask) -> Tensor:
    """`attend` under a mask.

    One run of queries after the other, so that nothing is computed to be masked and a GPU can use its flash kernels,
    which take no mask. On a CPU it is no slower than a mask that is added to the scores.
    """
    if not mask:
        return attend(q_BHNE, k_BHTE, v_BHTE)
    parts = zip(q_BHNE.split([count for count, _ in mask], dim=2), mask, strict=True)
    return torch.cat([attend(q, k_BHTE[:, :, :seen], v_BHTE[:, :, :seen]) for q, (_, seen) in parts], dim=2)


class SelfAttention(nn.Module):
    """Attention over all latent tokens with rotary positions and normalised queries and keys."""

    def __init__(self, width: int, heads: int, eps: float):
        super().__init__()
        self.heads = heads
        self.qkv = linear(width, 3 * width, parts=3)
        self.o = linear(width, width)
        self.norm_q = RMSNorm(width, eps, scale=(width // heads) ** -0.5)
        self.norm_k = RMSNorm(width, eps)

    def forward(
        self,
        x_BND: Tensor,
        rotation: Rotation,
        queries: int,
        before: KeysValues | None = None,
        mask: Mask = (),
    ) -> tuple[Tensor, KeysValues]:
        """Outputs (B, queries, D) of the last `queries` tokens, which attend to all N, and the keys and values
        (B, N, H, E) of these. Tokens `before` them, known by their keys and values, are attended to as well."""
        first = x_BND.shape[1] - queries
        q_BND, k_BND, v_BND = self.qkv(x_BND).chunk(3, dim=-1)
        query_rotation = (rotation[0][first:], rotation[1][first:])
        q_BNHE = rotate(self._heads(self.norm_q(q_BND[:, first:])), query_rotation).to(v_BND.dtype)
        k_BNHE = rotate(self._heads(self.norm_k(k_BND)), rotation).to(v_BND.dtype)
        own = k_BNHE, self._heads(v_BND)
        k_BNHE, v_BNHE = own if before is None else (torch.cat(pair, 1) for pair in zip(before, own, strict=True))
        y_BHNE = attend_masked(q_BNHE.transpose(1, 2), k_BNHE.transpose(1, 2), v_BNHE.transpose(1, 2), mask)
        return self.o(y_BHNE.transpose(1, 2).flatten(2)), own

    def _heads(self, x_BND: Tensor) -> Tensor:
        return x_BND.unflatten(-1, (self.heads, -1))


class CrossAttention(nn.Module):
    """Attention from latent tokens to action tokens; keys and values do not depend on the latents."""

    def __init__(self, width: int, heads: int, eps: float):
        super().__init__()
        self.heads = heads
        self.q = linear(width, width)
        self.kv = linear(width, 2 * width, parts=2)
        self.o = linear(width, width)
        self.norm_q = RMSNorm(width, eps, scale=(width // heads) ** -0.5)
        self.norm_k = RMSNorm(width, eps)

    def keys_values(self, tokens_BTD: Tensor) -> KeysValues:
        """(B, H, T, E) each."""
        k_BTD, v_BTD = self.kv(tokens_BTD).chunk(2, dim=-1)
        return self._heads(self.norm_k(k_BTD).to(v_BTD.dtype)), self._heads(v_BTD)

    def forward(self, x_BND: Tensor, keys_values: KeysValues, mask: Mask = ()) -> Tensor:
        """(B, N, D)."""
        q_BND = self.q(x_BND)
        y_BHNE = attend_masked(self._heads(self.norm_q(q_BND).to(q_BND.dtype)), *keys_values, mask)
        return self.o(y_BHNE.transpose(1, 2).flatten(2))

    def _heads(self, x_BND: Tensor) -> Tensor:
        return x_BND.unflatten(-1, (self.heads, -1)).transpose(1, 2)


class Block(nn.Module):
    """One block; `cross_attention=False` leaves it and its norm out."""

    def __init__(self, width: int, heads: int, ffn_width: int, eps: float, gelu: str, cross_attention: bool):
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps, elementwise_affine=False)
        self.self_attn = SelfAttention(width, heads, eps)
        self.norm3 = nn.LayerNorm(width, eps) if cross_attention else None
        self.cross_attn = CrossAttention(width, heads, eps) if cross_attention else None
        self.norm2 = nn.LayerNorm(width, eps, elementwise_affine=False)
        self.ffn = nn.Sequential(linear(width, ffn_width), nn.GELU(approximate=gelu), linear(ffn_width, width))
        self.modulation = nn.Parameter(torch.randn(1, 6, width) / width**0.5)

    def forward(
        self,
        x_BLSD: Tensor,
        time_BL6D: Tensor,
        rotation: Rotation,
        action_keys_values: KeysValues | None,
        outputs: int,
        before: KeysValues | None = None,
        runs: Sequence[Run] = (),
    ) -> tuple[Tensor, KeysValues]:
        """Tokens of the last `outputs` latent frames (B, outputs, S, D), and self-attention's keys and values.

        All frames serve as keys and values, and so do the latents `before` them, if any. Which of these and of the
        actions each of the `outputs` frames sees, `runs` say; without runs, all.
        """
        L, S = x_BLSD.shape[1:3]
        shift1, scale1, gate1, shift2, scale2, gate2 = modulation(self.modulation, time_BL6D, x_BLSD.dtype)
        last = slice(L - outputs, None)
        latent_mask = [(run.frames * S, run.latents * S) for run in runs]
        action_mask = [(run.frames * S, run.actions) for run in runs]

        y_BLSD = modulate(self.norm1(x_BLSD), shift1, scale1)
        y_BND, keys_values = self.self_attn(y_BLSD.flatten(1, 2), rotation, outputs * S, before, latent_mask)
        x_BLSD = torch.addcmul(x_BLSD[:, last], y_BND.unflatten(1, (outputs, S)), gate1[:, last])

        if self.cross_attn is not None and self.norm3 is not None:
            assert action_keys_values is not None
            y_BND = self.cross_attn(self.norm3(x_BLSD).flatten(1, 2), action_keys_values, action_mask)
            x_BLSD = x_BLSD + y_BND.unflatten(1, (outputs, S))

        y_BLSD = self.ffn(modulate(self.norm2(x_BLSD), shift2[:, last], scale2[:, last]))
        return torch.addcmul(x_BLSD, y_BLSD, gate2[:, last]), keys_values

    def action_keys_values(self, tokens_BTD: Tensor) -> KeysValues:
        """Keys and values (B, H, T, E) of action tokens, for `forward`."""
        assert self.cross_attn is not None
        return self.cross_attn.keys_values(tokens_BTD)


def modulation(table: Tensor, time_BLKD: Tensor, dtype: torch.dtype) -> tuple[Tensor, ...]:
    """The K vectors (B, L, 1, D) of each latent frame, to be broadcast over its tokens."""
    return (table + time_BLKD).to(dtype).unsqueeze(2).unbind(3)


def modulate(x_BLSD: Tensor, shift_BL1D: Tensor, scale_BL1D: Tensor) -> Tensor:
    """AdaLN: x (1 + scale) + shift."""
    return torch.addcmul(shift_BL1D, x_BLSD, 1 + scale_BL1D)
