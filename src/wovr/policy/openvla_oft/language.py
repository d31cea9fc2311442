"""Llama-2 as OpenVLA-OFT runs it: every token attends to every other one, and only action tokens have logits.

The blocks are transformers'. What is around them is written out, since it departs from a causal language model in the
mask, in the positions and in the head; names are those of the checkpoints.

Legend: B batch, S tokens of the sequence, D width, E channels of a head, V action tokens, K tokens that are predicted.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaDecoderLayer, LlamaRMSNorm

from wovr.policy.openvla_oft.config import LlamaSize, OpenVLAOFTConfig
from wovr.policy.openvla_oft.vision import recomputed


class LlamaBlock(LlamaDecoderLayer):
    """transformers' block with its tensors by position, as activation checkpointing hands them over."""

    def forward(self, x_BSD: Tensor, mask_B1SS: Tensor, cos_BSE: Tensor, sin_BSE: Tensor) -> Tensor:
        return super().forward(x_BSD, attention_mask=mask_B1SS, position_embeddings=(cos_BSE, sin_BSE))


class Trunk(nn.Module):
    """Embedding, blocks and final norm."""

    def __init__(self, size: LlamaSize, checkpointing: bool) -> None:
        super().__init__()
        self.checkpointing = checkpointing
        self.head_width, self.theta = size.width // size.heads, size.rope_theta
        llama = LlamaConfig(
            hidden_size=size.width,
            num_attention_heads=size.heads,
            intermediate_size=size.mlp_width,
            rms_norm_eps=size.norm_eps,
            attn_implementation="sdpa",  # type: ignore[call-arg]  # taken by its base class
        )
        self.embed_tokens = nn.Embedding(size.vocab, size.width)
        self.layers = nn.ModuleList([LlamaBlock(llama, number) for number in range(size.layers)])
        self.norm = LlamaRMSNorm(size.width, eps=size.norm_eps)

    def forward(self, x_BSD: Tensor, real_BS: Tensor) -> Tensor:
        """Embedded tokens and which of them are not padding -> (B, S, D) after the final norm.

        Positions count real tokens, so that padding, wherever it stands, changes nothing for them.
        """
        mask_B1SS = real_BS[:, None, None, :].expand(-1, 1, x_BSD.shape[1], -1)
        cos_BSE, sin_BSE = rotary(real_BS.long().cumsum(dim=1) - 1, self.head_width, self.theta)
        cos_BSE, sin_BSE = cos_BSE.to(x_BSD.dtype), sin_BSE.to(x_BSD.dtype)
        for layer in self.layers:
            x_BSD = recomputed(layer, self.checkpointing, x_BSD, mask_B1SS, cos_BSE, sin_BSE)
        return self.norm(x_BSD)


class ActionHead(nn.Linear):
    """The language model's head, whole in the checkpoint, of which only the rows of action tokens are applied.

    Its other rows would be masked with -inf before the softmax: the probabilities are the same.
    """

    def __init__(self, width: int, vocab: int, first: int, bins: int) -> None:
        super().__init__(width, vocab, bias=False)
        self.first, self.bins = first, bins

    def forward(self, x_BKD: Tensor) -> Tensor:
        """Logits (B, K, V) in float32, whatever the weights are in."""
        with _no_autocast(x_BKD.device.type):
            return linear(x_BKD.float(), self.weight[self.first : self.first + self.bins].float())


class LanguageModel(nn.Module):
    """The trunk and the head."""

    def __init__(self, config: OpenVLAOFTConfig) -> None:
        super().__init__()
        size = config.llama
        self.model = Trunk(size, config.checkpointing)
        self.lm_head = ActionHead(size.width, size.vocab, config.text_vocab - config.bins, config.bins)

    def forward(self, x_BSD: Tensor, real_BS: Tensor, first: int, count: int) -> Tensor:
        """Logits (B, K, V) that `count` tokens from number `first` on give for the token after each of them."""
        return self.lm_head(self.model(x_BSD, real_BS)[:, first : first + count])


def rotary(positions_BS: Tensor, head_width: int, theta: float) -> tuple[Tensor, Tensor]:
    """Cosines and sines (B, S, E), float32; channel i turns together with channel i + E / 2."""
    exponents = torch.arange(0, head_width, 2, device=positions_BS.device, dtype=torch.float32) / head_width
    angles = positions_BS.unsqueeze(-1).float() * (1.0 / theta**exponents)
    angles_BSE = torch.cat([angles, angles], dim=-1)
    return angles_BSE.cos(), angles_BSE.sin()


def _no_autocast(device: str) -> AbstractContextManager[Any]:
    available = torch.amp.is_autocast_available(device)
    return torch.autocast(device, enabled=False) if available else nullcontext()
