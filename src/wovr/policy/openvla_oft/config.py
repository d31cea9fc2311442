"""Configuration of OpenVLA-OFT. Defaults are the published size, that of `openvla-7b`: 7.54 billion parameters."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator

from wovr.core.config import Config

PATCH = 14
"""Pixels along a side of a patch, in both vision transformers."""


class ViTConfig(Config):
    """Size of one of the vision transformers; defaults are those of DINOv2 ViT-L/14 with registers."""

    width: int = Field(1024, ge=1)
    """Channels of a token."""
    depth: int = Field(24, ge=2)
    """Blocks. The last one is in every checkpoint and never used: features are read before it."""
    heads: int = Field(16, ge=1)
    """Attention heads."""
    mlp_width: int = Field(4096, ge=1)
    """Hidden width of the MLPs."""

    @model_validator(mode="after")
    def _heads_divide_width(self) -> ViTConfig:
        if self.width % self.heads:
            raise ValueError(f"expected heads that divide the width {self.width}")
        return self


class SiglipConfig(ViTConfig):
    """The same with the size of SigLIP so400m/14."""

    width: int = Field(1152, ge=1)
    """Channels of a token."""
    depth: int = Field(27, ge=2)
    """Blocks; the last one is never used."""
    mlp_width: int = Field(4304, ge=1)
    """Hidden width of the MLPs."""


class LlamaSize(Config):
    """Size of the language model; defaults are Llama-2-7B with OpenVLA's vocabulary."""

    vocab: int = Field(32064, ge=1)
    """Rows of the embedding: Llama-2's 32000 and `padding`."""
    padding: int = Field(64, ge=0)
    """Rows past the tokenizer's vocabulary; published as `pad_to_multiple_of`. Actions are the last tokens before."""
    width: int = Field(4096, ge=1)
    """Channels of a token."""
    layers: int = Field(32, ge=1)
    """Blocks."""
    heads: int = Field(32, ge=1)
    """Attention heads, as many for keys and values."""
    mlp_width: int = Field(11008, ge=1)
    """Hidden width of the gated MLPs."""
    norm_eps: float = Field(1e-6, gt=0)
    """Added to the mean square in RMSNorm. Llama-2 says 1e-5, but OpenVLA's published `text_config` gives none, so that
    its checkpoints were fine-tuned and are run with the default of transformers' LlamaConfig, which is this."""
    rope_theta: float = Field(10000.0, gt=0)
    """Base of the rotary positions' frequencies."""

    @model_validator(mode="after")
    def _heads_divide_width(self) -> LlamaSize:
        if self.width % self.heads or (self.width // self.heads) % 2:
            raise ValueError(f"expected heads that divide the width {self.width} into even parts")
        return self


class LoRASettings(Config):
    """Adapters in every linear layer of the used network except the head; defaults are those of OpenVLA-OFT."""

    rank: int = Field(32, ge=1)
    """Inner width of an adapter."""
    alpha: float | None = Field(None, gt=0)
    """Its output is scaled by alpha / rank. Default: the rank, but 16 at most."""
    dropout: float = Field(0.0, ge=0, lt=1)
    """Of an adapter's input, while the policy is in training mode. Above 0, the log-probabilities of unchanged weights
    differ between rollout and training."""

    @property
    def scale_numerator(self) -> float:
        """Alpha, its default resolved."""
        return min(self.rank, 16) if self.alpha is None else self.alpha


class OpenVLAOFTConfig(Config):
    """What a published OpenVLA-OFT checkpoint is, and how it is run and trained."""

    kind: Literal["openvla_oft"] = "openvla_oft"
    """Tells this section from that of the embedded policy."""
    pretrained: Path | None = None
    """Published folder: weights, tokenizer, statistics. None is random weights, for tests and plans."""
    statistics: str = "libero_goal_no_noops"
    """Key of the data in `dataset_statistics.json` whose quantiles normalise actions and proprioception."""
    chunk_length: int = Field(8, ge=1)
    """Env steps per forward, H; the published LIBERO checkpoints'."""
    action_dim: int = Field(7, ge=2)
    """Action dimensions, A; the last one is the gripper."""
    bins: int = Field(256, ge=3)
    """Action tokens, V; published as `n_action_bins`."""
    views: Literal[1, 2] = 1
    """Cameras: the one that looks at the scene, and the wrist's."""
    proprio: int = Field(0, ge=0)
    """Numbers of proprioception, one token for all of them; 0 is without."""
    stop_token: bool = True
    """Whether the sequence ends in `</s>`, as OpenVLA-OFT and SimpleVLA-RL have it. RLinf leaves it out: false for what
    it trained."""
    image_size: int = Field(224, ge=PATCH, multiple_of=PATCH)
    """Pixels along a side of what the vision transformers see."""
    crop: float = Field(1.0, gt=0, le=1)
    """Share of the frame's area that they see, at its centre. 0.9 is OpenVLA-OFT's own evaluation, after training on
    random crops of that size; RLinf shows all of it."""
    dino: ViTConfig = ViTConfig()
    """The first vision transformer."""
    siglip: SiglipConfig = SiglipConfig()
    """The second one."""
    llama: LlamaSize = LlamaSize()
    """The language model."""
    checkpointing: bool = False
    """Compute the activations of transformer blocks again in the backward pass instead of keeping them."""
    lora: LoRASettings | None = None
    """Train adapters and leave the weights alone; None trains all weights."""

    @property
    def tokens(self) -> int:
        """Action tokens per chunk, K."""
        return self.chunk_length * self.action_dim

    @property
    def text_vocab(self) -> int:
        """Of the tokenizer. Action token j in 0..V-1 has the id `text_vocab - bins + j`."""
        return self.llama.vocab - self.llama.padding

    @property
    def patches(self) -> int:
        """Tokens of one view."""
        return (self.image_size // PATCH) ** 2
