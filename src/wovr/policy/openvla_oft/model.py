"""OpenVLA-OFT (Kim et al. 2025, with discrete tokens): frames and the instruction to a chunk of actions in one forward.

The sequence is `<s>`, the patches of each view, a token of proprioception if there is one, the prompt, K placeholders
whose embeddings are zero, and `</s>`. Attention goes both ways, so that all K tokens are predicted at once and
independently of each other: the last token of the prompt and the first K - 1 placeholders each give the next one.

Shorter prompts of a batch are padded between the patches and the prompt, as RLinf does it; padding is masked and not
counted, so that a row does not depend on the others.

Legend: B batch, H chunk length (frame height in frames_BHWC), A action dims, K = H * A action tokens, V bins per token,
L tokens of a padded prompt, N patches, D width of the language model, S tokens of the sequence, P numbers of
proprioception.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import gelu

from wovr.core.types import Frames
from wovr.policy.base import PolicyBatch
from wovr.policy.openvla_oft.actions import ActionTokens, ProprioRange
from wovr.policy.openvla_oft.assets import TOKENIZER, Assets, stand_in
from wovr.policy.openvla_oft.config import OpenVLAOFTConfig
from wovr.policy.openvla_oft.images import normalise, resize
from wovr.policy.openvla_oft.language import LanguageModel
from wovr.policy.openvla_oft.prompt import PADDING, START, STOP, Prompts, read_tokenizer
from wovr.policy.openvla_oft.vision import Projector, VisionBackbone
from wovr.policy.tokens import act_tokens, chosen_and_entropy, token_log_probs


class ProprioProjector(nn.Module):
    """Proprioception to a token of the language model."""

    def __init__(self, numbers: int, width: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(numbers, width)
        self.fc2 = nn.Linear(width, width)

    def forward(self, proprio_BP: Tensor) -> Tensor:
        return self.fc2(gelu(self.fc1(proprio_BP)))


class OpenVLAOFT(nn.Module):
    """`wovr.policy.base.Policy`. Its parameters carry the names of the published checkpoints.

    Without `assets`, it has a tokenizer of bytes and actions in [-1, 1]: for tests and plans.
    """

    def __init__(self, config: OpenVLAOFTConfig, assets: Assets | None = None) -> None:
        super().__init__()
        self.config = config
        self.assets = assets = stand_in(config) if assets is None else assets
        self.chunk_length, self.action_dim = config.chunk_length, config.action_dim
        self.views, self.proprio_dim = int(config.views), config.proprio
        self.actions = ActionTokens(assets.section, config.bins)
        self.prompts = Prompts(read_tokenizer(assets.files[TOKENIZER], TOKENIZER, config.text_vocab))
        self.vision_backbone = VisionBackbone(config)
        self.projector = Projector(config.dino.width + config.siglip.width, config.llama.width)
        self.language_model = LanguageModel(config)
        if config.proprio:
            self.proprio_range = ProprioRange(assets.section)
            self.proprio_projector = ProprioProjector(config.proprio, config.llama.width)

    def forward(
        self,
        frames_BHWC: Tensor,
        instructions: Sequence[str] | Tensor,
        *,
        wrist_BHWC: Tensor | None = None,
        proprio_BP: Tensor | None = None,
    ) -> Tensor:
        """Logits (B, K, V) in float32; of token j, the j-th of the last V tokens of the text vocabulary.

        `frames_BHWC` and `wrist_BHWC` are upright uint8 frames of any size, `instructions` strings or what
        `encode_instructions` made of them, `proprio_BP` in units of the data. The last two are given exactly where
        `views` and `proprio_dim` ask for them.
        """
        assert (wrist_BHWC is not None) == (self.views == 2), f"{self.views} views"
        assert (proprio_BP is not None) == bool(self.proprio_dim), f"{self.proprio_dim} numbers of proprioception"
        ids_BL = instructions if isinstance(instructions, Tensor) else self.prompts(instructions)
        ids_BL = ids_BL.to(frames_BHWC.device)
        seen = [self._patches([frames_BHWC] if wrist_BHWC is None else [frames_BHWC, wrist_BHWC])]
        if proprio_BP is not None:
            weight = next(self.proprio_projector.parameters())
            seen.append(self.proprio_projector(self.proprio_range(proprio_BP).to(weight.dtype)).unsqueeze(1))
        x_BSD, real_BS = self._sequence(torch.cat(seen, dim=1), ids_BL)
        last = x_BSD.shape[1] - self.config.stop_token - self.config.tokens - 1  # the prompt's last token
        return self.language_model(x_BSD, real_BS, last, self.config.tokens)

    def _patches(self, views: list[Tensor]) -> Tensor:
        """Frames of each view -> (B, views * N, D)."""
        pictures = torch.cat([resize(frames, self.config.image_size, self.config.crop) for frames in views])
        both = [normalise(pictures, mean, std) for mean, std in zip(self.assets.means, self.assets.stds, strict=True)]
        return torch.cat(self.projector(self.vision_backbone(*both)).chunk(len(views)), dim=1)

    def _sequence(self, seen_BND: Tensor, ids_BL: Tensor) -> tuple[Tensor, Tensor]:
        """(embedded tokens (B, S, D), which of them are not padding (B, S))."""
        B, L = ids_BL.shape
        known_BL = ids_BL != PADDING
        start_B1, stop_B1 = (ids_BL.new_full((B, 1), token) for token in (START, STOP))
        text = self.language_model.model.embed_tokens(torch.cat([start_B1, ids_BL.clamp(min=0), stop_B1], dim=1))
        seen_BND = seen_BND.to(text.dtype)  # under autocast, the projector's are bf16
        holes_BKD = text.new_zeros(B, self.config.tokens, text.shape[-1])
        end = [text[:, L + 1 :]] if self.config.stop_token else []
        x_BSD = torch.cat([text[:, :1], seen_BND, text[:, 1 : L + 1], holes_BKD, *end], dim=1)
        before = known_BL.new_ones(B, 1 + seen_BND.shape[1])
        after = known_BL.new_ones(B, x_BSD.shape[1] - before.shape[1] - L)
        return x_BSD, torch.cat([before, known_BL, after], dim=1)

    @torch.no_grad()
    def act(
        self,
        frames_BHWC: Frames,
        instructions: Sequence[str],
        *,
        temperature: float,
        uniforms_BK: Tensor | None,
        wrist_BHWC: Frames | None = None,
        proprio_BP: NDArray[np.floating] | None = None,
    ) -> PolicyBatch:
        """One chunk per observation: sampled by inverse CDF from `uniforms_BK` in [0, 1), greedy where it is None."""
        device = self.language_model.lm_head.weight.device
        logits_BKV = self(
            torch.from_numpy(np.ascontiguousarray(frames_BHWC)).to(device),
            instructions,
            wrist_BHWC=None if wrist_BHWC is None else torch.from_numpy(np.ascontiguousarray(wrist_BHWC)).to(device),
            proprio_BP=None if proprio_BP is None else torch.from_numpy(np.ascontiguousarray(proprio_BP)).to(device),
        )
        tokens_BK, chosen_BK = act_tokens(logits_BKV, temperature, uniforms_BK)
        return PolicyBatch(self.actions.decode(tokens_BK).cpu().numpy(), tokens_BK, chosen_BK)

    def log_probs(
        self,
        frames_BHWC: Tensor,
        instructions: Sequence[str] | Tensor,
        tokens_BK: Tensor,
        *,
        temperature: float,
        wrist_BHWC: Tensor | None = None,
        proprio_BP: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """(log-probabilities (B, K), entropies (B, K)) of given tokens, with gradient."""
        logits_BKV = self(frames_BHWC, instructions, wrist_BHWC=wrist_BHWC, proprio_BP=proprio_BP)
        return chosen_and_entropy(token_log_probs(logits_BKV, temperature), tokens_BK)

    def encode_actions(self, actions_BHA: Tensor) -> Tensor:
        """Tokens (B, K) of actions in environment units: targets for a fit to demonstrations."""
        return self.actions.encode(actions_BHA)

    def encode_instructions(self, instructions: Sequence[str]) -> Tensor:
        """(B, L) int64: what `forward` takes in place of strings."""
        return self.prompts(instructions)
