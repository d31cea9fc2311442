"""Instructions as word ids without a vocabulary file, and their encoder.

Words are hashed into buckets, so that a new suite needs no new file and old weights still load.

Legend: B batch, L words, E word width, D text width.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor, nn

from wovr.core.errors import UserError

WORD_BUCKETS = 4096
"""Hash buckets; the words of the embedded suites share none (tested). Bucket 0 is padding."""
MAX_WORDS = 32
"""The longest LIBERO instruction has 17 words."""


@lru_cache(maxsize=4096)
def _ids(instruction: str) -> tuple[int, ...]:
    words = re.findall(r"[a-z0-9]+", instruction.lower())
    if len(words) > MAX_WORDS:
        raise UserError(f"instruction {instruction!r}: expected at most {MAX_WORDS} words, found {len(words)}")
    hashed = [1 + zlib.crc32(word.encode()) % (WORD_BUCKETS - 1) for word in words]
    return tuple(hashed + [0] * (MAX_WORDS - len(words)))


def word_ids(instructions: Sequence[str]) -> Tensor:
    """Bucket of each lower-case word, (B, MAX_WORDS) int64, 0 where there is no word."""
    return torch.tensor([_ids(instruction) for instruction in instructions], dtype=torch.int64).view(-1, MAX_WORDS)


class TextEncoder(nn.Module):
    """Mean over pairs of neighbouring words: "red block" and "green plate" are told from "green block, red plate"."""

    def __init__(self, width: int, word_width: int = 32) -> None:
        super().__init__()
        self.words = nn.Embedding(WORD_BUCKETS, word_width, padding_idx=0)
        self.pair = nn.Linear(2 * word_width, width)
        self.out = nn.Linear(width, width)

    def forward(self, ids_BL: Tensor) -> Tensor:
        """(B, L) word ids -> (B, D). Equal rows are encoded once: a batch has few instructions and many frames."""
        ids_UL, row_of_B = torch.unique(ids_BL, dim=0, return_inverse=True)
        words_ULE = self.words(ids_UL)
        next_ULE = nn.functional.pad(words_ULE[:, 1:], (0, 0, 0, 1))
        pairs_ULD = nn.functional.gelu(self.pair(torch.cat([words_ULE, next_ULE], dim=-1)))
        present_UL1 = (ids_UL != 0).unsqueeze(-1)
        mean_UD = (pairs_ULD * present_UL1).sum(1) / present_UL1.sum(1).clamp(min=1)
        return self.out(mean_UD)[row_of_B]
